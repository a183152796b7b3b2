"""Closing: every close() returns when the Memory is closed, whoever calls it, and none waits for itself."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    ClosedError,
    Config,
    EchoRunner,
    Generation,
    Memory,
    Reply,
    UnsupportedParameterError,
)
from tests.parts.waiting import ENDED, PATIENCE_S, outcome, wait_for, within


class Gate:
    """Holds a Memory's closing before its store lets go, and runs ``meanwhile`` there."""

    def __init__(self, memory: Memory, meanwhile: Any = lambda: None) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._end, self._meanwhile = memory._store._io.close, meanwhile
        memory._store._io.close = self._hold  # type: ignore[method-assign]

    def _hold(self) -> None:
        self.reached.set()
        self._meanwhile()
        assert self.opened.wait(PATIENCE_S)
        self._end()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.agent("a").say("one")
        yield memory


def test_a_second_close_returns_when_the_first_has_closed(memory: Memory, tmp_path: Path) -> None:
    gate, found = Gate(memory), []

    def close_and_open() -> None:
        memory.close()
        with Memory(EchoRunner(), tmp_path) as again:
            found.append(again.agent("a").info.n_turns)

    first = threading.Thread(target=memory.close)
    first.start()
    assert gate.reached.wait(PATIENCE_S)
    second = threading.Thread(target=close_and_open)
    second.start()
    second.join(0.2)  # time for what is wrong to happen: it opens a store that is still held
    gate.opened.set()
    for thread in (first, second):
        thread.join(PATIENCE_S)
    assert found == [1]


def test_closing_again_from_within_closing_waits_for_nothing(memory: Memory) -> None:
    gate = Gate(memory, memory.close)
    gate.opened.set()
    within(memory.close)
    assert gate.reached.is_set()
    within(memory.close)


def _on_the_engine_thread(memory: Memory) -> None:
    within(lambda: memory._engine.call(memory.close))


def _on_the_io_thread(memory: Memory) -> None:
    within(lambda: memory._store._io.call(memory.close))


def _in_a_processor(memory: Memory) -> None:
    def closing(ids: Any, logits: Any) -> Any:
        memory.close()
        memory.close()
        return logits

    handle = memory.stream("two", logits_processors=[closing])
    wait_for(lambda: handle.state in ENDED)


@pytest.mark.parametrize("close", [_on_the_engine_thread, _on_the_io_thread, _in_a_processor])
def test_a_memory_may_be_closed_on_a_thread_of_its_own(
    memory: Memory, tmp_path: Path, close: Callable[[Memory], None]
) -> None:
    close(memory)
    within(memory.close)
    with Memory(EchoRunner(), tmp_path) as again:
        assert again.agent("a").messages[0].content == "one"


def test_a_memory_that_is_collected_on_a_thread_of_its_own_ends_it(tmp_path: Path) -> None:
    gc.collect()
    before = set(threading.enumerate())
    memory = Memory(EchoRunner(), tmp_path)
    memory.agent("a").say("one")
    box, io = [memory], memory._store._io
    del memory
    io.submit(box.clear)
    wait_for(lambda: not box and set(threading.enumerate()) <= before, "its threads to end")
    with Memory(EchoRunner(), tmp_path) as again:
        assert again.agent("a").info.n_turns == 1


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Memory, list[Generation]]]:
    """A Memory of one row, with a request that decodes for about a second and one that waits for it."""
    runner = EchoRunner(lambda asked, _: asked * 200, delay_s=0.002)
    with Memory(runner, tmp_path, config=Config(max_batch=1, lookup="off")) as memory:
        first = memory.agent("a").stream("one ", max_tokens=400)
        wait_for(lambda: first.state == "decode")
        yield memory, [first, memory.agent("b").stream("two ", max_tokens=5)]


Slow = tuple[Memory, list[Generation]]


def _close(memory: Memory, **how: float) -> None:
    within(lambda: memory.close(**how))


def _aclose(memory: Memory, **how: float) -> None:
    within(lambda: asyncio.run(memory.aclose(**how)))


def _in_a_processor_of_its_own(memory: Memory, **how: float) -> None:
    within(lambda: memory._engine.call(lambda: memory.close(**how)))
    within(memory._engine._thread.join)  # type: ignore[union-attr]


