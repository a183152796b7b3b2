"""What calls on a store read: pieces of the index, and tables of the manifest from end to end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent_memory.prefix.index import Index
from agent_memory.prefix.pieces import Piece
from agent_memory.store.catalog import Catalog
from agent_memory.store.store import Store


class Read:
    """What was read while it was entered."""

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
