"""How often a word stands in some items and around each: counts are looked up once, neighbours are places beside them.

Neighbours have consecutive ids within a block. So the items and all that is near them are a few hundred stretches of
consecutive ids, laid end to end in one array: an item's neighbour is the next element, and a word costs one search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from agent_memory.recall.context_tables import BLOCK

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Posting = tuple[Ids, Floats]  #: items that have a word, in order, and how often each has it

AROUND = (0.5, 0.25, 0.12)  #: what a word counts that stands one, two, three items away
SHIFTS = tuple(step for distance in range(1, len(AROUND) + 1) for step in (-distance, distance))


@frozen(eq=False)
class Places:
    """Which items have a word."""

    ids: Ids = field(repr=False, factory=lambda: np.zeros(0, np.int64))  #: in order; none where the word is frequent
    counts: Floats = field(repr=False, factory=lambda: np.zeros(0))  #: how often each has it
    n_items: int = 0  #: how many; of a frequent word up to what was asked for
    is_frequent: bool = False  #: it stands more often than was asked for


@frozen(eq=False)
class Around:
    """Some items, and what is within reach of them: stretches [start, stop) of ids."""

    ids: Ids = field(repr=False)
    starts: Ids = field(repr=False)
    stops: Ids = field(repr=False)
    _offsets: Ids = field(repr=False)  #: where each stretch begins in the laid out array
    _places: Ids = field(repr=False)  #: where each item stands in it
    _near: tuple[tuple[int, NDArray[Any]], ...] = field(repr=False)  #: (step, what an item's neighbour there counts)

    @classmethod
    def of(cls, ids: Ids, *, with_neighbours: bool) -> Around:
        """Lay out ``ids``, sorted and distinct, of which there is at least one."""
        reach = len(AROUND) if with_neighbours else 0
        is_apart = np.diff(ids) > 2 * reach + 1
        starts = ids[np.concatenate([[True], is_apart])] - reach
        stops = ids[np.concatenate([is_apart, [True]])] + reach + 1
        offsets = np.cumsum(stops - starts) - (stops - starts)
        stretch = np.concatenate([[0], np.cumsum(is_apart)])
        places = ids - starts[stretch] + offsets[stretch]
        near = tuple(
            (step, AROUND[abs(step) - 1] * ((ids + step) // BLOCK == ids // BLOCK))
            for step in (SHIFTS if with_neighbours else ())
        )
        return cls(ids, starts, stops, offsets, places, near)

    def counts(self, posting: Posting) -> tuple[Floats, Floats]:
        """Return how often a word stands in each item, and that with its neighbours, which count less."""
        having, counts = posting
        laid = np.zeros(int(self._offsets[-1] + self.stops[-1] - self.starts[-1]))
        stretch = np.searchsorted(self.starts, having, "right") - 1
        is_here = (stretch >= 0) & (having < self.stops[stretch])
        stretch, having = stretch[is_here], having[is_here]
        laid[self._offsets[stretch] + having - self.starts[stretch]] = counts[is_here]
        alone = laid[self._places]
        around = alone.copy()
        for step, weight in self._near:
            around += weight * laid[self._places + step]
        return alone, around
