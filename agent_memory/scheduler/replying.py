"""From a row's outcome to its reply, while a caller's own class may run, and no other request waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import frozen

from agent_memory.scheduler.callables import Pending
from agent_memory.scheduler.counters import Counters
from agent_memory.scheduler.faults import stripped
from agent_memory.scheduler.request import Outcome, Request


@frozen(eq=False)
class _Building:
    """A reply whose value the caller's class is building."""

    request: Request
    outcome: Outcome
    call: Pending


class Replies:
    """Requests whose text is complete, and whose value is being built. Engine thread only.

    - The log first, then the reply. A log or a value that raises ends its own request.
    - The agent of such a request starts no other: its turn is not in its log yet.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._building: list[_Building] = []

    def __len__(self) -> int:
        return len(self._building)

    @property
    def owners(self) -> set[str | None]:
        """Agents whose turn is not yet in their log."""
        return {one.request.owner for one in self._building}

    @property
    def sleep_s(self) -> float | None:
        """Seconds until the next request must end, 0 if one is over; None: there are none."""
        if any(one.call.is_over or one.request.is_cancelled for one in self._building):
            return 0.0
        ends = [end for one in self._building for end in (one.call.deadline, one.request.deadline) if end is not None]
        return max(0.0, min(ends) - time.perf_counter()) if ends else None

    def add(self, request: Request, outcome: Outcome) -> None:
        """End a request with its reply: now or, where the caller's class builds the value, later."""
        try:
            value = request.asker.value(outcome)
            call = request.builder.begin(value) if request.builder is not None and value is not None else None
        except Exception as error:  # noqa: BLE001 - JSON that cannot be read: its own request's failure
            request.feed.fail(stripped(error))
            return
        if call is None:
            self._end(request, outcome, lambda: value)
        else:
            self._building.append(_Building(request, outcome, call))

    def step(self) -> None:
        """End requests whose value is built, or whose time is up."""
        now = time.perf_counter()
        for one in list(self._building):
            if one.request.ends(now):
                self._building.remove(one)
            elif one.call.is_over:
                self._end(one.request, one.outcome, one.call.result)
                self._building.remove(one)

    def fail_all(self, error: BaseException) -> None:
        """End all requests with ``error``."""
        for one in self._building:
            one.request.feed.fail(error)
        self._building.clear()

    def _end(self, request: Request, outcome: Outcome, value: Callable[[], Any]) -> None:
        try:
            reply = request.asker.commit(outcome, value())
            self._counters.note(outcome.usage)
        except Exception as error:  # noqa: BLE001 - the reply that could not be made is the caller's to see
            request.feed.fail(stripped(error))
        else:
            request.feed.finish(reply)
