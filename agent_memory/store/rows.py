"""Segments as the manifest keeps them (rows) and as their files' headers do (facts), and back."""

from __future__ import annotations

import json
import struct

from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.prefix.chunks import ID_BYTES
from agent_memory.prefix.index import HEAD_IDS, Segment
from agent_memory.store.format import SegmentFacts
from agent_memory.store.records import SegmentRow
from agent_memory.store.soundness import is_layout

_HEAD_BYTES = 4 * HEAD_IDS
_PIECE = struct.Struct(f"{ID_BYTES}sB{_HEAD_BYTES}s")


def root_id(identity: str) -> bytes:
    """The first parent of every lineage: the identity's digest."""
    return bytes.fromhex(identity)


def layout_json(layout: Layout) -> str:
    """A layout as the manifest keeps it."""
    return json.dumps([[t.name, t.heads, t.dim, t.dtype] for t in layout.tensors])


def layout_of(text: str) -> Layout:
    """The tensors that ``layout_json`` wrote. Raises ValueError for any other text."""
    if not is_layout(text):
        raise ValueError("the layout that is recorded makes no sense")
    return Layout(tuple(TensorSpec(*row) for row in json.loads(text)))


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
