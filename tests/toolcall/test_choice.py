"""Which format a model has: by its template and its vocabulary, with the reason; marks of reasoning likewise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from agent_memory import EchoRunner, Memory
from agent_memory.toolcall import FORMATS, ToolParser
from agent_memory.toolcall.choice import choice_of, choose
from agent_memory.toolcall.formats import KNOWN
from tests.grammar.test_grammar import Template
from tests.parts.writers import WRITERS, cuts, found, run, summary
from tests.toolcall.test_formats import TOOLS

#: What stands in the templates of models that have a format, in their own words: marks and little else.
TEMPLATES = {
    "harmony": "<|start|>assistant<|channel|>analysis<|message|>{{ thinking }}<|end|> to=functions.{{ name }}",
    "minimax_m3": "]<]minimax[>[<tool_call>{{ calls }}",
    "minimax_m2": '<minimax:tool_call><invoke name="{{ name }}">',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ name }}\\n```json\\n",
    "deepseek_v31": "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>",
    "deepseek_v32": "{% set dsml = '｜DSML｜' %}<{{ dsml }}function_calls>",
    "deepseek_v4": "{% set dsml = '｜DSML｜' %}<{{ dsml }}tool_calls>",
    "gemma4": "<|tool_call>call:{{ name }}<tool_call|>",
    "function_gemma": "<start_function_call>call:{{ name }}",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>{{ id }}",
    "kimi_k3": "{{ '<|open|>' + tag + '<|sep|>' }}{{ '<|close|>' + tag + '<|sep|>' }}",
    "longcat": "<longcat_tool_call>{{ name }}<longcat_arg_key>",
    "glm47": "<tool_call>{{ name }}\n<arg_key>{{ key }}</arg_key><think>",
    "seed_oss": "<seed:tool_call>\n<function={{ name }}>\n<parameter={{ key }}>",
    "muse_spark": "<atem:function_calls>",
    "minicpm5": '<function name="{{ name }}"><param name="{{ key }}">',
    "qwen3_coder": "<tool_call>\n<function={{ name }}>\n<parameter={{ key }}>",
    "functionary_v32": ">>>${recipient}\n${content} {{ '>>>all\n' }}",
    "functionary_v31": "<{start_tag}={function_name}> {{ '<function=' + name + '>' }} <|python_tag|>",
    "command_r7b": "<|START_ACTION|>[{{ calls }}]<|END_ACTION|><|START_THINKING|>",
    "command_r": "Write 'Action:' ... \"tool_name\": title ... use the `directly-answer` tool",
    "nemotron": "<TOOLCALL>[{{ calls }}]</TOOLCALL>",
    "apriel": "<tool_calls>[{{ calls }}]</tool_calls>",
    "apertus": "{{ '<|tools_prefix|>[' }}",
    "gigachat": "{% set role_sep = '<|role_sep|>' %}function call",
    "phi4_mini": "<|tool_call|>{{ call }}<|/tool_call|>",
    "firefunction": "formatted as functools[...] <|eot_id|>",
    "granite": "<|start_of_role|>assistant: respond only with <|tool_call|>",
    "pythonic": "List of tools: <|tool_list_start|>[",
    "llama_pythonic": "[func_name1(params_name1=params_value1)]",
    "llama3": "<|python_tag|>{{ call }}",
    "mistral": "[TOOL_CALLS]{{ calls }}",
    "json_tools": '<tool_call>{"name": {{ tool_call.name }}}</tool_call>',
}


@pytest.mark.parametrize("format", TEMPLATES)
def test_a_format_is_told_by_its_template_and_the_reason_names_what_was_seen(format: str) -> None:
    choice = choose(f"{{% for m in messages %}}{TEMPLATES[format]}{{% endfor %}}")
    assert choice.format == format
    assert choice.reason.startswith("its chat template holds '")


def test_every_format_of_a_template_can_be_told() -> None:
    assert set(TEMPLATES) == set(FORMATS) - {"tool_use", "function_call", "laguna"}


def test_a_vocabulary_tells_where_the_template_does_not_and_a_configuration_after_both() -> None:
    tokens = {"<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>"}
    choice = choose("{{ messages }}", tokens)
    assert (choice.format, choice.reasoning) == ("pythonic", ("<think>", "</think>"))
    assert choice.reason == "its vocabulary has the tokens '<|tool_call_start|>' and '<|tool_call_end|>'"
    assert choose("{{ messages }}", (), "laguna").reason == "its configuration names 'laguna'"
    assert choose(None).reason == "it has no chat template: every JSON form is read"
    assert choose("{{ x }}").format is None


def test_a_tokenizer_that_has_made_no_choice_tells_its_format() -> None:
    assert choice_of(Template("mistral")).format == "mistral"
    assert choice_of(Template(None)).reasoning == ("<think>", "</think>")


@pytest.mark.parametrize(
    ("template", "vocabulary", "marks"),
    [
        ("<seed:tool_call>", (), ("<seed:think>", "</seed:think>")),
        ("<|START_ACTION|>", (), ("<|START_THINKING|>", "<|END_THINKING|>")),
        ("<|tools_prefix|>", (), ("<|inner_prefix|>", "<|inner_suffix|>")),
        ("<tool_calls>[", (), ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]")),
        ("[TOOL_CALLS] [THINK]{{ t }}[/THINK]", (), ("[THINK]", "[/THINK]")),
        ("{{ m.content.split('</think>')[-1] }}", (), ("<think>", "</think>")),
        ("", {"[THINK]", "[/THINK]"}, ("[THINK]", "[/THINK]")),
        ("<reasoning>{{ t }}</reasoning>", (), ("<reasoning>", "</reasoning>")),
        ("{{ m.content }}", (), None),
    ],
)
def test_marks_of_reasoning_are_told_likewise(template: str, vocabulary: Any, marks: Any) -> None:
    assert choose(template, vocabulary).reasoning == marks


@pytest.mark.parametrize("format", sorted(one.name for one in KNOWN.values() if one.reasoning))
def test_thoughts_in_a_formats_own_marks_are_reasoning_also_where_the_prompt_began_them_12(format: str) -> None:
    marks = KNOWN[format].reasoning
    assert marks is not None
    call = WRITERS[format]([("save", {"path": "a"})])
    for begun in (False, True):
        text = f"{'' if begun else marks[0]}maybe {call} or not{marks[1]}\n\nWell.\n{call}"
        for chunks in cuts(text, marks):
            parser = ToolParser(TOOLS, format, reasoning=marks, in_reasoning=begun)
            parsed = run(parser, chunks)[1]
            assert (parsed.reasoning, parsed.text.strip()) == (f"maybe {call} or not", "Well.")
            assert found(parsed) == [("save", {"path": "a"})]


def test_marks_around_an_answer_are_no_text() -> None:
    text = "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Hello.<|END_RESPONSE|>"
    parsed = run(ToolParser(TOOLS, "command_r7b", reasoning=KNOWN["command_r7b"].reasoning), [text])[1]
    assert (parsed.reasoning, parsed.text) == ("Hm.", "Hello.")
    parsed = run(
        ToolParser(TOOLS, "granite", reasoning=("<think>", "</think>")), ["<think>Hm.</think>\n<response>Hi</response>"]
    )[1]
    assert (parsed.reasoning, parsed.text) == ("Hm.", "Hi")


def test_marks_around_an_answer_are_no_text_where_a_model_has_no_marks_of_reasoning_and_no_tools() -> None:
    assert run(ToolParser((), "functionary_v32", reasoning=None), ["all\nHello."])[1].text == "Hello."
    assert run(ToolParser((), "functionary_v32", reasoning=None), ["save\n{}"])[1].text == "save\n{}"
    assert run(ToolParser(TOOLS, "gigachat", reasoning=None), ["Hello.<|message_sep|>"])[1].text == "Hello."


def test_kimi_opens_a_call_out_of_its_thoughts_and_others_do_not() -> None:
    call = WRITERS["kimi_k2"]([("save", {"path": "a"})])
    for chunks in cuts(f"<think>I save it. {call}", ["<|tool_calls_section_begin|>"]):
        parsed = run(ToolParser(TOOLS, "kimi_k2"), chunks)[1]
        assert (parsed.reasoning, found(parsed)) == ("I save it. ", [("save", {"path": "a"})])
    call = WRITERS["qwen3_coder"]([("save", {"path": "a"})])
    assert run(ToolParser(TOOLS, "qwen3_coder"), [f"<think>I save it. {call}"])[1].tool_calls == ()


ARGUMENTS = '{"path": "a", "count": 2}'
CALLED = [("save", {"path": "a", "count": 2})]
TO_SAVE = "<|channel|>commentary to=functions.save"
HM = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
LOOK = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
JSON = "<|constrain|>json<|message|>"
CHANNELS: list[tuple[str, Any]] = [
    ("<|channel|>final<|message|>Hello.<|return|>", ("Hello.", "", [])),
    (f"{HM}<|channel|>final<|message|>Hello.", ("Hello.", "Hm.", [])),
    (f"{TO_SAVE} {JSON}{ARGUMENTS}<|call|>", ("", "", CALLED)),
    (f"{TO_SAVE}{JSON}{ARGUMENTS}", ("", "", CALLED)),
    (f" to=functions.save<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>", ("", "", CALLED)),
    (f"{HM} to=functions.save<|channel|>commentary {JSON}{ARGUMENTS}<|call|>", ("", "Hm.", CALLED)),
    (f"<|channel|>analysis to=functions.save code<|message|>{ARGUMENTS}<|call|>", ("", "", CALLED)),
    (f"{LOOK}{TO_SAVE} {JSON}{ARGUMENTS}<|call|>", ("I look.", "", CALLED)),
    (
        f"{TO_SAVE} {JSON}\n{ARGUMENTS}\n<|call|><|start|>assistant{TO_SAVE} {JSON}{ARGUMENTS}<|call|>",
        ("", "", CALLED * 2),
    ),
    ("<|channel|>analysis<|message|>to=functions.save {}<|end|>", ("", "to=functions.save {}", [])),
    ("Plain words, and no channel.", ("Plain words, and no channel.", "", [])),
    ("<|channel|>final<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>Two.", ("One.Two.", "", [])),
]


@pytest.mark.parametrize(("text", "expected"), CHANNELS)
def test_channels_are_answer_reasoning_and_calls(text: str, expected: Any) -> None:
    answer, thoughts, calls = expected
    for chunks in cuts(text, ["<|channel|>", "<|message|>", "<|end|>", "<|call|>"]):
        parsed = run(ToolParser(TOOLS, "harmony"), chunks)[1]
        assert (parsed.text.strip(), parsed.reasoning, found(parsed)) == (answer, thoughts, calls), chunks
        assert parsed.rejected_calls == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<|channel|>commentary to=python code<|message|>print(1)<|call|>", "malformed"),
        ("<|channel|>commentary to=browser.search <|constrain|>json<|message|>{}<|call|>", "undeclared"),
        ('<|channel|>commentary to=functions.save <|constrain|>json<|message|>{"path": "a"', "truncated"),
        ("<|channel|>commentary to=functions.save <|constrain|>json<|message|>", "truncated"),
        ("<|channel|>commentary to=functions.sa", "truncated"),
        ("<|channel|>commentary to=functions.save <|constrain|>json<|message|>{} and more<|call|>", "malformed"),
    ],
)
def test_messages_to_functions_that_are_no_calls_are_rejected_with_a_reason(text: str, reason: str) -> None:
    whole = run(ToolParser(TOOLS, "harmony"), [text])[1]
    assert [call.reason for call in whole.rejected_calls] == [reason]
    for chunks in cuts(text, ["<|channel|>", "<|message|>", "<|call|>"]):
        assert summary(run(ToolParser(TOOLS, "harmony"), chunks)[1]) == summary(whole), chunks


def test_channels_are_read_where_no_tool_is_declared() -> None:
    runner = EchoRunner("<|channel|>analysis<|message|>Hm.<|start|>assistant<|channel|>final<|message|>Hello.")
    runner._tokenizer = Template("harmony")
    with Memory(runner, ":memory:") as memory:
        reply = memory.generate("hi")
    assert (reply.text, reply.reasoning) == ("Hello.", "Hm.")


def test_the_page_on_tools_lists_every_format() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| (.+?) \|", page, re.MULTILINE)
    assert dict(listed) == {one.name: one.models for one in KNOWN.values()}
