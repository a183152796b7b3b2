"""The gate that requests pass on their way to the engine: closed while the model is swapped."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from agent_memory.scheduler.callables import THREAD_NAME

_OURS = ("agent_memory-engine", THREAD_NAME)  #: threads for which a swap waits


class Gate:
    """Lets requests be made, and holds them back while the model is swapped. Any thread.

    - Between a prompt's tokenization and its place in the line no swap takes place.
    - Threads for which the swap itself waits pass a closed gate.
    - ``after`` is called when nobody passes any more.
    """

    def __init__(self, after: Callable[[], None]) -> None:
        self._after = after
        self._changed = threading.Condition()
        self._n_inside, self._is_closed = 0, False

    def is_passed(self) -> bool:
        """True while a request is being made."""
        return self._n_inside > 0

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Hold the gate open for a block; waits while it is closed. Never nested."""
        is_ours = threading.current_thread().name.startswith(_OURS)
        with self._changed:
            self._changed.wait_for(lambda: is_ours or not self._is_closed)
            self._n_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_inside -= 1
                is_last = not self._n_inside
                self._changed.notify_all()
            if is_last:
                self._after()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Hold the gate closed for a block; waits until nobody passes, and for another swap's end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._is_closed = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._n_inside)
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()
