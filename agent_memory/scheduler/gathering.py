"""Gathering: whether the first step of rows that have just started waits for requests that are about to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from agent_memory.scheduler.request import Request
from agent_memory.scheduler.row import Row

#: Shares of ``target_gap_s`` that a first step waits: since the newest row started, and since the oldest did.
_NEWEST, _OLDEST = 1 / 8, 1 / 2
#: The share that a first restore waits, since the oldest request was made.
_OLDEST_MADE = 1 / 4


class Gathering:
    """Lets requests that are made one after another share their first step. Engine thread, but for ``is_asked``.

    A row that joins one step later costs a step of its own and waits for it. So the first step waits while

    - another thread is making a request (``is_asked``), or
    - nobody waits yet for what comes: whoever calls ``stream`` in a loop reads no handle before he has all of them.

    So does the first restore, for half as long at most: rows that are restored together join uncopied (``Company``).

    Whoever waits for the only request waits for nothing else: his reading begins the step. A row that decodes never
    waits.
    """

    def __init__(self, target_gap_s: float) -> None:
        self._gap_s = target_gap_s
        self.is_asked: Callable[[], bool] = lambda: False  #: True while a caller's thread is making a request

    def wait_s(self, rows: Iterable[Row]) -> float:
        """Return the seconds that the first step of ``rows`` may still wait; 0 where it may not."""
        started = []
        for row in rows:
            if not row.is_ready or row.has_stepped or row.request.is_cancelled:
                return 0.0  # there is a prompt to compute, a row decodes already, or one must end
            started.append(row.started)
        if not started or not self._may_come(row.request for row in rows):
            return 0.0
        return self._left_s(started, _NEWEST, _OLDEST)

    def restore_wait_s(self, waiting: Iterable[Request]) -> float:
        """Return the seconds that the first restore may wait, while nothing runs."""
        made = [request.created for request in waiting]
        if not made or not self._may_come(waiting):
            return 0.0
        return self._left_s(made, _NEWEST, _OLDEST_MADE)

    def _may_come(self, requests: Iterable[Request]) -> bool:
        return self.is_asked() or not any(request.feed.is_awaited for request in requests)

    def _left_s(self, times: Sequence[float], newest: float, oldest: float) -> float:
        until = min(max(times) + newest * self._gap_s, min(times) + oldest * self._gap_s)
        return max(0.0, until - time.perf_counter())
