"""smolagents' model, in agents that call tools and in agents that write code."""

from __future__ import annotations

import asyncio
import json

import pytest
from smolagents import ActionStep, ChatMessage, CodeAgent, LogLevel, MessageRole, ToolCallingAgent, tool
from smolagents.models import agglomerate_stream_deltas

from agent_memory import EchoRunner, Memory, Reply, UnsupportedParameterError
from agent_memory.integrations.smolagents import AgentMemoryModel, CachedTokenUsage
from tests.parts.scripted import call, scripted

pytestmark = pytest.mark.contract

QUIET = {"verbosity_level": LogLevel.OFF}


@tool
def add(a: int, b: int) -> int:
    """Add two whole numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def usages(agent: ToolCallingAgent | CodeAgent) -> list[CachedTokenUsage]:
    """The usage of each step."""
    return [step.token_usage for step in agent.memory.steps if isinstance(step, ActionStep)]


def users(text: str) -> list[ChatMessage]:
    return [ChatMessage(MessageRole.USER, text)]


def test_a_tool_loop_computes_only_what_is_new() -> None:
    said = [
        call("add", {"a": 1, "b": 2}),
        call("final_answer", {"answer": "3"}),
        call("final_answer", {"answer": "Bye"}),
    ]
    with Memory(scripted(*said), ":memory:") as memory:
        agent = ToolCallingAgent([add], AgentMemoryModel(memory, "ann"), **QUIET)
        assert agent.run("1 + 2?") == "3"
        assert agent.run("Thanks.", reset=False) == "Bye"
        first, second, third = usages(agent)
        assert second.cached_tokens >= first.total_tokens
        assert third.cached_tokens >= second.total_tokens
        roles = [message.role for message in memory.agent("ann").messages]
        assert roles == ["system", "user", "assistant", "tool", "assistant", "tool", "user", "assistant"]
        assert memory.agent("ann").messages[3].content == "3"


def test_a_code_agent_does_so_too() -> None:
    code = "Easy.\n<code>\nx = add(1, 2)\nprint(x)\n"
    said = [f"{code}</code>", "<code>\nfinal_answer(x)\n</code>", "<code>final_answer(4)"]
    with Memory(scripted(*said), ":memory:") as memory:
        agent = CodeAgent([add], AgentMemoryModel(memory, "ann"), **QUIET)
        assert (agent.run("1 + 2?"), agent.run("And one more?", reset=False)) == (3, 4)
        replies = [step.model_output_message.raw for step in agent.memory.steps if isinstance(step, ActionStep)]
        for before, after in zip(replies, replies[1:], strict=False):
            assert isinstance(before, Reply)  # of which the log keeps what stands before the stop string
            assert after.usage.cached_tokens >= before.usage.prompt_tokens + len(before.token_ids)
        assert memory.agent("ann").messages[2].content == code


def test_a_streaming_agent_does_so_too() -> None:
    said = [call("add", {"a": 1, "b": 2}), call("final_answer", {"answer": "3"})]
    with Memory(scripted(*said), ":memory:") as memory:
        agent = ToolCallingAgent([add], AgentMemoryModel(memory, "ann"), stream_outputs=True, **QUIET)
        assert agent.run("1 + 2?") == "3"
        first, second = usages(agent)
        assert memory.stats().cached_tokens >= first.total_tokens
        assert second.input_tokens > first.total_tokens


def test_a_stream_gives_text_calls_and_usage() -> None:
    with Memory(scripted("So: " + call("add", {"a": 1, "b": 2})), ":memory:") as memory:
        model = AgentMemoryModel(memory)
        deltas = list(model.generate_stream(users("1 + 2?"), tools_to_call_from=[add], tool_choice="auto"))
        whole = agglomerate_stream_deltas(deltas)
        assert (whole.content, json.loads(whole.tool_calls[0].function.arguments)) == ("So: ", {"a": 1, "b": 2})
        assert isinstance(deltas[-1].token_usage, CachedTokenUsage)


def test_a_stream_that_is_left_ends_its_request() -> None:
    with Memory(scripted("so " * 2000, delay_s=0.002), ":memory:") as memory:
        stream = AgentMemoryModel(memory, "ann", max_tokens=4096).generate_stream(users("Go on."))
        next(stream)
        stream.close()
        assert memory.agent("ann").messages == ()
        assert memory.generate("Still there?").text == "Still there?"


def test_replies_are_held_to_a_schema() -> None:
    schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
    with Memory(scripted('{"legs": 4}'), ":memory:") as memory:
        model = AgentMemoryModel(memory)
        asked = {"type": "json_schema", "json_schema": {"name": "cat", "schema": schema}}
        assert json.loads(model.generate(users("A cat."), response_format=asked).content) == {"legs": 4}
        with pytest.raises(UnsupportedParameterError, match="json_object"):
            model.generate(users("A cat."), response_format={"type": "json_object"})


async def test_agents_run_side_by_side_in_threads() -> None:
    async with Memory(EchoRunner(delay_s=0.001), ":memory:") as memory:
        models = [AgentMemoryModel(memory, f"agent {n}") for n in range(4)]
        said = await asyncio.gather(*(asyncio.to_thread(one.generate, users(one.agent or "")) for one in models))
        assert [message.content for message in said] == [f"agent {n}" for n in range(4)]


def test_plans_leave_the_conversation_alone() -> None:
    said = ["A plan.", call("add", {"a": 1, "b": 2}), "Another plan.", call("final_answer", {"answer": "3"})]
    with Memory(scripted(*said), ":memory:") as memory:
        agent = ToolCallingAgent([add], AgentMemoryModel(memory, "ann"), planning_interval=1, **QUIET)
        assert agent.run("1 + 2?") == "3"
        first, second = usages(agent)
        assert second.cached_tokens >= first.total_tokens
        assert memory.agent("ann").messages[0].role == "system"


def test_what_is_not_supported_is_refused_by_name() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        image = ChatMessage(MessageRole.USER, [{"type": "image", "image": None}])
        with pytest.raises(UnsupportedParameterError, match="message 0: content of type 'image'"):
            AgentMemoryModel(memory).generate([image])
        with pytest.raises(UnsupportedParameterError, match="has no option 'n'"):
            AgentMemoryModel(memory, n=2).generate(users("Hello?"))


@pytest.mark.model
def test_the_starter_model_reuses_a_turn_with_a_call(starter: Memory) -> None:
    model = AgentMemoryModel(starter, "smolagents", max_tokens=48)
    history = [ChatMessage(MessageRole.SYSTEM, "You are exact."), *users("1 + 2?")]
    asked = model.generate(history, tools_to_call_from=[add])
    calls = str([call.__dict__ | {"function": call.function.__dict__} for call in asked.tool_calls])
    history += [
        ChatMessage(MessageRole.ASSISTANT, asked.content.strip()),
        ChatMessage(MessageRole.TOOL_CALL, f"Calling tools:\n{calls}"),
        ChatMessage(MessageRole.TOOL_RESPONSE, "Observation:\n3"),
    ]
    answer = model.generate(history, tools_to_call_from=[add], tool_choice="auto", max_tokens=8)
    assert answer.token_usage.cached_tokens >= asked.token_usage.total_tokens
