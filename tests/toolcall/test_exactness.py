"""A call has the arguments that the model wrote, or is rejected with a reason: never others, never none instead."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from agent_memory import EchoRunner, Memory
from agent_memory.toolcall import FORMATS, ToolParser, parse
from tests.grammar.test_grammar import Template
from tests.parts.writers import WRITERS, cuts, dumps, found, run, summary
from tests.toolcall.test_formats import marks

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}, "text": {"type": "string"}}}
TOOLS = [{"name": "do", "input_schema": NUMBER}, {"name": "other", "input_schema": NUMBER}]


def check(text: str, format: str | None = None, tools: Any = TOOLS) -> Any:
    """The result, equal for the whole text and for every cut of it."""
    expected = parse(text, tools, format)
    for chunks in cuts(text, marks(format or "json_tools")):
        assert summary(run(ToolParser(tools, format), chunks)[1]) == summary(expected), chunks
    return expected


def test_two_functions_in_one_pair_of_marks_are_two_calls() -> None:
    text = (
        "<tool_call>\n<function=do>\n<parameter=n>\n1\n</parameter>\n</function>\n"
        "<function=other>\n<parameter=n>\n2\n</parameter>\n</function>\n</tool_call>"
    )
    assert found(check(text, "qwen3_coder")) == [("do", {"n": 1}), ("other", {"n": 2})]
    merged = text.replace("</function>\n<function=other>\n", "")
    parsed = check(merged, "qwen3_coder")  # one function, and an argument that it has twice
    assert (parsed.tool_calls, parsed.rejected_calls[0].detail) == ((), "it has the argument 'n' twice")


@pytest.mark.parametrize(
    "value",
    [
        "a </parameter> b",
        "<tool_call>\n<function=other>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>",
        "<function=other></function> and </function></tool_call> x",
        "see <parameter=n> and <function=other> here",
        "</function>\n</tool_call> is how a call ends",
    ],
)
def test_markup_in_a_value_is_part_of_the_value(value: str) -> None:
    text = f"<tool_call>\n<function=do>\n<parameter=text>\n{value}\n</parameter>\n</function>\n</tool_call> end"
    parsed = check(text, "qwen3_coder")
    assert found(parsed) == [("do", {"text": value})]
    assert parsed.text == " end"


def test_a_call_that_begins_in_a_value_and_never_ends_does_not_swallow_what_follows() -> None:
    value = "write <function=other>\n<parameter=n> first"
    one = f"<tool_call>\n<function=do>\n<parameter=text>\n{value}\n</parameter>\n</function>\n</tool_call>"
    two = "<tool_call>\n<function=do>\n<parameter=n>\n2\n</parameter>\n</function>\n</tool_call>"
    parsed = check(f"{one}\nThen {two}.", "qwen3_coder")
    assert found(parsed) == [("do", {"text": value}), ("do", {"n": 2})]
    assert parsed.text == "\nThen ."


def test_a_call_that_is_cut_within_a_value_that_quotes_an_end_is_no_call() -> None:
    begun = "<tool_call>\n<function=do>\n<parameter=text>\nuse </parameter>\n</function>"
    assert parse(f"{begun} to cl", TOOLS, "qwen3_coder").tool_calls == ()
    assert found(parse(begun, TOOLS, "qwen3_coder")) == [
        ("do", {"text": "use "})
    ]  # complete, as far as anyone can tell


def test_a_call_without_marks_around_its_function_is_read() -> None:
    text = "Well.\n<function=do>\n<parameter=n>\n12\n</parameter>\n</function>"
    assert found(check(text, "qwen3_coder")) == [("do", {"n": 12})]
    assert found(check('<tool_call>\n{"name": "do", "arguments": {"n": 3}}\n</tool_call>', "qwen3_coder")) == [
        ("do", {"n": 3})
    ]


@pytest.mark.parametrize("key", ["arguments", "parameters", "input"])
@pytest.mark.parametrize(
    "form",
    ['<tool_call>{{"name": "do", "{0}": {{"n": 1}}}}</tool_call>',
     '{{"tool_use": {{"name": "do", "{0}": {{"n": 1}}}}}}',
     '{{"function_call": {{"{0}": {{"n": 1}}, "name": "do"}}}}',
     '<tool_call>[{{"name": "do", "{0}": {{"n": 1}}}}]</tool_call>'],
)  # fmt: skip
def test_arguments_may_stand_under_any_of_three_names(form: str, key: str) -> None:
    assert found(check(form.format(key))) == [("do", {"n": 1})]


@pytest.mark.parametrize("members", ['"args": {"n": 1}', '"kwargs": {"n": 1}', '"n": 1', '"n": 1, "text": "a"'])
@pytest.mark.parametrize(
    "form", ['<tool_call>{{"name": "do", {0}}}</tool_call>', '{{"tool_use": {{"name": "do", {0}}}}}',
             '{{"function_call": {{"name": "do", {0}}}}}', '<tool_call>[{{"name": "do", {0}}}]</tool_call>'],
)  # fmt: skip
def test_a_call_with_members_and_no_arguments_is_rejected_and_never_run_with_none(form: str, members: str) -> None:
    text = form.format(members)
    parsed = check(text)
    assert (parsed.tool_calls, parsed.text) == ((), text)
    [rejected] = parsed.rejected_calls
    assert rejected.reason == "malformed"
    assert "and no arguments, parameters or input" in rejected.detail


def test_two_sets_of_arguments_under_two_names_are_rejected() -> None:
    for members in ('"arguments": {"n": 1}, "parameters": {"n": 2}', '"input": {}, "arguments": {"n": 2}'):
        parsed = check(f'<tool_call>{{"name": "do", {members}}}</tool_call>')
        assert (parsed.tool_calls, parsed.rejected_calls[0].detail) == ((), "it has more than one set of arguments")


@pytest.mark.parametrize("between", ["\n", ", ", ",\n", " ", ""])
def test_two_objects_in_one_pair_of_marks_are_two_calls(between: str) -> None:
    one, two = ('{"name": "do", "arguments": {"n": 1}}', '{"name": "other", "arguments": {"n": 2}}')
    parsed = check(f"So: <tool_call>\n{one}{between}{two}\n</tool_call> Done.")
    assert found(parsed) == [("do", {"n": 1}), ("other", {"n": 2})]
    assert parsed.text == "So:  Done."


@pytest.mark.parametrize("surplus", ["}", "}}", "}\n", " } "])
def test_a_surplus_brace_is_no_text_of_the_answer(surplus: str) -> None:
    parsed = check(f'<tool_call>\n{{"name": "do", "arguments": {{"n": 1}}}}{surplus}</tool_call>\nDone.')
    assert (found(parsed), parsed.text, parsed.rejected_calls) == ([("do", {"n": 1})], "\nDone.", ())


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('[TOOL_CALLS]do[CALL_ID]123456789[ARGS]{"n": 1}', ["123456789"]),
        ('[TOOL_CALLS]do[CALL_ID]a1[ARGS]{"n": 1}[TOOL_CALLS]other[CALL_ID]b2[ARGS]{"n": 2}', ["a1", "b2"]),
        ('[TOOL_CALLS]do[ARGS]{"n": 1}', None),
        ('[TOOL_CALLS]do{"n": 1}[TOOL_CALLS]other{"n": 2}', None),
        ('[TOOL_CALLS] [{"name": "do", "arguments": {"n": 1}, "id": "abc"}]', ["abc"]),
    ],
)
def test_mistrals_calls_with_and_without_ids(text: str, ids: list[str] | None) -> None:
    parsed = check(text, "mistral")
    assert found(parsed) == [("do", {"n": 1}), ("other", {"n": 2})][: len(parsed.tool_calls)]
    assert parsed.tool_calls
    assert ids is None or [call.id for call in parsed.tool_calls] == ids


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ("do n=12 text=12345", {"n": 12, "text": "12345"}),
        ('do text="a b" n=3', {"text": "a b", "n": 3}),
        ('do\n{"n": 4}', {"n": 4}),
        ('{"name": "do", "parameters": {"n": 5}}', {"n": 5}),
        ("do", {}),
    ],
)
def test_glms_shorter_ways_to_write_a_call(inside: str, arguments: dict[str, Any]) -> None:
    assert found(check(f"<tool_call>{inside}</tool_call>", "glm47")) == [("do", arguments)]


def test_phi_writes_one_call_in_marks_or_a_list_behind_a_word() -> None:
    for text in ('<|tool_call|>{"name": "do", "arguments": {"n": 1}}<|/tool_call|>',
                 '<|tool_call|>[{"type": "function", "name": "do", "arguments": {"n": 1}}]<|/tool_call|>',
                 'functools[{"name": "do", "arguments": {"n": 1}}]'):  # fmt: skip
        assert found(check(text, "phi4_mini")) == [("do", {"n": 1})]


def test_json_in_place_of_elements_or_literals_is_read() -> None:
    dsml = '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="do">\n{"n": 1}\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
    assert found(check(dsml, "deepseek_v4")) == [("do", {"n": 1})]
    listed = '<|tool_call_start|>[{"name": "do", "arguments": {"n": 1}, "id": "x"}]<|tool_call_end|>'
    assert found(check(listed, "pythonic")) == [("do", {"n": 1})]
    block = '<|open|>json type="object"<|sep|>{"n": 1}<|close|>json<|sep|>'
    text = (
        f'<|open|>tools<|sep|><|open|>call tool="do" index="1"<|sep|>{block}<|close|>call<|sep|><|close|>tools<|sep|>'
    )
    assert found(check(text, "kimi_k3")) == [("do", {"n": 1})]


ORDER = {
    "user": {"type": "integer"},
    "note": {"type": "string"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "ship": {"type": "object", "properties": {"zip": {"type": "string"}, "fast": {"type": "boolean"}}},
    "items": {"type": "array", "items": {"type": "object", "properties": {"qty": {"type": "integer"}}}},
}
ORDERED = {
    "user": 42,
    "note": "Front desk",
    "tags": ["1", "b"],
    "ship": {"zip": "018956", "fast": True},
    "items": [{"qty": 2}, {"qty": 5}],
}


def test_a_tree_of_elements_becomes_objects_and_arrays() -> None:
    tools = [{"name": "do", "input_schema": {"type": "object", "properties": ORDER}}]
    assert found(check(WRITERS["minimax_m3"]([("do", ORDERED)]), "minimax_m3", tools)) == [("do", ORDERED)]

    def tree(*tags: str) -> str:
        return "".join(f"]<]minimax[>[{tag}" for tag in ("<tool_call>", *tags, "</tool_call>"))

    repeated = tree('<invoke name="do">', "<more>", "<tag>a", "</tag>", "<tag>b", "</tag>", "</more>", "</invoke>")
    assert found(check(repeated, "minimax_m3", tools)) == [("do", {"more": {"tag": ["a", "b"]}})]
    broken = tree('<invoke name="do">', "<note>a", "</user>", "</invoke>")
    assert check(broken, "minimax_m3", tools).rejected_calls[0].reason == "malformed"


# The tool loop: functions get the model's own values.

GIVEN: list[Any] = []


def save(path: str, count: int, note: str | None = None, tags: list[str] | None = None, force: bool = False) -> str:
    """Save something."""
    GIVEN.append((path, count, note, tags, force))
    return "saved"


WANTED = {"path": "null", "count": 1234567890123456789012345, "note": "12345", "tags": ["1", "true"], "force": True}


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model says is left as it is: nothing holds it to a schema."""
    monkeypatch.setitem(sys.modules, "llguidance", None)


