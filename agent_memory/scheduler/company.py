"""Company: requests whose KV is restored are restored together, into the buffers in which they decode."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from attrs import frozen

from agent_memory.scheduler.admission import Admission, Place
from agent_memory.scheduler.eviction import Evictor
from agent_memory.scheduler.gathering import Gathering
from agent_memory.scheduler.request import Request
from agent_memory.scheduler.reuse import Plan, Reuse
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.waiting import Waiting


@frozen(eq=False)
class _Others:
    """Requests that may still come, while nothing runs."""

    company: Company
    is_elsewhere = True

    @property
    def is_coming(self) -> bool:
        """True while another request may come in time."""
        return self.company.may_come


class Company:
    """Restores the KV of requests that start in the same tick at once. Engine thread only.

    Rows that are restored apart are copied when they join one batch, which takes as long as restoring them. So

    - the first restore waits, while nothing runs, for requests that are being made: a share of what the first step
      would wait for them (``Gathering``);
    - together are restored requests that start from stored KV alone, have only a few ids left to compute, and would
      each have reserved as many bytes by themselves;
    - in one tick that wait is over for all requests or for none (``begin``): those that were looked at first would else
      be restored with the others, and not start;
    - what was restored for a request that then does not start is dropped at the end of the tick (``clear``);
    - at most ``most`` are restored at once: 1 is to do without company.
    """

    def __init__(
        self,
        running: Running,
        waiting: Waiting,
        reuse: Reuse,
        admission: Admission,
        evictor: Evictor,
        gathering: Gathering,
        most: int,
    ) -> None:
        self._running, self._waiting, self._reuse = running, waiting, reuse
        self._admission, self._evictor, self._gathering = admission, evictor, gathering
        self._most, self._is_on = most, most > 1 and hasattr(running.batch, "restore_together")
        self._plans: dict[Request, Plan] = {}  # those whose KV was restored
        self._is_early: bool | None = None  # in a tick: True if the wait was not over when it began

    @property
    def may_come(self) -> bool:
        """True while nothing runs, and requests may come that could be restored with those that wait."""
        if self._running:
            return False
        return self._gathering.restore_wait_s(self._waiting) > 0 if self._is_early is None else self._is_early

    def others(self, request: Request, plan: Plan) -> _Others | None:
        """Return what a request should wait for before its KV is restored; None: nothing."""
        is_due = self._is_on and request.max_tokens > 0 and request not in self._plans and _is_stored(plan)
        return _Others(self) if is_due and self.may_come else None

    def has_restored(self, request: Request) -> bool:
        """True if KV was restored for a request in this tick, and it has not started."""
        plan = self._plans.get(request)
        return plan is not None and plan.restored is not None

    def take(self, request: Request, plan: Plan) -> None:
        """Give a plan the KV that was restored for its request, if it was."""
        other = self._plans.pop(request, None)
        n_tokens = plan.stored.n_tokens
        if other is None or not _is_stored(plan) or other.stored.n_tokens != n_tokens:
            return
        if np.array_equal(other.wanted[:n_tokens], plan.wanted[:n_tokens]):
            plan.stored, plan.restored, plan.restored_s = other.stored, other.restored, other.restored_s

    def restore(self, request: Request, plan: Plan, place: Place, busy: set[str | None]) -> None:
        """Restore the KV of a request that starts now, and with it that of those which start next."""
        if not self._is_on or self._running or plan.restored is not None or not self._fit([(plan, place)]):
            return
        found, n_bytes = {request: (plan, place)}, place.n_bytes
        for other in self._waiting.in_order(time.perf_counter()):
            if other is request or other.owner in busy - {None} or len(found) == self._most:
                continue
            peeked = self._peek(other)
            if peeked is None or not self._fit([*found.values(), peeked]):
                continue
            n_more = (len(found) + 1) * max(n_bytes // len(found), peeked[1].n_bytes)  # padded to the longest
            if self._evictor.has_room(n_more):
                found[other], n_bytes = peeked, n_more
        if len(found) > 1:
            self._plans = {one: plan for one, (plan, _) in found.items()}
            self._reuse.restore_together(self._running.batch, list(self._plans.values()))

    def begin(self) -> None:
        """Begin a tick's starts; what was left if the last ones were struck is dropped."""
        self.clear()
        self._is_early = self._gathering.restore_wait_s(self._waiting) > 0

    def clear(self) -> None:
        """End a tick's starts: drop what was restored for requests that have not started."""
        self._plans.clear()
        self._is_early = None

    def _peek(self, request: Request) -> tuple[Plan, Place] | None:
        """Return the plan and the place that a waiting request would start with; None if it would not start now."""
        if request.is_exact or not request.max_tokens or request.is_cancelled or _is_held_up(request):
            return None
        try:
            prompt = request.asker.prompt()
            place = self._admission.place(self._admission.worst_tokens(len(prompt.ids), request.max_tokens))
        except Exception:  # noqa: BLE001 - whatever its asker raises ends that request when its own turn comes
            return None
        return self._reuse.plan(request.ids(prompt)[:-1], request.owner, ()), place

    def _fit(self, found: Sequence[tuple[Plan, Place]]) -> bool:
        """True if buffers as long as the longest KV needs hold every prompt, and no row reserves shorter ones."""
        slots = max(self._admission.slots(plan.stored.n_tokens) for plan, _ in found)
        return all(_is_stored(plan) and len(plan.wanted) < slots <= place.tokens for plan, place in found)


def _is_stored(plan: Plan) -> bool:
    return bool(plan.stored.n_tokens) and not plan.n_live and plan.fetched is None and not plan.is_exact


def _is_held_up(request: Request) -> bool:
    return request.awaits is not None and not isinstance(request.awaits, _Others) and request.awaits.is_coming
