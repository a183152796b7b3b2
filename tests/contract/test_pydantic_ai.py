"""Pydantic AI's model, in agents."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import UsageLimitExceeded, UserError
from pydantic_ai.messages import ModelRequest, ModelResponse, ThinkingPart, ToolCallPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.usage import UsageLimits

from agent_memory import EchoRunner, Memory, UnsupportedParameterError
from agent_memory.integrations.pydantic_ai import AgentMemoryModel, AgentMemorySettings
from tests.parts.scripted import call, scripted

pytestmark = pytest.mark.contract

SUM = "Let me add.\n" + call("add", {"a": 1, "b": 2})


class Cat(BaseModel):
    name: str
    legs: int


class Sum(BaseModel):
    total: Literal[2, 3, 4]


def adder(model: AgentMemoryModel) -> Agent[None, str]:
    agent = Agent(model, instructions="You are exact.")

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        """Add two whole numbers."""
        return a + b

    return agent


def usages(result: object) -> list[tuple[int, int, int]]:
    """Prompt, cached and output tokens of each reply of a run."""
    replies = [one for one in result.new_messages() if isinstance(one, ModelResponse)]  # type: ignore[attr-defined]
    return [(r.usage.input_tokens, r.usage.cache_read_tokens, r.usage.output_tokens) for r in replies]


def test_a_tool_loop_computes_only_what_is_new() -> None:
    with Memory(scripted(SUM, "Three.", "Bye."), ":memory:") as memory:
        agent = adder(AgentMemoryModel(memory, agent="ann"))
        first = agent.run_sync("1 + 2?", conversation_id="42")
        assert first.output == "Three."
        [(prompt, _, said), (longer, cached, answered)] = usages(first)
        assert cached >= prompt + said
        second = agent.run_sync("Thanks.", message_history=first.all_messages())
        [(_, cached, _)] = usages(second)
        assert cached >= longer + answered
        assert [(info.name, info.n_turns) for info in memory.agents()] == [("ann/42", 3)]
        assert second.all_messages()[-1].provider_details["usage"]["miss"] is None  # type: ignore[union-attr]


async def test_a_streamed_tool_loop_does_so_too() -> None:
    said = "<think>Easy.</think>" + call("add", {"a": 1, "b": 2})  # text would be the final output of a streamed run
    async with Memory(scripted(said, "One two three.", "Bye."), ":memory:") as memory:
        agent = adder(AgentMemoryModel(memory))
        async with agent.run_stream("1 + 2?", conversation_id="42") as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        assert len(pieces) > 1
        assert "".join(pieces) == "One two three."
        asked = next(one for one in stream.all_messages() if isinstance(one, ModelResponse))
        assert [type(part) for part in asked.parts] == [ThinkingPart, ToolCallPart]
        [_, (prompt, _, answered)] = usages(stream)
        again = await agent.run("Thanks.", message_history=stream.all_messages())
        [(_, cached, _)] = usages(again)
        assert cached >= prompt + answered


@pytest.mark.parametrize("output", [Cat, NativeOutput(Cat)], ids=["a call", "a schema"])
def test_output_is_held_to_its_type(output: object) -> None:
    cat = {"name": "Tom", "legs": 4}
    said = call("final_result", cat) if output is Cat else json.dumps(cat)
    with Memory(scripted(said), ":memory:") as memory:
        assert Agent(AgentMemoryModel(memory), output_type=output).run_sync("A cat.").output == Cat(**cat)  # type: ignore[call-overload]


def test_a_schema_beside_tools_is_refused() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        agent = adder(AgentMemoryModel(memory))
        with pytest.raises(UnsupportedParameterError, match="give no tools with it"):
            agent.run_sync("A cat.", output_type=NativeOutput(Cat))


async def test_an_event_loop_runs_agents_side_by_side() -> None:
    async with Memory(EchoRunner(delay_s=0.001), ":memory:") as memory:
        agent = Agent(AgentMemoryModel(memory))
        results = await asyncio.gather(*(agent.run(f"number {n}") for n in range(4)))
        assert [result.output for result in results] == [f"number {n}" for n in range(4)]


async def test_a_cancelled_task_leaves_the_log_as_it_was() -> None:
    async with Memory(scripted("Hello.", "so " * 2000, delay_s=0.002), ":memory:") as memory:
        agent = Agent(AgentMemoryModel(memory, settings={"max_tokens": 4096}))
        first = await agent.run("Hello?", conversation_id="42")
        task = asyncio.create_task(agent.run("Go on.", message_history=first.all_messages()))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [message.content for message in memory.agent("42").messages] == ["Hello?", "Hello."]


async def test_a_stream_can_be_cancelled() -> None:
    async with Memory(scripted("so " * 2000, delay_s=0.002), ":memory:") as memory:
        agent = Agent(AgentMemoryModel(memory, settings={"max_tokens": 4096}))
        async with agent.run_stream("Go on.", conversation_id="42") as stream:
            async for _ in stream.stream_text(delta=True, debounce_by=None):
                await stream.cancel()
        assert memory.agent("42").messages == ()
        assert memory.generate("Still there?").text == "Still there?"


def test_which_agent_a_request_has() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        agent = Agent(AgentMemoryModel(memory, agent="bob"))
        agent.run_sync("none", model_settings=AgentMemorySettings(agent_memory_agent=None))
        assert memory.agents() == []
        agent.run_sync("a setting's", conversation_id="1", model_settings=AgentMemorySettings(agent_memory_agent="ann"))
        agent.run_sync("both", conversation_id="1")
        Agent(AgentMemoryModel(memory)).run_sync("a conversation's", conversation_id="2")
        assert {info.name for info in memory.agents()} == {"ann", "bob/1", "2"}


def test_a_side_run_leaves_the_conversation_alone() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        agent = Agent(AgentMemoryModel(memory))
        first = agent.run_sync("Hello?", conversation_id="42")
        branch = AgentMemorySettings(agent_memory_options={"on_diverge": "branch"})
        assert agent.run_sync("Write a title.", conversation_id="42", model_settings=branch).output == "Write a title."
        assert [message.content for message in memory.agent("42").messages] == ["Hello?", first.output]


def test_what_is_not_supported_is_refused_by_name() -> None:
    image = BinaryContent(b"hi", media_type="image/png")
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(UserError, match="BinaryContent is not supported"):
        Agent(AgentMemoryModel(memory)).run_sync(["Look:", image])


def test_tokens_are_counted_as_the_model_reads_them() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        model = AgentMemoryModel(memory)
        request = [ModelRequest.user_text_prompt("1 + 2?", instructions="You are exact.")]
        counted = asyncio.run(model.count_tokens(request, None, ModelRequestParameters()))
        reply = asyncio.run(model_request(model, request))
        assert counted.input_tokens == reply.usage.input_tokens
        limits = UsageLimits(input_tokens_limit=3, count_tokens_before_request=True)
        with pytest.raises(UsageLimitExceeded):
            adder(model).run_sync("1 + 2?", usage_limits=limits)


def test_the_profile_tells_the_context_and_the_schemas() -> None:
    with Memory(EchoRunner(context_tokens=4096), ":memory:") as memory:
        model = AgentMemoryModel(memory, profile={"supports_thinking": True})
        assert model.context_window == 4096
        assert model.profile["supports_json_schema_output"]
        assert model.profile["supports_thinking"]
        assert not model.profile["supports_image_input"]


@pytest.mark.model
def test_the_starter_model_reuses_a_turn_with_a_call(starter: Memory) -> None:
    model = AgentMemoryModel(starter, agent="pydantic-ai", settings={"max_tokens": 48})
    agent = Agent(model, instructions="You are exact.", output_type=Sum)
    first = agent.run_sync("1 + 2?", conversation_id="42")
    assert first.output.total in (2, 3, 4)
    [(prompt, _, said)] = usages(first)
    [(_, cached, _)] = usages(agent.run_sync("And 2 + 2?", message_history=first.all_messages()))
    assert cached >= prompt + said