@pytest.mark.parametrize("close", [_close, _aclose, _in_a_processor_of_its_own])
def test_closing_with_time_to_drain_lets_all_that_was_asked_end_and_takes_no_more(
    slow: Slow, tmp_path: Path, close: Callable[..., None]
) -> None:
    memory, handles = slow
    refused: list[BaseException] = []

    def ask_meanwhile() -> None:
        wait_for(lambda: memory._asking.is_closed)
        try:
            memory.generate("too late")
        except ClosedError as error:
            refused.append(error)

    late = threading.Thread(target=ask_meanwhile)
    late.start()
    close(memory, drain_s=PATIENCE_S)
    late.join(PATIENCE_S)
    assert [one.usage.output_tokens for one in map(outcome, handles) if isinstance(one, Reply)] == [400, 5]
    assert len(refused) == 1
    within(memory.close)
    with Memory(EchoRunner(), tmp_path) as again:
        assert [again.agent(name).info.n_turns for name in "ab"] == [1, 1]


def test_what_has_not_ended_in_time_fails_and_is_kept(slow: Slow) -> None:
    memory, handles = slow
    started = time.perf_counter()
    within(lambda: memory.close(drain_s=0.1))
    assert time.perf_counter() - started >= 0.1
    assert [type(outcome(handle)) for handle in handles] == [ClosedError, ClosedError]


def _at_once(memory: Memory) -> None:
    within(memory.close)


def _leave_by_an_exception(memory: Memory) -> None:
    with pytest.raises(ZeroDivisionError), memory:
        raise ZeroDivisionError


def _end_another_drain(memory: Memory) -> None:
    draining = threading.Thread(target=lambda: memory.close(drain_s=600))
    draining.start()
    wait_for(lambda: memory._asking.is_closed)
    within(memory.close)
    draining.join(PATIENCE_S)
    assert not draining.is_alive()


def _cancel_the_closing_task(memory: Memory) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(memory.aclose(drain_s=600))
        await asyncio.to_thread(wait_for, lambda: memory._asking.is_closed)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    within(lambda: asyncio.run(main()))
    within(memory.close)


def _interrupt_the_engine(memory: Memory) -> None:
    draining = threading.Thread(target=lambda: memory.close(drain_s=600))
    draining.start()
    wait_for(lambda: memory._asking.is_closed)

    def interrupt() -> None:
        raise SystemExit

    with pytest.raises(BaseException):  # noqa: B017 - SystemExit, or ClosedError where the engine has ended by then
        memory._engine.call(interrupt)
    draining.join(PATIENCE_S)
    assert not draining.is_alive()


@pytest.mark.parametrize(
    "end",
    [_at_once, _leave_by_an_exception, _end_another_drain, _cancel_the_closing_task, _interrupt_the_engine],
    ids=lambda end: end.__name__.strip("_"),
)
def test_nothing_drains_for_ever_and_without_being_asked_nothing_drains(slow: Slow, end: Callable[..., None]) -> None:
    memory, handles = slow
    end(memory)
    assert all(isinstance(outcome(handle), ClosedError | SystemExit) for handle in handles)


@pytest.mark.parametrize("wrong", [-1, float("nan"), "30", None, True])
def test_a_time_that_is_none_is_refused_and_closes_nothing(memory: Memory, wrong: Any) -> None:
    with pytest.raises(UnsupportedParameterError, match="drain_s"):
        memory.close(drain_s=wrong)
    assert memory.generate("and on").text == "and on"


DRAINING = """
import signal, sys, time
from agent_memory import EchoRunner, Memory

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background

memory = Memory(EchoRunner(lambda asked, _: asked * 9000, delay_s=0.002), sys.argv[1])
memory.agent("a").say("one", max_tokens=3)
handle = memory.agent("b").stream("two", max_tokens=9000)
while handle.state != "decode":
    time.sleep(0.001)
if sys.argv[2] == "exit":
    sys.exit()
try:
    print("running", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("draining", flush=True)
    memory.close(drain_s=600)
"""


def _child(path: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRAINING, str(path), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_ctrl_c_ends_the_draining_and_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    with _child(tmp_path, "interrupted") as child:
        assert child.stdout is not None
        for line in ("running", "draining"):
            assert child.stdout.readline().strip() == line
            time.sleep(0.1)  # it is to be inside ``sleep`` or ``close``
            child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE_S)
    assert "KeyboardInterrupt" in errors
    with Memory(EchoRunner(), tmp_path) as again:
        assert [info.n_turns for info in again.agents() if info.n_turns] == [1]


def test_the_end_of_the_interpreter_does_not_drain(tmp_path: Path) -> None:
    with _child(tmp_path, "exit") as child:
        child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0
    with Memory(EchoRunner(), tmp_path) as again:
        assert [info.n_turns for info in again.agents() if info.n_turns] == [1]


def test_a_memory_that_is_collected_does_not_drain(tmp_path: Path) -> None:
    memory = Memory(EchoRunner(lambda asked, _: asked * 9000, delay_s=0.002), tmp_path)
    handle = memory.stream("one", max_tokens=9000)
    wait_for(lambda: handle.state == "decode")
    del memory
    gc.collect()
    assert isinstance(outcome(handle), ClosedError)
