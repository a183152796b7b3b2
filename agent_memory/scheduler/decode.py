"""Decoding: one step of every group of rows; each row takes its token."""

from __future__ import annotations

import logging
import time

from agent_memory.scheduler.drafting import Drafting
from agent_memory.scheduler.faults import stripped
from agent_memory.scheduler.observer import Observer
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.taking import Taking

log = logging.getLogger("agent_memory.engine")


class Decode:
    """Steps the batch and hands each row its token. Engine thread only.

    - A group whose step raises ends with that error, and no other group. Its rows share the arrays that the step was
      changing, so none of their KV is kept.
    """

    def __init__(self, running: Running, taking: Taking, observer: Observer, drafting: Drafting | None = None) -> None:
        self._running, self._taking, self._observer, self._drafting = running, taking, observer, drafting

    def step(self) -> float:
        """Run one decode step of every group; return its seconds."""
        started = time.perf_counter()
        decoding, batch = self._running.decoding, self._running.batch
        for group in sorted({row.group for row in decoding.values()}):
            rows, began = [row for row in decoding.values() if row.group == group], time.perf_counter()
            try:
                tokens = batch.step(group) if self._drafting is None else self._drafting.step(batch, group, rows)
            except Exception as error:  # noqa: BLE001 - the model's own failure: these rows end with it
                ids = " ".join(row.request.feed.id for row in rows)
                log.warning(
                    "a decode step failed, and %d rows with it requests=%s: %s", len(rows), ids, type(error).__name__
                )
                self._observer.faulted(error)
                batch.drop(group)
                self._drop(rows, error)
                continue
            for row in rows:
                row.has_stepped = True
                if row.fed < row.n_prompt:
                    self._running.count_fed(row, row.n_prompt)
            self._observer.decoded([row.request for row in rows], began)
            self._taking.take(tokens)
        return time.perf_counter() - started

    def _drop(self, rows: list[Row], error: Exception) -> None:
        for row in rows:
            row.request.feed.fail(stripped(error))
            self._running.remove(row)
