"""A segment's row in the manifest, as a value. Pure."""

from __future__ import annotations

from attrs import field, frozen

from agent_memory.config import Codec
from agent_memory.types import Exactness


@frozen
class SegmentRow:
    """One segment as the manifest knows it; ``pieces``: 32 bytes id, 1 byte made, 64 bytes head, of each."""

    segment: int
    identity: str
    file: str
    n_bytes: int
    header_xxh3: str
    parent: bytes
    parent_segment: int | None
    start: int
    n_tokens: int
    chunk_tokens: int
    exactness: Exactness
    codec: Codec
    host: str
    used_s: float
    pieces: bytes = field(repr=False)
