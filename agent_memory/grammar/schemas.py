"""JSON Schemas that a grammar can hold a reply to: checked when the request is made, and those of attrs classes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import attrs

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.grammar.matcher import llguidance
from agent_memory.tools import schema_of, structured

log = logging.getLogger("agent_memory.grammar")

_OF_MANY = ("properties", "patternProperties", "$defs", "definitions")  #: name -> schema
_OF_LIST = ("prefixItems", "anyOf", "oneOf", "allOf")
_OF_ONE = ("items", "additionalProperties")
_UNKNOWN_FORMAT = re.compile(r"Unknown format: ([^\s;,]+)")
_NUMBERS = ("const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_UNKNOWN = re.compile(r'Unimplemented keys: \["([^"]+)"')


def checked(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """``schema``, closed: an object has the properties that its schema names and no others, where it says nothing else.

    ``place``: what the path in an error begins with. Raises UnsupportedParameterError with the path of what cannot be
    enforced, MissingExtraError. Compiles once, without a vocabulary: a millisecond or so.
    """
    return found(closed(written(schema, place), place))


def written(schema: Mapping[str, Any], place: str) -> str:
    """A schema's JSON. Raises UnsupportedParameterError."""
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedParameterError(f"{place} cannot be written as JSON: {error}") from None


def closed(text: str, place: str) -> dict[str, Any] | str:
    """A schema's JSON, closed; or why it cannot be enforced, in words. Raises MissingExtraError."""
    closed: dict[str, Any] = json.loads(text)
    for _, part in _parts(closed, ""):
        part.pop("x-guidance", None)  # llguidance's options: one of them is to enforce nothing that it does not know
        _translate(part)
    if not _is_composed(closed):
        for _, part in _parts(closed, ""):
            if "properties" in part and "patternProperties" not in part:
                part.setdefault("additionalProperties", False)
    for path, part in _parts(closed, place):
        if isinstance(part.get("items"), list):
            return f"{path}.items: a list of schemas is not supported; use prefixItems"
        for key in _NUMBERS:
            if (number := next(_large(part.get(key)), None)) is not None:
                return f"{path}.{key}: {number} is beyond 2**53; a grammar would hold another number"
    while unknown := _UNKNOWN_FORMAT.search(reason := _fault(closed)):
        parts = [(path, part) for path, part in _parts(closed, place) if part.get("format") == unknown[1]]
        if not parts:
            break
        for path, part in parts:
            log.warning("%s: the format %r is not enforced: no grammar for it is known", path, part.pop("format"))
    return _located(closed, place, reason) if reason else closed


def _translate(part: dict[str, Any]) -> None:
    """Write ``nullable``, and a ``$ref`` with brackets, as JSON Schema has them; OpenAPI and generic classes differ."""
    if isinstance(part.get("$ref"), str):
        part["$ref"] = quote(part["$ref"], safe="#/%~!$&'()*+,;=:@?-._")
    if part.pop("nullable", None) is True:
        described = {key: part.pop(key) for key in [*part] if key not in ("$defs", "definitions")}
        part["anyOf"] = [described, {"type": "null"}]


def found(closed: dict[str, Any] | str) -> dict[str, Any]:
    """What ``closed`` gave. Raises UnsupportedParameterError with its words."""
    if isinstance(closed, str):
        raise UnsupportedParameterError(closed)
    return closed


def _located(schema: Mapping[str, Any], place: str, reason: str) -> str:
    """``reason`` with the path of the innermost part that has the fault on its own."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for path, part in _parts(schema, place):
        if found := _fault({**shared, **part} if not shared.keys() & part.keys() else part):
            unknown = _UNKNOWN.search(found)
            return f"{path}.{unknown[1]} is not supported" if unknown else f"{path}: {found}"
    return f"{place}: {reason}"


def _fault(schema: Mapping[str, Any]) -> str:
    """Why a schema cannot be enforced, in one line; "" where it can."""
    error = str(llguidance().LLMatcher.validate_grammar("start: %json " + json.dumps(schema)))
    line, _, more = error.partition("\n")
    reason = line.partition("failed to compile JSON schema: ")[2] or line
    detail = re.search(r"^error: (.+)", more, re.M)  # of a pattern, below a drawing of it
    return f"{reason} {detail[1]}" if detail else reason


def _parts(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema with its path, the innermost first."""
    if not isinstance(schema, dict):
        return
    for key in _OF_MANY:
        for name, part in schema[key].items() if isinstance(schema.get(key), dict) else ():
            yield from _parts(part, f"{path}.{key}.{name}")
    for key in _OF_LIST:
        for number, part in enumerate(schema[key]) if isinstance(schema.get(key), list) else ():
            yield from _parts(part, f"{path}.{key}[{number}]")
    for key in _OF_ONE:
        yield from _parts(schema.get(key), f"{path}.{key}")
    yield path, schema


def _large(value: object) -> Iterator[int]:
    """The integers in a value that a double cannot hold exactly."""
    if isinstance(value, int) and abs(value) > 2**53:
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _large(part)


def _is_composed(schema: Mapping[str, Any]) -> bool:
    """True if several schemas describe one object together: to close one would shut out the others' properties."""
    return any(
        "allOf" in part or ("properties" in part and part.keys() & {"anyOf", "oneOf", "$ref"})
        for _, part in _parts(schema, "")
    )


def of_value(schema: object) -> tuple[Mapping[str, Any], Callable[[Any], Any] | None]:
    """The JSON Schema that ``schema=`` means, unchecked, and what makes an instance of the JSON that fits it.

    None for a JSON Schema: the reply's value is the JSON itself. Raises UnsupportedParameterError.
    """
    if isinstance(schema, Mapping):
        return schema, None
    if isinstance(schema, type) and attrs.has(schema):
        return schema_of(schema, "schema"), lambda value: structured(value, schema)
    describe, build = getattr(schema, "model_json_schema", None), getattr(schema, "model_validate", None)
    if isinstance(schema, type) and callable(describe) and callable(build):  # pydantic's, or any other with both
        return _described(describe, schema), build
    raise UnsupportedParameterError(
        f"schema must be a JSON Schema, an attrs class or one with model_json_schema and model_validate; got "
        f"{repr_of(schema)}"
    )


def _described(describe: Callable[[], Any], schema: type) -> Mapping[str, Any]:
    """The JSON Schema that a class has for itself. Raises UnsupportedParameterError."""
    try:
        described = describe()
    except Exception as error:  # a user's class: it fails in every way there is
        raise UnsupportedParameterError(
            f"schema: {schema.__name__}.model_json_schema() fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(described, Mapping):
        raise UnsupportedParameterError(
            f"schema: {schema.__name__}.model_json_schema() gives {repr_of(described)}, no object"
        )
    return described
