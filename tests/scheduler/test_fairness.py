"""Who runs next: priority, then who came first; agents in turn; nobody for ever last."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from attrs import define

from agent_memory import Config, EchoRunner, Generation, Memory
from tests.parts.faulty import Faults, with_faults
from tests.parts.waiting import ENDED, PATIENCE_S, outcome, wait_for


@define
class Counter:
    """A Memory that decodes few rows at once, and the order in which requests got their first token."""

    memory: Memory
    faults: Faults
    started: list[str]

    def order(self, asked: list[tuple[str, int, str | None]], n_before: int = 1) -> list[str]:
        """Start order of requests (text, priority, agent), all given while ``n_before`` others are in a step."""
        before = [self.memory.stream("before all others, at length", max_tokens=30) for _ in range(n_before)]
        wait_for(lambda: all(handle.state == "decode" for handle in before))
        del self.started[:]
        with self.faults.hold("step"):
            handles = [self.memory.stream(t, priority=p, agent=a, max_tokens=30) for t, p, a in asked]
        for handle in handles:
            handle.result(PATIENCE_S)
        return self.started


def _counter(max_batch: int, delay_s: float = 0.0) -> Iterator[Counter]:
    started: list[str] = []

    def reply(asked: str, _: object) -> str:
        started.append(asked)
        return asked * 20

    runner = EchoRunner(reply, delay_s=delay_s)
    faults = with_faults(runner)
    with Memory(runner, ":memory:", config=Config(chunk_tokens=16, prefill_tokens=16, max_batch=max_batch)) as memory:
        yield Counter(memory, faults, started)


@pytest.fixture
def one_row() -> Iterator[Counter]:
    """One row at a time: order is visible."""
    yield from _counter(1, 0.002)


@pytest.fixture
def two_rows() -> Iterator[Counter]:
    """Two rows at a time."""
    yield from _counter(2, 0.002)


def test_first_come_first_served(one_row: Counter) -> None:
    texts = [f"request {n}" for n in range(6)]
    assert one_row.order([(text, 0, None) for text in texts]) == texts


def test_a_higher_priority_goes_first_and_age_decides_among_equals(one_row: Counter) -> None:
    asked = [("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0), ("f", 7)]
    assert one_row.order([(text, priority, None) for text, priority in asked]) == ["f", "b", "d", "a", "e", "c"]


def test_requests_of_one_agent_keep_their_order_and_another_agent_does_not_wait_for_them(two_rows: Counter) -> None:
    asked = [("ann 1", 0, "ann"), ("ann 2", 0, "ann"), ("ann 3", 0, "ann"), ("bob 1", 0, "bob")]
    assert two_rows.order(asked) == ["ann 1", "bob 1", "ann 2", "ann 3"]
    said = [m.content for m in two_rows.memory.agent("ann").messages if m.role == "user"]
    assert said == ["ann 1", "ann 2", "ann 3"]


def test_turns_of_one_agent_keep_their_order_whatever_their_priorities(one_row: Counter) -> None:
    one_row.order([("first", 0, "ann"), ("second", 9, "ann"), ("third", 3, "ann")])
    said = [m.content for m in one_row.memory.agent("ann").messages if m.role == "user"]
    assert said == ["first", "second", "third"], "a conversation is not reordered"


class _Crowd:
    """Threads that keep more than enough short requests in the queue until they are told to stop."""

    def __init__(self, memory: Memory, *, priority: int, max_tokens: int, text: str) -> None:
        self._over, self._errors = threading.Event(), list[BaseException]()

        def ask(number: int) -> None:
            while not self._over.is_set():
                try:
                    memory.generate(f"{text} {number}", priority=priority, max_tokens=max_tokens)
                except BaseException as error:  # noqa: BLE001 - looked at in ``stop``
                    self._errors.append(error)
                    return

        self._threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(6)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let them end."""
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert self._errors == []


def _is_served(handle: Generation) -> bool:
    until = time.monotonic() + PATIENCE_S
    while handle.state not in ENDED and time.monotonic() < until:
        time.sleep(0.01)
    return handle.state == "done"


def test_a_low_priority_does_not_starve_while_higher_ones_keep_coming(
    one_row: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_memory.scheduler.waiting.AGE_S", 1.0)
    crowd = _Crowd(one_row.memory, priority=1, max_tokens=4, text="in a hurry")
    try:
        wait_for(lambda: len(one_row.started) > 6)
        low = one_row.memory.stream("no hurry", priority=0, max_tokens=4)
        assert _is_served(low), f"{low} was overtaken for {PATIENCE_S} s ({len(one_row.started)} requests)"
    finally:
        crowd.stop()


def test_a_large_request_does_not_starve_while_small_ones_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_memory.scheduler.starting.AGE_S", 1.0)
    runner = EchoRunner(lambda asked, _: asked * 400, delay_s=0.001)
    token = runner.layout.token_bytes
    config = Config(chunk_tokens=16, prefill_tokens=16, hot_bytes=2048 * token)
    with Memory(runner, ":memory:", config=config) as memory:
        crowd = _Crowd(memory, priority=0, max_tokens=24, text="small")
        try:
            wait_for(lambda: memory.stats().requests > 12)
            large = memory.stream("large", max_tokens=1400)
            assert _is_served(large), f"{large} waited for {PATIENCE_S} s ({memory.stats().requests} requests)"
        finally:
            crowd.stop()


def test_while_a_request_waits_for_bytes_those_that_run_go_on_and_it_follows() -> None:
    runner = EchoRunner(lambda asked, _: asked * 400, delay_s=0.001)
    config = Config(chunk_tokens=16, prefill_tokens=16, hot_bytes=2048 * runner.layout.token_bytes)
    with Memory(runner, ":memory:", config=config) as memory:
        running = memory.stream("running", max_tokens=1000)
        wait_for(lambda: running.state == "decode")
        waiting = memory.stream("waiting", max_tokens=1400)
        time.sleep(0.05)
        assert waiting.state == "queued", "the two together would break the budget"
        assert len(outcome(running).token_ids) == 1000  # type: ignore[union-attr]
        assert len(outcome(waiting).token_ids) == 1400  # type: ignore[union-attr]
