"""An mlx-lm directory with weights, a tokenizer and LoRA adapters, all made here, through the public API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent_memory import Config, Memory
from agent_memory.errors import ConfigError
from tests import tiny
from tests.reliability.tinytokenizer import tokenizer

pytestmark = pytest.mark.mlx

SMALL = Config(chunk_tokens=16, prefill_tokens=32, blas=None)


def _directory(folder: Path) -> Path:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(tiny.SHAPES["llama"] | {"max_position_embeddings": 2048}))
    weights = dict(tree_flatten(tiny.model("llama").parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def _adapter(folder: Path, seed: int) -> Path:
    import mlx.core as mx

    folder.mkdir()
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    about = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 10.0, "dropout": 0.0}}
    about["lora_parameters"]["keys"] = keys  # type: ignore[index]
    (folder / "adapter_config.json").write_text(json.dumps(about))
    arrays = {}
    for layer in range(2):
        for key, width in zip(keys, (64, 32), strict=True):
            draws = mx.random.split(mx.random.key(seed * 100 + layer * 10 + width), 2)
            name = f"model.layers.{layer}.{key}"
            arrays[f"{name}.lora_a"] = mx.random.normal((64, 4), key=draws[0]) * 0.2
            arrays[f"{name}.lora_b"] = mx.random.normal((4, width), key=draws[1]) * 0.2
    mx.save_safetensors(str(folder / "adapters.safetensors"), arrays)
    return folder


def test_two_adapters_of_one_model_answer_differently_and_share_no_kv(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    model, store = _directory(tmp_path / "base"), tmp_path / "store"
    adapters = {None: None, "one": _adapter(tmp_path / "one", 1), "two": _adapter(tmp_path / "two", 2)}
    texts = {}
    for name, adapter in adapters.items():
        with Memory(model, store, config=SMALL, adapter=adapter) as memory:
            reply = memory.generate("The same words for all three of them.", max_tokens=24)
            assert (reply.usage.cached_tokens, reply.usage.tier) == (0, "none"), name
            texts[name] = reply.token_ids
    assert len(set(texts.values())) == 3
    for name, adapter in adapters.items():
        with Memory(model, store, config=SMALL, adapter=adapter) as memory:
            reply = memory.generate("The same words for all three of them.", max_tokens=24)
            assert reply.usage.tier == "cold"
            assert reply.usage.computed_tokens == 1
            assert reply.token_ids == texts[name]


def test_an_agent_goes_on_under_another_adapter_from_its_log(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    model, store = _directory(tmp_path / "base"), tmp_path / "store"
    with Memory(model, store, config=SMALL) as memory:
        memory.agent("a").say("Hello, and remember this.", max_tokens=8)
    with Memory(model, store, config=SMALL, adapter=_adapter(tmp_path / "one", 1)) as memory:
        usage = memory.agent("a").say("What was it?", max_tokens=8).usage
        assert (usage.cached_tokens, usage.miss, usage.exactness) == (0, "other_model", "recomputed")
        assert len(memory.agent("a").messages) == 4


def test_a_folder_that_is_no_adapter_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        Memory(_directory(tmp_path / "base"), tmp_path / "store", adapter=tmp_path)
    assert not (tmp_path / "store").exists()


def test_the_weights_dtype_is_decided_once_per_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent_memory.models import resolve

    (tmp_path / "base").mkdir()
    model, store = _directory(tmp_path / "base"), tmp_path / "store"
    dtypes = []
    for memory_bytes in (1 << 40, 1, 1 << 40):  # a machine that had room for float32, then one that has not
        monkeypatch.setattr(resolve, "total_memory_bytes", lambda n=memory_bytes: n)
        with Memory(model, store, config=SMALL) as memory:
            dtypes.append(memory._runner.choices["weights_dtype"])
    assert dtypes == ["float32", "float32", "float32"]
    monkeypatch.setattr(resolve, "total_memory_bytes", lambda: 1)
    with Memory(model, tmp_path / "other", config=SMALL) as memory:
        assert memory._runner.choices["weights_dtype"] == "stored"
