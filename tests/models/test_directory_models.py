"""An mlx-lm directory with weights, a tokenizer and LoRA adapters, all made here, through the public API."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_memory import Config, Memory
from agent_memory.errors import ConfigError
from tests.parts.tinydirectory import adapter, directory

pytestmark = pytest.mark.mlx

SMALL = Config(chunk_tokens=16, prefill_tokens=32, blas=None)


def test_two_adapters_of_one_model_answer_differently_and_share_no_kv(tmp_path: Path) -> None:
    model, store = directory(tmp_path / "base"), tmp_path / "store"
    adapters = {None: None, "one": adapter(tmp_path / "one", 1), "two": adapter(tmp_path / "two", 2)}
    texts = {}
    for name, one in adapters.items():
        with Memory(model, store, config=SMALL, adapter=one) as memory:
            reply = memory.generate("The same words for all three of them.", max_tokens=24)
            assert (reply.usage.cached_tokens, reply.usage.tier) == (0, "none"), name
            texts[name] = reply.token_ids
    assert len(set(texts.values())) == 3
    for name, one in adapters.items():
        with Memory(model, store, config=SMALL, adapter=one) as memory:
            reply = memory.generate("The same words for all three of them.", max_tokens=24)
            assert reply.usage.tier == "cold"
            assert reply.usage.computed_tokens == 1
            assert reply.token_ids == texts[name]


def test_an_agent_goes_on_under_another_adapter_from_its_log(tmp_path: Path) -> None:
    model, store = directory(tmp_path / "base"), tmp_path / "store"
    with Memory(model, store, config=SMALL) as memory:
        memory.agent("a").say("Hello, and remember this.", max_tokens=8)
    with Memory(model, store, config=SMALL, adapter=adapter(tmp_path / "one", 1)) as memory:
        usage = memory.agent("a").say("What was it?", max_tokens=8).usage
        assert (usage.cached_tokens, usage.miss, usage.exactness) == (0, "other_model", "recomputed")
        assert len(memory.agent("a").messages) == 4


def test_a_folder_that_is_no_adapter_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        Memory(directory(tmp_path / "base"), tmp_path / "store", adapter=tmp_path)
    with pytest.raises(ConfigError, match="no adapter_config"):
        Memory(directory(tmp_path / "other"), tmp_path / "store", adapter="x" * 5_000)  # no system has such a path
    assert not (tmp_path / "store").exists()


def test_the_weights_dtype_is_decided_once_per_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent_memory.models import resolve

    model, store = directory(tmp_path / "base"), tmp_path / "store"
    dtypes = []
    for memory_bytes in (1 << 40, 1, 1 << 40):  # a machine that had room for float32, then one that has not
        monkeypatch.setattr(resolve, "total_memory_bytes", lambda n=memory_bytes: n)
        with Memory(model, store, config=SMALL) as memory:
            dtypes.append(memory._runner.choices["weights_dtype"])
    assert dtypes == ["float32", "float32", "float32"]
    monkeypatch.setattr(resolve, "total_memory_bytes", lambda: 1)
    with Memory(model, tmp_path / "other", config=SMALL) as memory:
        assert memory._runner.choices["weights_dtype"] == "stored"
