"""Ahead: KV is back in the hot tier before the turn that needs it, restored while others decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from attrs import define

from agent_memory.prefix.foresight import Likely, Outlook
from agent_memory.scheduler.absent import Absent, Absentees
from agent_memory.scheduler.admission import Admission
from agent_memory.scheduler.eviction import Evictor
from agent_memory.scheduler.filling import Filling
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.saving import Saver
from agent_memory.scheduler.waiting import Waiting
from agent_memory.tiers.hot import HotTier, Lineage
from agent_memory.tiers.lookup import Match
from agent_memory.tiers.tiers import Tiers
from agent_memory.types import ToolCall

#: Seconds of restoring in one tick: as much as a save may take while rows run.
_SLICE_S = 0.004
#: Expected agents whose KV is looked up at one time.
_MOST = 4


@define(eq=False)
class _Reading:
    """Files of a match on their way into the page cache."""

    n_tokens: int
    is_done: bool = False  #: set on the I/O thread


class Ahead:
    """Restores KV of agents whose turns are expected (``Foresight``). Engine thread only.

    - First the files are read into the page cache, on the I/O thread; then the KV is restored into hot, a tensor at a
      time between decode steps, ``_SLICE_S`` a tick, after all saves that are due.
    - Only lineages of less worth are evicted for it, and only once they are saved and warm has its copy of them. Their
      bytes and its own are within the budget all the time.
    - A request never waits for it: bytes that a request needs are taken from it first; a turn of the very agent goes
      on with what is restored already.
    - A runner whose batch has no ``restoring`` gets nothing restored.
    """

    def __init__(
        self,
        tiers: Tiers,
        hot: HotTier,
        running: Running,
        waiting: Waiting,
        saver: Saver,
        evictor: Evictor,
        admission: Admission,
        filling: Filling,
        absentees: Absentees,
        *,
        is_storable: bool,
        wake: Callable[[], None],
    ) -> None:
        self._tiers, self._hot, self._running, self._waiting = tiers, hot, running, waiting
        self._saver, self._evictor, self._admission = saver, evictor, admission
        self._filling, self._absentees, self._wake = filling, absentees, wake
        self._foresight = tiers.foresight
        self._is_on = is_storable and self._foresight.is_on and hasattr(running.batch, "restoring")
        self._is_due = self._waits_for_saver = False
        self.is_held: Callable[[], bool] = lambda: False  #: True while requests wait to be restored together
        self._readings: dict[str, _Reading] = {}

    # what happens

    def began(self, row: Row) -> None:
        """Note that a row has started."""
        request = row.request
        room_bytes = self._admission.limit_bytes - self._admission.reserved_bytes
        self._foresight.began(request.owner, request.agent_id, room_bytes)
        self._note_due()

    def ended(self, owner: str | None, n_bytes: int, calls: Sequence[ToolCall] = ()) -> None:
        """Note that a row has ended, with KV of ``n_bytes``. ``calls``: those of its reply."""
        self._foresight.ended(owner, [call.name for call in calls], n_bytes)
        self._note_due()

    def replaced(self, lineage: Lineage) -> None:
        """Note that a newer lineage has replaced one: if that was restored ahead and no turn used it, in vain."""
        if lineage.is_ahead:
            self._foresight.restored(is_useful=False)

    def expect(self, planned: list[Absent]) -> None:
        """Replace the plan: agents in the order of their turns, each with the ids that its KV is found by."""
        for one in planned:
            if self._hot.of(one.owner) is None:
                self._absentees.note(one)
        self._foresight.expect([one.owner for one in planned], {one.owner: one.agent_id for one in planned})
        self._note_due()

    def forget(self, owner: str | None) -> None:
        """Drop the ids of an agent, and what is known of it; None: the ids of all."""
        if owner is None or self._filling.owner == owner:
            self._filling.abandon()
        self._absentees.forget(owner)
        if owner is not None:
            self._foresight.forget(owner)

    def outlook(self, owner: str) -> Outlook:
        """Return what is expected of an agent, and why."""
        return self._foresight.outlook(owner)

    def _note_due(self) -> None:
        self._is_due = self._is_on

    # restoring

    @property
    def can_step(self) -> bool:
        """True if there may be something to restore, and no save comes first."""
        if self._saver.can_step or self.is_held():
            return False
        return self._filling.owner is not None or (self._is_due and not (self._waits_for_saver and self._saver.busy))

    def step(self) -> None:
        """Restore for ``_SLICE_S``."""
        until = time.perf_counter() + _SLICE_S
        while self.can_step and time.perf_counter() < until:
            if self._filling.owner is not None:
                self._fill()
            elif not self._begin(until):
                return

    def meet(self, owner: str | None) -> None:
        """Finish what is being restored of the agent of a request that starts."""
        while owner is not None and self._filling.owner == owner:
            self._fill(is_awaited=True)

    def _fill(self, *, is_awaited: bool = False) -> None:
        absent = self._absentees.get(self._filling.owner or "")
        lineage = self._filling.step(is_awaited=is_awaited)
        if lineage is None:
            return
        for replaced in self._hot.put(lineage):
            self._saver.settle(replaced)
        if absent is not None and not self._evictor.has_ttl:
            lineage.used_s = absent.used_s  # a restore is no use: where it was wrong, it is the first to be evicted
        self._absentees.forget(lineage.owner)
        self._is_due = True

    def _begin(self, until: float) -> bool:
        """Begin to restore the first expected agent's KV that is not in hot and has a place there; False if none.

        Those that were not looked up by ``until`` wait for the next turn that begins or ends.
        """
        self._is_due = self._waits_for_saver = False
        busy = {row.request.owner for row in self._running}
        for likely in self._expected():
            absent = self._absentees.get(likely.owner)
            if absent is None or likely.owner in busy or self._hot.of(likely.owner) is not None:
                continue
            if time.perf_counter() > until:
                return False
            match = self._tiers.match(absent.ids)
            if match.n_tokens <= self._hot.match(absent.ids, likely.owner)[1] or not self._is_read(likely, match):
                continue
            n_bytes = self._admission.kv_bytes(match.n_tokens)
            way = self._evictor.make_way(n_bytes, match, likely.wait_s)
            if way == "later":
                self._is_due = self._waits_for_saver = True
                return False
            if way == "free":
                self._readings.pop(likely.owner, None)
                self._filling.begin(self._running.batch, absent, match, n_bytes)
                return True
        return False

    def _expected(self) -> Iterator[Likely]:
        """Yield agents whose request waits for a row, then those whose turn is likely."""
        waiting = [Likely(owner, 0.0) for owner in self._waiting.owners]
        known = {one.owner for one in waiting}
        found = [*waiting, *(one for one in self._foresight.likely() if one.owner not in known)]
        yield from [one for one in found if self._absentees.get(one.owner) is not None][:_MOST]

    def _is_read(self, likely: Likely, match: Match) -> bool:
        """True if a match needs no file that is not in the page cache yet; else they are being read from now on."""
        if match.tier != "cold":
            return True
        reading = self._readings.get(likely.owner)
        if reading is None or reading.n_tokens != match.n_tokens:
            reading = _Reading(match.n_tokens)
            self._readings = {**dict(list(self._readings.items())[1 - _MOST :]), likely.owner: reading}
            self._tiers.prefetch(match, lambda: self._read(reading))
        return reading.is_done

    def _read(self, reading: _Reading) -> None:
        """I/O thread: the files of a match are read."""
        reading.is_done = self._is_due = True
        self._wake()
