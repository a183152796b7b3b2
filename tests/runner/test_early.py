"""The states of a model's early layers: those of the model itself, or a typed error."""

from __future__ import annotations

import numpy as np
import pytest

from agent_memory import Config, Memory, UnsupportedModelError
from tests.parts import tiny
from tests.parts.tinyrunner import endless

pytestmark = pytest.mark.mlx


def test_the_states_are_those_of_the_models_own_layers() -> None:
    import mlx.core as mx

    from agent_memory.runner.early import EarlyLayers

    model = tiny.model("llama")
    early = EarlyLayers(model, "tiny", 0.5)
    seen = []
    first, second = model.model.layers
    states = first(model.model.embed_tokens(mx.array([[5, 6, 7]])), "causal", None)
    seen.append(np.array(states.mean(axis=1)[0]))
    assert early.states([[5, 6, 7]])[0] == pytest.approx(seen[0], abs=1e-5)
    padded = early.states([[9], [5, 6, 7], [1, 2, 3, 4, 5, 6]])
    assert padded.shape == (3, 64)
    assert padded[1] == pytest.approx(seen[0], abs=1e-5), "whatever shares its pass"
    [whole] = EarlyLayers(model, "tiny", 1.0).states([[5, 6, 7]])
    assert whole == pytest.approx(np.array(second(states, "causal", None).mean(axis=1)[0]), abs=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "llama_windows"])
def test_layers_one_after_another_are_the_model(name: str) -> None:
    from agent_memory.runner.early import EarlyLayers

    model = tiny.model(name)
    assert EarlyLayers(model, name, 0.2)._difference(model) < 1e-4


@pytest.mark.parametrize(
    ("name", "said"),
    [("gemma3_text", "other logits"), ("mamba", "by themselves"), ("falcon_h1", "by themselves"),
     ("deepseek_v3", "by themselves")],
)  # fmt: skip
def test_a_model_whose_layers_do_something_else_is_refused(name: str, said: str) -> None:
    """Scaled embeddings, other names, other masks: none of them may pass with other states than its own."""
    from agent_memory.runner.early import EarlyLayers

    with pytest.raises(UnsupportedModelError, match=said):
        EarlyLayers(tiny.model(name), name, 0.2)


def test_a_memory_embeds_by_them_on_its_own_thread() -> None:
    with Memory(endless("llama"), ":memory:", config=Config(embedder="resident", upkeep_ms=None)) as memory:
        for text in ("a boat on the lake", "the boats of a lake", "nine times seven"):
            memory.context.remember(text, kind="note")
        assert memory.context.maintain(60_000).n_embedded == 3
        embedder = memory._asking.longterm._embedder
        assert embedder is not None
        vectors = embedder.embed(["a boat on the lake", "a boat on the lake", "nine times seven"])
        assert vectors.shape == (3, embedder.dim)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
        assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
        assert memory.context.recall("boat lake")[0].parts["similarity"] > 0


def test_a_model_that_cannot_embed_says_so_to_the_host() -> None:
    with Memory(endless("gemma3_text"), ":memory:", config=Config(embedder="resident", upkeep_ms=None)) as memory:
        memory.context.remember("a boat on the lake")
        with pytest.raises(UnsupportedModelError, match="sentence model"):
            memory.context.maintain()
