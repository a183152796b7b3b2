"""`Rates`: how fast a remote is, from what was moved; whether fetching is faster than computing.

Fetching n tokens of b bytes is worth it where ``latency + b / link < n / prefill``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from attrs import frozen

HALF_LIFE_S = 300.0  #: what was moved so long ago weighs half
FORGET_S = 1800.0  #: what was measured so long ago is not believed: the next fetch measures anew
MIN_BYTES = 256 << 10  #: a smaller transfer measures the latency, not the link


@frozen
class Link:
    """A measured link: ``bytes_per_s`` and ``latency_s`` (of one round), None where not measured yet or forgotten;
    how many requests were ``n_fetched`` and ``n_computed`` instead because that was judged faster."""

    bytes_per_s: float | None
    latency_s: float | None
    n_fetched: int
    n_computed: int


class _Decayed:
    """A ratio of two sums in which older terms weigh less."""

    def __init__(self) -> None:
        self._above = self._below = 0.0
        self._at: float | None = None

    def add(self, above: float, below: float, now: float) -> None:
        weight = 0.5 ** ((now - self._at) / HALF_LIFE_S) if self._at is not None else 0.0
        self._above, self._below, self._at = self._above * weight + above, self._below * weight + below, now

    def value(self, now: float) -> float | None:
        if self._at is None or now - self._at > FORGET_S or not self._below:
            return None
        return self._above / self._below


class Rates:
    """Measures a link and decides by it. Any thread; some microseconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._link, self._latency = _Decayed(), _Decayed()
        self._n_fetched = self._n_computed = 0

    def moved(self, n_bytes: int, seconds: float) -> None:
        """Record a fetch: bytes that arrived, of one object or of several together, and the time it all took."""
        if n_bytes < MIN_BYTES:
            return
        with self._lock:
            now = self._clock()
            carrying_s = max(seconds - (self._latency.value(now) or 0.0), seconds / 10, 1e-9)
            self._link.add(n_bytes, carrying_s, now)

    def answered(self, seconds: float) -> None:
        """Record a round of look-ups and the time it took."""
        with self._lock:
            self._latency.add(seconds, 1.0, self._clock())

    def fetch_s(self, n_bytes: int) -> float | None:
        """Return how long a fetch of so many bytes takes, by what was measured; None if nothing was."""
        with self._lock:
            now = self._clock()
            link = self._link.value(now)
            return None if link is None else n_bytes / link + (self._latency.value(now) or 0.0)

    def is_worth(self, n_bytes: int, n_tokens: int, prefill_rate: float | None) -> bool:
        """Decide, and count: True to fetch ``n_bytes``, False to compute ``n_tokens`` at ``prefill_rate`` per second.

        Where either rate is unknown the answer is True: that fetch measures the link.
        """
        fetch_s = self.fetch_s(n_bytes)
        is_faster = fetch_s is None or not prefill_rate or fetch_s < n_tokens / prefill_rate
        with self._lock:
            self._n_fetched += is_faster
            self._n_computed += not is_faster
        return is_faster

    def figures(self) -> Link:
        """Return what was measured and decided."""
        with self._lock:
            now = self._clock()
            return Link(self._link.value(now), self._latency.value(now), self._n_fetched, self._n_computed)
