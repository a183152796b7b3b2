"""Whether rows of the manifest could have been written, one by one and together.

They have no checksum, and a damaged file may say anything.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent_memory.config import is_codec
from agent_memory.log.soundness import BAD_JSON, MANY, is_count, is_time
from agent_memory.prefix.chunks import ID_BYTES
from agent_memory.prefix.names import is_kv_name
from agent_memory.prefix.pieces import PIECE_BYTES, Segment
from agent_memory.prefix.sharing import stretches
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


def is_sharing_sound(segment: Segment) -> bool:
    """True if a row shares nothing, or a part of its first piece."""
    source, n_shared = segment.source_number, segment.n_shared
    if source is None:
        return n_shared == 0 and type(n_shared) is int
    is_some = type(n_shared) is int and 0 < n_shared < min(segment.n_tokens, segment.chunk_tokens)
    return is_some and is_count(source) and source < segment.number


def _shares_nothing_there_is(row: Segment, rows: Mapping[int, Segment]) -> bool:
    """True if rows that a segment shares are in none of ``rows``."""
    try:
        return any(one.segment.identity != row.identity for one in stretches(rows, row, row.start, row.shared_stop))
    except LookupError:
        return True


def disorder(rows: Sequence[Segment], resume: Sequence[Segment]) -> int:
    """Count rows that contradict others: a missing parent, a piece or a file that occurs twice.

    ``rows``: each of them sound, parents before children.
    """
    ends: dict[tuple[str, bytes], tuple[int, int]] = {}  # identity and piece -> its segment and its end
    files: set[str] = set()
    n_bad = 0
    known: dict[int, Segment] = {}
    for row in rows:
        at = ends.get((row.identity, row.parent)) if row.parent_number is not None else (None, 0)
        is_rooted = row.parent_number is not None or row.parent.hex() == row.identity
        ids = row.piece_ids()
        is_new = row.file not in files and not any((row.identity, id) in ends for id in ids)
        is_placed = at == (row.parent_number, row.start) and not _shares_nothing_there_is(row, known)
        if not (is_placed and is_rooted and is_new):
            n_bad += 1
            continue
        known[row.number] = row
        files.add(row.file)
        for i, id in enumerate(ids, 1):
            ends[row.identity, id] = row.number, row.start + min(i * row.chunk_tokens, row.n_tokens)
    holders = {(id, segment) for (_, id), (segment, _) in ends.items()}
    for one in resume:
        n_bad += (one.parent, one.parent_number) not in holders or one.file in files
        files.add(one.file)
    return n_bad
