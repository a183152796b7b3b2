"""Who holds stored KV, and the end of KV that nobody holds. I/O thread.

- A holder is an agent by its number, or a version by the number that it was given. A lineage under its number ends with
  the last piece that is all of its ids; a fork or version finds that piece once it is stored.
- Deleted are pieces that only the lineages of a deleted holder use; shared ones stay. Of a piece whose first rows
  others share, these rows stay alone: its segment is cut there.
- What is forgotten belongs to ``NOBODY``, and is deleted with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from attrs import evolve, frozen

from agent_memory.log.damage import WRITE_ERRORS
from agent_memory.log.logs import Logs
from agent_memory.prefix.authors import packed, unpacked
from agent_memory.prefix.chunks import piece_id
from agent_memory.prefix.index import Index
from agent_memory.prefix.pieces import HEAD_IDS, NOBODY, HeadMove, Ids, Piece, Segment, sort_key
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, apply
from agent_memory.store.rewriting import rewrite

log = logging.getLogger("agent_memory.store")

_TRIES = 8  #: saves after which a holder's KV is not looked for any more: it was not written


def hold(catalog: Catalog, held: Sequence[tuple[int, Ids]]) -> None:
    """Let holders keep the stored KV of their ids, and no other; that of saves under way is found when they commit."""
    for number, ids in held:
        catalog.awaited[number] = (ids, _TRIES)
    settle_held(catalog)


def settle_held(catalog: Catalog) -> None:
    """Look for the KV of holders that is not all found yet; each save that commits may have stored it."""
    for number, (ids, tries) in list(catalog.awaited.items()):
        move, n_tokens = _move(catalog, number, ids)
        if (move.head is not None or move.former) and Logs(catalog.disk.manifest.database).has_holder(number):
            apply(catalog, Edit(lineage=move))
        catalog.awaited[number] = (ids, tries - 1)
        if n_tokens == len(ids) or tries <= 1:
            del catalog.awaited[number]


def release(catalog: Catalog, agent_id: int, ids: Ids) -> None:
    """Delete KV that an agent's log no longer leads to, as far as nobody else holds it. ``ids``: of its log."""
    move, _ = _move(catalog, agent_id, ids)
    for one in move.former:
        apply(catalog, Edit(lineage=HeadMove(NOBODY, move.identity, one)))
    apply(catalog, Edit(lineage=move))
    delete_agent(catalog, NOBODY)


def _move(catalog: Catalog, number: int, ids: Ids) -> tuple[HeadMove, int]:
    """Return the move of a holder's lineage to the last stored piece that is all of ``ids``; ids up to there."""
    head, n_tokens, identity = None, 0, ""
    with catalog.lock:
        if catalog.model is not None:
            identity = catalog.model.identity
            for piece, take in catalog.model.index.plan(ids):
                if take < piece.n_tokens:
                    break
                head, n_tokens = piece.id, n_tokens + take
    former = [one for one in catalog.disk.manifest.heads_of(number, identity) if one != head]
    return HeadMove(number, identity, head, former), n_tokens


def delete_agent(catalog: Catalog, agent_id: int) -> None:
    """Delete an agent's log, and the pieces that only its lineages use. I/O thread; durable when it returns."""
    is_done = False
    while not is_done:  # again if a segment was found damaged meanwhile
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


def delete_with_versions(catalog: Catalog, agent_id: int) -> None:
    """Delete an agent, its versions, and the KV that they alone hold. I/O thread."""
    manifest = catalog.disk.manifest
    logs = Logs(manifest.database)
    holders = logs.holders_of(agent_id)
    for number in (agent_id, *holders):
        catalog.awaited.pop(number, None)
    hold(catalog, [*logs.without_kv().items()])
    manifest.gather(holders, agent_id)
    with catalog.lock:
        for holder in holders:
            catalog.ends.give(holder, agent_id)
    delete_agent(catalog, agent_id)


def delete_agents(catalog: Catalog, agent_ids: Iterable[int]) -> None:
    """End several agents. I/O thread."""
    for agent_id in agent_ids:
        delete_agent(catalog, agent_id)


def delete_unowned(catalog: Catalog) -> None:
    """Delete the KV of ``NOBODY``; afterwards no file contains bytes of it, or of replaced turns. I/O thread.

    Also deletes KV that an earlier process gave to ``NOBODY`` and did not delete.
    """
    _read_ends(catalog)
    delete_agent(catalog, NOBODY)
    catalog.disk.manifest.database.fold()


