"""The audit: one row a change, in the transaction of the change. Holds counts and ids, never a remembered text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from agent_memory.recall.dates import seconds_of
from agent_memory.recall.given import checked_count
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows
from agent_memory.recall.types import AuditRow

MOST_ROWS = 100_000  #: of one workspace; maintenance drops older ones


def note(db: Rows, scope: Scope, at: float, action: str, item: int | None, detail: Mapping[str, object]) -> None:
    """Record a change. Inside its write transaction."""
    shown = json.dumps({name: value for name, value in detail.items() if value not in (None, 0, {}, [])})
    sql = "INSERT INTO audit (workspace, at, action, item, detail) VALUES (?, ?, ?, ?, ?)"
    db.execute(sql, (scope.workspace, at, action, item, shown))


def rows(db: Rows, scope: Scope, since: float | datetime | None, limit: int) -> list[AuditRow]:
    """Return the newest rows of a workspace, newest first. Raises UnsupportedParameterError."""
    at = -1e300 if since is None else seconds_of(since)
    sql = "SELECT at, action, item, detail FROM audit WHERE workspace = ? AND at >= ? ORDER BY row DESC LIMIT ?"
    found = db.execute(sql, (scope.workspace, at, checked_count(limit, "limit")))
    return [AuditRow(at=at, action=action, item=item, detail=json.loads(detail)) for at, action, item, detail in found]


def drop_old(db: Rows, scope: Scope, most: int = MOST_ROWS) -> int:
    """Delete all but the newest ``most`` rows; return how many."""
    sql = (
        "DELETE FROM audit WHERE workspace = ? AND row <= "
        "(SELECT row FROM audit WHERE workspace = ? ORDER BY row DESC LIMIT 1 OFFSET ?)"
    )
    return db.execute(sql, (scope.workspace, scope.workspace, most)).rowcount
