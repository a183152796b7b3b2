"""A request can be ended in every state, in every way: the agent's log is as before the turn, the next turn is fine.

The engine is held in a call of its batch while the request is ended, so that each state is met for certain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import define, field

from agent_memory import CancelledError, Config, EchoRunner, Generation, Memory, RequestTimeoutError
from tests.parts.faulty import Faults, with_faults
from tests.parts.waiting import PATIENCE_S, cancel_a_task, outcome, shown, wait_for

LONG = "an unbelievably long message, of which there is no end in sight. " * 6
#: state of the request -> the call of the batch in which the engine is held meanwhile
STATES = {"queued": "step", "restore": "restore", "prefill": "prefill", "decode": "step"}


@define
class Held:
    """A request in one state, with the engine held; and somebody else's request beside it."""

    memory: Memory
    faults: Faults
    state: str
    before: tuple[Any, ...] = ()
    beside: list[Generation] = field(factory=list)
    hold: ExitStack = field(factory=ExitStack)

    def request(self, **more: Any) -> Generation:
        """Bring a turn of "ann" into the state; the engine stands still until ``release``."""
        self.memory.agent("ann").say("first", max_tokens=20)
        self.memory.evict()
        self.before = shown(self.memory, "ann")
        self.beside = [self._decoding(f"bob {n}") for n in range(2 if self.state == "queued" else 1)]
        if self.state == "queued":  # both rows are taken
            self.hold.enter_context(self.faults.hold("step"))
            handle = self.memory.stream(LONG, agent="ann", **more)
        elif self.state == "decode":
            handle = self.memory.stream(LONG, agent="ann", **more)
            wait_for(lambda: handle.state == "decode" and handle.progress[0] > 2)
            self.hold.enter_context(self.faults.hold("step"))
        else:
            with self.faults.hold("step"):
                handle = self.memory.stream(LONG, agent="ann", **more)
                call = self.faults.hold(STATES[self.state])
            self.hold.enter_context(call)
        assert handle.state == self.state or self.state == "restore", handle
        return handle

    def _decoding(self, name: str) -> Generation:
        handle = self.memory.stream(LONG, agent=name, max_tokens=160)
        wait_for(lambda: handle.state == "decode")
        return handle

    def release(self) -> None:
        """Let the engine go on."""
        self.hold.close()

    def check(self) -> None:
        """The log is as before the turn, its neighbours are unharmed, the next turn is fine."""
        assert shown(self.memory, "ann") == self.before
        assert [outcome(handle).finish for handle in self.beside] == ["length"] * len(self.beside)  # type: ignore[union-attr]
        reply = self.memory.agent("ann").say("second", max_tokens=6)
        assert reply.text == "second"
        assert reply.usage.cached_tokens + reply.usage.computed_tokens == reply.usage.prompt_tokens
        assert shown(self.memory, "ann")[2] == self.before[2] + 1


@pytest.fixture
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Held]:
    """In the state that the test names."""
    runner = EchoRunner(lambda asked, _: asked if len(asked) < 10 else asked * 20, delay_s=0.001)
    faults = with_faults(runner)
    config = Config(chunk_tokens=16, prefill_tokens=16, max_batch=2)
    with Memory(runner, tmp_path, config=config) as memory:
        made = Held(memory, faults, request.param)
        with made.hold:
            yield made


def _cancel(handle: Generation) -> None:
    handle.cancel()


def _leave_the_with_block(handle: Generation) -> None:
    with handle:
        pass


def _raise_in_the_with_block(handle: Generation) -> None:
    with pytest.raises(ZeroDivisionError), handle:
        raise ZeroDivisionError


def _cancel_the_awaiting_task(handle: Generation) -> None:
    async def wait() -> None:
        await handle

    cancel_a_task(wait)


def _cancel_the_iterating_task(handle: Generation) -> None:
    async def read() -> None:
        async for _ in handle:
            pass

    cancel_a_task(read)


def _time_out_waiting(handle: Generation) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_awaited(handle), 0.02)

    asyncio.run(main())


async def _awaited(handle: Generation) -> Any:
    return await handle


def _close_the_iterator(handle: Generation) -> None:
    deltas = cast("Any", iter(handle))
    next(deltas)
    deltas.close()


def _close_the_text(handle: Generation) -> None:
    text = cast("Any", handle.text())
    next(text)
    text.close()


def _close_the_async_iterator(handle: Generation) -> None:
    async def main() -> None:
        deltas = cast("AsyncIterator[Any]", aiter(handle))
        await anext(deltas)
        await cast("Any", deltas).aclose()

    asyncio.run(main())


WAYS = [
    _cancel, _leave_the_with_block, _raise_in_the_with_block, _cancel_the_awaiting_task, _cancel_the_iterating_task,
    _time_out_waiting,
]  # fmt: skip
WITH_TOKENS = [_close_the_iterator, _close_the_text, _close_the_async_iterator]
CASES = [(state, way) for state in STATES for way in WAYS] + [("decode", way) for way in WITH_TOKENS]


def _name(value: Any) -> str:
    return value if isinstance(value, str) else value.__name__.strip("_")


@pytest.mark.parametrize(("held", "way"), CASES, indirect=["held"], ids=_name)
def test_cancelled_in_every_state_and_way(held: Held, way: Callable[[Generation], None]) -> None:
    handle = held.request()
    n_deltas = handle.progress[0] if handle.state == "decode" else 0
    if way is _cancel_the_iterating_task and n_deltas:
        held.release()  # what has been decoded is read at once; then the task waits for more
    way(handle)
    held.release()
    assert isinstance(outcome(handle), CancelledError)
    assert handle.state == "cancelled"
    held.check()


@pytest.mark.parametrize("held", list(STATES), indirect=True)
def test_timed_out_in_every_state(held: Held) -> None:
    handle = held.request(timeout_s=1.0)
    time.sleep(1.1)
    held.release()
    assert isinstance(outcome(handle), RequestTimeoutError)
    assert handle.state == "failed"
    held.check()


@pytest.mark.parametrize("held", list(STATES), indirect=True)
def test_closed_in_every_state(held: Held, tmp_path: Path) -> None:
    handle = held.request()
    held.release()
    held.memory.close()
    found = outcome(handle)
    assert type(found).__name__ == "ClosedError" or handle.state == "done", repr(found)
    if handle.state != "done":
        with Memory(EchoRunner(), tmp_path, config=Config(chunk_tokens=16, prefill_tokens=16)) as again:
            assert shown(again, "ann") == held.before


def test_a_timeout_is_counted_from_the_call_and_an_ended_request_has_none(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        handle = memory.stream("quick", timeout_s=0.5)
        assert handle.result(PATIENCE_S).text == "quick"
        time.sleep(0.6)
        assert memory.generate("and on", max_tokens=20).text == "and on"
        assert handle.state == "done"
