"""Run users' own code in the middle of serving: on a thread of its own, within a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from attrs import define, field

from agent_memory.errors import RequestError, RequestTimeoutError, UnsupportedParameterError, repr_of
from agent_memory.protocols import LogitsProcessor

_Answer = SimpleQueue[tuple[Any, Exception | None]]

THREAD_NAME = "agent_memory-callable"


def checked(processors: Iterable[LogitsProcessor]) -> tuple[LogitsProcessor, ...]:
    """Return the processors as a tuple: an iterator would be empty for a second request.

    Raises UnsupportedParameterError for an item that cannot be called.
    """
    if isinstance(processors, (str, bytes)) or not isinstance(processors, Iterable):
        raise UnsupportedParameterError(f"logits_processors must be a list of callables, got {repr_of(processors)}")
    found = tuple(processors)
    for one in found:
        if not callable(one):
            raise UnsupportedParameterError(f"a logits processor must be callable, got {type(one).__name__}")
    return found


def guarded(processors: Sequence[LogitsProcessor], timeout_s: float) -> tuple[Guard, ...]:
    """Return a guard for each processor. Its thread also makes an array of the result: that may run the user's code."""
    return tuple(Guard("a logits processor", _floats_of(one), timeout_s) for one in processors)


def _floats_of(processor: LogitsProcessor) -> LogitsProcessor:
    return lambda ids, logits: np.asarray(processor(ids, logits), np.float32)


class Guard:
    """A callable of a user's, and the daemon thread that runs it. A callable that hangs blocks that thread alone.

    - ``start`` is for the caller's thread: an exception thrown into the engine while it starts a thread could kill
      that thread before it begins, and the engine would wait for ever.
    - ``close`` ends the thread, also where the guard is still referenced.
    - ``after`` is called on the thread after each call.
    """

    __slots__ = ("_after", "_calls", "_timeout_s", "_what", "_work")

    def __init__(
        self, what: str, work: Callable[..., Any], timeout_s: float, after: Callable[[], None] | None = None
    ) -> None:
        self._what, self._timeout_s, self._after = what, min(timeout_s, threading.TIMEOUT_MAX / 2), after
        self._work: Callable[..., Any] | None = work
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()

    def start(self) -> None:
        """Start the thread; once. Caller's thread."""
        work, self._work = self._work, None  # the thread's alone from now on
        threading.Thread(
            target=_serve, args=(self._what, work, self._calls, self._after), name=THREAD_NAME, daemon=True
        ).start()

    def close(self) -> None:
        """End the thread after its present call. Idempotent; also for a guard that was never started."""
        self._calls.put(None)

    def begin(self, *args: Any) -> Pending:
        """Queue a call; returns at once."""
        call = _Call(args)
        self._calls.put(call)
        return Pending(self._what, call.answer, self._timeout_s)

    def __call__(self, *args: Any) -> Any:
        return self.begin(*args).result()


class Pending:
    """The result of a queued call."""

    __slots__ = ("_answer", "_timeout_s", "_what", "deadline")

    def __init__(self, what: str, answer: _Answer, timeout_s: float) -> None:
        self._what, self._answer, self._timeout_s = what, answer, timeout_s
        self.deadline = time.perf_counter() + timeout_s  #: perf_counter time

    @property
    def is_over(self) -> bool:
        """True if ``result()`` would not wait."""
        return not self._answer.empty() or time.perf_counter() >= self.deadline

    def result(self) -> Any:
        """Return the result, or raise the exception, of the call; once.

        Raises RequestTimeoutError after ``callable_timeout_s``; the call is abandoned then.
        """
        try:
            result, error = self._answer.get(timeout=max(0.0, self.deadline - time.perf_counter()))
        except Empty:
            raise RequestTimeoutError(
                f"{self._what} did not return within {self._timeout_s} s (Config.callable_timeout_s)"
            ) from None
        if error is not None:
            raise error
        return result


@define(eq=False)
class _Call:
    args: tuple[Any, ...]
    answer: _Answer = field(factory=SimpleQueue)


def _serve(
    what: str, work: Callable[..., Any], calls: SimpleQueue[_Call | None], after: Callable[[], None] | None
) -> None:
    while (call := calls.get()) is not None:
        try:
            call.answer.put((work(*call.args), None))
        except BaseException as error:  # noqa: BLE001 - not this thread's: raised again where the answer is read
            call.answer.put((None, error if isinstance(error, Exception) else _ordinary(what, error)))
        del call  # the arguments contain logits
        if after is not None:
            after()


def _ordinary(what: str, error: BaseException) -> RequestError:
    """Wrap a BaseException (CancelledError, SystemExit) in a RequestError: raised as is it would stop the engine."""
    failure = RequestError(f"{what} raised {type(error).__name__}: {error}")
    failure.__cause__ = failure.__context__ = error
    return failure
