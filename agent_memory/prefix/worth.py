"""What leaves a tier first, in all three: the lowest worth, and within a lineage its tail. Pure.

Worth is the cost to get something back per byte held and second unused. Of two things that cost the same per byte, the
longer unused goes first (LRU); one that costs ten times as much stays ten times as long unused. The order is that of
hyperbolic caching (Blankstein, Sen and Freedman, USENIX ATC 2017) without its count of uses.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from attrs import define, field

from agent_memory.prefix.pieces import Segment
from agent_memory.types import Tier

T = TypeVar("T")

#: Until it is measured: seconds to compute a token, and bytes a second that come back from a tier.
_COMPUTE_S = 1e-3
_LOAD_RATES: dict[Tier, float] = {"warm": 4e9, "cold": 1e9}
#: The share of a new measurement in what is believed.
_NEWS = 0.2
_LEAST_IDLE_S = 1e-6


@define
class Costs:
    """Seconds to get KV back, by what was measured so far. Engine thread only."""

    _token_s: float = field(default=_COMPUTE_S, init=False)
    _byte_s: dict[Tier, float] = field(
        factory=lambda: {tier: 1 / rate for tier, rate in _LOAD_RATES.items()}, init=False
    )

    is_measured: bool = field(default=False, init=False)  #: whether computing was

    def computed(self, n_tokens: int, seconds: float) -> None:
        """So many tokens took so long to prefill."""
        if n_tokens:
            self.is_measured = True
            self._token_s += _NEWS * (seconds / n_tokens - self._token_s)

    def loaded(self, tier: Tier, n_bytes: int, seconds: float) -> None:
        """So many bytes of live KV took so long to come from a tier."""
        if n_bytes and tier in self._byte_s:
            self._byte_s[tier] += _NEWS * (seconds / n_bytes - self._byte_s[tier])

    def compute_s(self, n_tokens: int) -> float | None:
        """What so many tokens cost to compute; None while nobody knows."""
        return self._token_s * n_tokens if self.is_measured else None

    def back_s(self, tier: Tier, n_tokens: int, n_bytes: int) -> float:
        """What KV that is in ``tier`` costs to make live; ``none``: to compute again."""
        return self._byte_s[tier] * n_bytes if tier in self._byte_s else self._token_s * n_tokens


def worth(cost_s: float, n_bytes: int, idle_s: float) -> float:
    """Return what is gained by keeping something: whatever has least goes first."""
    return cost_s / (max(1, n_bytes) * max(_LEAST_IDLE_S, idle_s))


def leaves_first(
    leaves: Iterable[T], order: Callable[[T], tuple[Any, ...]], freed: Callable[[T], T | None] = lambda one: None
) -> Iterator[T]:
    """Give what is to leave, one by one: of what nothing depends on, the first in ``order``.

    The caller lets each leave before it asks for the next; ``freed`` then gives what nothing depends on any more, if
    that may leave. O(log n) for each.
    """
    heap = [(order(one), number, one) for number, one in enumerate(leaves)]
    heapq.heapify(heap)
    number = len(heap)
    while heap:
        *_, one = heapq.heappop(heap)
        yield one
        if (parent := freed(one)) is not None:
            number += 1
            heapq.heappush(heap, (order(parent), number, parent))


def victims(
    segments: Iterable[Segment], sizes: Mapping[int, int], pinned: Collection[int], excess_bytes: int, now_s: float
) -> list[Segment]:
    """Return the segments of rows to remove so that ``excess_bytes`` are freed (or all that may be); O(n log n).

    A segment costs its tokens to get back, once for each of the lineages that depend on it, or did until now.
    ``sizes``: by number, allocated bytes with its resume segments. ``pinned``: numbers of those that stay (being saved,
    or wanted to stay); so do their ancestors.
    """
    if excess_bytes <= 0:
        return []
    known = {s.number: s for s in segments}
    children = Counter(s.parent_number for s in known.values() if s.parent_number is not None)
    lineages = _lineages(known, children)

    def order(s: Segment) -> tuple[float, float, int]:
        idle_s = max(now_s - s.used_s, 0.0) + 1.0
        return worth(s.n_tokens * lineages[s.number], sizes[s.number], idle_s), s.used_s, -s.number

    def freed(s: Segment) -> Segment | None:
        parent = known.get(s.parent_number) if s.parent_number is not None else None
        if parent is None:
            return None
        children[parent.number] -= 1
        return None if children[parent.number] or parent.number in pinned else parent

    chosen: list[Segment] = []
    leaves = [s for s in known.values() if not children[s.number] and s.number not in pinned]
    for found in leaves_first(leaves, order, freed):
        if excess_bytes <= 0:
            break
        chosen.append(found)
        excess_bytes -= sizes[found.number]
    return chosen


def _lineages(known: Mapping[int, Segment], children: Counter[int]) -> Counter[int]:
    """Return how many lineages depend on each segment: the leaves below it. Parents have smaller numbers."""
    found = Counter({number: 1 for number in known if not children[number]})
    for number in sorted(known, reverse=True):
        if (parent := known[number].parent_number) is not None:
            found[parent] += found[number]
    return found
