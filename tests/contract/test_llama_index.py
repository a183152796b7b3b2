"""LlamaIndex's LLM, by itself and in agents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, MessageRole, ThinkingBlock
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from agent_memory import EchoRunner, Memory, UnsupportedParameterError
from agent_memory.integrations.llama_index import AgentMemoryLLM
from tests.parts.scripted import call, scripted

pytestmark = pytest.mark.contract

SUM = "Let me add.\n" + call("add", {"a": 1, "b": 2})


class Cat(BaseModel):
    """A cat."""

    name: str


def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


ADD = FunctionTool.from_defaults(add)


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def result(asked: ChatResponse, llm: AgentMemoryLLM) -> ChatMessage:
    """The message that answers the one call of a response."""
    [selected] = llm.get_tool_calls_from_response(asked)
    content = str(add(**selected.tool_kwargs))
    return ChatMessage(role=MessageRole.TOOL, content=content, additional_kwargs={"tool_call_id": selected.tool_id})


def test_a_tool_loop_computes_only_what_is_new() -> None:
    with Memory(scripted(SUM, "Three.", "Bye."), ":memory:") as memory:
        llm = AgentMemoryLLM(memory, "ann")
        asked = llm.chat_with_tools([ADD], "1 + 2?")
        history = [user("1 + 2?"), asked.message, result(asked, llm)]
        answer = llm.chat_with_tools([ADD], chat_history=history)
        assert answer.message.content == "Three."
        assert answer.additional_kwargs["cached_tokens"] >= asked.additional_kwargs["total_tokens"]
        last = llm.chat_with_tools([ADD], "Thanks.", chat_history=[*history, answer.message])
        assert last.additional_kwargs["cached_tokens"] >= answer.additional_kwargs["total_tokens"]
        assert last.raw["usage"]["miss"] is None


def test_a_streamed_tool_loop_does_so_too() -> None:
    with Memory(scripted("<think>Easy.</think>" + SUM, "Three.", "Bye."), ":memory:") as memory:
        llm = AgentMemoryLLM(memory, "ann")
        *pieces, asked = llm.stream_chat_with_tools([ADD], "1 + 2?")
        assert "".join(piece.delta or "" for piece in pieces) == asked.message.content == "Let me add.\n"
        assert "".join(piece.additional_kwargs["thinking_delta"] or "" for piece in pieces) == "Easy."
        assert isinstance(asked.message.blocks[0], ThinkingBlock)
        history = [user("1 + 2?"), asked.message, result(asked, llm)]
        *_, answer = llm.stream_chat_with_tools([ADD], chat_history=history)
        *_, last = llm.stream_chat_with_tools([ADD], "Thanks.", chat_history=[*history, answer.message])
        assert last.additional_kwargs["cached_tokens"] >= answer.additional_kwargs["total_tokens"]


async def test_an_agents_runs_share_one_conversation() -> None:
    async with Memory(scripted(SUM, "Three.", "Bye."), ":memory:") as memory:
        agent = FunctionAgent(tools=[add], llm=AgentMemoryLLM(memory, "ann"), system_prompt="You are exact.")
        history = ChatMemoryBuffer.from_defaults()
        first = await agent.run("1 + 2?", memory=history)
        second = await agent.run("Thanks.", memory=history)
        usage = first.raw["usage"]
        assert second.raw["usage"]["cached_tokens"] >= usage["prompt_tokens"] + usage["output_tokens"]
        assert memory.agent("ann").info.n_turns == 3


def test_output_is_held_to_its_class() -> None:
    with Memory(scripted(call("Cat", {"name": "Tom"})), ":memory:") as memory:
        prompt = PromptTemplate("A cat named {name}.")
        assert AgentMemoryLLM(memory).structured_predict(Cat, prompt, name="Tom") == Cat(name="Tom")


def test_replies_are_held_to_a_schema() -> None:
    with Memory(scripted('{"name": "Tom"}'), ":memory:") as memory:
        said = AgentMemoryLLM(memory).chat([user("A cat.")], schema=Cat.model_json_schema())
        assert Cat.model_validate_json(said.message.content or "") == Cat(name="Tom")


async def test_an_event_loop_runs_calls_side_by_side() -> None:
    async with Memory(EchoRunner(delay_s=0.001), ":memory:") as memory:
        llm = AgentMemoryLLM(memory)
        replies = await asyncio.gather(*(llm.achat([user(f"number {n}")]) for n in range(4)))
        assert [reply.message.content for reply in replies] == [f"number {n}" for n in range(4)]
        pieces = [piece.delta async for piece in await llm.astream_chat([user("one by one")])]
        assert "".join(pieces) == "one by one"
        assert (await llm.acomplete("alone")).text == "alone"
        assert [piece.text async for piece in await llm.astream_complete("alone")][-1] == "alone"


async def test_a_cancelled_task_leaves_the_log_as_it_was() -> None:
    async with Memory(scripted("Hello.", "so " * 2000, delay_s=0.002), ":memory:") as memory:
        llm = AgentMemoryLLM(memory, "ann", max_tokens=4096)
        first = await llm.achat([user("Hello?")])
        task = asyncio.create_task(llm.achat([user("Hello?"), first.message, user("Go on.")]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [message.content for message in memory.agent("ann").messages] == ["Hello?", "Hello."]


def test_a_stream_that_is_left_ends_its_request() -> None:
    with Memory(scripted("so " * 2000, delay_s=0.002), ":memory:") as memory:
        stream: Any = AgentMemoryLLM(memory, "ann", max_tokens=4096).stream_chat([user("Go on.")])
        next(stream)
        stream.close()
        assert memory.agent("ann").messages == ()
        assert memory.generate("Still there?").text == "Still there?"


def test_which_agent_a_call_has() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        llm = AgentMemoryLLM(memory, "bob")
        assert llm.complete("a completion").text == "a completion"
        llm.chat([user("none")], agent=None)
        assert memory.agents() == []
        llm.chat([user("a call's")], agent="ann")
        llm.chat([user("the LLM's")])
        assert {info.name for info in memory.agents()} == {"ann", "bob"}


def test_a_base_model_completes_texts_as_they_are() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        llm = AgentMemoryLLM(memory, is_chat=False)
        assert not llm.metadata.is_chat_model
        done = llm.complete("Once")
        assert done.additional_kwargs["prompt_tokens"] == memory.generate("Once", raw=True).usage.prompt_tokens
        assert "".join(piece.delta or "" for piece in llm.stream_complete("Once")) == "Once"


def test_what_is_not_supported_is_refused_by_name() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        llm = AgentMemoryLLM(memory)
        with pytest.raises(UnsupportedParameterError, match="a block of type 'image'"):
            llm.chat([ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(image=b"hi")])])
        with pytest.raises(UnsupportedParameterError, match="has no option 'logprobs'"):
            llm.chat([user("Hello?")], logprobs=True)


@pytest.mark.model
def test_the_starter_model_reuses_a_turn_with_a_call(starter: Memory) -> None:
    llm = AgentMemoryLLM(starter, "llama-index", max_tokens=48)
    asked = llm.chat_with_tools([ADD], "1 + 2?", tool_required=True)
    history = [user("1 + 2?"), asked.message, result(asked, llm)]
    *_, answer = llm.stream_chat_with_tools([ADD], chat_history=history, max_tokens=8)
    assert answer.additional_kwargs["cached_tokens"] >= asked.additional_kwargs["total_tokens"]
