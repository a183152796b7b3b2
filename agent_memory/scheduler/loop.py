"""The engine thread's loop: one tick after another, between messages.

A tick ends requests that are over, starts those that may start (``starting.py``), runs at most one prefill step
(``prefill.py``) and one decode step (``decode.py``), and hands a little finished KV to the store. Rows end in
``leaving.py``. The loop is single-threaded and knows nothing of the thread that runs it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from agent_memory.protocols import ModelRunner
from agent_memory.scheduler.absent import Absentees
from agent_memory.scheduler.admission import Admission
from agent_memory.scheduler.ahead import Ahead
from agent_memory.scheduler.company import Company
from agent_memory.scheduler.counters import Counters
from agent_memory.scheduler.decode import Decode
from agent_memory.scheduler.drafting import Drafting
from agent_memory.scheduler.eviction import Evictor
from agent_memory.scheduler.filling import Filling
from agent_memory.scheduler.gathering import Gathering
from agent_memory.scheduler.idle import Idle
from agent_memory.scheduler.leaving import Leaving
from agent_memory.scheduler.observer import Observer
from agent_memory.scheduler.pacing import Pacer
from agent_memory.scheduler.prefill import Prefill
from agent_memory.scheduler.replying import Replies
from agent_memory.scheduler.request import Prompt
from agent_memory.scheduler.reuse import Found, Reuse
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.saving import Saver
from agent_memory.scheduler.starting import Starting
from agent_memory.scheduler.taking import Taking
from agent_memory.scheduler.unkept import Unkept
from agent_memory.scheduler.waiting import Places, Waiting
from agent_memory.tiers.hot import Heir, HotTier
from agent_memory.tiers.tiers import Tiers

log = logging.getLogger("agent_memory.engine")

#: Context length assumed for models that name none.
_LONG_TOKENS = 32_768
#: Seconds between two attempts of the saver while it waits for the disk.
_DISK_SLEEP_S = 0.002
#: Seconds between two looks at requests that wait for the network alone: for their deadlines and that of the wait.
_FETCH_SLEEP_S = 0.01


class Loop:
    """Requests and rows of one model. Engine thread only.

    - Every request is in the line (``waiting``), in a row (``running``), being replied to (``replies``), or has ended.
    - The length of a prefill step does not depend on load; ``Pacer`` says how many decode steps follow it.
    - ``prefill_tokens``: the prefill chunk.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tiers: Tiers,
        *,
        hot_bytes: int,
        hot_ttl_s: float | None,
        max_batch: int,
        prefill_tokens: int,
        target_gap_s: float,
        counters: Counters,
        places: Places,
        idle: Idle,
        gathering: Gathering,
        observer: Observer,
        wake: Callable[[], None],
        looks_up: bool = False,
    ) -> None:
        layout, self._costs, self._target_gap_s = runner.layout, tiers.store.costs, target_gap_s
        chunk_tokens = tiers.store.chunk_tokens
        admission = self._admission = _admission(runner, tiers, hot_bytes)
        self.hot, self.waiting, self.replies = HotTier(), Waiting(places), Replies(counters)
        self.running = Running(lambda: runner.open_batch(chunk_tokens), admission, counters)
        self.saver, self.unkept = Saver(tiers, layout, counters, observer), Unkept()
        self._filling, absentees = Filling(tiers), Absentees(is_on=tiers.foresight.is_on)
        self.evictor = Evictor(
            self.hot, tiers, self.saver, admission, self.running, ttl_s=hot_ttl_s, unkept=self.unkept,
            observer=observer, waiting=self.waiting, filling=self._filling, absentees=absentees,
        )  # fmt: skip
        self.ahead = ahead = Ahead(
            tiers, self.hot, self.running, self.waiting, self.saver, self.evictor, admission, self._filling, absentees,
            is_storable=layout.is_storable, wake=wake,
        )  # fmt: skip
        self._reuse = reuse = Reuse(self.hot, tiers, self.saver, layout, prefill_tokens, self.unkept)
        self._leaving = Leaving(
            self.running, self.replies, self.hot, self.saver, self.evictor, self.unkept, ahead,
            is_storable=layout.is_storable,
        )  # fmt: skip
        taking = Taking(self.running, self._leaving)
        self._prefill = Prefill(self.running, self._leaving, taking, prefill_tokens, observer, is_full=layout.is_full)
        self._decode = Decode(self.running, taking, observer, Drafting(runner.tokenizer) if looks_up else None)
        most = max_batch if layout.is_full and tiers.exchange is None else 1  # restored together
        company = Company(self.running, self.waiting, reuse, admission, self.evictor, gathering, most)
        ahead.is_held = lambda: company.may_come
        self._starting = Starting(
            runner, tiers, admission, self.running, self.waiting, reuse, self.evictor, self.saver, self._prefill,
            observer, ahead, company, max_batch=max_batch, target_gap_s=target_gap_s,
        )  # fmt: skip
        self._pacer, self._idle, self._gathering = Pacer(target_gap_s), idle, gathering
        self._at_idle: list[Callable[[], None]] = []

    @property
    def has_work(self) -> bool:
        """True if a tick would do something."""
        if self._gathering.wait_s(self.running):
            return self._has_chores
        return self._is_needed or (not self.waiting and self._idle.is_due)

    @property
    def _is_needed(self) -> bool:
        """True if a request or a tier has work to be done."""
        return bool(self.running) or self._may_start or self._has_chores

    @property
    def _has_chores(self) -> bool:
        """True if there is work beside the requests that wait or run."""
        return self.replies.sleep_s == 0 or self.saver.can_step or self.evictor.is_due or self.ahead.can_step

    @property
    def _may_start(self) -> bool:
        """True if a request waits for something that a tick may bring."""
        if not self.waiting:
            return False
        now = time.perf_counter()
        return not all(request.is_idle(now) for request in self.waiting)

    @property
    def sleep_s(self) -> float | None:
        """Seconds after which there may be work that no message announces; None: there will be none."""
        gather_s = self._gathering.wait_s(self.running)
        if not gather_s and self._is_needed:
            return 0.0  # the wait for company ended since ``has_work`` was asked
        idle_s = _FETCH_SLEEP_S if self.waiting else self._idle.sleep_s
        saver_s = _DISK_SLEEP_S if self.saver.busy else self.evictor.sleep_s
        sleeps = saver_s, self.replies.sleep_s, idle_s, gather_s or None
        return min((sleep for sleep in sleeps if sleep is not None), default=None)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for KV in memory: idle, fetched, prefilling and decoding, padding and spare room included."""
        in_use = self.hot.nbytes + self.running.nbytes + self._filling.nbytes
        return in_use + self._admission.fetched_bytes()

    @property
    def lacks_bytes(self) -> bool:
        """True if a request waits because the bytes that it may need are not free. Any thread."""
        return bool(self.waiting) and self._starting.lacks_bytes

    def is_busy(self, owner: str) -> bool:
        """True if an agent has a request that waits, runs or is being replied to."""
        return self.waiting.has_owner(owner) or owner in self._busy_owners()

    def look(self, prompt: Prompt, owner: str | None, *, is_exact: bool = False) -> Found:
        """Return the KV that a request with ``prompt`` would find now, and why no more; changes nothing."""
        return self._reuse.look(prompt, owner, self.running, is_exact=is_exact)

    def cancel_all_of(self, owner: str) -> bool:
        """Cancel an agent's requests; True if one of them has not ended yet."""
        for request in [*self.waiting, *(row.request for row in self.running)]:
            if request.owner == owner:
                request.is_cancelled = True
        return self.is_busy(owner)

    def cancel_all(self) -> None:
        """Cancel every request that waits or runs."""
        for request in [*self.waiting, *(row.request for row in self.running)]:
            request.is_cancelled = True

    def adopt(self, owner: str, heir: Heir) -> None:
        """Give the idle KV of one agent to another."""
        self._leaving.adopt(owner, heir)

    def forget(self, owner: str | None) -> None:
        """Forget an agent: its prompts whose KV is gone, and its turns; None: the prompts of all."""
        self.unkept.forget(owner)
        self.ahead.forget(owner)

    def discard(self, owner: str) -> None:
        """Drop the idle KV of a deleted agent, unsaved."""
        if (lineage := self.hot.of(owner)) is not None:
            self.saver.settle(lineage)
            self.hot.take(lineage)
        self.hot.disinherit(owner)
        self.ahead.forget(owner)

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call ``call`` once every request has ended; at once where that is so."""
        self._at_idle.append(call)
        self._note_idle()

    def tick(self) -> None:
        """Run one round: sweep, start, prefill, decode, save, expire; idle work where nothing else is to be done."""
        if not self._is_needed and not self.replies:
            if not self.waiting:
                self._idle.step()
            return
        self._idle.put_off()
        self._sweep()
        if self.waiting and self._starting.step(self._busy_owners()) and self._can_gather():
            return
        running, pacer = self.running, self._pacer
        if has_fed := bool(running.prefilling and (not running.decoding or pacer.is_prefill_due)):
            self._prefill_step()
        may_step = not (running.prefilling and pacer.is_prefill_due) and not self._gathering.wait_s(running)
        if has_fed and not any(row.has_stepped for row in running):
            may_step = False  # first the messages: requests that were made meanwhile share the first step
        if running.decoding and may_step:
            pacer.decoded(self._decode.step())
        if self.saver.busy:
            self.saver.step(hurry=bool(running))
        if self.ahead.can_step and not self.lacks_bytes:
            self.ahead.step()
        if self.evictor.is_due:
            self.evictor.expire(hurry=bool(running.decoding))
        self._note_idle()

    def end_all(self, error: BaseException) -> None:
        """End every request with ``error``, between two ticks; the KV that they computed is kept."""
        rows = list(self.running)
        for request in [*(row.request for row in rows), *self.waiting]:
            request.feed.fail(error)
        self.replies.fail_all(error)
        self.waiting.clear()
        if rows:
            self._leaving.retire(rows)
        self._note_idle()

    def fail_all(self, error: BaseException) -> None:
        """End every request with ``error`` and start anew, wherever a tick was interrupted. Never raises an Exception.

        The KV of rows cannot be trusted then and is dropped; idle lineages stay.
        """
        for request in [*(row.request for row in self.running), *self.waiting]:
            request.feed.fail(error)
        self.replies.fail_all(error)
        self.waiting.clear()
        self._filling.abandon()
        try:
            self.running.drop()
        except Exception:  # the batch is broken already: what is left is freed
            log.exception("a broken batch could not be closed")
        self._note_idle()

    def close(self) -> None:
        """Drop all KV."""
        self._filling.abandon()
        self.hot.clear()
        self.running.drop()

    def check(self) -> None:
        """Assert the invariants of what runs; between two ticks."""
        self.running.check()
        owners = [row.request.owner for row in self.running if row.request.owner is not None]
        assert len(owners) == len(set(owners)), "two requests of one agent run at once"
        assert all(len(one.ids) == one.kv.n_tokens for one in self.hot), "a lineage whose ids are not its KV's"

    def _sweep(self) -> None:
        """End requests that were cancelled or are past their deadline, in every state."""
        now = time.perf_counter()
        for request in self.waiting:
            if request.ends(now):
                self.waiting.remove(request)
                self._leaving.note_unstarted(request)
        if over := [row for row in self.running if row.request.ends(now)]:
            self._leaving.retire(over)
        self.replies.step()

    def _can_gather(self) -> bool:
        """True if the first step may wait for requests that arrived during restores, to decode them together.

        A row that joins a moment later costs a step of its own and a copy of the batch's KV. No decoding row waits.
        """
        since = min((row.started for row in self.running), default=0.0)
        return time.perf_counter() - since < self._target_gap_s / 2

    def _prefill_step(self) -> None:
        row, others = self._prefill.next_row(), list(self.running.decoding.values())
        n_fed = row.fed
        seconds = self._prefill.step(row)
        is_late = any(0 < other.first_token < row.request.created for other in others)
        self._pacer.prefilled(seconds, is_last=row.is_ready, is_alone=not others, is_late=is_late)
        self._costs.computed(row.fed - n_fed, seconds)

    def _busy_owners(self) -> set[str | None]:
        return ({row.request.owner for row in self.running} | self.replies.owners) - {None}

    def _note_idle(self) -> None:
        if self._at_idle and not (self.waiting or self.running or self.replies):
            calls, self._at_idle = self._at_idle, []
            for call in calls:
                call()


def _admission(runner: ModelRunner, tiers: Tiers, hot_bytes: int) -> Admission:
    layout = runner.layout
    row_bytes = layout.fixed_bytes(runner.context_tokens or _LONG_TOKENS, tiers.store.chunk_tokens)
    fetched_bytes = (lambda: 0) if tiers.exchange is None else tiers.exchange.held_bytes
    return Admission(hot_bytes, layout.token_bytes, runner.weights_bytes, row_bytes, fetched_bytes)
