"""Hands KV to the store, a tensor at a time, between decode steps: finished turns to disk, what is to leave to warm."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol

from agent_memory.config import Codec
from agent_memory.kvcache.layout import Layout
from agent_memory.scheduler.counters import Counters
from agent_memory.store.copies import Copy
from agent_memory.store.points import Held
from agent_memory.store.provenance import Provenance
from agent_memory.store.saves import Save
from agent_memory.store.tiers import Lineage

if TYPE_CHECKING:
    from agent_memory.store.store import Store

log = logging.getLogger("agent_memory.saving")

#: While others decode, one tick of saving takes about this long.
_SLICE_S = 0.004

Job = Generator[None, None, None]
Jobs = dict[int, tuple[Lineage, Job]]


class _Rows(Protocol):
    """Tokens to be read, in a codec."""

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...

    @property
    def codec(self) -> Codec: ...


class _Beside(_Rows, Protocol):
    """Window rows to be read, and maybe the state at their end."""

    @property
    def has_state(self) -> bool: ...


class Saver:
    """Lineages whose KV is on its way to the store: saves to disk, then copies into warm. Engine thread only.

    The live arrays are copied out here (O(new tokens) bytes), because the next turn may change them in place; writing,
    fsync and commit are the store's I/O thread's work. A lineage is settled before anybody changes its KV.
    """

    def __init__(self, store: Store, layout: Layout, counters: Counters) -> None:
        self._store, self._layout, self._counters = store, layout, counters
        self._saves: Jobs = {}
        self._copies: Jobs = {}

    @property
    def can_step(self) -> bool:
        """Whether something is left that can go on: a save waits for a disk that does not keep up."""
        return bool(self._copies) or (bool(self._saves) and self._store.is_ready)

    @property
    def busy(self) -> bool:
        """Whether something is left to hand over."""
        return bool(self._saves or self._copies)

    def begin(self, lineage: Lineage) -> None:
        """Save a lineage that will rest in the hot tier."""
        lineage.is_saved = True
        self._saves[id(lineage)] = (lineage, self._save(lineage))

    def copy(self, lineage: Lineage) -> None:
        """Copy a lineage that is to leave the hot tier into warm; once, whatever comes of it."""
        if not lineage.is_offered:
            lineage.is_offered = True
            if self._store.warm.is_on and self._layout.is_storable:
                self._copies[id(lineage)] = (lineage, self._copy(lineage))

    def is_copying(self, lineage: Lineage) -> bool:
        """Whether a lineage is on its way to warm."""
        return id(lineage) in self._copies

    def settle(self, lineage: Lineage) -> None:
        """Hand over all that is left to save of one lineage, at once (a reply may wait for it, and for no disk); give
        up copying it.
        """
        self._finish(self._saves, lineage)
        if id(lineage) in self._copies:
            self._copies.pop(id(lineage))[1].close()
            lineage.is_offered = False

    def finish(self, lineage: Lineage) -> None:
        """Hand over all that is left to save and to copy of one lineage."""
        self._finish(self._saves, lineage)
        self._finish(self._copies, lineage)

    def hand_over(self) -> bool:
        """Hand over what there is to save, as far as the disk keeps up; whether that was all."""
        while self._saves and self._store.is_ready:
            self._next(self._saves)
        return not self._saves

    def finish_all(self) -> None:
        """Hand over all that there is to save, waiting for the disk."""
        while not self.hand_over():
            self._store.wait_ready()

    def step(self, hurry: bool) -> None:
        """Go on for a moment; with ``hurry`` (others decode) for a few milliseconds only."""
        until = time.perf_counter() + (_SLICE_S if hurry else 10 * _SLICE_S)
        while self.can_step and time.perf_counter() < until:
            self._next(self._saves if self._saves and self._store.is_ready else self._copies)

    def _next(self, jobs: Jobs) -> None:
        key, (_, job) = next(iter(jobs.items()))
        if not self._advance(job):
            del jobs[key]

    def _finish(self, jobs: Jobs, lineage: Lineage) -> None:
        _, job = jobs.pop(id(lineage), (None, None))
        while job is not None and self._advance(job):
            pass

    def _advance(self, job: Job) -> bool:
        """One tensor more; False at the end. A save that fails costs a recomputation some day, and nobody's reply."""
        try:
            return next(job, self) is None
        except Exception as error:  # noqa: BLE001 - whatever reading the live arrays died of
            self._counters.save_failures += 1
            log.warning("KV could not be handed to the store and will be computed again: %s", error)
            return False

    def _save(self, lineage: Lineage) -> Job:
        save = self._store.begin_save(
            lineage.ids,
            len(lineage.ids),
            lineage.made,
            lineage.exactness,
            agent_id=lineage.agent_id,
            held=Held(lineage.kv.held_from, lineage.kv.snapshots),
            is_wanted=lineage.is_wanted,
            is_turn=lineage.is_turn,
        )
        yield from self._export(lineage, save)

    def _copy(self, lineage: Lineage) -> Job:
        copy = self._store.warm.begin(
            lineage.ids,
            Provenance(lineage.made, lineage.exactness),
            Held(lineage.kv.held_from, lineage.kv.snapshots),
            agent_id=lineage.agent_id,
            used_s=lineage.used_s,
        )
        if copy is not None:
            yield from self._export(lineage, copy)

    def _export(self, lineage: Lineage, to: Save | Copy) -> Job:
        kv, n_full = lineage.kv, len(self._layout.tensors)
        parts: Sequence[_Rows] = to.parts
        sides: Sequence[_Beside] = to.sides
        try:
            for number, part in enumerate(parts):
                for tensor in range(n_full):
                    to.put(number, tensor, kv.read(tensor, part.start, part.stop, part.codec))
                    yield
            for number, side in enumerate(sides):
                rows = []
                for tensor in range(len(self._layout.windows) if side.start < side.stop else 0):
                    rows.append(kv.read(n_full + tensor, side.start, side.stop, side.codec))
                    yield
                to.put_side(number, rows, kv.read_state(side.stop) if side.has_state else None)
                yield
        except BaseException:
            to.abandon()
            raise
        to.finish()
