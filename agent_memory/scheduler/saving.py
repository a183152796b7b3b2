"""Hand KV to the store between decode steps, a tensor at a time: lineages to disk, and to warm before eviction."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from typing import Protocol

from agent_memory.config import Codec
from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.provenance import Provenance
from agent_memory.prefix.resume import Held
from agent_memory.scheduler.counters import Counters
from agent_memory.scheduler.observer import Observer
from agent_memory.store.save import Save
from agent_memory.tiers.copies import Copy
from agent_memory.tiers.hot import Lineage
from agent_memory.tiers.tiers import Tiers

log = logging.getLogger("agent_memory.saving")

#: Seconds of saving in one tick while rows decode.
_SLICE_S = 0.004

Job = Generator[None, None, None]
Jobs = dict[int, tuple[Lineage, Job]]


class _Rows(Protocol):
    """Tokens ``[start, stop)`` to be read and encoded."""

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...

    @property
    def codec(self) -> Codec: ...


class _Beside(_Rows, Protocol):
    """Window rows ``[start, stop)`` to be read, and maybe the state at ``stop``."""

    @property
    def has_state(self) -> bool: ...


class Saver:
    """Hands the KV of idle lineages to the store and to warm. Engine thread only.

    - Saves to disk come first, copies into warm after them.
    - The live arrays are copied to the host here, O(new tokens) bytes, because the next turn may change them in place.
      The store's I/O thread writes, syncs and commits.
    - A lineage is settled before its KV is changed, moved into a row or dropped.
    - While the disk does not keep up, saves wait and copies go on.
    """

    # Who else has the KV of a lineage's tokens while it is saved or copied. The live arrays have all of it.
    #
    #   tokens                       before ``put``              from ``put`` on
    #   each [part.start, part.stop) nobody                      a host copy: the I/O thread's until commit, or warm's
    #   each [side.start, side.stop) nobody                      the same: window rows, and the state at ``side.stop``
    #   all others of [0, len(ids))  the store's files or warm's pieces, since an earlier save of any lineage
    #
    # From ``begin_save`` on the index names the parts as not yet ready: a second save does not write them again.

    def __init__(self, tiers: Tiers, layout: Layout, counters: Counters, observer: Observer | None = None) -> None:
        self._store, self._warm, self._layout, self._counters = tiers.store, tiers.warm, layout, counters
        self._observer = observer or Observer()
        self._saves: Jobs = {}
        self._copies: Jobs = {}

    @property
    def can_step(self) -> bool:
        """True if KV is left to hand over that need not wait for the disk."""
        return bool(self._copies) or (bool(self._saves) and self._store.is_ready)

    @property
    def busy(self) -> bool:
        """True if KV is left to hand over."""
        return bool(self._saves or self._copies)

    def begin(self, lineage: Lineage) -> None:
        """Save a lineage that is idle in the hot tier from now on."""
        lineage.is_saved = True
        self._saves[id(lineage)] = (lineage, self._save(lineage))

    def copy(self, lineage: Lineage) -> None:
        """Copy a lineage that is soon evicted into warm; once, even if warm refuses it."""
        if not lineage.is_offered:
            lineage.is_offered = True
            if self._warm.is_on and self._layout.is_storable:
                self._copies[id(lineage)] = (lineage, self._copy(lineage))

    def is_saving(self, lineage: Lineage) -> bool:
        """True if a lineage is being handed to the disk."""
        return id(lineage) in self._saves

    def is_copying(self, lineage: Lineage) -> bool:
        """True if a lineage is being copied into warm."""
        return id(lineage) in self._copies

    def settle(self, lineage: Lineage) -> None:
        """Hand over all that is left to save of a lineage, without waiting for the disk; abandon its copy to warm."""
        self._finish(self._saves, lineage)
        if id(lineage) in self._copies:
            self._copies.pop(id(lineage))[1].close()
            lineage.is_offered = False

    def finish(self, lineage: Lineage) -> None:
        """Hand over all that is left of a lineage, to disk and to warm."""
        self._finish(self._saves, lineage)
        self._finish(self._copies, lineage)

    def hand_over(self) -> bool:
        """Hand over all saves, as far as the disk keeps up; True if that was all."""
        while self._saves and self._store.is_ready:
            self._next(self._saves)
        return not self._saves

    def finish_all(self) -> None:
        """Hand over all saves, waiting for the disk."""
        while not self.hand_over():
            self._store.wait_ready()

    def step(self, hurry: bool) -> None:
        """Hand over for 40 ms, or with ``hurry`` (rows are running) for 4 ms."""
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
        """Hand over one tensor; False at the end. A save that fails costs a recomputation, and no reply."""
        try:
            return next(job, self) is None
        except Exception as error:  # noqa: BLE001 - whatever reading the live arrays raised
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
        copy = self._warm.begin(
            lineage.ids,
            Provenance(lineage.made, lineage.exactness),
            Held(lineage.kv.held_from, lineage.kv.snapshots),
            agent_id=lineage.agent_id,
            used_s=lineage.used_s,
        )
        if copy is not None:
            yield from self._export(lineage, copy)

    def _export(self, lineage: Lineage, to: Save | Copy) -> Job:
        kv, n_full, began = lineage.kv, len(self._layout.tensors), time.perf_counter()
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
        except BaseException:  # also GeneratorExit: the save is dropped half way
            to.abandon()
            raise
        to.finish()
        if parts or sides:
            n_tokens = sum(part.stop - part.start for part in parts)
            self._observer.saved(lineage.owner, n_tokens, "cold" if isinstance(to, Save) else "warm", began)
