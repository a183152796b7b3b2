"""A call as it was read from text, before anyone asks whether its tool was declared."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen


@frozen
class Found:
    """A call with arguments that are a JSON object; ``source``: their JSON text. ``id``: where the model wrote one."""

    name: str
    arguments: Mapping[str, Any]
    source: str
    id: str | None = None


def from_text(name: object, text: str) -> Found:
    """A call of ``name`` with the JSON ``text`` of its arguments. Raises ValueError in words."""
    has_escapes = "\\u" in text  # one of them may be half of a pair, here or in a string that holds the object
    value = loads(_ensure_unicode(text)) if text else None
    if isinstance(value, str):
        text = value  # an object, written as a string
        value = loads(text) if text else None
    if value is None:
        return Found(_checked(name), {}, "{}")
    if not isinstance(value, dict):
        raise ValueError(f"its arguments are {type(value).__name__}, not an object")
    if has_escapes:
        _ensure_unicode(json.dumps(value, ensure_ascii=False))
    return Found(_checked(name), value, text)


def from_mapping(row: object, keys: Sequence[str] = ("arguments",)) -> Found:
    """A call given as a mapping of ``name`` and, under one of ``keys``, arguments. Raises ValueError in words."""
    if not isinstance(row, Mapping):
        raise ValueError(f"a call is an object, not {type(row).__name__}")
    value = next((row[key] for key in keys if key in row), None)
    if isinstance(value, str):
        found = from_text(row.get("name"), json.dumps(value))
    else:
        found = from_text(row.get("name"), _dumps(value))
    call_id = row.get("id")
    if not isinstance(call_id, str) or not call_id:
        return found
    return Found(found.name, found.arguments, found.source, _ensure_unicode(call_id))


def loads(text: str) -> Any:
    """JSON of RFC 8259: unlike ``json.loads``, no NaN and no infinity, nor a number so large. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _dumps(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"its arguments are no JSON: {error}") from None
    return _ensure_unicode(text)


def _ensure_unicode(text: str) -> str:
    text.encode()  # UnicodeEncodeError, a ValueError, for a lone surrogate
    return text


def _checked(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError("it has no name")
    return _ensure_unicode(name)
