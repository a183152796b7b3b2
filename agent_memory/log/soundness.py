"""True if what the logs' tables say could have been written by this library. Pure.

What a damaged or altered file gives may have any type and size.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from agent_memory.errors import AgentMemoryError
from agent_memory.tools import from_json as tools_from_json

_SALT_BYTES = 16
MANY = 1 << 53  #: numbers of rows, bytes and tokens stay below

#: What reading a JSON text of unknown origin, and taking it apart, may raise.
BAD_JSON = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, AgentMemoryError)

_MAX_VALUES = 100_000  #: values in one JSON text of a stranger: a short text may become large objects
_BYTES_A_VALUE = 4  #: of a text with more values than that, at least: a long history has them too, of 7 or more each
_MAX_DEPTH = 100
_LONGEST_LINE = 1024  #: characters
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def strangers_json(raw: bytes) -> Any:
    """Return a JSON text of unknown origin: ASCII, of no more and no deeper values than a log has.

    Raises ValueError. O(text), in memory of a few times the text.
    """
    n_open = raw.count(b"{") + raw.count(b"[")
    most = max(_MAX_VALUES, len(raw) // _BYTES_A_VALUE)
    if n_open > _MAX_DEPTH or n_open + raw.count(b",") > most:
        depth = 0
        for n_values, found in enumerate(re.finditer(rb"[\[{,\]}]", _STRING.sub(b"", raw))):
            depth += 1 if found[0] in b"[{" else -1 if found[0] in b"]}" else 0
            if n_values > most or depth > _MAX_DEPTH:
                raise ValueError("it has too many values, or values too deep within one another")
    try:
        return json.loads(raw.decode("ascii"))
    except RecursionError as error:
        raise ValueError("its values are too deep within one another") from error


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
    if not (row.get("branch") is None or is_count(row["branch"])):
        found["branch"] = None
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


def is_turn(numbers: Iterable[Any], ids: Any, created_s: Any) -> bool:
    """True if a turn's numbers are counts, its ids whole and its time one."""
    are_counts = all(is_count(n) for n in numbers)
    return are_counts and isinstance(ids, bytes) and len(ids) % 4 == 0 and is_time(created_s)


def is_time(value: Any) -> bool:
    """True if a value is a time in seconds."""
    return isinstance(value, float) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """True if a value counts something."""
    return isinstance(value, int) and 0 <= value < MANY


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_line(value: object) -> TypeGuard[str]:
    """True for a text of a stranger that is one short line: what files, tables and messages can hold."""
    return isinstance(value, str) and len(value) <= _LONGEST_LINE and value.isprintable()
