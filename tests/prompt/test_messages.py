"""Every caller's shape becomes the same messages, what is not text is refused, and the stored form is exact."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.errors import UnsupportedParameterError
from agent_memory.prompt.messages import as_dicts, from_json, normalize, to_json
from agent_memory.types import Message, ToolCall

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda x: st.lists(x) | st.dictionaries(TEXT, x))
CALLS = st.builds(ToolCall, name=TEXT, arguments=st.dictionaries(TEXT, JSON, max_size=3), id=TEXT)
MESSAGES = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user"]), content=TEXT, name=st.none() | TEXT)
    | st.builds(Message, role=st.just("assistant"), content=TEXT, reasoning=TEXT, tool_calls=st.tuples(CALLS))
    | st.builds(Message, role=st.just("tool"), content=TEXT, tool_call_id=TEXT),
    min_size=1,
    max_size=5,
)


@given(messages=MESSAGES)
def test_the_stored_form_and_the_template_form_give_the_same_messages_back(messages: list[Message]) -> None:
    stored = to_json(messages)
    stored.encode()
    assert from_json(stored) == tuple(messages)
    assert normalize(messages) == tuple(messages)
    assert normalize(as_dicts(messages)) == tuple(messages)


def test_all_shapes_of_one_user_message_are_one() -> None:
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    shapes: list[object] = ["ab", {"role": "user", "content": "ab"}, [{"role": "user", "content": blocks}]]
    assert {normalize(shape) for shape in [*shapes, Message("user", "ab")]} == {(Message("user", "ab"),)}
    assert normalize({"role": "developer", "content": "x"})[0].role == "system"


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_tool_calls_in_openai_shape_are_taken(arguments: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    [message] = normalize([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message.tool_calls == (ToolCall("f", {"a": 1}, "c1"),)


IMAGE = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]


def called(name: str, arguments: object) -> dict[str, object]:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


deep: dict[str, object] = {}
for _ in range(3_000):
    deep = {"a": deep}


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "message 0.*empty"),
        ([], "empty"),
        (b"x", "bytes"),
        (3, "int"),
        (None, "NoneType"),
        ([3], "message 0.*int"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": IMAGE}], "message 1.*block 1.*image_url"),
        ({"role": "user", "content": None}, "NoneType"),
        ({"role": "user", "content": b"x"}, "bytes"),
        ({"role": "user", "content": 5}, "int"),
        ({"role": "robot", "content": "a"}, "robot.*system, user, assistant, tool"),
        ({"role": "user", "content": "a", "colour": 1}, "colour.*known: content"),
        ({"role": "tool", "content": "a"}, "tool_call_id"),
        ({"role": "user", "content": "a\ud800"}, "lone surrogate at character 1"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "JSON"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "1"}}]}, "object"),
        (called("f", '{"a": NaN}'), "written as JSON: Out of range"),
        (called("f", '{"a": ' * 2_000 + "1" + "}" * 2_000), "not JSON: maximum recursion"),
        (called("f", {"a": deep}), "written as JSON: maximum recursion"),
        (called("", {}), "needs a name"),
        ({"role": "assistant", "content": [{"type": "thinking"}]}, "block 0 is of type 'thinking'"),
    ],
)
def test_what_is_no_text_is_refused_by_name(prompt: object, said: str) -> None:
    with pytest.raises(UnsupportedParameterError, match=said):
        normalize(prompt)
