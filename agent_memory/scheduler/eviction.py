"""Eviction from the hot tier: which idle lineages leave it, when, and to which tier."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Literal

from agent_memory.prefix.worth import leaves_first, worth
from agent_memory.scheduler.absent import Absentees
from agent_memory.scheduler.admission import Admission
from agent_memory.scheduler.filling import Filling
from agent_memory.scheduler.observer import Observer
from agent_memory.scheduler.reuse import Plan
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.saving import Saver
from agent_memory.scheduler.unkept import Unkept
from agent_memory.scheduler.waiting import Waiting
from agent_memory.tiers.hot import HotTier, Lineage
from agent_memory.tiers.lookup import Match
from agent_memory.tiers.tiers import Tiers
from agent_memory.types import Tier

#: Share of the hot tier that may be full before the next lineages to be evicted are copied to warm ahead of need.
_FILLED = 0.75
#: Seconds until a due lineage that is still being copied is tried again.
_AGAIN_S = 0.05
#: Share of a lineage's tokens that must be stored before it is evicted for what is only expected.
_STORED = 0.9


class Evictor:
    """Evicts idle lineages from hot to warm (if enabled), finishing their saves first. Engine thread only.

    - The lowest worth first (``prefix/worth.py``); lineages of pinned agents last.
    - The next ones to be evicted are copied to warm ahead of need. No row that decodes waits for a copy.
    - The seconds until a lineage's next use are those that ``Foresight`` expects, or else those since its last use;
      none while a request of its agent waits.
    - What is being restored ahead of need is given up first.
    - Lineages unused for ``ttl_s`` are evicted, but those of pinned agents.
    - Idle, reserved and the batch's spare bytes fit the budget after ``free``.
    """

    def __init__(
        self,
        hot: HotTier,
        tiers: Tiers,
        saver: Saver,
        admission: Admission,
        running: Running,
        *,
        ttl_s: float | None = None,
        unkept: Unkept | None = None,
        observer: Observer | None = None,
        waiting: Waiting | None = None,
        filling: Filling | None = None,
        absentees: Absentees | None = None,
    ) -> None:
        self._hot, self._tiers, self._store, self._warm = hot, tiers, tiers.store, tiers.warm
        self._foresight = tiers.foresight
        self._waiting = Waiting() if waiting is None else waiting  # one without requests is false
        self._filling, self._absentees = filling or Filling(tiers), absentees or Absentees()
        self._saver, self._admission, self._running, self._ttl_s = saver, admission, running, ttl_s
        self._unkept = unkept if unkept is not None else Unkept()
        self._observer = observer or Observer()
        self.n_evicted = 0
        self._due_s: float | None = None  # when KV may be past its time to live, by the tier's clock
        self._set_alarm(hot.clock(), ())

    def evict(self, lineage: Lineage, to: Tier = "warm") -> None:
        """Evict a lineage now; ``to``: "warm", or "cold" for the disk alone."""
        began = time.perf_counter()
        if to == "warm":
            self._saver.copy(lineage)
            self._saver.finish(lineage)
        else:
            self._saver.settle(lineage)
        self._hot.take(lineage)
        self._unkept.note(lineage.owner, lineage.ids, "evicted")
        if lineage.is_ahead:
            self._foresight.restored(is_useful=False)
        self.n_evicted += 1
        kept_in = self._next_tier(lineage, has_warm=to == "warm" and self._warm.is_on)
        self._observer.evicted(lineage.owner, len(lineage.ids), lineage.kv.nbytes, kept_in, began)

    def make_room(self, n_bytes: int, plan: Plan, *, hurry: bool) -> list[Lineage]:
        """Evict idle lineages until ``n_bytes`` fit. The plan's own lineage stays; where its bytes and those of a copy
        do not both fit, it is moved.

        With ``hurry`` (rows decode), nothing is evicted before warm has its copy: returns the lineages that are still
        to be copied, between decode steps. Else returns none.
        """
        kept = plan.lineage
        own_bytes = kept.kv.nbytes if kept is not None and plan.is_moved else 0
        self._tidy(n_bytes, own_bytes)
        idle_bytes = self._idle_bytes - own_bytes
        leaving: list[Lineage] = []
        for lineage in self._in_order():
            if not self._admission.shortfall(n_bytes, idle_bytes):
                break
            if lineage is not kept:
                leaving.append(lineage)
                idle_bytes -= lineage.kv.nbytes
        if hurry:
            for lineage in leaving:
                self._saver.copy(lineage)
            if uncopied := [lineage for lineage in leaving if self._saver.is_copying(lineage)]:
                return uncopied
        for lineage in leaving:
            self._evict_for_bytes(lineage)
        plan.is_moved = kept is not None and (plan.is_moved or self._admission.shortfall(n_bytes, self._idle_bytes) > 0)
        return []

    def free(self) -> None:
        """Evict until idle and reserved bytes fit the budget; copy the next lineages to warm ahead of need."""
        self._tidy(0)
        idle_bytes = self._idle_bytes
        to_evict, to_copy = self._admission.shortfall(0, idle_bytes), 0
        if self._warm.is_on:
            to_copy = idle_bytes + self._admission.reserved_bytes - int(_FILLED * self._admission.limit_bytes)
        if max(to_evict, to_copy) <= 0:
            return
        for lineage in self._in_order():
            n_bytes = lineage.kv.nbytes
            if to_evict > 0:
                self._evict_for_bytes(lineage)
            elif to_copy > 0:
                self._saver.copy(lineage)
            to_evict -= n_bytes
            to_copy -= n_bytes

    def make_way(self, n_bytes: int, match: Match, wait_s: float) -> Literal["free", "later", "no"]:
        """Make ``n_bytes`` free for a match that is expected to be used in ``wait_s``.

        Evicts lineages of less worth, if they are stored. "later": some are still being saved or copied to warm; "no":
        not enough are worth less. Then nothing is evicted.
        """
        cost_s = self._store.costs.back_s(match.tier, match.n_tokens, n_bytes)
        ours, now = worth(cost_s, n_bytes, wait_s), self._hot.clock()
        leaving, idle_bytes, waiting = list[Lineage](), self._idle_bytes, set(self._waiting.owners)
        for lineage in self._in_order():
            if not self._admission.shortfall(n_bytes, idle_bytes):
                break
            if self._is_pinned(lineage) or self._worth(lineage, now, waiting) >= ours:
                return "no"
            leaving.append(lineage)
            idle_bytes -= lineage.kv.nbytes
        if self._admission.shortfall(n_bytes, idle_bytes):
            return "no"
        for lineage in leaving:
            self._saver.copy(lineage)
        if any(self._saver.is_saving(lineage) or self._saver.is_copying(lineage) for lineage in leaving):
            return "later"
        if any(self._tiers.match(one.ids).n_tokens < _STORED * len(one.ids) for one in leaving):
            return "no"
        for lineage in leaving:
            self._evict_for_bytes(lineage)
        self._tidy(n_bytes)
        return "free"

    def _evict_for_bytes(self, lineage: Lineage) -> None:
        self.evict(lineage)
        self._absentees.note_evicted(lineage)

    @property
    def _idle_bytes(self) -> int:
        return self._hot.nbytes + self._filling.nbytes

    def has_room(self, n_bytes: int) -> bool:
        """True if ``n_bytes`` fit with nothing evicted."""
        return not self._admission.shortfall(n_bytes, self._idle_bytes)

    @property
    def has_ttl(self) -> bool:
        """True if lineages leave hot by their age."""
        return self._ttl_s is not None

    def _tidy(self, n_bytes: int, own_bytes: int = 0) -> None:
        """Free the batch's spare bytes, then what is only expected, where the budget has no room for them: before any
        lineage leaves. ``own_bytes``: of hot, that the request itself takes.
        """
        idle_bytes = self._idle_bytes - own_bytes
        self._running.tidy(lambda spare_bytes: not self._admission.shortfall(n_bytes, idle_bytes + spare_bytes))
        if self._admission.shortfall(n_bytes, idle_bytes):
            self._filling.abandon()

    def evict_idle(self, owner: str | None, to: Tier) -> None:
        """Evict one agent's lineage, or all."""
        for lineage in self._hot:
            if owner is None or lineage.owner == owner:
                self._saver.settle(lineage)
                if owner is not None and self._hot.bequeath(lineage):
                    continue  # a fork shares it
                lineage.is_offered = self._saver.is_copying(lineage)  # warm may have evicted its copy since
                self.evict(lineage, to)
        self._hot.disinherit(owner)

    def _in_order(self) -> Iterator[Lineage]:
        """Yield idle lineages, pinned ones last, the lowest worth first."""
        now, waiting = self._hot.clock(), set(self._waiting.owners)
        return leaves_first(self._hot, lambda one: (self._is_pinned(one), self._worth(one, now, waiting)))

    def _is_pinned(self, lineage: Lineage) -> bool:
        return lineage.agent_id in self._store.pins

    def _worth(self, lineage: Lineage, now: float, waiting: set[str]) -> float:
        after, n_bytes = self._next_tier(lineage, has_warm=self._warm.is_on), lineage.kv.nbytes
        cost_s = self._store.costs.back_s(after, len(lineage.ids), n_bytes)
        idle_s = now - lineage.used_s
        if lineage.owner in waiting and self._foresight.is_on:
            return worth(cost_s, n_bytes, 0.0)
        return worth(cost_s, n_bytes, self._foresight.wait_s(lineage.owner, idle_s))

    def _next_tier(self, lineage: Lineage, *, has_warm: bool) -> Tier:
        """The fastest tier that has the KV of a lineage once it has left hot."""
        return "warm" if has_warm else "cold" if self._store.has_disk and lineage.is_saved else "none"

    # age

    @property
    def is_due(self) -> bool:
        """True if a lineage or a warm piece may be past its time to live."""
        return self._due_s is not None and self._hot.clock() >= self._due_s

    @property
    def sleep_s(self) -> float | None:
        """Seconds until ``is_due``; None: it never will be."""
        return None if self._due_s is None else max(0.0, self._due_s - self._hot.clock())

    def expire(self, *, hurry: bool) -> None:
        """Evict lineages and warm pieces past their time to live. With ``hurry`` (rows decode), a lineage that is still
        being copied to warm is evicted a little later.
        """
        now = self._hot.clock()
        sleeps = [self._warm.expire()]
        for lineage in self._hot if self._ttl_s is not None else ():
            idle_s = now - lineage.used_s
            if self._ttl_s is None or self._is_pinned(lineage):
                continue
            if idle_s < self._ttl_s:
                sleeps.append(self._ttl_s - idle_s)
                continue
            self._saver.copy(lineage)
            if hurry and self._saver.is_copying(lineage):
                sleeps.append(_AGAIN_S)
            else:
                self.evict(lineage)
        self._set_alarm(now, sleeps)

    def _set_alarm(self, now: float, sleeps: Iterable[float | None]) -> None:
        """Be due after the shortest of ``sleeps``, and before KV that comes meanwhile may be past its time to live."""
        known = [sleep for sleep in (*sleeps, self._ttl_s, self._warm.ttl_s) if sleep is not None]
        self._due_s = now + min(known) if known else None
