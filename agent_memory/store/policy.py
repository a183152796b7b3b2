"""Which segments to evict: cost-aware LRU, children always before their parents. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping

from attrs import frozen


@frozen
class Candidate:
    """A segment as the policy sees it."""

    number: int
    parent: int | None  #: the segment that holds the piece before its first
    nbytes: int  #: allocated, side files included
    used_s: float
    n_tokens: int = 1  #: what would have to be computed again
    is_pinned: bool = False  #: not to be evicted (being saved, or wanted to stay); neither are its ancestors


def victims(candidates: Iterable[Candidate], excess_bytes: int, now_s: float) -> list[int]:
    """Segments to remove so that ``excess_bytes`` are freed (or all that may be); O(n log n).

    Of those that nothing stands on, the one goes whose bytes have been held longest for the least: the longest unused,
    times its bytes, over the tokens that it saves each of the lineages that stand, or stood until now, on it.
    """
    if excess_bytes <= 0:
        return []
    known = {c.number: c for c in candidates}
    children = Counter(c.parent for c in known.values() if c.parent is not None)
    lineages = _lineages(known, children)

    def entry(c: Candidate) -> tuple[float, float, int]:
        idle_s = max(now_s - c.used_s, 0.0) + 1.0
        return -idle_s * c.nbytes / (c.n_tokens * lineages[c.number]), c.used_s, -c.number

    leaves = [entry(c) for c in known.values() if not children[c.number] and not c.is_pinned]
    heapq.heapify(leaves)
    chosen: list[int] = []
    while leaves and excess_bytes > 0:
        found = known[-heapq.heappop(leaves)[2]]
        chosen.append(found.number)
        excess_bytes -= found.nbytes
        if found.parent in known:
            children[found.parent] -= 1
            parent = known[found.parent]
            if not children[parent.number] and not parent.is_pinned:
                heapq.heappush(leaves, entry(parent))
    return chosen


def _lineages(known: Mapping[int, Candidate], children: Counter[int]) -> Counter[int]:
    """How many lineages stand on each segment: the leaves below it. Parents have smaller numbers."""
    found = Counter({number: 1 for number in known if not children[number]})
    for number in sorted(known, reverse=True):
        if (parent := known[number].parent) is not None:
            found[parent] += found[number]
    return found