@pytest.mark.parametrize("is_held", [True, False], ids=["held", "free"])
@pytest.mark.parametrize("format", FORMATS)
def test_run_tools_runs_a_call_of_every_format_with_the_values_that_the_model_wrote(
    format: str, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_held:
        monkeypatch.setitem(sys.modules, "llguidance", None)
    said = [WRITERS[format]([("save", WANTED)]), "<|channel|>final<|message|>Done." if format == "harmony" else "Done."]
    runner = EchoRunner(lambda asked, ids: said.pop(0))
    runner._tokenizer = Template(format)
    GIVEN.clear()
    with Memory(runner, ":memory:") as memory:
        reply = memory.run_tools("ann", "Save it.", [save], max_tokens=4_000)
    assert tuple(WANTED.values()) == GIVEN[0]
    assert (len(GIVEN), reply.text) == (1, "Done.")


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("json_tools", f"<tool_call>{dumps({'name': 'save', 'args': WANTED})}</tool_call>"),
        ("tool_use", dumps({"tool_use": {"name": "save", **WANTED}})),
        ("qwen3_coder", WRITERS["qwen3_coder"]([("save", {"path": "a", "count": 1})]).replace("=count", "=path")),
        ("minimax_m2", '<minimax:tool_call>\n<invoke name="save">\npath: a\n</invoke>\n</minimax:tool_call>'),
    ],
)  # fmt: skip
def test_run_tools_runs_nothing_of_which_the_arguments_are_uncertain(format: str, said: str, no_extra: None) -> None:
    runner = EchoRunner(said)
    runner._tokenizer = Template(format)
    GIVEN.clear()
    with Memory(runner, ":memory:") as memory:
        reply = memory.run_tools("ann", "Save it.", [save], max_tokens=4_000)
    assert (GIVEN, reply.tool_calls) == ([], ())
    assert [call.reason for call in reply.rejected_calls] == ["malformed"]


