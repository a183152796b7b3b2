from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent_memory.generation import Feed
from agent_memory.scheduler.request import Request
from agent_memory.scheduler.waiting import AGE_S, Waiting


def _request(created: float, priority: int = 0) -> Request:
    nobody: Any = None  # is not asked while a request waits
    return Request(feed=Feed(), asker=nobody, created=created, priority=priority)


def _line(*requests: Request) -> Waiting:
    line = Waiting()
    for request in requests:
        line.add(request)
    return line


def test_priority_comes_first_and_age_within_it() -> None:
    low, early, late, high = _request(0.0, -1), _request(1.0), _request(2.0), _request(3.0, 5)
    assert _line(late, high, low, early).in_order(3.0) == [high, early, late, low]


def test_who_has_waited_long_enough_comes_before_any_newer_priority() -> None:
    old = _request(0.0)
    newer = _request(5 * AGE_S, priority=4)
    assert _line(old, newer).in_order(5 * AGE_S - 0.1) == [newer, old] or newer.created > 5 * AGE_S - 0.1
    assert _line(old, newer).in_order(5 * AGE_S) == [old, newer]


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(-3, 3)), min_size=1, max_size=20))
def test_nobody_is_overtaken_for_ever(arrivals: list[tuple[float, int]]) -> None:
    first = _request(0.0, -3)
    requests = [first, *(_request(created, priority) for created, priority in arrivals)]
    line = _line(*requests)
    late = [r for r in requests if r.created >= 7 * AGE_S]  # six levels lie between -3 and 3
    order = line.in_order(100.0)
    assert sorted(map(id, order)) == sorted(map(id, requests))
    assert all(order.index(first) < order.index(r) for r in late)


def test_an_agents_requests_keep_their_order_and_share_their_hurry() -> None:
    first, second, other = _request(0.0), _request(1.0, 9), _request(0.5, 5)
    first.owner = second.owner = "ann"
    line = _line(second, other, first)
    assert line.in_order(2.0) == [first, other], "only the oldest may start, as soon as the hurried one could"
    line.remove(first)
    assert line.in_order(2.0) == [second, other]


def test_a_request_is_found_by_its_agent_until_it_leaves() -> None:
    request = _request(0.0)
    request.owner = "ann"
    line = _line(request, _request(1.0))
    assert (len(line), line.has_owner("ann"), line.has_owner("bob")) == (2, True, False)
    line.remove(request)
    assert (len(line), line.has_owner("ann")) == (1, False)
