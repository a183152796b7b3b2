"""Sums over requests that only an observer sees: how they ended, their times, and each agent's share."""

from __future__ import annotations

import heapq
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping

from agent_memory.figures import Histogram
from agent_memory.observe.metrics import CATALOGUE, AgentFigures
from agent_memory.usage import Usage

#: Upper bounds of the histograms, in seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
#: Measured values that a tap keeps for a reader that does not come.
_TAPPED = 100_000

#: Measured values on their way to a reader: (metric, seconds).
Tap = deque[tuple[str, float]]


class Meters:
    """Sums since the Memory was opened. Thread-safe; a request costs a few microseconds.

    An agent's sums stay as long as the Memory: five numbers for each agent that had a reply.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = {"done": 0, "cancelled": 0, "failed": 0}
        names = [metric.name for metric in CATALOGUE if metric.kind == "histogram"]
        self._counts = {name: [0] * (len(BOUNDS) + 1) for name in names}
        self._sums = dict.fromkeys(names, 0.0)
        self._agents: dict[str, list[int]] = {}
        self._taps: list[Tap] = []
        self.faults = 0

    def ended(self, state: str, agent: str | None, usage: Usage | None, total_s: float) -> None:
        """Add a request that has ended; ``usage``: of its reply, if it has one."""
        with self._lock:
            self._ended[state] += 1
            if usage is None:
                return
            self._measure("ttft", usage.ttft_s)
            self._measure("queue", usage.queue_s)
            self._measure("prefill", usage.prefill_s)
            self._measure("request", total_s)
            if usage.cached_tokens:
                self._measure("restore", usage.restore_s)
            if agent is not None:
                sums = self._agents.setdefault(agent, [0, 0, 0, 0, 0])
                added = (1, usage.prompt_tokens, usage.cached_tokens, usage.computed_tokens, usage.output_tokens)
                sums[:] = [was + more for was, more in zip(sums, added, strict=True)]

    def tap(self) -> Tap:
        """Return a queue that every value measured from now on is put into; the newest stay where nobody reads it."""
        tap: Tap = deque(maxlen=_TAPPED)
        with self._lock:
            self._taps.append(tap)
        return tap

    def by_state(self) -> dict[str, int]:
        """Requests by how they ended."""
        with self._lock:
            return dict(self._ended)

    def times(self) -> dict[str, Histogram]:
        """The histograms by name."""
        with self._lock:
            return {name: Histogram(BOUNDS, tuple(counts), self._sums[name]) for name, counts in self._counts.items()}

    def agents(self, n_most: int) -> Mapping[str, AgentFigures]:
        """The agents with the most computed prompt tokens, and their sums."""
        with self._lock:
            top = heapq.nlargest(n_most, self._agents.items(), key=lambda item: (item[1][3], item[1][0]))
            return {name: AgentFigures(*sums) for name, sums in top}

    def _measure(self, name: str, seconds: float) -> None:
        self._counts[name][bisect_left(BOUNDS, seconds)] += 1
        self._sums[name] += seconds
        for tap in self._taps:
            tap.append((name, seconds))
