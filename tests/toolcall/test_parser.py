"""The parser's policy, by the numbers of the requirements that it answers (named at the end of each test)."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from agent_memory.errors import UnsupportedParameterError
from agent_memory.toolcall import FORMATS, ToolParser, parse
from agent_memory.types import CallArguments, CallEnd, CallStart, Markup, Reasoning, Text
from tests.parts.writers import WRITERS, cut, cuts, dumps, found, run, summary

JSON_FORMATS = ("tool_use", "function_call", "json_tools", "llama3")
MARKS = ("<tool_call>", "</tool_call>", "<|python_tag|>", "<think>", "</think>", "{", "}", "```", "\n")
ADD = {"name": "add", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}


def check(text: str, tools: Any = None, format: str | None = None) -> Any:
    """The result, equal for the whole text and for every cut of it (requirement 1)."""
    expected = parse(text, tools, format)
    for chunks in cuts(text, MARKS):
        assert summary(run(ToolParser(tools, format), chunks)[1]) == summary(expected), chunks
    return expected


@pytest.mark.parametrize("blank", ["", " ", "\n  ", "\r\n\t"])
@pytest.mark.parametrize(("outer", "inner"), [("tool_use", "input"), ("function_call", "arguments")])
def test_both_wrapped_forms_give_one_call_whatever_blanks_are_between_2(outer: str, inner: str, blank: str) -> None:
    tokens = ["{", f'"{outer}"', ":", "{", '"name"', ":", '"add"', ",", f'"{inner}"', ":", '{"a":1}', "}", "}"]
    parsed = check(blank.join(tokens))
    assert found(parsed) == [("add", {"a": 1})]
    assert parsed.text == ""


@pytest.mark.parametrize("format", JSON_FORMATS)
@pytest.mark.parametrize(
    "value",
    ["}", "{", '"', "\\", "\\\\\"", "</tool_call>", "<think>", "</think>", "{test1,test2", "}}]", "\n\t\r", "```",
     '{"tool_use": {"name": "x", "input": {}}}', '<tool_call>{"name": "x", "arguments": {}}</tool_call>'],
)  # fmt: skip
def test_a_string_argument_round_trips_whatever_it_holds_3(format: str, value: str) -> None:
    parsed = check(WRITERS[format]([("add", {"a": value, "b": [value, {"c": value}]})]))
    assert found(parsed) == [("add", {"a": value, "b": [value, {"c": value}]})]
    assert (parsed.text, parsed.rejected_calls) == ("", ())


@pytest.mark.parametrize("ascii_only", [False, True])
def test_characters_beyond_ascii_arrive_as_they_were_written_4(ascii_only: bool) -> None:
    source = json.dumps({"city": "Zürich 世界 😀"}, ensure_ascii=ascii_only)
    parsed = check(f'<tool_call>{{"name": "add", "arguments": {source}}}</tool_call>')
    assert parsed.tool_calls[0].source == source
    assert parsed.tool_calls[0].arguments == {"city": "Zürich 世界 😀"}


@pytest.mark.parametrize("arguments", ["", ', "arguments": {}', ', "arguments": null', ', "arguments": ""'])
def test_a_call_without_arguments_has_an_empty_object_5(arguments: str) -> None:
    [call] = check(f'<tool_call>{{"name": "now"{arguments}}}</tool_call>').tool_calls
    assert (call.arguments, call.source) == ({}, "{}")


def test_arguments_in_a_string_are_the_object_that_it_holds_6() -> None:
    inner = dumps({"a": 'it\'s "1"', "b": {"c": "ü"}})
    [call] = check(f'<tool_call>{{"name": "add", "arguments": {dumps(inner)}}}</tool_call>').tool_calls
    assert (call.arguments, call.source) == (json.loads(inner), inner)


@pytest.mark.parametrize("value", ['"{hello world}"', '"text"', "[1, 2]", "[null]", "7", "true", '"[1]"', '"7"'])
def test_any_other_arguments_make_an_invalid_call_and_no_crash_6(value: str) -> None:
    text = f'<tool_call>{{"name": "add", "arguments": {value}}}</tool_call>'
    parsed = check(text)
    assert (parsed.tool_calls, parsed.text) == ((), text)
    assert [(call.reason, call.name) for call in parsed.rejected_calls] == [("malformed", "add")]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (r'{"name": "add", "arguments": {"a": 1e999}}', "1e999 is too large"),
        (r'{"name": "add", "arguments": {"a": [-1E+400]}}', "too large"),
        (r'{"name": "add", "arguments": "{\"a\": 1e999}"}', "too large"),
        (r'{"name": "add", "arguments": "{\"a\": \"\ud800\"}"}', "surrogates"),
        (r'{"name": "add", "arguments": "{\"a\": \"\\ud800\"}"}', "surrogates"),
        (r'[{"name": "add", "arguments": {}, "id": "\ud800"}]', "surrogates"),
        (r'[{"name": "\ud800", "arguments": {}}]', "surrogates"),
        ('{"name": "add", "arguments": {"a": "\ud800"}}', "surrogates"),
    ],
)
def test_what_cannot_be_written_as_json_again_is_no_call_6(body: str, said: str) -> None:
    parsed = check(f"<tool_call>{body}</tool_call>")
    assert parsed.tool_calls == ()
    [rejected] = parsed.rejected_calls
    assert rejected.reason == "malformed"
    assert said in rejected.detail


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_several_calls_keep_their_order_and_have_their_own_ids_7(format: str) -> None:
    calls = [("add", {"a": i}) for i in range(5)]
    events, parsed = run(ToolParser(), [WRITERS[format](calls)])  # all in one delta
    assert found(parsed) == found(check(WRITERS[format](calls))) == calls
    assert [e.index for e in events if isinstance(e, CallStart)] == [0, 1, 2, 3, 4]
    assert len({call.id for call in parsed.tool_calls}) == 5


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_text_before_between_and_after_calls_is_kept_in_order_8(format: str) -> None:
    a, b = (WRITERS[format]([("add", {"a": i})]) for i in (1, 2))
    events, parsed = run(ToolParser(), [f"First.\n{a} Second.\n\n{b}\n\nThird {{}}."])
    assert parsed.text == "First.\n Second.\n\n\n\nThird {}."
    order = [type(e) for e in events if isinstance(e, (Text, CallStart))]
    assert order == [Text, CallStart, Text, CallStart, Text]
    check(f"First.\n{a} Second.\n\n{b}\n\nThird.")


def test_blanks_that_touch_nothing_but_calls_are_no_text_8() -> None:
    call = WRITERS["json_tools"]([("add", {})])
    assert check(f" \n{call}\n\n{call}\n").text == ""
    assert check(f"{call} .").text == " ."


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n\n", "plain", "<", "{", "a {", '{"tool', "<tool_cal", "Use <tool_use> here.", '{"answer": 42}',
     '{"tool_uses": {}}', '{"tool_us', '{"name": "Bob", "age": 3}', '{"name": "Bob"}', "{}", "[]", "{{}}", "[{}]",
     'Write {"tool_use": {"name": "f"}} to call.', '  x {"function_call": {}}', "``` {", "{\n{\n{", "a\n{ b }\n",
     '- {"tool_use": {"name": "f", "input": {}}}', "\ufeff", "\u2028{", '{"\\u0074ool_use": {"name": "f"}}',
     "</tool_call>", "</think>", "a <think> b", "~~~\n<think>\n~~~", "`" * 7, "{" * 300],
)  # fmt: skip
def test_a_text_without_a_call_comes_back_as_it_is_9(text: str) -> None:
    parsed = check(text)
    assert parsed.text == text
    assert (parsed.tool_calls, parsed.reasoning, parsed.rejected_calls) == ((), "", ())


@pytest.mark.parametrize("fence", ["```", "~~~"])
def test_bare_json_in_a_code_fence_is_text_9(fence: str) -> None:
    call = WRITERS["tool_use"]([("add", {})])
    text = f"{fence}json\n{call}\n{fence}\n"
    assert check(text).text == text
    assert found(check(text + call)) == [("add", {})]
    other = {"```": "~~~", "~~~": "```"}[fence]
    assert check(f"{fence}\n{other}\n{call}\n{fence}").tool_calls == ()


def test_bare_json_is_a_call_at_the_beginning_of_a_line_only_9() -> None:
    call = WRITERS["function_call"]([("add", {})])
    assert check(f"so {call}").tool_calls == ()
    assert found(check(f"so\n  {call} and")) == [("add", {})]
    assert found(check(f"{call} {call}")) == [("add", {})] * 2  # right behind a call


@pytest.mark.parametrize(
    "body",
    ['{"name": "add", "arguments": {"a": 1]}', '{"name" "add"}', '{"name": 3}', "{,}", "nothing", '{"arguments": {}}',
     '{"name": "add", "arguments": {}, "arguments": {}, }', '{"name": "add", "arguments": "{", "x": \x01}', "[{}]",
     '["add"]', "[]", '{"name": ""}', '{"name": "add", "arguments": "{\\"a\\": NaN}"}', '{"name": "\\ud800"}'],
)  # fmt: skip
def test_a_malformed_call_never_raises_and_loses_nothing_10(body: str) -> None:
    text = f"a <tool_call>{body}</tool_call> b"
    parsed = check(text)
    assert parsed.tool_calls == ()
    assert [call.reason for call in parsed.rejected_calls] == ["malformed"]
    assert parsed.text == text


def test_what_breaks_after_it_was_given_out_ends_as_rejected_and_is_text_10() -> None:
    text = 'So: <tool_call>{"name": "add", "arguments": {"a": 1, b}} '
    events, parsed = run(ToolParser(), cut(text, 3))
    [end] = [e for e in events if isinstance(e, CallEnd)]
    assert end.call is None
    assert end.rejected == parsed.rejected_calls[0]
    assert end.rejected.source == '<tool_call>{"name": "add", "arguments": {"a": 1, '
    assert events[events.index(end) + 1] == Text(end.rejected.source, source="")
    assert parsed.text == "".join(e.text for e in events if isinstance(e, Text)) == text


def test_a_call_on_the_line_behind_a_malformed_one_is_found_10() -> None:
    call = WRITERS["tool_use"]([("add", {"a": 2})])
    broken = call.removesuffix("}}}") + " "
    parsed = check(f"{broken}\n{call}\n{call}", [ADD])
    assert found(parsed) == [("add", {"a": 2})] * 2
    assert parsed.text == f"{broken}\n"


def test_two_sets_of_arguments_or_two_names_are_no_call_10() -> None:
    for more in ('"arguments": {"a": 2}', '"name": "other"'):
        parsed = check(f'<tool_call>{{"name": "add", "arguments": {{"a": 1}}, {more}}}</tool_call>')
        assert (parsed.tool_calls, parsed.rejected_calls[0].reason) == ((), "malformed")


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_an_undeclared_tool_stays_text_and_is_listed_11(format: str) -> None:
    text = f"I will.\n{WRITERS[format]([('sub', {'a': 1})])}"
    parsed = check(text, [ADD])
    assert (parsed.text, parsed.tool_calls) == (text, ())
    [rejected] = parsed.rejected_calls
    assert (rejected.reason, rejected.name) == ("undeclared", "sub")
    assert "declared: add" in rejected.detail
    assert rejected.source in text


def test_the_name_may_come_behind_the_arguments_11() -> None:
    assert found(check('<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', [ADD])) == [("add", {"a": 1})]
    assert check('{"tool_use": {"input": {"a": 1}, "name": "sub"}}', [ADD]).rejected_calls[0].reason == "undeclared"


def test_a_call_in_reasoning_is_reasoning_12() -> None:
    call = WRITERS["json_tools"]([("add", {"a": 1})])
    parsed = check(f"<think>I could {call}.\n{call}</think>\n\nNo.")
    assert (parsed.reasoning, parsed.text, parsed.tool_calls) == (f"I could {call}.\n{call}", "No.", ())
    assert check(f"<think>{call}").reasoning == call  # never closed
    assert found(check(f"<think>so</think>\n{call}")) == [("add", {"a": 1})]
    events, _ = run(ToolParser(), ["<think>a</think> b"])
    assert events == [Markup("<think>"), Reasoning("a"), Markup("</think>"), Markup(" "), Text("b")]


def test_an_output_that_begins_inside_reasoning_is_understood_12() -> None:
    call = WRITERS["json_tools"]([("add", {"a": 1})])
    for chunks in cuts(f"so {call}</think>\n{call}", MARKS):
        parsed = run(ToolParser(in_reasoning=True), chunks)[1]
        assert parsed.reasoning == f"so {call}"
        assert found(parsed) == [("add", {"a": 1})]


def test_other_marks_of_reasoning_and_none_12() -> None:
    assert run(ToolParser(reasoning=("<r>", "</r>")), cut("<r>a</r>b<think>", 1))[1].reasoning == "a"
    assert run(ToolParser(reasoning=None), ["<think>a</think>"])[1].text == "<think>a</think>"


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_without_tools_everything_is_text_13(format: str) -> None:
    text = WRITERS[format]([("add", {"a": 1})])
    parsed = check(text, ())
    assert (parsed.text, parsed.tool_calls, parsed.rejected_calls) == (text, (), ())


def test_after_the_last_call_that_was_asked_for_text_is_text_16() -> None:
    calls = WRITERS["json_tools"]([("add", {"a": 1}), ("add", {"a": 2})])
    for chunks in cuts(calls, MARKS):
        assert found(run(ToolParser(max_calls=1), chunks)[1]) == [("add", {"a": 1})]
    parser = ToolParser(max_calls=1)
    for letter in calls:
        parser.feed(letter)
        if parser.is_done:
            break
    assert parser.end() == []
    assert parser.parsed.text == ""
    group = '<tool_call>[{"name": "add", "arguments": {}}, {"name": "add", "arguments": {}}]</tool_call>'
    parsed = run(ToolParser(max_calls=1), [group])[1]
    assert (len(parsed.tool_calls), [r.reason for r in parsed.rejected_calls]) == (1, ["parallel"])


@pytest.mark.parametrize("format", JSON_FORMATS)
def test_a_truncated_call_is_flagged_and_a_complete_one_without_its_end_counts_17(format: str) -> None:
    call = WRITERS[format]([("add", {"a": {"b": "c"}})])
    for stop in range(1, len(call)):
        parsed = check(call[:stop]) if stop % 7 == 0 else parse(call[:stop])
        assert parsed.is_truncated or parsed.tool_calls or parsed.text == call[:stop]
        if parsed.tool_calls:
            assert found(parsed) == [("add", {"a": {"b": "c"}})]
        if '"add", ' in call[:stop] and not parsed.tool_calls and '"a"' in call[:stop]:
            assert parsed.is_truncated
    assert found(parse(call.removesuffix("</tool_call>"))) == [("add", {"a": {"b": "c"}})]


def test_arguments_stream_while_they_are_written_25() -> None:
    parser, given = ToolParser(), []
    for letter in '<tool_call>{"name": "add", "arguments": {"text": "abcdefgh"}}</tool_call>':
        given += [(letter, e.text) for e in parser.feed(letter) if isinstance(e, CallArguments)]
    assert "".join(text for _, text in given) == '{"text": "abcdefgh"}'
    assert all(letter == text for letter, text in given)


def test_plain_text_is_held_back_by_less_than_a_mark_25() -> None:
    longest = max(len(mark) for mark in ("<tool_call>", "<|python_tag|>", "<think>"))
    text, said, parser = "a <tool_cal b <|python_ta c\n``x {}\n  word <" * 20, 0, ToolParser()
    for place, letter in enumerate(text):
        said += sum(len(e.text) for e in parser.feed(letter) if isinstance(e, Text))
        assert place + 1 - said <= longest - 1


@pytest.mark.slow
@pytest.mark.parametrize("format", ["json_tools", "tool_use", "qwen3_coder", "gemma4", "mistral"])
def test_a_delta_of_a_long_argument_costs_as_much_as_one_of_a_short_25(format: str) -> None:
    def cost_ns(n: int) -> float:
        chunks = cut(WRITERS[format]([("add", {"a": "word " * (n // 5)})]), 4)
        best = float("inf")
        for _ in range(5):
            parser = ToolParser(None, format)
            began = time.process_time_ns()
            for chunk in chunks:
                parser.feed(chunk)
            parser.end()
            best = min(best, (time.process_time_ns() - began) / len(chunks))
        return best

    cost_ns(2_000)
    assert cost_ns(200_000) <= 2 * cost_ns(2_000)


def test_hostile_texts_end_in_time_and_are_kept() -> None:
    for text in (
        '{"tool_use":{"input":\n' * 3_000, '{"name":\n' * 5_000, "<tool_call>" * 5_000, "<tool_call>{" * 5_000,
        '<tool_call>{"name":"a","arguments":' + "[" * 100_000, '{"a":' * 10_000, "\n" * 50_000, "<" * 50_000,
        '<tool_call>{"name":"a","arguments":' + "9" * 100_000, '{"tool_use":' + " " * 50_000, "```\n" * 10_000,
    ):  # fmt: skip
        _, parsed = run(ToolParser(), cut(text, 1_000))
        assert parsed.text == text


def test_an_unknown_format_or_tool_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedParameterError, match=r"'xml'.*|tool_use.*mistral"):
        ToolParser(format="xml")
    with pytest.raises(UnsupportedParameterError, match="tool 0"):
        ToolParser([3])
    assert len(FORMATS) == len(set(FORMATS))
