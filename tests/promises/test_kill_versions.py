"""kill -9 while agents are forked, rewound and pruned: each is at some moment at or after the last acknowledged one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory
from tests.parts import killing

CONFIG = Config(chunk_tokens=16, prefill_tokens=16, keep_versions=2)
CHILD = """
import sys
from agent_memory import EchoRunner, Memory
from tests.promises.test_kill_versions import CONFIG, life

path, seed = sys.argv[1], int(sys.argv[2])
with Memory(EchoRunner(), path, config=CONFIG) as memory:
    print("open", flush=True)
    for number, _ in enumerate(life(memory, seed)):
        if number % 3 == 2:
            memory.flush()
            print("acknowledged", number, flush=True)
"""

World = dict[str, tuple[Any, ...]]


def world(memory: Memory) -> World:
    """What every agent is, and was."""
    found: World = {}
    for info in memory.agents():
        agent = memory.agent(info.name)
        past = [(v.number, v.reason, v.label, [m.content for m in agent.at(v).messages]) for v in agent.history()]
        found[info.name] = ([m.content for m in agent.messages], past)
    return found


def life(memory: Memory, seed: int) -> Iterator[None]:
    """Endless operations; of one seed always the same. ``yield`` after each."""
    chance, number = random.Random(seed), 0
    while True:
        names = sorted(info.name for info in memory.agents())
        agent = memory.agent(chance.choice(names) if names else "a")
        number += 1
        what = chance.choice(
            ("say", "say", "say", "fork", "rewind", "back", "mark", "list", "compact", "prune", "delete")
        )
        if what == "say":
            agent.say(f"turn {number}")
        elif what == "fork" and len(names) < 5:
            agent.fork(f"fork {number}")
        elif what == "rewind" and agent.info.n_turns:
            agent.rewind(chance.randint(1, agent.info.n_turns))
        elif what == "back" and agent.history():
            agent.rewind(to=chance.choice(agent.history()))
        elif what == "mark":
            agent.checkpoint(chance.choice("xy"))
        elif what == "list":
            memory.generate([{"role": "user", "content": f"list {number}"}], agent=agent)
        elif what == "compact":
            agent.compact(1)
        elif what == "prune":
            agent.prune()
        elif what == "delete" and len(names) > 2:
            agent.delete()
        else:
            continue
        yield


def killed(path: Path, seed: int, after_s: float) -> int:
    """Run the child until ``after_s`` after it has opened the store; the newest operation that it acknowledged."""
    lines = killing.killed(CHILD, str(path), str(seed), after_s=after_s)
    told = [int(line.split()[1]) for line in lines if line.startswith("acknowledged ")]
    return max(told, default=-1)


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 33))])
def test_a_kill_leaves_every_agent_and_version_as_it_was_at_one_moment(seed: int, tmp_path: Path) -> None:
    last = killed(tmp_path / "store", seed, 0.3 + 0.1 * (seed % 10))
    with Memory(EchoRunner(), tmp_path / "store", config=CONFIG) as memory:
        found = world(memory)
        assert memory.verify().ok
        assert memory.stats().damage == 0
    with Memory(EchoRunner(), ":memory:", config=CONFIG) as again:
        for number, _ in enumerate(islice(life(again, seed), last + 400)):
            if number >= last and world(again) == found:
                return
        if last < 0:
            assert found in ({}, {"a": ([], [])})
            return
    raise AssertionError(f"what is there was never so at or after operation {last}")
