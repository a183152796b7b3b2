"""Opening a store's KV: what the manifest names and the folder has is taken up, the rest is forgotten or removed."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agent_memory.store.files import Size, list_files
from agent_memory.store.quota import known_files
from agent_memory.store.records import SegmentRow
from agent_memory.store.rows import segment_of, unpack

if TYPE_CHECKING:
    from agent_memory.store.catalog import Catalog

log = logging.getLogger("agent_memory.store")


def sweep(catalog: Catalog) -> None:
    """Read the manifest, forget segments whose file is gone, remove files that it does not know."""
    rows, found = catalog.manifest.segments(), list_files(catalog.folder)
    gone = _take_up(catalog, rows, found)
    lost = _take_up_sides(catalog, found)
    with contextlib.suppress(sqlite3.OperationalError):  # a full disk: the next open forgets them again
        if gone:
            catalog.manifest.commit_segments(drop=gone)
        if lost:
            catalog.manifest.drop_sides(lost)
    catalog.opened = catalog.manifest.commits, rows
    for name in found.keys() - known_files(catalog):
        catalog.files.unlink(catalog.folder / name)


def _take_up(catalog: Catalog, rows: Sequence[SegmentRow], found: Mapping[str, Size]) -> list[int]:
    """Enter the segments whose file is as it was written; the numbers of the others and of what follows them."""
    bad = {r.segment for r in rows if r.file not in found or found[r.file].n_bytes != r.n_bytes}
    if bad:
        catalog.damage += len(bad)
        log.warning(
            "store: %d of %d segments are missing or have a wrong size; they will be computed again",
            len(bad),
            len(rows),
        )
    gone = []
    for row in rows:  # parents come first
        if row.segment in bad or (row.parent_segment is not None and row.parent_segment not in catalog.segments):
            gone.append(row.segment)
            catalog.remember(row.parent, unpack(row.pieces), "missing")
        else:
            segment = catalog.segments[row.segment] = segment_of(row)
            segment.held_bytes = found[row.file].held_bytes
            catalog.held_bytes += segment.held_bytes
    catalog.last_number = max((r.segment for r in rows), default=0)
    return gone


def _take_up_sides(catalog: Catalog, found: Mapping[str, Size]) -> list[bytes]:
    """The same for side files: a missing one costs a place to restore at."""
    sides = catalog.manifest.sides()
    for side in sides:
        size = found.get(side.file)
        if side.segment in catalog.segments and size is not None and size.n_bytes == side.n_bytes:
            side.held_bytes = size.held_bytes
            catalog.enter_side(side)
    lost = [s for s in sides if s.piece not in catalog.sides]
    catalog.damage += sum(s.segment in catalog.segments for s in lost)
    if lost:
        log.warning("store: %d side files are missing or have a wrong size; KV will be computed again", len(lost))
    return [s.piece for s in lost]
