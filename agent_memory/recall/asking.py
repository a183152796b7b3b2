"""A question's way through context memory: words, candidates, rows, scores, hits."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.recall import search
from agent_memory.recall.around import Ids
from agent_memory.recall.given import checked_kinds, checked_text, checked_unicode
from agent_memory.recall.ranking import Question, Scored, chosen, likely, relevance_of, scored
from agent_memory.recall.rows import ItemRow, rows_of, span_text, span_texts, stale_items
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows
from agent_memory.recall.types import TEXT_KINDS, TYPED_KINDS, Hit, Weights
from agent_memory.recall.vectors import Floats, VectorView
from agent_memory.recall.words import asks_about_replies, asks_for_course, question_terms

MOST_HITS = 1_000
CANDIDATES = 100  #: rows that are read and scored
FILTERED_CANDIDATES = 3_000  #: where filters may leave few of them
FILTERED_FREQUENT_CANDIDATES = 600  #: the same where words are looked up around each of them
NEAREST = 100  #: items that vectors find
_MOST_STANDING = 100


def question_of(
    query: str,
    *,
    k: int,
    kinds: Collection[str],
    since: float | None,
    as_of: float | None,
    source: str | None,
    weights: Weights,
    now: float,
) -> Question:
    """Return what was asked, checked. Raises UnsupportedParameterError."""
    checked_text(query, "query")
    if not isinstance(k, int) or isinstance(k, bool) or not 0 < k <= MOST_HITS:
        raise UnsupportedParameterError(f"k must be an int of 1 to {MOST_HITS}, got {repr_of(k)}")
    if source is not None:
        checked_unicode(source, "source")
    return Question(
        text=query,
        weights=weights,
        now=now,
        k=k,
        about_replies=asks_about_replies(query),
        about_course=asks_for_course(query),
        kinds=checked_kinds(kinds, (*TEXT_KINDS, *TYPED_KINDS)),
        since=since,
        as_of=as_of,
        source=source,
    )


def ask(db: Rows, scope: Scope, question: Question, view: VectorView | None, vector: Floats | None) -> list[Hit]:
    """Return the hits of a question, whose ``vector`` is ``view``'s. Inside a read transaction; changes nothing."""
    words = question_terms(question.text)
    is_filtered = bool(question.kinds) or question.since is not None or question.as_of is not None or question.source
    candidates: dict[int, Scored] = {}
    similar = {} if view is None or vector is None else _similar(db, vector, view)
    for is_passage in _views(question):
        n_items = _n_items(db, scope, is_passage)
        n, standing = max(FILTERED_CANDIDATES if is_filtered else CANDIDATES, 2 * question.k), _standing(db, scope)
        found = search.find(
            db, scope.workspace, words, n_items, is_passage=is_passage, looked_around=max(n, search.LOOKED_AROUND)
        )
        if found.has_frequent and is_filtered:
            n = max(FILTERED_FREQUENT_CANDIDATES, 2 * question.k)
        found = found.best_existing(db, n, standing)
        found = search.with_frequent(db, scope.workspace, found, is_passage=is_passage)
        for row, relevance in _relevant(db, scope, found):
            if question.admits(row):
                candidates[row.item] = scored(row, question, relevance, similar.pop(row.item, 0.0))
    for item, row in rows_of(db, scope, list(similar)).items():
        if question.admits(row):
            candidates[item] = scored(row, question, 0.0, similar[item])
    texts = span_texts(db, [one.row for one in likely(candidates.values(), question)])
    hits = chosen(candidates.values(), question, lambda row: texts.get(row.item) or span_text(db, row))
    stale = stale_items(db, [hit.row.item for hit, _ in hits])
    return [
        Hit(hit.row.as_item(scope, text, is_stale=hit.row.item in stale), hit.score, dict(hit.parts))
        for hit, text in hits
    ]


def _views(question: Question) -> list[bool]:
    """Which items are looked through: passages, typed items, or both."""
    if not question.kinds:
        return [True]
    texts = question.kinds & set(TEXT_KINDS)
    return [*([True] if texts else []), *([False] if question.kinds - texts else [])]


def vector_of(question: Question, view: VectorView | None) -> Floats | None:
    """Return a question's vector, where one counts. Before the transaction: an embedder may wait for others."""
    if view is None or not question.weights.similarity or not question.text.strip():
        return None
    return view.query(question.text)


def _similar(db: Rows, vector: Floats, view: VectorView) -> dict[int, float]:
    """How near the nearest items are in meaning, 0 to 1, against the least near of them."""
    cosines = view.nearest(db, vector, NEAREST)
    least = min(cosines.values(), default=0.0)
    return {item: max(0.0, cosine - least) for item, cosine in cosines.items()}


def _standing(db: Rows, scope: Scope) -> Ids:
    """The newest standing instructions: raised later, so looked at even where many passages have more of the words."""
    sql = "SELECT item FROM items WHERE workspace = ? AND is_standing ORDER BY item DESC LIMIT ?"
    rows = db.execute(sql, (scope.workspace, _MOST_STANDING)).fetchall()
    return np.fromiter((item for (item,) in rows), np.int64, len(rows))


def _n_items(db: Rows, scope: Scope, is_passage: bool) -> int:
    column = "n_passages" if is_passage else "n_typed"
    row = db.execute(f"SELECT {column} FROM workspaces WHERE workspace = ?", (scope.workspace,)).fetchone()
    return int(row[0]) if row else 0


def _relevant(db: Rows, scope: Scope, found: search.Found) -> Iterator[tuple[ItemRow, float]]:
    """Rows with their relevance."""
    rows = rows_of(db, scope, found.ids.tolist())
    for item, alone, around in zip(found.ids.tolist(), found.alone.tolist(), found.around.tolist(), strict=True):
        if item in rows:
            yield rows[item], relevance_of(alone, around, rows[item].n_words)
