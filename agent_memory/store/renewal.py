"""Renewal: an exact copy replaces a quantized one, as the same segment in another file.

Only if every layer is full attention, and a lineage that was computed again covers the whole segment.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from attrs import frozen

from agent_memory.prefix.index import Ids, Piece, Segment
from agent_memory.prefix.provenance import Provenance
from agent_memory.store.catalog import Catalog
from agent_memory.store.format import new_file


@frozen
class Renewal:
    """A quantized segment and its exact replacement."""

    old: Segment
    new: Segment


def plan_renewals(catalog: Catalog, chunks: Sequence[Piece], ids: Ids, lineage: Provenance) -> tuple[Renewal, ...]:
    """Plan renewals of the quantized segments among the ``chunks`` of an exact lineage. Under the catalog's lock."""
    if catalog.codec != "exact" or catalog.needs is not None or lineage.exactness == "quantized":
        return ()
    covered = {piece.id for piece in chunks}
    segments = {piece.segment.number: piece.segment for piece in chunks if piece.segment.exactness == "quantized"}
    return tuple(
        Renewal(old, _renewed(catalog, old, ids, lineage))
        for old in segments.values()
        if old.is_ready and covered.issuperset(piece.id for piece in old.pieces)
    )


def _renewed(catalog: Catalog, old: Segment, ids: Ids, lineage: Provenance) -> Segment:
    new = Segment(
        number=old.number,
        identity=old.identity,
        file=new_file(old.identity),
        parent=old.parent,
        parent_number=old.parent_number,
        start=old.start,
        n_tokens=old.n_tokens,
        chunk_tokens=old.chunk_tokens,
        exactness=lineage.exactness,
        codec="exact",
        host=catalog.host,
        used_s=time.time(),
        ids=ids[old.start : old.start + old.n_tokens].copy(),
    )
    for piece in old.pieces:
        made = lineage.made_by(piece.start, piece.start + piece.n_tokens)
        new.pieces.append(Piece(piece.id, piece.parent, new, piece.index, piece.n_tokens, made, piece.head))
    return new


def still_wanted(catalog: Catalog, renewals: Iterable[Renewal]) -> list[Renewal]:
    """Return the renewals whose segment is still stored. Under the catalog's lock."""
    return [r for r in renewals if catalog.segments.get(r.old.number) is r.old and not r.old.is_hidden]
