"""The disk budget: which segments are evicted to keep it, and which files are removed because nothing names them.

Logs are always written: if they and strangers' files alone exceed the budget, no KV is kept.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from agent_memory.log.health import is_disk_error
from agent_memory.prefix.index import Segment
from agent_memory.prefix.resume import Side
from agent_memory.prefix.worth import Candidate, victims
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import remove_hidden
from agent_memory.store.format import SUFFIX, TEMP_SUFFIX
from agent_memory.store.segments import WRITE_ERRORS

log = logging.getLogger("agent_memory.store")

_SLACK = 32  #: share of the budget that an eviction frees beyond what it must, so that not every save evicts
_ROUNDS = 4  #: evictions in one call at most: removing rows grows the WAL, which counts too
_PAGE = 4096  #: allocation unit of most file systems


class NoRoomError(Exception):
    """Internal: the budget leaves no space for this save."""


def folder_bytes(catalog: Catalog) -> int:
    """Return the allocated bytes of everything in the store's folder. Any thread."""
    with catalog.lock:
        return catalog.quota.others() + catalog.held_bytes


def known_files(catalog: Catalog) -> set[str]:
    """Return every KV file that the manifest names or a save is writing, by its path below ``kv``. I/O thread."""
    with catalog.lock:
        held: list[Segment | Side] = [*catalog.segments.values(), *catalog.all_sides()]
        known = {one.file for one in held} | {*catalog.unfinished}
    return known | {f"{name.removesuffix(SUFFIX)}{TEMP_SUFFIX}" for name in catalog.unfinished}


def keep(catalog: Catalog) -> None:
    """Survey the folder, remove unknown KV files, and evict until the budget holds. I/O thread.

    Mark and sweep: files that the manifest names or a running save writes are marked; all other KV files are deleted.
    """
    with contextlib.suppress(OSError):  # the folder cannot be read now: the next flush tries again
        for name in catalog.quota.survey(known_files(catalog)):
            catalog.files.unlink(catalog.folder.parent / name)
    remove_hidden(catalog)
    tidy(catalog, catalog.manifest.database.shrink)
    make_room(catalog)


def make_room(catalog: Catalog) -> bool:
    """Evict until stored files and those being written fit the budget; True if they do. I/O thread."""
    for number in range(_ROUNDS):
        excess = _excess(catalog)
        if excess > 0 and number == 0:
            tidy(catalog, catalog.manifest.database.fold)  # the WAL may be a large share of the bytes
            excess = _excess(catalog)
        if excess <= 0:
            return True
        if not _evict(catalog, excess + catalog.quota.budget_bytes // _SLACK):
            return False
        tidy(catalog, catalog.manifest.database.fold)
    return _excess(catalog) <= 0


def _excess(catalog: Catalog) -> int:
    return folder_bytes(catalog) + sum(catalog.unfinished.values()) - catalog.quota.budget_bytes


def tidy(catalog: Catalog, call: Callable[[], None]) -> None:
    """Run work that needs a writable disk; if the disk refuses, a later call does it."""
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
            if not s.is_hidden
        ]
        gone = [catalog.segments[n] for n in victims(table, excess_bytes, catalog.clock())]
        if gone:
            catalog.hide(gone, "evicted")
    log.debug("store: evicted segments=%d", len(gone))
    return remove_hidden(catalog) and bool(gone)


def announce(catalog: Catalog, file: str, n_bytes: int) -> None:
    """Evict to make space for a file before its first byte is written. I/O thread; raises NoRoomError."""
    catalog.unfinished[file] = -(-n_bytes // _PAGE) * _PAGE
    if not make_room(catalog):
        raise NoRoomError(f"no room for {n_bytes:,} bytes")
