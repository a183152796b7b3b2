"""The longest stored prefix of some ids, over warm and cold, and its way back into a KV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, field, frozen

from agent_memory.kvcache.coding import Encoded
from agent_memory.prefix.chunks import piece_id
from agent_memory.prefix.index import Ids, Piece, Segment
from agent_memory.prefix.provenance import made_of
from agent_memory.prefix.resume import Needs, Side
from agent_memory.protocols import Source
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import void
from agent_memory.store.segments import READ_ERRORS, SegmentSource, Span, reason_of
from agent_memory.store.sides import SideSpans, StoredSource, side_spans_of
from agent_memory.store.verifying import checking
from agent_memory.tiers.copies import Bytes, WarmPiece
from agent_memory.types import Exactness, Tier, weakest

if TYPE_CHECKING:
    from agent_memory.tiers.warm import Warm

Taken = tuple[tuple[Piece, int], ...]  #: pieces, with how many tokens are taken of each


@frozen
class Match:
    """The longest stored prefix of some ids: its first ``n_warm`` tokens in memory, what follows on disk.

    ``pieces``: those on disk, from the first token on, whether or not memory has them too.
    """

    n_tokens: int
    pieces: Taken
    made: np.ndarray[Any, Any] = field(eq=False, repr=False)  #: u8 per token: see ``provenance.MADE``, ``DECODED``
    exactness: Exactness = "exact"
    stopped: str | None = None  #: why it ends there, where that is remembered: "damaged", "missing", "evicted"
    ids: Ids = field(eq=False, repr=False, factory=lambda: np.zeros(0, np.uint32))
    held_from: int = 0  #: the first token whose rows of sliding-window layers are stored
    warm: tuple[tuple[WarmPiece, int], ...] = field(default=(), repr=False)
    n_warm: int = 0

    @property
    def tier(self) -> Tier:
        """The slowest one that it needs."""
        return "none" if not self.n_tokens else "warm" if self.n_warm == self.n_tokens else "cold"

    @property
    def tier_tokens(self) -> Mapping[str, int]:
        """How many of its tokens come from where."""
        found = {"warm": self.n_warm, "cold": self.n_tokens - self.n_warm}
        return {tier: n for tier, n in found.items() if n}


NOTHING = Match(0, (), np.zeros(0, np.uint8))


def find(catalog: Catalog | None, warm: Warm, ids: Ids) -> Match:
    """The longest prefix that warm or cold has, in memory rather than on disk as far as it goes. O(ids) hashing."""
    ids = np.ascontiguousarray(ids, dtype=np.uint32)
    if not len(ids):
        return NOTHING
    cold = NOTHING if catalog is None or catalog.index is None else _on_disk(catalog, ids)
    plan = warm.plan(ids)
    pieces = tuple((held, take) for p, take in plan.pieces if (held := warm.find(p.id)) is not None)
    n_warm = sum(take for _, take in pieces)
    if n_warm and n_warm >= cold.n_tokens:
        made = _made([(held.piece, take) for held, take in pieces])
        exactness = weakest(*(held.piece.segment.exactness for held, _ in pieces))
        stopped = "no snapshot" if plan.is_cut else cold.stopped
        return Match(
            n_warm,
            cold.pieces,
            made,
            exactness,
            stopped,
            ids[:n_warm],
            plan.rows_from,
            warm=pieces,
            n_warm=n_warm,
        )
    return _led_by(warm, cold)


def following(catalog: Catalog, match: Match) -> Ids | None:
    """Ids of a stored lineage behind the match's end; None where nothing is stored there."""
    with catalog.lock:
        if catalog.index is None or not match.pieces:
            return None
        last, take = match.pieces[-1]
        if take < last.n_tokens:
            ids = catalog.read_ids(last)
            return None if ids is None else ids[take:]
        children = catalog.index.children(last.id)
        return catalog.read_ids(children[0]) if children else None


def touch(catalog: Catalog | None, warm: Warm, match: Match) -> None:
    """Note that a match was used now, in both tiers."""
    warm.touch(held for held, _ in match.warm)
    if catalog is not None:
        segments: dict[int, Segment] = {p.segment.number: p.segment for p, _ in match.pieces}
        catalog.touch(segments.values())


def is_on_disk(catalog: Catalog | None, piece: bytes) -> bool:
    """True if a piece is stored."""
    index = None if catalog is None else catalog.index
    return index is not None and piece in index.pieces


def _on_disk(catalog: Catalog, ids: Ids) -> Match:
    index = catalog.index
    assert index is not None
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
    return Match(n_tokens, tuple(plan), _made(plan), weakest(*promises), stopped, ids[:n_tokens], found.rows_from)


def _made(plan: Sequence[tuple[Piece, int]]) -> np.ndarray[Any, Any]:
    return np.repeat(np.array([made_of(p) for p, _ in plan], np.uint8), [take for _, take in plan])


def _led_by(warm: Warm, cold: Match) -> Match:
    """``cold`` with those leading files whose pieces warm holds all of: a file is read as a whole or not at all.

    The last one is read in any case: where warm has its rows too, it is for want of what lies beside them.
    """
    found: list[tuple[WarmPiece, int]] = []
    n_pieces = 0
    for (piece, take), (following, _) in pairwise(cold.pieces):
        held = warm.find(piece.id)
        if held is None:
            break
        found.append((held, take))
        if following.segment is not piece.segment:
            n_pieces = len(found)
    if not n_pieces:
        return cold
    taken = tuple(found[:n_pieces])
    n_warm = sum(take for _, take in taken)
    made = cold.made.copy()
    made[:n_warm] = _made([(held.piece, take) for held, take in taken])
    return evolve(
        cold,
        exactness=weakest(cold.exactness, *(held.piece.segment.exactness for held, _ in taken)),
        made=made,
        warm=taken,
        n_warm=n_warm,
    )


