"""Values that models write without their types: what a parameter's text means by its JSON Schema.

- A parameter that can only be a string is its text, letter by letter, also where that looks like a number or null.
- One that can also be something else is that, if its text is exactly such a value: JSON, or a Python literal.
- Numbers keep their digits. What fits no type of the schema is what JSON says it is, or text: whoever runs the call
  sees a value of the wrong type, never a changed one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from agent_memory.toolcall.found import loads
from agent_memory.toolcall.literals import PYTHON, literal

Schema = Mapping[str, Any]


def source_of(text: str, schema: object, root: Schema) -> str:
    """The JSON text of the value that a parameter's ``text`` means by its ``schema``, a part of ``root``."""
    stripped = text.strip()
    listed = [value for part in parts_of(schema, root) for value in _listed(part) if isinstance(value, str)]
    if text in listed or stripped in listed:
        return _string(text if text in listed else stripped)
    kinds = kinds_of(schema, root)
    source = None if kinds == {"string"} else _json_of(stripped)
    if source is None:
        return _string(text)
    value = loads(source)
    kind = _kind(value)
    if kind == "string":  # in quotes, which are part of the text that was written
        return _string(text)
    if not kinds or kind in kinds or (kind == "integer" and "number" in kinds):
        return source
    if "integer" in kinds and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # 5.0 is an integer, as JSON Schema has it
    return _string(text) if "string" in kinds else source


def property_of(schema: object, name: str, root: Schema) -> object:
    """The schema of an object's property; an empty one where nothing is said of it."""
    parts = list(parts_of(schema, root))
    for part in parts:
        named = part.get("properties")
        if isinstance(named, Mapping) and name in named:
            return named[name]
    more = (part.get("additionalProperties") for part in parts)
    return next((schema for schema in more if isinstance(schema, Mapping)), {})


def item_of(schema: object, root: Schema) -> object:
    """The schema of an array's items; an empty one where nothing is said of them."""
    items = (part.get("items") for part in parts_of(schema, root))
    return next((schema for schema in items if isinstance(schema, Mapping)), {})


def kinds_of(schema: object, root: Schema) -> set[str]:
    """The types that a schema allows; empty where it says nothing of them."""
    return {kind for part in parts_of(schema, root) for kind in _kinds(part)}


def parts_of(schema: object, root: Schema) -> Iterator[Schema]:
    """A schema and the ones that describe the same value: its alternatives, its parts, what it refers to."""
    waiting, met = [schema], set()
    while waiting:
        part = waiting.pop(0)
        if not isinstance(part, Mapping) or id(part) in met:
            continue
        met.add(id(part))
        yield part
        for key in ("anyOf", "oneOf", "allOf"):
            waiting += part[key] if isinstance(part.get(key), list) else ()
        if isinstance(path := part.get("$ref"), str) and path.startswith("#"):
            waiting.append(_referred(path, root))


def _json_of(text: str) -> str | None:
    """The JSON that a text is, or that the Python literal is which it is; None for other texts."""
    try:
        loads(text)
        return text
    except ValueError:
        pass
    if text.lower() in ("true", "false"):
        return text.lower()
    try:
        return literal(text, PYTHON)
    except ValueError:
        return None


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _referred(path: str, root: Schema) -> object:
    """What a reference within the schema names; None where that is nothing."""
    found: object = root
    for step in filter(None, path.removeprefix("#").split("/")):
        step = step.replace("~1", "/").replace("~0", "~")
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _kinds(part: Schema) -> Iterator[str]:
    kind = part.get("type")
    kinds = [kind] if isinstance(kind, str) else kind if isinstance(kind, list) else []
    yield from map(str, kinds)
    if part.get("nullable") is True:
        yield "null"
    if not kinds:
        yield from map(_kind, _listed(part))


def _listed(part: Schema) -> list[Any]:
    """The values that a schema lists."""
    listed = list(part["enum"]) if isinstance(part.get("enum"), list) else []
    return listed + ([part["const"]] if "const" in part else [])


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds = ((int, "integer"), (float, "number"), (str, "string"), (Mapping, "object"))
    return next((kind for type_, kind in kinds if isinstance(value, type_)), "array")
