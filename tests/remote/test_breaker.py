"""A remote that failed is asked again after a while, by one caller; a link is judged by what it moved."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.errors import ClosedError
from agent_memory.remote.breaker import Breaker
from agent_memory.remote.failures import BucketError, ObjectDamagedError
from agent_memory.remote.rates import FORGET_S, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_failure_is_one_warning_and_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    breaker = Breaker("s3://b", pause_s=2, max_pause_s=7, clock=clock)
    caplog.set_level(logging.WARNING, "agent_memory.remote")
    assert breaker.allows()
    assert breaker.allows()
    for _ in range(2):  # both were on their way
        breaker.failed(RuntimeError("dead"))
    for pause in (2, 4, 7, 7):
        clock.now += pause - 0.1
        assert not breaker.allows()
        clock.now += 0.1
        assert breaker.allows()
        assert not breaker.allows()  # one trial at a time
        breaker.failed(RuntimeError("dead"))
    assert [record.message.split(".")[0] for record in caplog.records] == ["dead"]
    figures = breaker.figures()
    assert (figures.n_failed, figures.n_outages, figures.n_skipped) == (6, 1, 8)
    assert figures.is_open
    assert figures.last_error == "dead"
    clock.now += 7
    assert breaker.allows()
    breaker.abandoned()
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
    assert breaker.allows()
    breaker.failed(RuntimeError("again"))
    assert len(caplog.records) == 2


def test_a_call_records_how_it_ended_and_is_not_made_during_a_pause() -> None:
    clock = Clock()
    breaker, made = Breaker("b", pause_s=1, clock=clock), []

    def ends(error: BaseException | None) -> str:
        made.append(error)
        if error is not None:
            raise error
        return "answer"

    failure = BucketError("timeout", "b", "reading", "no answer")
    assert breaker.call(lambda: ends(None)) == "answer"
    with pytest.raises(BucketError):
        breaker.call(lambda: ends(failure))
    assert breaker.call(lambda: ends(None)) is None
    assert not breaker.is_due()
    clock.now += 1
    assert breaker.is_due()
    for cancelled in (KeyboardInterrupt(), ClosedError("closed")):  # of the one trial: the next caller has it
        with pytest.raises(type(cancelled)):
            breaker.call(lambda cancelled=cancelled: ends(cancelled))  # type: ignore[misc]
    with pytest.raises(ObjectDamagedError):  # an answer, if no good one
        breaker.call(lambda: ends(ObjectDamagedError("cut")))
    figures = breaker.figures()
    assert (figures.n_failed, figures.n_skipped, figures.is_open) == (1, 2, False)
    assert len(made) == 5


@given(st.lists(st.sampled_from(["ask", "good", "bad", "leave", "wait"]), max_size=60))
def test_no_order_of_outcomes_locks_a_remote_out(steps: list[str]) -> None:
    clock = Clock()
    breaker, running = Breaker("b", pause_s=1, max_pause_s=8, clock=clock), 0
    for step in steps:
        if step == "ask":
            running += breaker.allows()
        elif step == "wait":
            clock.now += 1
        elif running:
            running -= 1
            {"good": breaker.succeeded, "leave": breaker.abandoned}.get(step, lambda: breaker.failed(OSError()))()
    for _ in range(running):
        breaker.abandoned()
    clock.now += 8
    assert breaker.allows()


def test_fetching_is_chosen_where_it_is_faster() -> None:
    clock = Clock()
    rates = Rates(clock)
    assert rates.is_worth(10**9, 1, 1e9)  # nothing is known: that fetch measures
    rates.answered(0.1)
    rates.moved(100_000_000, 1.1)
    figures = rates.figures()
    assert figures.bytes_per_s == pytest.approx(1e8)
    assert figures.latency_s == pytest.approx(0.1)
    assert rates.is_worth(100_000_000, 1000, 900)  # 1.1 s against 1.11
    assert not rates.is_worth(100_000_000, 1000, 920)
    assert rates.is_worth(100_000_000, 1000, None)
    assert (rates.figures().n_fetched, rates.figures().n_computed) == (3, 1)
    rates.moved(10, 60)  # tells nothing of the link
    assert rates.figures().bytes_per_s == pytest.approx(1e8)
    clock.now += FORGET_S + 1
    assert rates.is_worth(100_000_000, 1000, 920)  # a slow link is measured again


@given(st.lists(st.floats(1e6, 1e9), min_size=1, max_size=20), st.floats(0, 600))
def test_a_link_lies_between_what_was_measured(links: list[float], pause: float) -> None:
    clock = Clock()
    rates = Rates(clock)
    for link in links:
        rates.moved(10_000_000, 10_000_000 / link)
        clock.now += pause
    found = rates.figures().bytes_per_s
    if pause <= FORGET_S:
        assert found is not None
        assert min(links) * 0.999 <= found <= max(links) * 1.001
