"""Generation: the handle of a running request, and Feed, the end that the engine writes to.

One handle serves threads and event loops alike: iterate it, ``async for`` it, ``await`` it, or call ``result()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Literal

from agent_memory.errors import CancelledError, ClosedError, RequestTimeoutError, UnsupportedParameterError, repr_of
from agent_memory.progress import EVERY_S, Bar
from agent_memory.types import Delta, Reply

State = Literal["queued", "prefill", "decode", "done", "cancelled", "failed"]
_ENDED = ("done", "cancelled", "failed")


class Feed:
    """The producer's end: written by the engine thread, read by any number of threads and event loops."""

    __slots__ = (
        "_at_end", "_at_wait", "_changed", "_wakers", "deltas", "error", "id", "is_awaited", "pid", "progress",
        "reply", "shows", "state",
    )  # fmt: skip

    def __init__(self, shows: bool | None = None) -> None:
        self.id = uuid.uuid4().hex  #: of the request
        self._changed = threading.Condition()
        self._wakers: set[Callable[[], None]] = set()
        self._at_end: tuple[Callable[[], None], ...] = ()
        self._at_wait: Callable[[], None] | None = None
        self.is_awaited = False  #: True once a reader waits, or has waited
        self.deltas: list[Delta] = []
        self.state: State = "queued"
        self.progress = (0, 0)
        self.reply: Reply | None = None
        self.error: BaseException | None = None
        self.shows = shows  #: True: who waits sees a bar of the prefill; None: where a person watches
        self.pid = os.getpid()

    @property
    def ended(self) -> bool:
        """True if nothing more will come."""
        return self.state in _ENDED

    def emit(self, delta: Delta, progress: tuple[int, int]) -> None:
        """One more piece of text while decoding; wakes readers once."""
        with self._changed:
            self.deltas.append(delta)
            self.state, self.progress = ("decode", progress) if not self.ended else (self.state, self.progress)
            self._wake()

    def move(self, state: State, progress: tuple[int, int] | None = None) -> None:
        """Set a state that is not an end."""
        with self._changed:
            if not self.ended:
                self.state = state
                self.progress = progress or self.progress
                self._wake()

    def at_end(self, *calls: Callable[[], None]) -> None:
        """Add calls that are made at the end, whatever it is, before anybody sees it. Before the request starts."""
        self._at_end += calls

    def at_wait(self, call: Callable[[], None]) -> None:
        """Call ``call`` once, when the first reader begins to wait (its thread). Before the request starts."""
        self._at_wait = call

    def await_more(self) -> None:
        """Record that a reader waits. Any thread."""
        self.is_awaited = True
        call, self._at_wait = self._at_wait, None
        if call is not None:
            call()

    def finish(self, reply: Reply) -> None:
        """End with a reply; later ends are ignored."""
        self._end("done", reply, None)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self._end("failed", None, error)

    def cancelled(self) -> None:
        """End as cancelled."""
        self._end(
            "cancelled", None, CancelledError("the generation was cancelled; the agent's log is as before the turn")
        )

    def wait(self, seen: int, timeout_s: float | None) -> bool:
        """Block until there are more than ``seen`` deltas or the end; False when the time is up first."""
        self._ensure_ours()
        self.await_more()
        with self._changed:
            return self._changed.wait_for(lambda: len(self.deltas) > seen or self.ended, timeout_s)

    def watch(self, waker: Callable[[], None]) -> Callable[[], None]:
        """Call ``waker`` (any thread) at every change; returns the call that ends it."""
        self._ensure_ours()
        with self._changed:
            self._wakers.add(waker)
        return lambda: self._wakers.discard(waker)

    def when_ended(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call ``call`` once, at the end (any thread), or now if that is past; returns the call that stops that."""
        self._ensure_ours()
        is_called = False

        def waker() -> None:  # under the lock
            nonlocal is_called
            if self.ended and not is_called:
                is_called = True
                call()

        with self._changed:
            self._wakers.add(waker)
            waker()
        return lambda: self._wakers.discard(waker)

    def _ensure_ours(self) -> None:
        if os.getpid() != self.pid:
            raise ClosedError("this generation belongs to the parent process; a forked child must open its own Memory")

    def _end(self, state: State, reply: Reply | None, error: BaseException | None) -> None:
        with self._changed:
            if self.ended:
                return
            self.reply, self.error = reply, error
            self.state, self._at_wait = state, None
            calls, self._at_end = self._at_end, ()
            try:
                for call in calls:
                    call()
            finally:
                self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        for waker in tuple(self._wakers):
            waker()


class Generation:
    """A running request: an iterable of ``Delta``, async-iterable, awaitable, and a context manager.

    Iterating gives the text as it comes; ``result()`` and ``await`` give the ``Reply``. Leaving a ``with`` block,
    closing an iterator early, or cancelling an asyncio task that waits on it cancels the request. Cancelled: an
    iterator ends, ``result()`` raises CancelledError. Failed: both raise the error. Usable from any thread.
    """

    __slots__ = ("__weakref__", "_cancel", "_feed", "id")

    def __init__(self, feed: Feed, cancel: Callable[[], None]) -> None:
        self.id = feed.id
        self._feed, self._cancel = feed, cancel

    def __repr__(self) -> str:
        return f"Generation({self.id[:8]} {self.state} {self.progress[0]}/{self.progress[1]})"

    @property
    def state(self) -> State:
        """State of the request."""
        return self._feed.state

    @property
    def progress(self) -> tuple[int, int]:
        """Prompt tokens done and all of them while in prefill; output tokens and ``max_tokens`` while decoding."""
        return self._feed.progress

    def result(self, timeout_s: float | None = None) -> Reply:
        """Wait for the reply. Raises what the request raised, CancelledError, or RequestTimeoutError (it runs on).

        Interrupted by Ctrl-C, the request is cancelled. Raises UnsupportedParameterError for a time that is no number.
        """
        try:
            ended = self._wait(2**62, _limit(timeout_s))
        except KeyboardInterrupt:
            self.cancel()
            raise
        if not ended:
            raise RequestTimeoutError(
                f"no reply within {repr_of(timeout_s)} s; the request is still running, state {repr_of(self.state)}"
            )
        return self._outcome()

    def outcome(self) -> Reply | BaseException:
        """Wait for the reply, or for the error that ``result()`` would raise."""
        self._wait(2**62)
        return self._feed.error or self._reply()

    def cancel(self) -> None:
        """End the request at the next step; idempotent, returns at once."""
        self._cancel()

    def text(self) -> Iterator[str]:
        """The text as it comes, whole characters only."""
        for delta in self:
            if delta.text:
                yield delta.text

    def __iter__(self) -> Iterator[Delta]:
        seen = 0
        with self:
            while self._wait(seen) and seen < len(self._feed.deltas):
                yield self._feed.deltas[seen]
                seen += 1
        if self._feed.state == "failed":
            self._outcome()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        seen = 0
        with self:
            while True:
                await self._changed(seen)
                if seen >= len(self._feed.deltas):
                    break
                yield self._feed.deltas[seen]
                seen += 1
        if self._feed.state == "failed":
            self._outcome()

    def __await__(self) -> Generator[Any, None, Reply]:
        return self._wait_async().__await__()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._feed.ended:
            self.cancel()

    async def _wait_async(self) -> Reply:
        try:
            await self._changed(2**62)
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._outcome()

    async def _changed(self, seen: int) -> None:
        """Wait, without blocking the event loop, for more than ``seen`` deltas or the end."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def waker() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(event.set)

        unwatch, shown = self._feed.watch(waker), self._shown()
        loop.call_soon(self._feed.await_more)  # first the other tasks that are ready: they may ask as well
        try:
            while len(self._feed.deltas) <= seen and not self._feed.ended:
                event.clear()
                if len(self._feed.deltas) <= seen and not self._feed.ended:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if shown is None else EVERY_S):
                            await event.wait()
                    shown = self._follow(shown)
        finally:
            unwatch()
            if shown is not None:
                shown.close()

    def _wait(self, seen: int, timeout_s: float | None = None) -> bool:
        """``Feed.wait``, with a bar while a long prompt is computed."""
        if (shown := self._shown()) is None:
            return self._feed.wait(seen, timeout_s)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while shown is not None:
                left = EVERY_S if until is None else min(EVERY_S, until - time.monotonic())
                if self._feed.wait(seen, left):
                    return True
                if left < EVERY_S:
                    return False
                shown = self._follow(shown)
        finally:
            if shown is not None:
                shown.close()
        return self._feed.wait(seen, None if until is None else until - time.monotonic())

    def _shown(self) -> Bar | None:
        """A bar for the prefill; None where it is past, or nobody watches."""
        if self._feed.state not in ("queued", "prefill"):
            return None
        shown = Bar(self._feed.shows, "prefill", "tokens")
        return shown if shown.is_watched else None

    def _follow(self, shown: Bar | None) -> Bar | None:
        """Draw how far the prefill is; None once it is past."""
        if shown is not None and self._feed.state == "prefill":
            shown.report(*self._feed.progress)
        elif shown is not None and self._feed.state != "queued":
            shown.close()
            return None
        return shown

    def _outcome(self) -> Reply:
        if self._feed.error is not None:
            raise self._feed.error
        return self._reply()

    def _reply(self) -> Reply:
        assert self._feed.reply is not None
        return self._feed.reply


