"""Users' own code in the middle of serving: it fails or delays its own request, and leaves no thread behind."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import frozen

from agent_memory import (
    CancelledError,
    ClosedError,
    Config,
    EchoRunner,
    Memory,
    PromptTooLongError,
    Reply,
    RequestError,
    RequestTimeoutError,
)  # fmt: skip
from tests.parts.waiting import PATIENCE_S, outcome, shown, wait_for, within

CONFIG = Config(chunk_tokens=16, prefill_tokens=16, callable_timeout_s=0.3)
#: Run by a Pair that is being made; each test sets its own.
MEANWHILE: list[Callable[[], Any]] = []


@frozen
class Pair:
    a: int
    b: int

    def __attrs_post_init__(self) -> None:
        for work in MEANWHILE:
            work()


PAIR = json.dumps({"a": 1, "b": 2})


@pytest.fixture
def meanwhile() -> Iterator[list[Callable[[], Any]]]:
    yield MEANWHILE
    MEANWHILE.clear()


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Not closed where a test fails: its engine might wait for ever."""
    memory = Memory(EchoRunner(delay_s=0.001), ":memory:", config=CONFIG)
    yield memory
    within(memory.close)


def quiet(ids: Any, logits: Any) -> Any:
    return logits


def callable_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "agent_memory-callable"]


def no_thread_is_left() -> None:
    wait_for(lambda: not callable_threads(), "the end of the threads of users' code")


# what a schema's class does


def test_a_class_that_uses_the_memory_is_answered(memory: Memory, meanwhile: list[Any]) -> None:
    said: list[str] = []
    meanwhile += [lambda: memory.stats(), lambda: said.append(memory.generate("beside").text)]
    reply = within(lambda: memory.agent("ann").say(PAIR, schema=Pair))
    assert said == ["beside"]
    meanwhile.clear()
    assert reply.parsed == Pair(1, 2)
    assert memory.agent("ann").messages[-1].content == PAIR
    no_thread_is_left()


def test_a_class_that_hangs_fails_its_own_request_and_delays_nobody(memory: Memory, meanwhile: list[Any]) -> None:
    release, began = threading.Event(), threading.Event()
    meanwhile += [began.set, lambda: release.wait(PATIENCE_S)]
    long = Memory(EchoRunner(), ":memory:", config=Config(callable_timeout_s=PATIENCE_S))
    try:
        held = long.agent("ann").stream(PAIR, schema=Pair)
        assert began.wait(PATIENCE_S)
        assert within(lambda: long.generate("beside").text) == "beside"
        after = long.agent("ann").stream("next")  # its prompt is not known before the turn is in the log
        assert within(lambda: long.generate("beside").text) == "beside"
        assert (held.state, after.state) == ("decode", "queued")
        with pytest.raises(RequestTimeoutError, match=r"schema's class did not return within 0\.3 s"):
            within(lambda: memory.agent("ann").say(PAIR, schema=Pair))
        assert memory.agent("ann").messages == ()
        release.set()
        assert held.result(PATIENCE_S).parsed == Pair(1, 2)
        assert after.result(PATIENCE_S).text == "next"
        assert len(long.agent("ann").messages) == 4
    finally:
        release.set()
        within(long.close)
    no_thread_is_left()


@pytest.mark.parametrize("how", ["cancelled", "closed", "out of time"])
def test_a_request_ends_while_its_value_is_made(meanwhile: list[Any], how: str) -> None:
    release, began = threading.Event(), threading.Event()
    meanwhile += [began.set, lambda: release.wait(PATIENCE_S)]
    memory = Memory(EchoRunner(), ":memory:", config=Config(callable_timeout_s=1e9))
    try:
        held = memory.agent("ann").stream(PAIR, schema=Pair, timeout_s=1.0 if how == "out of time" else None)
        assert began.wait(PATIENCE_S)
        if how == "cancelled":
            held.cancel()
        if how == "closed":
            within(memory.close)
        expected = {"cancelled": CancelledError, "closed": ClosedError, "out of time": RequestTimeoutError}[how]
        assert isinstance(outcome(held), expected)
        if how != "closed":
            assert memory.agent("ann").messages == ()
            assert within(lambda: memory.agent("ann").say("again").text) == "again"
    finally:
        release.set()
        within(memory.close)
    no_thread_is_left()


def test_what_a_class_raises_fails_its_own_request(memory: Memory, meanwhile: list[Any]) -> None:
    def refuse() -> None:
        raise KeyError("not this one")

    meanwhile.append(refuse)
    memory.agent("ann").say("first")
    before = shown(memory, "ann")
    with pytest.raises(KeyError, match="not this one"):
        within(lambda: memory.agent("ann").say(PAIR, schema=Pair))
    assert shown(memory, "ann") == before


# what is raised and is no Exception


