"""Opening a store's KV: enter segments that both manifest and folder have; forget rows and remove files of others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from agent_memory.log.files import Size
from agent_memory.prefix.index import Segment
from agent_memory.prefix.resume import Side
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import remove_hidden
from agent_memory.store.folder import list_files
from agent_memory.store.format import is_kv_name
from agent_memory.store.records import SegmentRow
from agent_memory.store.room import known_files
from agent_memory.store.rows import segment_of, unpack

log = logging.getLogger("agent_memory.store")


def sweep(catalog: Catalog) -> None:
    """Read the manifest, forget segments whose file is missing, remove KV files that it does not name."""
    rows, found = catalog.manifest.segments(), list_files(catalog.folder)
    _take_up(catalog, rows, found)
    _take_up_sides(catalog, found)
    remove_hidden(catalog)  # if the disk refuses, the next Edit does it
    catalog.opened = catalog.manifest.database.commits, rows
    for name in filter(is_kv_name, found.keys() - known_files(catalog)):
        catalog.files.unlink(catalog.folder / name)


def _take_up(catalog: Catalog, rows: Sequence[SegmentRow], found: Mapping[str, Size]) -> None:
    """Enter all segments; hide those whose file is missing or has a wrong size, and their descendants."""
    bad: list[Segment] = []
    lost: set[int] = set()
    n_damaged = 0
    for row in rows:  # parents come first
        segment, size = segment_of(row), found.get(row.file)
        is_whole = size is not None and size.n_bytes == row.n_bytes
        n_damaged += not is_whole
        segment.held_bytes = size.held_bytes if size is not None else 0
        has_parent = row.parent_segment is None or row.parent_segment in catalog.segments
        catalog.enter(segment)
        if not is_whole or not has_parent or row.parent_segment in lost:
            bad.append(segment)
            lost.add(row.segment)
            catalog.remember(row.parent, unpack(row.pieces), "missing")
    catalog.last_number = max(catalog.segments, default=0)
    if n_damaged:
        catalog.counts.damage += n_damaged
        log.warning(
            "store: %d of %d segments are missing or have a wrong size; they will be computed again",
            n_damaged,
            len(rows),
        )
    if bad:
        catalog.hide(bad, None)


def _take_up_sides(catalog: Catalog, found: Mapping[str, Size]) -> None:
    """Enter all side files but those missing or of a wrong size; each costs a resume point."""
    lost: list[Side] = []
    for side in catalog.manifest.sides():
        size, segment = found.get(side.file), catalog.segments.get(side.segment)
        side.held_bytes = size.held_bytes if size is not None else 0
        catalog.enter_side(side)
        if size is None or size.n_bytes != side.n_bytes or segment is None or segment.is_hidden:
            lost.append(side)
            catalog.counts.damage += segment is not None and not segment.is_hidden
    if lost:
        log.warning("store: %d side files are missing or have a wrong size; KV will be computed again", len(lost))
        catalog.hide((), None, lost)
