"""Forgetting: a text, everything derived from it, and every byte of both.

Rows go in one transaction; ``Database.scrub`` then rewrites the file, so that neither free pages nor the index nor the
write-ahead log nor a migration's backup keeps a word. A text is forgotten whole: an item is a span of one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from agent_memory.errors import ItemNotFoundError, UnsupportedParameterError
from agent_memory.recall import audit
from agent_memory.recall.episode_marking import mark_forgotten
from agent_memory.recall.given import checked_ids, checked_unicode
from agent_memory.recall.indexing import indexed_body, is_in_typed_view, item_words
from agent_memory.recall.scope import Scope
from agent_memory.recall.slots import supersede
from agent_memory.recall.storage import Rows


def chosen_texts(
    db: Rows, scope: Scope, what: int | str | Collection[int], source: str | None, everything: bool
) -> set[int]:
    """Return the texts that a caller means. Raises ItemNotFoundError and UnsupportedParameterError."""
    if source is not None:
        checked_unicode(source, "source")
    if everything:
        return all_texts(db, scope)
    if isinstance(what, str):
        if not what.strip():
            raise UnsupportedParameterError("forget was given an empty phrase; everything=True forgets all")
        texts = texts_with(db, scope, what)
    else:
        texts = texts_of_items(db, scope, checked_ids(what, "what"))
    return texts | (texts_of_source(db, scope, source) if source is not None else set())


def texts_of_items(db: Rows, scope: Scope, items: Iterable[int]) -> set[int]:
    """Return the texts that ``items`` are spans of. Raises ItemNotFoundError before anything is deleted."""
    found = set()
    for item in items:
        sql = "SELECT text FROM items WHERE item = ? AND workspace = ?"
        row = db.execute(sql, (item, scope.workspace)).fetchone()
        if row is None:
            raise ItemNotFoundError(item)
        found.add(int(row[0]))
    return found


def texts_with(db: Rows, scope: Scope, phrase: str) -> set[int]:
    """Return the texts in which ``phrase`` stands, as text, source or speaker, whatever its case. O(all texts)."""
    wanted = phrase.casefold()
    sql = "SELECT text, body, coalesce(source, ''), coalesce(speaker, '') FROM texts WHERE workspace = ?"
    rows = db.execute(sql, (scope.workspace,))
    return {int(row[0]) for row in rows if any(wanted in str(part).casefold() for part in row[1:])}


def texts_of_source(db: Rows, scope: Scope, source: str) -> set[int]:
    """Return the texts of a source."""
    sql = "SELECT text FROM texts WHERE workspace = ? AND source = ?"
    return {int(text) for (text,) in db.execute(sql, (scope.workspace, source))}


def texts_before(db: Rows, scope: Scope, at: float, limit: int) -> set[int]:
    """Return texts last told before ``at``, none of whose items is pinned."""
    sql = (
        "SELECT text FROM texts t WHERE workspace = ? AND last_at < ? AND NOT EXISTS "
        "(SELECT 1 FROM items i WHERE i.text = t.text AND i.pinned_s IS NOT NULL) ORDER BY at LIMIT ?"
    )
    return {int(text) for (text,) in db.execute(sql, (scope.workspace, at, limit))}


def all_texts(db: Rows, scope: Scope) -> set[int]:
    """Return every text of the workspace."""
    return {int(text) for (text,) in db.execute("SELECT text FROM texts WHERE workspace = ?", (scope.workspace,))}


def items_of_texts(db: Rows, scope: Scope, texts: Iterable[int]) -> set[int]:
    """Return the items that are spans of ``texts``."""
    sql = "SELECT item FROM items WHERE text = ? AND workspace = ?"
    return {int(item) for text in texts for (item,) in db.execute(sql, (text, scope.workspace))}


def delete_texts(db: Rows, scope: Scope, texts: Collection[int], now: float, action: str) -> None:
    """Delete ``texts`` with their items, words, vectors, links and cards; mend chains of facts. In a transaction.

    Steps of episodes that show one of their items are marked.
    """
    mark_forgotten(db, scope, sorted(texts))
    slots: set[str] = set()
    for text in sorted(texts):
        slots |= _delete_one(db, scope, text)
    sql = (
        "DELETE FROM threads WHERE workspace = ? AND source IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM texts t WHERE t.workspace = threads.workspace AND t.source = threads.source)"
    )
    db.execute(sql, (scope.workspace,))
    supersede(db, scope, slots)
    audit.note(db, scope, now, action, None, {"texts": len(texts)})


def _delete_one(db: Rows, scope: Scope, text: int) -> set[str]:
    sql = "SELECT body, speaker, at FROM texts WHERE text = ? AND workspace = ?"
    body, speaker, at = db.execute(sql, (text, scope.workspace)).fetchone()
    sql = "SELECT item, kind, is_passage, start, stop, slot FROM items WHERE text = ? AND workspace = ?"
    items = db.execute(sql, (text, scope.workspace)).fetchall()
    gone = [
        (
            item,
            scope.workspace,
            indexed_body(scope.workspace, kind, bool(is_passage), item_words(body, (start, stop), speaker, at)),
        )
        for item, kind, is_passage, start, stop, _ in items
    ]
    db.words.remove(gone)
    ids = [(item,) for item, *_ in items]
    db.executemany("DELETE FROM vectors WHERE item = ?", ids)
    db.executemany("DELETE FROM links WHERE item = ?", ids)
    db.executemany("DELETE FROM links WHERE other = ?", ids)
    db.executemany("DELETE FROM windows WHERE item = ?", ids)
    db.executemany("UPDATE items SET merged_into = NULL WHERE merged_into = ?", ids)
    db.executemany("UPDATE items SET superseded_by = NULL, superseded_at = NULL WHERE superseded_by = ?", ids)
    db.execute("DELETE FROM items WHERE text = ? AND workspace = ?", (text, scope.workspace))
    db.execute("DELETE FROM unread WHERE text = ? AND workspace = ?", (text, scope.workspace))
    db.execute("DELETE FROM texts WHERE text = ? AND workspace = ?", (text, scope.workspace))
    n_passages = sum(bool(is_passage) for _, _, is_passage, *_ in items)
    n_typed = sum(is_in_typed_view(kind, bool(is_passage)) for _, kind, is_passage, *_ in items)
    db.execute(
        "UPDATE workspaces SET n_passages = n_passages - ?, n_typed = n_typed - ? WHERE workspace = ?",
        (n_passages, n_typed, scope.workspace),
    )
    return {slot for *_, slot in items if slot}
