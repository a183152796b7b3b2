"""True if what the manifest says of KV could have been written by this library. Pure.

These rows have no checksum. What a damaged or altered file gives may have any type and size.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from agent_memory.config import CODECS
from agent_memory.log.soundness import BAD_JSON, MANY, is_count, is_time
from agent_memory.prefix.chunks import ID_BYTES
from agent_memory.prefix.index import HEAD_IDS
from agent_memory.prefix.resume import Side
from agent_memory.store.format import is_kv_name
from agent_memory.store.records import SegmentRow
from agent_memory.types import EXACTNESS

PIECE_BYTES = ID_BYTES + 1 + 4 * HEAD_IDS


def is_segment(row: SegmentRow) -> bool:
    """True if a segment's row could have been written."""
    number, n_bytes, start, n_tokens, size = row.segment, row.n_bytes, row.start, row.n_tokens, row.chunk_tokens
    if {type(number), type(n_bytes), type(start), type(n_tokens), type(size)} != {int}:
        return False
    if not (0 < number < MANY > n_bytes >= 0 <= start < MANY > n_tokens > 0 < size < MANY):
        return False
    if not is_time(row.used_s) or not (row.parent_segment is None or is_count(row.parent_segment)):
        return False
    if not (isinstance(row.header_xxh3, str) and isinstance(row.host, str) and is_identity(row.identity)):
        return False
    if not (isinstance(row.parent, bytes) and isinstance(row.pieces, bytes)):
        return False
    is_whole = len(row.parent) == ID_BYTES and len(row.pieces) == -(-n_tokens // size) * PIECE_BYTES
    return is_whole and row.exactness in EXACTNESS and row.codec in CODECS and _is_file(row.file, row.identity[:16])


def is_side(side: Side) -> bool:
    """True if a side file's row could have been written."""
    is_typed = all(is_count(n) for n in (side.segment, side.n_rows, side.n_bytes))
    is_named = _is_file(side.file, "") and isinstance(side.header_xxh3, str)
    return is_typed and is_named and isinstance(side.piece, bytes) and len(side.piece) == ID_BYTES


def disorder(rows: Sequence[SegmentRow], sides: Sequence[Side]) -> int:
    """Return how many rows do not hang together: a parent that is not there, or a piece or file that is there twice.

    ``rows``: each of them sane, parents before children.
    """
    ends: dict[tuple[str, bytes], tuple[int, int]] = {}  # identity and piece -> its segment, and where it ends
    files: set[str] = set()
    n_bad = 0
    for row in rows:
        at = ends.get((row.identity, row.parent)) if row.parent_segment is not None else (None, 0)
        is_rooted = row.parent_segment is not None or row.parent.hex() == row.identity
        ids = [row.pieces[i : i + ID_BYTES] for i in range(0, len(row.pieces), PIECE_BYTES)]
        is_new = row.file not in files and not any((row.identity, id) in ends for id in ids)
        if at != (row.parent_segment, row.start) or not is_rooted or not is_new:
            n_bad += 1
            continue
        files.add(row.file)
        for i, id in enumerate(ids, 1):
            ends[row.identity, id] = row.segment, row.start + min(i * row.chunk_tokens, row.n_tokens)
    holders = {(id, segment) for (_, id), (segment, _) in ends.items()}
    for side in sides:
        n_bad += (side.piece, side.segment) not in holders or side.file in files
        files.add(side.file)
    return n_bad


def is_model(identity: Any, layout: Any, facts: Any, created_s: Any) -> bool:
    """True if a row says what is known of a model."""
    return is_facts(facts) and is_layout(layout) and is_identity(identity) and is_time(created_s)


def is_facts(text: Any) -> bool:
    """True if a JSON text is an object of strings, as what is known of a model is."""
    try:
        found = json.loads(text)
        return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    except BAD_JSON:
        return False


def is_layout(text: Any) -> bool:
    """True if a JSON text lists tensors."""
    try:
        rows = json.loads(text)
    except BAD_JSON:
        return False
    return isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) == 4
        and isinstance(row[0], str)
        and isinstance(row[3], str)
        and all(isinstance(n, int) and 0 <= n < MANY for n in row[1:3])
        for row in rows
    )


def is_lineage(agent: Any, identity: Any, head: Any) -> bool:
    """True if a row says where an agent's lineage ends."""
    return is_count(agent) and is_identity(identity) and isinstance(head, bytes) and len(head) == ID_BYTES


@functools.lru_cache(maxsize=64)
def is_identity(text: Any) -> bool:
    """True if a text is the hex of a sha256."""
    return isinstance(text, str) and len(text) == 2 * ID_BYTES and not text.strip("0123456789abcdef")


def _is_file(name: Any, folder: str) -> bool:
    return isinstance(name, str) and is_kv_name(name, finished=True) and name.startswith(folder)
