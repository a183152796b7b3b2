"""Chunked prefill: prompts are computed one step of one row at a time."""

from __future__ import annotations

import logging
import time

from agent_memory.scheduler.faults import stripped
from agent_memory.scheduler.leaving import Leaving
from agent_memory.scheduler.observer import Observer
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.taking import Taking
from agent_memory.scheduler.waiting import effective_priority

log = logging.getLogger("agent_memory.engine")


class Prefill:
    """Chooses the next row and feeds it one prefill chunk. Engine thread only.

    - The order: by priority, then age. A row that needs a single step passes longer ones, but never twice running.
    - A step ends at a multiple of ``chunk_tokens`` counted from the prompt's start, or at the prompt's end
      (``Row.next_step``), whatever else runs: a row's KV does not depend on load.
    - After its last step a row joins the batch; with ``max_tokens`` 0 it ends. Of a short rest, that step gives the row
      its first token too: a turn of few new ids costs one forward pass.
    - A step that raises ends its row, and no other.
    """

    def __init__(
        self,
        running: Running,
        leaving: Leaving,
        taking: Taking,
        chunk_tokens: int,
        observer: Observer,
        *,
        is_full: bool,
    ) -> None:
        self._running, self._leaving, self._chunk_tokens, self._is_full = running, leaving, chunk_tokens, is_full
        self._taking, self._observer = taking, observer
        self._passed = False  # True if the last step was of a row that passed an older one

    def next_row(self) -> Row:
        """Return the row whose step is next; at least one row prefills."""
        now = time.perf_counter()
        prefilling = self._running.prefilling
        first = max(effective_priority(row.request, now) for row in prefilling)
        rows = [row for row in prefilling if effective_priority(row.request, now) == first]
        shortest = min(rows, key=lambda row: row.n_prefill - row.fed)
        is_short = self._stop_of(shortest) >= shortest.n_prefill
        self._passed = is_short and not self._passed and shortest is not rows[0]
        return shortest if self._passed else rows[0]

    def step(self, row: Row) -> float:
        """Feed one prefill chunk of a row; return its seconds. After the last one the row joins the batch, or ends."""
        started = time.perf_counter()
        try:
            stop = self._stop_of(row)
            if stop > row.n_prefill:
                self._begin(row)
            else:
                self._feed(row, stop)
        except Exception as error:  # noqa: BLE001 - one row's failure ends that row alone
            log.warning("prefill failed request=%s: %s", row.request.feed.id, type(error).__name__)
            self._observer.faulted(error)
            row.request.feed.fail(stripped(error))
            if row.kv is not None and row.kv.n_tokens == row.fed:  # else the fault has made the KV unsound
                self._leaving.retire([row])
            else:
                self._running.remove(row)
        return time.perf_counter() - started

    def _begin(self, row: Row) -> None:
        start, began = row.fed, time.perf_counter()
        token = self._running.join(row)
        assert token is not None
        self._observer.prefilled(row.request, start, row.fed, began)
        self._taking.take([(row.number, token)])

    def _feed(self, row: Row, stop: int) -> None:
        start, began = row.fed, time.perf_counter()
        assert row.kv is not None
        if start < stop:
            self._running.batch.prefill(row.kv, row.prompt.ids[start:stop])
            self._running.count_fed(row, stop)
            row.note_step(start, stop, self._chunk_tokens)
            self._observer.prefilled(row.request, start, stop, began)
        if row.is_ready and row.max_tokens:
            self._running.join(row)
        elif row.is_ready:
            self._leaving.finish([row])

    def _stop_of(self, row: Row) -> int:
        return row.next_step(self._chunk_tokens, is_full=self._is_full)
