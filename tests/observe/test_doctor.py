"""What doctor() says of a model beside its backend."""

from __future__ import annotations

from agent_memory import EchoRunner, Memory
from agent_memory.toolcall.choice import choice_of


def test_doctor_names_the_format_of_calls_and_why_it_was_chosen() -> None:
    runner = EchoRunner()
    with Memory(runner, ":memory:") as memory:
        found = memory.doctor()
    choice = choice_of(runner.tokenizer)
    assert found.facts["tool_format"] == (choice.format or "any JSON form")
    assert found.facts["tool_format_reason"] == choice.reason != ""
    assert found.facts["reasoning_tags"] == " ".join(runner.tokenizer.reasoning or ("none",))
