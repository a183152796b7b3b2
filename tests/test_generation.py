"""Generation: iterated, awaited, cancelled, timed out, closed over: every handle ends, and no request harms another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.errors import CancelledError, ClosedError, RequestTimeoutError
from agent_memory.generation import Generation
from tests.parts.waiting import cancel_a_task, together

PATIENCE_S = 30.0
SMALL = Config(chunk_tokens=16, prefill_tokens=16)
LONG = "an unbelievably long message, of which there is no end in sight. " * 12
ENDED = ("done", "cancelled", "failed")


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Slow enough to be caught in any state."""
    with Memory(EchoRunner(delay_s=0.004), ":memory:", config=SMALL) as made:
        yield made


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


def _shown(memory: Memory, name: str) -> tuple[Any, ...]:
    agent = memory.agent(name)
    return agent.messages, agent.n_tokens, agent.info.n_turns


def test_a_handle_can_be_iterated_and_gives_whole_pieces_of_the_text(memory: Memory) -> None:
    handle = memory.stream("tell me something believable")
    deltas = list(handle)
    reply = handle.result(PATIENCE_S)
    assert "".join(d.text for d in deltas) == reply.text == "tell me something believable"
    assert [i for d in deltas for i in d.token_ids] == list(reply.token_ids)
    assert handle.state == "done"
    assert len(deltas) > 3
    assert [d.text for d in handle] == [d.text for d in deltas], "a finished handle can be read again"


def test_text_yields_the_reply_and_skips_empty_pieces(memory: Memory) -> None:
    pieces = list(memory.stream("hello there").text())
    assert "".join(pieces) == "hello there"
    assert all(pieces)


