"""Laws of the parser, over random texts: the cut does not matter, nothing is lost, and what was written is read."""

from __future__ import annotations

import html
import json
import random
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory.toolcall import FORMATS, ToolParser, parse
from agent_memory.toolcall.formats import KNOWN
from agent_memory.types import Text
from tests.parts.writers import WRITERS, cut, found, run, summary

NAMES = ("add", "get_weather", "x")
SCRAPS = [
    "<tool_call>", "</tool_call>", "<|python_tag|>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<tool_c", "```",
    '{"tool_use"', ': {"name": ', '"add"', ', "input": {', "}}", "}", "{", "\n", " ", '"', "\\", "\\u00e9", "é😀", ";",
    '{"function_call": {"name": "x", "arguments": {}}}', "word ",
    "call:x{", "<arg_value>", "<function=x>", "[", "]",
    '{"name": "add", "parameters": {"a": 1}}', "<|tool_call>", "<tool_call|>", '<|"|>', "</function>", "<|open|>", "-1",
    "<![CDATA[", "<function name=", "<escape>", "null", "'", "<parameter=a>", "</parameter>", "<function=add>", ">>>",
    "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", "functools", "<|call|>",
    "<|channel|>", "<|message|>", "commentary to=functions.add ", "<|start|>assistant", "<|end|>", "analysis",
    "```json",
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<invoke name=",
    "]<]minimax[>[",
    "<tool_call>add<arg_key>a</arg_key><arg_value>", "</arg_value>", "<|START_ACTION|>[", "<|tool_call|>", "add(a=1)]",
    "<|open|>call tool=\"add\"<|sep|>", "<|close|>argument<|sep|>", "<seed:tool_call>", "<TOOLCALL>[", "[CALL_ID]",
    "all\n",
]  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text() | st.sampled_from(SCRAPS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(min_size=1, max_size=6), VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)
TEXTS = st.lists(st.sampled_from(SCRAPS) | st.text(max_size=8), max_size=30).map("".join)


@st.composite
def outputs(draw: st.DrawFn) -> str:
    """Text, reasoning and JSON calls in any order."""
    parts = []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            parts.append(draw(TEXTS))
        elif kind == 1:
            parts.append(f"\n<think>{draw(st.text(max_size=20))}</think>")
        else:
            format = draw(st.sampled_from(("tool_use", "function_call", "json_tools", "llama3")))
            parts.append(draw(st.sampled_from(["\n", "", "text "])) + WRITERS[format](draw(CALLS)))
    return "".join(parts)


def pieces(text: str, places: list[int]) -> list[str]:
    at = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def check_cut(text: str, places: list[int], format: str | None, tools: Any) -> None:
    whole = run(ToolParser(tools, format), [text])[1]
    assert summary(run(ToolParser(tools, format), pieces(text, places))[1]) == summary(whole)
    assert summary(run(ToolParser(tools, format), cut(text, 1))[1]) == summary(whole)


TOOLS = st.sampled_from([None, (), [{"name": "add", "input_schema": {"type": "object"}}]])
PLACES = st.lists(st.integers(0, 10**6), max_size=8)
THOROUGH = settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
QUICK = settings(max_examples=150, deadline=None, derandomize=True)


@QUICK
@given(outputs(), PLACES, TOOLS)
def test_the_cut_does_not_matter_and_nothing_is_lost_1(text: str, places: list[int], tools: Any) -> None:
    check_cut(text, places, None, tools)


@pytest.mark.slow
@THOROUGH
@given(outputs(), PLACES, TOOLS)
def test_the_cut_does_not_matter_and_nothing_is_lost_at_length_1(text: str, places: list[int], tools: Any) -> None:
    check_cut(text, places, None, tools)


@QUICK
@given(TEXTS, PLACES, TOOLS, st.sampled_from(FORMATS))
def test_no_text_in_any_format_depends_on_its_cut_1(text: str, places: list[int], tools: Any, format: str) -> None:
    check_cut(text, places, format, tools)


@pytest.mark.slow
@THOROUGH
@given(TEXTS, PLACES, TOOLS, st.sampled_from(FORMATS))
def test_no_text_in_any_format_depends_on_its_cut_at_length_1(
    text: str, places: list[int], tools: Any, format: str
) -> None:
    check_cut(text, places, format, tools)


#: Formats whose values are JSON or literals: they carry every value.
EXACT = (
    "tool_use", "function_call", "json_tools", "llama3", "granite", "phi4_mini", "firefunction", "nemotron", "apriel",
    "command_r", "command_r7b", "apertus", "gigachat", "harmony", "mistral", "deepseek_v3", "deepseek_v31", "kimi_k2",
    "functionary_v31", "functionary_v32",
)  # fmt: skip


