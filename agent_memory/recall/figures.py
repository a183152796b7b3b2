"""What a workspace holds, and whether the file is whole."""

from __future__ import annotations

import sqlite3

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.recall.indexing import indexed_body, item_words
from agent_memory.recall.scope import Scope
from agent_memory.recall.types import ContextStats

_BY = {
    "day": "SELECT date(at, 'unixepoch'), count(*) FROM texts WHERE workspace = ? AND at >= ? GROUP BY 1",
    "kind": "SELECT kind, count(*) FROM texts WHERE workspace = ? AND at >= ? GROUP BY 1",
    "workspace": "SELECT ?2, count(*) FROM texts WHERE workspace = ?1 AND at >= ?3",
}


def stats(db: sqlite3.Connection, scope: Scope, nbytes: int, since: float | None, by: str | None) -> ContextStats:
    """Return the figures of a workspace: of texts told since ``since``, grouped by day, kind or workspace."""
    start = -1e300 if since is None else since
    texts = "SELECT count(*), coalesce(sum(count - 1), 0) FROM texts WHERE workspace = ? AND at >= ?"
    n_texts, n_duplicates = db.execute(texts, (scope.workspace, start)).fetchone()
    kinds = "SELECT kind, count(*) FROM items WHERE workspace = ? AND at >= ? GROUP BY kind ORDER BY kind"
    replaced = "SELECT count(*) FROM items WHERE workspace = ? AND at >= ? AND superseded_by IS NOT NULL"
    vectors = "SELECT count(*) FROM vectors WHERE workspace = ?"
    return ContextStats(
        n_texts=n_texts,
        n_duplicates=n_duplicates,
        n_items=dict(db.execute(kinds, (scope.workspace, start)).fetchall()),
        n_superseded=db.execute(replaced, (scope.workspace, start)).fetchone()[0],
        n_vectors=db.execute(vectors, (scope.workspace,)).fetchone()[0],
        n_unread=db.execute("SELECT count(*) FROM unread WHERE workspace = ?", (scope.workspace,)).fetchone()[0],
        nbytes=nbytes,
        by=_grouped(db, scope, start, by) if by is not None else {},
    )


def _grouped(db: sqlite3.Connection, scope: Scope, start: float, by: str) -> dict[str, int]:
    if by not in _BY:
        raise UnsupportedParameterError(f"by is {repr_of(by)}; known: {', '.join(_BY)}")
    values = (scope.workspace, scope.name, start) if by == "workspace" else (scope.workspace, start)
    return {str(name): int(n) for name, n in db.execute(_BY[by], values)}


def damage(db: sqlite3.Connection) -> list[str]:
    """Return where rows, words, vectors and chains of all workspaces do not agree. Reads every text."""
    found = []
    for what, sql in _ORPHANS.items():
        (n,) = db.execute(sql).fetchone()
        if n:
            found.append(f"{n} {what}")
    found += _counted_wrongly(db)
    found += _indexed_wrongly(db)
    return found


_ORPHANS = {
    "items without a text": "SELECT count(*) FROM items WHERE text NOT IN (SELECT text FROM texts)",
    "texts without an item": "SELECT count(*) FROM texts WHERE text NOT IN (SELECT text FROM items)",
    "items of another workspace than their text's": (
        "SELECT count(*) FROM items i JOIN texts t ON t.text = i.text WHERE i.workspace <> t.workspace"
    ),
    "vectors without an item": "SELECT count(*) FROM vectors WHERE item NOT IN (SELECT item FROM items)",
    "unread marks without a text": "SELECT count(*) FROM unread WHERE text NOT IN (SELECT text FROM texts)",
    "links without an item": (
        "SELECT count(*) FROM links WHERE item NOT IN (SELECT item FROM items) OR other NOT IN (SELECT item FROM items)"
    ),
    "cards without an item": "SELECT count(*) FROM windows WHERE item NOT IN (SELECT item FROM items)",
    "facts superseded by nothing": (
        "SELECT count(*) FROM items WHERE superseded_by IS NOT NULL AND superseded_by NOT IN (SELECT item FROM items)"
    ),
    "facts superseded by those of another slot": (
        "SELECT count(*) FROM items i JOIN items o ON o.item = i.superseded_by "
        "WHERE i.slot IS NOT o.slot OR i.workspace <> o.workspace"
    ),
}


def _counted_wrongly(db: sqlite3.Connection) -> list[str]:
    sql = (
        "SELECT w.name, w.n_passages, w.n_typed, "
        "(SELECT count(*) FROM items i WHERE i.workspace = w.workspace AND i.is_passage), "
        "(SELECT count(*) FROM items i WHERE i.workspace = w.workspace AND "
        "(NOT i.is_passage OR i.kind NOT IN ('chat', 'note', 'diff', 'log'))) FROM workspaces w"
    )
    return [
        f"workspace {repr_of(name)} counts {n} passages and {m} typed items; there are {found_n} and {found_m}"
        for name, n, m, found_n, found_m in db.execute(sql)
        if (n, m) != (found_n, found_m)
    ]


def _indexed_wrongly(db: sqlite3.Connection) -> list[str]:
    """Items whose words in the index are not as many as their text has; words of items that are gone."""
    sizes = {item: _varint(size) for item, size in db.execute("SELECT id, sz FROM words_docsize")}
    sql = (
        "SELECT i.item, i.workspace, i.kind, i.is_passage, i.start, i.stop, t.body, t.speaker, t.at "
        "FROM items i JOIN texts t ON t.text = i.text"
    )
    wrong = outside = 0
    for item, workspace, kind, is_passage, start, stop, body, speaker, at in db.execute(sql):
        words = item_words(body, (start, stop), speaker, at)
        expected = indexed_body(workspace, kind, bool(is_passage), words).split()
        wrong += sizes.pop(item, -1) != len(expected)
        outside += not 0 <= start < stop <= len(body)
    named = (
        (wrong, "items are indexed wrongly or not at all"),
        (outside, "items are outside their text"),
        (len(sizes), "items that are gone have words in the index"),
    )
    return [f"{n} {what}" for n, what in named if n]


def _varint(data: bytes) -> int:
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value
