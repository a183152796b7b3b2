"""Rewriting: segments made from stored ones, byte by byte: small ones joined in idle time, shared ones shortened.

- Turns leave short segments and tail deltas; a restore opens each of them.
- Segments that no request has used for a while are joined once: consecutive segments of chunks into segments of eight
  chunks, a chain of deltas into one.
- Order of writing, as for a save: the new file whole and durable, one commit, the old files unlinked. Open readers keep
  their files; later look-ups find the new one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from attrs import evolve

from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.segments import OpenSegment, SegmentWriter
from agent_memory.log.damage import WRITE_ERRORS
from agent_memory.log.health import is_disk_error
from agent_memory.prefix.authors import unpacked
from agent_memory.prefix.pieces import Ids, Segment
from agent_memory.prefix.provenance import SEGMENT_CHUNKS
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, apply
from agent_memory.store.room import NoRoomError, announce

log = logging.getLogger("agent_memory.store")

REST_S = 600.0  #: seconds unused before segments are joined: those of a running conversation change too often
_SCAN_S = 60.0  #: seconds between two searches for joins


class Compactor:
    """Finds joins and performs them, a tensor of one segment at a time. I/O thread, except ``__init__``."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._next_scan_s = 0.0

    def wake(self) -> None:
        """Queue a search for joins for when the I/O thread is idle; at most one every minute."""
        now = self._catalog.disk.clock()
        if now >= self._next_scan_s:
            self._next_scan_s = now + _SCAN_S
            self._catalog.disk.io.submit_idle(self.steps())

    def steps(self, rest_s: float = REST_S) -> Iterator[None]:
        """Join all that can be joined; between two steps other work may run."""
        catalog = self._catalog
        with catalog.lock:
            numbers = sorted(number for number, segment in catalog.segments.items() if segment.kind == "rows")
        for number in numbers:
            with catalog.lock:
                segments = find(catalog, number, catalog.disk.clock() - rest_s)
            yield
            if segments and catalog.disk.health.may_save:
                yield from _join(catalog, segments)


def find(catalog: Catalog, number: int, before_s: float) -> list[Segment]:
    """Return the segments to join from ``number`` on, each the parent of the next, all last used before a time.

    Empty if there is nothing to join. Under the lock.
    """
    model, first = catalog.model, catalog.segments.get(number)
    if model is None or first is None or not _may_join(first, before_s):
        return []
    is_tail = _is_delta(first)
    if is_tail and model.needs is not None:
        return []  # their resume segments belong to the deltas' ends
    found, n_tokens = [first], first.n_tokens
    limit = first.chunk_tokens * (1 if is_tail else SEGMENT_CHUNKS)
    while True:
        following = model.index.children(found[-1].pieces[-1].id)
        after = following[0].segment if len(following) == 1 and following[0].index == 0 else None
        if after is None or not _may_join(after, before_s) or _is_delta(after) != is_tail or after.n_shared:
            break
        n_tokens += after.n_tokens
        if n_tokens > limit or (after.exactness, after.codec, after.host) != (first.exactness, first.codec, first.host):
            break
        found.append(after)
    return [] if len(found) < 2 or (is_tail and not _is_whole_tail(catalog, found)) else found


def _may_join(segment: Segment, before_s: float) -> bool:
    return segment.is_readable and bool(segment.pieces) and segment.used_s <= before_s


def _is_delta(segment: Segment) -> bool:
    return segment.n_tokens < segment.chunk_tokens


def _is_whole_tail(catalog: Catalog, found: Sequence[Segment]) -> bool:
    """True if a chain of deltas is a whole tail: nothing before or after it, and no lineage ends inside it."""
    assert catalog.model is not None
    index = catalog.model.index
    before = index.pieces.get(found[0].parent)
    is_first = before is None or before.n_tokens == index.chunk_tokens
    has_end_inside = any(catalog.ends.is_stored(s.pieces[-1].id, None) for s in found[:-1])
    return is_first and not has_end_inside and not index.children(found[-1].pieces[-1].id)


