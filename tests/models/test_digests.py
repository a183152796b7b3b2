"""What a KV belongs to: same weights, same digest, without reading them anew; anything else, another one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.models import digests
from tests.parts import tiny
from tests.parts.tinytokenizer import tokenizer

SMALL = Config(chunk_tokens=16, prefill_tokens=16, blas=None)
ASKED = "The same words for every one of them, whatever their weights."


def directory(folder: Path, seed: int = 0, bits: int | None = None) -> Path:
    """A tiny llama as mlx-lm stores it."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    folder.mkdir()
    tokenizer().save_pretrained(folder)
    model, config = tiny.model("llama", seed), tiny.SHAPES["llama"] | {"max_position_embeddings": 2048}
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
        config = config | {"quantization": {"group_size": 32, "bits": bits}}
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each time that weights were read for their digest."""
    calls: list[Any] = []
    real = digests.of_weights
    monkeypatch.setattr(digests, "of_weights", lambda model, *rest: calls.append(model) or real(model, *rest))
    return calls


def ask(model: Path, store: Path, **more: Any) -> Any:
    with Memory(model, store, **({"config": SMALL} | more)) as memory:
        return memory.agent("ann").say(ASKED, max_tokens=4).usage


@pytest.mark.mlx
def test_weights_are_read_once_for_their_digest_while_their_files_stay_the_same(tmp_path: Path, n_read: Any) -> None:
    model, store = directory(tmp_path / "a"), tmp_path / "store"
    assert ask(model, store).tier == "none"
    assert ask(model, store).tier == "cold"
    assert len(n_read) == 1
    os.utime(model / "model.safetensors", (1, 1))
    assert ask(model, store).tier == "cold", "read again, and found the same"
    assert len(n_read) == 2
    shutil.copy(directory(tmp_path / "b", seed=1) / "model.safetensors", model / "model.safetensors")
    usage = ask(model, store)
    assert (usage.tier, usage.miss) == ("none", "other_model")
    assert len(n_read) == 3


@pytest.mark.mlx
def test_links_to_the_hubs_blobs_are_told_apart_by_their_names(tmp_path: Path, n_read: Any) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        model = directory(tmp_path / name, seed)
        blob = tmp_path / (f"{seed}" * 64)
        (model / "model.safetensors").rename(blob)
        (model / "model.safetensors").symlink_to(blob)
    tiers = [ask(tmp_path / name, tmp_path / "store").tier for name in "abab"]
    assert tiers == ["none", "none", "cold", "cold"]
    assert n_read == []


@pytest.mark.mlx
def test_fine_tunes_quantizations_and_salts_live_side_by_side_and_never_share(tmp_path: Path) -> None:
    store = tmp_path / "store"
    models = {
        "base": directory(tmp_path / "base"),
        "fine-tune": directory(tmp_path / "tuned", seed=1),
        "q8": directory(tmp_path / "q8", bits=8),
        "q4": directory(tmp_path / "q4", bits=4),
    }
    for cached in (0, None):
        for model in models.values():
            with Memory(model, store, config=SMALL) as memory:
                usage = memory.generate(ASKED, max_tokens=4).usage
            assert usage.cached_tokens == (usage.prompt_tokens - 1 if cached is None else 0)
            assert usage.exactness == "exact"
    with Memory(models["base"], store, config=attrs.evolve(SMALL, salt="other")) as memory:
        assert memory.generate(ASKED, max_tokens=4).usage.cached_tokens == 0


@pytest.mark.mlx
def test_two_scales_of_one_adapter_share_nothing(tmp_path: Path) -> None:
    from tests.parts.tinydirectory import adapter as lora

    model, adapter = directory(tmp_path / "a"), lora(tmp_path / "lora", 1)
    assert ask(model, tmp_path / "store", adapter=adapter).tier == "none"
    about = json.loads((adapter / "adapter_config.json").read_text())
    about["lora_parameters"]["scale"] = 5.0
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    assert ask(model, tmp_path / "store", adapter=adapter).cached_tokens == 0


def test_agents_of_several_models_live_side_by_side_and_one_that_goes_takes_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        for identity in ("one", "two"):
            with Memory(EchoRunner(identity=identity), tmp_path, config=SMALL) as memory:
                for name in ("ann", identity):
                    memory.agent(name).say(f"{ASKED} {name}")
    with Memory(EchoRunner(identity="one"), tmp_path, config=SMALL) as memory:
        assert memory.delete("two")
        assert memory.agent("one").say("Again.").usage.tier == "cold"
        assert memory.verify().ok
    with Memory(EchoRunner(identity="two"), tmp_path, config=SMALL) as memory:
        assert sorted(info.name for info in memory.agents()) == ["ann", "one"]
        assert memory.agent("ann").say("Again.").usage.tier == "cold"
        assert memory.verify().ok
