"""Whether a row of the manifest could have been written: rows have no checksum, and a damaged file may say anything."""

from __future__ import annotations

import functools
import json
from typing import Any

from agent_memory.config import is_codec
from agent_memory.log.soundness import BAD_JSON, MANY, is_count, is_time
from agent_memory.prefix.chunks import ID_BYTES
from agent_memory.prefix.names import is_kv_name
from agent_memory.prefix.pieces import PIECE_BYTES, Segment
from agent_memory.store.disorder import is_sharing_sound
from agent_memory.types import EXACTNESS


def is_sound(segment: Segment) -> bool:
    """True if a segment's row could have been written."""
    if not isinstance(segment.header_xxh3, str) or not isinstance(segment.parent, bytes):
        return False
    if len(segment.parent) != ID_BYTES or not all(map(is_count, (segment.n_bytes, segment.n_tokens))):
        return False
    if segment.kind == "resume":
        return is_count(segment.parent_number) and _is_file(segment.file, "")
    number, start, n_tokens, size = segment.number, segment.start, segment.n_tokens, segment.chunk_tokens
    if {type(number), type(segment.n_bytes), type(start), type(n_tokens), type(size)} != {int}:
        return False
    if not (0 < number < MANY and 0 <= start < MANY and n_tokens > 0 and 0 < size < MANY):
        return False
    if not is_time(segment.used_s) or not (segment.parent_number is None or is_count(segment.parent_number)):
        return False
    if not is_sharing_sound(segment):
        return False
    if not (isinstance(segment.host, str) and is_identity(segment.identity) and isinstance(segment.packed, bytes)):
        return False
    is_named = _is_file(segment.file, segment.identity[:16]) and len(segment.packed) == segment.n_chunks * PIECE_BYTES
    return is_named and segment.exactness in EXACTNESS and is_codec(segment.codec)


def is_model(identity: Any, layout: Any, facts: Any, created_s: Any) -> bool:
    """True if a row of facts of a model could have been written."""
    return is_facts(facts) and is_layout(layout) and is_identity(identity) and is_time(created_s)


def is_facts(text: Any) -> bool:
    """True if a JSON text is an object of strings, as the facts of a model are."""
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
    """True if a row of an agent's head could have been written."""
    return is_count(agent) and is_identity(identity) and isinstance(head, bytes) and len(head) == ID_BYTES


@functools.lru_cache(maxsize=64)
def is_identity(text: Any) -> bool:
    """True if a text is the hex of a sha256."""
    return isinstance(text, str) and len(text) == 2 * ID_BYTES and not text.strip("0123456789abcdef")


def _is_file(name: Any, folder: str) -> bool:
    return isinstance(name, str) and is_kv_name(name, finished=True) and name.startswith(folder)
