"""Every format for which the pinned mlx-lm has a parser: at least eight cases each, whole and cut in every way."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest

from agent_memory.toolcall import FORMATS, ToolParser, parse
from tests.toolcall.writers import WRITERS, Call, cuts, found, run, summary

mlx_lm_parsers = pytest.importorskip("mlx_lm.tool_parsers")

SAVE = {
    "name": "save",
    "parameters": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "text": {"type": "string"},
            "options": {"type": "object"},
            "tags": {"type": "array"},
            "count": {"type": "integer"},
            "force": {"type": "boolean"},
        },
    },
}
LIST = {"name": "list_files", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": tool} for tool in (SAVE, LIST)]
NATIVE = sorted(m.name for m in pkgutil.iter_modules(mlx_lm_parsers.__path__))
XML = {"glm47", "laguna", "longcat", "kimi_k3", "minicpm5", "minimax_m2", "muse_spark", "qwen3_coder"}

#: What a call holds, by the name of the case.
WELL_FORMED: dict[str, list[Call]] = {
    "one call": [("save", {"path": "a.txt", "count": 3})],
    "nested objects": [("save", {"path": "a", "options": {"mode": {"bits": [1, 2]}, "keep": 4}})],
    "unicode": [("save", {"path": "Zürich/世界.txt", "text": "naïve 😀 résumé"})],
    "two calls": [("save", {"path": "a"}), ("save", {"path": "b", "count": 2})],
    "empty arguments": [("list_files", {})],
    "a list": [("save", {"path": "a", "tags": [1, 2, 3]})],
}
END_MARKS = {
    "function_gemma": ["<end_function_call>", "}"],
    "gemma4": ["<tool_call|>"],
    "glm47": ["</tool_call>", "<tool_call>"],
    "json_tools": ["</tool_call>", "<tool_call>", '{"name": "x", "arguments": {}}'],
    "kimi_k2": ["<|tool_calls_section_end|>", "<|tool_call_end|>"],
    "kimi_k3": ["<|close|>tools<|sep|>", "<|close|>call<|sep|>"],
    "laguna": ["</tool_call>"],
    "longcat": ["</longcat_tool_call>"],
    "minicpm5": ["</function>", "</param>"],
    "minimax_m2": ["</minimax:tool_call>", "</invoke>"],
    "mistral": ["[TOOL_CALLS]", 'save[ARGS]{"a": 1}', "}"],
    "muse_spark": ["</atem:function_calls>", "</atem:invoke>"],
    "pythonic": ["<|tool_call_end|>", ")]"],
    "qwen3_coder": ["</tool_call>", "</function>"],
}
#: Texts that hold no call, whatever stands in front of them.
MALFORMED = {
    "function_gemma": "<start_function_call>save everything<end_function_call>",
    "gemma4": "<|tool_call>call:save{path:}}<tool_call|>",
    "glm47": "<tool_call>please save it, thank you</tool_call>",
    "json_tools": '<tool_call>{"name": "save", arguments: {}}</tool_call>',
    "kimi_k2": "<|tool_calls_section_begin|>save it<|tool_calls_section_end|>",
    "kimi_k3": "<|open|>tools<|sep|>save it<|close|>tools<|sep|>",
    "laguna": "<tool_call>{broken</tool_call>",
    "longcat": "<longcat_tool_call>please save</longcat_tool_call>",
    "minicpm5": "<function name=></function>",
    "minimax_m2": "<minimax:tool_call>save it</minimax:tool_call>",
    "mistral": "[TOOL_CALLS]save it",
    "muse_spark": "<atem:function_calls>save it</atem:function_calls>",
    "pythonic": "<|tool_call_start|>save it<|tool_call_end|>",
    "qwen3_coder": "<tool_call><parameter=path>a</parameter></tool_call>",
}
#: Calls whose arguments are JSON, and no object.
NO_OBJECT = {
    "glm47": '<tool_call>{"name": "save", "arguments": [1, 2]}</tool_call>',
    "json_tools": '<tool_call>{"name": "save", "arguments": [1, 2]}</tool_call>',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.save:0<|tool_call_argument_begin|>[1, 2]"
    "<|tool_call_end|><|tool_calls_section_end|>",
    "kimi_k3": '<|open|>tools<|sep|><|open|>call tool="save"<|sep|><|open|>json type="object"<|sep|>[1]'
    "<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
    "laguna": '<tool_call>{"name": "save", "arguments": null, "x": [</tool_call>',
    "longcat": '<longcat_tool_call>{"name": "save", "arguments": 7}</longcat_tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "save", "arguments": "[1]"}]',
    "pythonic": "<|tool_call_start|>[1, 2]<|tool_call_end|>",
    "function_gemma": "<start_function_call>call:save[1, 2]<end_function_call>",
    "gemma4": "<|tool_call>call:save[1, 2]<tool_call|>",
    "minicpm5": "<function name= ></function>",
    "minimax_m2": "<minimax:tool_call>[1, 2]</minimax:tool_call>",
    "muse_spark": "<atem:function_calls>[1, 2]</atem:function_calls>",
    "qwen3_coder": "<tool_call>[1, 2]</tool_call>",
}


def marks(format: str) -> list[str]:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{format}")
    return [mark for mark in (module.tool_call_start, module.tool_call_end, "</think>") if mark]


def whole_and_cut(text: str, format: str, tools: Any = TOOLS) -> Any:
    """The result, equal for the whole text and for every cut of it."""
    expected = parse(text, tools, format)
    for chunks in cuts(text, marks(format)):
        _, parsed = run(ToolParser(tools, format), chunks)
        assert summary(parsed) == summary(expected), chunks
    return expected


def test_every_parser_of_the_pinned_mlx_lm_has_a_format_and_cases() -> None:
    assert set(NATIVE) <= set(FORMATS)
    assert set(NATIVE) == set(END_MARKS) == set(MALFORMED) == set(NO_OBJECT)
    assert set(FORMATS) == set(WRITERS)


@pytest.mark.parametrize("case", WELL_FORMED)
@pytest.mark.parametrize("format", NATIVE)
def test_a_well_formed_call_is_found_as_mlx_lms_own_parser_finds_it_1(format: str, case: str) -> None:
    calls = WELL_FORMED[case]
    text = WRITERS[format](calls)
    parsed = whole_and_cut(text, format)
    if format == "function_gemma" and case in ("nested objects", "a list"):
        # Its values are flat: mlx-lm's parser would end at the first brace and split at the first comma.
        assert (parsed.text, parsed.rejected_calls[0].reason) == (text, "malformed")
        return
    assert found(parsed) == calls
    assert not parsed.text.strip()
    assert parsed.rejected_calls == ()
    if case in ("one call", "empty arguments", "unicode") and (format, case) != ("longcat", "empty arguments"):
        module = importlib.import_module(f"mlx_lm.tool_parsers.{format}")
        inside = text.removeprefix(module.tool_call_start).removesuffix(module.tool_call_end)
        theirs = module.parse_tool_call(inside, TOOLS)
        [theirs] = theirs if isinstance(theirs, list) else [theirs]
        assert [(theirs["name"], theirs["arguments"])] == calls


@pytest.mark.parametrize("format", NATIVE)
def test_an_end_mark_inside_a_string_is_text_3(format: str) -> None:
    for mark in END_MARKS[format]:
        calls = [("save", {"path": "a", "text": f"before {mark} after"}), ("save", {"path": "b"})]
        assert found(whole_and_cut(WRITERS[format](calls), format)) == calls, mark


@pytest.mark.parametrize("format", NATIVE)
def test_text_around_calls_is_kept(format: str) -> None:
    call = WRITERS[format]([("save", {"path": "a"})])
    parsed = whole_and_cut(f"Let me look.\n\n{call}\nThen again.\n{call} Done < {{a}}.", format)
    assert found(parsed) == [("save", {"path": "a"})] * 2
    assert parsed.text == "Let me look.\n\n\nThen again.\n Done < {a}."


@pytest.mark.parametrize("format", NATIVE)
def test_what_is_malformed_stays_text_and_is_listed(format: str) -> None:
    text = f"Look: {MALFORMED[format]} so."
    parsed = whole_and_cut(text, format)
    assert (parsed.text, parsed.tool_calls) == (text, ())
    assert [call.reason for call in parsed.rejected_calls] == ["malformed"]


@pytest.mark.parametrize("format", NATIVE)
def test_arguments_that_are_no_object_make_no_call(format: str) -> None:
    parsed = whole_and_cut(NO_OBJECT[format], format)
    assert (parsed.text, parsed.tool_calls) == (NO_OBJECT[format], ())
    assert parsed.rejected_calls


@pytest.mark.parametrize("format", NATIVE)
def test_an_undeclared_tool_stays_text_and_is_listed(format: str) -> None:
    text = WRITERS[format]([("remove", {"path": "a"})])
    parsed = whole_and_cut(text, format)
    assert (parsed.text, parsed.tool_calls) == (text, ())
    assert [(call.reason, call.name) for call in parsed.rejected_calls] == [("undeclared", "remove")]
    assert found(parse(text, None, format)) == [("remove", {"path": "a"})]
    assert parse(text, (), format).text == text
    assert parse(text, (), format).rejected_calls == ()


@pytest.mark.parametrize("format", NATIVE)
def test_a_call_that_is_cut_short_is_truncated_and_a_complete_one_without_its_end_counts(format: str) -> None:
    calls = [("save", {"path": "some/long/path", "count": 3})]
    text = WRITERS[format](calls)
    end = importlib.import_module(f"mlx_lm.tool_parsers.{format}").tool_call_end
    begin = len(marks(format)[0])
    for stop in range(begin, len(text) + 1):
        parsed = parse(text[:stop], TOOLS, format)
        if parsed.tool_calls:
            assert found(parsed) == calls
            assert parsed.rejected_calls == ()
            assert stop >= len(text.removesuffix(end).rstrip())
        else:
            assert [call.reason for call in parsed.rejected_calls] in (["truncated"], ["malformed"]), text[:stop]
            assert parsed.text == text[:stop] or format == "json_tools"
            assert text[:stop].startswith(parsed.rejected_calls[0].source)
    assert found(parsed) == calls


def test_an_id_that_the_model_wrote_is_kept_and_a_second_one_of_that_text_is_not() -> None:
    text = WRITERS["kimi_k2"]([("save", {"path": "a"}), ("list_files", {})])
    assert [call.id for call in parse(text, TOOLS, "kimi_k2").tool_calls] == [
        "functions.save:0",
        "functions.list_files:1",
    ]
    twice = '[TOOL_CALLS][{"name": "save", "id": "x"}, {"name": "save", "id": "x"}]'
    first, second = parse(twice, TOOLS, "mistral").tool_calls
    assert first.id == "x" != second.id


def test_a_section_with_a_declared_and_an_undeclared_call_gives_the_one_and_lists_the_other() -> None:
    text = WRITERS["kimi_k2"]([("remove", {}), ("save", {"path": "a"})])
    parsed = whole_and_cut(text, "kimi_k2")
    assert found(parsed) == [("save", {"path": "a"})]
    assert (parsed.text, parsed.rejected_calls[0].reason) == ("", "undeclared")


def test_loading_a_parser_leaves_mlx_lm_alone() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from agent_memory.toolcall import parse; "
        "assert parse('[TOOL_CALLS]f[ARGS]{}', None, 'mistral').tool_calls; "
        "assert not {'mlx', 'mlx_lm', 'numpy', 'transformers'} & {name.split('.')[0] for name in sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
