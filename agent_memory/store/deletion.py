"""The end of agents and of forgotten turns: KV that only their lineages used leaves the disk, shared KV stays.

What is forgotten goes by lineage: what the agents' lineages used and no other agent's does, and whatever no agent's
lineage uses.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

from agent_memory.log.damage import WRITE_ERRORS
from agent_memory.log.logs import Rewritten, replace_turns
from agent_memory.prefix.index import Index
from agent_memory.prefix.pieces import Piece, Segment
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, apply
from agent_memory.store.manifest import Manifest
from agent_memory.store.rewriting import rewrite

log = logging.getLogger("agent_memory.store")

#: The number of an agent that never is: lineages are given to it, and end with it.
_NOBODY = 2**40


def delete_agent(catalog: Catalog, agent_id: int) -> None:
    """End an agent: its log, and the pieces that only its lineages used. I/O thread; durable when it returns."""
    is_done = False
    while not is_done:  # again where something was found damaged meanwhile
        with catalog.lock:
            drop, cuts = _unused(catalog, agent_id)
        changes = _shortened(catalog, cuts, drop)
        try:
            is_done = apply(catalog, _edit(catalog, agent_id, drop.values(), changes))
        finally:
            for _, new in changes if not is_done else ():
                catalog.disk.files.unlink(catalog.disk.path(new))
    catalog.disk.counts.unwritten.written(agent_id, None)
    catalog.disk.tidy(lambda: catalog.disk.manifest.database.shrink(from_share=0.0))


def _unused(catalog: Catalog, agent_id: int) -> tuple[dict[int, Segment], list[tuple[Segment, int]]]:
    """What only this agent's lineages use: segments, and of those shared in part how many pieces stay."""
    heads = catalog.disk.manifest.heads()
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
    """(segment, the shorter one that takes its place); one that cannot be rewritten is dropped, with what follows."""
    changes: list[tuple[Segment, Segment]] = []
    for segment, n_pieces in cuts:
        try:
            changes.append((catalog.segments[segment.number], _cut(catalog, segment, n_pieces)))
        except WRITE_ERRORS as error:
            log.warning("store: a shared segment could not be rewritten and will be computed again: %s", error)
            with catalog.lock:
                drop |= {s.number: s for s in catalog.family([catalog.segments[segment.number]]) if s.is_ready}
    return [(old, new) for old, new in changes if old.number not in drop]


def _edit(catalog: Catalog, agent_id: int, drop: Iterable[Segment], changes: Sequence[tuple[Segment, Segment]]) -> Edit:
    stale: list[Segment] = []
    with catalog.lock:
        for old, new in changes:
            kept = {piece.id for piece in new.pieces}
            stale += [one for one in catalog.resume_of(old) if one.is_ready and one.parent not in kept]
    return Edit(
        add=[new for _, new in changes],
        remove=[*drop, *(old for old, _ in changes), *stale],
        ended_agent=agent_id,
    )


def _indexes(catalog: Catalog, identity: str) -> list[Index]:
    """The index of the attached model; of another, one for each size of chunks, over copies of its segments."""
    if catalog.model is not None and identity == catalog.model.identity:
        return [catalog.model.index]
    rows = [s for s in catalog.disk.manifest.segments(identity) if s.kind == "rows" and _is_shown(catalog, s.number)]
    return [
        catalog.build_index(identity, size, [s for s in rows if s.chunk_tokens == size])
        for size in {s.chunk_tokens for s in rows}
    ]


def _is_shown(catalog: Catalog, number: int) -> bool:
    return number in catalog.segments and not catalog.segments[number].is_hidden


def _cut(catalog: Catalog, segment: Segment, n_pieces: int) -> Segment:
    """Write a segment's first pieces as a new file; the segment that takes its place."""
    disk, model = catalog.disk, catalog.model
    is_attached = model is not None and segment.identity == model.identity
    layout = model.layout if model is not None and is_attached else disk.manifest.layout(segment.identity)
    new = segment.successor(segment.pieces[:n_pieces], n_tokens=n_pieces * segment.chunk_tokens)
    for _ in rewrite(catalog, layout, [segment], lambda _: new):
        pass
    return new


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


def forget(manifest: Manifest, logs: Rewritten, kv_of: Collection[int]) -> None:
    """Commit other turns of some logs, and that the KV of some agents, and of no agent, is nobody's. I/O thread."""
    with manifest.database.transaction() as db:
        replace_turns(db, logs)
        for agent_id in kv_of:
            db.execute("UPDATE OR REPLACE lineages SET agent = ? WHERE agent = ?", (_NOBODY, agent_id))
        ends = [
            (_NOBODY, segment.identity, segment.piece_ids()[-1])
            for segment in manifest.segments()
            if segment.kind == "rows"
        ]
        db.executemany("INSERT OR IGNORE INTO lineages VALUES (?, ?, ?)", ends)


def delete_unowned(manifest: Manifest, catalog: Catalog | None) -> None:
    """Delete the KV that is nobody's; no file holds bytes of it, or of replaced turns, afterwards. I/O thread.

    What an earlier process did not get to is deleted too.
    """
    if catalog is not None:
        delete_agent(catalog, _NOBODY)
    manifest.database.fold()
