"""Typed items that a model reads out of texts in idle time, beside those that the rules found.

- A text is marked as unread in the transaction that stores it. The mark moves on in the transaction that files what a
  piece of the text gave, so a crash repeats the piece that was being read and loses nothing.
- A piece that an extractor fails on is tried ``TRIES`` times, then passed over: text, passages and the rules' items
  stand whatever happens.
- What a model found fills no slot: it never hides another fact. It has its span, and who found it (``found_by``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.recall import audit
from agent_memory.recall.filing import file_typed
from agent_memory.recall.given import checked_unicode
from agent_memory.recall.passages import sentences
from agent_memory.recall.protocols import Extracted
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows
from agent_memory.recall.typed import Typed

#: What an extractor may find: what people say. Logs and diffs are the rules' alone.
KINDS = ("decision", "task", "preference", "instruction", "requirement", "constraint", "fact", "event")
PIECE_CHARS = 1_200
TRIES = 3


@frozen
class Unread:
    """A piece of a text that no extractor has read: characters [start, stop)."""

    text: int
    start: int
    stop: int
    body: str  #: of the piece
    is_last: bool


def mark(db: Rows, scope: Scope, texts: Sequence[int]) -> None:
    """Mark those of ``texts`` as unread that people wrote. Inside the transaction that stores them."""
    sql = (
        "INSERT INTO unread (text, workspace) SELECT text, workspace FROM texts WHERE text = ? "
        "AND workspace = ? AND kind IN ('chat', 'note') AND role = 'user' ON CONFLICT DO NOTHING"
    )
    db.executemany(sql, [(text, scope.workspace) for text in texts])


def first_unread(db: Rows, scope: Scope) -> Unread | None:
    """Return the next piece to read: of the text told last; None where all was read. Changes nothing."""
    sql = (
        "SELECT u.text, u.start, t.body FROM unread u JOIN texts t ON t.text = u.text WHERE u.workspace = ? "
        "ORDER BY u.n_failed, u.text DESC LIMIT 1"
    )
    row = db.execute(sql, (scope.workspace,)).fetchone()
    if row is None:
        return None
    text, start, body = row
    stop = _end_of_piece(body, start)
    return Unread(int(text), int(start), stop, body[start:stop], stop >= len(body))


def file_found(
    db: Rows, scope: Scope, unread: Unread, found: Sequence[Extracted], found_by: str, now: float
) -> list[int]:
    """Write what was found in a piece, and that it was read; return the new items. Inside a write transaction.

    Nothing is written for a text that was forgotten meanwhile, or a piece that was read meanwhile. Raises
    UnsupportedParameterError for a span or a kind that the text cannot have, before anything is written.
    """
    _ensure_is_piece(unread)
    checked_unicode(found_by, "by")
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise UnsupportedParameterError(f"found must be a list of Extracted, got {type(found).__name__}")
    typed = [_checked(one, unread) for one in found]
    sql = "SELECT 1 FROM unread WHERE text = ? AND workspace = ? AND start = ?"
    if db.execute(sql, (unread.text, scope.workspace, unread.start)).fetchone() is None:
        return []
    ids = file_typed(db, scope, unread.text, typed, found_by)
    _move_on(db, scope, unread)
    if ids:
        audit.note(db, scope, now, "extract", None, {"text": unread.text, "items": len(ids), "by": found_by})
    return ids


def note_failure(db: Rows, scope: Scope, unread: Unread, now: float) -> None:
    """Count that a piece could not be read; pass over it after ``TRIES``. Inside a write transaction."""
    _ensure_is_piece(unread)
    sql = "UPDATE unread SET n_failed = n_failed + 1 WHERE text = ? AND workspace = ? AND start = ? RETURNING n_failed"
    row = db.execute(sql, (unread.text, scope.workspace, unread.start)).fetchone()
    if row is not None and row[0] >= TRIES:
        _move_on(db, scope, unread)
        audit.note(db, scope, now, "extract_failed", None, {"text": unread.text, "start": unread.start})


def _move_on(db: Rows, scope: Scope, unread: Unread) -> None:
    if unread.is_last:
        db.execute("DELETE FROM unread WHERE text = ? AND workspace = ?", (unread.text, scope.workspace))
    else:
        sql = "UPDATE unread SET start = ?, n_failed = 0 WHERE text = ? AND workspace = ?"
        db.execute(sql, (unread.stop, unread.text, scope.workspace))


def _end_of_piece(body: str, start: int) -> int:
    """Where a piece ends that begins at ``start``: behind as many whole sentences as fit, or one that is longer."""
    if len(body) - start <= PIECE_CHARS:
        return len(body)
    stop = start
    for _, end in _sentences_from(body, start):
        if end > start + PIECE_CHARS:
            break
        stop = end
    return stop if stop > start else start + PIECE_CHARS


def _sentences_from(body: str, start: int) -> Iterator[tuple[int, int]]:
    yield from sentences(body, start, min(len(body), start + 2 * PIECE_CHARS))


def _ensure_is_piece(unread: object) -> None:
    if not isinstance(unread, Unread):
        raise UnsupportedParameterError(f"unread must be what unread() returned, got {type(unread).__name__}")


def _checked(one: Extracted, unread: Unread) -> Typed:
    size = unread.stop - unread.start
    if not isinstance(one, Extracted):
        raise UnsupportedParameterError(f"an extractor gave a {type(one).__name__} in place of an Extracted")
    if one.kind not in KINDS or not 0 <= one.start < one.stop <= size:
        raise UnsupportedParameterError(
            f"an extractor gave {repr_of(one)} for a piece of {size} characters; known kinds: {', '.join(KINDS)}"
        )
    return Typed(kind=one.kind, start=unread.start + one.start, stop=unread.start + one.stop)
