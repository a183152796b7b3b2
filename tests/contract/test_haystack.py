"""Haystack's chat generator, by itself, in agents and in a pipeline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from haystack import Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage, ImageContent, StreamingChunk
from haystack.tools import tool
from pydantic import BaseModel

from agent_memory import EchoRunner, Memory, UnsupportedParameterError
from agent_memory.integrations.haystack import AgentMemoryChatGenerator
from tests.parts.scripted import call, scripted

pytestmark = pytest.mark.contract

SUM = "Let me add.\n" + call("add", {"a": 1, "b": 2})


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")


class Cat(BaseModel):
    """A cat."""

    name: str


@tool
def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


def user(text: str) -> ChatMessage:
    return ChatMessage.from_user(text)


def usages(messages: list[ChatMessage]) -> list[tuple[int, int, int]]:
    """Prompt, cached and output tokens of each reply."""
    found = [one.meta["usage"] for one in messages if one.is_from("assistant")]
    return [(u["prompt_tokens"], u["prompt_tokens_details"]["cached_tokens"], u["completion_tokens"]) for u in found]


def test_a_tool_loop_computes_only_what_is_new() -> None:
    with Memory(scripted(SUM, "Three.", "Bye."), ":memory:") as memory:
        agent = Agent(
            chat_generator=AgentMemoryChatGenerator(memory, "ann"), tools=[add], system_prompt="You are exact."
        )
        first = agent.run([user("1 + 2?")])
        assert first["last_message"].text == "Three."
        assert first["token_usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        second = agent.run([*first["messages"], user("Thanks.")])  # with the system prompt that the agent puts first
        [(asked, _, called), (longer, cached, answered), (_, again, _)] = usages(second["messages"])
        assert cached >= asked + called
        assert again >= longer + answered
        assert second["last_message"].meta["reuse"]["miss"] is None
        assert [(info.name, info.n_turns, info.system) for info in memory.agents()] == [("ann", 3, "You are exact.")]


async def test_a_streamed_tool_loop_does_so_too() -> None:
    async with Memory(scripted("<think>Easy.</think>" + SUM, "Three.", "Bye."), ":memory:") as memory:
        chunks: list[StreamingChunk] = []

        async def keep(chunk: StreamingChunk) -> None:
            chunks.append(chunk)

        generator = AgentMemoryChatGenerator(memory, "ann", {"keep_reasoning": True})
        agent = Agent(chat_generator=generator, tools=[add])
        first = await agent.run_async([user("1 + 2?")], streaming_callback=keep)
        ours = [one for one in chunks if one.tool_call_result is None and one.finish_reason != "tool_call_results"]
        assert "".join(one.reasoning.reasoning_text for one in ours if one.reasoning) == "Easy."
        assert "".join(one.content for one in ours) == "Let me add.\nThree."
        assert [one.index for one in ours if one.start] == [0, 1, 2, 0]
        assert [delta.tool_name for one in ours for delta in one.tool_calls or ()] == ["add"]
        assert [one.finish_reason for one in ours if one.finish_reason] == ["tool_calls", "stop"]
        second = await agent.run_async([*first["messages"], user("Thanks.")])
        [(asked, _, called), (longer, cached, answered), (_, again, _)] = usages(second["messages"])
        assert cached >= asked + called
        assert again >= longer + answered


def test_a_pipeline_streams_to_its_callback() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        pieces: list[str] = []
        pipeline = Pipeline()
        pipeline.add_component("prompt", ChatPromptBuilder([user("Say {{ what }}.")], required_variables=["what"]))
        generator = AgentMemoryChatGenerator(memory, streaming_callback=lambda chunk: pieces.append(chunk.content))
        pipeline.add_component("model", generator)
        pipeline.connect("prompt.prompt", "model.messages")
        said = pipeline.run({"prompt": {"what": "four words, one by one"}})["model"]["replies"]
        assert [one.text for one in said] == ["Say four words, one by one."]
        assert len(pieces) > 2
        assert "".join(pieces) == said[0].text


@pytest.mark.parametrize("is_class", [True, False], ids=["a class", "a schema"])
def test_replies_are_held_to_a_schema(is_class: bool) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "Cat", "schema": Cat.model_json_schema()}}
    with Memory(scripted('{"name": "Tom"}'), ":memory:") as memory:
        generator = AgentMemoryChatGenerator(memory)
        [said] = generator.run("A cat.", generation_kwargs={"response_format": Cat if is_class else shape})["replies"]
        assert Cat.model_validate_json(said.text or "") == Cat(name="Tom")


async def test_an_event_loop_runs_calls_side_by_side() -> None:
    async with Memory(EchoRunner(delay_s=0.001), ":memory:") as memory:
        generator = AgentMemoryChatGenerator(memory)
        found = await asyncio.gather(*(generator.run_async([user(f"number {n}")]) for n in range(4)))
        assert [one["replies"][0].text for one in found] == [f"number {n}" for n in range(4)]
        pipeline = Pipeline()
        pipeline.add_component("model", generator)
        assert (await pipeline.run_async({"model": {"messages": "alone"}}))["model"]["replies"][0].text == "alone"


async def test_a_cancelled_task_leaves_the_log_as_it_was() -> None:
    async with Memory(scripted("Hello.", "so " * 2000, delay_s=0.002), ":memory:") as memory:
        generator = AgentMemoryChatGenerator(memory, "ann", {"max_tokens": 4096})
        [first] = (await generator.run_async([user("Hello?")]))["replies"]
        task = asyncio.create_task(generator.run_async([user("Hello?"), first, user("Go on.")]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [message.content for message in memory.agent("ann").messages] == ["Hello?", "Hello."]


def test_a_callback_that_raises_ends_its_request() -> None:
    def stop(chunk: StreamingChunk) -> None:
        raise TimeoutError("enough")

    with Memory(scripted("so " * 2000, delay_s=0.002), ":memory:") as memory:
        generator = AgentMemoryChatGenerator(memory, "ann", {"max_tokens": 4096})
        with pytest.raises(TimeoutError, match="enough"):
            generator.run([user("Go on.")], streaming_callback=stop)
        assert memory.agent("ann").messages == ()
        assert memory.generate("Still there?").text == "Still there?"


def test_which_agent_a_call_has() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        generator = AgentMemoryChatGenerator(memory, "bob")
        generator.run("none", generation_kwargs={"agent": None})
        assert memory.agents() == []
        Agent(chat_generator=generator).run([user("a run's")], generation_kwargs={"agent": "ann"})
        generator.run("the generator's")
        assert {info.name for info in memory.agents()} == {"ann", "bob"}


def test_what_is_not_supported_is_refused_by_name() -> None:
    image = ImageContent("aGk=", mime_type="image/png", validation=False)
    looked: Any = [ChatMessage.from_user(content_parts=["Look:", image])]
    with Memory(EchoRunner(), ":memory:") as memory:
        generator = AgentMemoryChatGenerator(memory)
        with pytest.raises(UnsupportedParameterError, match="images and files"):
            generator.run(looked)
        with pytest.raises(UnsupportedParameterError, match="type 'json_object'"):
            generator.run("A cat.", generation_kwargs={"response_format": {"type": "json_object"}})
        with pytest.raises(UnsupportedParameterError, match="has no option 'n'"):
            generator.run("A cat.", generation_kwargs={"n": 2})


@pytest.mark.model
def test_the_starter_model_reuses_a_turn_with_a_call(starter: Memory) -> None:
    generator = AgentMemoryChatGenerator(starter, "haystack", {"max_tokens": 48}, tools=[add])
    [asked] = generator.run([user("1 + 2?")], generation_kwargs={"tool_choice": "required"})["replies"]
    [made] = asked.tool_calls
    result = ChatMessage.from_tool(str(add.invoke(**made.arguments)), made)
    [answer] = generator.run([user("1 + 2?"), asked, result], generation_kwargs={"max_tokens": 8})["replies"]
    [(prompt, _, said), (_, cached, _)] = usages([asked, answer])
    assert cached >= prompt + said
