"""Whether what a manifest says could have been written by this library: the values of every table. Pure.

A manifest's rows have no checksum but those of logs. What a damaged or altered one gives may have any type and size.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent_memory.config import CODECS
from agent_memory.errors import AgentMemoryError
from agent_memory.prefix.chunks import ID_BYTES
from agent_memory.prefix.index import HEAD_IDS
from agent_memory.prefix.resume import Side
from agent_memory.store.format import is_kv_name
from agent_memory.store.records import SegmentRow
from agent_memory.tools import from_json as tools_from_json
from agent_memory.types import EXACTNESS

PIECE_BYTES = ID_BYTES + 1 + 4 * HEAD_IDS
_SALT_BYTES = 16
_MANY = 1 << 53  #: numbers of rows, bytes and tokens stay below

#: What reading a JSON text of unknown origin, and taking it apart, may raise.
BAD_JSON = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, AgentMemoryError)


def is_segment(row: SegmentRow) -> bool:
    """True if a segment's row could have been written."""
    number, n_bytes, start, n_tokens, size = row.segment, row.n_bytes, row.start, row.n_tokens, row.chunk_tokens
    if {type(number), type(n_bytes), type(start), type(n_tokens), type(size)} != {int}:
        return False
    if not (0 < number < _MANY > n_bytes >= 0 <= start < _MANY > n_tokens > 0 < size < _MANY):
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


def sound_agent(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return an agent's row with a neutral value in place of each that could not have been written; None without a
    name. Its checksum then fails, unless what was replaced is not under it.
    """
    name, salt = row["name"], row["salt"]
    if not (isinstance(name, bytes) and name and isinstance(salt, bytes) and len(salt) == _SALT_BYTES):
        return None
    found = dict(row)
    if not isinstance(row["system"], bytes | None):
        found["system"] = None
    if not isinstance(row["tools"], bytes) or not is_tools(row["tools"].decode("utf-8", "replace")):
        found["tools"] = b"[]"
    if not is_agent_facts(row.get("facts")):
        found["facts"] = None
    if not isinstance(row["xxh3"], bytes):
        found["xxh3"] = b""
    times = [row[name] for name in ("created_s", "used_s") if is_time(row[name])]
    for name in ("created_s", "used_s"):
        if not is_time(row[name]):
            found[name] = times[0] if times else 0.0
    return found


def is_tools(text: str) -> bool:
    """True if a JSON text is that of an agent's tools."""
    try:
        tools = tools_from_json(text)
    except BAD_JSON:
        return False
    return all(isinstance(t.name, str) and isinstance(t.description, str) and _is_object(t.parameters) for t in tools)


def is_agent_facts(text: Any) -> bool:
    """True if a value is None, or the JSON of an object, as an agent's facts are."""
    try:
        return text is None or isinstance(json.loads(text), dict)
    except BAD_JSON:
        return False


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
        and all(isinstance(n, int) and 0 <= n < _MANY for n in row[1:3])
        for row in rows
    )


def is_lineage(agent: Any, identity: Any, head: Any) -> bool:
    """True if a row says where an agent's lineage ends."""
    return is_count(agent) and is_identity(identity) and isinstance(head, bytes) and len(head) == ID_BYTES


@functools.lru_cache(maxsize=64)
def is_identity(text: Any) -> bool:
    """True if a text is the hex of a sha256."""
    return isinstance(text, str) and len(text) == 2 * ID_BYTES and not text.strip("0123456789abcdef")


def is_time(value: Any) -> bool:
    """True if a value is a time in seconds."""
    return isinstance(value, float) and math.isfinite(value)


def is_turn(numbers: Iterable[Any], ids: Any, created_s: Any) -> bool:
    """True if a turn's numbers are counts, its ids whole and its time one."""
    are_counts = all(is_count(n) for n in numbers)
    return are_counts and isinstance(ids, bytes) and len(ids) % 4 == 0 and is_time(created_s)


def is_count(value: Any) -> bool:
    """True if a value counts something."""
    return isinstance(value, int) and 0 <= value < _MANY


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_file(name: Any, folder: str) -> bool:
    return isinstance(name, str) and is_kv_name(name, finished=True) and name.startswith(folder)
