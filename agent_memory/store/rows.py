"""Segments as the manifest keeps them (rows) and as their files' headers do (facts), and back."""

from __future__ import annotations

import json
import struct

from agent_memory.config import CODECS
from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.prefix.chunks import ID_BYTES
from agent_memory.store.format import SegmentFacts
from agent_memory.store.planner import HEAD_IDS, Segment
from agent_memory.store.points import Side
from agent_memory.store.records import SegmentRow
from agent_memory.types import EXACTNESS

_HEAD_BYTES = 4 * HEAD_IDS
_PIECE_BYTES = ID_BYTES + 1 + _HEAD_BYTES
_PIECE = struct.Struct(f"{ID_BYTES}sB{_HEAD_BYTES}s")


def root_id(identity: str) -> bytes:
    """The first parent of every lineage: the identity's digest."""
    return bytes.fromhex(identity)


def layout_json(layout: Layout) -> str:
    """A layout as the manifest keeps it."""
    return json.dumps([[t.name, t.heads, t.dim, t.dtype] for t in layout.tensors])


def layout_of(text: str) -> Layout:
    """The tensors that ``layout_json`` wrote."""
    return Layout(tuple(TensorSpec(*row) for row in json.loads(text)))


def is_sane(row: SegmentRow) -> bool:
    """Whether a row could have been written: what a damaged manifest gives may have any type and size."""
    numbers = (row.segment, row.n_bytes, row.start, row.n_tokens, row.chunk_tokens)
    if not all(isinstance(n, int) for n in numbers) or min(row.n_tokens, row.chunk_tokens) < 1 or row.start < 0:
        return False
    if not isinstance(row.used_s, float) or not isinstance(row.parent_segment, int | None):
        return False
    if not all(isinstance(text, str) for text in (row.identity, row.file, row.header_xxh3, row.host)):
        return False
    n_pieces = -(-row.n_tokens // row.chunk_tokens)
    sizes = [len(blob) if isinstance(blob, bytes) else -1 for blob in (row.parent, row.pieces)]
    return sizes == [ID_BYTES, n_pieces * _PIECE_BYTES] and row.exactness in EXACTNESS and row.codec in CODECS


def is_sane_side(side: Side) -> bool:
    """The same for a side file's row."""
    numbers = (side.segment, side.n_rows, side.n_bytes)
    texts = (side.file, side.header_xxh3)
    is_typed = all(isinstance(n, int) for n in numbers) and all(isinstance(t, str) for t in texts)
    return is_typed and side.n_rows >= 0 and isinstance(side.piece, bytes) and len(side.piece) == ID_BYTES


def row_of(segment: Segment) -> SegmentRow:
    """What the manifest keeps of a segment and its pieces."""
    pieces = b"".join(p.id + bytes([p.made]) + p.head.ljust(_HEAD_BYTES, b"\0") for p in segment.pieces)
    return SegmentRow(
        segment=segment.number,
        identity=segment.identity,
        file=segment.file,
        n_bytes=segment.n_bytes,
        header_xxh3=segment.header_xxh3,
        parent=segment.parent,
        parent_segment=segment.parent_number,
        start=segment.start,
        n_tokens=segment.n_tokens,
        chunk_tokens=segment.chunk_tokens,
        exactness=segment.exactness,
        codec=segment.codec,
        host=segment.host,
        used_s=segment.used_s,
        pieces=pieces,
    )


def segment_of(row: SegmentRow) -> Segment:
    """The segment of a row, committed; its pieces are not made yet."""
    return Segment(
        number=row.segment,
        identity=row.identity,
        file=row.file,
        parent=row.parent,
        parent_number=row.parent_segment,
        start=row.start,
        n_tokens=row.n_tokens,
        chunk_tokens=row.chunk_tokens,
        exactness=row.exactness,
        codec=row.codec,
        host=row.host,
        used_s=row.used_s,
        n_bytes=row.n_bytes,
        header_xxh3=row.header_xxh3,
        is_ready=True,
    )


def unpack(blob: bytes) -> list[tuple[bytes, int, bytes]]:
    """(id, made, head) of each piece of a row."""
    return list(_PIECE.iter_unpack(blob))


def facts_of(segment: Segment) -> SegmentFacts:
    """What the header of a segment's file says of it."""
    return SegmentFacts(
        identity=segment.identity,
        parent=segment.parent,
        start=segment.start,
        n_tokens=segment.n_tokens,
        chunk_tokens=segment.chunk_tokens,
        made=tuple(p.made for p in segment.pieces),
        exactness=segment.exactness,
        codec=segment.codec,
        host=segment.host,
    )
