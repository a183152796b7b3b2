"""An item in its place: its text, what was said before and after, what rules found in it, what it is linked to."""

from __future__ import annotations

from agent_memory.recall.context_tables import BLOCK
from agent_memory.recall.rows import items_of, row_of, rows_of, rows_where
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows
from agent_memory.recall.types import Expansion

MOST_NEIGHBOURS = 50


def expand(db: Rows, scope: Scope, item: int, neighbours: int) -> Expansion:
    """Return an item with the passages around it. Inside a read transaction. Raises ItemNotFoundError."""
    row = row_of(db, scope, item)
    (body,) = db.execute("SELECT body FROM texts WHERE text = ?", (row.text,)).fetchone()
    passage = item if row.is_passage else _passage_of(db, scope, row.text, row.start)
    around = [passage + step for step in range(-neighbours, neighbours + 1) if step]
    rows = rows_of(db, scope, [other for other in around if other // BLOCK == passage // BLOCK])
    before = [rows[other] for other in sorted(rows) if other < passage]
    after = [rows[other] for other in sorted(rows) if other > passage]
    typed = list(rows_where(db, scope, "i.text = ? AND NOT i.is_passage ORDER BY i.start, i.item", row.text))
    sql = "SELECT relation, other FROM links WHERE item = ? AND workspace = ? ORDER BY relation, other"
    links = db.execute(sql, (item, scope.workspace)).fetchall()
    linked = rows_of(db, scope, [other for _, other in links])
    [itself] = items_of(db, scope, [row])
    return Expansion(
        item=itself,
        text=body,
        before=tuple(items_of(db, scope, before)),
        after=tuple(items_of(db, scope, after)),
        typed=tuple(items_of(db, scope, typed)),
        links=tuple(
            (relation, items_of(db, scope, [linked[other]])[0]) for relation, other in links if other in linked
        ),
    )


def _passage_of(db: Rows, scope: Scope, text: int, start: int) -> int:
    sql = (
        "SELECT item FROM items WHERE workspace = ? AND text = ? AND is_passage AND start <= ? "
        "ORDER BY start DESC LIMIT 1"
    )
    return int(db.execute(sql, (scope.workspace, text, start)).fetchone()[0])
