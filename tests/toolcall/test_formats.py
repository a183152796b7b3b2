"""Every format: at least eight cases each, whole and cut in every way, and mlx-lm's own parsers as an oracle."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any

import pytest

from agent_memory.toolcall import FORMATS, ToolParser, parse
from agent_memory.toolcall.formats import KNOWN
from agent_memory.toolcall.forms import ChannelForm, ObjectForm
from tests.parts.writers import WRITERS, Call, cuts, found, run, summary

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
#: Formats whose calls are JSON with nothing around it.
BARE = ("tool_use", "function_call", "llama3")
#: Formats that give a call out while it is being read.
STREAMED = (*BARE, "json_tools", "phi4_mini", "gigachat", "harmony", "mistral", "deepseek_v3", "deepseek_v31",
            "kimi_k2", "functionary_v31", "functionary_v32")  # fmt: skip

#: What a call holds, by the name of the case.
WELL_FORMED: dict[str, list[Call]] = {
    "one call": [("save", {"path": "a.txt", "count": 3})],
    "nested objects": [("save", {"path": "a", "options": {"mode": {"bits": [1, 2]}, "keep": 4}})],
    "unicode": [("save", {"path": "Zürich/世界.txt", "text": "naïve 😀 résumé"})],
    "two calls": [("save", {"path": "a"}), ("save", {"path": "b", "count": 2})],
    "empty arguments": [("list_files", {})],
    "a list": [("save", {"path": "a", "tags": [1, 2, 3]})],
    "an empty and a long text": [("save", {"path": "", "text": "li\nbreak, (brackets) [x] {y} = \"q\" 'p' \\ "})],
    "large numbers": [("save", {"path": "0001", "count": 10**30 + 1, "options": {"n": 2**53 + 1, "x": 0.1}})],
    "what looks like other types": [("save", {"path": "null", "text": "true", "count": -7, "force": False})],
}
#: Marks of a format within a text.
INSIDE: dict[str, list[str]] = {
    "tool_use": ["}}", '{"tool_use": {"name": "x", "input": {}}}'],
    "function_call": ["}}", '{"function_call": {"name": "x", "arguments": {}}}'],
    "llama3": ["}", ";", '{"name": "x", "parameters": {}}'],
    "json_tools": ["</tool_call>", "<tool_call>", '{"name": "x", "arguments": {}}'],
    "granite": ["<|tool_call|>", "}]"],
    "phi4_mini": ["<|/tool_call|>", "<|tool_call|>", "functools["],
    "firefunction": ["functools[", "}]"],
    "nemotron": ["</TOOLCALL>", "}]</TOOLCALL>"],
    "apriel": ["</tool_calls>", "[BEGIN FINAL RESPONSE]"],
    "command_r": ["```", "]```", "Action:"],
    "command_r7b": ["<|END_ACTION|>", "]<|END_ACTION|>"],
    "apertus": ["<|tools_suffix|>", "<|inner_prefix|>"],
    "gigachat": ["<|function_call|>", "<|message_sep|>"],
    "harmony": ["<|call|>", "<|end|>", "<|channel|>final<|message|>"],
    "mistral": ["[TOOL_CALLS]", 'save[ARGS]{"a": 1}', "}"],
    "deepseek_v3": ["```<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
    "deepseek_v31": ["<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"],
    "kimi_k2": ["<|tool_calls_section_end|>", "<|tool_call_end|>"],
    "functionary_v31": ["</function>", "<function=save>{}</function>"],
    "functionary_v32": [">>>all\n", ">>>save\n{}"],
    "pythonic": ["<|tool_call_end|>", ")]"],
    "llama_pythonic": [")]", "<|python_end|>", "[save(path=1)]"],
    "function_gemma": ["<end_function_call>", "}"],
    "gemma4": ["<tool_call|>", "}"],
    "qwen3_coder": ["</tool_call>", "</function>", "</parameter>", "<parameter=x>", "<tool_call>", "<function=f>",
        "<tool_call>\n<function=save>\n<parameter=path>\nb\n</parameter>\n</function>\n</tool_call>"],
    "seed_oss": ["</seed:tool_call>", "</function>", "</parameter>",
        "<seed:tool_call>\n<function=save>\n<parameter=path>b</parameter>\n</function>\n</seed:tool_call>"],
    "minimax_m2": ["</minimax:tool_call>", "</invoke>", "</parameter>",
        '<minimax:tool_call>\n<invoke name="x">\n<parameter name="a">1</parameter>\n</invoke>\n</minimax:tool_call>'],
    "minimax_m3": ["</text>", "<tool_call>", "]<]minimax[", "</tool_call>"],
    "deepseek_v32": ["</｜DSML｜parameter>", "</｜DSML｜invoke>", "</｜DSML｜function_calls>"],
    "deepseek_v4": ["</｜DSML｜parameter>", "</｜DSML｜invoke>", "</｜DSML｜tool_calls>"],
    "glm47": ["</tool_call>", "<tool_call>", "</arg_value>", "<arg_key>a</arg_key>",
        "<tool_call>save\n<arg_key>path</arg_key>\n<arg_value>b</arg_value>\n</tool_call>"],
    "laguna": ["</tool_call>", "</arg_value>"],
    "longcat": ["</longcat_tool_call>", "</longcat_arg_value>"],
    "minicpm5": ["</function>", "</param>", '<function name="x"><param name="a">1</param></function>'],
    "muse_spark": ["</atem:function_calls>", "</atem:invoke>", "</atem:parameter>"],
    "kimi_k3": ["<|close|>tools<|sep|>", "<|close|>call<|sep|>", "<|close|>argument<|sep|>"],
}  # fmt: skip
#: Texts that hold no call, whatever stands in front of them.
MALFORMED = {
    "tool_use": '{"tool_use": {"name": "save", input: {}}}',
    "function_call": '{"function_call": {"name": "save", "arguments": [}}',
    "llama3": '{"name": "save", "parameters": {"path": }}',
    "json_tools": '<tool_call>{"name": "save", arguments: {}}</tool_call>',
    "granite": "<|tool_call|>save it",
    "phi4_mini": "<|tool_call|>save it<|/tool_call|>",
    "firefunction": "functools save it",
    "nemotron": "<TOOLCALL>save it</TOOLCALL>",
    "apriel": "<tool_calls>save it</tool_calls>",
    "command_r": "Action:\n```json\nsave it```",
    "command_r7b": "<|START_ACTION|>save it<|END_ACTION|>",
    "apertus": '<|tools_prefix|>[{"save": {}, "list_files": {}}]<|tools_suffix|>',
    "gigachat": "<|function_call|>save it",
    "harmony": "<|channel|>commentary to=functions.save <|constrain|>json<|message|>save it<|call|>",
    "mistral": "[TOOL_CALLS]save it",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>save\nit<｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜>save it<｜tool▁calls▁end｜>",
    "kimi_k2": "<|tool_calls_section_begin|>save it<|tool_calls_section_end|>",
    "functionary_v31": "<function=save it>{}</function>",
    "functionary_v32": 'save\n{"path": it}',
    "pythonic": "<|tool_call_start|>save it<|tool_call_end|>",
    "llama_pythonic": "<|python_start|>[save it]<|python_end|>",
    "function_gemma": "<start_function_call>save everything<end_function_call>",
    "gemma4": "<|tool_call>call:save{path:}}<tool_call|>",
    "qwen3_coder": "<tool_call><parameter=path>a</parameter></tool_call>",
    "seed_oss": "<seed:tool_call>save it</seed:tool_call>",
    "minimax_m2": "<minimax:tool_call>save it</minimax:tool_call>",
    "minimax_m3": "]<]minimax[>[<tool_call>save it]<]minimax[>[</tool_call>",
    "deepseek_v32": "<｜DSML｜function_calls>save it</｜DSML｜function_calls>",
    "deepseek_v4": "<｜DSML｜tool_calls>save it</｜DSML｜tool_calls>",
    "glm47": "<tool_call>please save it, thank you</tool_call>",
    "laguna": "<tool_call>{broken</tool_call>",
    "longcat": "<longcat_tool_call>please save</longcat_tool_call>",
    "minicpm5": "<function name=></function>",
    "muse_spark": "<atem:function_calls>save it</atem:function_calls>",
    "kimi_k3": "<|open|>tools<|sep|>save it<|close|>tools<|sep|>",
}


def marks(format: str) -> list[str]:
    """Where a text is worth cutting."""
    ends = [mark for form in KNOWN[format].forms for mark in (form.start, form.end) if mark]
    return [*ends, "</think>"]


def whole_and_cut(text: str, format: str, tools: Any = TOOLS) -> Any:
    """The result, equal for the whole text and for every cut of it."""
    expected = parse(text, tools, format)
    for chunks in cuts(text, marks(format)):
        _, parsed = run(ToolParser(tools, format), chunks)
        assert summary(parsed) == summary(expected), chunks
    return expected


def prefixed(format: str, call: str, text: str) -> str:
    """Text, and then calls, as a model of the format writes them."""
    if format == "harmony":
        return f"<|channel|>final<|message|>{text}<|end|><|start|>assistant{call}" if text else call
    if format == "functionary_v32":
        return f"all\n{text}>>>{call}" if text else call
    return f"{text}\n{call}" if text else call


def test_every_format_has_cases_and_a_source() -> None:
    assert set(FORMATS) == set(WRITERS) == set(INSIDE) == set(MALFORMED)
    assert len(FORMATS) == len(set(FORMATS)) == 36
    assert all(one.source and one.models for one in KNOWN.values())


@pytest.mark.parametrize("case", WELL_FORMED)
@pytest.mark.parametrize("format", FORMATS)
def test_a_well_formed_call_is_read_1(format: str, case: str) -> None:
    calls = WELL_FORMED[case]
    parsed = whole_and_cut(WRITERS[format](calls), format)
    assert found(parsed) == calls
    assert not parsed.text.strip()
    assert parsed.rejected_calls == ()
    assert all(json.loads(call.source) == call.arguments for call in parsed.tool_calls)


@pytest.mark.parametrize("format", FORMATS)
def test_marks_inside_a_string_are_text_3(format: str) -> None:
    for mark in INSIDE[format]:
        calls = [("save", {"path": "a", "text": f"before {mark} after"}), ("save", {"path": "b"})]
        parsed = whole_and_cut(WRITERS[format](calls), format)
        assert found(parsed) == calls, mark
        assert not parsed.text.strip()


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"harmony", "functionary_v32"}))
def test_text_around_calls_is_kept_8(format: str) -> None:
    call = WRITERS[format]([("save", {"path": "a"})]).strip()
    parsed = whole_and_cut(f"Let me look.\n\n{call}\nThen again.\n{call} Done < {{a}}.", format)
    assert found(parsed) == [("save", {"path": "a"})] * 2
    assert parsed.text == "Let me look.\n\n\nThen again.\n Done < {a}."


def test_text_around_calls_is_kept_in_channels_and_between_receivers_8() -> None:
    call = WRITERS["harmony"]([("save", {"path": "a"})])
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me look.<|end|>"
    )
    parsed = whole_and_cut(f"{text}<|start|>assistant{call}", "harmony")
    assert (parsed.reasoning, parsed.text, found(parsed)) == ("Hm.", "Let me look.", [("save", {"path": "a"})])
    call = WRITERS["functionary_v32"]([("save", {"path": "a"})])
    parsed = whole_and_cut(f"all\nLet me look.>>>{call}>>>{call}", "functionary_v32")
    assert (parsed.text, found(parsed)) == ("Let me look.", [("save", {"path": "a"})] * 2)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_malformed_stays_text_and_is_listed_10(format: str) -> None:
    text = prefixed(format, MALFORMED[format] + (" so." if format != "harmony" else ""), "Look:")
    parsed = whole_and_cut(text, format)
    assert parsed.tool_calls == ()
    assert [call.reason for call in parsed.rejected_calls] == ["malformed"]
    if format not in ("harmony", "functionary_v32"):
        assert parsed.text == text
    assert parsed.rejected_calls[0].source in parsed.text


@pytest.mark.parametrize("format", FORMATS)
def test_an_undeclared_tool_stays_text_and_is_listed_11(format: str) -> None:
    text = WRITERS[format]([("remove", {"path": "a"})])
    parsed = whole_and_cut(text, format)
    assert parsed.tool_calls == ()
    assert [(call.reason, call.name) for call in parsed.rejected_calls] == [("undeclared", "remove")]
    assert parsed.text == text.removesuffix("<|call|>" if format == "harmony" else "")
    assert found(parse(text, None, format)) == [("remove", {"path": "a"})]
    if format != "harmony":  # whose channels are read in any case
        assert parse(text, (), format).text == text
    assert parse(text, (), format).rejected_calls == ()


@pytest.mark.parametrize("format", FORMATS)
def test_a_declared_and_an_undeclared_call_give_the_one_and_list_the_other_11(format: str) -> None:
    text = WRITERS[format]([("remove", {"path": "x"}), ("save", {"path": "a"})])
    parsed = whole_and_cut(text.replace("; ", "\n") if format in BARE else text, format)
    assert found(parsed) == [("save", {"path": "a"})]
    assert [(call.reason, call.name) for call in parsed.rejected_calls] == [("undeclared", "remove")]


@pytest.mark.parametrize("format", FORMATS)
def test_a_call_that_is_cut_short_is_truncated_and_a_complete_one_without_its_end_counts_17(format: str) -> None:
    calls = [("save", {"path": "some/long/path", "count": 3})]
    text = WRITERS[format](calls).lstrip()
    form = KNOWN[format].forms[0]
    begin = (
        len(form.start)
        if form.start and not isinstance(form, ChannelForm)
        else text.index('save"' if format in BARE else "save") + 5
    )
    if format == "functionary_v32":
        begin = text.index("{") + 1
    if format == "llama_pythonic":
        begin = 1
    for stop in range(begin, len(text) + 1):
        parsed = parse(text[:stop], TOOLS, format)
        if parsed.tool_calls:
            assert found(parsed) == calls, text[:stop]
            assert parsed.rejected_calls == ()
        else:
            reasons = [call.reason for call in parsed.rejected_calls]
            assert reasons in (["truncated"], ["malformed"], [] if format in BARE else None), text[:stop]
            assert parsed.text == text[:stop] or format in STREAMED
            assert not reasons or parsed.rejected_calls[0].source in text[:stop]
    assert found(parsed) == calls


@pytest.mark.parametrize("format", FORMATS)
def test_any_beginning_of_two_calls_gives_the_first_one_whole_or_not_at_all_17(format: str) -> None:
    calls = [("save", {"path": "a/b", "count": 12}), ("save", {"path": "b", "text": "12 }"})]
    text = WRITERS[format](calls)
    for stop in range(len(text)):
        assert found(parse(text[:stop], TOOLS, format)) in ([], calls[:1], calls), text[:stop]


# mlx-lm's own parsers, where they have one for the format, as an oracle.

ORACLES = ("one call", "empty arguments", "unicode", "two calls")


def parsers() -> list[str]:
    mlx_lm_parsers = pytest.importorskip("mlx_lm.tool_parsers")
    return sorted(m.name for m in pkgutil.iter_modules(mlx_lm_parsers.__path__))


def test_every_parser_of_the_pinned_mlx_lm_has_a_format() -> None:
    assert set(parsers()) <= set(FORMATS)


@pytest.mark.parametrize("case", ORACLES)
def test_what_mlx_lms_own_parsers_read_is_read_likewise(case: str) -> None:
    calls, n_read = WELL_FORMED[case], 0
    for format in parsers():
        module = importlib.import_module(f"mlx_lm.tool_parsers.{format}")
        text = WRITERS[format](calls)
        if format != "mistral" and text.count(module.tool_call_start) > 1:
            continue  # its caller parts them
        inside = text.removeprefix(module.tool_call_start).removesuffix(module.tool_call_end)
        if (format, case) == ("longcat", "empty arguments"):
            continue  # it raises
        theirs = module.parse_tool_call(inside, TOOLS)
        theirs = theirs if isinstance(theirs, list) else [theirs]
        assert [(one["name"], one["arguments"]) for one in theirs] == found(parse(text, TOOLS, format)) == calls, format
        n_read += 1
    assert n_read >= 4


def test_an_id_that_the_model_wrote_is_kept_and_a_second_one_of_that_text_is_not() -> None:
    text = WRITERS["kimi_k2"]([("save", {"path": "a"}), ("list_files", {})])
    assert [call.id for call in parse(text, TOOLS, "kimi_k2").tool_calls] == [
        "functions.save:0",
        "functions.list_files:1",
    ]
    twice = '[TOOL_CALLS][{"name": "save", "id": "x"}, {"name": "save", "id": "x"}]'
    first, second = parse(twice, TOOLS, "mistral").tool_calls
    assert first.id == "x" != second.id


def test_reading_imports_no_model() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from agent_memory.toolcall import parse; "
        "assert parse('[TOOL_CALLS]f[ARGS]{}', None, 'mistral').tool_calls; "
        "assert not {'mlx', 'mlx_lm', 'numpy', 'transformers'} & {name.split('.')[0] for name in sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_bare_form_has_no_marks() -> None:
    bare = [form for one in KNOWN.values() for form in one.forms if isinstance(form, ObjectForm) and not form.start]
    assert len(bare) == len(BARE)
