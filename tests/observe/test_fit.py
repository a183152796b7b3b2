"""How many agents fit: what is predicted is what is allocated, for every kind of cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_memory import ClosedError, Config, EchoRunner, Fit, Memory, UnsupportedParameterError
from agent_memory.prefix import sharing
from tests.parts import tiny

CHUNK = 16
NAMES = [*tiny.SHAPES, *tiny.MORE]
SHORT = ("llama", "gemma3_text", "qwen3_next", "llama4")
SOME = [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def opened(name: str, path: Path | str, warm_bytes: int = 0) -> Memory:
    from tests.parts.tinyrunner import endless

    runner = EchoRunner() if name == "echo" else endless(name)
    config = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK, warm_bytes=warm_bytes)
    return Memory(runner, path, config=config)


def talk(memory: Memory, n_agents: int, n_words: int) -> int:
    """Let agents speak once, and say how many tokens the KV of each covers: as many for all."""
    lengths = set()
    for n in range(n_agents):
        agent = memory.agent(f"agent {n}")
        agent.say(f"{n} " + "word " * n_words, max_tokens=4)
        lengths.add(agent._log.n_kv)
    (n_tokens,) = lengths
    return n_tokens


@pytest.mark.parametrize("n_words", [140, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["echo", *SOME])
def test_the_bytes_of_a_flush_are_as_predicted_within_two_percent(
    name: str, n_words: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_LEAST_SHARE", 0)  # what is predicted is of agents that share nothing
    with opened(name, tmp_path) as memory:
        n_tokens = talk(memory, 3, n_words)
        memory.flush()
        found = memory.fit(3, n_tokens)
        on_disk = sum(file.stat().st_blocks * 512 for file in tmp_path.glob("kv/*/*"))
        assert on_disk > 0
        assert found.total_bytes["cold"] == pytest.approx(on_disk, rel=0.02)
        assert found.total_bytes["hot"] == pytest.approx(memory.stats().hot_bytes, rel=0.02)
        assert found.agent_bytes["cold"] * 3 == found.total_bytes["cold"]


@pytest.mark.parametrize("name", ["echo", *SOME])
def test_the_bytes_of_the_warm_tier_are_as_predicted_within_two_percent(name: str) -> None:
    with opened(name, ":memory:", 1 << 28) as memory:
        n_tokens = talk(memory, 1, 140)
        memory.evict(to="warm")
        found = memory.fit(1, n_tokens)
        assert found.total_bytes["warm"] == pytest.approx(memory.stats().warm_bytes, rel=0.02)
        assert (found.budget_bytes["cold"], found.n_fit["cold"]) == (None, None)


def test_as_many_fit_as_the_budget_holds(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path, config=Config(hot_bytes=1 << 20, disk_bytes=1 << 24)) as memory:
        found = memory.fit(10, 1000)
        assert isinstance(found, Fit)
        assert found.n_fit["hot"] == (1 << 20) // found.agent_bytes["hot"]
        assert found.n_fit["cold"] == (1 << 24) // found.agent_bytes["cold"]
        assert found.n_fit["warm"] is None
        assert memory.fit(found.n_fit["cold"], 1000).fits
        assert not memory.fit(found.n_fit["cold"] + 1, 1000).fits
        assert memory.fit(1, 2000).agent_bytes["cold"] > found.agent_bytes["cold"]
        assert "10 agents of 1,000 tokens" in str(found)
        assert "<td>hot</td>" in found._repr_html_()
        assert found.to_dict()["n_fit"] == dict(found.n_fit)
        assert memory.stats().computed_ids == 0


def test_what_is_no_number_of_agents_or_tokens_is_refused() -> None:
    memory = Memory(EchoRunner(), ":memory:")
    for wrong in (0, -1, True, 1.5, "3"):
        with pytest.raises(UnsupportedParameterError, match="n_agents must be an int"):
            memory.fit(wrong, 10)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedParameterError, match="n_tokens must be an int"):
            memory.fit(10, wrong)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedParameterError, match="n_tokens must be at most 10,000,000"):
        memory.fit(1, 10**30)
    memory.close()
    with pytest.raises(ClosedError):
        memory.fit(1, 1)
