"""Agents with one brief, forks, and alternatives of one turn: what they share inside a chunk is on disk once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest

from agent_memory import Agent, Config, EchoRunner, Memory, Reply
from agent_memory.prefix.chunks import common_prefix
from agent_memory.prefix.pieces import Segment
from tests.parts.kvmodel import held_bytes

CONFIG = Config(chunk_tokens=64, prefill_tokens=64)
BRIEF = "You answer in one word, and you are never wrong about that word. " * 5
SLACK = 65_536  #: bytes of a file beside its rows
LEAST = 64 // 16  #: tokens that are worth a reference


def runner(kind: str) -> Any:
    if kind == "echo":
        return EchoRunner()
    from agent_memory import MLXRunner
    from tests.parts import tiny
    from tests.parts.tinytokenizer import tokenizer

    return MLXRunner(tiny.model(kind), tokenizer(), name=kind)


KINDS = ["echo", pytest.param("llama", marks=pytest.mark.mlx)]


def ask(agent: Agent, text: str) -> Reply:
    return agent.say(text, max_tokens=8)


def n_stored(memory: Memory) -> int:
    """Tokens whose rows are in files."""
    memory.flush()
    segments = memory._store._catalog.segments.values()
    return sum(segment.n_own for segment in segments if segment.kind == "rows")


def n_distinct(agents: Iterable[Agent]) -> int:
    """Tokens of all agents, each common beginning once."""
    lines = sorted(agent._log.ids.tolist() for agent in agents)
    shared = sum(common_prefix(a, b) for a, b in zip(lines, lines[1:], strict=False))
    return sum(map(len, lines)) - shared


def assert_stored_once(memory: Memory, path: Path, agents: list[Agent], *, but: int = 0) -> None:
    n_tokens = n_stored(memory)
    assert n_tokens <= n_distinct(agents) + LEAST * len(agents) + but
    layout = memory._store._catalog.model.layout
    assert held_bytes(path) <= n_tokens * layout.token_bytes + 3 * SLACK * len(agents)
    assert memory.verify().ok


def assert_same_as_never_stopped(kind: str, memory: Memory, path: Path, names: Iterable[str]) -> None:
    """Every agent says the same whether it goes on here, from live KV, or elsewhere from a copy of what is on disk."""
    memory.flush()
    copy = path.with_name("copy")
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("lock"))
    with Memory(runner(kind), copy, config=CONFIG) as other:
        for name in names:
            restored, live = ask(other.agent(name), "Again?"), ask(memory.agent(name), "Again?")
            assert (restored.usage.tier, restored.usage.exactness, restored.usage.miss) == ("cold", "exact", None)
            assert restored.token_ids == live.token_ids
        assert other.verify().ok
        assert other.stats().damage == 0


@pytest.mark.parametrize("kind", KINDS)
def test_agents_with_one_brief_store_it_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Memory(runner(kind), path, config=CONFIG) as memory:
        agents = [memory.agent(f"a{number}", system=BRIEF) for number in range(8)]
        for number, agent in enumerate(agents):
            ask(agent, f"{number}: what is it?")
        assert_stored_once(memory, path, agents)
        for number, agent in enumerate(agents):
            ask(agent, f"And {number * 7}, now that you know what it is not?")
        assert_stored_once(memory, path, agents)
        assert_same_as_never_stopped(kind, memory, path, [agent.name for agent in agents])


@pytest.mark.parametrize("kind", KINDS)
def test_forks_store_their_own_turns(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Memory(runner(kind), path, config=CONFIG) as memory:
        base = memory.agent("base", system=BRIEF)
        ask(base, "What is it?")
        forks = [base.fork(f"f{number}") for number in range(10)]
        for number, fork in enumerate(forks):
            ask(fork, f"{number}: and what is it not?")
        ask(base, "Go on.")
        assert_stored_once(memory, path, [base, *forks])
        base.delete()
        assert_same_as_never_stopped(kind, memory, path, [fork.name for fork in forks])


@pytest.mark.parametrize("kind", KINDS)
def test_eight_replies_that_are_drawn_compute_and_store_their_prompt_once(kind: str, tmp_path: Path) -> None:
    with Memory(runner(kind), tmp_path / "store", config=CONFIG) as memory:
        agent = memory.agent("a", system=BRIEF)
        ask(agent, "What is it?")
        stored, hot = n_stored(memory), memory.stats().hot_bytes
        forks = [agent.fork(f"f{number}", temporary=True) for number in range(8)]
        assert (n_stored(memory), memory.stats().hot_bytes) == (stored, hot), "all of it is shared until they say more"
        for fork in forks:
            fork.delete()
        before, scored = memory.stats().computed_ids, list[Reply]()

        def key(reply: Reply) -> int:
            assert n_stored(memory) == stored, "nothing of a reply is written before one is chosen"
            scored.append(reply)
            return len(scored) == 3

        best = memory.best_of(agent, "Say it otherwise.", 8, key, temperature=1.0, seed=1, max_tokens=16)
        assert memory.stats().computed_ids - before == best.usage.computed_tokens + 7, "its last id is each reply's own"
        assert [reply.usage.computed_tokens for reply in scored] == [1] * 8
        assert len({reply.token_ids for reply in scored}) >= 7
        assert best.token_ids == scored[2].token_ids
        assert n_stored(memory) - stored <= agent._log.n_kv - best.usage.cached_tokens + LEAST
        assert memory.verify().ok


def test_a_forked_agent_travels_with_the_rows_that_it_shares(tmp_path: Path) -> None:
    with Memory(runner("echo"), tmp_path / "here", config=CONFIG) as memory:
        base = memory.agent("base", system=BRIEF)
        ask(base, "What is it? " * 9)
        fork = memory.agent("fork", system=BRIEF)
        ask(fork, "What is it not? " * 9)
        memory.flush()
        assert any(s.n_shared for s in memory._store._catalog.segments.values())
        fork.export(tmp_path / "fork.agent")
        first = (tmp_path / "fork.agent").read_bytes()
        fork.export(tmp_path / "fork.agent")
        assert (tmp_path / "fork.agent").read_bytes() == first
        base.delete()  # what is left of a piece goes with its own segment, as a delta
        fork.export(tmp_path / "alone.agent")
        held = fork.n_tokens
    for file in ("fork", "alone"):
        with Memory(runner("echo"), tmp_path / f"there-{file}", config=CONFIG) as memory:
            agent = memory.import_agent(tmp_path / f"{file}.agent")
            reply = ask(agent, "Again?")
            assert reply.usage.tier == "cold"
            assert reply.usage.cached_tokens >= held - 3
            assert memory.verify().ok


@pytest.mark.mlx
def test_an_exact_lineage_makes_lossy_rows_exact_that_others_share(tmp_path: Path) -> None:
    lossy = attrs.evolve(CONFIG, cold_codec="q8")

    def opened(config: Config) -> Memory:
        return Memory(runner("llama"), tmp_path, config=config)

    def segments(memory: Memory) -> list[Segment]:
        memory.flush()
        return [s for s in memory._store._catalog.segments.values() if s.kind == "rows"]

    with opened(lossy) as memory:
        for name in ("a", "b", "c"):
            ask(memory.agent(name, system=BRIEF), f"{name}: is it what it was? And was it what it is? " * 3)
        found = segments(memory)
        assert sum(s.n_shared > 0 for s in found) == 2
        assert {s.codec for s in found} == {"q8"}
    with opened(lossy) as memory:  # rows that were decoded are taken over as they are stored, never encoded again
        for name in ("a", "b", "c"):
            assert ask(memory.agent(name), "Again? " * 12).usage.exactness == "quantized"
        assert {s.codec for s in segments(memory)} == {"q8"}
        assert sum(s.n_shared > 0 for s in segments(memory)) >= 2
        assert memory.verify().ok
    with opened(CONFIG) as memory:
        memory.agent("a").say("Exactly?", max_tokens=8, exact=True)
        found = {s.number: s for s in segments(memory)}
        sources = {s.source_number for s in found.values() if s.codec == "q8" and s.n_shared} - {None}
        assert {found[number].codec for number in sources} >= {"exact"}, "the same number, another file"
        assert memory.verify().ok
        for name in ("b", "c"):
            assert ask(memory.agent(name), "And you?").usage.exactness == "quantized"
            memory.agent(name).export(tmp_path.with_name(f"{name}.agent"))
        assert memory.verify().ok
        assert memory.stats().damage == 0
    with opened(CONFIG) as memory:
        assert ask(memory.agent("c"), "And then?").usage.tier == "cold"
