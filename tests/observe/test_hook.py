"""Config.on_reply: called with each reply, off the engine's thread, and harmless."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory, Reply
from agent_memory.observe import hook
from tests.parts.waiting import wait_for


def test_the_function_gets_each_reply_in_order_with_its_id_and_agent() -> None:
    seen: list[Reply] = []
    with Memory(EchoRunner(), ":memory:", config=Config(on_reply=seen.append)) as memory:
        handles = [memory.stream(f"number {n}", agent="alice") for n in range(5)]
        replies = [handle.result() for handle in handles]
        cancelled = memory.stream("never", agent="alice")
        cancelled.cancel()
    assert [reply.id for reply in seen if reply.text != "never"] == [handle.id for handle in handles]
    assert seen[0] is replies[0]
    assert {reply.agent for reply in seen} == {"alice"}


def test_it_runs_on_a_thread_of_its_own_and_may_use_the_memory() -> None:
    threads, texts = [], []

    def on_reply(reply: Reply) -> None:
        threads.append(threading.current_thread().name)
        if not texts:
            texts.append(reply.text)
            texts.append(memory.generate("from the hook").text)

    with Memory(EchoRunner(), ":memory:", config=Config(on_reply=on_reply)) as memory:
        memory.generate("first")
        wait_for(lambda: len(threads) == 2)
    assert texts == ["first", "from the hook"]
    assert set(threads) == {"agent_memory-on-reply"}
    assert all(thread.name != "agent_memory-on-reply" for thread in threading.enumerate())


def test_what_it_raises_is_counted_and_logged_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    def on_reply(reply: Reply) -> None:
        raise ValueError(f"no good: {reply.text}")

    with caplog.at_level(logging.INFO), Memory(EchoRunner(), ":memory:", config=Config(on_reply=on_reply)) as memory:
        first, second = memory.generate("a secret"), memory.generate("a secret")
        wait_for(lambda: memory.stats().hook_failures == 2)
        assert memory.health().ready
    warned = [record.getMessage() for record in caplog.records if record.name == "agent_memory.hooks"]
    assert warned == [f"on_reply raised request={reply.id}: ValueError" for reply in (first, second)]
    assert "secret" not in caplog.text


def test_a_function_that_hangs_delays_no_reply_and_closing_only_so_long(caplog: pytest.LogCaptureFixture) -> None:
    may_go = threading.Event()

    def on_reply(reply: Reply) -> None:
        may_go.wait(30)

    config = Config(on_reply=on_reply, callable_timeout_s=0.2)
    with Memory(EchoRunner(), ":memory:", config=config) as memory:
        for _ in range(4):
            memory.generate("hello")
    assert any(thread.name == "agent_memory-on-reply" for thread in threading.enumerate())  # it hangs on
    may_go.set()
    assert "3 replies are dropped" in caplog.text


def test_a_queue_that_is_full_drops_the_reply_and_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "MOST_WAITING", 2)
    may_go, seen = threading.Event(), []

    def on_reply(reply: Reply) -> None:
        may_go.wait(30)
        seen.append(reply.text)

    with Memory(EchoRunner(), ":memory:", config=Config(on_reply=on_reply)) as memory:
        memory.generate("0")
        wait_for(lambda: memory._reports.observing.hook._replies.empty())  # type: ignore[union-attr]  # the first is out
        for n in range(1, 6):
            memory.generate(str(n))
        assert memory.stats().hook_failures == 3
        may_go.set()
    assert seen == ["0", "1", "2"]


def test_it_may_close_the_memory() -> None:
    closed: list[Any] = []

    def on_reply(reply: Reply) -> None:
        memory.close()
        closed.append(memory.is_closed)

    memory = Memory(EchoRunner(), ":memory:", config=Config(on_reply=on_reply))
    memory.generate("hello")
    wait_for(lambda: closed == [True])
    memory.close()
    wait_for(lambda: not memory.health().live)


def test_a_reply_carries_the_id_of_its_handle() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        handle = memory.stream("hello", agent="a")
        reply = handle.result()
        assert (reply.id, reply.agent) == (handle.id, "a")
        alone = memory.generate("hello")
        assert alone.agent is None
        assert alone.id != reply.id
        branch = memory.generate([{"role": "user", "content": "other"}], agent="a", on_diverge="branch")
        assert branch.agent is None
