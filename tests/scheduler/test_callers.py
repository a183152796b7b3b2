"""Who may call: many threads, many tasks of one event loop, a notebook whose cell is interrupted."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent_memory import CancelledError, Config, EchoRunner, Memory, UnsupportedParameterError
from tests.parts.waiting import PATIENCE_S, shown, together, wait_for, within

LONG = "an unbelievably long message, of which there is no end in sight. " * 12


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Slow enough that callers meet."""
    with Memory(EchoRunner(delay_s=0.001), ":memory:", config=Config(chunk_tokens=16, prefill_tokens=16)) as made:
        yield made


def test_50_generations_gathered_on_one_event_loop_each_get_their_own_answer(memory: Memory) -> None:
    async def one(number: int) -> str:
        agent = f"agent {number % 13}" if number % 3 else None
        handle = memory.stream(f"number {number}", agent=agent)
        if number % 2:
            return "".join([delta.text async for delta in handle])
        return (await handle).text

    async def main() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*map(one, range(50))), PATIENCE_S)

    assert within(lambda: asyncio.run(main())) == [f"number {n}" for n in range(50)]
    for number in range(13):
        contents = [m.content for m in memory.agent(f"agent {number}").messages]
        assert contents[::2] == contents[1::2]


def test_of_50_gathered_generations_the_cancelled_ones_end_and_the_others_answer(memory: Memory) -> None:
    async def main() -> list[Any]:
        handles = [memory.stream(f"number {n}", agent=f"agent {n}") for n in range(50)]
        for handle in handles[::5]:
            handle.cancel()
        return await asyncio.wait_for(asyncio.gather(*map(_awaited, handles), return_exceptions=True), PATIENCE_S)

    found = within(lambda: asyncio.run(main()))
    for number, one in enumerate(found):
        log = [m.content for m in memory.agent(f"agent {number}").messages]
        if isinstance(one, CancelledError):
            assert number % 5 == 0
            assert log == []
        else:
            assert one.text == f"number {number}"
            assert log == [one.text] * 2


async def _awaited(handle: Any) -> Any:
    return await handle


def test_the_event_loop_runs_on_while_a_generation_is_awaited(memory: Memory) -> None:
    async def main() -> int:
        handle, ticks = memory.stream(LONG), 0
        waiting = asyncio.ensure_future(_awaited(handle))
        while not waiting.done():
            await asyncio.sleep(0)
            ticks += 1
        return ticks

    assert within(lambda: asyncio.run(main())) > 10


def test_32_caller_threads_share_one_memory(memory: Memory) -> None:
    found: dict[int, list[str]] = {}

    def talk(number: int) -> None:
        draw, agent = random.Random(number), memory.agent(f"agent {number % 8}")
        said = []
        for turn in range(3):
            text = f"{number} says {turn}"
            if draw.random() < 0.3:
                memory.stream(LONG, agent=agent.name).cancel()
            said.append(agent.say(text, max_tokens=30).text if draw.random() < 0.8 else memory.generate(text).text)
        found[number] = said

    together(talk, 32)
    assert found == {n: [f"{n} says {turn}" for turn in range(3)] for n in range(32)}
    for number in range(8):
        contents = [m.content for m in memory.agent(f"agent {number}").messages]
        assert contents[::2] == contents[1::2]


def _generate(memory: Memory) -> None:
    memory.generate(LONG, agent="ann")


def _say(memory: Memory) -> None:
    memory.agent("ann").say(LONG)


def _batch(memory: Memory) -> None:
    memory.batch([LONG, LONG + "more"])


def _result(memory: Memory) -> None:
    memory.stream(LONG, agent="ann").result()


def _iterate(memory: Memory) -> None:
    for _ in memory.stream(LONG, agent="ann"):
        pass


def _await(memory: Memory) -> None:
    async def main() -> None:
        await memory.stream(LONG, agent="ann")

    asyncio.run(main())


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also in a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="no SIGINT here")
@pytest.mark.parametrize("wait", [_generate, _say, _batch, _result, _iterate, _await])
def test_ctrl_c_in_a_waiting_caller_cancels_its_request_and_leaves_the_memory_usable(
    wait: Callable[[Memory], None],
    interruptible: None,
) -> None:
    runner = EchoRunner(lambda asked, _: asked * 1000, delay_s=0.002)
    with Memory(runner, ":memory:", config=Config(chunk_tokens=16, prefill_tokens=16)) as memory:
        memory.agent("ann").say("first", max_tokens=5)
        before = shown(memory, "ann")
        n_steps = runner.calls.steps

        def interrupt() -> None:
            wait_for(lambda: runner.calls.steps > n_steps + 5)
            os.kill(os.getpid(), signal.SIGINT)

        helper = threading.Thread(target=interrupt, daemon=True)
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            wait(memory)
        helper.join(PATIENCE_S)
        assert shown(memory, "ann") == before
        reply = within(lambda: memory.agent("ann").say("second", max_tokens=5))
        assert reply.usage.output_tokens == 5
        n_steps = runner.calls.steps
        within(memory.flush)
        assert runner.calls.steps - n_steps < 3, "nobody decodes any more"


@pytest.mark.parametrize("timeout_s", [math.inf, 1e10, 1e300, 10**400, threading.TIMEOUT_MAX, None])
def test_a_wait_of_centuries_is_a_wait_without_limit(memory: Memory, timeout_s: float | None) -> None:
    assert within(lambda: memory.stream("hello").result(timeout_s)).text == "hello"
    assert within(lambda: memory.generate("hello", timeout_s=timeout_s)).text == "hello"


@pytest.mark.parametrize("timeout_s", [math.nan, "soon", [1]])
def test_a_wait_that_is_no_time_is_refused_and_the_request_runs_on(memory: Memory, timeout_s: Any) -> None:
    handle = memory.stream("hello")
    with pytest.raises(UnsupportedParameterError, match="timeout_s must be a number of seconds"):
        within(lambda: handle.result(timeout_s))
    assert handle.result(PATIENCE_S).text == "hello"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("seconds", [1e10, 1e300])
def test_a_memory_whose_times_are_centuries_serves(seconds: float) -> None:
    told: list[str] = []
    config = Config(
        hot_ttl_s=seconds, warm_ttl_s=seconds, callable_timeout_s=seconds, target_gap_s=seconds, warm_bytes=1 << 20,
        on_reply=lambda reply: told.append(reply.text),
    )  # fmt: skip
    with Memory(EchoRunner(), ":memory:", config=config) as memory:
        for text in ("one", "two"):
            reply = within(lambda text=text: memory.agent("ann").say(text, logits_processors=[lambda ids, x: x]))  # type: ignore[misc]
            assert reply.text == text
            memory.agent("ann").say("to warm")
            memory.evict(to="warm")
    assert told == ["one", "to warm", "two", "to warm"]
