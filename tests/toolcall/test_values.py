"""What a parameter's text means: a table of formats, shapes of schemas and values; and that nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.toolcall import parse
from agent_memory.toolcall.literals import PYTHON, literal
from agent_memory.toolcall.values import source_of
from tests.parts.writers import WRITERS


def _kind(value: Any) -> str:
    names = {str: "string", bool: "boolean", type(None): "null", dict: "object", list: "array"}
    return names.get(type(value), "number")


def _dsml(group: str) -> Callable[[str, Any], str]:
    return lambda text, value: (
        f'<｜DSML｜{group}>\n<｜DSML｜invoke name="do">\n<｜DSML｜parameter name="it" '
        f'string="{json.dumps(isinstance(value, str))}">{text}</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        f"</｜DSML｜{group}>"
    )


def _glm(prefix: str) -> Callable[[str, Any], str]:
    return lambda text, value: (
        f"<{prefix}tool_call>do\n<{prefix}arg_key>it</{prefix}arg_key>\n<{prefix}arg_value>{text}</{prefix}arg_value>\n"
        f"</{prefix}tool_call>"
    )


#: How each format that writes values as text writes one argument, given its text and what it means.
WRITTEN: dict[str, Callable[[str, Any], str]] = {
    "qwen3_coder": lambda text, value: (
        f"<tool_call>\n<function=do>\n<parameter=it>\n{text}\n</parameter>\n</function>\n</tool_call>"
    ),
    "seed_oss": lambda text, value: (
        f"<seed:tool_call>\n<function=do>\n<parameter=it>{text}</parameter>\n</function>\n</seed:tool_call>"
    ),
    "minimax_m2": lambda text, value: (
        f'<minimax:tool_call>\n<invoke name="do">\n<parameter name="it">{text}</parameter>\n</invoke>\n'
        "</minimax:tool_call>"
    ),
    "minimax_m3": lambda text, value: "".join(
        f"]<]minimax[>[{part}"
        for part in ("<tool_call>", '<invoke name="do">', f"<it>{text}", "</it>", "</invoke>", "</tool_call>")
    ),
    "deepseek_v32": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "glm47": _glm(""),
    "longcat": _glm("longcat_"),
    "minicpm5": lambda text, value: f'<function name="do"><param name="it"><![CDATA[{text}]]></param></function>',
    "muse_spark": lambda text, value: (
        '<atem:function_calls>\n<atem:invoke name="do">\n<atem:parameter name="it">'
        f"{text}</atem:parameter>\n</atem:invoke>\n</atem:function_calls>"
    ),
    "kimi_k3": lambda text, value: (
        '<|open|>tools<|sep|><|open|>call tool="do" index="1"<|sep|><|open|>argument key="it" '
        f'type="{_kind(value)}"<|sep|>{text}<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>'
    ),
}
#: By type: texts, and what they mean.
VALUES: dict[str, list[tuple[str, Any]]] = {
    "integer": [("5", 5), ("-7", -7), ("1234567890123456789", 1234567890123456789), (str(10**30 + 7), 10**30 + 7)],
    "number": [("0.1", 0.1), ("1e-7", 1e-7), ("2.5000", 2.5), ("9007199254740993", 9007199254740993)],
    "boolean": [("true", True), ("false", False), ("True", True)],
    "array": [("[1, 2]", [1, 2]), ("['a', None]", ["a", None]), ('[{"n": 9007199254740993}]', [{"n": 2**53 + 1}])],
    "object": [('{"a": 1}', {"a": 1}), ("{'a': True, 'b': 'it''s'}".replace("''", "\\'"), {"a": True, "b": "it's"})],
    "string": [("abc", "abc"), ("12345", "12345"), ("true", "true"), ("[1]", "[1]"), ('"q"', '"q"'),
               (" é 😀\n ", " é 😀\n "),
               ("{'a': 1}", "{'a': 1}"), ("1e5", "1e5"), ("</parameter> <arg_value>", "</parameter> <arg_value>")],
}  # fmt: skip
#: Ways to say that a value is of a type, and whether null may stand there too.
SHAPES: dict[str, tuple[Callable[[str], dict[str, Any]], bool]] = {
    "type": (lambda kind: {"type": kind}, False),
    "anyOf null": (lambda kind: {"anyOf": [{"type": kind}, {"type": "null"}]}, True),
    "oneOf null": (lambda kind: {"oneOf": [{"type": "null"}, {"type": kind}]}, True),
    "type list": (lambda kind: {"type": [kind, "null"]}, True),
    "$ref": (lambda kind: {"$ref": f"#/$defs/{kind}"}, False),
    "$ref within anyOf": (lambda kind: {"anyOf": [{"$ref": f"#/$defs/{kind}"}, {"type": "null"}]}, True),
    "allOf": (lambda kind: {"allOf": [{"$ref": f"#/$defs/{kind}"}, {"description": "d"}]}, False),
    "nullable": (lambda kind: {"type": kind, "nullable": True}, True),
}
DEFS = {kind: {"type": kind} for kind in VALUES}


def read(format: str, text: str, value: Any, schema: dict[str, Any]) -> Any:
    tool = {"name": "do", "parameters": {"type": "object", "properties": {"it": schema}, "$defs": DEFS}}
    parsed = parse(WRITTEN[format](text, value), [{"type": "function", "function": tool}], format)
    assert (parsed.rejected_calls, parsed.text.strip(), len(parsed.tool_calls)) == ((), "", 1), (format, text)
    [call] = parsed.tool_calls
    assert json.loads(call.source) == call.arguments
    return call.arguments["it"]


def cells() -> list[tuple[str, str, str, Any]]:
    """Format, shape and type, text, meaning."""
    rows = []
    for format in WRITTEN:
        for shape, (_, takes_null) in SHAPES.items():
            for kind, values in VALUES.items():
                rows += [(format, f"{shape}, {kind}", text, value) for text, value in values]
                if takes_null:
                    rows.append((format, f"{shape}, {kind}", "null", None))
            if not takes_null:
                rows.append((format, f"{shape}, string", "null", "null"))
    return rows


def test_every_cell_of_formats_shapes_types_and_values_is_as_the_schema_means() -> None:
    rows = cells()
    assert len(rows) >= 400
    wrong = []
    for format, what, text, value in rows:
        shape, _, kind = what.partition(", ")
        got = read(format, text, value, SHAPES[shape][0](kind))
        if got != value or type(got) is not type(value):
            wrong.append((format, what, text, got))
    assert wrong == []


LISTED = [
    ({"enum": [1, 2, 3]}, "2", 2),
    ({"enum": ["1", "2"]}, "2", "2"),
    ({"enum": [1, "2", None]}, "2", "2"),
    ({"enum": [1, "2", None]}, "null", None),
    ({"const": 7}, "7", 7),
    ({"const": "7"}, "7", "7"),
    ({"type": "string", "enum": ["null", "on"]}, "null", "null"),
    ({"type": "integer", "enum": [2**53 + 1]}, "9007199254740993", 2**53 + 1),
    ({"enum": [True, False]}, "false", False),
    ({"anyOf": [{"enum": ["auto"]}, {"type": "integer"}]}, "auto", "auto"),
    ({"anyOf": [{"enum": ["auto"]}, {"type": "integer"}]}, "12", 12),
    ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, '["a"]', ["a"]),
    ({"anyOf": [{"type": "string"}, {"type": "array"}]}, "a, b", "a, b"),
    ({"type": "integer"}, "5.0", 5),
    ({}, "5", 5),
    ({}, "five", "five"),
]


@pytest.mark.parametrize("format", WRITTEN)
@pytest.mark.parametrize(("schema", "text", "value"), LISTED)
def test_listed_values_and_alternatives_are_as_the_schema_means(
    format: str, schema: dict[str, Any], text: str, value: Any
) -> None:
    got = read(format, text, value, schema)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "boolean"}, "1", 1),
        ({"type": "integer"}, "many", "many"),
        ({"type": "integer"}, "1_000", "1_000"),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "null"}, "nothing", "nothing"),
        ({"type": "array"}, "[1, f()]", "[1, f()]"),
    ],
)
def test_what_fits_no_type_is_left_as_it_was_written(schema: dict[str, Any], text: str, value: Any) -> None:
    assert json.loads(source_of(text, schema, {})) == value


def test_references_that_lead_nowhere_or_in_circles_end() -> None:
    root = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/gone"}]}}}
    assert source_of("5", {"$ref": "#/$defs/a"}, root) == "5"
    assert source_of("x", {"$ref": "#"}, {"$ref": "#"}) == '"x"'
    assert source_of("5", {"$ref": "#/$defs/a~1b"}, {"$defs": {"a/b": {"type": "string"}}}) == '"5"'


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(list(WRITTEN)))
def test_numbers_keep_their_digits(whole: int, real: float, format: str) -> None:
    assert read(format, str(whole), whole, {"type": "integer"}) == whole
    assert read(format, repr(real), real, {"type": "number"}) == real


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from(sorted(set(WRITTEN) - {"minicpm5"})))
def test_a_string_is_its_text_letter_by_letter(text: str, format: str) -> None:
    assert read(format, text, text, {"type": "string"}) == text


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_a_python_literal_is_read_as_it_was_written(value: Any) -> None:
    assert json.loads(literal(repr(value), PYTHON)) == value


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), PLAIN, max_size=3), st.sampled_from(["pythonic", "llama_pythonic"]))
def test_a_pythonic_call_gives_its_values_back(arguments: dict[str, Any], format: str) -> None:
    [call] = parse(WRITERS[format]([("do", arguments)]), None, format).tool_calls
    assert call.arguments == arguments
