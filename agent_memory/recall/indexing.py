"""What the full-text index is given for an item, and given again to take it out: it keeps no text of its own."""

from __future__ import annotations

import logging

from agent_memory.recall.passages import Span
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows
from agent_memory.recall.types import TEXT_KINDS
from agent_memory.recall.words import WORDS_VERSION, date_terms, indexed, terms

log = logging.getLogger("agent_memory.recall")


def item_words(body: str, span: Span, speaker: str | None, at: float) -> list[str]:
    """Return the words of an item: its own, its speaker's name, and the date of its text."""
    return with_place(terms(body[span[0] : span[1]]), speaker, at)


def with_place(words: list[str], speaker: str | None, at: float) -> list[str]:
    """Return ``words`` with those of the speaker's name and the date."""
    return [*words, *(terms(speaker) if speaker else ()), *date_terms(at)]


def is_in_typed_view(kind: str, is_passage: bool) -> bool:
    """True if an item is looked for among typed items: it is one, or a passage that is one as a whole."""
    return not is_passage or kind not in TEXT_KINDS


def indexed_body(workspace: int, kind: str, is_passage: bool, words: list[str]) -> str:
    """Return what the index is given for an item."""
    views = [*([True] if is_passage else []), *([False] if is_in_typed_view(kind, is_passage) else [])]
    return " ".join(indexed(workspace, view, words) for view in views)


def ensure_index(db: Rows, scope: Scope) -> None:
    """Index every item anew where another version of ``words`` made the index. Inside a write transaction."""
    if db.words.version() == WORDS_VERSION:
        return
    db.words.begin_anew(WORDS_VERSION)
    own = f"WHERE i.workspace = {scope.workspace}" if db.words.is_per_workspace else ""
    sql = (
        "SELECT i.item, i.workspace, i.kind, i.is_passage, i.start, i.stop, t.body, t.speaker, t.at FROM items i "
        f"JOIN texts t ON t.text = i.text {own}"
    )
    n = 0
    for item, workspace, kind, is_passage, start, stop, body, speaker, at in db.execute(sql):
        words = item_words(body, (start, stop), speaker, at)
        given = indexed_body(workspace, kind, bool(is_passage), words)
        db.words.add([(item, workspace, given)])
        n += 1
    if n:
        log.info("recall: %d items indexed anew", n)
