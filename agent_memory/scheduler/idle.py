"""Work for the times when nothing waits or runs: long-term memory's upkeep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Nothing has run, and nothing was noted, for so long: not between two turns that follow one another.
QUIET_S = 0.25


class Idle:
    """When the engine thread does idle work, and for how long. Engine thread, but for ``note``.

    - ``note`` says that there may be work. Without it the thread sleeps: nothing is polled.
    - A step takes about ``max_s``: no request that comes meanwhile waits longer.
    - ``work`` takes the seconds that it may use, and returns those after which it wants to go on; None: nothing is
      left. It handles its own errors.
    """

    def __init__(self, max_s: float | None, wake: Callable[[], None]) -> None:
        self._max_s, self._wake = max_s, wake
        self.work: Callable[[float], float | None] | None = None
        self._due: float | None = None
        self._lock = threading.Lock()

    @property
    def is_due(self) -> bool:
        """True if a step may run now."""
        return self._due is not None and time.perf_counter() >= self._due

    @property
    def sleep_s(self) -> float | None:
        """Seconds until a step is due; None where none will be."""
        due = self._due
        return None if due is None else max(0.0, due - time.perf_counter())

    def note(self) -> None:
        """Say that there may be work. Any thread; never raises."""
        if self._max_s is None or self.work is None:
            return
        with self._lock:
            is_news, self._due = self._due is None, time.perf_counter() + QUIET_S
        if is_news:
            self._wake()

    def put_off(self) -> None:
        """Wait anew: something else runs."""
        with self._lock:
            if self._due is not None:
                self._due = time.perf_counter() + QUIET_S

    def step(self) -> None:
        """Do what is due, if anything is."""
        if not self.is_due or self.work is None or self._max_s is None:
            return
        with self._lock:
            self._due = None
        wait_s = self.work(self._max_s)
        with self._lock:
            if wait_s is not None and self._due is None:
                self._due = time.perf_counter() + wait_s
