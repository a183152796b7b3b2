"""What misled users: each of these did something else than it said, or nothing, without a word."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    Agent,
    AgentDeletedError,
    CancelledError,
    ClosedError,
    EchoRunner,
    Memory,
    PromptTooLongError,
    RequestTimeoutError,
    StoreLockedError,
    UnknownAgentError,
    UnsupportedParameterError,
    as_completed,
)


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(EchoRunner(), ":memory:") as memory:
        yield memory


# the store that this very process holds


def test_a_store_that_this_process_holds_says_so_and_what_to_type(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path):
        with pytest.raises(StoreLockedError) as caught:
            Memory(EchoRunner(), tmp_path)
        text = str(caught.value)
        assert f"in use by this process ({os.getpid()})" in text
        assert "type memory.close()" in text
    Memory(EchoRunner(), tmp_path).close()


def test_a_store_that_another_process_holds_names_that_one(tmp_path: Path) -> None:
    program = (
        "import sys; from agent_memory import EchoRunner, Memory\n"
        f"with Memory(EchoRunner(), {str(tmp_path)!r}): print('open', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreLockedError) as caught:
            Memory(EchoRunner(), tmp_path)
        other.communicate()
    assert f"in use by process {other.pid} on {socket.gethostname()}. Close it there" in str(caught.value)
    assert "this process" not in str(caught.value)


def test_a_memory_lives_as_long_as_an_agent_of_it_and_gives_its_store_back_then(tmp_path: Path) -> None:
    agent = Memory(EchoRunner(), tmp_path).agent("ann")
    gc.collect()
    assert agent.say("hello").text == "hello"
    del agent
    gc.collect()
    with Memory(EchoRunner(), tmp_path) as memory:
        assert memory.agent("ann").messages[0].content == "hello"


# an agent, or its name, everywhere


def test_an_agent_is_taken_wherever_its_name_is(memory: Memory) -> None:
    ann = memory.agent("ann")
    user = [{"role": "user", "content": "hi"}]
    asks: dict[str, Any] = {
        "generate": lambda agent: memory.generate("hi", agent=agent),
        "stream": lambda agent: memory.stream("hi", agent=agent).result(),
        "batch": lambda agent: memory.batch(["hi"], agent=agent),
        "prefill": lambda agent: memory.prefill("hi", agent=agent),
        "run_tools": lambda agent: memory.run_tools(agent, "hi", [ping]),
        "messages": lambda agent: memory.messages.create(agent=agent, max_tokens=9, messages=user),
        "chat": lambda agent: memory.chat.completions.create(agent=agent, messages=user),
        "evict": lambda agent: memory.evict(agent),
        "agent": lambda agent: memory.agent(agent),
    }
    for name, ask in asks.items():
        before = ann.info.n_turns
        for agent in (ann, "ann"):
            ask(agent)
        grown = 0 if name in ("prefill", "evict", "agent", "messages", "chat") else 2  # a list is a whole history
        assert name in ("messages", "chat") or ann.info.n_turns == before + grown, name
    assert [info.name for info in memory.agents()] == ["ann"]
    assert memory.agent(ann).messages == ann.messages


def ping() -> str:
    """Answer."""
    return "pong"


def test_deleting_an_agent_by_its_handle_deletes_it(memory: Memory) -> None:
    ann = memory.agent("ann", system="S")
    ann.say("hi")
    assert memory.delete(ann) is True
    assert memory.agents() == []
    assert memory.delete(ann) is False
    assert memory.delete("ann") is False
    with pytest.raises(AgentDeletedError):
        memory.agent(ann)
    assert memory.agent("ann").messages == ()


def test_a_handle_of_a_deleted_agent_deletes_no_new_one_of_its_name(memory: Memory) -> None:
    old = memory.agent("ann")
    memory.delete(old)
    memory.agent("ann").say("hi")
    assert memory.delete(old) is False
    assert [info.n_turns for info in memory.agents()] == [1]


def test_an_agent_of_another_memory_is_refused_everywhere(memory: Memory) -> None:
    with Memory(EchoRunner(), ":memory:") as other:
        ann = other.agent("ann")
        for use in (memory.delete, memory.evict, memory.agent, lambda agent: memory.prefill("hi", agent=agent)):
            with pytest.raises(UnsupportedParameterError, match="of another Memory"):
                use(ann)
        assert [info.name for info in other.agents()] == ["ann"]


def test_evicting_an_agent_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.agent("ann").say("hi")
        with pytest.raises(UnknownAgentError, match="no agent 'anne' in this store") as caught:
            memory.evict("anne")
        assert isinstance(caught.value, LookupError)
        assert pickle.loads(pickle.dumps(caught.value)).name == "anne"
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.evict("ann")  # in the store, though nobody has opened it here
        assert memory.agent("ann").info.n_turns == 1
        assert isinstance(memory.agent("ann"), Agent)


# event loops, and several requests at once


class Slow(EchoRunner):
    """An EchoRunner that takes its time to load."""

    def open(self, recorded: Any) -> None:
        time.sleep(0.3)
        super().open(recorded)


def test_a_memory_opens_without_blocking_the_event_loop(tmp_path: Path) -> None:
    ticks = []

    async def tick() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0.005)

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        async with Memory.aopen(Slow(), tmp_path) as memory:
            assert len(ticks) > 5
            assert (await memory.stream("hi", agent="ann")).text == "hi"
        with pytest.raises(ClosedError):
            memory.agents()
        memory = await Memory.aopen(EchoRunner(), tmp_path)
        assert [info.name for info in memory.agents()] == ["ann"]
        await memory.aclose()
        ticking.cancel()

    asyncio.run(main())


def test_what_is_wrong_with_opening_is_raised_where_it_is_awaited(tmp_path: Path) -> None:
    async def main() -> None:
        async with Memory.aopen(EchoRunner(), tmp_path):
            with pytest.raises(StoreLockedError):
                await Memory.aopen(EchoRunner(), tmp_path)
            with pytest.raises(StoreLockedError):
                async with Memory.aopen(EchoRunner(), tmp_path):
                    pytest.fail("it opened")

    asyncio.run(main())


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.6])
def test_a_memory_whose_opening_is_cancelled_gives_its_store_back(after_s: float, tmp_path: Path) -> None:
    opened = []

    async def main() -> None:
        async def hold() -> None:
            async with Memory.aopen(Slow(), tmp_path) as memory:
                opened.append(memory)
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert bool(opened) == (after_s > 0.5)
    deadline = time.monotonic() + 20
    while True:  # closed behind the cancellation, on a thread of its own
        try:
            Memory(EchoRunner(), tmp_path).close()
            break
        except StoreLockedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_batch_takes_an_agent_for_each_prompt(memory: Memory) -> None:
    ann = memory.agent("ann")
    replies = memory.batch(["one", "two", "three"], agent=[ann, "bob", None])
    assert [reply.text for reply in replies] == ["one", "two", "three"]
    assert [message.content for message in ann.messages] == ["one", "one"]
    assert [message.content for message in memory.agent("bob").messages] == ["two", "two"]
    assert {info.name for info in memory.agents()} == {"ann", "bob"}
    with pytest.raises(UnsupportedParameterError, match="2 prompts and 3 agents"):
        memory.batch(["one", "two"], agent=["a", "b", "c"])
    assert {info.name for info in memory.agents()} == {"ann", "bob"}


def test_a_batch_gives_errors_in_their_places_where_it_is_asked_to() -> None:
    def burst(ids: Any, logits: Any) -> Any:
        raise ZeroDivisionError("mine")

    with Memory(EchoRunner(context_tokens=60), ":memory:") as memory:
        gone = memory.agent("gone")
        gone.delete()
        found = memory.batch(
            ["fine", "much too long " * 50, "", "also fine", "hers"],
            agent=["ann", None, None, "bob", gone],
            return_errors=True,
        )
        texts = [str(one) if not isinstance(one, BaseException) else type(one) for one in found]
        assert texts == ["fine", PromptTooLongError, UnsupportedParameterError, "also fine", AgentDeletedError]
        assert {info.name for info in memory.agents()} == {"ann", "bob"}
        [error] = memory.batch(["hi"], logits_processors=[burst], return_errors=True)
        assert isinstance(error, ZeroDivisionError)
        with pytest.raises(UnsupportedParameterError, match="did you mean 'max_tokens'"):
            memory.batch(["hi"], return_errors=True, max_tokns=3)  # type: ignore[call-overload]
        with pytest.raises(PromptTooLongError):
            memory.batch(["fine", "much too long " * 50])


def test_handles_come_as_they_end() -> None:
    with Memory(EchoRunner(delay_s=0.002), ":memory:") as memory:
        long, short = memory.stream("a long way to go " * 8, max_tokens=200), memory.stream("short", max_tokens=3)
        ended = [one for one in as_completed([long, short]) if one.state == "done"]
        assert ended == [short, long]
        assert list(as_completed([long, short])) == [long, short]  # both have ended: in their order
        assert list(as_completed([])) == []
        with pytest.raises(UnsupportedParameterError, match="takes handles of stream"):
            as_completed([short.result()])  # type: ignore[list-item]


def test_a_cancelled_handle_and_a_failed_one_come_too() -> None:
    with Memory(EchoRunner(delay_s=0.01), ":memory:") as memory:
        handles = [memory.stream("count to a hundred", max_tokens=100), memory.stream("late", timeout_s=0.001)]
        threading.Timer(0.05, handles[0].cancel).start()
        found = {one: one.state for one in as_completed(handles)}
        assert [found[one] for one in handles] == ["cancelled", "failed"]
        assert [type(one.outcome()) for one in handles] == [CancelledError, RequestTimeoutError]


def test_handles_come_as_they_end_in_an_event_loop_too() -> None:
    async def main() -> None:
        async with Memory.aopen(EchoRunner(delay_s=0.002), ":memory:") as memory:
            long, short = memory.stream("a long way to go " * 8, max_tokens=200), memory.stream("short", max_tokens=3)
            assert [one async for one in as_completed([long, short])] == [short, long]

    asyncio.run(main())
