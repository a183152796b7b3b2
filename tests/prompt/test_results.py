"""Each result answers one open call, in both APIs' shapes; what does not is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from agent_memory import Message, ToolCall, ToolResult, ToolResultError, UnsupportedParameterError
from agent_memory.prompt.messages import normalize
from agent_memory.prompt.results import paired, result_message

ASKED = Message("assistant", "I look.", tool_calls=(ToolCall("f", {"a": 1}, "1"), ToolCall("g", {}, "2")))
ONE, TWO = Message("tool", "x", tool_call_id="1"), Message("tool", "y", tool_call_id="2")
USER = Message("user", "hi")


def test_the_same_dialogue_in_both_shapes_is_the_same_messages_21_22() -> None:
    anthropic = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "2", "name": "g", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "y"}], "is_error": True},
            {"type": "tool_result", "tool_use_id": "1", "content": "x"}, {"type": "text", "text": "so?"}]},
    ]  # fmt: skip
    openai = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "refusal": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "x"}]},
        {"role": "tool", "tool_call_id": "2", "content": "Error: y"},
        {"role": "user", "content": "so?"},
    ]  # fmt: skip
    messages = paired(normalize(anthropic))
    assert messages == paired(normalize(openai))
    assert [(m.role, m.content, m.name) for m in messages[2:]] == [
        ("tool", "x", "f"),
        ("tool", "Error: y", "g"),
        ("user", "so?", None),
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [USER, ASKED], [USER, ASKED, ONE], [USER, ASKED, USER], [USER, ASKED, ONE, ONE, TWO], [USER, ASKED, ONE, ONE],
        [USER, ONE], [USER, ASKED, ONE, TWO, ONE], [ONE], [USER, ASKED, ONE, Message("tool", "z", tool_call_id="3")],
        [USER, ASKED, ONE, USER, TWO],
        [Message("assistant", "", tool_calls=(ToolCall("f", {}, "1"), ToolCall("f", {}, "1"))), ONE, ONE],
    ],
)  # fmt: skip
def test_an_unknown_missing_or_repeated_id_is_refused_21(messages: list[Message]) -> None:
    with pytest.raises(ToolResultError):
        paired(messages)


@pytest.mark.parametrize("id", [5, None, []])
def test_a_call_whose_id_is_no_text_is_refused(id: Any) -> None:
    asked = Message("assistant", "", tool_calls=(ToolCall("f", {}, id), ToolCall("g", {}, "2")))
    with pytest.raises(ToolResultError, match="the id of a call must be text"):
        paired([USER, asked, TWO, Message("tool", "x", tool_call_id="5")])


def test_calls_may_be_open_at_the_end_where_nothing_is_to_be_generated() -> None:
    assert paired([USER, ASKED], may_end_open=True) == (USER, ASKED)
    with pytest.raises(ToolResultError):
        paired([USER, ASKED, ONE], may_end_open=True)


@pytest.mark.parametrize("content", ["x", [{"type": "text", "text": "x"}]])
def test_a_result_is_text_or_text_blocks_and_says_that_it_is_an_error(content: Any) -> None:
    assert result_message(ToolResult("1", content)) == Message("tool", "x", tool_call_id="1")
    assert result_message(ToolResult("1", content, is_error=True)).content == "Error: x"


@pytest.mark.parametrize("content", [3, [3], [{"type": "image"}], b"x"])
def test_a_result_of_another_kind_is_refused(content: Any) -> None:
    with pytest.raises(UnsupportedParameterError):
        result_message(ToolResult("1", content))


def test_a_block_in_the_wrong_place_is_refused() -> None:
    late = [{"type": "text", "text": "x"}, {"type": "tool_result", "tool_use_id": "1", "content": "x"}]
    for message in (
        {"role": "user", "content": late},
        {"role": "user", "content": [{"type": "tool_use", "name": "f"}]},
    ):
        with pytest.raises(UnsupportedParameterError, match="block"):
            normalize([message])
