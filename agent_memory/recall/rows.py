"""Rows of the file -> ``Item`` values, always of one workspace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from attrs import frozen

from agent_memory.errors import ItemNotFoundError
from agent_memory.recall.given import checked_id
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows
from agent_memory.recall.types import Item

_COLUMNS = (
    "i.item, i.kind, i.is_passage, i.start, i.stop, i.n_words, i.at, i.slot, i.value, i.status, i.is_standing, "
    "i.superseded_by, i.superseded_at, i.merged_into, i.net_useful, i.useful_s, i.n_used, i.used_s, i.pinned_s, "
    "i.found_by, "
    "t.text, t.kind, t.role, t.speaker, t.source, t.count, t.number"
)
_FROM = f"SELECT {_COLUMNS} FROM items i JOIN texts t ON t.text = i.text"


@frozen
class ItemRow:
    """One item with what ranking needs of it."""

    item: int
    kind: str
    is_passage: int
    start: int
    stop: int
    n_words: int
    at: float
    slot: str | None
    value: str | None
    status: Any
    is_standing: int
    superseded_by: int | None
    superseded_at: float | None
    merged_into: int | None
    net_useful: float
    useful_s: float
    n_used: int
    used_s: float
    pinned_s: float | None
    found_by: str | None
    text: int
    text_kind: str
    role: str
    speaker: str | None
    source: str | None
    count: int
    number: int  #: of the text, in the order in which its workspace was told

    def as_item(self, scope: Scope, text: str, *, is_stale: bool = False) -> Item:
        """Return what callers see of this row; ``text``: of its span."""
        return Item(
            id=self.item,
            text=text,
            kind=self.kind,
            source=self.source,
            at=self.at,
            workspace=scope.name,
            span=(self.start, self.stop),
            superseded_by=self.superseded_by,
            count=self.count,
            role=self.role,
            speaker=self.speaker,
            slot=self.slot,
            value=self.value,
            status=self.status,
            is_stale=is_stale,
            found_by=self.found_by,
        )


def rows_of(db: Rows, scope: Scope, items: Sequence[int]) -> dict[int, ItemRow]:
    """Return the rows of those ``items`` that are in this workspace, by id."""
    found: dict[int, ItemRow] = {}
    for start in range(0, len(items), 500):
        part = items[start : start + 500]
        marks = ",".join("?" * len(part))
        # The plus keeps the planner from reading all of the workspace by its index.
        sql = f"{_FROM} WHERE +i.workspace = ? AND i.item IN ({marks})"
        for row in db.execute(sql, (scope.workspace, *map(int, part))):
            found[int(row[0])] = ItemRow(*row)
    return found


def row_of(db: Rows, scope: Scope, item: int) -> ItemRow:
    """Return one row. Raises ItemNotFoundError where this workspace has no such item."""
    item = checked_id(item)
    row = db.execute(f"{_FROM} WHERE +i.workspace = ? AND i.item = ?", (scope.workspace, item)).fetchone()
    if row is None:
        raise ItemNotFoundError(item)
    return ItemRow(*row)


def span_text(db: Rows, row: ItemRow) -> str:
    """Return the text of a row's span. Rows are read without it: most candidates are never shown."""
    (body,) = db.execute("SELECT body FROM texts WHERE text = ?", (row.text,)).fetchone()
    return str(body[row.start : row.stop])  # SQLite's substr would end at a NUL


def span_texts(db: Rows, rows: Iterable[ItemRow]) -> dict[int, str]:
    """Return the texts of rows' spans by item, read at once: one by one, each would be a round trip to a server."""
    kept = list(rows)
    texts = sorted({row.text for row in kept})
    if not texts:
        return {}
    marks = ",".join("?" * len(texts))
    bodies = dict(db.execute(f"SELECT text, body FROM texts WHERE text IN ({marks})", texts).fetchall())
    return {row.item: str(bodies[row.text][row.start : row.stop]) for row in kept}


def items_of(db: Rows, scope: Scope, rows: Iterable[ItemRow]) -> list[Item]:
    """Return what callers see of ``rows``, in order."""
    kept = list(rows)
    stale, texts = stale_items(db, [row.item for row in kept]), span_texts(db, kept)
    return [row.as_item(scope, texts[row.item], is_stale=row.item in stale) for row in kept]


def rows_where(db: Rows, scope: Scope, condition: str, *values: object) -> Iterator[ItemRow]:
    """Yield the rows of this workspace that meet a condition on ``i`` (items) and ``t`` (texts)."""
    for row in db.execute(f"{_FROM} WHERE i.workspace = ? AND {condition}", (scope.workspace, *values)):
        yield ItemRow(*row)


def stale_items(db: Rows, items: Sequence[int]) -> set[int]:
    """Return those ``items`` that depend on an item that was superseded."""
    if not items:
        return set()
    marks = ",".join("?" * len(items))
    sql = (
        f"SELECT l.item FROM links l JOIN items o ON o.item = l.other WHERE l.relation = 'depends_on' "
        f"AND l.item IN ({marks}) AND o.superseded_by IS NOT NULL"
    )
    return {int(item) for (item,) in db.execute(sql, tuple(map(int, items)))}
