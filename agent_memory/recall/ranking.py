"""From items with relevance to hits with scores: what each signal adds, what is hidden, and what is shown once.

``score = relevance + similarity + shares of these two``, every summand in ``Hit.parts``:

- ``speaker`` (negative): what an assistant said, unless the question asks for that;
- ``standing``: instructions and preferences, which hold for whatever is asked later;
- ``recency`` and ``usage``: halve every 30 days; ``usage`` saturates;
- ``failure``: errors and failed tests; ``salience``: feedback, bounded by tanh, halves every 90 days;
- ``spread`` (negative): for questions about a whole course, turns next to a better one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from attrs import define, frozen

from agent_memory.recall.rows import ItemRow
from agent_memory.recall.types import Weights
from agent_memory.recall.words import terms

HALF_LIFE_S = 30 * 86_400.0
FEEDBACK_HALF_LIFE_S = 90 * 86_400.0
_SHORT_WORDS = 40  #: a passage up to this length is read with its neighbours
_AROUND_SHARE = 0.8
_FAILURES = {"error": 1.0, "test_failure": 1.0}
_SAME = 0.9  #: Jaccard similarity of words from which two texts are one
_NEAR = 5  #: turns apart, for ``spread``
_MORE = 3  #: texts read beyond those asked for


@frozen
class Question:
    """What was asked, and how hits are chosen."""

    text: str
    weights: Weights
    now: float
    k: int
    about_replies: bool
    about_course: bool
    kinds: frozenset[str]
    since: float | None
    as_of: float | None
    source: str | None = None

    def admits(self, row: ItemRow) -> bool:
        """True if filters and time let ``row`` be seen."""
        if row.merged_into is not None:
            return False
        if self.kinds and not self.kinds & ({row.kind, row.text_kind} if row.is_passage else {row.kind}):
            return False
        if self.since is not None and row.at < self.since:
            return False
        if self.source is not None and row.source != self.source:
            return False
        if self.as_of is None:
            return row.superseded_by is None
        return row.at <= self.as_of and (row.superseded_at is None or row.superseded_at > self.as_of)


@define(eq=False)
class Scored:
    """A row with its score and what it is made of."""

    row: ItemRow
    parts: dict[str, float]
    score: float  #: the sum of the parts, in their order


def relevance_of(alone: float, around: float, n_words: int) -> float:
    """Return the share of both views that suits a passage's length: short ones are read with their neighbours."""
    share = neighbours_share(n_words)
    return (1 - share) * alone + share * around


def neighbours_share(n_words: int) -> float:
    """Return how much a passage's neighbours count in it, by its length."""
    return _AROUND_SHARE * min(1.0, _SHORT_WORDS / max(n_words, 1))


def scored(row: ItemRow, question: Question, relevance: float, similarity: float) -> Scored:
    """Return a row with every part of its score."""
    w = question.weights
    base = w.relevance * relevance + w.similarity * similarity
    is_reply = row.role == "assistant" and not question.about_replies
    parts = {
        "relevance": w.relevance * relevance,
        "similarity": w.similarity * similarity,
        "speaker": -min(1.0, w.speaker) * base if is_reply else 0.0,
        "standing": w.standing * base if row.is_standing else 0.0,
        "recency": w.recency * base * _decay(question.now - row.at, HALF_LIFE_S),
        "usage": w.usage * base * _used(row, question.now) if row.n_used else 0.0,
        "failure": w.failure * base * _FAILURES.get(row.kind, 0.0),
        "salience": w.salience * base * salience(row, question.now) if row.net_useful else 0.0,
    }
    return Scored(row, parts, sum(parts.values()))


def salience(row: ItemRow, now: float) -> float:
    """Return what feedback says of a row, -1 to 1, faded by its age."""
    return math.tanh(row.net_useful * _decay(now - row.useful_s, FEEDBACK_HALF_LIFE_S) / 2)


def likely(candidates: Iterable[Scored], question: Question) -> list[Scored]:
    """Return those that ``chosen`` looks at first: as many as were asked for, and a few for what is shown once."""
    return sorted((one for one in candidates if one.score > 0), key=_order)[: question.k + _MORE]


def chosen(
    candidates: Iterable[Scored], question: Question, text_of: Callable[[ItemRow], str]
) -> list[tuple[Scored, str]]:
    """Return at most ``k`` hits with their texts, best first: one of each conversation turn, and each content once."""
    pool = sorted((one for one in candidates if one.score > 0), key=_order)
    spread = question.weights.spread if question.about_course else 0.0
    hits: list[tuple[Scored, str]] = []
    turns: set[int] = set()
    seen: list[frozenset[str]] = []
    while pool and len(hits) < question.k:
        one = min(pool, key=_order) if spread else pool[0]
        pool.remove(one)
        if one.row.text in turns:
            continue
        text = text_of(one.row)
        words = frozenset(terms(text))
        if any(_jaccard(words, other) >= _SAME for other in seen):
            continue
        if _is_turn(one.row, question):
            turns.add(one.row.text)
        seen.append(words)
        hits.append((one, text))
        if spread:
            _lower_near(pool, one.row, spread)
    return hits


def _order(one: Scored) -> tuple[float, float, int]:
    return (-one.score, -one.row.at, one.row.item)


def _is_turn(row: ItemRow, question: Question) -> bool:
    return row.text_kind == "chat" and (row.is_passage != 0 or not question.kinds)


def _lower_near(pool: list[Scored], taken: ItemRow, spread: float) -> None:
    """Lower what was said shortly before or after ``taken``, once more for every hit that it is near to."""
    for one in pool:
        row = one.row
        if abs(row.number - taken.number) <= _NEAR and row.source == taken.source and row.text_kind == taken.text_kind:
            one.parts["spread"] = one.parts.get("spread", 0.0) - spread * one.score
            one.score = sum(one.parts.values())


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _decay(age_s: float, half_life_s: float) -> float:
    return float(0.5 ** (max(0.0, age_s) / half_life_s))


def _used(row: ItemRow, now: float) -> float:
    return math.log1p(row.n_used) / (1 + math.log1p(row.n_used)) * _decay(now - row.used_s, HALF_LIFE_S)
