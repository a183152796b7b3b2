"""The order of eviction in all three tiers: the lowest worth first, and within a lineage the tail first. Pure.

Worth is the cost to get KV back, per allocated byte and second unused. Of two lineages that cost the same per byte, the
longer unused goes first (LRU); one that costs ten times as much stays ten times as long. The order is that of
hyperbolic caching (Blankstein, Sen and Freedman, USENIX ATC 2017) without its count of uses.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from attrs import define, field

from agent_memory.prefix.pieces import Segment
from agent_memory.types import Tier

T = TypeVar("T")

#: Used until measured: seconds to compute a token, and bytes a second read from a tier.
_COMPUTE_S = 1e-3
_LOAD_RATES: dict[Tier, float] = {"warm": 4e9, "cold": 1e9}
_LONG_STEP = 64  #: tokens of a step that tells the rate of long prompts
#: Weight of a new measurement in the moving average.
_NEWS = 0.2
_LEAST_IDLE_S = 1e-6


@define
class Costs:
    """Seconds to get KV back, from moving averages of what was measured. Engine thread only."""

    _token_s: float = field(default=_COMPUTE_S, init=False)
    _byte_s: dict[Tier, float] = field(
        factory=lambda: {tier: 1 / rate for tier, rate in _LOAD_RATES.items()}, init=False
    )

    _long_token_s: float | None = field(default=None, init=False)  #: of steps of ``_LONG_STEP`` tokens or more
    is_measured: bool = field(default=False, init=False)  #: True once a prefill was measured
    measured: set[Tier] = field(factory=set, init=False)  #: tiers from which a restore was measured

    def forget(self) -> None:
        """Forget what was measured: another model is loaded."""
        fresh = Costs()
        self._token_s, self._byte_s, self.is_measured = fresh._token_s, fresh._byte_s, False
        self.measured.clear()

    def computed(self, n_tokens: int, seconds: float) -> None:
        """Record one measured prefill."""
        if n_tokens:
            self.is_measured = True
            self._token_s += _NEWS * (seconds / n_tokens - self._token_s)
        if n_tokens >= _LONG_STEP:
            known = self._long_token_s or seconds / n_tokens
            self._long_token_s = known + _NEWS * (seconds / n_tokens - known)

    def loaded(self, tier: Tier, n_bytes: int, seconds: float) -> None:
        """Record one measured restore of ``n_bytes`` of live KV from a tier."""
        if n_bytes and tier in self._byte_s:
            self.measured.add(tier)
            self._byte_s[tier] += _NEWS * (seconds / n_bytes - self._byte_s[tier])

    def compute_s(self, n_tokens: int) -> float | None:
        """Return the seconds to compute ``n_tokens``; None until a prefill was measured."""
        return self._token_s * n_tokens if self.is_measured else None

    def long_compute_s(self, n_tokens: int) -> float | None:
        """Return the seconds to compute ``n_tokens`` of a long prompt; None until a step of one was measured.

        A short step costs more a token, and says nothing of a long one.
        """
        return None if self._long_token_s is None else self._long_token_s * n_tokens

    def load_s(self, tier: Tier, n_bytes: int) -> float | None:
        """Return the measured seconds to restore ``n_bytes`` from a tier; 0 from hot, None until measured."""
        if tier == "hot":
            return 0.0
        return self._byte_s[tier] * n_bytes if tier in self.measured else None

    def back_s(self, tier: Tier, n_tokens: int, n_bytes: int) -> float:
        """Return the seconds to restore KV from ``tier``; "none": to compute it again."""
        return self._byte_s[tier] * n_bytes if tier in self._byte_s else self._token_s * n_tokens


def worth(cost_s: float, n_bytes: int, idle_s: float) -> float:
    """Return seconds to get KV back, per byte and second unused; the lowest worth is evicted first."""
    return cost_s / (max(1, n_bytes) * max(_LEAST_IDLE_S, idle_s))


def leaves_first(
    leaves: Iterable[T], order: Callable[[T], tuple[Any, ...]], freed: Callable[[T], Iterable[T]] = lambda one: ()
) -> Iterator[T]:
    """Yield items to evict, one by one: of those that no other depends on, the first in ``order``.

    The caller evicts each before it asks for the next; ``freed`` then returns what has become a leaf by that and may be
    evicted. O(log n) for each.
    """
    heap = [(order(one), number, one) for number, one in enumerate(leaves)]
    heapq.heapify(heap)
    number = len(heap)
    while heap:
        *_, one = heapq.heappop(heap)
        yield one
        for other in freed(one):
            number += 1
            heapq.heappush(heap, (order(other), number, other))


def victims(
    segments: Iterable[Segment],
    sizes: Mapping[int, int],
    pinned: Collection[int],
    excess_bytes: int,
    now_s: float,
    near: Mapping[int, float] = MappingProxyType({}),
) -> list[Segment]:
    """Return the segments of rows to evict so that ``excess_bytes`` are freed, or all that may be; O(n log n).

    The cost of a segment is its tokens times the lineages that depend on it, those evicted by this call included.
    ``sizes``: allocated bytes by number, resume segments included. ``pinned``: numbers of segments that are never
    evicted (being saved, or an agent's that is pinned); their ancestors neither. ``near``: number -> seconds until a
    segment is expected to be used, where that is known.
    """
    if excess_bytes <= 0:
        return []
    known = {s.number: s for s in segments}
    children = Counter(number for s in known.values() for number in s.needs)
    lineages = _lineages(known)

    def order(s: Segment) -> tuple[float, float, int]:
        idle_s = min(max(now_s - s.used_s, 0.0), near.get(s.number, math.inf)) + 1.0
        return worth(s.n_tokens * lineages[s.number], sizes[s.number], idle_s), s.used_s, -s.number

    def freed(s: Segment) -> Iterator[Segment]:
        for number in s.needs:
            children[number] -= 1
            if not children[number] and number in known and number not in pinned:
                yield known[number]

    chosen: list[Segment] = []
    leaves = [s for s in known.values() if not children[s.number] and s.number not in pinned]
    for found in leaves_first(leaves, order, freed):
        if excess_bytes <= 0:
            break
        chosen.append(found)
        excess_bytes -= sizes[found.number]
    return chosen


def _lineages(known: Mapping[int, Segment]) -> Counter[int]:
    """Count the lineages that depend on each segment: its leaves, and those of segments that share its rows.

    Parents have smaller numbers than children.
    """
    parents = {s.parent_number for s in known.values()}
    found = Counter({number: 1 for number in known if number not in parents})
    for number in sorted(known, reverse=True):
        if (parent := known[number].parent_number) is not None:
            found[parent] += found[number]
    sharing = Counter[int]()
    for number, segment in known.items():
        if segment.source_number is not None:
            sharing[segment.source_number] += found[number]
    return found + sharing
