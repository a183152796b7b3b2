"""Which messages that a caller sends back are the logged ones."""

from __future__ import annotations

import pytest

from agent_memory import Memory, Message
from agent_memory.prompt.sameness import is_same
from tests.parts.scripted import call, scripted


def test_a_reply_that_comes_back_stripped_is_the_logged_one() -> None:
    said = "\nLet me add.\n\n" + call("add", {"a": 1, "b": 2})
    tool = {"name": "add", "input_schema": {"type": "object", "properties": {}}}
    question = {"role": "user", "content": "1 + 2?"}
    with Memory(scripted(said, "Three."), ":memory:") as memory:
        first = memory.generate([question], agent="ann", tools=[tool])
        [asked] = first.tool_calls
        history = [
            question,
            Message("assistant", first.text.strip(), tool_calls=(asked,)),
            Message("tool", "3", tool_call_id=asked.id),
        ]
        usage = memory.generate(history, agent="ann", tools=[tool]).usage
        assert (usage.miss, usage.replaced_messages) == (None, 0)
        assert usage.cached_tokens >= first.usage.prompt_tokens + first.usage.output_tokens


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_blanks_count_in_what_the_model_did_not_write(role: str) -> None:
    assert not is_same(Message(role, "Hello ", tool_call_id="1"), Message(role, "Hello", tool_call_id="1"))  # type: ignore[arg-type]
    assert not is_same(Message("assistant", "a b"), Message("assistant", "a  b"))
