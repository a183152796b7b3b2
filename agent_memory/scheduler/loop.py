"""What the engine thread does between two messages: start requests, prefill one row a step, decode all the others.

One tick sweeps what is over, starts what fits, runs at most one prefill step and one decode step of each group, and
hands a little finished KV to the store. It is single-threaded and knows nothing of the thread that runs it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from agent_memory.protocols import KV, Batch, ModelRunner
from agent_memory.scheduler.admission import Admission
from agent_memory.scheduler.counters import Counters
from agent_memory.scheduler.eviction import Evictor
from agent_memory.scheduler.faults import let_go
from agent_memory.scheduler.pacing import Pacer
from agent_memory.scheduler.replying import Replies
from agent_memory.scheduler.request import Request
from agent_memory.scheduler.reuse import Reuse
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.saving import Saver
from agent_memory.scheduler.waiting import AGE_S, Places, Waiting, effective_priority
from agent_memory.store.tiers import HotTier, Lineage

if TYPE_CHECKING:
    from agent_memory.store.store import Store

log = logging.getLogger("agent_memory.engine")

#: What became of the attempt to start a request.
Start = Literal["started", "ended", "awaits", "no bytes", "no row"]

#: For models that do not say how long their context is.
_LONG_TOKENS = 32_768
#: Of the requests that cannot start yet, the first few have their segments read ahead.
_PREFETCHED = 2


class Loop:
    """Requests and rows of one model. Engine thread only."""

    def __init__(
        self,
        runner: ModelRunner,
        store: Store,
        *,
        hot_bytes: int,
        hot_ttl_s: float | None,
        max_batch: int,
        grid: int,
        target_gap_s: float,
        counters: Counters,
        places: Places,
    ) -> None:
        self._runner, self._max_batch, self._grid, self._target_gap_s = runner, max_batch, grid, target_gap_s
        self._store, self._counters = store, counters
        layout = runner.layout
        self.hot = HotTier()
        self.saver = Saver(store, layout, counters)
        self.waiting = Waiting(places)
        self.replies = Replies(counters)
        row_bytes = layout.fixed_bytes(runner.context_tokens or _LONG_TOKENS, store.chunk_tokens)
        self._admission = Admission(hot_bytes, layout.token_bytes, runner.weights_bytes, row_bytes)
        self.evictor = Evictor(self.hot, store, self.saver, self._admission, ttl_s=hot_ttl_s)
        self._reuse = Reuse(self.hot, store, self.saver, layout, grid)
        self._pacer = Pacer(target_gap_s)
        self._prefilling: list[Row] = []  # oldest first
        self._passed = False  # whether the last prefill step was a younger row's
        self._rows: dict[int, Row] = {}  # those that decode
        self._n_rows = 0
        self._at_idle: list[Callable[[], None]] = []
        self._batch: Batch | None = runner.open_batch(store.chunk_tokens)

    @property
    def is_idle(self) -> bool:
        """True if no request waits or runs."""
        return not (self.waiting or self._rows or self._prefilling or self.replies)

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call ``call`` once no request waits or runs; at once where that is so."""
        self._at_idle.append(call)
        self._note_idle()

    def _note_idle(self) -> None:
        if self._at_idle and self.is_idle:
            calls, self._at_idle = self._at_idle, []
            for call in calls:
                call()

    @property
    def has_work(self) -> bool:
        """Whether a tick would do something."""
        runs = bool(self.waiting or self._rows or self._prefilling)
        return runs or self.replies.rest_s == 0 or self.saver.can_step or self.evictor.is_due

    @property
    def rest_s(self) -> float | None:
        """Seconds until there may be work that nobody announces; None: there will be none."""
        rests = 0.002 if self.saver.busy else self.evictor.rest_s, self.replies.rest_s
        return min((rest for rest in rests if rest is not None), default=None)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for KV in memory: idle, prefilling and decoding, padding and spare room included."""
        running = sum(row.kv.nbytes for row in self._prefilling if row.kv) + (self._batch.nbytes if self._batch else 0)
        return self.hot.nbytes + running

    def is_busy(self, owner: str) -> bool:
        """Whether an agent has a request waiting or running."""
        return self.waiting.has_owner(owner) or owner in self._owners()

    def tick(self) -> None:
        """One round of all that there is to do."""
        self._sweep()
        if self._start_waiting() and self._can_gather():
            return
        if self._prefilling and (not self._rows or self._pacer.is_prefill_due):
            started, is_alone = time.perf_counter(), not self._rows
            row = self._next_prefill()
            n_fed = row.fed
            self._prefill_step(row)
            took = time.perf_counter() - started
            is_late = any(0 < other.first_token < row.request.created for other in self._rows.values())
            self._pacer.prefilled(took, is_last=row.is_ready, is_alone=is_alone, is_late=is_late)
            self._store.costs.computed(row.fed - n_fed, took)
        if self._rows and not (self._prefilling and self._pacer.is_prefill_due):
            started = time.perf_counter()
            self._decode_step()
            self._pacer.decoded(time.perf_counter() - started)
        if self.saver.busy:
            self.saver.step(hurry=bool(self._rows or self._prefilling))
        if self.evictor.is_due:
            self.evictor.expire(hurry=bool(self._rows))
        self._note_idle()

    def end_all(self, error: BaseException) -> None:
        """End every request with ``error`` between two ticks; what they computed is kept."""
        rows = self._running()
        for request in [row.request for row in rows] + list(self.waiting):
            request.feed.fail(error)
        self.replies.fail_all(error)
        self.waiting.clear()
        self._retire(rows)
        self._note_idle()

    def fail_all(self, error: BaseException) -> None:
        """End every request with ``error`` and start anew, wherever the thread was interrupted: what the rows computed
        cannot be trusted and is dropped, the idle lineages stay. Never raises an Exception.
        """
        for request in [row.request for row in self._running()] + list(self.waiting):
            request.feed.fail(error)
        self.replies.fail_all(error)
        for row in self._running():
            row.kv = None
            self._admission.remove(row.number)
        self.waiting.clear()
        self._rows.clear()
        self._prefilling.clear()
        batch, self._batch = self._batch, None
        try:
            if batch is not None:
                batch.close()
        except Exception:
            log.exception("a broken batch could not be closed")
        self._note_idle()

    def close(self) -> None:
        """Drop all KV."""
        self.hot.clear()
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.close()

    # starting

    def _sweep(self) -> None:
        """End what was cancelled or ran out of time, in every state."""
        now = time.perf_counter()
        for request in self.waiting:
            if request.ends(now):
                self.waiting.remove(request)
        over = [row for row in self._running() if row.request.ends(now)]
        if over:
            self._retire(over)
        self.replies.step()

    def _can_gather(self) -> bool:
        """Whether a first step may wait for those who called while others were restored: they share it, and a row that
        comes a moment later would cost a step and a copy of everybody's KV. Nobody who decodes waits.
        """
        since = min((row.started for row in self._running()), default=0.0)
        return time.perf_counter() - since < self._target_gap_s / 2

    def _start_waiting(self) -> bool:
        """Start what may start: its agent is idle, there is a row for it, its bytes fit, nobody computes its prefix.

        One that must wait for bytes lets smaller ones pass until it has waited as long as ageing takes. Gives whether
        any was started.
        """
        if not self.waiting:
            return False
        busy, now, n_ahead, n_rows = self._owners(), time.perf_counter(), 0, self._n_rows
        for request in self.waiting.in_order(now):
            if request.owner is not None and request.owner in busy:
                continue
            start: Start
            try:
                start = self._start(request) if self._has_row(now) else "no row"
                if start in ("no row", "no bytes") and n_ahead < _PREFETCHED:
                    n_ahead += 1
                    self._prefetch(request)
            except Exception as error:  # noqa: BLE001 - what cannot start fails alone, and is not tried for ever
                request.feed.fail(let_go(error))
                start = "ended"
            if start in ("started", "ended"):
                self.waiting.remove(request)
            if start == "no row" or (start == "no bytes" and now - request.created > AGE_S):
                break
        return self._n_rows > n_rows

    def _has_row(self, now: float) -> bool:
        """Whether another row may start in this tick: there is one, and starting others has not taken long already."""
        is_late = self._rows and time.perf_counter() - now > self._target_gap_s / 2
        return not is_late and len(self._rows) + len(self._prefilling) < self._max_batch

    def _start(self, request: Request) -> Start:
        """Start a request, or say what it must wait for. Raises what makes it impossible."""
        if request.is_held is not None and request.is_held():
            return "awaits"
        prompt = request.prepare()
        limit = self._runner.context_tokens
        n_prompt = len(prompt.ids)
        max_tokens = min(request.max_tokens, limit - n_prompt) if limit else request.max_tokens
        tokens = self._admission.worst_tokens(n_prompt, max_tokens)
        ids = request.ids(prompt)
        place = self._admission.place(tokens)
        if self._running() and not self._admission.has_room(place.n_bytes):
            return "no bytes"
        plan = self._reuse.plan(ids[:-1], request.owner, self._running())
        if plan.awaited is not None:
            request.is_held = partial(_is_coming, plan.awaited, plan.n_awaited)
            return "awaits"
        if leaving := self.evictor.make_room(place.n_bytes, plan, hurry=bool(self._rows)):
            request.is_held = lambda: any(map(self.saver.is_copying, leaving))
            return "no bytes"
        if self._batch is None:
            self._batch = self._runner.open_batch(self._store.chunk_tokens)
        started = time.perf_counter()
        base = self._reuse.take(self._batch, plan, prompt)
        now = time.perf_counter()
        self._store.costs.loaded(base.tier, base.kv.nbytes if base.kv is not None else 0, now - started)
        row = Row(
            number=self._n_rows,
            request=request,
            prompt=prompt,
            ids=ids,
            base=base,
            tokenizer=self._runner.tokenizer,
            max_tokens=max_tokens,
            group=place.group,
            started=started,
            restored_s=now - started,
            prefilled=now,
        )
        self._n_rows += 1
        self._admission.add(row.number, place)
        self._prefilling.append(row)
        self.evictor.free()
        request.feed.move("prefill", (row.fed, row.n_prompt))
        if row.is_ready and row.max_tokens:
            self._prefill_step(row)  # nothing to feed: it joins the batch at once
        return "started"

    def _prefetch(self, request: Request) -> None:
        if not request.is_prefetched:
            request.is_prefetched = True
            self._store.prefetch(self._store.match(request.ids(request.prepare())[:-1]))

    # running

    def _running(self) -> list[Row]:
        return [*self._rows.values(), *self._prefilling]

    def _owners(self) -> set[str | None]:
        return ({row.request.owner for row in self._running()} | self.replies.owners) - {None}

    def _next_prefill(self) -> Row:
        """The row to compute a step of: by priority, then age; one that needs a single step passes longer ones, but
        never twice running.
        """
        now = time.perf_counter()
        first = max(effective_priority(row.request, now) for row in self._prefilling)
        rows = [row for row in self._prefilling if effective_priority(row.request, now) == first]
        shortest = min(rows, key=lambda row: row.n_prefill - row.fed)
        is_short = shortest.next_step(self._grid) == shortest.n_prefill
        self._passed = is_short and not self._passed and shortest is not rows[0]
        return shortest if self._passed else rows[0]

    def _prefill_step(self, row: Row) -> None:
        """Feed one grid step; at the end, the row joins the batch."""
        batch = self._batch
        assert batch is not None
        try:
            stop = row.next_step(self._grid)
            assert row.kv is not None
            if row.fed < stop:
                batch.prefill(row.kv, row.prompt.ids[row.fed : stop])
                self._count_fed(row, stop)
            if row.is_ready and row.max_tokens:
                self._enter_batch(batch, row)
            elif row.is_ready:
                self._leave([row], [row.kv])
        except Exception as error:  # noqa: BLE001 - one row's failure ends that row alone
            log.warning("prefill failed: %s", type(error).__name__)
            row.request.feed.fail(let_go(error))
            if row.kv is not None and row.kv.n_tokens == row.fed:  # else the fault has taken what was there
                self._retire([row])
            else:
                self._forget(row)

    def _enter_batch(self, batch: Batch, row: Row) -> None:
        request = row.request
        assert row.kv is not None
        batch.insert(
            row.number,
            row.kv,
            row.prompt.ids,
            group=row.group,
            sampling=request.sampling,
            logits_processors=request.logits_processors,
            constraint=request.constraint,
        )
        self._rows[row.number] = row  # first: a row that is in two places ends, one that is in none would not
        self._prefilling.remove(row)
        row.kv = None

    def _count_fed(self, row: Row, stop: int) -> None:
        self._counters.computed_ids += stop - row.fed
        row.fed = stop
        row.request.feed.move("prefill", (row.fed, row.n_prompt))

    def _decode_step(self) -> None:
        """One step of every group. A group whose step raises fails with that error, and no other."""
        batch = self._batch
        assert batch is not None
        for group in sorted({row.group for row in self._rows.values()}):
            mine = [row for row in self._rows.values() if row.group == group]
            try:
                tokens = batch.step(group)
            except Exception as error:  # noqa: BLE001 - the model's own failure: these rows end with it
                log.warning("a decode step failed, and %d rows with it: %s", len(mine), type(error).__name__)
                batch.drop(group)
                for row in mine:
                    row.request.feed.fail(let_go(error))
                    self._forget(row)
                continue
            for row in mine:
                if row.fed < row.n_prompt:
                    self._count_fed(row, row.n_prompt)
            self._take_tokens(batch, tokens)

    def _take_tokens(self, batch: Batch, tokens: list[tuple[int, int]]) -> None:
        failed: list[Row] = []
        finished: list[Row] = []
        for number, token in tokens:
            row = self._rows[number]
            try:
                if raised := batch.error(number):
                    raise raised
                row.accept(token)
                finished += [row] if row.finish is not None else []
            except Exception as error:  # noqa: BLE001 - a user's callable, or text that cannot be parsed: one row ends
                row.request.feed.fail(let_go(error))
                failed.append(row)
        if failed:
            self._retire(failed, have_failed=True)
        if finished:
            self._leave(finished, batch.remove([row.number for row in finished]))

    # leaving

    def _leave(self, rows: list[Row], kvs: list[KV]) -> None:
        """The reply first, then the KV: to the hot tier, and behind the reply to the store."""
        for row, kv in zip(rows, kvs, strict=True):
            try:
                self.replies.add(row.request, row.outcome(kv))
            except Exception as error:  # noqa: BLE001 - text that cannot be read: the caller's to see
                row.request.feed.fail(let_go(error))
            self._rest(row.lineage(kv))
            self._forget(row)
        self.evictor.free()

    def _retire(self, rows: list[Row], *, have_failed: bool = False) -> None:
        """Take rows out that end without a reply; what they computed is kept, as far as it is sound: hot, and behind it
        in the store, where computing it again would be dearer than writing. ``have_failed``: while they decoded.
        """
        batch = self._batch
        if batch is None:
            return
        decoding = [row for row in rows if row.kv is None]
        for row, kv in zip(decoding, batch.remove([row.number for row in decoding]), strict=True):
            row.kv = kv
        for row in rows:
            assert row.kv is not None
            if not have_failed or row.sound(row.kv):
                self._rest(row.lineage(row.kv, is_turn=False))
            self._forget(row)
        self.evictor.free()

    def _forget(self, row: Row) -> None:
        row.kv = None  # whoever still holds the row, an error's traceback say, must not hold its KV
        self._rows.pop(row.number, None)
        if row in self._prefilling:
            self._prefilling.remove(row)
        self._admission.remove(row.number)

    def _rest(self, lineage: Lineage) -> None:
        if not len(lineage.ids):
            return
        for replaced in self.hot.put(lineage):
            self.saver.settle(replaced)
        if self._runner.layout.is_storable:
            self.saver.begin(lineage)


def _is_coming(row: Row, n_tokens: int) -> bool:
    """Whether a row is still on its way to KV of its first ``n_tokens``."""
    return row.kv is not None and row.fed < n_tokens and not row.request.feed.ended
