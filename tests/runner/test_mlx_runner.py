"""A runner around what the host has loaded: one Memory after another, and never two at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_memory import ConfigError, Memory, MLXRunner
from tests.parts import tiny
from tests.parts.tinytokenizer import tokenizer
from tests.parts.waiting import within

pytestmark = pytest.mark.mlx

#: Llama 3's rope: its frequencies are no parameter, and lazy until somebody asks.
SCALED = {
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}  # fmt: skip


def runner(**shape: object) -> MLXRunner:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    return MLXRunner(tiny.model("llama", **shape), TokenizerWrapper(tokenizer()), name="hosted")


@pytest.mark.parametrize("shape", [{}, SCALED], ids=["plain", "scaled rope"])
def test_a_runner_serves_one_memory_after_another(tmp_path: Path, shape: dict[str, object]) -> None:
    hosted = runner(**shape)
    replies = []
    for _ in range(3):
        with Memory(hosted, tmp_path) as memory:
            agent = memory.agent("ann")
            replies.append(agent.say("hello", max_tokens=8))
            agent.rewind()
    assert len({reply.token_ids for reply in replies}) == 1
    assert [reply.usage.tier for reply in replies] == ["none", "cold", "cold"]
    with Memory(runner(**shape), ":memory:") as memory:
        assert memory.generate("hello", max_tokens=8).token_ids == replies[0].token_ids


def test_a_second_memory_on_an_open_runner_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    hosted = runner()
    with Memory(hosted, ":memory:") as memory:
        said = memory.generate("hello", max_tokens=8).token_ids
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"'hosted'.* serves another Memory"):
                Memory(hosted, tmp_path)
        assert within(lambda: memory.generate("hello", max_tokens=8).token_ids) == said
    with Memory(hosted, tmp_path) as memory:  # neither the runner nor the folder is held
        assert memory.generate("hello", max_tokens=8).token_ids == said


def test_a_runner_whose_opening_failed_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    hosted = runner()
    with monkeypatch.context() as patch:
        patch.setattr("agent_memory.models.digests.of_config", lambda model: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Memory(hosted, ":memory:")
    with Memory(hosted, ":memory:") as memory:
        assert len(memory.generate("hello", max_tokens=3).token_ids) == 3


def test_line_8_the_context_is_read_from_the_text_model_too_and_odd_lengths_are_none() -> None:
    model = tiny.model("llama4")
    assert MLXRunner(model, tokenizer()).context_tokens == 4096
    for odd in (None, 0, -1, True, "x", 1e30):
        plain = tiny.model("qwen3")
        plain.args.max_position_embeddings = odd
        assert MLXRunner(plain, tokenizer()).context_tokens is None
