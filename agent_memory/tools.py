"""Any caller's shape of a tool -> ``Tool``: Anthropic's, OpenAI's, or a typed Python function."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.types import Tool

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_JSON_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
    "object": (dict,), "null": (type(None),),
}  # fmt: skip
_SHAPES = "a Tool, {name, input_schema}, {type: 'function', function: {name, parameters}} or a typed Python function"


class Pause(Exception):
    """Raised by a function that ``run_tools`` runs: the result of this call comes later, perhaps in another process.

    ``reason``: for whoever will give it; the model does not read it.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = str(reason)


def as_tools(tools: object) -> tuple[Tool, ...]:
    """The canonical value of each tool, in order. Raises UnsupportedParameterError naming the tool and the reason."""
    if isinstance(tools, (str, bytes, Mapping, Tool)) or not isinstance(tools, Sequence):
        raise UnsupportedParameterError(f"tools must be a list of tools, got {type(tools).__name__}")
    found = tuple(_tool(tool, place) for place, tool in enumerate(tools))
    names = [tool.name for tool in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UnsupportedParameterError(f"two tools have the name {repr_of(twice[0])}; a call could mean either")
    return found


def as_functions(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools in the shape that chat templates and mlx-lm's parsers read (OpenAI's)."""
    return [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": dict(t.parameters)},
        }
        for t in tools
    ]


def to_json(tools: Sequence[Tool]) -> str:
    """The store's form."""
    rows = [[t.name, t.description, dict(t.parameters), *[True] * t.strict] for t in tools]
    return json.dumps(rows, separators=(",", ":"))


def from_json(text: str) -> tuple[Tool, ...]:
    """The reverse of ``to_json``."""
    return tuple(Tool(*row) for row in json.loads(text))


def _tool(tool: object, place: int) -> Tool:
    if isinstance(tool, Tool):
        return _checked(tool, place)
    if isinstance(tool, Mapping):
        return _checked(_from_mapping(tool, place), place)
    if callable(tool):
        return _checked(from_function(tool), place)
    raise UnsupportedParameterError(f"tool {place} must be {_SHAPES}; got {type(tool).__name__}")


def _from_mapping(tool: Mapping[str, Any], place: int) -> Tool:
    kind = tool.get("type", "function" if "function" in tool else "custom")
    known = {"type", "name", "description", "input_schema", "strict", "cache_control"}
    if kind == "function":
        known, tool = {"name", "description", "parameters", "strict"}, tool.get("function", tool)
        if not isinstance(tool, Mapping):
            raise UnsupportedParameterError(f"tool {place}: function must be an object, got {type(tool).__name__}")
        known |= {"type"}
    elif kind != "custom":
        raise UnsupportedParameterError(
            f"tool {place} is of type {repr_of(kind)}; only tools that the caller runs are known"
        )
    if unknown := sorted(map(str, set(tool) - known)):
        raise UnsupportedParameterError(
            f"tool {place} has the key {repr_of(unknown[0])}; known: {', '.join(sorted(known))}"
        )
    schema = tool.get("input_schema" if kind == "custom" else "parameters")
    name, description, strict = tool.get("name"), tool.get("description"), tool.get("strict")
    made = Tool(name, description or "", strict=strict or False)  # type: ignore[arg-type]  # checked by the caller
    return made if schema is None else attrs.evolve(made, parameters=schema)


def _checked(tool: Tool, place: int) -> Tool:
    if not isinstance(tool.name, str) or not _NAME.fullmatch(tool.name):
        raise UnsupportedParameterError(
            f"tool {place}: a name has letters, digits, '_', '-' and '.', at most 128, got {repr_of(tool.name)}"
        )
    if not isinstance(tool.description, str):
        raise UnsupportedParameterError(f"tool {repr_of(tool.name)}: the description must be text")
    if not isinstance(tool.strict, bool):
        raise UnsupportedParameterError(f"tool {repr_of(tool.name)}: strict must be a bool, got {repr_of(tool.strict)}")
    if not isinstance(tool.parameters, Mapping) or tool.parameters.get("type", "object") != "object":
        raise UnsupportedParameterError(f"tool {repr_of(tool.name)}: parameters must be a JSON Schema of type 'object'")
    try:
        text = json.dumps([tool.description, dict(tool.parameters)], ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedParameterError(f"tool {repr_of(tool.name)} cannot be written as JSON: {error}") from None
    return attrs.evolve(tool, parameters=json.loads(text)[1])


def from_function(function: Callable[..., Any], within: tuple[type, ...] = ()) -> Tool:
    """A tool of a Python function: its name, its docstring, and a schema of its annotations.

    ``name: text`` lines of an ``Args:`` section describe the parameters. ``within``: the classes whose fields lead
    here. Raises UnsupportedParameterError for a parameter without a type, of a type that JSON has not, or that cannot
    be passed by name.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        signature, hints = inspect.signature(function), typing.get_type_hints(function)
    except Exception as error:  # an annotation that is a text is the caller's code: it fails in every way there is
        raise UnsupportedParameterError(
            f"the types of function {repr_of(name)} cannot be read: {type(error).__name__}: {error}"
        ) from error
    text, described = _documented(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UnsupportedParameterError(f"function {repr_of(name)}: {parameter} cannot be passed by name")
        if parameter.name not in hints:
            raise UnsupportedParameterError(
                f"function {repr_of(name)}: parameter {repr_of(parameter.name)} needs a type"
            )
        properties[parameter.name] = schema_of(hints[parameter.name], f"{name}.{parameter.name}", within)
        if parameter.name in described:
            properties[parameter.name]["description"] = described[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return Tool(name, text, {"type": "object", "properties": properties, "required": required})


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """A docstring's first part, and what its ``Args:`` section says of each parameter."""
    head, _, rest = text.partition("\nArgs:\n")
    found = {}
    for line in rest.splitlines():
        if not line.startswith(" "):
            break
        if pair := re.match(r"\s+(\w+)(?: \([^)]*\))?: (.+)", line):
            found[pair[1]] = pair[2].strip()
    return head.strip(), found


def schema_of(hint: Any, place: str, within: tuple[type, ...] = ()) -> dict[str, Any]:
    """The JSON Schema of an annotation; ``place`` is named in errors. Raises UnsupportedParameterError."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    if isinstance(hint, type) and attrs.has(hint):
        if hint in within:
            raise UnsupportedParameterError(
                f"{place}: {hint.__name__} has fields of its own type; describe it by a JSON Schema with $ref"
            )
        return dict(from_function(hint, (*within, hint)).parameters)
    if origin is Literal:
        kinds = {_JSON_TYPES.get(type(part), "") for part in parts}
        return {"type": kinds.pop(), "enum": list(parts)} if len(kinds) == 1 else {"enum": list(parts)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(part, place, within) for part in parts]}
    if hint is list or origin in (list, Sequence):
        return {"type": "array", **({"items": schema_of(parts[0], place, within)} if parts else {})}
    if hint is dict or origin in (dict, Mapping):
        more = {"additionalProperties": schema_of(parts[1], place, within)} if parts else {}
        return {"type": "object", **more}
    raise UnsupportedParameterError(f"{place}: JSON has nothing for the type {repr_of(hint)}")


def structured(value: Any, hint: Any) -> Any:
    """JSON that fits ``schema_of(hint)`` as a value of ``hint``: objects become attrs instances where it says so."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and attrs.has(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: structured(part, hints[name]) for name, part in value.items()})
    if origin in (typing.Union, types.UnionType):
        fitting = (part for part in parts if fits(value, schema_of(part, "")))
        return structured(value, next(fitting, Any))
    if origin in (list, Sequence) and parts:
        return [structured(part, parts[0]) for part in value]
    if origin in (dict, Mapping) and parts:
        return {name: structured(part, parts[1]) for name, part in value.items()}
    return value


def fits(value: object, schema: Mapping[str, Any]) -> bool:
    """True if a value is of the type that a function's annotation became; only what ``tools`` makes is looked at."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema and value not in schema["enum"]:
        return False
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if isinstance(value, list):
        return all(fits(one, schema.get("items", {})) for one in value)
    if isinstance(value, dict):
        named = schema.get("properties")
        if named is not None:
            required = schema.get("required", ())
            return (
                value.keys() <= named.keys()
                and value.keys() >= set(required)
                and all(fits(one, named[name]) for name, one in value.items())
            )
        return all(fits(one, schema.get("additionalProperties", {})) for one in value.values())
    return True
