"""The end of an agent: pieces that only its lineages used leave the disk, shared ones stay."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING

import numpy as np

from agent_memory.store.format import SUFFIX, extents
from agent_memory.store.planner import Index, Piece, Segment
from agent_memory.store.quota import tidy
from agent_memory.store.rows import facts_of, layout_of, row_of, segment_of
from agent_memory.store.segments import WRITE_ERRORS, SegmentWriter, copy_prefix

if TYPE_CHECKING:
    from agent_memory.store.catalog import Catalog

log = logging.getLogger("agent_memory.store")


def delete_agent(catalog: Catalog, agent_id: int) -> None:
    """End an agent: its log, and the pieces that only its lineages used. I/O thread; durable when it returns."""
    heads = catalog.manifest.heads()
    drop: list[Segment] = []
    cuts: list[tuple[Segment, int]] = []
    with catalog.lock:
        for identity in {identity for agent, identity, _ in heads if agent == agent_id}:
            mine = [h for a, i, h in heads if a == agent_id and i == identity]
            others = [h for a, i, h in heads if a != agent_id and i == identity]
            for index in _indexes(catalog, identity):
                whole, parts = _unshared(index, mine, others)
                drop += whole
                cuts += parts
    changes: list[tuple[Segment, Segment]] = []
    for segment, n_pieces in cuts:
        try:
            changes.append((segment, _cut(catalog, segment, n_pieces)))
        except WRITE_ERRORS as error:
            log.warning("store: a shared segment could not be rewritten and will be computed again: %s", error)
            drop += _with_children(catalog, segment)
    dropped = {s.number: s for s in drop}
    stale = [p.id for old, new in changes for p in old.pieces[len(new.pieces) :]]
    try:
        catalog.manifest.delete_agent(agent_id, drop=dropped, change=[row_of(new) for _, new in changes], stale=stale)
    except BaseException:
        for _, new in changes:
            catalog.files.unlink(catalog.path(new))
        raise
    old_files = [catalog.path(old) for old, _ in changes] + [catalog.path(s) for s in dropped.values()]
    with catalog.lock:
        for segment in dropped.values():
            if catalog.segments.get(segment.number) is not None:
                catalog.take_out(catalog.segments[segment.number], None)
        for old, new in changes:
            _shorten(catalog, old, new)
        old_files += [catalog.path(catalog.sides[p]) for p in stale if p in catalog.sides]
        for side in [catalog.sides[p] for p in stale if p in catalog.sides]:
            catalog.take_side(side)
    catalog.note_saved(agent_id, None)
    for path in old_files:
        catalog.files.unlink(path)
    catalog.clear_orphans()
    tidy(catalog, lambda: catalog.manifest.shrink(from_share=0.0))


def _indexes(catalog: Catalog, identity: str) -> list[Index]:
    if identity == catalog.identity and catalog.index is not None:
        return [catalog.index]
    rows = catalog.manifest.segments(identity)
    return [
        catalog.build_index(identity, size, {r.segment: segment_of(r) for r in rows if r.segment in catalog.segments})
        for size in {r.chunk_tokens for r in rows}
    ]


def _with_children(catalog: Catalog, segment: Segment) -> list[Segment]:
    found = {segment.number: segment}
    for other in sorted(catalog.segments.values(), key=lambda s: s.number):
        if other.parent_number in found:
            found[other.number] = other
    return list(found.values())


def _cut(catalog: Catalog, segment: Segment, n_pieces: int) -> Segment:
    """Write a segment's first pieces as a new file; what its row becomes."""
    layout = catalog.layout if segment.identity == catalog.identity else None
    if layout is None:
        layout = layout_of(catalog.manifest.layout(segment.identity) or "[]")
    n_tokens = n_pieces * segment.chunk_tokens
    known = [catalog.read_ids(piece) for piece in segment.pieces[:n_pieces]]
    ids = np.concatenate([own for own in known if own is not None])
    if len(ids) != n_tokens:
        raise ValueError("its ids cannot be read")
    new = Segment(
        number=segment.number,
        identity=segment.identity,
        file=f"{segment.identity[:16]}/{uuid.uuid4().hex}{SUFFIX}",
        parent=segment.parent,
        parent_number=segment.parent_number,
        start=segment.start,
        n_tokens=n_tokens,
        chunk_tokens=segment.chunk_tokens,
        exactness=segment.exactness,
        codec=segment.codec,
        host=segment.host,
        used_s=segment.used_s,
        is_ready=True,
    )
    new.pieces = segment.pieces[:n_pieces]
    path = catalog.path(new)
    places = extents(layout, n_tokens, new.codec)
    writer = SegmentWriter(catalog.files, path, places, facts_of(new).metadata, ids)
    try:
        new.header_xxh3 = copy_prefix(catalog.path(segment), segment, writer, layout, n_tokens)
    except BaseException:
        writer.abandon()
        raise
    catalog.files.sync_folder(path.parent)
    new.n_bytes, new.held_bytes = writer.n_bytes, writer.held_bytes
    catalog.note_written(new.n_bytes)
    return new


def _shorten(catalog: Catalog, old: Segment, new: Segment) -> None:
    live = catalog.segments.get(old.number)
    if live is None:
        return
    catalog.held_bytes += new.held_bytes - live.held_bytes
    if catalog.index is not None:
        for piece in reversed(live.pieces[len(new.pieces) :]):
            catalog.index.remove(piece)
    live.pieces = live.pieces[: len(new.pieces)]
    live.file, live.n_bytes, live.held_bytes = new.file, new.n_bytes, new.held_bytes
    live.header_xxh3, live.n_tokens = new.header_xxh3, new.n_tokens


def _unshared(index: Index, mine: list[bytes], others: list[bytes]) -> tuple[list[Segment], list[tuple[Segment, int]]]:
    """Segments that only ``mine`` reach, and (segment, pieces that stay) of those shared in part."""
    used = {p.id for head in others if head in index.pieces for p in index.ancestors(index.pieces[head])}
    removed: dict[bytes, Piece] = {}
    for head in mine:
        for piece in index.ancestors(index.pieces[head]) if head in index.pieces else ():
            is_last = all(c.id in removed for c in index.children(piece.id))
            if piece.id in used or not is_last or not piece.segment.is_ready:
                break
            removed[piece.id] = piece
    stay: dict[int, int] = {}
    segments = {p.segment.number: p.segment for p in removed.values()}
    for number, segment in segments.items():
        stay[number] = sum(p.id not in removed for p in segment.pieces)
    whole = [s for n, s in segments.items() if not stay[n]]
    return whole, [(s, stay[n]) for n, s in segments.items() if stay[n]]
