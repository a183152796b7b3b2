"""Which items have a question's words, in themselves and around them: relevance, from the index's postings alone.

- A word counts by its rarity in its own workspace (BM25's idf) and saturates when repeated (``K1``). Passages are of
  one length, so lengths are not counted.
- Around an item: the words of up to three neighbours on each side count too, less with distance. Neighbours have
  consecutive ids within a block, so no second index is needed, and what is remembered later is a neighbour at once.
- A word that more than ``cap`` items have finds nothing by itself: it only re-scores what rarer words have found. Where
  all words are so frequent, items that have all of them are found, newest first.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, section 3.4.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from agent_memory.recall.context_tables import BLOCK
from agent_memory.recall.words import prefix_of

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

K1 = 0.9
AROUND = (0.5, 0.25, 0.12)  #: what a word counts that stands one, two, three items away
FREQUENT_ITEMS, FREQUENT_SHARE = 2_000, 0.005  #: the larger of both is the cap
LOOKED_AROUND = 400


@frozen
class Term:
    """A word of a question, and how many items have it."""

    word: str
    idf: float
    is_frequent: bool


@frozen(eq=False)
class Found:
    """Items that have words of a question. ``alone`` and ``around``: shares of what could be had, 0 to 1."""

    ids: Ids = field(repr=False)
    alone: Floats = field(repr=False)
    around: Floats = field(repr=False)
    terms: tuple[Term, ...] = ()

    def best(self, n: int, always: Ids) -> Found:
        """Return the ``n`` items that can score highest, whatever their lengths, and those of ``always``."""
        if len(self.ids) <= n:
            return self
        most = np.maximum(self.alone, 0.2 * self.alone + 0.8 * self.around)
        most[np.isin(self.ids, always)] = np.inf
        n = min(n + len(always), len(self.ids) - 1)
        kept = np.argpartition(-most, n)[:n]
        kept.sort()
        return Found(self.ids[kept], self.alone[kept], self.around[kept], self.terms)

    def existing(self, db: sqlite3.Connection) -> Found:
        """Return the items that are there: behind the last of a thread are ids that nothing has yet."""
        marks = ",".join("?" * len(self.ids))
        rows = db.execute(f"SELECT item FROM items WHERE item IN ({marks})", self.ids.tolist()).fetchall()
        kept = np.isin(self.ids, np.fromiter((item for (item,) in rows), np.int64, len(rows)))
        return Found(self.ids[kept], self.alone[kept], self.around[kept], self.terms)


NOTHING = Found(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def find(
    db: sqlite3.Connection,
    workspace: int,
    words: Sequence[str],
    n_items: int,
    *,
    is_passage: bool,
    cap: int | None = None,
    looked_around: int = LOOKED_AROUND,
) -> Found:
    """Return the items of a workspace with any of ``words``. ``n_items``: how many the workspace has of these.

    ``cap``: items from which a word is frequent. ``looked_around``: how many of the best have their neighbours counted.
    """
    limit = cap if cap is not None else max(FREQUENT_ITEMS, int(n_items * FREQUENT_SHARE))
    prefix = prefix_of(workspace, is_passage)
    terms, postings = [], []
    for word in words:
        places = _places(db, prefix + word, limit + 1)
        if not len(places):
            continue
        ids, counts = np.unique(places, return_counts=True)
        terms.append(Term(word, idf(n_items, len(ids)), len(places) > limit))
        postings.append((ids, counts.astype(np.float64)))
    if not terms:
        return NOTHING
    rare = [(term, posting) for term, posting in zip(terms, postings, strict=True) if not term.is_frequent]
    if not rare:
        return _with_all(db, prefix, tuple(terms), limit)
    total = sum(term.idf for term in terms) * (K1 + 1)
    return _scored(rare, tuple(terms), total, looked_around, with_neighbours=is_passage)


def idf(n_items: int, n_with: int) -> float:
    """Return how much a word says that ``n_with`` of ``n_items`` items have."""
    return math.log(1 + (max(n_items, n_with) - n_with + 0.5) / (n_with + 0.5))


def rescored(found: Found, items: Sequence[int], words: Sequence[Sequence[str]]) -> dict[int, float]:
    """Return what the frequent words add to the relevance of ``items``, whose ``words`` were read from their texts."""
    frequent = [term for term in found.terms if term.is_frequent]
    total = sum(term.idf for term in found.terms) * (K1 + 1)
    added = {}
    for item, own in zip(items, words, strict=True):
        counts = [(term.idf, own.count(term.word)) for term in frequent]
        added[item] = sum(weight * n * (K1 + 1) / (n + K1) for weight, n in counts if n) / total
    return added


def _places(db: sqlite3.Connection, term: str, limit: int) -> Ids:
    """The items in which an indexed word stands, once for each time. As one text: a row each takes twice as long."""
    sql = "SELECT group_concat(doc) FROM (SELECT doc FROM words_at WHERE term = ? LIMIT ?)"
    (joined,) = db.execute(sql, (term, limit)).fetchone()
    found: Ids = np.fromstring(joined, np.int64, sep=",") if joined else np.zeros(0, np.int64)
    return found


def _scored(
    rare: Sequence[tuple[Term, tuple[Ids, Floats]]],
    terms: tuple[Term, ...],
    total: float,
    looked_around: int,
    *,
    with_neighbours: bool,
) -> Found:
    shifts = [step for d in range(1, len(AROUND) + 1) for step in (-d, d)] if with_neighbours else []
    own = _best_own(rare, looked_around)
    near = [own, *(_shifted(own, step) for step in shifts)]
    everything = np.unique(np.concatenate(near))
    alone, around = np.zeros(len(everything)), np.zeros(len(everything))
    for term, posting in rare:
        counts = _counts(everything, posting)
        alone += term.idf * counts * (K1 + 1) / (counts + K1)
        spread = counts
        for step in shifts:
            is_near = (everything + step) // BLOCK == everything // BLOCK
            spread = spread + AROUND[abs(step) - 1] * is_near * _counts(everything + step, posting)
        around += term.idf * spread * (K1 + 1) / (spread + K1)
    return Found(everything, alone / total, around / total, terms)


def _best_own(rare: Sequence[tuple[Term, tuple[Ids, Floats]]], n: int) -> Ids:
    """The items with the most of the words; what is around them is looked at, and nothing else."""
    own, places = np.unique(np.concatenate([ids for _, (ids, _) in rare]), return_inverse=True)
    if len(own) <= n:
        return own
    weights = np.concatenate([term.idf * counts * (K1 + 1) / (counts + K1) for term, (_, counts) in rare])
    alone = np.bincount(places, weights)
    return np.sort(own[np.argpartition(-alone, n)[:n]])


def _counts(ids: Ids, posting: tuple[Ids, Floats]) -> Floats:
    """How often a word stands in each of ``ids``."""
    having, counts = posting
    places = np.minimum(np.searchsorted(having, ids), len(having) - 1)
    return np.where(having[places] == ids, counts[places], 0.0)


def _shifted(ids: Ids, step: int) -> Ids:
    """The neighbours ``step`` away, where they are in the same block."""
    return ids[(ids + step) // BLOCK == ids // BLOCK] + step


def _with_all(db: sqlite3.Connection, prefix: str, terms: tuple[Term, ...], limit: int) -> Found:
    """Items with all of some frequent words, newest first; with the rarest of them where none has all."""
    for asked in (terms, terms[:1]):
        query = " AND ".join(f'"{prefix}{term.word}"' for term in asked)
        sql = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT ?"
        rows = db.execute(sql, (query, limit)).fetchall()
        if rows:
            ids = np.sort(np.fromiter((item for (item,) in rows), np.int64, len(rows)))
            level = np.full(len(ids), sum(term.idf for term in asked) / (sum(t.idf for t in terms) * (K1 + 1)))
            return Found(ids, level, level, tuple(Term(t.word, t.idf, False) for t in terms))
    return NOTHING