def test_a_value_of_the_wrong_type_is_an_error_that_the_model_reads_and_no_changed_value(no_extra: None) -> None:
    said = [WRITERS["qwen3_coder"]([("save", {"path": "a", "count": 1})]).replace("\n1\n", "\nmany\n"), "Sorry."]
    runner = EchoRunner(lambda asked, ids: said.pop(0))
    runner._tokenizer = Template("qwen3_coder")
    GIVEN.clear()
    with Memory(runner, ":memory:") as memory:
        assert memory.run_tools("ann", "Save it.", [save], max_tokens=4_000).text == "Sorry."
        assert GIVEN == []
        [result] = [message for message in memory.agent("ann").messages if message.role == "tool"]
        assert "wrong type: count" in result.content


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"n": 1, "n": 2}', "it has 'n' twice, with two values"),
        ('{"n": 1, "text": {"a": [{"b": 1, "b": "1"}]}}', "it has 'b' twice, with two values"),
        ('{"n": 1, "n": true}', "it has 'n' twice, with two values"),
        ('{"n": 1, "n": 1.0}', "it has 'n' twice, with two values"),
    ],
)
def test_an_argument_with_two_values_rejects_the_call_in_json_as_in_tags(arguments: str, said: str) -> None:
    parsed = check(f'<tool_call>{{"name": "do", "arguments": {arguments}}}</tool_call>', "json_tools")
    assert (parsed.tool_calls, said in parsed.rejected_calls[0].detail) == ((), True)
    parsed = check('<tool_call>{"name": "do", "name": "other", "arguments": {}}</tool_call>', "json_tools")
    assert (parsed.tool_calls, "'name' twice" in parsed.rejected_calls[0].detail) == ((), True)


def test_an_argument_that_comes_twice_with_one_value_is_that_value() -> None:
    parsed = check('<tool_call>{"name": "do", "arguments": {"n": 1, "n": 1}}</tool_call>', "json_tools")
    assert found(parsed) == [("do", {"n": 1})]
    assert not parsed.rejected_calls
