"""Which items have a question's words, in themselves and around them: relevance, from the index's postings alone.

- A word counts by its rarity in its own workspace (BM25's idf) and saturates when repeated (``K1``). Passages are of
  one length, so lengths are not counted.
- Around an item: the words of up to three neighbours on each side count too, less with distance. Neighbours have
  consecutive ids within a block, so no second index is needed, and what is remembered later is a neighbour at once.
- A word that more than ``cap`` items have finds nothing by itself: it adds to what rarer words have found. Two such
  words in one item find it, the newest first; so does one, where nothing else was asked.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from agent_memory.recall.around import SHIFTS, Around, Floats, Ids, Posting
from agent_memory.recall.context_tables import BLOCK
from agent_memory.recall.storage import Rows
from agent_memory.recall.words import prefix_of

K1 = 0.9
FREQUENT_ITEMS, FREQUENT_SHARE = 2_000, 0.005  #: the larger of both is the cap
LOOKED_AROUND = 400  #: items whose neighbours are looked at
_COUNTED = 10  #: times the cap: how far frequent words are counted
#: Of the frequent words, the rarest, of which two find an item; fewer where there are many items.
_PAIRED, _PAIRED_IN_MANY, _MANY_ITEMS = 6, 3, 200_000


@frozen
class Term:
    """A word of a question, and how many items have it."""

    word: str
    n_items: int  #: up to ``_COUNTED`` times the cap
    idf: float
    is_frequent: bool


@frozen(eq=False)
class Found:
    """Items that have words of a question. ``alone`` and ``around``: shares of what could be had, 0 to 1."""

    ids: Ids = field(repr=False)
    alone: Floats = field(repr=False)
    around: Floats = field(repr=False)
    terms: tuple[Term, ...] = ()
    postings: tuple[Posting, ...] = field(default=(), repr=False)  #: of the terms that are not frequent

    @property
    def has_frequent(self) -> bool:
        """True if words are left that ``with_frequent`` counts."""
        return any(term.is_frequent for term in self.terms)

    def best(self, n: int, always: Ids) -> Found:
        """Return the ``n`` items that can score highest, whatever their lengths, and those of ``always``."""
        if len(self.ids) <= n:
            return self
        most = np.maximum(self.alone, 0.2 * self.alone + 0.8 * self.around)
        most[np.isin(self.ids, always)] = np.inf
        n = min(n + len(always), len(self.ids) - 1)
        kept = np.argpartition(-most, n)[:n]
        kept.sort()
        return self._only(kept)

    def best_existing(self, db: Rows, n: int, always: Ids) -> Found:
        """Return the same of the items that are there: behind the last of a thread are ids that nothing has yet."""
        n_asked = 2 * n
        while True:
            found = self.best(n_asked, always)
            kept = found._existing(db)
            if len(kept.ids) >= n or len(found.ids) == len(self.ids):
                return kept.best(n, always)
            n_asked *= 4

    def _existing(self, db: Rows) -> Found:
        if not len(self.ids):
            return self
        marks = ",".join("?" * len(self.ids))
        rows = db.execute(f"SELECT item FROM items WHERE item IN ({marks})", self.ids.tolist()).fetchall()
        return self._only(np.isin(self.ids, np.fromiter((item for (item,) in rows), np.int64, len(rows))))

    def _only(self, kept: NDArray[Any]) -> Found:
        return evolve(self, ids=self.ids[kept], alone=self.alone[kept], around=self.around[kept])


NOTHING = Found(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def find(
    db: Rows,
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
    Where words are frequent, the scores are for ``best`` alone: ``with_frequent`` makes them whole.
    """
    limit = cap if cap is not None else max(FREQUENT_ITEMS, int(n_items * FREQUENT_SHARE))
    prefix = prefix_of(workspace, is_passage)
    terms: list[Term] = []
    postings: list[Posting] = []
    found_words = db.words.places([prefix + word for word in words], limit, _COUNTED * limit)
    for word, places in zip(words, found_words, strict=True):
        if places.n_items:
            terms.append(Term(word, places.n_items, idf(n_items, places.n_items), places.is_frequent))
        if len(places.ids):
            postings.append((places.ids, places.counts))
    frequent = sorted((term for term in terms if term.is_frequent), key=lambda term: (-term.idf, term.word))
    rare = [(term.idf, p) for term, p in zip((t for t in terms if not t.is_frequent), postings, strict=True)]
    n_paired = _PAIRED if n_items <= _MANY_ITEMS else _PAIRED_IN_MANY
    hints = _hinted(db, prefix, frequent[:n_paired], limit, has_rare=bool(rare))
    if not rare and not hints:
        return NOTHING
    ids = _looked_at([*rare, *hints], looked_around, with_neighbours=is_passage)
    found = Found(ids, np.zeros(0), np.zeros(0), tuple(terms), tuple(postings))
    return _scored(found, Around.of(ids, with_neighbours=is_passage), [*rare, *hints])


