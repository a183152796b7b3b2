"""DSPy's modules on our engine."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy
import pytest
from dspy import lm15

from agent_memory import EchoRunner, Memory
from agent_memory.integrations.dspy import AgentMemoryEngine, AsyncAgentMemoryEngine, language_model
from tests.parts.scripted import call, scripted

pytestmark = pytest.mark.contract

SUM = "Let me add.\n" + call("add", {"a": 1, "b": 2})
ADD = lm15.FunctionTool(
    "add", "Add two whole numbers.",
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
)  # fmt: skip
ASKED = lm15.Message.user("1 + 2?")


def request(*messages: Any, **config: Any) -> lm15.Request:
    tools = config.pop("tools", (ADD,))
    return lm15.Request("local", messages, system="You are exact.", tools=tools, config=lm15.Config(**config))


def total(response: lm15.Response) -> int:
    assert response.usage.total_tokens is not None
    return response.usage.total_tokens


def test_a_tool_loop_computes_only_what_is_new() -> None:
    with Memory(scripted(SUM, "Three.", "Bye."), ":memory:") as memory:
        engine = AgentMemoryEngine(memory, "ann")
        asked = engine.complete(request(ASKED))
        [called] = [part for part in asked.message.parts if part.type == "tool_call"]
        assert asked.finish_reason == "tool_call"
        assert called.input == {"a": 1, "b": 2}
        result = lm15.Message("tool", (lm15.ToolResultPart(called.id, (lm15.TextPart("3"),)),))
        answered = engine.complete(request(ASKED, asked.message, result))
        assert answered.message.text == "Three."
        assert (answered.usage.cache_read_tokens or 0) >= total(asked)
        thanks = lm15.Message.user("Thanks.")
        last = engine.complete(request(ASKED, asked.message, result, answered.message, thanks))
        assert (last.usage.cache_read_tokens or 0) >= total(answered)
        assert last.provider_data["usage"]["replaced_messages"] == 0  # type: ignore[index]
        assert [(info.name, info.n_turns) for info in memory.agents()] == [("ann", 3)]


def test_a_stream_assembles_to_the_same_reply() -> None:
    said = "<think>A sum.</think>" + SUM
    with Memory(scripted(said, said), ":memory:") as memory:
        engine = AgentMemoryEngine(memory)
        events = list(engine.stream(request(ASKED)))
        assert len([one for one in events if one.type == "delta" and one.delta.type == "text"]) > 1
        streamed = lm15.materialize_response(iter(events), request(ASKED))
        whole = engine.complete(request(ASKED))
        assert [part.type for part in streamed.message.parts] == ["thinking", "text", "tool_call"]
        assert [getattr(part, "text", "") for part in streamed.message.parts] == [
            getattr(part, "text", "") for part in whole.message.parts
        ]


def test_a_module_predicts_and_counts_what_was_cached() -> None:
    said = "[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]"
    with Memory(scripted(said.format("three"), said.format("four")), ":memory:") as memory:
        lm = language_model(memory)
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
            predict = dspy.Predict("question -> answer")
            assert [predict(question=one).answer for one in ("1 + 2?", "2 + 2?")] == ["three", "four"]
        first, second = [entry["usage"] for entry in lm.history]
        assert second["prompt_tokens_details"]["cached_tokens"] > first["prompt_tokens"] // 2
        assert memory.agents() == []


def test_a_reply_is_held_to_a_schema() -> None:
    schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
    with Memory(scripted('{"legs": 4}'), ":memory:") as memory:
        held = {"type": "json_schema", "schema": schema, "name": "cat"}
        assert AgentMemoryEngine(memory).complete(request(ASKED, tools=(), response_format=held)).message.text == (
            '{"legs": 4}'
        )


async def test_an_event_loop_runs_requests_side_by_side_and_cancels_them() -> None:
    async with Memory(EchoRunner(delay_s=0.001), ":memory:") as memory:
        lm = language_model(memory)
        replies = await asyncio.gather(*(lm.acall(f"number {n}") for n in range(4)))
        assert [reply[0] for reply in replies] == [f"number {n}" for n in range(4)]
    async with Memory(scripted("so " * 2000, delay_s=0.002), ":memory:") as memory:
        engine = AsyncAgentMemoryEngine(memory, "ann")
        task = asyncio.create_task(engine.complete(request(ASKED, max_tokens=4096)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert memory.agent("ann").messages == ()
        assert memory.generate("Still there?").text == "Still there?"


def test_which_agent_a_call_has() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        lm = language_model(memory, agent="bob")
        lm("the engine's")
        lm("a call's", user="ann")
        lm.engine.complete(request(ASKED, extensions={"agent": None}))
        assert {info.name for info in memory.agents()} == {"ann", "bob"}


def test_what_is_not_supported_is_refused_by_name() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        engine = AgentMemoryEngine(memory)
        with pytest.raises(lm15.UnsupportedFeatureError, match="presence_penalty is not supported"):
            engine.complete(request(ASKED, presence_penalty=1.0))
        image = lm15.Message("user", (lm15.ImagePart(data="aGk="),))
        with pytest.raises(lm15.UnsupportedFeatureError, match="type image is not supported"):
            engine.complete(request(image))
