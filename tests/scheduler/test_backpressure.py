"""A line of a given length: one request more is refused at once, and whoever leaves it makes room for another."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent_memory import CancelledError, Config, EchoRunner, Generation, Memory, QueueFullError, Reply, RequestError
from tests.parts.faulty import Faults, with_faults
from tests.parts.waiting import PATIENCE_S, outcome, wait_for

LIMIT = 3


@contextmanager
def _full(**config: int) -> Iterator[tuple[Memory, Faults, Generation, list[Generation]]]:
    """A Memory of one row: one request decodes, LIMIT wait."""
    runner = EchoRunner(lambda asked, _: asked * 300, delay_s=0.001)
    faults = with_faults(runner)
    with Memory(runner, ":memory:", config=Config(max_batch=1, max_waiting=LIMIT, **config)) as memory:
        running = memory.stream("running ", max_tokens=2_000)
        wait_for(lambda: running.state == "decode")
        yield memory, faults, running, [memory.stream(f"waiting {n} ", max_tokens=3) for n in range(LIMIT)]


def test_one_more_than_may_wait_is_refused_with_the_numbers_and_computes_and_creates_nothing() -> None:
    with _full() as (memory, _, running, waiting):
        for ask in (memory.stream, memory.generate, memory.prefill):
            with pytest.raises(QueueFullError, match=r"3 requests wait .* Config.max_waiting is 3") as caught:
                ask("one more", agent="nobody yet")
            assert (caught.value.n_waiting, caught.value.limit) == (LIMIT, LIMIT)
        assert [info.name for info in memory.agents()] == []
        assert [one.state for one in waiting] == ["queued"] * LIMIT, "the others wait on"
        running.cancel()
        assert [type(outcome(one)) for one in waiting] == [Reply] * LIMIT
        assert memory.generate("now there is room", max_tokens=1).usage.output_tokens == 1


def _cancelled(memory: Memory, faults: Faults, running: Generation, waiting: list[Generation]) -> None:
    waiting[0].cancel()
    assert isinstance(outcome(waiting.pop(0)), CancelledError)


def _started(memory: Memory, faults: Faults, running: Generation, waiting: list[Generation]) -> None:
    running.cancel()
    wait_for(lambda: waiting[0].state != "queued")


def _failed_to_start(memory: Memory, faults: Faults, running: Generation, waiting: list[Generation]) -> None:
    faults.fail("empty")
    running.cancel()
    outcome(waiting.pop(0))


def _all_failed(memory: Memory, faults: Faults, running: Generation, waiting: list[Generation]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory._engine.call(interrupt)
    assert [type(outcome(one)) for one in waiting] == [KeyboardInterrupt] * LIMIT
    waiting.clear()


@pytest.mark.parametrize(
    ("leave", "n_free"), [(_cancelled, 1), (_started, 1), (_failed_to_start, 2), (_all_failed, LIMIT)]
)
def test_who_leaves_the_line_leaves_a_place_and_no_more(leave: Callable[..., None], n_free: int) -> None:
    with _full() as (memory, faults, running, waiting):
        leave(memory, faults, running, waiting)
        if leave is _all_failed:  # the engine is idle: it is kept busy again
            running = memory.stream("running ", max_tokens=2_000)
            wait_for(lambda: running.state == "decode")
        with faults.hold("step"):
            more = [memory.stream("one more ", max_tokens=2) for _ in range(n_free)]
            with pytest.raises(QueueFullError):
                memory.stream("too many")
        running.cancel()
        assert [type(outcome(one)) for one in more] == [Reply] * n_free


def test_a_request_that_was_cancelled_has_no_place_from_that_moment_on() -> None:
    with _full() as (memory, faults, running, waiting):
        with faults.hold("step"):  # no tick comes in between
            for handle in waiting:
                handle.cancel()
            more = [memory.stream("one more ", max_tokens=2) for _ in range(LIMIT)]
            with pytest.raises(QueueFullError, match="3 requests wait"):
                memory.stream("too many")
        running.cancel()
        assert [type(outcome(one)) for one in waiting] == [CancelledError] * LIMIT
        assert [type(outcome(one)) for one in more] == [Reply] * LIMIT


def test_of_many_threads_no_more_get_a_place_than_there_are() -> None:
    with _full() as (memory, _, running, waiting):
        waiting.pop().cancel()
        wait_for(lambda: not memory._engine.call(lambda: len(memory._engine._loop.waiting) - LIMIT + 1))
        got: list[object] = []

        def ask() -> None:
            try:
                got.append(memory.stream("a crowd ", max_tokens=1))
            except RequestError as error:
                got.append(error)

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert sorted(type(one).__name__ for one in got) == ["Generation"] + ["QueueFullError"] * 15
        running.cancel()


def test_a_batch_gets_a_place_for_each_of_its_prompts_or_none_starts() -> None:
    runner = EchoRunner()
    with Memory(runner, ":memory:", config=Config(max_batch=1, max_waiting=LIMIT)) as memory:
        for _ in range(20):
            assert len(memory.batch(["same", "each", "time"], max_tokens=1)) == LIMIT
        n_computed = runner.calls.computed
        with pytest.raises(QueueFullError, match="0 requests wait to be started, 4 more") as caught:
            memory.batch(["one", "too", "many", "prompts"])
        assert (caught.value.n_asked, runner.calls.computed) == (4, n_computed)


def test_a_line_without_a_limit_takes_all() -> None:
    with Memory(EchoRunner(delay_s=0.001), ":memory:", config=Config(max_batch=1)) as memory:
        handles = [memory.stream(f"{n}", max_tokens=2) for n in range(100)]
        assert [type(outcome(handle)) for handle in handles] == [Reply] * 100


def test_the_error_can_be_pickled_with_its_numbers() -> None:
    error = pickle.loads(pickle.dumps(QueueFullError(7, 8, 2)))
    assert (error.n_waiting, error.limit, error.n_asked) == (7, 8, 2)
    assert "7 requests wait to be started, 2 more" in str(error)
