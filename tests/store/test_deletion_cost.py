"""The end of an agent reads what ends with it, however many other agents there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.prefix.index import Index
from agent_memory.prefix.pieces import Piece
from agent_memory.store.catalog import Catalog
from agent_memory.store.store import Store
from tests.parts.kvmodel import held_bytes


class Read:
    """What one call read: pieces of the index, and tables of the manifest that were read from end to end."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces: list[bytes] = []
        self.n_steps = 0
        self.scanned = set[str]()
        self._store, self._statements = store, list[str]()
        monkeypatch.setattr(Catalog, "edited", lambda catalog: None)  # the test's own check reads all rows
        ancestors, children = Index.ancestors, Index.children

        def counted_ancestors(index: Index, piece: Piece) -> Iterator[Piece]:
            for one in ancestors(index, piece):
                self.pieces.append(one.id)
                yield one

        def counted_children(index: Index, parent: bytes) -> list[Piece]:
            found = children(index, parent)
            self.pieces += [one.id for one in found[:2]]  # a caller stops at the first that stays
            return found

        monkeypatch.setattr(Index, "ancestors", counted_ancestors)
        monkeypatch.setattr(Index, "children", counted_children)

    def __enter__(self) -> Read:
        self.pieces.clear()
        with self._store._database.reading() as db:
            db.set_trace_callback(self._statements.append)
            db.set_progress_handler(self._step, 1)
        return self

    def _step(self) -> int:
        self.n_steps += 1
        return 0

    def __exit__(self, *error: object) -> None:
        with self._store._database.reading() as db:
            db.set_trace_callback(None)
            db.set_progress_handler(None, 0)
            for statement in self._statements:
                if statement.split()[0] in ("SELECT", "UPDATE", "DELETE", "INSERT"):
                    plan = db.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                    self.scanned |= {line.split()[1] for *_, line in plan if line.startswith("SCAN ")}


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
    for n_others in (10, 60):
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
    assert (many.n_steps - few.n_steps) / 50 < 30, "and a few steps of SQLite's for each"
