"""Users' own code in the middle of serving: on a side thread, and not for longer than it may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from attrs import define, field

from agent_memory.errors import RequestError, RequestTimeoutError, UnsupportedParameterError
from agent_memory.protocols import LogitsProcessor

_Answer = SimpleQueue[tuple[Any, Exception | None]]


def checked(processors: Iterable[LogitsProcessor]) -> tuple[LogitsProcessor, ...]:
    """The processors, read once: an iterator has nothing left for a second request.

    Raises UnsupportedParameterError for what cannot be called.
    """
    if isinstance(processors, (str, bytes)) or not isinstance(processors, Iterable):
        raise UnsupportedParameterError(f"logits_processors must be a list of callables, got {processors!r}")
    found = tuple(processors)
    for one in found:
        if not callable(one):
            raise UnsupportedParameterError(f"a logits processor must be callable, got {type(one).__name__}")
    return found


def guarded(processors: Sequence[LogitsProcessor], timeout_s: float) -> tuple[Guard, ...]:
    """A guard for each processor. What one returns becomes an array on its thread: that may be the user's code too."""
    return tuple(Guard("a logits processor", _floats_of(one), timeout_s) for one in processors)


def _floats_of(processor: LogitsProcessor) -> LogitsProcessor:
    return lambda ids, logits: np.asarray(processor(ids, logits), np.float32)


class Guard:
    """One callable of a user's, called on a thread of its own. A hung one holds its daemon thread, and nothing else.

    ``start()`` is for the caller's thread, not the engine's: an exception that strikes the engine while it starts a
    thread could kill that before it begins, and the engine would wait for ever. ``close()`` ends the thread, whoever
    still holds the guard. ``after`` is called on the thread after each call.
    """

    __slots__ = ("_after", "_calls", "_timeout_s", "_what", "_work")

    def __init__(
        self, what: str, work: Callable[..., Any], timeout_s: float, after: Callable[[], None] | None = None
    ) -> None:
        self._what, self._timeout_s, self._after = what, min(timeout_s, threading.TIMEOUT_MAX / 2), after
        self._work: Callable[..., Any] | None = work
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()

    def start(self) -> None:
        """Begin to serve; once. Caller's thread."""
        work, self._work = self._work, None  # the thread's from now on, and gone with it
        threading.Thread(
            target=_serve, args=(self._what, work, self._calls, self._after), name="agent_memory-callable", daemon=True
        ).start()

    def close(self) -> None:
        """End the thread, after the call that it is in; idempotent, and for a guard that was never started too."""
        self._calls.put(None)

    def begin(self, *args: Any) -> Pending:
        """Have the call made, and wait for nothing."""
        call = _Call(args)
        self._calls.put(call)
        return Pending(self._what, call.answer, self._timeout_s)

    def __call__(self, *args: Any) -> Any:
        return self.begin(*args).result()


class Pending:
    """A call that was begun."""

    __slots__ = ("_answer", "_timeout_s", "_what", "deadline")

    def __init__(self, what: str, answer: _Answer, timeout_s: float) -> None:
        self._what, self._answer, self._timeout_s = what, answer, timeout_s
        self.deadline = time.perf_counter() + timeout_s  #: perf_counter time

    @property
    def is_over(self) -> bool:
        """Whether ``result()`` would not wait."""
        return not self._answer.empty() or time.perf_counter() >= self.deadline

    def result(self) -> Any:
        """What the call gave, or raises what it raised; once.

        A call that takes longer than it may is abandoned: RequestTimeoutError.
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
        del call  # it holds logits
        if after is not None:
            after()


def _ordinary(what: str, error: BaseException) -> RequestError:
    """What is no Exception (asyncio's CancelledError, SystemExit) as one: raised as it is, it would end the engine."""
    failure = RequestError(f"{what} raised {type(error).__name__}: {error}")
    failure.__cause__ = failure.__context__ = error
    return failure
