"""Which segments go to keep the folder within its budget, and which files nothing names.

Logs are always written: where they and strangers' files alone exceed the budget, no KV is kept.
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

_SLACK = 32  #: an eviction frees this share of the budget more than it must, so that not every save evicts
_ROUNDS = 4  #: dropping rows grows the WAL: how often room is made anew
_PAGE = 4096  #: file systems allocate in pages of this size, mostly


class NoRoomError(Exception):
    """Inside the room: what else is in the folder leaves no room for this save."""


def folder_bytes(catalog: Catalog) -> int:
    """Allocated bytes of all that is in the store's folder. Any thread."""
    with catalog.lock:
        return catalog.quota.others() + catalog.held_bytes


def known_files(catalog: Catalog) -> set[str]:
    """Every KV file that the manifest names or a save is writing, by its path below ``kv``. I/O thread."""
    with catalog.lock:
        held: list[Segment | Side] = [*catalog.segments.values(), *catalog.all_sides()]
        known = {one.file for one in held} | {*catalog.unfinished}
    return known | {f"{name.removesuffix(SUFFIX)}{TEMP_SUFFIX}" for name in catalog.unfinished}


def keep(catalog: Catalog) -> None:
    """Survey the folder, remove KV files that nothing knows, and evict what is over the budget. I/O thread.

    This is the sweep of a mark and sweep: what the manifest names, or a save that is being written, is marked.
    """
    with contextlib.suppress(OSError):  # it cannot be read now: the next flush looks again
        for name in catalog.quota.survey(known_files(catalog)):
            catalog.files.unlink(catalog.folder.parent / name)
    remove_hidden(catalog)
    tidy(catalog, catalog.manifest.database.shrink)
    make_room(catalog)


def make_room(catalog: Catalog) -> bool:
    """Evict until what is there, and what is being written, fits the budget; whether it does. I/O thread."""
    for number in range(_ROUNDS):
        excess = _excess(catalog)
        if excess > 0 and number == 0:
            tidy(catalog, catalog.manifest.database.fold)  # the WAL may be much of what is there
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
            if not s.is_hidden
        ]
        gone = [catalog.segments[n] for n in victims(table, excess_bytes, catalog.clock())]
        if gone:
            catalog.hide(gone, "evicted")
    log.debug("store: evicted segments=%d", len(gone))
    return remove_hidden(catalog) and bool(gone)


def announce(catalog: Catalog, file: str, n_bytes: int) -> None:
    """Make room for a file before its first byte is written. I/O thread; raises NoRoomError."""
    catalog.unfinished[file] = -(-n_bytes // _PAGE) * _PAGE
    if not make_room(catalog):
        raise NoRoomError(f"no room for {n_bytes:,} bytes")
