"""The plan of a save: which segments and side files it writes, entered in the catalog before its first byte."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from agent_memory.kvcache.coding import token_bytes
from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.chunks import piece_id
from agent_memory.prefix.index import HEAD_IDS, Ids, Index, Piece, Segment, n_tokens, sort_key
from agent_memory.prefix.provenance import Provenance, Run, coded_runs, missing
from agent_memory.prefix.resume import Held
from agent_memory.store.catalog import Catalog
from agent_memory.store.format import new_file
from agent_memory.store.renewal import plan_renewals
from agent_memory.store.saves import Save
from agent_memory.store.sides import plan_sides

log = logging.getLogger("agent_memory.store")


def begin_save(
    catalog: Catalog,
    ids: Ids,
    lineage: Provenance,
    agent_id: int | None,
    held: Held,
    *,
    is_promised: bool,
    is_turn: bool = True,
) -> Save:
    """Plan a save and enter its pieces, not findable yet; an empty save if it is not worth a write. Engine thread."""
    with catalog.lock:
        index, layout = catalog.index, catalog.layout
        if index is None or layout is None or not layout.is_storable or not len(ids):
            return Save(None)
        former = n_tokens(index.plan(ids, ready=False)) if catalog.needs is not None else 0
        missed, head, kept = missing(index, ids, is_cuttable=catalog.needs is None)
        runs = list(coded_runs(missed, index, ids, lineage, catalog.codec))
        catalog.touch([kept.segment] if kept is not None else [])
        if reason := _refusal(catalog, index, layout, ids, runs, is_promised):
            catalog.counts.skipped[reason] += 1
            if reason == "disk":
                catalog.counts.unwritten.note(agent_id, None, sum(r.stop - r.start for r in runs))
            log.debug("store: a save of %d tokens is not written: %s", len(ids), reason)
            return Save(None)
        segments = []
        for run in runs:
            segments.append(_plan_segment(catalog, index, ids, lineage, run))
            head = segments[-1].pieces[-1].id
        sides = plan_sides(catalog, head, lineage, held)
        renewals = plan_renewals(catalog, index.chunks(ids, ready=True), ids, lineage)
        return Save(
            catalog,
            tuple(segments),
            runs,
            sides,
            renewals,
            head=head,
            former=former,
            agent_id=agent_id,
            is_turn=is_turn,
        )


def _refusal(
    catalog: Catalog, index: Index, layout: Layout, ids: Ids, runs: Sequence[Run], is_promised: bool
) -> str | None:
    """Return why a save is not begun; None if it is."""
    if not catalog.health.may_save:
        return "disk"
    if not runs:
        return None
    own = ids[runs[0].start : min(runs[0].start + index.chunk_tokens, runs[0].stop)]
    first = piece_id(runs[0].before.id if runs[0].before is not None else index.root, own)
    n_tokens = sum(r.stop - r.start for r in runs)
    n_bytes = sum((r.stop - r.start) * token_bytes(layout, r.codec) for r in runs)
    if n_bytes > catalog.quota.budget_bytes:
        return "larger than the disk budget"
    return catalog.admission.refusal(first, n_tokens, n_bytes, is_promised=is_promised)


def _plan_segment(catalog: Catalog, index: Index, ids: Ids, lineage: Provenance, run: Run) -> Segment:
    start, stop, before = run.start, run.stop, run.before
    if before is None and start:
        before = catalog.segments[catalog.last_number].pieces[-1]  # the segment planned just before this one
    catalog.last_number += 1
    parent = before.id if before is not None else index.root
    segment = Segment(
        number=catalog.last_number,
        identity=catalog.identity,
        file=new_file(catalog.identity),
        parent=parent,
        parent_number=before.segment.number if before is not None else None,
        start=start,
        n_tokens=stop - start,
        chunk_tokens=index.chunk_tokens,
        exactness=lineage.exactness if run.codec == "exact" else "quantized",
        codec=run.codec,
        host=catalog.host,
        used_s=time.time(),
        ids=ids[start:stop].copy(),
    )
    catalog.enter(segment)
    for i, at in enumerate(range(start, stop, index.chunk_tokens)):
        own = ids[at : min(at + index.chunk_tokens, stop)]
        piece = Piece(
            piece_id(parent, own),
            parent,
            segment,
            i,
            len(own),
            lineage.made_by(at, at + len(own)),
            sort_key(own[:HEAD_IDS]),
        )
        segment.pieces.append(piece)
        index.add(piece, own)
        catalog.forget_reason(parent, piece.id)
        parent = piece.id
    return segment
