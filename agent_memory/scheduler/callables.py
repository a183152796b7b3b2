"""Users' own code in the middle of decoding: on a side thread, and not for longer than it may take."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from attrs import define, field

from agent_memory.errors import RequestTimeoutError, UnsupportedParameterError
from agent_memory.protocols import LogitsProcessor


def guarded(processors: Iterable[LogitsProcessor], timeout_s: float) -> tuple[LogitsProcessor, ...]:
    """Each processor, bounded: a call of more than ``timeout_s`` raises RequestTimeoutError and is abandoned.

    Raises UnsupportedParameterError for what cannot be called.
    """
    if isinstance(processors, (str, bytes)) or not isinstance(processors, Iterable):
        raise UnsupportedParameterError(f"logits_processors must be a list of callables, got {processors!r}")
    found = tuple(processors)
    for one in found:
        if not callable(one):
            raise UnsupportedParameterError(f"a logits processor must be callable, got {type(one).__name__}")
    return tuple(_Guard(one, timeout_s) for one in found)


class _Guard:
    """One processor, called on a thread of its own. A hung one holds its daemon thread, and nothing else.

    The thread starts here, on the caller's thread, and ends with the guard. Were it started for every call, an
    exception that strikes the engine meanwhile could kill it before it begins, and the engine would wait for ever.
    """

    __slots__ = ("__weakref__", "_calls", "_timeout_s")

    def __init__(self, processor: LogitsProcessor, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        threading.Thread(
            target=_serve, args=(processor, self._calls), name="agent_memory-callable", daemon=True
        ).start()
        weakref.finalize(self, self._calls.put, None)

    def __call__(self, ids: Sequence[int], logits: np.ndarray[Any, Any]) -> Any:
        call = _Call(ids, logits)
        self._calls.put(call)
        try:
            result, error = call.answer.get(timeout=self._timeout_s)
        except Empty:
            raise RequestTimeoutError(
                f"a logits processor did not return within {self._timeout_s} s (Config.callable_timeout_s)"
            ) from None
        if error is not None:
            raise error
        return result


@define(eq=False)
class _Call:
    ids: Sequence[int]
    logits: np.ndarray[Any, Any]
    answer: SimpleQueue[tuple[Any, BaseException | None]] = field(factory=SimpleQueue)


def _serve(processor: LogitsProcessor, calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        try:
            call.answer.put((processor(call.ids, call.logits), None))
        except BaseException as error:  # noqa: BLE001 - not this thread's: raised again in the engine's
            call.answer.put((None, error))
        del call  # it holds logits
