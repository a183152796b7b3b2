"""The plan of a save: which segments it writes and which it replaces, entered before its first byte is queued.

Engine thread, under the catalog's lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from attrs import evolve, frozen

from agent_memory.config import Codec
from agent_memory.kvcache.coding import token_bytes
from agent_memory.prefix.authors import packed
from agent_memory.prefix.chunks import piece_id
from agent_memory.prefix.index import Index, n_tokens
from agent_memory.prefix.names import new_file
from agent_memory.prefix.pieces import HeadMove, Ids, Kind, Piece, Segment, resume_segment
from agent_memory.prefix.provenance import Provenance, Run, coded_runs, missing
from agent_memory.prefix.resume import Held, missing_resume, stale
from agent_memory.prefix.sharing import Stretch, authors_of, reused, share, stretches
from agent_memory.store.catalog import Attached, Catalog
from agent_memory.types import Exactness, is_weaker

log = logging.getLogger("agent_memory.store")


@frozen(eq=False)
class Part:
    """One file of a save: the tokens of its segment that are queued, from ``start`` on.

    ``stored``: stored rows of the same lineage that come before them in the file. ``replaces``: the quantized segment
    that this exact one replaces.
    """

    segment: Segment
    start: int
    stored: tuple[Stretch, ...] = ()
    replaces: Segment | None = None

    @property
    def kind(self) -> Kind:
        """The kind of its segment."""
        return self.segment.kind

    @property
    def stop(self) -> int:
        """Position after its last token."""
        return self.segment.stop

    @property
    def codec(self) -> Codec:
        """The codec of its rows."""
        return self.segment.codec

    @property
    def has_state(self) -> bool:
        """True if it has the state at ``stop``."""
        return self.segment.has_state


@frozen(kw_only=True)
class Plan:
    """The files of a save, and their lineage."""

    rows: tuple[Part, ...] = ()
    resume: tuple[Part, ...] = ()
    head: bytes | None = None  #: the lineage's last piece
    former: int = 0  #: tokens of the lineage that were stored before
    agent_id: int | None = None
    is_turn: bool = True  #: True if the agent's log ends where the lineage does

    @property
    def fresh(self) -> list[Segment]:
        """The segments of new pieces."""
        return [part.segment for part in self.rows if part.replaces is None]


def plan_save(
    catalog: Catalog,
    ids: Ids,
    lineage: Provenance,
    agent_id: int | None,
    held: Held,
    *,
    is_promised: bool,
    is_turn: bool,
) -> Plan | None:
    """Plan a save and enter its segments, not findable yet; None if it is not worth a write."""
    model = catalog.model
    if model is None or not model.layout.is_storable or not len(ids):
        return None
    index = model.index
    former = n_tokens(index.plan(ids, ready=False)) if model.needs is not None else 0
    missed, head, kept = missing(index, ids, is_cuttable=model.needs is None)
    renewals = _plan_renewals(model, ids, lineage)
    n_alike = lineage.n_alike(_path(index, kept), {part.segment.number for part in renewals})
    stored = evolve(lineage, exactness=lineage.promise(len(ids), n_alike))  # as what follows stored KV may be told
    runs = list(_runs(catalog, model, missed, ids, stored, agent_id))
    catalog.touch([kept.segment] if kept is not None else [])
    if reason := _refusal(catalog, model, ids, runs, is_promised):
        catalog.disk.counts.skipped[reason] += 1
        if reason == "disk":
            catalog.disk.counts.unwritten.note(agent_id, None, sum(r.stop - r.start for r in runs))
        log.debug("store: a save of %d tokens is not written: %s", len(ids), reason)
        return None
    rows: list[Part] = []
    for run in runs:
        before = run.before or (rows[-1].segment.pieces[-1] if rows and run.start else None)
        segment = _plan_rows(catalog, model, ids, stored, run, before)
        start = run.start + max(run.n_shared, n_tokens(run.stored))
        rows.append(Part(segment, start, reused(run, catalog.segments) or ()))
        head = segment.pieces[-1].id
    rows += renewals
    resume = _plan_resume(catalog, model, head, lineage, held, n_alike)
    return Plan(rows=tuple(rows), resume=resume, head=head, former=former, agent_id=agent_id, is_turn=is_turn)


def _path(index: Index, last: Piece | None) -> tuple[tuple[Piece, int], ...]:
    """Return the pieces that lead to ``last``, and it, each whole."""
    found = [] if last is None else list(index.ancestors(last))
    return tuple((piece, piece.n_tokens) for piece in reversed(found))


def _runs(
    catalog: Catalog, model: Attached, missed: Sequence[Run], ids: Ids, lineage: Provenance, agent_id: int | None
) -> Iterator[Run]:
    """Yield the runs to write, each in its codec; the first one may share rows of another lineage."""

    def is_needed(piece: Piece) -> bool:
        return bool(catalog.ends.others(piece.id, agent_id) or catalog.borrowers(piece.segment))

    for number, run in enumerate(coded_runs(missed, model.index, ids, lineage, model.codec)):
        if model.needs is None and not number:
            exactness = _exactness(run, lineage)
            run = share(
                run,
                model.index,
                ids,
                catalog.segments,
                is_needed,
                authors=lineage.authors,
                exactness=exactness,
                host=model.host,
            )
        if reused(run, catalog.segments) is None:  # not as they would be written: the values are, exactly
            run = evolve(run, codec="exact", stored=(), source=None, n_shared=0)
        yield run


def _exactness(run: Run, lineage: Provenance) -> Exactness:
    return lineage.exactness if run.codec == "exact" else "quantized"


def _refusal(catalog: Catalog, model: Attached, ids: Ids, runs: Sequence[Run], is_promised: bool) -> str | None:
    """Return why a save is not begun; None if it is."""
    disk, index = catalog.disk, model.index
    if not disk.health.may_save:
        return "disk"
    if not runs:
        return None
    own = ids[runs[0].start : min(runs[0].start + index.chunk_tokens, runs[0].stop)]
    first = piece_id(runs[0].before.id if runs[0].before is not None else index.root, own)
    n_new = sum(r.stop - r.start - r.n_shared for r in runs)
    n_bytes = sum((r.stop - r.start - r.n_shared) * token_bytes(model.layout, r.codec) for r in runs)
    if n_bytes > disk.quota.budget_bytes:
        return "larger than the disk budget"
    return disk.admission.refusal(first, n_new, n_bytes, is_promised=is_promised)


def _plan_rows(
    catalog: Catalog, model: Attached, ids: Ids, lineage: Provenance, run: Run, before: Piece | None
) -> Segment:
    own = ids[run.start : run.stop].copy()
    segment = Segment(
        identity=model.identity,
        file=new_file(model.identity),
        parent=before.id if before is not None else model.index.root,
        parent_number=before.segment.number if before is not None else None,
        source_number=run.source.number if run.source is not None else None,
        n_shared=run.n_shared,
        start=run.start,
        n_tokens=len(own),
        chunk_tokens=model.index.chunk_tokens,
        exactness=_exactness(run, lineage),
        codec=run.codec,
        host=model.host,
        used_s=time.time(),
        ids=own,
    )
    catalog.enter(segment)
    authors = lineage.authors[run.start : run.stop]
    if run.source is not None:
        shared = stretches(catalog.segments, run.source, run.start, segment.shared_stop)
        authors = np.concatenate([authors_of(shared), authors[run.n_shared :]])

    def made(start: int, stop: int) -> int:
        return lineage.made_by(run.start + start, run.start + stop)

    for piece in segment.divide(own, made, authors):
        model.index.add(piece, own[piece.offset : piece.offset + piece.n_tokens])
        catalog.losses.forget(piece.parent, piece.id)
    return segment


def _plan_renewals(model: Attached, ids: Ids, lineage: Provenance) -> list[Part]:
    """Return exact replacements of the quantized segments among the stored chunks of an exact lineage.

    Only if every layer is full attention, and the lineage covers the whole segment.
    """
    if model.codec != "exact" or model.needs is not None or lineage.exactness == "quantized":
        return []
    chunks = model.index.chunks(ids, ready=True)
    covered = {piece.id for piece in chunks}
    found = [
        segment
        for segment in {piece.segment.number: piece.segment for piece in chunks}.values()
        if segment.exactness == "quantized" and segment.is_ready and covered.issuperset(p.id for p in segment.pieces)
    ]
    path = tuple((piece, piece.n_tokens) for piece in chunks)
    n_alike = lineage.n_alike(path, {segment.number for segment in found}) if found else 0
    parts: list[Part] = []
    for old in found:
        exact = evolve(
            old,
            exactness=lineage.promise(old.start, n_alike),
            codec="exact",
            host=model.host,
            used_s=time.time(),
            source_number=None,  # all rows are at hand
            n_shared=0,
        )
        new = exact.successor(old.pieces)
        new.ids = ids[old.start : old.stop].copy()
        for piece in new.pieces:
            piece.made = lineage.made_by(piece.start, piece.stop)
            piece.seen_authors = packed(lineage.authors[piece.start : piece.stop])
        parts.append(Part(new, new.start, replaces=old))
    return parts


def _plan_resume(
    catalog: Catalog, model: Attached, head: bytes, lineage: Provenance, held: Held, n_alike: int
) -> tuple[Part, ...]:
    """Return the resume segments that a lineage with last piece ``head`` lacks and ``held`` can give.

    - An exact piece gets no quantized resume segment; decoded rows are stored exactly.
    - ``n_alike``: of the tokens that were stored before, as many have the lineage's own bits. Behind them window rows
      and a state are of another run than the rows, and say so.
    """
    index, needs = model.index, model.needs
    if needs is None or head not in index.pieces:
        return ()
    parts: list[Part] = []
    for piece, n_rows, has_state in missing_resume(index, catalog.resume, needs, head, len(lineage.made), held):
        is_quantized = piece.segment.exactness == "quantized"
        if lineage.exactness == "quantized" and not is_quantized:
            continue
        is_coded = is_quantized and not lineage.n_decoded(piece.stop - n_rows, piece.stop)
        codec = model.codec if is_coded else "exact"
        told = lineage.promise(piece.stop, n_alike)
        file = new_file(model.identity)
        segment = resume_segment(piece, n_rows, has_state, codec=codec, file=file, exactness=told)
        former = catalog.resume.get(piece.id)
        if former is not None and is_weaker(segment.exactness, former.exactness):
            continue  # another run's would make worse what there is
        if former is None:
            catalog.enter(segment)
        parts.append(Part(segment, segment.start))
    return tuple(reversed(parts))


def lineage_of(catalog: Catalog, plan: Plan) -> HeadMove | None:
    """Return the agent's new head, and the former heads to drop: its ancestors (of a turn), and heads that are gone."""
    model, head = catalog.model, plan.head
    if model is None or plan.agent_id is None or head is None or head not in model.index.pieces:
        return None
    index = model.index
    before = {p.id for p in index.ancestors(index.pieces[head])} - {head} if plan.is_turn else set()
    former = catalog.disk.manifest.heads_of(plan.agent_id, model.identity)
    replaced = [one for one in former if one in before or one not in index.pieces]
    return HeadMove(plan.agent_id, model.identity, head, replaced)