def _read_ends(catalog: Catalog) -> None:
    """Read again where lineages end: rows were given to another holder without an Edit."""
    heads = catalog.disk.manifest.heads()
    with catalog.lock:
        if catalog.model is not None:
            catalog.ends.load(heads, catalog.model.identity)


@frozen
class _Stored:
    """The pieces of one model and chunk size, and what a deletion asks of them."""

    index: Index
    is_end: Callable[[bytes], bool]  #: True if the lineage of a holder that stays ends in a piece
    borrowers: Callable[[Segment], Iterable[Segment]]  #: segments that share rows of a segment


def _unused(catalog: Catalog, agent_id: int) -> tuple[dict[int, Segment], list[tuple[Segment, int]]]:
    """Return segments that only this agent's lineages use, and (segment, tokens that stay) if shared in part."""
    drop: dict[int, Segment] = {}
    cuts: list[tuple[Segment, int]] = []
    for identity in catalog.disk.manifest.lineage_identities(agent_id):
        mine = catalog.disk.manifest.heads_of(agent_id, identity)
        for stored in _stored(catalog, identity, agent_id):
            whole, parts = _unshared(stored, mine)
            drop |= {s.number: catalog.segments[s.number] for s in whole}
            for segment, n_tokens in parts:
                if _is_there(stored.index, segment, n_tokens, drop):
                    family = catalog.family([catalog.segments[segment.number]])
                    drop |= {one.number: one for one in family if one.is_ready}
                else:
                    cuts.append((segment, n_tokens))
    return drop, cuts


