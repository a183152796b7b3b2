"""Prefills and decode steps of a batch of its own, timed: what ``Memory.tune`` measures a machine by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from attrs import frozen

from agent_memory.protocols import Batch, ModelRunner
from agent_memory.types import Sampling

T = TypeVar("T")

ROW_TOKENS = 64  #: of a decoding row before it is timed
_STEPS = 8  #: decode steps that are timed
_TEXT = "The quick brown fox jumps over the lazy dog, and the dog goes on sleeping in the sun by the river. "


class Caller(Protocol):
    """Runs work on the thread that owns a batch."""

    def call(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns."""


def text_ids(runner: ModelRunner, n_tokens: int) -> list[int]:
    """Return the ids of a text of ``n_tokens``."""
    ids: list[int] = list(runner.tokenizer.encode(_TEXT, bos=True))
    while len(ids) < n_tokens:
        ids += runner.tokenizer.encode(_TEXT, bos=False)
    return ids[:n_tokens]


@frozen
class Machine:
    """A batch of its own on the engine thread; each call is one piece of work between two ticks."""

    engine: Caller
    batch: Batch

    def prefill_s(self, ids: Sequence[int], step: int) -> float:
        """Seconds that a prefill takes, in steps; others wait for one step at a time."""
        kv = self.engine.call(self.batch.empty)
        return sum(self._timed(partial(self.batch.prefill, kv, ids[at : at + step])) for at in range(0, len(ids), step))

    def step_s(self, ids: Sequence[int], width: int) -> float:
        """Seconds of one decode step of ``width`` rows, the median of some."""
        for row in range(width):
            self.engine.call(partial(self._join, row, ids))
        try:
            self._timed(lambda: self.batch.step(0))  # the first one joins the rows
            self._timed(lambda: self.batch.step(0))
            return statistics.median(self._timed(lambda: self.batch.step(0)) for _ in range(_STEPS))
        finally:
            self.engine.call(lambda: self.batch.drop(0))

    def _join(self, row: int, ids: Sequence[int]) -> None:
        kv = self.batch.empty()
        self.batch.prefill(kv, ids[:-1])
        self.batch.insert(row, kv, ids, group=0, sampling=Sampling())

    def _timed(self, work: Callable[[], object]) -> float:
        def run() -> float:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start

        return max(self.engine.call(run), 1e-9)
