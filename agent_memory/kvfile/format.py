"""The file of a segment, byte by byte (docs/format.md).

A segment is a valid safetensors file. Its header has a fixed length before its checksums are known, so that tensors
stream to disk first and the header is written last, in place.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash
from attrs import frozen

from agent_memory.config import Codec
from agent_memory.kvcache.coding import coded
from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.prefix.pieces import Segment
from agent_memory.prefix.provenance import MADE

FORMAT = "agent_memory.kv/1"
SHARED_FORMAT = "agent_memory.kv/2"  #: of a segment that shares rows: older versions cannot read it
RESUME_FORMAT = "agent_memory.side/1"  #: resume files; the name is that of older versions
ALIGN = 64  #: bytes: every tensor, and the data section, start at a multiple

_NO_SUM = "0" * 16


@frozen
class Extent:
    """One tensor of a segment file; ``start`` counts from the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    tensor: int  #: index in the layout; -1: ids; -2: padding


def metadata(segment: Segment) -> dict[str, str]:
    """Return the metadata of a segment's header, without checksums."""
    if segment.kind == "resume":
        return {
            "format": RESUME_FORMAT,
            "identity": segment.identity,
            "piece": segment.parent.hex(),
            "start": str(segment.start),
            "stop": str(segment.stop),
            "codec": segment.codec,
            "host": segment.host,
        } | ({} if segment.exactness == "exact" else {"exactness": segment.exactness})
    shared = {"format": SHARED_FORMAT, "shared": str(segment.n_shared)} if segment.n_shared else {}
    return {
        "format": FORMAT,
        "identity": segment.identity,
        "parent": segment.parent.hex(),
        "start": str(segment.start),
        "n_tokens": str(segment.n_tokens),
        "chunk_tokens": str(segment.chunk_tokens),
        "made": ",".join(MADE.get(made, "") for made in segment.made()),
        "exactness": segment.exactness,
        "codec": segment.codec,
        "host": segment.host,
    } | shared


def file_sum(data: bytes | memoryview) -> str:
    """Return xxh3-64 as 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(data)


def extents(layout: Layout, segment: Segment, state_bytes: int | None = None) -> tuple[Extent, ...]:
    """Return the position of each part of a segment's file, padded to 64 bytes.

    Rows: the full-attention tensors in layout order without shared rows, all ids last. Resume data: the window tensors
    in layout order, then the state of ``state_bytes`` (as tensor after them).
    """
    n = segment.n_tokens
    if segment.kind == "rows":
        found = _rows(layout.tensors, segment.n_own, segment.codec)
        return (*found, Extent("ids", "U32", (n,), _end(found), 4 * n, -1))
    found = _rows(layout.windows, n, segment.codec) if n else []
    if state_bytes is not None:
        found.append(Extent("state", "U8", (state_bytes,), _end(found), state_bytes, len(layout.windows)))
    return tuple(found)


def _end(places: Sequence[Extent]) -> int:
    return places[-1].start + places[-1].nbytes if places else 0


def _rows(tensors: Sequence[TensorSpec], n_tokens: int, codec: Codec) -> list[Extent]:
    found: list[Extent] = []
    at = 0
    for i, spec in enumerate(coded(t, codec) for t in tensors):
        nbytes = spec.token_bytes * n_tokens
        found.append(Extent(spec.name, spec.dtype, (spec.heads, n_tokens, spec.dim), at, nbytes, i))
        at += nbytes
        if pad := -at % ALIGN:  # safetensors allows no holes between tensors
            found.append(Extent(f"pad.{i:03d}", "U8", (pad,), at, pad, -2))
            at += pad
    return found


def header(places: Sequence[Extent], facts: Mapping[str, str], sums: Sequence[str] | None = None) -> bytes:
    """Return the length prefix and JSON header, padded to 64 bytes; ``sums``: xxh3 hex of each tensor but padding.

    Its length does not depend on ``sums``.
    """
    checked = [e for e in places if e.tensor != -2]
    metadata = {
        **facts,
        "xxh3": "".join(sums) if sums is not None else _NO_SUM * len(checked),
        "header_xxh3": _NO_SUM,
    }
    text = json.dumps({"__metadata__": metadata, **table_of(places)}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    raw = struct.pack("<Q", len(text)) + text
    if sums is None:
        return raw
    return raw.replace(_sum_field(_NO_SUM), _sum_field(file_sum(raw)), 1)


def table_of(places: Sequence[Extent]) -> dict[str, Any]:
    """Return the header's entry of each part of a file."""
    return {
        e.name: {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.start, e.start + e.nbytes]}
        for e in places
    }


def _sum_field(value: str) -> bytes:
    return b'"header_xxh3":"' + value.encode() + b'"'


def parse_header(raw: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """Return metadata and tensor table of a header with its length prefix. Raises ValueError if it is damaged."""
    if len(raw) < 8 or struct.unpack("<Q", raw[:8])[0] != len(raw) - 8:
        raise ValueError("the header's length is wrong")
    mark = b'"header_xxh3":"'
    at = raw.find(mark)
    value = raw[at + len(mark) : at + len(mark) + 16] if at >= 0 else b""
    if at < 0 or file_sum(raw[: at + len(mark)] + _NO_SUM.encode() + raw[at + len(mark) + 16 :]).encode() != value:
        raise ValueError("the header's checksum is wrong")
    table = json.loads(raw[8:])
    return table.pop("__metadata__"), table


def split_sums(metadata: Mapping[str, str]) -> list[str]:
    """Return the xxh3 hex of each tensor but padding, in file order."""
    text = metadata["xxh3"]
    return [text[i : i + 16] for i in range(0, len(text), 16)]
