"""Writes texts into the file: the text, its passages, its typed items, and their words, in one transaction.

Work that needs no file (cutting, finding typed items, stemming) is done in ``prepare``, before the transaction.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from attrs import define, field, frozen

from agent_memory.recall.context_tables import BLOCK
from agent_memory.recall.indexing import indexed_body, item_words, with_place
from agent_memory.recall.passages import Span, cut
from agent_memory.recall.scope import Scope
from agent_memory.recall.slots import assert_again, supersede
from agent_memory.recall.storage import Indexed, Rows
from agent_memory.recall.told import Told
from agent_memory.recall.typed import Typed, find
from agent_memory.recall.words import terms

NEW_BLOCK_AFTER_S = 6 * 3600.0  #: a thread that was quiet for so long starts anew: no neighbours across the gap
_COVERS = 0.8  #: a typed item over this share of a passage is that passage
_SHORT_WORDS = 40  #: a passage up to this length with a standing instruction in it is one

_INSERT_ITEM = (
    "INSERT INTO items (item, workspace, text, kind, is_passage, start, stop, n_words, at, slot, value, status, "
    "is_standing) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_TEXT = (
    "INSERT INTO texts (workspace, number, kind, role, speaker, source, at, last_at, created_s, body, hash) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING text"
)


@frozen
class Passage:
    """A passage on its way into the file."""

    span: Span
    words: list[str]
    typed: Typed | None  #: the typed item that this passage as a whole is


@frozen
class Prepared:
    """A text with everything that is derived from it."""

    told: Told
    digest: bytes
    passages: tuple[Passage, ...]
    typed: tuple[Typed, ...]  #: those that are no passage of their own
    extraction_error: str | None = None


@define
class Filed:
    """What one transaction added."""

    ids: list[int] = field(factory=list)
    texts: list[int] = field(factory=list)  #: those that are new
    n_duplicates: int = 0
    n_items: Counter[str] = field(factory=Counter)
    slots: set[str] = field(factory=set)
    superseded: list[int] = field(factory=list)

    @property
    def n_texts(self) -> int:
        """How many texts are new."""
        return len(self.texts)


def prepare(told: Told) -> Prepared:
    """Cut a text and find its typed items. A rule that fails costs its items, never the text."""
    error = None
    try:
        found = find(told.body, kind=told.kind, role=told.role, speaker=told.speaker, at=told.at)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as failure:
        found, error = [], f"{type(failure).__name__}: {failure}"
    passages, used = [], set()
    for span in cut(told.body, told.kind):
        words = terms(told.body[span[0] : span[1]])
        whole = _whole(span, found, len(words), is_talk=told.kind == "chat")
        if whole is not None:
            used.add(id(whole))
        passages.append(Passage(span, words, whole))
    rest = tuple(typed for typed in found if id(typed) not in used)
    return Prepared(told, digest_of(told), tuple(passages), rest, error)


def digest_of(told: Told) -> bytes:
    """Return what makes two texts the same: kind, role, speaker and every character."""
    head = "\0".join((told.kind, told.role, told.speaker or "", ""))
    return blake2b(f"{head}{told.body}".encode(), digest_size=16).digest()


def file_texts(db: Rows, scope: Scope, texts: Sequence[Prepared], now: float) -> Filed:
    """Write ``texts`` in order. Inside a write transaction."""
    filed = Filed()
    for prepared in texts:
        if not prepared.passages:
            continue
        known = db.execute(
            "SELECT text FROM texts WHERE workspace = ? AND hash = ?", (scope.workspace, prepared.digest)
        ).fetchone()
        if known:
            _count_again(db, scope, int(known[0]), prepared.told.at, filed)
        else:
            _file_one(db, scope, prepared, now, filed)
    filed.superseded = supersede(db, scope, filed.slots)
    return filed


def _whole(span: Span, found: Sequence[Typed], n_words: int, *, is_talk: bool) -> Typed | None:
    """The typed item that a passage is. What was said in a conversation stays to be seen when a fact is superseded."""
    first = bisect_left(found, span[0], key=lambda typed: typed.start)
    for place in range(first, len(found)):
        typed = found[place]
        if typed.start >= span[1]:
            break
        if typed.stop <= span[1] and not (is_talk and typed.slot):
            is_short = typed.is_standing and n_words <= _SHORT_WORDS
            if is_short or typed.stop - typed.start >= _COVERS * (span[1] - span[0]):
                return typed
    return None


def _count_again(db: Rows, scope: Scope, text: int, at: float, filed: Filed) -> None:
    filed.n_duplicates += 1
    db.execute(
        "UPDATE texts SET count = count + 1, last_at = CASE WHEN last_at < ? THEN ? ELSE last_at END "
        "WHERE text = ? AND workspace = ?",
        (at, at, text, scope.workspace),
    )
    filed.slots |= assert_again(db, scope, text, at)


def _file_one(db: Rows, scope: Scope, prepared: Prepared, now: float, filed: Filed) -> None:
    told = prepared.told
    ids = _allocate(db, scope, told.source, told.at, len(prepared.passages))
    sql = "UPDATE workspaces SET last_number = last_number + 1 WHERE workspace = ? RETURNING last_number"
    (number,) = db.execute(sql, (scope.workspace,)).fetchone()
    row = (scope.workspace, number, told.kind, told.role, told.speaker, told.source, told.at, told.at, now)
    (text,) = db.execute(_INSERT_TEXT, (*row, told.body, prepared.digest)).fetchone()
    items, words = [], []
    for item, passage in zip(ids, prepared.passages, strict=True):
        typed = passage.typed
        items.append(_item_row(item, scope, text, told, passage.span, len(passage.words), typed, is_passage=True))
        found = with_place(passage.words, told.speaker, told.at)
        kind = typed.kind if typed else told.kind
        words.append((item, scope.workspace, indexed_body(scope.workspace, kind, True, found)))
    typed_ids = _allocate_typed(db, scope, len(prepared.typed))
    more_items, more_words = _rows_of_typed(scope, text, told, dict(zip(typed_ids, prepared.typed, strict=True)))
    db.executemany(_INSERT_ITEM, [*items, *more_items])
    db.words.add([*words, *more_words])
    db.execute(
        "UPDATE workspaces SET n_passages = n_passages + ?, n_typed = n_typed + ? WHERE workspace = ?",
        (len(ids), len(typed_ids) + sum(p.typed is not None for p in prepared.passages), scope.workspace),
    )
    everything = [*prepared.typed, *(p.typed for p in prepared.passages if p.typed)]
    filed.texts.append(text)
    filed.ids += [*ids, *typed_ids]
    filed.n_items.update(typed.kind for typed in everything)
    filed.slots |= {typed.slot for typed in everything if typed.slot}


def file_typed(db: Rows, scope: Scope, text: int, typed: Sequence[Typed], found_by: str | None) -> list[int]:
    """Add typed items to a text that is stored; return those that are new. Inside a write transaction.

    A span that an item of the same kind covers already, or overlaps, gives none.
    """
    sql = "SELECT body, kind, role, speaker, source, at FROM texts WHERE text = ? AND workspace = ?"
    body, kind, role, speaker, source, at = db.execute(sql, (text, scope.workspace)).fetchone()
    told = Told(kind=kind, body=body, role=role, speaker=speaker, source=source, at=at)
    sql = "SELECT kind, start, stop FROM items WHERE text = ? AND workspace = ?"
    known = db.execute(sql, (text, scope.workspace)).fetchall()
    new: list[Typed] = []
    for one in typed:
        others = [*known, *((other.kind, other.start, other.stop) for other in new)]
        if not any(name == one.kind and a < one.stop and one.start < b for name, a, b in others):
            new.append(one)
    ids = _allocate_typed(db, scope, len(new))
    items, words = _rows_of_typed(scope, text, told, dict(zip(ids, new, strict=True)))
    db.executemany(_INSERT_ITEM, items)
    db.words.add(words)
    db.executemany("UPDATE items SET found_by = ? WHERE item = ?", [(found_by, item) for item in ids])
    db.execute("UPDATE workspaces SET n_typed = n_typed + ? WHERE workspace = ?", (len(ids), scope.workspace))
    return ids


def _rows_of_typed(
    scope: Scope, text: int, told: Told, typed: Mapping[int, Typed]
) -> tuple[list[tuple[object, ...]], list[Indexed]]:
    """The rows of typed items that are no passage, and what the index is given for them."""
    items, words = [], []
    for item, one in typed.items():
        span = (one.start, one.stop)
        found = item_words(told.body, span, told.speaker, told.at)
        items.append(_item_row(item, scope, text, told, span, len(found), one, is_passage=False))
        words.append((item, scope.workspace, indexed_body(scope.workspace, one.kind, False, found)))
    return items, words


def _item_row(
    item: int, scope: Scope, text: int, told: Told, span: Span, n_words: int, typed: Typed | None, *, is_passage: bool
) -> tuple[object, ...]:
    kind, at = (typed.kind, typed.at or told.at) if typed else (told.kind, told.at)
    slot, value, status = (typed.slot, typed.value, typed.status) if typed else (None, None, "asserted")
    at = told.at if is_passage else at  # a passage is dated by when it was said: the index has that date
    is_standing = typed is not None and typed.is_standing and n_words <= _SHORT_WORDS
    return (item, scope.workspace, text, kind, is_passage, *span, n_words, at, slot, value, status, is_standing)


def _allocate(db: Rows, scope: Scope, source: str | None, at: float, n: int) -> list[int]:
    """``n`` ids in order: behind those of the same source, or in a block of their own."""
    thread, following = None, 0
    if source is not None:
        sql = "SELECT thread, next_item, last_at FROM threads WHERE workspace = ? AND source = ?"
        row = db.execute(sql, (scope.workspace, source)).fetchone()
        if row:
            thread = int(row[0])
            following = int(row[1]) if abs(at - row[2]) <= NEW_BLOCK_AFTER_S else 0
    ids = _consecutive(db, following, n)
    if thread is not None:
        sql = "UPDATE threads SET next_item = ?, last_at = ? WHERE thread = ?"
        db.execute(sql, (ids[-1] + 1, at, thread))
    elif source is not None:
        sql = "INSERT INTO threads (workspace, source, next_item, last_at) VALUES (?, ?, ?, ?)"
        db.execute(sql, (scope.workspace, source, ids[-1] + 1, at))
    return ids


def _allocate_typed(db: Rows, scope: Scope, n: int) -> list[int]:
    """``n`` ids for typed items: they have no neighbours, and share blocks."""
    if not n:
        return []
    sql = "SELECT thread, next_item FROM threads WHERE workspace = ? AND source IS NULL"
    row = db.execute(sql, (scope.workspace,)).fetchone()
    ids = _consecutive(db, int(row[1]) if row else 0, n)
    if row:
        db.execute("UPDATE threads SET next_item = ? WHERE thread = ?", (ids[-1] + 1, row[0]))
    else:
        sql = "INSERT INTO threads (workspace, source, next_item, last_at) VALUES (?, NULL, ?, 0)"
        db.execute(sql, (scope.workspace, ids[-1] + 1))
    return ids


def _consecutive(db: Rows, following: int, n: int) -> list[int]:
    """``n`` ids from ``following`` on; where its block ends, or it is 0, in new blocks."""
    ids: list[int] = []
    while len(ids) < n:
        if following % BLOCK == 0:
            following = db.next_number("block") * BLOCK
        take = min(n - len(ids), BLOCK - following % BLOCK)
        ids.extend(range(following, following + take))
        following += take
    return ids
