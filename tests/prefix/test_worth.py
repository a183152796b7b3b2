"""What is worth keeping: recency, cost and size, as documented."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.prefix.pieces import Segment
from agent_memory.prefix.worth import Costs, leaves_first, victims, worth

seconds = st.floats(1e-5, 1e5)
sizes = st.integers(1, 1 << 40)


@given(cost_s=seconds, n_bytes=sizes, idle_s=seconds, longer=st.floats(1.01, 1e3))
def test_of_two_that_cost_the_same_the_longer_unused_is_worth_less(
    cost_s: float, n_bytes: int, idle_s: float, longer: float
) -> None:
    assert worth(cost_s, n_bytes, idle_s * longer) < worth(cost_s, n_bytes, idle_s)


@given(cost_s=seconds, n_bytes=st.integers(1, 1 << 30), idle_s=seconds, times=st.integers(2, 100))
def test_what_costs_several_times_as_much_stays_several_times_as_long(
    cost_s: float, n_bytes: int, idle_s: float, times: int
) -> None:
    assert worth(times * cost_s, n_bytes, times * idle_s) == pytest.approx(worth(cost_s, n_bytes, idle_s))
    assert worth(times * cost_s, times * n_bytes, idle_s) == pytest.approx(worth(cost_s, n_bytes, idle_s))


def test_costs_follow_what_is_measured_and_ignore_what_says_nothing() -> None:
    costs = Costs()
    assert costs.back_s("warm", 100, 10_000_000) < costs.back_s("cold", 100, 10_000_000) < costs.back_s("none", 100, 0)
    for _ in range(100):
        costs.computed(10, 5.0)
        costs.loaded("cold", 1000, 2.0)
    assert costs.back_s("none", 4, 1 << 40) == pytest.approx(2.0)
    assert costs.back_s("cold", 1, 500) == pytest.approx(1.0)
    costs.computed(0, 9.0)
    costs.loaded("hot", 1000, 9.0)
    costs.loaded("cold", 0, 9.0)
    assert costs.back_s("none", 4, 0) == pytest.approx(2.0)
    assert costs.back_s("cold", 1, 500) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=30))
def test_leaves_go_first_and_among_them_always_the_one_worth_least(rows: list[tuple[int, int]]) -> None:
    parents = {number: parent if parent < number else None for number, (parent, _) in enumerate(rows)}
    there = set(parents)

    def is_leaf(one: int) -> bool:
        return not any(parents[other] == one for other in there)

    def order(one: int) -> tuple[int, int]:
        return rows[one][1], one

    def freed(one: int) -> list[int]:
        parent = parents[one]
        return [parent] if parent is not None and is_leaf(parent) else []

    for one in leaves_first([number for number in parents if is_leaf(number)], order, freed):
        assert one == min(filter(is_leaf, there), key=order)
        there.remove(one)
    assert not there


@given(st.lists(st.tuples(st.integers(1, 5000), sizes, st.floats(0, 1e6), st.booleans()), min_size=1, max_size=30))
def test_segments_leave_the_disk_in_the_order_of_worth_and_pinned_ones_never(
    rows: list[tuple[int, int, float, bool]],
) -> None:
    now_s = 1e6
    segments = [
        Segment(
            number=n, identity="", parent=b"", n_tokens=n_tokens, chunk_tokens=16, exactness="exact", codec="exact",
            host="", used_s=used_s,
        )
        for n, (n_tokens, _, used_s, _) in enumerate(rows)
    ]  # fmt: skip
    sizes = {n: n_bytes for n, (_, n_bytes, _, _) in enumerate(rows)}
    pinned = {n for n, (_, _, _, is_pinned) in enumerate(rows) if is_pinned}
    gone = [segment.number for segment in victims(segments, sizes, pinned, sum(sizes.values()), now_s)]
    values = [worth(rows[n][0], rows[n][1], now_s - rows[n][2] + 1.0) for n in gone]
    assert values == sorted(values)
    assert set(gone) == {*sizes} - pinned


def test_segments_that_are_expected_soon_leave_the_disk_after_others() -> None:
    segments = [
        Segment(
            number=n, identity="", parent=b"", n_tokens=16, chunk_tokens=16, exactness="exact", codec="exact",
            host="", used_s=used_s,
        )
        for n, used_s in enumerate((10.0, 20.0, 30.0))
    ]  # fmt: skip
    sizes = dict.fromkeys(range(3), 100)

    def gone(near: dict[int, float]) -> list[int]:
        return [segment.number for segment in victims(segments, sizes, (), 200, 40.0, near)]

    assert gone({}) == [0, 1]
    assert gone({0: 2.0}) == [1, 2]
    assert gone({0: 2.0, 1: 1e6}) == [1, 2]  # expected later than it was unused: what is known of its use counts
