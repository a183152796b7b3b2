"""Waiting that ends: a test that waits in vain fails, and never hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from agent_memory import Generation, Memory, Reply

#: Far above what anything here takes on a busy machine; reached only by what would hang for ever.
PATIENCE_S = 30.0
ENDED = ("done", "cancelled", "failed")
T = TypeVar("T")


def within(work: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """What ``work`` gives or raises; AssertionError when it does not come back."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="test-within", daemon=True)
    thread.start()
    thread.join(patience_s)
    assert not thread.is_alive(), f"a call did not come back within {patience_s} s"
    if errors:
        raise errors[0]
    return results[0]


def wait_for(condition: Callable[[], bool], what: str = "a condition", patience_s: float = PATIENCE_S) -> None:
    """Return when ``condition`` holds."""
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.001)


def together(work: Callable[[int], object], n: int = 8) -> None:
    """Run ``work(0)`` to ``work(n - 1)``, each on a thread of its own; raise the first error of any."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), f"a thread did not end within {PATIENCE_S} s"


def cancel_a_task(work: Callable[[], Awaitable[object]], after_s: float = 0.05) -> None:
    """Await ``work()`` in a task, cancel that, and see that it ends as cancelled."""

    async def main() -> None:
        task = asyncio.ensure_future(work())
        await asyncio.sleep(after_s)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return
        raise AssertionError("the task was cancelled and ended otherwise")

    asyncio.run(main())


def outcome(handle: Generation) -> Reply | BaseException:
    """How a handle ended; AssertionError when it does not end."""
    try:
        return handle.result(PATIENCE_S)
    except BaseException as error:  # noqa: BLE001 - looked at by the test
        assert handle.state in ENDED, f"{handle} did not end"
        return error


def shown(memory: Memory, name: str) -> tuple[Any, ...]:
    """An agent's log as callers see it."""
    agent = memory.agent(name)
    return agent.messages, agent.n_tokens, agent.info.n_turns
