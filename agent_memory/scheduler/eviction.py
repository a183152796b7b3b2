"""What leaves the hot tier, when, and where to: the one place where live KV of idle lineages is given up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from agent_memory.scheduler.admission import Admission
from agent_memory.scheduler.reuse import Plan
from agent_memory.scheduler.saving import Saver
from agent_memory.store.tiers import HotTier, Lineage
from agent_memory.store.worth import leaves_first, worth
from agent_memory.types import Tier

if TYPE_CHECKING:
    from agent_memory.store.store import Store

#: The share of the hot tier that may be filled before what would leave next is copied to warm ahead of need.
_FILLED = 0.75
#: When to look again at what is due but still being copied.
_AGAIN_S = 0.05


class Evictor:
    """Lineages leave the hot tier for warm, where there is one; what is to be saved is saved first. Engine thread only.

    Policy: what is worth least goes first (``store/worth.py``), agents that are pinned after all others. What would
    leave next is copied ahead of need; nobody who decodes waits for a copy. ``ttl_s``: lineages unused for so long
    leave, pinned ones stay.
    """

    def __init__(
        self, hot: HotTier, store: Store, saver: Saver, admission: Admission, *, ttl_s: float | None = None
    ) -> None:
        self._hot, self._store, self._saver, self._admission, self._ttl_s = hot, store, saver, admission, ttl_s
        self.n_evicted = 0
        self._due_s: float | None = None  # when something may have to leave for its age
        self._rest(hot.clock(), ())

    def leave(self, lineage: Lineage, to: Tier = "warm") -> None:
        """Let a lineage go now; ``to``: "warm", or "cold" for the disk alone."""
        if to == "warm":
            self._saver.copy(lineage)
            self._saver.finish(lineage)
        else:
            self._saver.settle(lineage)
        self._hot.take(lineage)
        self.n_evicted += 1

    def make_room(self, n_bytes: int, plan: Plan, *, hurry: bool) -> list[Lineage]:
        """Let idle lineages leave until ``n_bytes`` fit; the one that the plan is about stays, or, where there is no
        room for it and a copy of it, moves.

        With ``hurry`` (others decode), those that warm has no copy of yet stay until they are copied between decode
        steps: they are given back, and nobody has left.
        """
        kept = plan.lineage
        held = self._hot.nbytes - (kept.kv.nbytes if kept is not None and plan.is_moved else 0)
        leaving: list[Lineage] = []
        for lineage in self._in_order():
            if not self._admission.shortfall(n_bytes, held):
                break
            if lineage is not kept:
                leaving.append(lineage)
                held -= lineage.kv.nbytes
        if hurry:
            for lineage in leaving:
                self._saver.copy(lineage)
            if uncopied := [lineage for lineage in leaving if self._saver.is_copying(lineage)]:
                return uncopied
        for lineage in leaving:
            self.leave(lineage)
        plan.is_moved = kept is not None and (plan.is_moved or self._admission.shortfall(n_bytes, self._hot.nbytes) > 0)
        return []

    def free(self) -> None:
        """Let lineages leave until idle and reserved bytes fit the budget; copy ahead what would leave next."""
        held = self._hot.nbytes
        to_leave, to_copy = self._admission.shortfall(0, held), 0
        if self._store.warm.is_on:
            to_copy = held + self._admission.reserved_bytes - int(_FILLED * self._admission.limit_bytes)
        if max(to_leave, to_copy) <= 0:
            return
        for lineage in self._in_order():
            n_bytes = lineage.kv.nbytes
            if to_leave > 0:
                self.leave(lineage)
            elif to_copy > 0:
                self._saver.copy(lineage)
            to_leave -= n_bytes
            to_copy -= n_bytes

    def evict(self, owner: str | None, to: Tier) -> None:
        """Let one agent's lineage, or all, leave."""
        for lineage in self._hot:
            if owner is None or lineage.owner == owner:
                lineage.is_offered = self._saver.is_copying(lineage)  # what warm has let go of since, it may have again
                self.leave(lineage, to)

    def _in_order(self) -> Iterator[Lineage]:
        """Idle lineages, what is worth least first; none of them depends on another."""
        now = self._hot.clock()
        return leaves_first(self._hot, lambda one: (self._is_pinned(one), self._worth(one, now)))

    def _is_pinned(self, lineage: Lineage) -> bool:
        return lineage.agent_id in self._store.pins

    def _worth(self, lineage: Lineage, now: float) -> float:
        is_stored = self._store.has_disk and lineage.is_saved
        after: Tier = "warm" if self._store.warm.is_on else "cold" if is_stored else "none"
        n_bytes = lineage.kv.nbytes
        cost_s = self._store.costs.back_s(after, len(lineage.ids), n_bytes)
        return worth(cost_s, n_bytes, now - lineage.used_s)

    # age

    @property
    def is_due(self) -> bool:
        """Whether something may have to leave for its age."""
        return self._due_s is not None and self._hot.clock() >= self._due_s

    @property
    def rest_s(self) -> float | None:
        """Seconds until then; None: nothing ever will."""
        return None if self._due_s is None else max(0.0, self._due_s - self._hot.clock())

    def expire(self, *, hurry: bool) -> None:
        """Let go of what was unused for too long, in hot and warm; with ``hurry`` (others decode) only of what warm has
        got its copy of, the rest a little later.
        """
        now = self._hot.clock()
        rests = [self._store.warm.expire()]
        for lineage in self._hot if self._ttl_s is not None else ():
            idle_s = now - lineage.used_s
            if self._ttl_s is None or self._is_pinned(lineage):
                continue
            if idle_s < self._ttl_s:
                rests.append(self._ttl_s - idle_s)
                continue
            self._saver.copy(lineage)
            if hurry and self._saver.is_copying(lineage):
                rests.append(_AGAIN_S)
            else:
                self.leave(lineage)
        self._rest(now, rests)

    def _rest(self, now: float, rests: Iterable[float | None]) -> None:
        """Look again when the first of what is here may be due, or of what may come meanwhile."""
        known = [rest for rest in (*rests, self._ttl_s, self._store.warm.ttl_s) if rest is not None]
        self._due_s = now + min(known) if known else None
