"""A call as it was read from text, before anyone asks whether its tool was declared."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from agent_memory.errors import repr_of

NAMES = ("name", "tool_name")  #: the members of a call in JSON that may hold its name
ARGUMENTS = ("arguments", "parameters", "input")  #: the members of a call in JSON that may hold its arguments
_IDS = ("id", "tool_call_id")
_KNOWN = frozenset((*NAMES, *ARGUMENTS, *_IDS, "type"))


@frozen
class Found:
    """A call with arguments that are a JSON object; ``source``: their JSON text. ``id``: where the model wrote one."""

    name: str
    arguments: Mapping[str, Any]
    source: str
    id: str | None = None


def from_text(name: object, text: str, call_id: object = None) -> Found:
    """A call of ``name`` with the JSON ``text`` of its arguments; "": it has none. Raises ValueError in words."""
    has_escapes = "\\u" in text  # one of them may be half of a pair, here or in a string that holds the object
    value = loads(_ensure_unicode(text)) if text else None
    if isinstance(value, str):
        text = value  # an object, written as a string
        value = loads(text) if text else None
    if value is None:
        value, text = {}, "{}"
    if not isinstance(value, dict):
        raise ValueError(f"its arguments are {type(value).__name__}, not an object")
    if has_escapes:
        _ensure_unicode(json.dumps(value, ensure_ascii=False))
    written_id = _ensure_unicode(call_id) if isinstance(call_id, str) and call_id else None
    return Found(_checked(name), value, text, written_id)


def from_mapping(row: object) -> Found:
    """A call given as a mapping of a name and, under one of ``ARGUMENTS``, arguments. Raises ValueError in words."""
    if not isinstance(row, Mapping):
        raise ValueError(f"a call is an object, not {type(row).__name__}")
    check_members(row)
    value = next((row[key] for key in ARGUMENTS if row.get(key) is not None), None)
    text = "" if value is None else _dumps(value)
    return from_text(member(row, NAMES), text, member(row, _IDS))


def from_pair(row: object) -> Found:
    """A call given as an object whose one key is the name and whose value is the arguments."""
    if not isinstance(row, Mapping) or len(row) != 1:
        raise ValueError("a call is an object with one key, its name")
    [(name, value)] = row.items()
    if value is None:
        raise ValueError("it has no arguments")
    return from_text(name, _dumps(value))


def from_members(name: str, members: Sequence[tuple[str, str]]) -> Found:
    """A call of ``name`` with the JSON text of each argument. Raises ValueError where one comes twice."""
    if twice := [key for key, n in Counter(key for key, _ in members).items() if n > 1]:
        raise ValueError(f"it has the argument {repr_of(twice[0])} twice")
    pairs = (f"{json.dumps(key, ensure_ascii=False)}: {source}" for key, source in members)
    return from_text(name, "{" + ", ".join(pairs) + "}")


def check_members(row: Mapping[str, Any], n_arguments: int = 0) -> None:
    """Raises ValueError unless a call's arguments are certain; ``n_arguments``: sets that were taken out of it."""
    sets = n_arguments + sum(row.get(key) is not None for key in ARGUMENTS)
    if sets > 1:
        raise ValueError("it has more than one set of arguments")
    unknown = [key for key in row if key not in _KNOWN]
    if unknown and not sets and not any(key in row for key in ARGUMENTS):
        raise ValueError(f"it has {repr_of(unknown[0])} and no {', '.join(ARGUMENTS[:-1])} or {ARGUMENTS[-1]}")


def member(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The first of these members that there is; None where there is none."""
    return next((row[key] for key in keys if key in row), None)


def loads(text: str) -> Any:
    """JSON of RFC 8259: unlike ``json.loads``, no NaN and no infinity, nor a number so large. Raises ValueError.

    A member that stands twice with two values is refused too: nobody knows which of them was meant.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_float, object_pairs_hook=_certain)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dumps(value: object) -> str:
    """JSON as a call's source has it. Raises ValueError in words."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"its arguments are no JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _certain(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in members:
        if found.setdefault(key, value) is not value and dumps(found[key]) != dumps(value):
            raise ValueError(f"it has {repr_of(key)} twice, with two values")
    return found


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _dumps(value: object) -> str:
    return _ensure_unicode(dumps(value))


def _ensure_unicode(text: str) -> str:
    text.encode()  # UnicodeEncodeError, a ValueError, for a lone surrogate
    return text


def _checked(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError("it has no name")
    return _ensure_unicode(name)
