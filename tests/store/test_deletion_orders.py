"""Agents and forks of one brief, deleted in any order: rows end exactly with the last that has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Agent, Config, EchoRunner, Memory
from agent_memory.prefix.sharing import stretches
from tests.parts import tiny

CONFIG = Config(chunk_tokens=16, prefill_tokens=16)
SYSTEM = "All of them know this. " * 4
#: name -> the agent that it is a fork of, None: it shares the brief alone
FAMILY = {"base": None, "fork": "base", "grandchild": "fork", "stranger": None}
#: One of each kind of layers for the default run: all full, windows, states beside full rows, states alone.
FEW = ["llama", "llama_windows", "falcon_h1", "mamba"]
ALL = [*tiny.SHAPES, *tiny.MORE]
TWO = [("base", "fork", "stranger", "grandchild"), ("grandchild", "stranger", "fork", "base")]

_models: dict[str, Any] = {}


def runner(kind: str) -> Any:
    if kind == "echo":
        return EchoRunner()
    from agent_memory import MLXRunner
    from tests.parts.tinytokenizer import tokenizer

    if kind not in _models:
        _models[kind] = tiny.model(kind)
    return MLXRunner(_models[kind], tokenizer(), name=kind)


def born(memory: Memory) -> dict[str, Agent]:
    agents: dict[str, Agent] = {}
    for number, (name, parent) in enumerate(FAMILY.items()):
        agents[name] = memory.agent(name, system=SYSTEM) if parent is None else agents[parent].fork(name)
        agents[name].say(f"{number} {name} alone says this.", max_tokens=3)
    memory.flush()
    return agents


def rows(memory: Memory) -> set[tuple[int, int]]:
    """Every stored row: its segment and its position."""
    segments = [s for s in memory._store._catalog.segments.values() if s.kind == "rows"]
    return {(s.number, at) for s in segments for at in range(s.shared_stop, s.stop)}


def led_to(memory: Memory, agents: Iterable[Agent], *, every_end: bool) -> set[tuple[int, int]]:
    """The rows that the lineages of some agents consist of. ``every_end``: also beside them, where a turn ended."""
    catalog, found = memory._store._catalog, set[tuple[int, int]]()
    index = catalog.model.index
    for agent in agents:
        ids = agent._log.ids[: agent._log.n_kv]
        for path in index.paths(ids, every_end=True) if every_end else [index.plan(ids)]:
            for piece, take in path:
                for one in stretches(catalog.segments, piece.segment, piece.start, piece.start + take):
                    found |= {(one.segment.number, at) for at in range(one.start, one.stop)}
    return found


def heard(memory: Memory, agent: Agent) -> tuple[int, ...]:
    """What an agent says next, from its KV on disk."""
    memory.evict()
    fork = agent.fork("heard", temporary=True)
    reply = fork.say("And?", max_tokens=3)
    fork.delete()
    assert (reply.usage.tier, reply.usage.exactness) == ("cold", "exact")
    return reply.token_ids


def delete_in(order: Sequence[str], kind: str, path: Path) -> None:
    with Memory(runner(kind), path, config=CONFIG) as memory:
        agents = born(memory)
        wanted = {name: heard(memory, agent) for name, agent in agents.items()}
        for name in order:
            own = agents[name].messages[-2].content
            agents.pop(name).delete()
            least, most = (led_to(memory, agents.values(), every_end=is_more) for is_more in (False, True))
            assert least <= rows(memory) <= most, f"{order}: after {name}"
            assert rows(memory) == least or not memory._runner.layout.is_full
            left = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
            assert (own.encode() in left) == any(own == m.content for a in agents.values() for m in a.messages)
            assert {other: heard(memory, agent) for other, agent in agents.items()} == {o: wanted[o] for o in agents}
        assert list(path.glob("kv/*/*")) == []
        assert memory.verify().ok
        assert memory.stats().damage == 0


def kinds(names: Sequence[str]) -> list[Any]:
    return ["echo", *(pytest.param(name, marks=pytest.mark.mlx) for name in names)]


@pytest.mark.parametrize("order", TWO, ids="-".join)
@pytest.mark.parametrize("kind", kinds(FEW))
def test_whoever_goes_first_the_others_say_what_they_would_have_said(
    kind: str, order: Sequence[str], tmp_path: Path
) -> None:
    delete_in(order, kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds(ALL))
def test_in_whatever_order_they_go_the_others_say_what_they_would_have_said(kind: str, tmp_path: Path) -> None:
    for number, order in enumerate(itertools.permutations(FAMILY)):
        delete_in(order, kind, tmp_path / str(number))
