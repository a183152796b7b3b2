"""The 25 requirements of tool calling, and that each has tests: those whose names end with its number."""

from __future__ import annotations

import importlib
import importlib.util
import re

import pytest

REQUIRED = {
    1: "any cut of any text gives what the whole gives, in every format",
    2: "both wrapped JSON forms are calls, whatever the blanks between their tokens",
    3: "a string argument may hold braces, quotes, marks, and calls",
    4: "characters arrive as they were written, and escapes decode to the same",
    5: "a call without arguments has {} in both modes and both APIs",
    6: "arguments in a string are the object that it holds; any other string makes the call invalid",
    7: "several calls keep their order, and have ids and indices of their own",
    8: "text before, between and after calls is kept, and no markup is in it",
    9: "what holds no call comes back exactly",
    10: "a malformed call never raises: it stays text, or is flagged where part of it was given out",
    11: "an undeclared tool's call stays text and is listed; under a grammar it cannot occur",
    12: "a call in reasoning is not run, also where the prompt began the reasoning",
    13: "none: no grammar, no tools in the prompt, nothing is a call",
    14: "required: a schema-valid call of any weights, or a truncation",
    15: "named: that tool's call alone; it finishes as a call",
    16: "no parallel calls: one at most, and generation stops behind it",
    17: "a call that max_tokens cuts is marked, and the finish is length",
    18: "the finish is that of calls exactly where one is complete",
    19: "Anthropic's events are in order, and add up to the message",
    20: "OpenAI's chunks are in order, and add up to the completion",
    21: "results that answer no open call are refused; errors and blocks are rendered",
    22: "a dialogue has the same ids in both APIs' shapes",
    23: "a call that is held fits its schema; what cannot be held is refused when it is asked for",
    24: "vocabulary and grammars are built once a model (what they cost: benchmarks/toolcall.py)",
    25: "the parser's cost is linear, and it holds back less than a mark",
}
MODULES = {  # and what each needs
    "toolcall.test_parser": None,
    "toolcall.test_parser_laws": None,
    "toolcall.test_formats": None,
    "grammar.test_grammar": "llguidance",
    "test_tool_calling": None,
    "dialects.test_dialects": "anthropic",
    "dialects.test_guides": None,
}


def numbered() -> dict[str, list[int]]:
    """The tests of this machine that have numbers."""
    found = {}
    for module, needed in MODULES.items():
        if needed is None or importlib.util.find_spec(needed):
            for name in vars(importlib.import_module(f"tests.{module}")):
                if numbers := re.fullmatch(r"test_.*?((?:_\d+)+)", name):
                    found[f"{module}.{name}"] = [int(number) for number in numbers[1].split("_")[1:]]
    return found


def test_every_requirement_has_a_test_and_every_numbered_test_a_requirement() -> None:
    if missing := [needed for needed in MODULES.values() if needed and not importlib.util.find_spec(needed)]:
        pytest.skip(f"some tests need {missing}")
    shown = {number for numbers in numbered().values() for number in numbers}
    assert list(REQUIRED) == list(range(1, 26))
    assert shown == set(REQUIRED)
