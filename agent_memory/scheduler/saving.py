"""Handing new KV to the store, a tensor at a time, between decode steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agent_memory.kvcache.layout import Layout
from agent_memory.scheduler.counters import Counters
from agent_memory.store.sides import Held
from agent_memory.store.tiers import Lineage

if TYPE_CHECKING:
    from agent_memory.store.store import Store

log = logging.getLogger("agent_memory.saving")

#: While others decode, one tick of saving takes about this long.
_SLICE_S = 0.004


class Saver:
    """Lineages whose KV is on its way to the store. Engine thread only.

    The live arrays are copied out here (O(new tokens) bytes), because the next turn may change them in place; writing,
    fsync and commit are the store's I/O thread's work. A lineage is settled before anybody changes its KV.
    """

    def __init__(self, store: Store, layout: Layout, counters: Counters) -> None:
        self._store, self._layout, self._counters = store, layout, counters
        self._jobs: dict[int, tuple[Lineage, Iterator[None]]] = {}

    @property
    def can_step(self) -> bool:
        """Whether something is left and the disk keeps up."""
        return self.busy and self._store.is_ready

    @property
    def busy(self) -> bool:
        """Whether something is left to hand over."""
        return bool(self._jobs)

    def begin(self, lineage: Lineage) -> None:
        """Save a lineage that will rest in the hot tier."""
        self._jobs[id(lineage)] = (lineage, self._export(lineage))

    def settle(self, only: Lineage | None = None) -> None:
        """Hand over all that is left of one lineage, or of all."""
        keys = list(self._jobs) if only is None else [id(only)]
        for key in keys:
            if key in self._jobs:
                _, job = self._jobs.pop(key)
                while self._advance(job):
                    pass

    def step(self, hurry: bool) -> None:
        """Go on for a moment; with ``hurry`` (others decode) for a few milliseconds only."""
        until = time.perf_counter() + (_SLICE_S if hurry else 10 * _SLICE_S)
        while self.can_step and time.perf_counter() < until:
            key, (_, job) = next(iter(self._jobs.items()))
            if not self._advance(job):
                del self._jobs[key]

    def _advance(self, job: Iterator[None]) -> bool:
        """One tensor more; False at the end. A save that fails costs a recomputation some day, and nobody's reply."""
        try:
            return next(job, self) is None
        except Exception as error:  # noqa: BLE001 - whatever reading the live arrays died of
            self._counters.save_failures += 1
            log.warning("KV could not be handed to the store and will be computed again: %s", error)
            return False

    def _export(self, lineage: Lineage) -> Iterator[None]:
        kv, n_full = lineage.kv, len(self._layout.tensors)
        save = self._store.begin_save(
            lineage.ids,
            len(lineage.ids),
            lineage.made,
            lineage.exactness,
            agent_id=lineage.agent_id,
            held=Held(kv.held_from, kv.snapshots),
        )
        try:
            for number, part in enumerate(save.parts):
                for tensor in range(n_full):
                    save.put(number, tensor, kv.read(tensor, part.start, part.stop, part.codec))
                    yield
            for number, side in enumerate(save.sides):
                rows = []
                for tensor in range(len(self._layout.windows) if side.start < side.stop else 0):
                    rows.append(kv.read(n_full + tensor, side.start, side.stop, side.codec))
                    yield
                save.put_side(number, rows, kv.read_state(side.stop) if side.side.has_state else None)
                yield
        except BaseException:
            save.abandon()
            raise
        save.finish()
