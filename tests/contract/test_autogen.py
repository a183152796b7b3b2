"""AutoGen's model client, by itself and in AgentChat's agents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, StructuredMessage, ThoughtEvent
from autogen_core import CancellationToken, Image
from autogen_core.model_context import TokenLimitedChatCompletionContext
from autogen_core.models import (
    AssistantMessage,
    CreateResult,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from pydantic import BaseModel

from agent_memory import EchoRunner, Memory, UnsupportedParameterError
from agent_memory.integrations.autogen import AgentMemoryClient
from tests.parts.scripted import call, scripted

pytestmark = pytest.mark.contract

SUM = "Let me add.\n" + call("add", {"a": 1, "b": 2})


class Cat(BaseModel):
    """A cat."""

    name: str


def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


ADD = FunctionTool(add, "Add two whole numbers.")


def user(text: str) -> UserMessage:
    return UserMessage(content=text, source="user")


def adder(client: AgentMemoryClient, **rest: Any) -> AssistantAgent:
    return AssistantAgent("adder", client, tools=[ADD], system_message="You are exact.", max_tool_iterations=4, **rest)


def usages(result: TaskResult) -> list[tuple[int, int, int]]:
    """Prompt, cached and output tokens of each reply."""
    found: list[Any] = [one.models_usage for one in result.messages if one.models_usage is not None]
    return [(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) for usage in found]


async def test_a_tool_loop_computes_only_what_is_new() -> None:
    async with Memory(scripted(SUM, "Three.", "Bye."), ":memory:") as memory:
        client = AgentMemoryClient(memory, "ann")
        agent = adder(client)
        first = await agent.run(task="1 + 2?")
        assert first.messages[-1].content == "Three."  # type: ignore[union-attr]
        [(prompt, _, said), (longer, cached, answered)] = usages(first)
        assert cached >= prompt + said
        second = await agent.run(task="Thanks.")
        [(last, cached, bye)] = usages(second)
        assert cached >= longer + answered
        usage: Any = second.messages[-1].models_usage
        assert usage.details["miss"] is None
        assert (client.total_usage().prompt_tokens, client.actual_usage().completion_tokens) == (
            prompt + longer + last,
            said + answered + bye,
        )
        assert [(info.name, info.n_turns) for info in memory.agents()] == [("ann", 3)]


async def test_a_streamed_tool_loop_does_so_too() -> None:
    async with Memory(scripted("<think>Easy.</think>" + SUM, "One two three.", "Bye."), ":memory:") as memory:
        agent = adder(AgentMemoryClient(memory, "ann", keep_reasoning=True), model_client_stream=True)
        *events, first = [one async for one in agent.run_stream(task="1 + 2?")]
        pieces = [one.content for one in events if isinstance(one, ModelClientStreamingChunkEvent)]
        assert "".join(pieces) == "Let me add.\nOne two three."
        assert len(pieces) > 4
        [thought] = [one.content for one in events if isinstance(one, ThoughtEvent)]
        assert thought == "<think>Easy.</think>Let me add.\n"
        assert isinstance(first, TaskResult)
        [(prompt, _, said), (longer, cached, answered)] = usages(first)
        assert cached >= prompt + said
        [(_, cached, _)] = usages(await agent.run(task="Thanks."))
        assert cached >= longer + answered


async def test_reasoning_without_a_call_is_the_thought() -> None:
    async with Memory(scripted("<think>Easy.</think>Three."), ":memory:") as memory:
        said = await AgentMemoryClient(memory).create([user("1 + 2?")])
        assert (said.content, said.thought, said.finish_reason, said.cached) == ("Three.", "Easy.", "stop", False)


async def test_output_is_held_to_its_class() -> None:
    async with Memory(scripted('{"name": "Tom"}', '{"name": "Tim"}'), ":memory:") as memory:
        client = AgentMemoryClient(memory)
        said = await client.create([user("A cat.")], json_output=Cat)
        assert Cat.model_validate_json(str(said.content)) == Cat(name="Tom")
        result = await AssistantAgent("cats", client, output_content_type=Cat).run(task="Another.")
        [answer] = [one for one in result.messages if isinstance(one, StructuredMessage)]
        assert answer.content == Cat(name="Tim")


async def test_an_event_loop_runs_calls_side_by_side() -> None:
    async with Memory(EchoRunner(delay_s=0.001), ":memory:") as memory:
        client = AgentMemoryClient(memory)
        replies = await asyncio.gather(*(client.create([user(f"number {n}")]) for n in range(4)))
        assert [reply.content for reply in replies] == [f"number {n}" for n in range(4)]


@pytest.mark.parametrize("by", ["task", "token"])
async def test_a_cancelled_call_leaves_the_log_as_it_was(by: str) -> None:
    async with Memory(scripted("Hello.", "so " * 2000, delay_s=0.002), ":memory:") as memory:
        client, token = AgentMemoryClient(memory, "ann", max_tokens=4096), CancellationToken()
        first = await client.create([user("Hello?")])
        history = [user("Hello?"), AssistantMessage(content=first.content, source="ann"), user("Go on.")]
        task = asyncio.create_task(client.create(history, cancellation_token=token))
        await asyncio.sleep(0.05)
        (task if by == "task" else token).cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [message.content for message in memory.agent("ann").messages] == ["Hello?", "Hello."]


async def test_a_stream_that_is_left_or_cancelled_ends_its_request() -> None:
    async with Memory(scripted("so " * 2000, "so " * 2000, delay_s=0.002), ":memory:") as memory:
        client, token = AgentMemoryClient(memory, "ann", max_tokens=4096), CancellationToken()
        left = client.create_stream([user("Go on.")])
        await anext(left)
        await left.aclose()
        stopped = client.create_stream([user("Go on.")], cancellation_token=token)
        await anext(stopped)
        token.cancel()
        with pytest.raises(asyncio.CancelledError):
            async for _ in stopped:
                pass
        assert memory.agent("ann").messages == ()
        assert memory.generate("Still there?").text == "Still there?"


async def test_which_agent_a_call_has() -> None:
    async with Memory(EchoRunner(), ":memory:") as memory:
        client = AgentMemoryClient(memory, "bob")
        await client.create([user("none")], extra_create_args={"agent": None})
        assert memory.agents() == []
        await client.create([user("a call's")], extra_create_args={"agent": "ann"})
        await client.create([user("the client's")])
        assert {info.name for info in memory.agents()} == {"ann", "bob"}


async def test_a_clients_own_choice_of_tools_holds_while_an_agent_has_none() -> None:
    async with Memory(EchoRunner(), ":memory:") as memory:
        client = AgentMemoryClient(memory, tool_choice="required", max_tokens=256)
        forced = await client.create([user("1 + 2?")], tools=[ADD])
        assert forced.finish_reason == "function_calls"
        assert (await client.create([user("1 + 2?")], tools=[ADD], tool_choice="none")).content == "1 + 2?"
        assert (await client.create([user("1 + 2?")])).content == "1 + 2?"


async def test_tokens_are_counted_as_the_model_reads_them() -> None:
    async with Memory(EchoRunner(context_tokens=4096), ":memory:") as memory:
        client = AgentMemoryClient(memory)
        asked = [user("1 + 2?")]
        n_tokens = client.count_tokens(asked, tools=[ADD])
        assert (await client.create(asked, tools=[ADD])).usage.prompt_tokens == n_tokens
        assert client.remaining_tokens(asked, tools=[ADD]) == 4096 - n_tokens
        context = TokenLimitedChatCompletionContext(client)
        await context.add_message(user("Hello?"))
        assert await context.get_messages() == [user("Hello?")]


async def test_what_is_not_supported_is_refused_by_name() -> None:
    import PIL.Image

    image = Image(PIL.Image.new("RGB", (1, 1)))
    async with Memory(EchoRunner(), ":memory:") as memory:
        client = AgentMemoryClient(memory)
        with pytest.raises(UnsupportedParameterError, match="content of type 'Image'"):
            await client.create([UserMessage(content=["Look:", image], source="user")])
        with pytest.raises(UnsupportedParameterError, match="json_output=True"):
            await client.create([user("A cat.")], json_output=True)
        with pytest.raises(UnsupportedParameterError, match="give no tools with it"):
            await client.create([user("A cat.")], json_output=Cat, tools=[ADD])


@pytest.mark.model
async def test_the_starter_model_reuses_a_turn_with_a_call(starter: Memory) -> None:
    client = AgentMemoryClient(starter, "autogen", max_tokens=48)
    asked = await client.create([user("1 + 2?")], tools=[ADD], tool_choice=ADD)
    [made] = asked.content
    arguments = ADD.args_type().model_validate_json(made.arguments)  # type: ignore[union-attr]
    total = str(add(**arguments.model_dump()))
    done = FunctionExecutionResult(content=total, name=made.name, call_id=made.id)  # type: ignore[union-attr]
    history = [
        user("1 + 2?"),
        AssistantMessage(content=asked.content, thought=asked.thought, source="adder"),
        FunctionExecutionResultMessage(content=[done]),
    ]
    *_, answer = [one async for one in client.create_stream(history, tools=[ADD], extra_create_args={"max_tokens": 8})]
    assert isinstance(answer, CreateResult)
    usage: Any = answer.usage
    assert usage.cached_tokens >= asked.usage.prompt_tokens + asked.usage.completion_tokens