class as_completed:  # noqa: N801 - read as the functions of that name in asyncio and concurrent.futures
    """Yield handles of running requests, each as it ends; for ``for`` and ``async for``.

    Failed and cancelled ones come too: their ``result()`` raises. Leaving the loop cancels
    nothing; Ctrl-C while it waits cancels all.
    """

    def __init__(self, handles: Iterable[Generation]) -> None:
        self._handles = list(handles)
        for one in self._handles:
            if not isinstance(one, Generation):
                raise UnsupportedParameterError(f"as_completed takes handles of stream(), got {type(one).__name__}")

    def __iter__(self) -> Iterator[Generation]:
        ended: SimpleQueue[Generation] = SimpleQueue()
        unwatch = self._watch(ended.put)
        try:
            for _ in self._handles:
                yield ended.get()
        except KeyboardInterrupt:
            for one in self._handles:
                one.cancel()
            raise
        finally:
            unwatch()

    async def __aiter__(self) -> AsyncIterator[Generation]:
        loop, ended = asyncio.get_running_loop(), asyncio.Queue[Generation]()

        def put(one: Generation) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(ended.put_nowait, one)

        unwatch = self._watch(put)
        try:
            for _ in self._handles:
                yield await ended.get()
        finally:
            unwatch()

    def _watch(self, put: Callable[[Generation], None]) -> Callable[[], None]:
        """Have each handle put once, at its end; returns the call that stops that."""
        calls = [one._feed.when_ended(lambda one=one: put(one)) for one in self._handles]  # type: ignore[misc]
        for one in self._handles:
            one._feed.await_more()

        def unwatch() -> None:
            for call in calls:
                call()

        return unwatch


def _limit(timeout_s: float | None) -> float | None:
    """Return a time that locks accept: one of centuries, which they refuse, is no limit."""
    if timeout_s is None:
        return None
    if not isinstance(timeout_s, (int, float)) or timeout_s != timeout_s:
        raise UnsupportedParameterError(f"timeout_s must be a number of seconds or None, got {repr_of(timeout_s)}")
    return max(timeout_s, 0.0) if timeout_s < threading.TIMEOUT_MAX / 2 else None
