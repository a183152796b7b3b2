"""Facts that overrule one another: all facts of one slot (subject, relation) form a chain by time.

Each fact of the chain is superseded by the next one, so one is valid at any time: the newest that was asserted by then.
Nothing is overwritten: the chain is made anew from the rows whenever a fact of its slot comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows


def supersede(db: Rows, scope: Scope, slots: Iterable[str]) -> list[int]:
    """Make the chains of ``slots`` anew; return the items that became superseded. Inside a write transaction."""
    changed: list[int] = []
    for slot in sorted(slots):
        chain = db.execute(
            "SELECT item, at, superseded_by FROM items WHERE workspace = ? AND slot = ? AND status = 'asserted' "
            "AND merged_into IS NULL ORDER BY at, item",
            (scope.workspace, slot),
        ).fetchall()
        for i, (item, _, before) in enumerate(chain):
            following = chain[i + 1] if i + 1 < len(chain) else None
            by, at = (following[0], following[1]) if following else (None, None)
            if by != before or by is not None:
                db.execute("UPDATE items SET superseded_by = ?, superseded_at = ? WHERE item = ?", (by, at, item))
            if by is not None and before is None:
                changed.append(int(item))
    return changed


def assert_again(db: Rows, scope: Scope, text: int, at: float) -> set[str]:
    """Move the facts of a text that was told again to ``at``, where that is later; return their slots."""
    sql = "SELECT DISTINCT slot FROM items WHERE text = ? AND workspace = ? AND slot IS NOT NULL"
    slots = {str(slot) for (slot,) in db.execute(sql, (text, scope.workspace))}
    if slots:
        sql = "UPDATE items SET at = ? WHERE text = ? AND workspace = ? AND slot IS NOT NULL AND at < ?"
        db.execute(sql, (at, text, scope.workspace, at))
    return slots


def chain_of(db: Rows, scope: Scope, item: int) -> list[int]:
    """Return the ids of the chain that ``item`` is in, oldest first; the item alone where it fills no slot."""
    sql = "SELECT slot FROM items WHERE item = ? AND workspace = ?"
    row = db.execute(sql, (item, scope.workspace)).fetchone()
    if row is None or row[0] is None:
        return [] if row is None else [item]
    sql = "SELECT item FROM items WHERE workspace = ? AND slot = ? ORDER BY at, item"
    return [int(i) for (i,) in db.execute(sql, (scope.workspace, row[0]))]
