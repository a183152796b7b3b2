"""Side files on their way to disk and back: what a piece keeps beside its full-attention rows (see points.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from agent_memory.config import Codec
from agent_memory.kvcache.coding import Coding, Encoded, coding
from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.index import Piece
from agent_memory.prefix.provenance import Provenance
from agent_memory.prefix.resume import Held, Side, missing_sides, stale
from agent_memory.store.catalog import Catalog
from agent_memory.store.format import SIDE_FORMAT, new_file, side_extents
from agent_memory.store.segments import READ_ERRORS, DamageError, OpenSegment, SegmentSource, SegmentWriter, reason_of

Array = np.ndarray[Any, np.dtype[np.uint8]]


@frozen
class SidePart:
    """One side file to be written: window rows ``[start, stop)`` of the lineage, and maybe the state at ``stop``."""

    side: Side
    piece: Piece
    start: int
    stop: int
    codec: Codec

    @property
    def has_state(self) -> bool:
        """Whether the state is part of it."""
        return self.side.has_state


def plan_sides(catalog: Catalog, head: bytes, lineage: Provenance, held: Held) -> tuple[SidePart, ...]:
    """The side files that a lineage with its last piece ``head`` should have, has not, and can be given by ``held``.

    Enters them as not yet readable. Beside an exact piece nothing quantized is kept; rows that were decoded once are
    kept as they are. Under the catalog's lock.
    """
    index, needs = catalog.index, catalog.needs
    parts: list[SidePart] = []
    if index is None or needs is None or head not in index.pieces:
        return ()
    for piece, start, has_state in missing_sides(index, catalog.sides, needs, head, len(lineage.made), held):
        is_quantized = piece.segment.exactness == "quantized"
        if lineage.exactness == "quantized" and not is_quantized:
            continue
        stop = piece.start + piece.n_tokens
        side = Side(piece.id, piece.segment.number, new_file(catalog.identity), stop - start, has_state)
        if piece.id not in catalog.sides:
            catalog.enter_side(side)
        codec = catalog.codec if is_quantized and not lineage.n_decoded(start, stop) else "exact"
        parts.append(SidePart(side, piece, start, stop, codec))
    return tuple(reversed(parts))


def side_writer(catalog: Catalog, part: SidePart, state_bytes: int | None) -> SegmentWriter:
    """The writer of one side file. I/O thread."""
    assert catalog.layout is not None
    side = part.side
    metadata = {
        "format": SIDE_FORMAT,
        "identity": part.piece.segment.identity,
        "piece": side.piece.hex(),
        "start": str(part.start),
        "stop": str(part.stop),
        "codec": part.codec,
        "host": part.piece.segment.host,
    }
    places = side_extents(catalog.layout, side.n_rows, state_bytes, part.codec)
    return SegmentWriter(catalog.files, catalog.path(side), places, metadata)


def stale_sides(catalog: Catalog, head: bytes, former: int, agent_id: int | None) -> list[Side]:
    """Side files that nothing needs once an agent's lineage ends at ``head``, and before at ``former`` tokens: those it
    has moved past, and those of turns that it has told otherwise. Under the catalog's lock.
    """
    index, needs = catalog.index, catalog.needs
    if index is None or needs is None or head not in index.pieces:
        return []
    lineage = list(index.ancestors(index.pieces[head]))
    alive = {p.id for p in lineage}
    heads = [(agent, h) for agent, identity, h in catalog.manifest.heads() if identity == catalog.identity]
    others = {h for agent, h in heads if agent != agent_id}
    catalog.abandoned -= alive

    def follows(piece: Piece) -> list[Piece]:
        return [child for child in index.children(piece.id) if child.id not in catalog.abandoned]

    left: list[Piece] = []
    for mine in [h for agent, h in heads if agent == agent_id and h in index.pieces]:
        for piece in index.ancestors(index.pieces[mine]):
            if piece.id in alive or piece.id in others or follows(piece):
                break
            catalog.abandoned.add(piece.id)
            left.append(piece)
    gone = [side for p in left if (side := catalog.sides.get(p.id)) is not None and side.is_ready]
    is_point = {p.id for p in lineage if p.id in others or len(follows(p)) != 1}
    return gone + stale(lineage, catalog.sides, needs, former, lambda p: p.id in is_point)


@frozen
class SideSpan:
    """A side file that a restore reads."""

    side: Side
    path: Path
    stop: int  #: the end of its piece


@frozen
class SideSpans:
    """All of them, and the first token whose window rows they give: what the newest chunk boundary needs, as far as it
    is stored.
    """

    spans: tuple[SideSpan, ...] = ()
    held_from: int = 0
    is_whole: bool = True  #: False where one has gone since it was found


class StoredSource:
    """A match whose model needs side files too; implements ``protocols.Source``.

    ``on_damage(side, reason, text)`` is called from whatever thread found it; nothing here raises.
    """

    def __init__(
        self,
        layout: Layout,
        segments: SegmentSource,
        sides: SideSpans,
        on_damage: Callable[[Side, str, str], None],
    ) -> None:
        self._layout, self._segments, self._on_damage = layout, segments, on_damage
        self._held_from = sides.held_from
        self._lock = threading.Lock()  # an fd must not be closed, and its number reused, while it is read
        self._spans: list[tuple[SideSpan, OpenSegment]] = []
        self._is_sound = sides.is_whole
        for span in sides.spans if sides.is_whole else ():
            try:
                self._spans.append((span, OpenSegment(span.path, span.side)))
            except DamageError as error:
                self._note(span, error)

    @property
    def n_tokens(self) -> int:
        """How many tokens it holds."""
        return self._segments.n_tokens

    @property
    def held_from(self) -> int:
        """The first token whose window rows it holds."""
        return self._held_from

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        """Fill one tensor; of a window, its rows from ``held_from`` on."""
        number = tensor - len(self._layout.tensors)
        if number < 0:
            self._segments.read_into(tensor, out, capacity)
            return
        spec = self._layout.windows[number]
        into = np.frombuffer(out, np.uint8).reshape(spec.heads, capacity, spec.row_bytes)
        for start, stop, _, rows in self._rows(number, is_encoded=False):
            into[:, start:stop] = rows

    def encoded(self, tensor: int) -> list[Encoded]:
        """The spans whose rows are stored encoded, checked."""
        number = tensor - len(self._layout.tensors)
        if number < 0:
            return self._segments.encoded(tensor)
        rows = self._rows(number, is_encoded=True)
        return [Encoded(start, stop, form, found) for start, stop, form, found in rows if form is not None]

    def _rows(self, number: int, *, is_encoded: bool) -> Iterator[tuple[int, int, Coding | None, Array]]:
        """(start, stop, how they are encoded, rows) of one tensor's spans that are encoded, or of those that are not;
        counted from ``held_from``.
        """
        spec = self._layout.windows[number]
        with self._lock:
            for span, source in self._spans:
                if not span.side.n_rows or not self._is_sound:
                    continue
                try:
                    form = coding(spec, source.codec)
                    if (form is not None) is not is_encoded:
                        continue
                    raw = np.frombuffer(source.tensor(spec.name, number), np.uint8)
                    rows = raw.reshape(spec.heads, span.side.n_rows, -1) if raw.size else raw.reshape(spec.heads, 0, 0)
                except READ_ERRORS as error:
                    self._note(span, error)
                    continue
                first = span.stop - span.side.n_rows
                start, stop = max(first, self._held_from), min(span.stop, self.n_tokens)
                yield start - self._held_from, stop - self._held_from, form, rows[:, start - first : stop - first]

    def read_state(self) -> Array | None:
        """The state at the end, verified; None where it is damaged."""
        with self._lock:
            if not self._is_sound:
                return None
            span, source = self._spans[-1]
            try:
                raw = source.tensor("state", len(self._layout.windows) if span.side.n_rows else 0)
            except READ_ERRORS as error:
                self._note(span, error)
                return None
            return np.frombuffer(raw, np.uint8)

    def _note(self, span: SideSpan, error: BaseException) -> None:
        self._is_sound = False
        self._on_damage(span.side, reason_of(error), f"{span.path.name}: {error}")

    def check(self) -> bool:
        """Whether everything read so far is what had been written."""
        with self._lock:
            return self._is_sound and self._segments.check()

    def close(self) -> None:
        """Give the files back; idempotent."""
        self._segments.close()
        with self._lock:
            for _, source in self._spans:
                source.close()


def side_spans_of(catalog: Catalog, pieces: Sequence[tuple[Piece, int]], rows_from: int) -> SideSpans:
    """The side files that a restore of ``pieces`` reads. Under the catalog's lock."""
    needs = catalog.needs
    if needs is None or not pieces:
        return SideSpans()
    stop = pieces[-1][0].start + pieces[-1][1]
    held_from = max(rows_from, needs.boundary_row(stop)) if needs.window else 0
    spans = []
    is_whole = True
    for piece, _ in pieces:
        end = piece.start + piece.n_tokens
        side = catalog.sides.get(piece.id)
        has_rows = not needs.window or end <= held_from
        has_state = not needs.state or piece is not pieces[-1][0]
        if has_rows and has_state:
            continue
        if side is not None and side.is_readable:
            spans.append(SideSpan(side, catalog.path(side), end))
            has_rows = has_rows or end - side.n_rows <= max(piece.start, held_from)
            has_state = has_state or side.has_state
        is_whole = is_whole and has_rows and has_state
    return SideSpans(tuple(spans), held_from, is_whole)
