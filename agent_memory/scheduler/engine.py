"""The engine: one thread that owns the model and does everything to it, one tick after another.

A tick receives messages, drops what was cancelled, starts the next request when there is room, runs at most one
prefill step and one decode step, and hands a little finished KV to the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from agent_memory.errors import ClosedError, RequestTimeoutError
from agent_memory.protocols import Batch, ModelRunner
from agent_memory.scheduler.admission import Budget
from agent_memory.scheduler.counters import Counters
from agent_memory.scheduler.mailbox import Mailbox
from agent_memory.scheduler.request import Request
from agent_memory.scheduler.reuse import Reuse
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.saving import Saver
from agent_memory.store.tiers import HotTier, Lineage

if TYPE_CHECKING:
    from agent_memory.store.store import Store

log = logging.getLogger("agent_memory.engine")
T = TypeVar("T")


class Engine:
    """The owner thread of one Memory. Public methods may be called from any thread.

    ``open()`` loads the model on the thread and raises what loading raised. After ``close()``, and in a forked child,
    every call raises ClosedError.
    """

    def __init__(
        self, runner: ModelRunner, store: Store, *, hot_bytes: int, max_batch: int, prefill_tokens: int | None
    ) -> None:
        self._runner, self._store, self._hot_bytes, self._max_batch = runner, store, hot_bytes, max_batch
        self._prefill_tokens = prefill_tokens
        self._mail = Mailbox()
        self._thread: threading.Thread | None = None
        # Everything below belongs to the engine thread.
        self.counters = Counters()
        self.hot = HotTier()
        self._queue: list[Request] = []
        self._rows: dict[int, Row] = {}
        self._prefilling: Row | None = None
        self._n_rows = 0
        self._batch: Batch
        self._saver: Saver
        self._reuse: Reuse
        self._budget: Budget

    def open(self, recorded: Mapping[str, str], attach: Callable[[], None]) -> None:
        """Start the thread, load the model, then run ``attach`` (still on the thread) before the first request.

        ``recorded``: what the model decided on this store's first use of it.
        """
        ready: Future[None] = Future()
        boot = [attach]  # emptied by the thread, which must not keep the Memory behind ``attach`` alive
        self._thread = threading.Thread(
            target=self._main, args=(ready, recorded, boot), name="agent_memory-engine", daemon=True
        )
        self._thread.start()
        ready.result()

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that opened it, not a forked child."""
        return self._mail.is_ours

    def ensure_ours(self) -> None:
        """Raises ClosedError in a forked child."""
        self._mail.ensure_ours()

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is the engine thread itself."""
        return threading.current_thread() is self._thread

    def submit(self, request: Request) -> None:
        """Queue a request; its feed tells the rest."""
        self._mail.post(lambda: self._queue.append(request))

    def cancel(self, request: Request) -> None:
        """End a request at the next tick; never raises."""
        request.is_cancelled = True
        self._mail.wake()

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the engine thread between two ticks and give what it gives or raises."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - handed to the thread that asked
                done.set_exception(error)

        self._mail.post(run)
        return done.result()

    def is_busy(self, owner: str) -> bool:
        """Whether an agent has a request queued or running. Engine thread (inside ``call``)."""
        return any(r.owner == owner for r in self._queue) or owner in self._owners()

    def settle(self) -> None:
        """Hand all finished KV to the store. Engine thread (inside ``call``)."""
        self._saver.settle()

    def evict(self, owner: str | None) -> None:
        """Let one agent's lineage, or all, leave the hot tier, saved first. Engine thread (inside ``call``)."""
        for lineage in self.hot:
            if owner is None or lineage.owner == owner:
                self._drop(lineage)

    def forget(self, owner: str) -> None:
        """Drop an agent's lineage without saving more of it. Engine thread (inside ``call``)."""
        if lineage := self.hot.of(owner):
            self._saver.settle(lineage)
            self.hot.take(lineage)

    def close(self) -> None:
        """Fail what still runs, save what is finished, end the thread; idempotent, and nothing in a forked child."""
        if not self.is_ours:
            return
        self._mail.close()
        if self._thread is not None:
            self._thread.join()

    def _main(self, ready: Future[None], recorded: Mapping[str, str], boot: list[Callable[[], None]]) -> None:
        try:
            self._runner.open(recorded)
            boot.pop()()
            layout = self._runner.layout
            self._batch = self._runner.open_batch()
            self._saver = Saver(self._store, len(layout.tensors))
            self._budget = Budget(self._hot_bytes, layout.token_bytes)
            self._reuse = Reuse(self.hot, self._store, self._saver, layout)
            self._grid = self._prefill_tokens or self._runner.prefill_tokens
        except BaseException as error:  # noqa: BLE001 - handed to the thread that opens
            self._runner.close()
            ready.set_exception(error)
            return
        ready.set_result(None)
        while self._receive():
            try:
                self._tick()
            except Exception as error:
                # The thread's boundary: whatever broke, every handle ends with it; the next request finds a new batch.
                log.exception("engine step failed, failing %d rows", len(self._rows))
                self._fail_running(error)
        self._shut_down()

    def _receive(self) -> bool:
        """Take messages; sleep while there is nothing to do. False when closing."""
        messages = self._mail.take(self._has_work, self._patience)
        for message in messages or ():
            message()
        return messages is not None

    def _has_work(self) -> bool:
        return bool(self._queue or self._rows or self._prefilling) or self._saver.can_step

    def _patience(self) -> float | None:
        return 0.002 if self._saver.busy else None

    def _tick(self) -> None:
        self._sweep()
        if self._prefilling is None:
            self._start_next()
        if self._prefilling is not None:
            self._prefill_step(self._prefilling)
        if self._rows:
            self._decode_step()
        if self._saver.busy:
            self._saver.step(hurry=bool(self._rows or self._prefilling))

    def _sweep(self) -> None:
        """End what was cancelled or ran out of time, in every state."""
        now = time.perf_counter()
        for request in list(self._queue):
            if self._is_over(request, now):
                self._queue.remove(request)
        for row in self._running():
            if self._is_over(row.request, now):
                self._retire(row)

    def _is_over(self, request: Request, now: float) -> bool:
        if request.is_cancelled:
            request.feed.cancelled()
        elif request.deadline is not None and now > request.deadline:
            state, waited = request.feed.state, now - request.created
            request.feed.fail(RequestTimeoutError(f"no reply after {waited:.2f} s (timeout_s), while in {state!r}"))
        else:
            return False
        return True

    def _owners(self) -> set[str | None]:
        return {row.request.owner for row in self._running()}

    def _running(self) -> list[Row]:
        return [*self._rows.values(), *([self._prefilling] if self._prefilling else [])]

    def _reserved_bytes(self) -> int:
        return sum(row.reserved_bytes for row in self._running())

    def _start_next(self) -> None:
        """Start the first request, by priority and then age, whose agent is idle and whose bytes fit."""
        if len(self._rows) >= self._max_batch:
            return
        busy = self._owners()
        self._queue.sort(key=lambda r: (-r.priority, r.created))
        for request in self._queue:
            if request.owner is None or request.owner not in busy:
                try:
                    has_left = self._start(request)
                except Exception as error:  # noqa: BLE001 - what cannot start fails alone, and is not tried for ever
                    request.feed.fail(error)
                    has_left = True
                if has_left:
                    self._queue.remove(request)
                return

    def _start(self, request: Request) -> bool:
        """True when the request runs, False when it must wait for bytes. Raises what makes it impossible."""
        prompt = request.prepare()
        limit = self._runner.context_tokens
        n_prompt = len(prompt.ids)
        max_tokens = min(request.max_tokens, limit - n_prompt) if limit else request.max_tokens
        needed = self._budget.worst_case(n_prompt, max_tokens)
        self._budget.check(needed)
        reserved = self._reserved_bytes()
        short = self._budget.shortfall(needed, reserved, self.hot.nbytes)
        if short and self._rows and short > self.hot.nbytes:
            return False
        started = time.perf_counter()
        base = self._reuse.find(self._batch, prompt, request.owner)
        self._free(needed + reserved)
        row = Row(
            number=self._n_rows,
            request=request,
            prompt=prompt,
            base=base,
            tokenizer=self._runner.tokenizer,
            max_tokens=max_tokens,
            reserved_bytes=needed,
            started=started,
            restored_s=time.perf_counter() - started,
            prefilled=time.perf_counter(),
        )
        self._n_rows += 1
        self._prefilling = row
        request.feed.move("prefill", (row.fed, row.n_prompt))
        return True

    def _prefill_step(self, row: Row) -> None:
        """Feed one grid step; at the end, sample and emit the first token."""
        try:
            stop = row.next_step(self._grid)
            if row.fed < stop:
                self._batch.prefill(row.base.kv, row.prompt.ids[row.fed : stop])
                self._count_fed(row, stop)
            if row.fed == row.n_prefill:
                if row.max_tokens:
                    self._first_token(row)
                else:
                    self._finish(row, row.base.kv)
        except Exception as error:  # noqa: BLE001 - one row's failure ends that row alone
            log.warning("prefill failed: %s", type(error).__name__)
            if self._rows.pop(row.number, None) is not None:
                self._batch.remove(row.number)
            self._prefilling = None
            row.request.feed.fail(error)

    def _first_token(self, row: Row) -> None:
        sampling, processors = row.request.sampling, row.request.logits_processors
        token = self._batch.insert(
            row.number, row.base.kv, row.prompt.ids, sampling=sampling, logits_processors=processors
        )
        self._rows[row.number] = row
        self._prefilling = None
        self._count_fed(row, row.n_prompt)
        self._take_token(row, token)

    def _count_fed(self, row: Row, stop: int) -> None:
        self.counters.computed_ids += stop - row.fed
        row.fed = stop
        row.request.feed.move("prefill", (row.fed, row.n_prompt))

    def _decode_step(self) -> None:
        for number, token in self._batch.step():
            self._take_token(self._rows[number], token)

    def _take_token(self, row: Row, token: int) -> None:
        if error := self._batch.error(row.number):
            row.request.feed.fail(error)
            self._retire(row)
            return
        row.accept(token)
        if row.finish is not None:
            del self._rows[row.number]
            self._finish(row, self._batch.remove(row.number))

    def _finish(self, row: Row, kv: Any) -> None:
        """The log first, then the reply, then the KV: to the hot tier, and behind the reply to the store."""
        self._prefilling = None if self._prefilling is row else self._prefilling
        outcome = row.outcome(kv)
        self.counters.note(outcome.usage)
        try:
            reply = row.request.commit(outcome)
        except Exception as error:  # noqa: BLE001 - the reply that could not be made is the caller's to see
            row.request.feed.fail(error)
        else:
            row.request.feed.finish(reply)
        self._rest(row.lineage(kv))
        self._free(self._reserved_bytes())

    def _retire(self, row: Row) -> None:
        """Take a cancelled or failed row out; what it computed stays as cache of the ids it was computed from."""
        if row.number in self._rows:
            del self._rows[row.number]
            kv = self._batch.remove(row.number)
        else:
            kv, self._prefilling = row.base.kv, None
        self._rest(row.lineage(kv), save=False)

    def _rest(self, lineage: Lineage, *, save: bool = True) -> None:
        if not len(lineage.ids):
            return
        for replaced in self.hot.put(lineage):
            self._saver.settle(replaced)
        if save and self._runner.layout.is_storable:
            self._saver.begin(lineage)

    def _free(self, reserved_bytes: int) -> None:
        """Let the lineages used longest ago leave until idle and reserved bytes fit the budget."""
        while (oldest := self.hot.oldest()) and self._budget.shortfall(0, reserved_bytes, self.hot.nbytes):
            self._drop(oldest)

    def _drop(self, lineage: Lineage) -> None:
        self._saver.settle(lineage)
        self.hot.take(lineage)

    def _fail_running(self, error: BaseException) -> None:
        rows = self._running()
        self._rows.clear()
        self._prefilling = None
        for row in rows:
            row.request.feed.fail(error)
        self._batch.close()
        self._batch = self._runner.open_batch()

    def _shut_down(self) -> None:
        closed = ClosedError("the Memory was closed before this request finished")
        for request in self._queue:
            request.feed.fail(closed)
        for row in self._running():
            row.request.feed.fail(closed)
        try:
            self._saver.settle()
        except Exception:
            # The thread's end: the log is safe already, KV that was not handed over is recomputed later.
            log.exception("KV of the last turns was not saved")
        for message in self._mail.rest():
            message()
        self.hot.clear()
        self._batch.close()
        self._runner.close()