@pytest.mark.parametrize(
    "text",
    ["🙂👩‍👩‍👧 family", "世界は広い", "def f():\n        return 1\n        # eight", "e\u0301 combining", "  a  b  "],
)
def test_joined_deltas_equal_the_reply_and_hold_no_half_character(memory: Memory, text: str) -> None:
    handle = memory.stream(text)
    pieces = [d.text for d in handle]
    assert "".join(pieces) == handle.result(PATIENCE_S).text == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_one_class_serves_await_and_async_for(memory: Memory) -> None:
    async def main() -> None:
        assert (await memory.stream("awaited")).text == "awaited"
        handle = memory.stream("iterated 世界")
        assert "".join([d.text async for d in handle]) == "iterated 世界"
        assert (await handle).text == "iterated 世界"

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_20_generations_gathered_on_one_loop_all_answer(memory: Memory) -> None:
    async def one(number: int) -> str:
        return (await memory.stream(f"number {number}", agent=f"agent {number % 7}")).text

    async def main() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*(one(n) for n in range(20))), PATIENCE_S)

    assert asyncio.run(main()) == [f"number {n}" for n in range(20)]
    for number in range(7):
        roles = [m.role for m in memory.agent(f"agent {number}").messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


@pytest.mark.parametrize("state", ["queued", "prefill", "decode"])
def test_cancelled_in_any_state_the_log_is_as_before_and_the_next_turn_is_fine(memory: Memory, state: str) -> None:
    memory.agent("a").say("first", max_tokens=20)
    before = _shown(memory, "a")
    blocking = memory.stream(LONG, agent="a") if state == "queued" else None
    handle = memory.stream(LONG + "more", agent="a")
    _wait_for(lambda: handle.state == state and (blocking is None or blocking.state != "queued"))
    if state == "decode":
        assert next(iter(handle.text()))  # leaving this iterator cancels, too
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(PATIENCE_S)
    assert handle.state == "cancelled"
    assert "".join(handle.text()) in LONG + "more", "an iterator just ends"
    if blocking is not None:
        blocking.cancel()
        with pytest.raises(CancelledError):
            blocking.result(PATIENCE_S)
    assert _shown(memory, "a") == before
    reply = memory.agent("a").say("second", max_tokens=20)
    assert reply.text == "second"
    assert reply.usage.cached_tokens + reply.usage.computed_tokens == reply.usage.prompt_tokens
    handle.cancel()  # idempotent, also after the end
    assert handle.state == "cancelled"


def _leave_with_block(memory: Memory, handle: Generation) -> None:
    with handle:
        pass


def _break_out_of_a_loop(memory: Memory, handle: Generation) -> None:
    for _ in handle:
        break


def _break_out_of_an_async_loop(memory: Memory, handle: Generation) -> None:
    async def main() -> None:
        async for _ in handle:
            break

    asyncio.run(main())


def _cancel_the_task_that_awaits(memory: Memory, handle: Generation) -> None:
    async def wait() -> str:
        return (await handle).text

    cancel_a_task(wait)


def _cancel_the_task_that_iterates(memory: Memory, handle: Generation) -> None:
    async def read() -> None:
        async for _ in handle:
            pass

    cancel_a_task(read)


@pytest.mark.parametrize(
    "leave",
    [
        _leave_with_block, _break_out_of_a_loop, _break_out_of_an_async_loop, _cancel_the_task_that_awaits,
        _cancel_the_task_that_iterates,
    ],
)  # fmt: skip
def test_whoever_leaves_early_cancels(memory: Memory, leave: Callable[[Memory, Generation], None]) -> None:
    memory.agent("a").say("first", max_tokens=20)
    before = _shown(memory, "a")
    handle = memory.stream(LONG, agent="a")
    leave(memory, handle)
    with pytest.raises(CancelledError):
        handle.result(PATIENCE_S)
    assert _shown(memory, "a") == before
    assert memory.agent("a").say("second", max_tokens=20).text == "second"


def test_timeout_s_fails_the_request_and_result_of_timeout_s_leaves_it_running(memory: Memory) -> None:
    memory.agent("a").say("first", max_tokens=20)
    before = _shown(memory, "a")
    with pytest.raises(RequestTimeoutError) as caught:
        memory.agent("a").say(LONG, timeout_s=0.1)
    assert isinstance(caught.value, TimeoutError)
    assert _shown(memory, "a") == before
    handle = memory.stream("still coming", agent="a")
    with pytest.raises(RequestTimeoutError):
        handle.result(timeout_s=0.001)
    with pytest.raises(TimeoutError, match="no reply within -1"):
        handle.result(timeout_s=-(10**400))
    assert handle.result(PATIENCE_S).text == "still coming"


def test_a_queued_request_times_out_too(memory: Memory) -> None:
    blocking = memory.stream(LONG, agent="a")
    with pytest.raises(RequestTimeoutError):
        memory.agent("a").say("behind it", timeout_s=0.05)
    assert blocking.state not in ENDED
    blocking.cancel()


def test_two_requests_of_one_agent_run_one_after_the_other(memory: Memory) -> None:
    first = memory.stream("one of two", agent="a")
    second = memory.stream("two of two", agent="a")
    _wait_for(lambda: first.state == "decode")
    assert second.state == "queued"
    assert second.result(PATIENCE_S).text == "two of two"
    assert first.state == "done"
    assert [m.content for m in memory.agent("a").messages] == ["one of two"] * 2 + ["two of two"] * 2


def test_8_caller_threads_share_one_memory(memory: Memory) -> None:
    found: dict[int, list[str]] = {}

    def talk(number: int) -> None:
        agent = memory.agent(f"agent {number % 4}")
        found[number] = [agent.say(f"{number} says {turn}", max_tokens=30).text for turn in range(3)]

    together(talk)
    assert found == {n: [f"{n} says {turn}" for turn in range(3)] for n in range(8)}
    for number in range(4):
        log = memory.agent(f"agent {number}").messages
        assert len(log) == 12
        assert [m.content for m in log[::2]] == [m.content for m in log[1::2]]


class Blunder(Exception):
    """What a user's own code raises."""


def test_a_raising_logits_processor_fails_its_own_request_alone(memory: Memory) -> None:
    def blunder(ids: Any, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if len(ids) > 60:
            raise Blunder("mine")
        return logits

    memory.agent("a").say("first", max_tokens=20)
    before = _shown(memory, "a")
    beside = memory.stream(LONG, agent="b", max_tokens=60)
    with pytest.raises(Blunder, match="mine"):
        memory.agent("a").say("second " * 12, logits_processors=[blunder])
    assert beside.result(PATIENCE_S).text == LONG[: len(beside.result().text)]
    assert _shown(memory, "a") == before
    assert memory.agent("a").say("second", max_tokens=20).text == "second"


def test_a_hanging_logits_processor_fails_its_request_while_others_go_on() -> None:
    release = threading.Event()

    def hang(ids: Any, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        release.wait(PATIENCE_S)
        return logits

    config = Config(chunk_tokens=16, prefill_tokens=16, callable_timeout_s=0.2)
    with Memory(EchoRunner(delay_s=0.01), ":memory:", config=config) as memory:
        try:
            memory.agent("a").say("first", max_tokens=20)
            before = _shown(memory, "a")
            beside = memory.stream("beside it", agent="b")
            with pytest.raises(RequestTimeoutError):
                memory.agent("a").say("second", logits_processors=[hang])
            assert not release.is_set()
            assert beside.result(PATIENCE_S).text == "beside it"
            assert _shown(memory, "a") == before
            assert memory.agent("a").say("second", max_tokens=20).text == "second"
        finally:
            release.set()


@pytest.mark.parametrize("stop", ["lieva", "ble t", "世", "🙂"])
def test_a_stop_string_across_tokens_is_left_out_and_the_next_turn_counts_right(memory: Memory, stop: str) -> None:
    said = "an unbelievable thing 世界 🙂 and more"
    handle = memory.stream(said, agent="a", stop=stop)
    pieces = [d.text for d in handle]
    reply = handle.result(PATIENCE_S)
    visible = said[: said.index(stop)]
    assert "".join(pieces) == reply.text == visible
    assert reply.finish == "stop"
    assert memory.agent("a").messages[-1].content == visible
    n_tokens = memory.agent("a").n_tokens
    usage = memory.agent("a").say("and now?", max_tokens=20).usage
    assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
    assert usage.cached_tokens >= n_tokens - len(stop.encode()) - 8
    assert [m.content for m in memory.agent("a").messages] == [said, visible, "and now?", "and now?"]


def test_of_several_stop_strings_the_first_completed_counts(memory: Memory) -> None:
    assert memory.generate("one two three", stop=["three", "two"]).text == "one "


def test_length_ends_a_reply_and_the_next_turn_follows_it(memory: Memory) -> None:
    reply = memory.agent("a").say("a long believable message", max_tokens=3)
    assert (reply.finish, reply.usage.output_tokens) == ("length", 3)
    usage = memory.agent("a").say("next", max_tokens=20).usage
    assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
    assert memory.agent("a").messages[-1].content == "next"


def test_close_while_requests_run_ends_every_handle_with_closed_error(tmp_path: Path) -> None:
    memory = Memory(EchoRunner(delay_s=0.01), tmp_path, config=Config(chunk_tokens=16, prefill_tokens=16, max_batch=2))
    memory.agent("agent 0").say("first", max_tokens=20)
    before = _shown(memory, "agent 0")
    handles = [memory.stream(LONG, agent=f"agent {n}") for n in range(6)]
    waiting: list[BaseException] = []

    def wait(handle: Generation) -> None:
        try:
            handle.result()
        except BaseException as error:  # noqa: BLE001 - looked at below
            waiting.append(error)

    threads = [threading.Thread(target=wait, args=(handle,), daemon=True) for handle in handles]
    for thread in threads:
        thread.start()
    _wait_for(lambda: any(handle.state == "decode" for handle in handles))
    memory.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [type(error) for error in waiting] == [ClosedError] * 6
    assert {handle.state for handle in handles} == {"failed"}
    with pytest.raises(ClosedError):
        list(handles[-1])
    with Memory(EchoRunner(), tmp_path, config=SMALL) as again:
        assert _shown(again, "agent 0") == before
        assert again.agent("agent 0").say("second").text == "second"


def test_a_restore_that_raises_is_a_miss_with_its_reason(tmp_path: Path) -> None:
    from agent_memory.echo.batch import EchoBatch

    class Broken(EchoBatch):
        def restore(self, source: Any) -> Any:
            raise MemoryError("no buffer")

    runner = EchoRunner()
    runner.open_batch = lambda _: Broken(runner, 0)  # type: ignore[method-assign]
    with Memory(runner, tmp_path, config=Config(chunk_tokens=16, prefill_tokens=16)) as memory:
        memory.agent("a").say("believable " * 10)
        memory.evict()
        reply = memory.agent("a").stream("again").result(timeout_s=30)
        assert reply.text == "again"
        assert (reply.usage.tier, reply.usage.exactness) == ("none", "recomputed")
        assert reply.usage.miss == "damaged"
        assert reply.usage.miss_detail == "restore failed: MemoryError: no buffer"
        assert memory.stats().misses == {reply.usage.miss: 1}
