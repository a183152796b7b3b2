"""Calls that type checkers refuse: each line that ends in ``# wrong``, and no other. Checked, never run."""

from __future__ import annotations

from pathlib import Path

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
    ToolResult,
    as_completed,
)  # fmt: skip


def asks(memory: Memory, agent: Agent) -> None:
    memory.generate("hi", max_tokns=5)  # wrong
    memory.generate("hi", max_tokens="5")  # wrong
    memory.generate("hi", "ann")  # wrong
    memory.generate(b"hi")  # wrong
    memory.generate(3)  # wrong
    memory.generate(["hi"])  # wrong
    memory.generate("hi", agent=3)  # wrong
    memory.generate("hi", agent=Path("ann"))  # wrong
    memory.generate("hi", agent=["ann"])  # wrong
    memory.generate("hi", temperature="hot")  # wrong
    memory.generate("hi", top_k=0.5)  # wrong
    memory.generate("hi", sampling=0.7)  # wrong
    memory.generate("hi", sampling=None)  # wrong
    memory.generate("hi", stop=3)  # wrong
    memory.generate("hi", tools=[3])  # wrong
    memory.generate("hi", tools="add")  # wrong
    memory.generate("hi", tools=Tool("f"))  # wrong
    memory.generate("hi", tool_choice="always")  # wrong
    memory.generate("hi", tool_choice={"name": 3})  # wrong
    memory.generate("hi", schema="object")  # wrong
    memory.generate("hi", template=["enable_thinking"])  # wrong
    memory.generate("hi", raw="yes")  # wrong
    memory.generate("hi", priority="high")  # wrong
    memory.generate("hi", timeout_s="soon")  # wrong
    memory.generate("hi", logits_processors=[3])  # wrong
    memory.generate("hi", on_diverge="ignore")  # wrong
    memory.stream("hi", stream=True)  # wrong
    memory.stream("hi", parallel_tool_calls="no")  # wrong
    memory.batch("hi", max_tokens=3).text  # wrong
    memory.batch(["hi"], agent=[3])  # wrong
    memory.batch(["hi"], return_error=True)  # wrong
    memory.batch([3])  # wrong
    memory.run_tools(agent, "hi", [3])  # wrong
    memory.run_tools(agent, "hi", [print], rounds=3)  # wrong
    memory.run_tools(None, "hi", [print])  # wrong
    memory.run_tools("a", "hi", [print], tool_timeout="3")  # wrong
    memory.group("team", ["a"], topology="star")  # wrong
    memory.group("team").turn(max_token=3)  # wrong
    memory.group("team").vote("Who?", 3)  # wrong
    memory.evict(agent, to="hot")  # wrong
    memory.delete(3)  # wrong
    memory.count_tokens(["hi"])  # wrong
    agent.say("hi", agent="bob")  # wrong
    agent.say("hi", max_token=3)  # wrong
    agent.say(Message)  # wrong
    agent.stream("hi", seed="x")  # wrong
    agent.give("done")  # wrong
    agent.give(ToolResult("1", "x"), max_tokens=None)  # wrong
    memory.messages.create(messages=[], stream=True).stop_reason  # wrong


def values(memory: Memory, reply: Reply, handle: Generation) -> None:
    prompt: Prompt = 3  # wrong
    options: Options = {"max_tokns": 3}  # wrong
    memory.generate("hi", max_tokens="x")  # wrong
    Memory(3)  # wrong
    Memory(EchoRunner(), path=3)  # wrong
    Memory(EchoRunner(), config={"chunk_tokens": 16})  # wrong
    Config(chunk_tokens="16")  # wrong
    Sampling(0.7)  # wrong
    reply.text = "x"  # wrong
    reply.finish == "length" and reply.finnish  # wrong
    reply.usage.tiers  # wrong
    as_completed([reply])  # wrong
    handle.result(timeout="x")  # wrong
    memory.path.name  # wrong
    memory.model_name = "x"  # wrong
    print(prompt, options)