def _is_there(index: Index, segment: Segment, n_tokens: int, drop: Collection[int]) -> bool:
    """True if what would be left of a piece is there as a piece of its own: only an import makes such a one."""
    rest = n_tokens % segment.chunk_tokens
    if not rest:
        return False
    piece = segment.pieces[n_tokens // segment.chunk_tokens]
    found = index.pieces.get(piece_id(piece.parent, index.ids(piece)[:rest])) if rest < piece.n_tokens else None
    return found is not None and found.segment.number not in drop


def _shortened(
    catalog: Catalog, cuts: Sequence[tuple[Segment, int]], drop: dict[int, Segment]
) -> list[tuple[Segment, Segment]]:
    """Return (segment, its shorter replacement); a segment that cannot be rewritten is dropped with its descendants."""
    changes: list[tuple[Segment, Segment]] = []
    for segment, n_tokens in cuts:
        try:
            changes.append((catalog.segments[segment.number], _cut(catalog, segment, n_tokens)))
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
            stale += [
                one for one in catalog.dependents(old.number, "resume") if one.is_ready and one.parent not in kept
            ]
    return Edit(
        add=[new for _, new in changes],
        remove=[*drop, *(old for old, _ in changes), *stale],
        ended_agent=agent_id,
    )


def _stored(catalog: Catalog, identity: str, agent_id: int) -> list[_Stored]:
    """Return the pieces of the attached model; of another model, by chunk size, those of copies of its segments.

    Of the attached model nothing is read but rows of the holders that end where this one's lineages lead. Of another
    one everything is.
    """
    manifest = catalog.disk.manifest
    if catalog.model is not None and identity == catalog.model.identity:

        def borrowers(segment: Segment) -> list[Segment]:
            return [one for one in catalog.borrowers(segment) if not one.is_hidden]

        return [_Stored(catalog.model.index, lambda piece: catalog.ends.is_stored(piece, agent_id), borrowers)]
    rows = [s for s in manifest.segments(identity) if s.kind == "rows" and _is_shown(catalog, s.number)]
    ends = {head for agent, of, head in manifest.heads() if agent != agent_id and of == identity}
    sharing: dict[int, list[Segment]] = {}
    for one in rows:
        if one.source_number is not None:
            sharing.setdefault(one.source_number, []).append(one)
    return [
        _Stored(
            catalog.build_index(identity, size, [s for s in rows if s.chunk_tokens == size]),
            ends.__contains__,
            lambda segment: sharing.get(segment.number, ()),
        )
        for size in {s.chunk_tokens for s in rows}
    ]


def _is_shown(catalog: Catalog, number: int) -> bool:
    return number in catalog.segments and not catalog.segments[number].is_hidden


def _cut(catalog: Catalog, segment: Segment, n_tokens: int) -> Segment:
    """Write a segment's first tokens as a new file; return the segment that replaces it."""
    disk, model = catalog.disk, catalog.model
    is_attached = model is not None and segment.identity == model.identity
    layout = model.layout if model is not None and is_attached else disk.manifest.layout(segment.identity)
    new = evolve(segment, n_tokens=n_tokens).successor(segment.pieces[: n_tokens // segment.chunk_tokens])
    last = segment.pieces[len(new.pieces)] if n_tokens % segment.chunk_tokens else None

    def shorter(ids: Ids) -> Segment:
        if last is not None:  # what stays of a piece is a piece of its own
            own = ids[last.offset : n_tokens]
            id, head = piece_id(last.parent, own), sort_key(own[:HEAD_IDS])
            new.pieces.append(Piece(id, last.parent, new, last.index, len(own), last.made, head))
            new.pieces[-1].seen_authors = packed(unpacked([(last.authors, len(own))]))
        return new

    for _ in rewrite(catalog, layout, [segment], shorter):
        pass
    return new


def _unshared(stored: _Stored, mine: Iterable[bytes]) -> tuple[list[Segment], list[tuple[Segment, int]]]:
    """Return the segments that only heads ``mine`` reach, and (segment, tokens that stay) of those shared in part."""
    index, going = stored.index, _Going(stored)
    going.follow([index.pieces[head] for head in mine if head in index.pieces])
    stay: dict[int, int] = {}
    segments = {p.segment.number: p.segment for p in (*going.pieces.values(), *going.blocked.values())}
    for number, segment in segments.items():
        stay[number] = sum(p.n_tokens for p in segment.pieces if p.id not in going.pieces)
        last = next((p for p in reversed(segment.pieces) if p.id not in going.pieces), None)
        if last is not None and last.id in going.blocked:
            stay[number] += going.shared(last) - last.n_tokens
    whole = [s for n, s in segments.items() if not stay[n]]
    return whole, [(s, stay[n]) for n, s in segments.items() if 0 < stay[n] < s.n_tokens]


class _Going:
    """Pieces that end with some lineages: no other lineage, piece or shared row needs them.

    A piece that another lineage leads to stays: that lineage ends in it, or in a piece after it that stays too. So
    the way from the ends towards the first piece is walked up to the first piece that stays, and no other is read.
    """

    def __init__(self, stored: _Stored) -> None:
        self._stored, self._index = stored, stored.index
        self.pieces: dict[bytes, Piece] = {}
        self.blocked: dict[bytes, Piece] = {}  # pieces of which only rows that others share are needed

    def follow(self, ends: Sequence[Piece]) -> None:
        """Enter what ends with lineages that end in some pieces, and with what is entered."""
        starts = list(ends)
        n_before = -1
        while len(self.pieces) > n_before:  # what goes may have been the last that needed another
            n_before = len(self.pieces)
            self.blocked.clear()
            for end in starts:
                for piece in self._index.ancestors(end):
                    if piece.id in self.pieces:
                        continue
                    if not self._may_go(piece):
                        break
                    self.pieces[piece.id] = piece
                    starts += self._beside(piece)

    def shared(self, piece: Piece) -> int:
        """Return how many of a piece's tokens others share that stay."""
        found = self._stored.borrowers(piece.segment)
        stops = [one.shared_stop for one in found if one.pieces[0].id not in self.pieces]
        return min(piece.n_tokens, max(0, max(stops, default=0) - piece.start))

    def _may_go(self, piece: Piece) -> bool:
        if not piece.segment.is_ready or any(child.id not in self.pieces for child in self._index.children(piece.id)):
            return False
        if self._stored.is_end(piece.id):
            return False
        if self.shared(piece):
            self.blocked[piece.id] = piece
            return False
        return True

    def _beside(self, piece: Piece) -> list[Piece]:
        """Return the ends of chains of deltas that have no other tokens than a piece: rows that it shares."""
        if len(self._index.children(piece.parent)) < 2:
            return []
        chains = self._index.deltas(piece.parent, self._index.ids(piece), ready=True)
        return [chain[-1] for chain in chains if chain and chain[-1] is not piece]
