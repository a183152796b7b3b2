"""Deletion of an agent: pieces that only its lineages use leave the disk, shared ones stay."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from agent_memory.prefix.index import Index, Piece, Segment
from agent_memory.prefix.resume import Side
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, apply
from agent_memory.store.format import extents, new_file
from agent_memory.store.room import tidy
from agent_memory.store.rows import facts_of, layout_of, segment_of
from agent_memory.store.segments import WRITE_ERRORS, SegmentWriter, copy_prefix

log = logging.getLogger("agent_memory.store")

#: The number of an agent that never is: lineages are given to it, and end with it.
NOBODY = 2**40


def delete_agent(catalog: Catalog, agent_id: int) -> None:
    """Delete an agent's log, and the pieces that only its lineages use. I/O thread; durable when it returns."""
    is_done = False
    while not is_done:  # again if a segment was found damaged meanwhile
        with catalog.lock:
            drop, cuts = _unused(catalog, agent_id)
        changes = _shortened(catalog, cuts, drop)
        try:
            is_done = apply(catalog, _edit(catalog, agent_id, drop, changes))
        finally:
            for _, new in changes if not is_done else ():
                catalog.files.unlink(catalog.path(new))
    catalog.counts.unwritten.written(agent_id, None)
    tidy(catalog, lambda: catalog.manifest.database.shrink(from_share=0.0))


def delete_agents(catalog: Catalog, agent_ids: Iterable[int]) -> None:
    """End several agents. I/O thread."""
    for agent_id in agent_ids:
        delete_agent(catalog, agent_id)


def _unused(catalog: Catalog, agent_id: int) -> tuple[dict[int, Segment], list[tuple[Segment, int]]]:
    """Return segments that only this agent's lineages use, and (segment, pieces that stay) if shared in part."""
    heads = catalog.manifest.heads()
    drop: dict[int, Segment] = {}
    cuts: list[tuple[Segment, int]] = []
    for identity in {identity for agent, identity, _ in heads if agent == agent_id}:
        mine = [h for a, i, h in heads if a == agent_id and i == identity]
        others = [h for a, i, h in heads if a != agent_id and i == identity]
        for index in _indexes(catalog, identity):
            whole, parts = _unshared(index, mine, others)
            drop |= {s.number: catalog.segments[s.number] for s in whole}
            cuts += parts
    return drop, cuts


def _shortened(
    catalog: Catalog, cuts: Sequence[tuple[Segment, int]], drop: dict[int, Segment]
) -> list[tuple[Segment, Segment]]:
    """Return (segment, its shorter replacement); a segment that cannot be rewritten is dropped with its descendants."""
    changes: list[tuple[Segment, Segment]] = []
    for segment, n_pieces in cuts:
        try:
            changes.append((catalog.segments[segment.number], _cut(catalog, segment, n_pieces)))
        except WRITE_ERRORS as error:
            log.warning("store: a shared segment could not be rewritten and will be computed again: %s", error)
            with catalog.lock:
                drop |= {s.number: s for s in catalog.family([catalog.segments[segment.number]]) if s.is_ready}
    return [(old, new) for old, new in changes if old.number not in drop]


def _edit(
    catalog: Catalog, agent_id: int, drop: Mapping[int, Segment], changes: Sequence[tuple[Segment, Segment]]
) -> Edit:
    stale: list[Side] = []
    with catalog.lock:
        for old, new in changes:
            kept = {piece.id for piece in new.pieces}
            stale += [side for side in catalog.beside(old) if side.is_ready and side.piece not in kept]
    return Edit(
        add=[new for _, new in changes],
        remove=[*drop.values(), *(old for old, _ in changes)],
        remove_sides=stale,
        ended_agent=agent_id,
    )


def _indexes(catalog: Catalog, identity: str) -> list[Index]:
    if identity == catalog.identity and catalog.index is not None:
        return [catalog.index]
    rows = catalog.manifest.segments(identity)
    return [
        catalog.build_index(identity, size, {r.segment: segment_of(r) for r in rows if _is_shown(catalog, r.segment)})
        for size in {r.chunk_tokens for r in rows}
    ]


def _is_shown(catalog: Catalog, number: int) -> bool:
    return number in catalog.segments and not catalog.segments[number].is_hidden


def _cut(catalog: Catalog, segment: Segment, n_pieces: int) -> Segment:
    """Write a segment's first pieces as a new file; return the segment that replaces it."""
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
        file=new_file(segment.identity),
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
    new.pieces = [Piece(p.id, p.parent, new, p.index, p.n_tokens, p.made, p.head) for p in segment.pieces[:n_pieces]]
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


def _unshared(index: Index, mine: list[bytes], others: list[bytes]) -> tuple[list[Segment], list[tuple[Segment, int]]]:
    """Return the segments that only heads ``mine`` reach, and (segment, pieces that stay) of those shared in part."""
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
