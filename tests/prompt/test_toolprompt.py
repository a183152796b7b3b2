"""Templates that know no tools get them as text, with and without a system message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from agent_memory import Message, Tool, ToolCall, UnsupportedParameterError
from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.prompt.template import render
from agent_memory.prompt.toolprompt import introduction, spelled
from agent_memory.toolcall import parse

ADD, SUB = Tool("add", "Adds {a} and {b}."), Tool("sub", "Zürich")
SYSTEM, USER = Message("system", "Be brief."), Message("user", "1 + 2?")
ASKED = Message("assistant", "Hm.", tool_calls=(ToolCall("add", {"a": "ü"}, "1"), ToolCall("sub", {}, "2")))
RESULTS = [Message("tool", "3", tool_call_id="1", name="add"), Message("tool", '"x"', tool_call_id="2", name="sub")]


class Ignorant(EchoTokenizer):
    """A template with neither tools nor results, and where asked without a system message."""

    def __init__(self, *, has_system: bool = True) -> None:
        super().__init__()
        self.has_system = has_system

    @property
    def knows_tools(self) -> bool:
        return False

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        roles = [message["role"] for message in messages]
        if not self.has_system and "system" in roles:
            raise UnsupportedParameterError("the template has no system message")
        assert "tool" not in roles
        assert not any("tool_calls" in message for message in messages)
        turns = [role for role in roles if role != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"] * (len(turns) % 2)
        assert not options.pop("tools")
        return super().render(messages, **options)


def test_the_introduction_stands_at_the_beginning_and_keeps_prefixes_stable() -> None:
    tokenizer = Ignorant()
    for first in ([SYSTEM], []):
        short = render(tokenizer, [*first, USER], tools=[ADD, SUB], generation_prompt=False)
        history = [*first, USER, ASKED, *RESULTS, Message("user", "So?")]
        assert render(tokenizer, history, tools=[ADD, SUB]).startswith(short)
        assert short.startswith("<|system|>")
        assert introduction([ADD, SUB]) in short
    assert render(tokenizer, [SYSTEM, USER], tools=[ADD]).startswith("<|system|>Be brief.\n\n")


def test_a_template_without_a_system_message_gets_it_in_the_first_user_message() -> None:
    tokenizer = Ignorant(has_system=False)
    text = render(tokenizer, [USER, ASKED, *RESULTS], tools=[ADD])
    assert text.startswith(f"<|user|>{introduction([ADD])}\n\n1 + 2?<|end|>")
    with pytest.raises(UnsupportedParameterError, match="no system"):
        render(tokenizer, [SYSTEM, USER], tools=[ADD])


def test_every_tool_is_a_line_of_json_and_the_example_is_a_call() -> None:
    text = introduction([ADD, SUB])
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [line["name"] for line in lines[:2]] == ["add", "sub"]
    assert "Zürich" in text
    [call] = parse(text, [ADD, SUB]).tool_calls
    assert (call.name, call.arguments) == ("add", {})


def test_what_is_spelled_out_is_read_back() -> None:
    [user, asked, results] = spelled([USER, ASKED, *RESULTS], ())
    parsed = parse(asked.content, [ADD, SUB])
    assert [(c.name, c.arguments) for c in parsed.tool_calls] == [("add", {"a": "ü"}), ("sub", {})]
    assert parsed.text == "Hm.\n"
    assert [json.loads(line)["tool_result"] for line in results.content.splitlines()] == [
        {"name": "add", "content": "3"}, {"name": "sub", "content": '"x"'},
    ]  # fmt: skip
    assert (user, results.role) == (USER, "user")


def test_what_the_model_wrote_stands_as_it_wrote_it() -> None:
    source = '{"tool_use":{"name":"add","input":{}}}'
    message = Message("assistant", "", tool_calls=(ToolCall("add", {}, "1"),), source=source)
    assert spelled([USER, message], ())[1].content == source


def test_without_tools_nothing_changes() -> None:
    assert spelled([SYSTEM, USER, Message("assistant", "3"), USER], ()) == [
        SYSTEM,
        USER,
        Message("assistant", "3"),
        USER,
    ]


def test_a_tokenizer_without_a_template_gets_paragraphs_with_the_tools() -> None:
    class Bare(EchoTokenizer):
        @property
        def has_template(self) -> bool:
            return False

    text = render(Bare(), [USER, ASKED, *RESULTS], tools=[ADD])
    assert text.startswith(f"System: {introduction([ADD])}\n\nUser: 1 + 2?\n\nAssistant: Hm.\n")
    assert text.endswith("Assistant:")