@QUICK
@given(CALLS, st.sampled_from(EXACT), PLACES)
def test_what_is_written_is_read(calls: Any, format: str, places: list[int]) -> None:
    text = WRITERS[format](calls)
    assert found(parse(text, None, format)) == calls
    assert found(run(ToolParser(None, format), pieces(text, places))[1]) == calls


@QUICK
@given(TEXTS)
def test_without_tools_and_marks_of_reasoning_every_text_comes_back(text: str) -> None:
    events, parsed = run(ToolParser((), reasoning=None), cut(text, 1))
    assert parsed.text == "".join(e.text for e in events if isinstance(e, Text)) == text


def mutated(text: str, draw: random.Random) -> str:
    """``text`` with one to three small accidents."""
    for _ in range(draw.randint(1, 3)):
        at, to = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
        to = min(to, at + draw.choice((1, 2, 8, 40)))
        broken = (
            text[:at] + text[to:],
            text[:to] + text[at:],
            text[:at],
            text[:at] + draw.choice(SCRAPS) + text[at:],
            text[:at] + text[at:to][::-1] + text[to:],
            text[:at] + chr(draw.randint(1, 0x2FFF)) + text[to:],
        )
        text = draw.choice(broken)
    return text


class Literal(str):
    """A number as it was written."""


def unescaped(text: str) -> str:
    """A text with the escapes of JSON and Python decoded."""
    names = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0"}

    def decode(found: re.Match[str]) -> str:
        return chr(int(found[1] or found[2], 16)) if found[1] or found[2] else names.get(found[3], found[3])

    return re.sub(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})|\\(.)", decode, text, flags=re.DOTALL)


def is_written(value: Any, text: str) -> bool:
    """True if every part of a call's arguments stands in the text that it was read from."""
    if isinstance(value, dict):
        return all(is_written(key, text) and is_written(part, text) for key, part in value.items())
    if isinstance(value, list):
        return all(is_written(part, text) for part in value)
    if isinstance(value, Literal):
        return value in text or value.removesuffix(".0") in text
    if isinstance(value, str):
        return any(value in one for one in (text, unescaped(text), html.unescape(text), unescaped(unescaped(text))))
    return any(
        word in text for word in {True: ("true", "True"), False: ("false", "False"), None: ("null", "None")}[value]
    )


def check_mutations(n: int) -> None:
    draw = random.Random(5)
    values: list[Any] = ["a", "}{", "</tool_call>", 'q"', 3, True, None, {"b": [1, {"c": "ü"}]}, [], "line\nbreak"]
    for number in range(n):
        format = FORMATS[number % len(FORMATS)]
        calls = [(name, {"a": draw.choice(values), "b": draw.choice(values)}) for name in draw.sample(NAMES, 2)]
        text = mutated(f"Text.\n{WRITERS[format](calls)}\nMore {{text}}.", draw)
        tools = draw.choice((None, [{"name": "add", "input_schema": {"type": "object"}}]))
        whole = run(ToolParser(tools, format), [text])[1]  # raises nothing, loses no character
        for call in whole.tool_calls:
            written = json.loads(call.source, parse_int=Literal, parse_float=Literal)
            assert is_written(written, text), (format, text, call.source)
        parts = pieces(text, [draw.randint(0, len(text)) for _ in range(4)])
        assert summary(run(ToolParser(tools, format), parts)[1]) == summary(whole), (format, parts)


def test_five_hundred_broken_outputs_raise_nothing_and_lose_nothing_10() -> None:
    check_mutations(500)


@pytest.mark.slow
def test_twenty_thousand_broken_outputs_raise_nothing_and_lose_nothing_10() -> None:
    check_mutations(20_000)


@pytest.mark.parametrize("format", FORMATS)
def test_hostile_texts_of_every_format_end_in_time_and_are_kept(format: str) -> None:
    one, form = WRITERS[format]([("add", {"a": "x", "b": 1})]), KNOWN[format].forms[0]
    start, end = form.start or one[:5], form.end or "}"
    for text in (
        start * 200, end * 200, one[: len(one) // 2] * 50, start + one[len(one) // 2 :] * 50,
        start + " " * 2_000 + one,
        one[: len(one) * 2 // 3] * 30 + one[len(one) // 2 :] * 30,
        start + '"' * 2_000, start + "[" * 1_000 + "{" * 1_000,
    ):  # fmt: skip
        run(ToolParser(None, format), cut(text, 97))
