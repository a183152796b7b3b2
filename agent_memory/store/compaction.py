"""Compaction: join the small segments of idle lineages into full ones, in idle time.

- Turns leave short segments and tail deltas; a restore opens each of them.
- Segments that no request has used for a while are rewritten once: consecutive segments of chunks into segments of
  eight chunks, a chain of deltas into one.
- Order of writing, as for a save: the new file whole and durable, one commit, the old files unlinked. Open readers keep
  their files; later look-ups find the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from attrs import frozen

from agent_memory.kvcache.coding import coded
from agent_memory.log.health import is_disk_error
from agent_memory.prefix.chunks import piece_id
from agent_memory.prefix.index import HEAD_IDS, Ids, Piece, Segment, sort_key
from agent_memory.prefix.provenance import SEGMENT_CHUNKS
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, apply
from agent_memory.store.format import extents, new_file
from agent_memory.store.room import NoRoomError, announce
from agent_memory.store.rows import facts_of
from agent_memory.store.segments import WRITE_ERRORS, OpenSegment, SegmentWriter

log = logging.getLogger("agent_memory.store")

REST_S = 600.0  #: seconds unused before segments are joined: those of a running conversation change too often
_SCAN_S = 60.0  #: seconds between two searches for joins


@frozen
class Join:
    """Consecutive segments, each the parent of the next. ``is_tail``: they are tail deltas."""

    segments: tuple[Segment, ...]
    is_tail: bool


class Compactor:
    """Finds joins and performs them, a tensor of one segment at a time. I/O thread, except ``__init__``."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._next_scan_s = 0.0

    def wake(self) -> None:
        """Queue a search for joins for when the I/O thread is idle; at most one every minute."""
        now = self._catalog.clock()
        if now >= self._next_scan_s:
            self._next_scan_s = now + _SCAN_S
            self._catalog.io.submit_idle(self.steps())

    def steps(self, rest_s: float = REST_S) -> Iterator[None]:
        """Join all that can be joined; between two steps other work may run."""
        catalog = self._catalog
        with catalog.lock:
            numbers = sorted(catalog.segments)
        for number in numbers:
            with catalog.lock:
                join = find(catalog, number, catalog.clock() - rest_s)
            yield
            if join is not None and catalog.health.may_save:
                yield from _perform(catalog, join)


def find(catalog: Catalog, number: int, before_s: float) -> Join | None:
    """Return the join that begins with a segment, of segments last used before a time; None if none. Under the lock."""
    index, first = catalog.index, catalog.segments.get(number)
    if index is None or first is None or not _may_join(catalog, first, before_s):
        return None
    is_tail = _is_delta(first)
    if is_tail and catalog.needs is not None:
        return None  # their side files belong to the deltas' ends
    found, n_tokens = [first], first.n_tokens
    limit = first.chunk_tokens * (1 if is_tail else SEGMENT_CHUNKS)
    while True:
        following = index.children(found[-1].pieces[-1].id)
        after = following[0].segment if len(following) == 1 and following[0].index == 0 else None
        if after is None or not _may_join(catalog, after, before_s) or _is_delta(after) != is_tail:
            break
        n_tokens += after.n_tokens
        if n_tokens > limit or (after.exactness, after.codec, after.host) != (first.exactness, first.codec, first.host):
            break
        found.append(after)
    if len(found) < 2 or (is_tail and not _is_whole_tail(catalog, found)):
        return None
    return Join(tuple(found), is_tail)


def _may_join(catalog: Catalog, segment: Segment, before_s: float) -> bool:
    return segment.is_readable and bool(segment.pieces) and segment.used_s <= before_s


def _is_delta(segment: Segment) -> bool:
    return segment.n_tokens < segment.chunk_tokens


def _is_whole_tail(catalog: Catalog, found: Sequence[Segment]) -> bool:
    """True if a chain of deltas is a whole tail: nothing before or after it, and no lineage ends inside it."""
    index = catalog.index
    assert index is not None
    before = index.pieces.get(found[0].parent)
    ends = {s.pieces[-1].id for s in found[:-1]}
    is_first = before is None or not _is_delta(before.segment)
    has_end_inside = not ends.isdisjoint(head for _, _, head in catalog.manifest.heads())
    return is_first and not has_end_inside and not index.children(found[-1].pieces[-1].id)