@pytest.mark.parametrize("kind", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", ["processor", "class"])
def test_what_is_no_exception_fails_its_own_request_alone(
    memory: Memory, meanwhile: list[Any], kind: type[BaseException], where: str
) -> None:
    def blunder(*_: Any) -> Any:
        raise kind("mine")

    meanwhile.append(blunder)
    beside = memory.stream("quiet " * 30)
    if where == "processor":
        failed = outcome(memory.stream("hello", logits_processors=[blunder]))
    else:
        failed = outcome(memory.stream(PAIR, schema=Pair))
    assert isinstance(failed, RequestError)
    assert f"raised {kind.__name__}: mine" in str(failed)
    assert isinstance(failed.__cause__, kind)
    assert beside.result(PATIENCE_S).text == "quiet " * 30
    no_thread_is_left()


def test_an_error_whose_contexts_go_in_circles_ends_its_request_alone(memory: Memory) -> None:
    def blunder(ids: Any, logits: Any) -> Any:
        first, second = ValueError("first"), ValueError("second")
        first.__context__, second.__context__ = second, first
        raise first

    failed = outcome(memory.stream("hello", logits_processors=[blunder]))
    assert "first" in str(failed)
    assert within(lambda: memory.generate("beside").text) == "beside"


def test_what_a_processor_returns_becomes_an_array_on_its_own_thread(memory: Memory) -> None:
    threads: set[str] = set()

    class Lazy:
        def __init__(self, logits: Any) -> None:
            self._logits = logits

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            threads.add(threading.current_thread().name)
            return self._logits

    processor: Any = lambda ids, logits: Lazy(logits)
    assert memory.generate("hello", logits_processors=[processor]).text == "hello"
    assert threads == {"agent_memory-callable"}


# when the threads end


def test_handles_and_errors_that_are_kept_keep_no_thread() -> None:
    """Done, failed, cancelled, out of time, refused, never started, and closed on."""
    with Memory(EchoRunner(delay_s=0.001, context_tokens=2000), ":memory:", config=CONFIG) as memory:

        def blunder(ids: Any, logits: Any) -> Any:
            raise ValueError("mine")

        done = memory.stream("hello", logits_processors=[quiet, quiet])
        failed = memory.stream("hello", logits_processors=[quiet, blunder])
        cancelled = memory.stream("hello " * 50, logits_processors=[quiet])
        late = memory.stream("hello " * 300, logits_processors=[quiet], timeout_s=0.01)
        cancelled.cancel()
        kinds = [type(outcome(handle)) for handle in (done, failed, cancelled, late)]
        assert kinds == [Reply, ValueError, CancelledError, RequestTimeoutError]
        with pytest.raises(PromptTooLongError) as refused:
            memory.stream("x" * 5000, logits_processors=[quiet])
        with pytest.raises(PromptTooLongError) as refused_too:
            memory.batch(["short", "x" * 5000], logits_processors=[quiet])
        no_thread_is_left()
        kept = [memory.stream("hello " * 100, agent="ann", logits_processors=[quiet]) for _ in range(3)]
    with pytest.raises(ClosedError) as closed:
        memory.stream("hello", logits_processors=[quiet])
    assert [type(outcome(handle)) for handle in kept] == [ClosedError] * 3
    no_thread_is_left()
    assert [type(one.value) for one in (refused, refused_too, closed)] == [PromptTooLongError] * 2 + [ClosedError]


def test_a_handle_that_is_kept_does_not_keep_what_its_request_held(memory: Memory) -> None:
    class Loud:
        n_alive = 0

        def __init__(self) -> None:
            Loud.n_alive += 1

        def __del__(self) -> None:
            Loud.n_alive -= 1

        def __call__(self, ids: Any, logits: Any) -> Any:
            return logits

    handle = memory.stream("hello", logits_processors=[Loud()])
    assert handle.result(PATIENCE_S).text == "hello"
    within(memory.stats)  # the engine is past that tick
    no_thread_is_left()
    gc.collect()
    assert Loud.n_alive == 0
    handle.cancel()
    assert handle.result(PATIENCE_S).text == "hello"


# batches


def test_a_batch_takes_an_iterator_and_each_prompt_gets_all_of_them(memory: Memory) -> None:
    seen: list[list[tuple[int, ...]]] = [[], []]

    def watching(number: int) -> Callable[[Any, Any], Any]:
        def watch(ids: Any, logits: Any) -> Any:
            seen[number].append(tuple(ids))
            return logits

        return watch

    prompts = ["one", "two", "three stop it"]
    replies = memory.batch(iter(prompts), logits_processors=map(watching, range(2)))  # type: ignore[arg-type]
    assert [reply.text for reply in replies] == prompts
    assert seen[0] == seen[1]
    assert len(seen[0]) >= sum(reply.usage.output_tokens for reply in replies)
