"""kill -9 at any moment: the store opens, what was acknowledged is whole, any further turn is whole or absent."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory
from tests.parts.killing import killed

AGENTS = ("alice", "bob")
SMALL = Config(chunk_tokens=16, prefill_tokens=16)

CHILD = """
import sys
from agent_memory import Config, EchoRunner, Memory

model, path = sys.argv[1:]
small = Config(chunk_tokens=16, prefill_tokens=16)
runner, config, most = (EchoRunner(delay_s=0.001), small, 40) if model == "echo" else (None, Config(), 6)
with Memory(runner, path, config=config) as memory:
    print("open", flush=True)
    agents = [memory.agent(name, system="Be brief, alice and bob.") for name in ("alice", "bob")]
    while True:
        for agent in agents:
            agent.say(f"{agent.name} says turn {agent.info.n_turns}", max_tokens=most)
            if agent.info.n_turns % 3:
                memory.flush()
                print("acknowledged:", agent.name, agent.info.n_turns, flush=True)
"""


def _converse_and_die(model: str, path: Path, after_s: float) -> dict[str, int]:
    """Run the child until ``after_s`` after it has opened the store; the turns that it acknowledged, by agent."""
    lines = killed(CHILD, model, str(path), after_s=after_s)
    whole = [line.split() for line in lines if line.startswith("acknowledged:") and line.count(" ") == 2]
    return {name: int(turns) for _, name, turns in whole}


def _examine(memory: Memory, name: str, acknowledged: int, answer: Callable[[str], str] | None) -> int:
    """Assert that an agent's log is whole; how many turns it has."""
    if not acknowledged and name not in [info.name for info in memory.agents()]:
        return 0
    agent = memory.agent(name)
    system, *messages = agent.messages
    assert system.content == "Be brief, alice and bob."
    assert [m.role for m in messages] == ["user", "assistant"] * agent.info.n_turns
    asked, answered = messages[::2], messages[1::2]
    assert [m.content for m in asked] == [f"{name} says turn {turn}" for turn in range(agent.info.n_turns)]
    if answer is not None:
        assert [m.content for m in answered] == [answer(m.content) for m in asked]
    assert agent.info.n_turns >= acknowledged, "an acknowledged turn is lost"
    return agent.info.n_turns


def _rounds(path: Path, n_rounds: int) -> None:
    moments, held, n_acknowledged = random.Random(3), dict.fromkeys(AGENTS, 0), 0
    for _ in range(n_rounds):
        told = _converse_and_die("echo", path, moments.random() * 0.5)
        n_acknowledged += len(told)
        with Memory(EchoRunner(), path, config=SMALL) as memory:
            for name in AGENTS:
                held[name] = _examine(memory, name, max(held[name], told.get(name, 0)), lambda asked: asked)
                if held[name]:
                    agent = memory.agent(name)
                    reply = agent.say("and now, again?", max_tokens=40)
                    assert reply.text == "and now, again?"
                    assert reply.usage.exactness in ("exact", "recomputed")  # a killed save was made again
                    agent.rewind(1)
            assert memory.verify().ok
            assert memory.stats().damage == 0
    assert n_acknowledged, "no round lived long enough to acknowledge a turn"


def test_6_kills_lose_nothing_acknowledged(tmp_path: Path) -> None:
    _rounds(tmp_path / "store", 6)


@pytest.mark.slow
def test_50_kills_lose_nothing_acknowledged(tmp_path: Path) -> None:
    _rounds(tmp_path / "store", 50)


@pytest.mark.slow
@pytest.mark.model
def test_20_kills_of_the_starter_model_lose_nothing_acknowledged(tmp_path: Path) -> None:
    moments, held, path = random.Random(4), dict.fromkeys(AGENTS, 0), tmp_path / "store"
    for _ in range(20):
        told = _converse_and_die("starter", path, moments.random() * 3.0)
        with Memory(None, path) as memory:
            for name in AGENTS:
                held[name] = _examine(memory, name, max(held[name], told.get(name, 0)), None)
                if held[name]:
                    assert _same_again(memory, name)
            assert memory.verify().ok
    assert any(held.values())


def _same_again(memory: Memory, name: str) -> Any:
    """Ask twice from the same log, restored from disk both times: the ids must be equal."""
    found = []
    for _ in range(2):
        memory.evict()
        found.append(memory.agent(name).say("and now?", max_tokens=6).token_ids)
        memory.agent(name).rewind(1)
    return found[0] == found[1]
