"""`Breaker`: a remote that failed is left alone for a while, so that it costs its time limit once.

| state | what happens |
| --- | --- |
| closed | calls are made |
| open | calls are skipped until the pause is over |
| half open | one call is made; the others are skipped until it has ended |

The pause doubles with each failure in a row. One warning for each outage, one line when it is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from attrs import frozen

from agent_memory.remote.failures import BucketError, ObjectDamagedError

log = logging.getLogger("agent_memory.remote")

_T = TypeVar("_T")


@frozen
class Outages:
    """What a breaker counted: failed calls, outages (times it opened from closed), calls skipped meanwhile."""

    n_failed: int
    n_outages: int
    n_skipped: int
    is_open: bool
    last_error: str | None


class Breaker:
    """Decides whether a call of a remote is made. Any thread; no call waits.

    Callers use `call`; beside it, every `allows` that returned True is followed by one `succeeded`, `failed` or
    `abandoned`.
    """

    def __init__(
        self,
        place: str,
        *,
        pause_s: float = 2.0,
        max_pause_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place, self._first_s, self._max_s, self._clock = place, pause_s, max_pause_s, clock
        self._lock = threading.Lock()
        self._pause_s = 0.0  #: 0: closed
        self._retry_at = 0.0
        self._is_trying = False
        self._n_failed = self._n_outages = self._n_skipped = 0
        self._last_error: str | None = None

    def call(self, work: Callable[[], _T]) -> _T | None:
        """Return what ``work`` returns; None if it is not called now.

        A BucketError counts as a failure, ObjectDamagedError as an answer. Whatever else it raises says nothing of the
        remote: the next caller may try. All go through.
        """
        if not self.allows():
            return None
        try:
            found = work()
        except BucketError as error:
            self.failed(error)
            raise
        except ObjectDamagedError:
            self.succeeded()
            raise
        except BaseException:  # whatever it is, the turn must not stay taken
            self.abandoned()
            raise
        self.succeeded()
        return found

    def is_due(self) -> bool:
        """Return True if a call would be made now; one that would not is counted as skipped."""
        if not self.allows():
            return False
        self.abandoned()
        return True

    def allows(self) -> bool:
        """Return True if a call may be made now; a call that may not is counted as skipped."""
        with self._lock:
            if not self._pause_s:
                return True
            if self._is_trying or self._clock() < self._retry_at:
                self._n_skipped += 1
                return False
            self._is_trying = True
            return True

    def succeeded(self) -> None:
        """Record that a call was answered, with whatever answer."""
        with self._lock:
            was_open, self._pause_s, self._is_trying = bool(self._pause_s), 0.0, False
        if was_open:
            log.info("remote %s answers again", self._place)

    def failed(self, error: Exception) -> None:
        """Record that a call failed: no call is made for a while."""
        with self._lock:
            self._n_failed += 1
            self._last_error = str(error)
            is_first = not self._pause_s
            # calls of one outage that were on their way together count as one failure in a row
            if is_first or self._is_trying:
                self._pause_s = min(self._pause_s * 2 or self._first_s, self._max_s)
                self._retry_at = self._clock() + self._pause_s
            self._n_outages += is_first
            self._is_trying = False
        if is_first:
            log.warning("%s. It is left alone for %.3g s, then longer; KV is computed instead", error, self._first_s)

    def abandoned(self) -> None:
        """Record that a call was not made after all, or cancelled: its outcome says nothing."""
        with self._lock:
            self._is_trying = False

    def figures(self) -> Outages:
        """Return what was counted."""
        with self._lock:
            return Outages(self._n_failed, self._n_outages, self._n_skipped, bool(self._pause_s), self._last_error)