def with_frequent(db: Rows, workspace: int, found: Found, *, is_passage: bool) -> Found:
    """Return ``found`` with its frequent words counted: looked up around these items alone, once an item."""
    frequent = [term for term in found.terms if term.is_frequent]
    if not frequent or not len(found.ids):
        return found
    prefix = prefix_of(workspace, is_passage)
    around = Around.of(found.ids, with_neighbours=is_passage)
    weighted = list(zip((t.idf for t in found.terms if not t.is_frequent), found.postings, strict=True))
    found_items = db.words.among({prefix + term.word: term.n_items for term in frequent}, around)
    for term, having in zip(frequent, found_items, strict=True):
        if len(having):
            weighted.append((term.idf, (having, np.ones(len(having)))))
    return _scored(found, around, weighted)


def idf(n_items: int, n_with: int) -> float:
    """Return how much a word says that ``n_with`` of ``n_items`` items have."""
    return math.log(1 + (max(n_items, n_with) - n_with + 0.5) / (n_with + 0.5))


def _hinted(
    db: Rows, prefix: str, frequent: Sequence[Term], limit: int, *, has_rare: bool
) -> list[tuple[float, Posting]]:
    """Items with two of the frequent words, the newest of each pair; with one where there is no other word."""
    having: dict[Term, set[int]] = {term: set() for term in frequent}
    asked: list[tuple[Term, ...]] = [*combinations(frequent, 2)]
    if not asked and not has_rare:
        asked = [(term,) for term in frequent]
    newest = db.words.newest_with([[prefix + term.word for term in some] for some in asked], limit)
    for some, items in zip(asked, newest, strict=True):
        for term in some:
            having[term].update(items)
    return [
        (term.idf, (np.array(sorted(items), np.int64), np.ones(len(items)))) for term, items in having.items() if items
    ]


def _looked_at(weighted: Sequence[tuple[float, Posting]], n: int, *, with_neighbours: bool) -> Ids:
    """The ``n`` items with the most of the words, and their neighbours."""
    own, places = np.unique(np.concatenate([ids for _, (ids, _) in weighted]), return_inverse=True)
    if len(own) > n:
        worth = np.concatenate([weight * counts * (K1 + 1) / (counts + K1) for weight, (_, counts) in weighted])
        own = np.sort(own[np.argpartition(-np.bincount(places, worth), n)[:n]])
    near = [own[(own + step) // BLOCK == own // BLOCK] + step for step in (SHIFTS if with_neighbours else ())]
    return np.unique(np.concatenate([own, *near]))


def _scored(found: Found, around: Around, weighted: Sequence[tuple[float, Posting]]) -> Found:
    """``found`` with what all words count in each item, by itself and with its neighbours, of all that they could."""
    alone, nearby = np.zeros(len(found.ids)), np.zeros(len(found.ids))
    for weight, posting in weighted:
        counts, spread = around.counts(posting)
        alone += weight * counts / (counts + K1)
        nearby += weight * spread / (spread + K1)
    total = sum(term.idf for term in found.terms)
    return evolve(found, alone=alone / total, around=nearby / total)