def _perform(catalog: Catalog, join: Join) -> Iterator[None]:
    """Write, commit, swap; a failure changes nothing."""
    sources: list[OpenSegment] = []
    made: Segment | None = None
    try:
        for segment in join.segments:
            sources.append(OpenSegment(catalog.path(segment), segment))
        ids = np.concatenate([s.ids(old.n_tokens) for s, old in zip(sources, join.segments, strict=True)])
        made = _joined(join, ids)
        yield from _write(catalog, join, sources, made, ids)
        _store(catalog, join, made)
    except (*WRITE_ERRORS, NoRoomError) as error:
        if is_disk_error(error):
            catalog.health.failed("KV", error)
        log.info("store: %d segments were not joined: %s", len(join.segments), error)
    finally:
        for source in sources:
            source.close()
        if made is not None:
            catalog.unfinished.pop(made.file, None)
            if catalog.segments.get(made.number) is not made:
                catalog.files.unlink(catalog.path(made))


def _joined(join: Join, ids: Ids) -> Segment:
    """Return the joined segment, which replaces the first, with pieces of its own."""
    first, last = join.segments[0], join.segments[-1]
    made = Segment(
        number=first.number,
        identity=first.identity,
        file=new_file(first.identity),
        parent=first.parent,
        parent_number=first.parent_number,
        start=first.start,
        n_tokens=len(ids),
        chunk_tokens=first.chunk_tokens,
        exactness=first.exactness,
        codec=first.codec,
        host=first.host,
        used_s=last.used_s,
        is_ready=True,
    )
    old = [piece for segment in join.segments for piece in segment.pieces]
    if join.is_tail:
        kinds = {p.made for p in old}
        how = kinds.pop() if len(kinds) == 1 else 3
        made.pieces = [
            Piece(piece_id(first.parent, ids), first.parent, made, 0, len(ids), how, sort_key(ids[:HEAD_IDS]))
        ]
    else:
        made.pieces = [Piece(p.id, p.parent, made, i, p.n_tokens, p.made, p.head) for i, p in enumerate(old)]
    return made


def _write(catalog: Catalog, join: Join, sources: Sequence[OpenSegment], made: Segment, ids: Ids) -> Iterator[None]:
    layout = catalog.layout
    assert layout is not None
    writer = SegmentWriter(
        catalog.files, catalog.path(made), extents(layout, made.n_tokens, made.codec), facts_of(made).metadata, ids
    )
    try:
        announce(catalog, made.file, writer.n_bytes)
        for tensor, spec in enumerate(coded(t, made.codec) for t in layout.tensors):
            parts = [s.tensor(spec.name, tensor) for s in sources]
            runs = [old.n_tokens * spec.row_bytes for old in join.segments]
            for head in range(spec.heads):
                for part, run in zip(parts, runs, strict=True):
                    writer.write(tensor, part[head * run : (head + 1) * run])
            yield
        made.header_xxh3 = writer.finish()
    except BaseException:  # also if the generator is closed
        writer.abandon()
        raise
    made.n_bytes, made.held_bytes = writer.n_bytes, writer.held_bytes
    catalog.files.sync_folder(catalog.path(made).parent)
    catalog.note_written(made.n_bytes)


def _store(catalog: Catalog, join: Join, made: Segment) -> None:
    """Replace the segments by the joined one, if they are unchanged since the join began."""
    first, *others = join.segments
    with catalog.lock:
        made.parent_number = first.parent_number
        is_there = all(catalog.segments.get(s.number) is s for s in join.segments)
        if not is_there or (join.is_tail and not _is_whole_tail(catalog, join.segments)):
            return
    heads = {others[-1].pieces[-1].id: made.pieces[-1].id} if join.is_tail else {}
    rehang = {s.number: made.number for s in others}
    apply(catalog, Edit(add=[made], remove=join.segments, rehang=rehang, heads=heads))
