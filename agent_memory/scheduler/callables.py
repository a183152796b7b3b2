"""Users' own code in the middle of decoding: on a side thread, and not for longer than it may take."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

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
    """One processor. A hung one holds its daemon thread, and nothing else."""

    __slots__ = ("_processor", "_timeout_s")

    def __init__(self, processor: LogitsProcessor, timeout_s: float) -> None:
        self._processor, self._timeout_s = processor, timeout_s

    def __call__(self, ids: Sequence[int], logits: np.ndarray[Any, Any]) -> Any:
        results: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(self._processor(ids, logits))
            except BaseException as error:  # noqa: BLE001 - a thread's end: raised again below
                errors.append(error)

        thread = threading.Thread(target=work, name="agent_memory-callable", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if errors:
            raise errors[0]
        if not results:
            raise RequestTimeoutError(
                f"a logits processor did not return within {self._timeout_s} s (Config.callable_timeout_s)"
            )
        return results[0]
