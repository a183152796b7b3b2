"""Which segments to evict: least recently used first, children always before their parents. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable

from attrs import frozen


@frozen
class Candidate:
    """A segment as the policy sees it."""

    number: int
    parent: int | None  #: the segment that holds the piece before its first
    nbytes: int
    used_s: float
    is_pinned: bool = False  #: not to be evicted (being saved); neither are its ancestors


def victims(candidates: Iterable[Candidate], excess_bytes: int) -> list[int]:
    """Segments to remove so that ``excess_bytes`` are freed (or all that may be); O(n log n)."""
    if excess_bytes <= 0:
        return []
    known = {c.number: c for c in candidates}
    children = Counter(c.parent for c in known.values() if c.parent is not None)
    leaves = [(c.used_s, -c.number) for c in known.values() if not children[c.number] and not c.is_pinned]
    heapq.heapify(leaves)
    chosen: list[int] = []
    while leaves and excess_bytes > 0:
        found = known[-heapq.heappop(leaves)[1]]
        chosen.append(found.number)
        excess_bytes -= found.nbytes
        if found.parent in known:
            children[found.parent] -= 1
            parent = known[found.parent]
            if not children[parent.number] and not parent.is_pinned:
                heapq.heappush(leaves, (parent.used_s, -parent.number))
    return chosen
