"""Words of items and of their neighbours: the laid out array says what counting one by one says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.recall.around import AROUND, Around
from agent_memory.recall.context_tables import BLOCK

IDS = st.sets(st.integers(BLOCK - 12, 3 * BLOCK + 12), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(ids=IDS, having=st.dictionaries(st.integers(BLOCK - 16, 3 * BLOCK + 16), st.integers(1, 4), max_size=80))
def test_counts_are_those_of_the_neighbours_within_a_block(ids: set[int], having: dict[int, int]) -> None:
    items = np.array(sorted(ids), np.int64)
    words = np.array(sorted(having), np.int64), np.array([having[item] for item in sorted(having)], np.float64)
    alone, around = Around.of(items, with_neighbours=True).counts(words)
    for place, item in enumerate(items.tolist()):
        expected = float(having.get(item, 0))
        assert alone[place] == expected
        for distance, weight in enumerate(AROUND, start=1):
            for near in (item - distance, item + distance):
                expected += weight * having.get(near, 0) * (near // BLOCK == item // BLOCK)
        assert abs(around[place] - expected) < 1e-9
    own, same = Around.of(items, with_neighbours=False).counts(words)
    assert own.tolist() == same.tolist() == alone.tolist()


@settings(max_examples=100, deadline=None)
@given(ids=IDS)
def test_stretches_hold_every_item_and_all_within_reach_once(ids: set[int]) -> None:
    around = Around.of(np.array(sorted(ids), np.int64), with_neighbours=True)
    stretches = list(zip(around.starts.tolist(), around.stops.tolist(), strict=True))
    assert all(stop <= start for (_, stop), (start, _) in zip(stretches, stretches[1:], strict=False))
    covered = {one for start, stop in stretches for one in range(start, stop)}
    reach = len(AROUND)
    assert covered == {one for item in ids for one in range(item - reach, item + reach + 1)}
