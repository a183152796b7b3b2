"""The end of an agent reads what ends with it, however many other agents there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent_memory import Config, EchoRunner, Memory
from tests.parts.kvmodel import held_bytes
from tests.parts.rowsread import Read


def agents_of_one_brief(memory: Memory, n: int) -> None:
    for number in range(n):
        memory.agent(f"a{number}", system="All of them know this. " * 4).say(f"{number:03d} alone says that. " * 3)


def forks_that_were_rewound(memory: Memory, n: int) -> None:
    base = memory.agent("base", system="All of them know this. " * 4)
    base.say("So does this.")
    for number in range(n):
        fork = base.fork(f"a{number}")
        fork.say(f"{number:03d} alone says that. " * 3)
        fork.rewind()
        fork.say(f"Then {number:03d} says this. " * 3)


@pytest.mark.parametrize("make", [agents_of_one_brief, forks_that_were_rewound])
def test_the_end_of_an_agent_reads_nothing_of_the_others(
    make: Callable[[Memory, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[Read, int]] = []
    for n_others in (10, 30):
        folder = tmp_path / str(n_others)
        with Memory(EchoRunner(), folder, config=Config(chunk_tokens=16, prefill_tokens=16)) as memory:
            make(memory, n_others)
            memory.flush()
            before = held_bytes(folder / "kv")
            with monkeypatch.context() as patch, Read(memory._store, patch) as read:
                memory.delete("a5")
            found.append((read, before - held_bytes(folder / "kv")))
    (few, few_bytes), (many, many_bytes) = found
    assert few_bytes == many_bytes > 0
    assert len(few.pieces) == len(many.pieces) > 0
    assert many.scanned <= {"a"}, "of the others their own rows alone are looked through"
    assert (many.n_steps - few.n_steps) / 20 < 30, "and a few steps of SQLite's for each"
