"""From a row's outcome to its reply: where the caller's own code has a part in it, nobody else waits for that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import frozen

from agent_memory.scheduler.callables import Pending
from agent_memory.scheduler.counters import Counters
from agent_memory.scheduler.faults import let_go
from agent_memory.scheduler.request import Outcome, Request


@frozen(eq=False)
class _Held:
    request: Request
    outcome: Outcome
    call: Pending


class Replies:
    """Requests whose text is complete and whose value is being made of it. Engine thread only."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._held: list[_Held] = []

    def __len__(self) -> int:
        return len(self._held)

    @property
    def owners(self) -> set[str | None]:
        """Agents whose turn is not yet in their log."""
        return {held.request.owner for held in self._held}

    @property
    def rest_s(self) -> float | None:
        """Seconds until one is over in any case, 0 where one is; None: none is held."""
        if any(held.call.is_over or held.request.is_cancelled for held in self._held):
            return 0.0
        ends = [end for held in self._held for end in (held.call.deadline, held.request.deadline) if end is not None]
        return max(0.0, min(ends) - time.perf_counter()) if ends else None

    def add(self, request: Request, outcome: Outcome) -> None:
        """End a request with its reply or, where the caller's code is asked first, later."""
        try:
            value = request.value(outcome)
            call = request.builder.begin(value) if request.builder is not None and value is not None else None
        except Exception as error:  # noqa: BLE001 - JSON that cannot be read: its own request's failure
            request.feed.fail(let_go(error))
            return
        if call is None:
            self._end(request, outcome, lambda: value)
        else:
            self._held.append(_Held(request, outcome, call))

    def step(self) -> None:
        """End those that are over."""
        now = time.perf_counter()
        for held in list(self._held):
            if held.request.ends(now):
                self._held.remove(held)
            elif held.call.is_over:
                self._end(held.request, held.outcome, held.call.result)
                self._held.remove(held)

    def fail_all(self, error: BaseException) -> None:
        """End all with ``error``."""
        for held in self._held:
            held.request.feed.fail(error)
        self._held.clear()

    def _end(self, request: Request, outcome: Outcome, value: Callable[[], Any]) -> None:
        """The log first, then the reply."""
        try:
            reply = request.commit(outcome, value())
            self._counters.note(outcome.usage)
        except Exception as error:  # noqa: BLE001 - the reply that could not be made is the caller's to see
            request.feed.fail(let_go(error))
        else:
            request.feed.finish(reply)
