"""Tools of every shape become one value, and what cannot is refused by name."""

from __future__ import annotations

import typing
from typing import Any, Literal

import pytest
from attrs import frozen

from agent_memory import Tool, UnsupportedParameterError
from agent_memory.tools import as_functions, as_tools, from_json, structured, to_json

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "The weather.", SCHEMA)


def get_weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C", tags: list[str] | None = None) -> str:
    """The weather.

    Args:
        city: Where.
        days (int): How many.
    """
    return f"{city} {days} {unit} {tags}"


def test_the_shapes_of_both_apis_and_a_tool_are_one_value() -> None:
    anthropic = {"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}
    function = {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA}
    shapes = [
        WEATHER, anthropic, {"type": "custom", **anthropic, "cache_control": {"type": "ephemeral"}},
        {"type": "function", "function": function}, {"type": "function", **function}, {"function": function},
    ]  # fmt: skip
    assert [as_tools([shape]) for shape in shapes] == [(WEATHER,)] * len(shapes)
    assert as_tools(as_functions([WEATHER])) == (WEATHER,)
    assert from_json(to_json([WEATHER, Tool("b")])) == (WEATHER, Tool("b"))


def test_a_typed_function_is_a_tool() -> None:
    [tool] = as_tools([get_weather])
    assert (tool.name, tool.description) == ("get_weather", "The weather.")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "description": "How many."},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "tags": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        },
        "required": ["city"],
    }


def untyped(city) -> str:  # type: ignore[no-untyped-def]
    return str(city)


def starred(*cities: str) -> str:
    return str(cities)


@frozen
class Bare:
    rows: typing.List  # type: ignore[type-arg]  # noqa: UP006
    more: typing.Sequence  # type: ignore[type-arg]
    named: typing.Mapping | None = None  # type: ignore[type-arg]


def test_a_class_whose_fields_leave_their_parts_open_is_built() -> None:
    parameters = as_tools([Bare])[0].parameters
    assert parameters["properties"]["rows"] == parameters["properties"]["more"] == {"type": "array"}
    value = {"rows": [1, {"a": 2}], "more": [[]], "named": {"b": [3]}}
    assert structured(value, Bare) == Bare([1, {"a": 2}], [[]], {"b": [3]})


def bytes_in(data: bytes) -> str:
    return str(data)


@frozen
class Node:
    value: int
    next: Node | None = None


def missing(a: typing.nope) -> str:  # type: ignore[name-defined]
    return str(a)


def ill_formed(a: "int int") -> str:  # type: ignore[valid-type]  # noqa: F722
    return str(a)


def failing(a: 1 / 0) -> str:  # type: ignore[valid-type]
    return str(a)


def last_of(nodes: list[Node]) -> int:
    return nodes[-1].value


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("text", "list of tools, got str"),
        ({"name": "f"}, "list of tools"),
        (3, "list of tools"),
        ([3], "tool 0 must be"),
        ([{}], "tool 0: a name"),
        ([{"name": ""}], "tool 0: a name"),
        ([{"name": "f g"}], "'f g'"),
        ([{"name": "f", "parameters": SCHEMA}], "key 'parameters'; known: .*input_schema"),
        ([{"name": "f", "input_schema": {"type": "array"}}], "type 'object'"),
        ([{"name": "f", "input_schema": 3}], "type 'object'"),
        ([{"name": "f", "description": 3}], "description"),
        ([{"name": "f", "input_schema": {"x": object()}}], "cannot be written as JSON"),
        ([{"name": "f", "description": "\ud800"}], "cannot be written as JSON"),
        (
            [{"name": "f", "input_schema": {"properties": {"a": {"maximum": float("inf")}}}}],
            "cannot be written as JSON",
        ),
        ([{"type": "web_search_20250305", "name": "f"}], "web_search"),
        ([{"type": "function", "function": {"name": "f", "strict": 3}}], "strict"),
        ([{"type": "function", "function": 3}], "function must be an object"),
        ([{"name": "f"}, Tool("f")], "two tools have the name 'f'"),
        ([untyped], "'city' needs a type"),
        ([starred], "cannot be passed by name"),
        ([bytes_in], "bytes_in.data"),
        ([missing], "types of function 'missing' cannot be read: .*nope"),
        ([ill_formed], "types of function 'ill_formed' cannot be read: SyntaxError"),
        ([failing], "types of function 'failing' cannot be read: ZeroDivisionError"),
        ([last_of], "Node.next: Node has fields of its own type"),
    ],
)
def test_what_is_no_tool_is_refused_by_name(tools: Any, said: str) -> None:
    with pytest.raises(UnsupportedParameterError, match=said):
        as_tools(tools)
