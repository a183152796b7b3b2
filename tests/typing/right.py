"""Calls that type checkers accept: each line that ends in ``# right``. Checked, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, assert_type

import agent_memory as am
from agent_memory import (
    Agent,
    Config,
    EchoRunner,
    Generation,
    Memory,
    Message,
    Options,
    Prompt,
    Reply,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolLike,
    ToolResult,
    as_completed,
)


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


class Model:
    """As pydantic's."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {}


def wrapped(agent: Agent, text: str, **options: Unpack[Options]) -> Reply:
    """Options pass on, typed."""
    return agent.say(text, **options)  # right


def asks(memory: Memory, agent: Agent, history: list[dict[str, str]], mixed: list[Message | dict[str, Any]]) -> None:
    assert_type(memory.generate("hi"), Reply)  # right
    assert_type(memory.stream("hi", agent=agent), Generation)  # right
    memory.generate(history, agent="ann", max_tokens=5)  # right
    memory.generate(mixed, temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, seed=1, repetition_penalty=1.1)  # right
    memory.generate(Message("user", "hi"), sampling=Sampling(temperature=1.0))  # right
    memory.generate({"role": "user", "content": "hi"}, stop="x")  # right
    memory.generate([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], stop=["x", "y"])  # right
    agent.say("hi", tools=[add, Tool("f"), {"name": "g", "input_schema": {}}], tool_choice="required")  # right
    agent.say("hi", tools=(add,), tool_choice={"name": "add"}, parallel_tool_calls=False)  # right
    agent.say("hi", schema={"type": "object"}, template={"enable_thinking": False})  # right
    agent.say("hi", schema=Model, timeout_s=3, priority=1)  # right
    agent.say("hi", timeout_s=None, raw=True, temperature=None)  # right
    agent.say("hi", logits_processors=[lambda ids, logits: logits])  # right
    assert_type(agent.stream("hi", max_tokens=3), Generation)  # right
    assert_type(agent.give(ToolResult("1", "x"), ToolResult("2", [{"type": "text", "text": "y"}])), Reply)  # right
    wrapped(agent, "hi", max_tokens=3, stop=("x",))  # right
    assert_type(memory.batch(["one", history]), list[Reply])  # right
    assert_type(memory.batch(["one"], return_errors=True), list[Reply | BaseException])  # right
    memory.batch(["one", "two"], agent=["ann", agent], max_tokens=3)  # right
    memory.batch(("one", "two"), agent=[None, agent])  # right
    memory.run_tools(agent, "hi", [add], max_rounds=3, temperature=0.1)  # right
    memory.run_tools("ann", history, [add], timeout_s=1.5)  # right
    memory.run_tools("ann", functions=[add], results=[ToolResult("1", "x")], tool_timeout_s=3, concurrent=True)  # right
    group = memory.group("team", ["ann", agent], topology="turns", phases=[am.Phase("one", "Go.", rounds=2)])  # right
    assert_type(group, am.Group)  # right
    assert_type(group.turn(agent, max_tokens=3), Reply)  # right
    assert_type(group.stream(), Generation)  # right
    assert_type(group.round(temperature=0.1), dict[str, Reply])  # right
    assert_type(group.vote("Who?", ["a", "b"], ranked=True, seed=3), am.Tally)  # right
    assert_type(group.transcript[0].speaker, str | None)  # right
    assert_type(memory.prefill(history, agent=agent, tools=[add]).computed_tokens, int)  # right
    assert_type(memory.count_tokens("hi", tools=[add]), int)  # right
    assert_type(memory.delete(agent), bool)  # right
    memory.evict(agent, to="warm")  # right
    assert_type(memory.agent(agent).messages, tuple[Message, ...])  # right
    assert_type(iter(memory.messages.create(messages=history, stream=True).text_stream), Iterator[str])  # right


def values(memory: Memory, reply: Reply, handle: Generation, choice: ToolChoice, tools: Sequence[ToolLike]) -> None:
    prompt: Prompt = [Message("user", "hi"), {"role": "assistant", "content": "x"}]  # right
    memory.generate(prompt, tool_choice=choice, tools=tools)  # right
    options: Options = {"max_tokens": 3, "temperature": 0.1}  # right
    memory.generate("hi", **options)  # right
    assert_type(reply.finish, am.Finish)  # right
    assert_type(reply.usage.tier, am.Tier)  # right
    assert_type(reply.tool_calls, tuple[ToolCall, ...])  # right
    assert_type(reply.usage.to_dict(), dict[str, Any])  # right
    assert_type(memory.stats().to_dict(), dict[str, Any])  # right
    assert_type(memory.path, Path | None)  # right
    assert_type(memory.context_tokens, int | None)  # right
    for delta in handle:
        for event in delta.events:
            if isinstance(event, am.CallEnd):
                assert_type(event.call, ToolCall | None)  # right
            elif isinstance(event, am.Text | am.Reasoning):
                assert_type(event.text, str)  # right
    for one in as_completed([handle]):
        assert_type(one.state, am.State)  # right


async def loops(config: Config, folder: Path) -> AsyncIterator[str]:
    async with Memory.aopen(EchoRunner(), folder, config=config) as memory:  # right
        assert_type(await memory.stream("hi"), Reply)  # right
        async for one in as_completed([memory.stream("hi")]):
            yield (await one).text  # right
    again: Memory = await Memory.aopen("model", ":memory:")  # right
    await again.messages.create(max_tokens=3, messages=[], stream=True)  # right
    found: Mapping[str, Any] = again.messages.create(max_tokens=3, messages=[]).to_dict()  # right
    yield str(found)