def _join(catalog: Catalog, segments: Sequence[Segment]) -> Iterator[None]:
    """Write, commit, swap; a failure changes nothing."""
    assert catalog.model is not None
    disk, n_bytes = catalog.disk, sum(segment.n_bytes for segment in segments)  # joined, they need fewer bytes
    begun: list[Segment] = []

    def begin(ids: Ids) -> Segment:
        begun.append(_joined(segments, ids))
        announce(catalog, begun[0].file, n_bytes)
        return begun[0]

    try:
        yield from rewrite(catalog, catalog.model.layout, segments, begin)
        _store(catalog, segments, begun[0])
    except (*WRITE_ERRORS, NoRoomError) as error:
        if is_disk_error(error):
            disk.health.failed("KV", error)
        log.info("store: %d segments were not joined: %s", len(segments), error)
    finally:
        for joined in begun:
            disk.unfinished.pop(joined.file, None)
            if catalog.segments.get(joined.number) is not joined:
                disk.files.unlink(disk.path(joined))


def _joined(segments: Sequence[Segment], ids: Ids) -> Segment:
    """Return the joined segment, which replaces the first, with pieces of its own."""
    first, last = segments[0], segments[-1]
    pieces = [piece for segment in segments for piece in segment.pieces]
    if not _is_delta(first):
        return evolve(first, n_tokens=len(ids), used_s=last.used_s).successor(pieces)
    kinds = {piece.made for piece in pieces}
    joined = evolve(first, n_tokens=len(ids), used_s=last.used_s).successor(())
    authors = unpacked((piece.authors, piece.n_tokens) for piece in pieces)
    joined.divide(ids, lambda start, stop: kinds.pop() if len(kinds) == 1 else 3, authors)
    return joined


def rewrite(
    catalog: Catalog, layout: Layout, segments: Sequence[Segment], successor: Callable[[Ids], Segment]
) -> Iterator[None]:
    """Copy the stored rows of some segments into a new file, one tensor a step; never decoded. I/O thread.

    Only the first of them may share rows; then the new one shares the same. ``successor``: the new segment, with all of
    their ids or the first ones. If it is not stored, the caller removes its
    file.
    """
    disk = catalog.disk
    with contextlib.ExitStack() as opened:
        sources = [opened.enter_context(contextlib.closing(OpenSegment(disk.path(s), s, disk.keys))) for s in segments]
        ids = np.concatenate([source.ids() for source in sources])
        to = successor(ids)
        writer = SegmentWriter(
            disk.files, disk.path(to), to, layout, ids=ids[: to.n_tokens], state_bytes=None, keys=disk.keys
        )
        try:
            for tensor in range(len(layout.tensors)):
                rows = np.concatenate([source.rows(layout, tensor, 0, to.n_own) for source in sources], axis=1)
                writer.write(tensor, memoryview(np.ascontiguousarray(rows)).cast("B"))  # type: ignore[arg-type]
                yield
            writer.finish()
        except BaseException:  # also if the generator is closed
            writer.abandon()
            raise
    disk.files.sync_folder(disk.path(to).parent)
    disk.note_written(to)


def _store(catalog: Catalog, segments: Sequence[Segment], joined: Segment) -> None:
    """Replace the segments by the joined one, if they are unchanged since the join began."""
    first, *others = segments
    is_tail = _is_delta(first)
    with catalog.lock:
        joined.parent_number = first.parent_number
        is_there = all(catalog.segments.get(s.number) is s for s in segments)
        if not is_there or (is_tail and not _is_whole_tail(catalog, segments)):
            return
    heads = {others[-1].pieces[-1].id: joined.pieces[-1].id} if is_tail else {}
    rehang = {s.number: joined.number for s in others}
    apply(catalog, Edit(add=[joined], remove=segments, rehang=rehang, heads=heads))
