"""What callers say of items: useful or not, always needed, dependent on one another. Each change is audited.

Feedback adds up and fades: ``net`` useful votes halve every 90 days, and ``tanh(net / 2)`` is what a score sees, so
votes are bounded and the opposite vote takes one back. Being recalled counts nothing; being shown in a working set
counts as use, which saturates.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.recall import audit
from agent_memory.recall.ranking import FEEDBACK_HALF_LIFE_S
from agent_memory.recall.rows import row_of
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows

RELATIONS = ("depends_on", "related")


def vote(db: Rows, scope: Scope, item: int, useful: bool | float, now: float) -> None:
    """Add a vote of -1 to 1; True is 1, False is -1. Inside a write transaction."""
    value = (1.0 if useful else -1.0) if isinstance(useful, bool) else useful
    if not isinstance(value, (int, float)) or not -1 <= value <= 1:
        raise UnsupportedParameterError(f"useful must be a bool or a number between -1 and 1, got {repr_of(useful)}")
    row = row_of(db, scope, item)
    net = row.net_useful * 0.5 ** (max(0.0, now - row.useful_s) / FEEDBACK_HALF_LIFE_S) + value
    db.execute("UPDATE items SET net_useful = ?, useful_s = ? WHERE item = ?", (net, now, item))
    audit.note(db, scope, now, "feedback", item, {"useful": value})


def pin(db: Rows, scope: Scope, item: int, is_pinned: bool, now: float) -> None:
    """Put an item into every working set, or no longer. Inside a write transaction."""
    row = row_of(db, scope, item)
    if (row.pinned_s is not None) != is_pinned:
        db.execute("UPDATE items SET pinned_s = ? WHERE item = ?", (now if is_pinned else None, item))
        audit.note(db, scope, now, "pin" if is_pinned else "unpin", item, {})


def link(db: Rows, scope: Scope, item: int, other: int, relation: str, now: float) -> None:
    """Link two items of the workspace. Inside a write transaction."""
    if relation not in RELATIONS:
        raise UnsupportedParameterError(f"relation is {repr_of(relation)}; known: {', '.join(RELATIONS)}")
    if item == other:
        raise UnsupportedParameterError(f"item {item} cannot be linked to itself")
    row_of(db, scope, item)
    row_of(db, scope, other)
    sql = "INSERT INTO links (workspace, item, relation, other) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
    if db.execute(sql, (scope.workspace, item, relation, other)).rowcount:
        audit.note(db, scope, now, "link", item, {"relation": relation, "other": other})


def count_use(db: Rows, scope: Scope, items: Sequence[int], now: float) -> None:
    """Count that ``items`` were shown. Inside a write transaction."""
    sql = "UPDATE items SET n_used = n_used + 1, used_s = ? WHERE item = ? AND workspace = ?"
    db.executemany(sql, [(now, item, scope.workspace) for item in items])
