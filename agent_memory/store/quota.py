"""What the store's folder takes on disk, against its budget; and which segments go to keep it.

Counted are the allocated bytes of every file in the folder, whoever wrote it: KV files as they come and go, the
manifest and its WAL each time, anything else when the folder is surveyed. Logs are always written: where they and
strangers' files alone exceed the budget, no KV is kept.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from agent_memory.store.files import held_bytes, strangers
from agent_memory.store.format import KV_FOLDER, LOCK, MANIFEST, SUFFIX, TEMP_SUFFIX, is_kv_name, is_own_name
from agent_memory.store.health import is_disk_error
from agent_memory.store.planner import Segment
from agent_memory.store.points import Side
from agent_memory.store.policy import Candidate, victims
from agent_memory.store.segments import WRITE_ERRORS

if TYPE_CHECKING:
    from agent_memory.store.catalog import Catalog

log = logging.getLogger("agent_memory.store")

_OURS = (LOCK, MANIFEST, f"{MANIFEST}-wal", f"{MANIFEST}-shm")
_SLACK = 32  #: an eviction frees this share of the budget more than it must, so that not every save evicts
_ROUNDS = 4  #: dropping rows grows the WAL: how often room is made anew


class NoRoomError(Exception):
    """Inside the room: what else is in the folder leaves no room for this save."""


class Quota:
    """The budget, and what in the folder is no KV file. I/O thread, apart from ``others``."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._root, self.budget_bytes = root, budget_bytes
        self._foreign_bytes = 0
        self.strangers: tuple[str, ...] = ()  #: files that the store did not make, as of the last survey

    def others(self) -> int:
        """Allocated bytes of all but KV files: manifest and lock now, strangers as of the last survey."""
        return self._foreign_bytes + sum(held_bytes(self._root / name) for name in _OURS)

    def survey(self, known: Collection[str]) -> list[str]:
        """Look at every file but ``known`` KV files (paths below ``kv``); those that the store made and left behind.

        Raises OSError where a folder cannot be read.
        """
        found = strangers(self._root, {*_OURS, *(f"{KV_FOLDER}/{name}" for name in known)})
        left = [name for name in found if _is_kv(name)]
        self._foreign_bytes = sum(n_bytes for name, n_bytes in found.items() if name not in set(left))
        self.strangers = tuple(sorted(name for name in found.keys() - {*left} if not is_own_name(name)))
        return left


def _is_kv(name: str) -> bool:
    return name.startswith(f"{KV_FOLDER}/") and is_kv_name(name.removeprefix(f"{KV_FOLDER}/"))


def folder_bytes(catalog: Catalog) -> int:
    """Allocated bytes of all that is in the store's folder. Any thread."""
    with catalog.lock:
        return catalog.quota.others() + catalog.held_bytes + sum(s.held_bytes for s in catalog.undropped)


def known_files(catalog: Catalog) -> set[str]:
    """Every KV file that the manifest names or a save is writing, by its path below ``kv``. I/O thread."""
    with catalog.lock:
        held: list[Segment | Side] = [*catalog.segments.values(), *catalog.sides.values(), *catalog.undropped]
        known = {one.file for one in held} | {*catalog.orphans, *catalog.unfinished}
    return known | {f"{name.removesuffix(SUFFIX)}{TEMP_SUFFIX}" for name in catalog.unfinished}


def keep(catalog: Catalog) -> None:
    """Survey the folder, remove KV files that nothing knows, and evict what is over the budget. I/O thread.

    This is the sweep of a mark and sweep: what the manifest names, or a save that is being written, is marked.
    """
    with contextlib.suppress(OSError):  # it cannot be read now: the next flush looks again
        for name in catalog.quota.survey(known_files(catalog)):
            catalog.files.unlink(catalog.folder.parent / name)
    tidy(catalog, catalog.manifest.shrink)
    make_room(catalog)


def make_room(catalog: Catalog) -> bool:
    """Evict until what is there, and what is being written, fits the budget; whether it does. I/O thread."""
    for number in range(_ROUNDS):
        excess = _excess(catalog)
        if excess > 0 and number == 0:
            tidy(catalog, catalog.manifest.fold)  # the WAL may be much of what is there
            excess = _excess(catalog)
        if excess <= 0:
            return True
        if not _evict(catalog, excess + catalog.quota.budget_bytes // _SLACK):
            return False
        tidy(catalog, catalog.manifest.fold)
    return _excess(catalog) <= 0


def _excess(catalog: Catalog) -> int:
    return folder_bytes(catalog) + sum(catalog.unfinished.values()) - catalog.quota.budget_bytes


def tidy(catalog: Catalog, call: Callable[[], None]) -> None:
    """What needs a disk that takes writes, and can wait for one."""
    try:
        call()
    except WRITE_ERRORS as error:
        if is_disk_error(error):
            catalog.health.failed("KV", error)


def _evict(catalog: Catalog, excess_bytes: int) -> bool:
    with catalog.lock:
        table = [
            Candidate(
                s.number,
                s.parent_number,
                s.held_bytes + sum(side.held_bytes for side in catalog.beside(s)),
                s.used_s,
                n_tokens=s.n_tokens,
                is_pinned=not s.is_ready or catalog.is_pinned(s),
            )
            for s in catalog.segments.values()
        ]
        gone = [catalog.segments[n] for n in victims(table, excess_bytes, catalog.clock())]
        for segment in gone:
            catalog.take_out(segment, "evicted")
    catalog.drop(gone)
    log.debug("store: evicted segments=%d", len(gone))
    return bool(gone)
