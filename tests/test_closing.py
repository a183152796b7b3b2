"""Closing: every close() returns when the Memory is closed, whoever calls it, and none waits for itself."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import EchoRunner, Memory
from tests.waiting import ENDED, PATIENCE_S, wait_for, within


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