def source(catalog: Catalog | None, warm: Warm, match: Match, n_tokens: int) -> Source:
    """The first ``n_tokens`` of a match, ready to be read; opens its files. Damage is noted there, never raised."""
    assert n_tokens <= match.n_tokens
    rest = None
    if n_tokens > match.n_warm:
        assert catalog is not None
        rest = _disk_source(catalog, match, n_tokens)
    return rest if rest is not None and not match.n_warm else WarmSource(warm, match, n_tokens, rest)


def _disk_source(catalog: Catalog, match: Match, n_tokens: int) -> Source:
    assert catalog.layout is not None
    spans: list[Span] = []
    at = 0
    with catalog.lock:
        for piece, whole in match.pieces:
            take = min(whole, n_tokens - at)
            if take <= 0:
                break
            if spans and spans[-1].segment is piece.segment:
                spans[-1] = Span(piece.segment, spans[-1].path, spans[-1].at, spans[-1].take + take)
            elif at >= match.n_warm:
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


def sides_to_read(catalog: Catalog, match: Match) -> SideSpans:
    """The side files that a restore of a match reads. Under the catalog's lock."""
    return side_spans_of(catalog, match.pieces, match.held_from) if match.tier == "cold" else SideSpans()


def reading_ahead(catalog: Catalog, match: Match) -> Iterator[None]:
    """Read and check a match's files, a step at a time, but those whose pieces are warm. I/O thread."""
    segments = {p.segment.number: p.segment for p, _ in match.pieces if p.start >= match.n_warm}
    files: list[Segment | Side] = list(segments.values())
    with catalog.lock:
        files += [span.side for span in sides_to_read(catalog, match).spans]
    for file in files:
        try:
            yield from checking(catalog.path(file), file.n_bytes, file.header_xxh3)
        except READ_ERRORS as error:
            void(catalog, file, reason_of(error), str(error))
            return


class WarmSource:
    """Pieces in memory, and what is read from disk after them, on their way into a KV: implements ``protocols.Source``.

    Where the disk has a part, what layers need beside full-attention rows comes from there alone.
    """

    def __init__(self, warm: Warm, match: Match, n_tokens: int, rest: Source | None) -> None:
        assert warm.layout is not None
        self._layout, self._codings, self._n_tokens, self._rest = warm.layout, warm.codings, n_tokens, rest
        self._pieces: list[tuple[WarmPiece, int]] = []
        at = 0
        for held, whole in match.warm:
            take = min(whole, n_tokens - at)
            if take > 0:
                self._pieces.append((held, take))
            at += take
        self._held_from = _held_from(warm.needs, n_tokens, match.held_from)

    @property
    def n_tokens(self) -> int:
        """How many tokens it holds."""
        return self._n_tokens

    @property
    def held_from(self) -> int:
        """The first token whose window rows it holds."""
        return self._held_from if self._rest is None else self._rest.held_from

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        """Fill one tensor; of a window, its rows from ``held_from`` on. What is encoded stays out."""
        if self._rest is not None:
            self._rest.read_into(tensor, out, capacity)
        spec = (*self._layout.tensors, *self._layout.windows)[tensor]
        if self._codings[tensor] is None and spec.row_bytes:
            into = np.frombuffer(out, np.uint8).reshape(spec.heads, capacity, spec.row_bytes)
            for start, rows in self._runs(tensor):
                into[:, start : start + rows.shape[1]] = rows

    def encoded(self, tensor: int) -> Sequence[Encoded]:
        """The encoded rows of one tensor, in one span, and what the disk has."""
        later = list(self._rest.encoded(tensor)) if self._rest is not None else []
        form, runs = self._codings[tensor], list(self._runs(tensor))
        if form is None or not runs:
            return later
        rows = np.concatenate([rows for _, rows in runs], axis=1)
        return [Encoded(runs[0][0], runs[0][0] + rows.shape[1], form, rows), *later]

    def _runs(self, tensor: int) -> Iterator[tuple[int, Bytes]]:
        """The rows of one tensor, piece after piece, with where each goes in the KV."""
        number = tensor - len(self._layout.tensors)
        for held, take in self._pieces:
            if number < 0:
                yield held.piece.start, held.rows[tensor][:, :take]
            elif self._rest is None and held.window_rows:
                start, stop = max(held.first_row, self._held_from), min(held.stop, self._n_tokens)
                if start < stop:
                    rows = held.window_rows[number][:, start - held.first_row : stop - held.first_row]
                    yield start - self._held_from, rows

    def read_state(self) -> np.ndarray[Any, Any] | None:
        """The state at the end."""
        return self._pieces[-1][0].state if self._rest is None else self._rest.read_state()

    def check(self) -> bool:
        """Whether everything read from disk is what had been written."""
        return self._rest is None or self._rest.check()

    def close(self) -> None:
        """Give files back; idempotent."""
        if self._rest is not None:
            self._rest.close()


def _held_from(needs: Needs | None, n_tokens: int, rows_from: int) -> int:
    """What the newest chunk boundary needs, as far as it is there."""
    return max(rows_from, needs.boundary_row(n_tokens)) if needs is not None and needs.window else 0
