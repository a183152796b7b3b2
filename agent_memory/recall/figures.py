"""What a workspace holds, and whether the file is whole."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.recall.indexing import indexed_body, item_words
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows
from agent_memory.recall.types import ContextStats

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BY = ("day", "kind", "workspace")


def stats(db: Rows, scope: Scope, nbytes: int, since: float | None, by: str | None) -> ContextStats:
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


def _grouped(db: Rows, scope: Scope, start: float, by: str) -> dict[str, int]:
    if by not in _BY:
        raise UnsupportedParameterError(f"by is {repr_of(by)}; known: {', '.join(_BY)}")
    texts = db.execute("SELECT kind, at FROM texts WHERE workspace = ? AND at >= ?", (scope.workspace, start))
    if by == "workspace":
        return {scope.name: len(texts.fetchall())}
    return dict(sorted(Counter(kind if by == "kind" else _day(at) for kind, at in texts).items()))


def _day(at: float) -> str:
    return (_EPOCH + timedelta(seconds=math.floor(at))).strftime("%Y-%m-%d")


def damage(db: Rows, scope: Scope) -> list[str]:
    """Return where rows, words, vectors and chains do not agree. Reads every text.

    Of all workspaces; of this one alone where the index is kept for each by itself, and others' rows are not seen.
    """
    own = f"WHERE w.workspace = {scope.workspace}" if db.words.is_per_workspace else ""
    found = []
    for what, sql in _ORPHANS.items():
        (n,) = db.execute(sql).fetchone()
        if n:
            found.append(f"{n} {what}")
    found += _counted_wrongly(db, own)
    found += _indexed_wrongly(db, own)
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
        "WHERE coalesce(i.slot, '') <> coalesce(o.slot, '') OR i.workspace <> o.workspace"
    ),
}


def _counted_wrongly(db: Rows, own: str) -> list[str]:
    sql = (
        "SELECT w.name, w.n_passages, w.n_typed, "
        "(SELECT count(*) FROM items i WHERE i.workspace = w.workspace AND i.is_passage), "
        "(SELECT count(*) FROM items i WHERE i.workspace = w.workspace AND "
        f"(NOT i.is_passage OR i.kind NOT IN ('chat', 'note', 'diff', 'log'))) FROM workspaces w {own}"
    )
    return [
        f"workspace {repr_of(name)} counts {n} passages and {m} typed items; there are {found_n} and {found_m}"
        for name, n, m, found_n, found_m in db.execute(sql)
        if (n, m) != (found_n, found_m)
    ]


def _indexed_wrongly(db: Rows, own: str) -> list[str]:
    """Items whose words in the index are not as many as their text has; words of items that are gone."""
    sizes = db.words.sizes()
    sql = (
        "SELECT w.item, w.workspace, w.kind, w.is_passage, w.start, w.stop, t.body, t.speaker, t.at "
        f"FROM items w JOIN texts t ON t.text = w.text {own}"
    )
    wrong = outside = 0
    for item, workspace, kind, is_passage, start, stop, body, speaker, at in db.execute(sql):
        words = item_words(body, (start, stop), speaker, at)
        expected = indexed_body(workspace, kind, bool(is_passage), words)
        wrong += sizes.pop(item, -1) != db.words.size_of(expected)
        outside += not 0 <= start < stop <= len(body)
    named = (
        (wrong, "items are indexed wrongly or not at all"),
        (outside, "items are outside their text"),
        (len(sizes), "items that are gone have words in the index"),
    )
    return [f"{n} {what}" for n, what in named if n]
