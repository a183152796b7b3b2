"""Which segments the store keeps: those that both manifest and folder have, within the folder's budget.

Logs are always written: if they and strangers' files alone exceed the budget, no KV is kept.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from agent_memory.log.health import Health
from agent_memory.prefix.names import SUFFIX, TEMP_SUFFIX, is_kv_name
from agent_memory.prefix.pieces import Segment
from agent_memory.prefix.worth import victims
from agent_memory.progress import Progress, silent
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import remove_hidden
from agent_memory.store.folder import list_files

log = logging.getLogger("agent_memory.store")

SLACK = 32  #: share of the budget that an eviction frees beyond what it must, so that not every save evicts
_ROUNDS = 4  #: evictions in one call at most: removing rows grows the WAL, which counts too
_PAGE = 4096  #: allocation unit of most file systems


class NoRoomError(Exception):
    """Internal: the budget leaves no space for this save."""


def sweep(catalog: Catalog, report: Progress = silent) -> None:
    """Enter the manifest's segments, hide those whose file is missing or has a wrong size, remove files without a row.

    At opening; I/O thread or none yet. Segments that depend on a hidden one are hidden too.
    """
    disk = catalog.disk
    rows, found = disk.manifest.segments(report=report), list_files(disk.folder)
    bad: list[Segment] = []
    lost: set[int] = set()
    n_bad = dict.fromkeys(("rows", "resume"), 0)
    for segment in rows:  # parents come first
        size = found.get(segment.file)
        is_whole = size is not None and size.n_bytes == segment.n_bytes
        has_parent = all(number in catalog.segments and number not in lost for number in segment.needs)
        segment.held_bytes = size.held_bytes if size is not None else 0
        catalog.enter(segment)
        if not (is_whole and has_parent):
            bad.append(segment)
            lost.add(segment.number)
        n_bad[segment.kind] += not is_whole and (segment.kind == "rows" or has_parent)
    if bad:
        catalog.hide(bad, "missing")
    catalog.disk.counts.damage += sum(n_bad.values())
    for kind, n in n_bad.items():
        if n:
            text = "store: %d of %d files of %s are missing or have a wrong size; KV will be computed again"
            log.warning(text, n, sum(s.kind == kind for s in rows), kind)
    remove_hidden(catalog)  # if the disk refuses, the next Edit does it
    for name in filter(is_kv_name, found.keys() - known_files(catalog)):
        disk.files.unlink(disk.folder / name)


def folder_bytes(catalog: Catalog) -> int:
    """Return the allocated bytes of everything in the store's folder. Any thread."""
    with catalog.lock:
        return catalog.disk.quota.others() + catalog.held_bytes


def known_files(catalog: Catalog) -> set[str]:
    """Return every KV file that the manifest names or a save is writing, by its path below ``kv``. I/O thread."""
    with catalog.lock:
        unfinished = {*catalog.disk.unfinished}
        known = {segment.file for segment in catalog.segments.values()} | unfinished
    return known | {f"{name.removesuffix(SUFFIX)}{TEMP_SUFFIX}" for name in unfinished}


def keep(catalog: Catalog) -> None:
    """Survey the folder, remove unknown KV files, and evict until the budget holds. I/O thread.

    Mark and sweep: files that the manifest names or a running save writes are marked; all other KV files are deleted.
    """
    with contextlib.suppress(OSError):  # the folder cannot be read now: the next flush tries again
        for name in catalog.disk.quota.survey(known_files(catalog)):
            catalog.disk.files.unlink(catalog.disk.folder.parent / name)
    remove_hidden(catalog)
    catalog.disk.tidy(catalog.disk.manifest.database.shrink)
    make_room(catalog)


def make_room(catalog: Catalog) -> bool:
    """Evict until stored files and those being written fit the budget; True if they do. I/O thread."""
    for number in range(_ROUNDS):
        excess = _excess(catalog)
        if excess > 0 and number == 0:
            catalog.disk.tidy(catalog.disk.manifest.database.fold)  # the WAL may be a large share of the bytes
            excess = _excess(catalog)
        if excess <= 0:
            return True
        if not _evict(catalog, excess + catalog.disk.quota.budget_bytes // SLACK):
            return False
        catalog.disk.tidy(catalog.disk.manifest.database.fold)
    return _excess(catalog) <= 0


def _excess(catalog: Catalog) -> int:
    return folder_bytes(catalog) + sum(catalog.disk.unfinished.values()) - catalog.disk.quota.budget_bytes


def _evict(catalog: Catalog, excess_bytes: int) -> bool:
    waits = catalog.waits()
    with catalog.lock:
        heads = {head: wait for agent, wait in waits.items() for head in catalog.ends.of(agent)}
        rows = [s for s in catalog.segments.values() if s.kind == "rows" and not s.is_hidden]
        sizes = {
            s.number: s.held_bytes + sum(one.held_bytes for one in catalog.dependents(s.number, "resume")) for s in rows
        }
        pinned = {s.number for s in rows if not s.is_ready or catalog.pins.covers(s)}
        ends = [(s.number, [heads[id] for id in s.piece_ids() if id in heads]) for s in rows] if heads else []
        near = {number: min(found) for number, found in ends if found}
        gone = victims(rows, sizes, pinned, excess_bytes, catalog.disk.clock(), near)
        if gone:
            catalog.hide(gone, "evicted")
    log.debug("store: evicted segments=%d", len(gone))
    return remove_hidden(catalog) and bool(gone)


def announce(catalog: Catalog, file: str, n_bytes: int) -> None:
    """Evict to make space for a file before its first byte is written. I/O thread; raises NoRoomError."""
    catalog.disk.unfinished[file] = -(-n_bytes // _PAGE) * _PAGE
    if not make_room(catalog):
        raise NoRoomError(f"no room for {n_bytes:,} bytes")


def figures(catalog: Catalog | None, health: Health, *, agents: int, log_damage: int) -> dict[str, Any]:
    """Return every figure by its name in ``Stats``; ``catalog`` None: no KV."""
    found: dict[str, Any] = {
        "agents": agents,
        "damage": log_damage,
        "disk_state": health.state,
        "disk_failures": health.failures,
        "disk_bytes": 0,
        "disk_budget_bytes": 0,
        "bytes_written": 0,
        "segments": 0,
        "chunks": 0,
        "save_failures": 0,
        "saves_skipped": {},
        "unwritten_tokens": 0,
        "unreadable": 0,
    }
    if catalog is None:
        return found
    with catalog.lock:
        ready = [s for s in catalog.segments.values() if s.kind == "rows" and s.is_ready and not s.is_hidden]
        return found | {
            "damage": catalog.disk.counts.damage + log_damage,
            "disk_bytes": folder_bytes(catalog),
            "disk_budget_bytes": catalog.disk.quota.budget_bytes,
            "bytes_written": catalog.disk.counts.bytes_written,
            "segments": len(ready),
            "chunks": sum(s.n_chunks for s in ready),
            "save_failures": catalog.disk.counts.save_failures,
            "saves_skipped": dict(catalog.disk.counts.skipped),
            "unwritten_tokens": catalog.disk.counts.unwritten.n_tokens,
            "unreadable": catalog.losses.n_unreadable,
        }
