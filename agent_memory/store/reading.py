"""The longest prefix of some ids that is on disk, and its way back into a KV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from attrs import field, frozen

from agent_memory.prefix.chunks import piece_id
from agent_memory.prefix.index import Ids, Piece, Segment
from agent_memory.prefix.provenance import made_of_all
from agent_memory.prefix.resume import Side
from agent_memory.protocols import Source
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import void
from agent_memory.store.segments import READ_ERRORS, SegmentSource, Span, reason_of
from agent_memory.store.sides import StoredSource, side_spans_of
from agent_memory.store.verifying import checking
from agent_memory.types import Exactness, Tier, weakest

Taken = tuple[tuple[Piece, int], ...]  #: pieces, with how many tokens are taken of each


@frozen
class Match:
    """The longest prefix of some ids that is on disk and can be restored."""

    n_tokens: int
    pieces: Taken  #: from the first token on
    made: np.ndarray[Any, Any] = field(eq=False, repr=False)  #: u8 per token: see ``provenance.MADE``, ``DECODED``
    exactness: Exactness = "exact"
    stopped: str | None = None  #: why it ends there, where that is remembered: "damaged", "missing", "evicted"
    ids: Ids = field(eq=False, repr=False, factory=lambda: np.zeros(0, np.uint32))
    held_from: int = 0  #: the first token whose rows of sliding-window layers are stored

    @property
    def tier(self) -> Tier:
        """The slowest tier that it needs."""
        return "cold" if self.n_tokens else "none"

    @property
    def tier_tokens(self) -> Mapping[str, int]:
        """How many of its tokens come from which tier."""
        return {"cold": self.n_tokens} if self.n_tokens else {}


NOTHING = Match(0, (), np.zeros(0, np.uint8))


def find(catalog: Catalog, ids: Ids) -> Match:
    """Return the longest prefix of ``ids`` that is on disk. O(ids) hashing, in memory."""
    ids = np.ascontiguousarray(ids, dtype=np.uint32)
    index = catalog.index
    if index is None or not len(ids):
        return NOTHING
    with catalog.lock:
        found = catalog.plan(ids)
        plan = found.pieces
        n_tokens = sum(take for _, take in plan)
        full = [p for p, take in plan if take == index.chunk_tokens]
        parent = full[-1].id if full else index.root
        stopped = None
        if n_tokens < len(ids):
            rest = ids[len(full) * index.chunk_tokens :][: index.chunk_tokens]
            following = piece_id(parent, rest) if len(rest) == index.chunk_tokens else None
            stopped = catalog.reason(plan[-1][0].id if plan else parent, following) or catalog.reason(parent, None)
            stopped = "no snapshot" if found.is_cut else stopped
    promises: list[Exactness] = [p.segment.exactness for p, _ in plan]
    if any(p.segment.host != catalog.host for p, _ in plan):
        promises.append("moved")
    return Match(n_tokens, tuple(plan), made_of_all(plan), weakest(*promises), stopped, ids[:n_tokens], found.rows_from)


def following(catalog: Catalog, match: Match) -> Ids | None:
    """Return the ids of a stored lineage behind the match's end; None where nothing is stored there."""
    with catalog.lock:
        if catalog.index is None or not match.pieces:
            return None
        last, take = match.pieces[-1]
        if take < last.n_tokens:
            ids = catalog.read_ids(last)
            return None if ids is None else ids[take:]
        children = catalog.index.children(last.id)
        return catalog.read_ids(children[0]) if children else None


def source(catalog: Catalog, match: Match, n_tokens: int, start: int) -> Source:
    """Open the files of tokens ``[start, n_tokens)`` of a match; a file begins at ``start``.

    Damage is noted by the source and never raised. Window rows and the state are those at ``n_tokens``.
    """
    assert catalog.layout is not None
    assert start <= n_tokens <= match.n_tokens
    spans: list[Span] = []
    at = 0
    with catalog.lock:
        for piece, whole in match.pieces:
            take = min(whole, n_tokens - at)
            if take <= 0:
                break
            if spans and spans[-1].segment is piece.segment:
                spans[-1] = Span(piece.segment, spans[-1].path, spans[-1].at, spans[-1].take + take)
            elif at >= start:
                spans.append(Span(piece.segment, catalog.path(piece.segment), at, take))
            at += take
        needs = catalog.needs
        sides = side_spans_of(catalog, match.pieces, match.held_from)
    on_damage = partial(void, catalog)
    files = SegmentSource(catalog.layout, spans, match.ids[:n_tokens], on_damage)
    if needs is None:
        return files
    assert n_tokens == match.n_tokens
    return StoredSource(catalog.layout, files, sides, on_damage)


def reading_ahead(catalog: Catalog, match: Match, start: int) -> Iterator[None]:
    """Read and check the files of a match's tokens from ``start`` on, a step at a time. I/O thread."""
    segments = {p.segment.number: p.segment for p, _ in match.pieces if p.start >= start}
    files: list[Segment | Side] = list(segments.values())
    with catalog.lock:
        files += [span.side for span in side_spans_of(catalog, match.pieces, match.held_from).spans]
    for file in files:
        try:
            yield from checking(catalog.path(file), file.n_bytes, file.header_xxh3)
        except READ_ERRORS as error:
            void(catalog, file, reason_of(error), str(error))
            return
