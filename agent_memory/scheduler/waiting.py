"""The line of requests that have not started: by priority, then first come. No request waits for ever."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

from agent_memory.errors import QueueFullError
from agent_memory.scheduler.request import Request

#: A request gains one level of priority for each this many seconds of waiting.
AGE_S = 10.0


class Places:
    """Places in the line: one for each request that was handed in, not cancelled, and has not started. Any thread.

    - ``limit``: number of places; None: any number.
    - A request takes its place on its caller's thread, before the engine knows of it, and leaves it once.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._taken: set[Request] = set()
        self._lock = threading.RLock()  # a finalizer that runs meanwhile may cancel a request

    def check(self, n_asked: int = 1) -> None:
        """Raise QueueFullError where fewer than ``n_asked`` places are free."""
        if self._limit is not None and len(self._taken) + n_asked > self._limit:
            raise QueueFullError(len(self._taken), self._limit, n_asked)

    def take(self, request: Request) -> None:
        """Give a place to a request. Raises QueueFullError."""
        with self._lock:
            self.check()
            self._taken.add(request)

    def leave(self, request: Request) -> None:
        """Free the place of a request; idempotent."""
        with self._lock:
            self._taken.discard(request)


class Waiting:
    """Requests in order of arrival; each has one of ``places``. Engine thread only."""

    def __init__(self, places: Places | None = None) -> None:
        self._requests: list[Request] = []
        self._places = places or Places()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests))

    @property
    def owners(self) -> list[str]:
        """Agents of waiting requests, the longest waiting first."""
        return list(dict.fromkeys(request.owner for request in self._requests if request.owner is not None))

    def add(self, request: Request) -> None:
        """Add a request."""
        self._requests.append(request)

    def remove(self, request: Request) -> None:
        """Remove a request."""
        self._requests.remove(request)
        self._places.leave(request)

    def has_owner(self, owner: str) -> bool:
        """True if a request of an agent waits."""
        return any(request.owner == owner for request in self._requests)

    def in_order(self, now: float) -> list[Request]:
        """Return requests that may start next, in order, at ``now`` (perf_counter). O(n log n).

        Of an agent's requests only the oldest, at the highest priority among them: a conversation is never reordered.
        """
        firsts: dict[str | int, Request] = {}
        priorities: dict[str | int, int] = {}
        for request in sorted(self._requests, key=lambda r: r.created):
            key = id(request) if request.owner is None else request.owner
            firsts.setdefault(key, request)
            priorities[key] = max(priorities.get(key, -sys.maxsize), effective_priority(request, now))
        return [firsts[key] for key in sorted(firsts, key=lambda k: (-priorities[k], firsts[k].created))]

    def clear(self) -> None:
        """Empty the line."""
        for request in self._requests:
            self._places.leave(request)
        self._requests.clear()


def effective_priority(request: Request, now: float) -> int:
    """Return a request's priority, plus one for each ``AGE_S`` since it was made."""
    return request.priority + int((now - request.created) / AGE_S)
