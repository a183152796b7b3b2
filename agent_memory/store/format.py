"""What the store writes, byte by byte: names, versions and the header of a segment file (docs/format.md).

A segment is a valid safetensors file. Its header has a fixed length before its checksums are known, so that tensors
stream to disk first and the header is written last, in place.
"""

from __future__ import annotations

import json
import re
import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash
from attrs import frozen

from agent_memory.config import Codec
from agent_memory.kvcache.coding import coded
from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.log.files import LOCK, MANIFEST
from agent_memory.prefix.provenance import MADE
from agent_memory.types import Exactness

FORMAT = "agent_memory.kv/1"
SIDE_FORMAT = "agent_memory.side/1"
RECALL = "recall.sqlite3"  #: context memory and episodes: ``recall/`` writes it
KV_FOLDER = "kv"
SUFFIX = ".safetensors"
TEMP_SUFFIX = ".tmp"
ALIGN = 64  #: bytes; the start of every tensor, and of the data section

_KV_NAME = re.compile(r"[0-9a-f]{16}/[0-9a-f]{32}(\.safetensors|\.tmp)")
_MANIFEST_NAME = re.compile(re.escape(MANIFEST) + r"(-wal|-shm|-journal|\.damaged-[0-9]+(-wal)?)?")


_RECALL_NAME = re.compile(re.escape(RECALL) + r"(-wal|-shm|-journal|\.v[0-9]+\.backup)?")


def is_kv_name(name: str, *, finished: bool = False) -> bool:
    """True if the store itself makes files of this name below ``kv``; ``finished``: whole ones."""
    found = _KV_NAME.fullmatch(name)
    return found is not None and (not finished or found[1] == SUFFIX)


def new_file(identity: str) -> str:
    """Return a name that no file has, below ``kv``."""
    return f"{identity[:16]}/{uuid.uuid4().hex}{SUFFIX}"


def is_own_name(name: str) -> bool:
    """True if the store itself makes files of this name in its folder."""
    return name == LOCK or bool(_MANIFEST_NAME.fullmatch(name) or _RECALL_NAME.fullmatch(name))


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


@frozen(kw_only=True)
class SegmentFacts:
    """What a segment says of itself in its header."""

    identity: str
    parent: bytes
    start: int
    n_tokens: int
    chunk_tokens: int
    made: tuple[int, ...]
    exactness: Exactness
    codec: Codec
    host: str

    @property
    def metadata(self) -> dict[str, str]:
        """As the header has it."""
        return {
            "format": FORMAT,
            "identity": self.identity,
            "parent": self.parent.hex(),
            "start": str(self.start),
            "n_tokens": str(self.n_tokens),
            "chunk_tokens": str(self.chunk_tokens),
            "made": ",".join(MADE[m] for m in self.made),
            "exactness": self.exactness,
            "codec": self.codec,
            "host": self.host,
        }


def file_sum(data: bytes | memoryview) -> str:
    """xxh3-64 as 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(data)


def extents(layout: Layout, n_tokens: int, codec: Codec = "exact") -> tuple[Extent, ...]:
    """Where each tensor of a segment of ``n_tokens`` lies: layout order, padded to 64 bytes, the ids last."""
    found = _rows(layout.tensors, n_tokens, codec)
    at = found[-1].start + found[-1].nbytes if found else 0
    return (*found, Extent("ids", "U32", (n_tokens,), at, 4 * n_tokens, -1))


def side_extents(layout: Layout, n_rows: int, state_bytes: int | None, codec: Codec = "exact") -> tuple[Extent, ...]:
    """Where the parts of a side file lie: the window tensors in layout order, then the state (as tensor after them)."""
    found = _rows(layout.windows, n_rows, codec) if n_rows else []
    if state_bytes is not None:
        at = found[-1].start + found[-1].nbytes if found else 0
        found.append(Extent("state", "U8", (state_bytes,), at, state_bytes, len(layout.windows)))
    return tuple(found)


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
    """The length prefix and JSON header, padded to 64 bytes; ``sums``: xxh3 hex of each tensor that is no padding.

    Its length does not depend on ``sums``.
    """
    checked = [e for e in places if e.tensor != -2]
    metadata = {
        **facts,
        "xxh3": "".join(sums) if sums is not None else _NO_SUM * len(checked),
        "header_xxh3": _NO_SUM,
    }
    table: dict[str, Any] = {"__metadata__": metadata}
    for e in places:
        table[e.name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.start, e.start + e.nbytes]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    raw = struct.pack("<Q", len(text)) + text
    if sums is None:
        return raw
    return raw.replace(_sum_field(_NO_SUM), _sum_field(file_sum(raw)), 1)


def _sum_field(value: str) -> bytes:
    return b'"header_xxh3":"' + value.encode() + b'"'


def parse_header(raw: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and tensor table of a whole header (length prefix included); ValueError where it is damaged."""
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
    """The xxh3 hex of each tensor that is no padding, in the order of the file."""
    text = metadata["xxh3"]
    return [text[i : i + 16] for i in range(0, len(text), 16)]