def superseded(catalog: Catalog, plan: Plan) -> Mapping[Piece, bytes]:
    """Map each superseded delta to the id of the new piece that has its tokens; no other piece or lineage needs it.

    Empty if an agent's log may end in such a delta, and KV can be resumed only there.
    """
    model = catalog.model
    found: dict[Piece, bytes] = {}
    if model is None or (model.needs is not None and not plan.is_turn):
        return found
    for piece in (piece for segment in plan.fresh for piece in segment.pieces):
        chains = model.index.deltas(piece.parent, model.index.ids(piece), ready=True)
        covered = {p for chain in chains for p in chain} - {piece}
        for delta in sorted(covered, key=lambda p: -p.start):
            is_free = all(child in found for child in model.index.children(delta.id))
            is_alone = len(delta.segment.pieces) == 1 and not catalog.borrowers(delta.segment)
            if is_free and is_alone and not catalog.ends.is_stored(delta.id, plan.agent_id):
                found[delta] = piece.id
    return found


def stale_resume(catalog: Catalog, plan: Plan) -> list[Segment]:
    """Return resume segments that no restore needs once an agent's lineage ends at ``head``.

    Those behind the lineage's window, and those of turns that were since rewound or replaced. ``former``: tokens of the
    lineage before this save.
    """
    model, head = catalog.model, plan.head
    if model is None or model.needs is None or head is None or head not in model.index.pieces:
        return []
    index, agent_id = model.index, plan.agent_id if plan.is_turn else None
    lineage = list(index.ancestors(index.pieces[head]))
    alive = {p.id for p in lineage}
    own = catalog.disk.manifest.heads_of(agent_id, model.identity) if agent_id is not None else []
    abandoned = model.abandoned
    abandoned -= alive

    def follows(piece: Piece) -> list[Piece]:
        return [child for child in index.children(piece.id) if child.id not in abandoned]

    left: list[Piece] = []
    for mine in [one for one in own if one in index.pieces]:
        for piece in index.ancestors(index.pieces[mine]):
            if piece.id in alive or follows(piece) or catalog.ends.is_stored(piece.id, agent_id):
                break
            abandoned.add(piece.id)
            left.append(piece)
    gone = [found for p in left if (found := catalog.resume.get(p.id)) is not None and found.is_ready]
    is_point = {p.id for p in lineage if len(follows(p)) != 1 or catalog.ends.is_stored(p.id, agent_id)}
    return gone + stale(lineage, catalog.resume, model.needs, plan.former, lambda p: p.id in is_point)
