"""OpenAI's Agents SDK: its runner on our model, with conversation ids and sessions."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from agents import Agent, ModelSettings, RunConfig, Runner, UserError, WebSearchTool, function_tool
from agents.tracing import set_tracing_disabled
from pydantic import BaseModel

from agent_memory import EchoRunner, Memory, UnsupportedParameterError
from agent_memory.integrations.openai_agents import AgentMemoryModel, AgentMemoryProvider, AgentMemorySession
from tests.parts.scripted import call, scripted

pytestmark = pytest.mark.contract

SUM = "Let me add.\n" + call("add", {"a": 1, "b": 2})


@pytest.fixture(autouse=True)
def _no_traces() -> None:
    set_tracing_disabled(True)  # they would be sent away


class Cat(BaseModel):
    name: str
    legs: int


class Sum(BaseModel):
    total: Literal[2, 3, 4]


@function_tool
def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


def adder(model: Any = None) -> Agent[None]:
    return Agent(name="adder", instructions="You are exact.", model=model, tools=[add])


def usages(result: Any) -> list[tuple[int, int, int]]:
    """Prompt, cached and output tokens of each reply of a run."""
    found = [one.usage for one in result.raw_responses]
    return [(one.input_tokens, one.input_tokens_details.cached_tokens, one.output_tokens) for one in found]


async def test_a_tool_loop_computes_only_what_is_new() -> None:
    async with Memory(scripted(SUM, "Three.", "Bye."), ":memory:") as memory:
        agent = adder(AgentMemoryModel(memory, agent="ann"))
        first = await Runner.run(agent, "1 + 2?")
        assert first.final_output == "Three."
        [(prompt, _, said), (longer, cached, answered)] = usages(first)
        assert cached >= prompt + said
        second = await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "Thanks."}])
        [(_, cached, _)] = usages(second)
        assert cached >= longer + answered
        assert second.raw_responses[0].raw_usage["replaced_messages"] == 0
        assert [(info.name, info.n_turns) for info in memory.agents()] == [("ann", 3)]


async def test_with_a_conversation_id_only_new_items_arrive() -> None:
    async with Memory(scripted(SUM, "Three.", "Bye."), ":memory:") as memory:
        arrived: list[Any] = []

        class Watched(AgentMemoryModel):
            async def get_response(self, system_instructions: Any, input: Any, *rest: Any, **where: Any) -> Any:
                arrived.append([one.get("type", one.get("role")) for one in input])
                return await super().get_response(system_instructions, input, *rest, **where)

        agent = adder(Watched(memory, agent="ann"))
        first = await Runner.run(agent, "1 + 2?", conversation_id="42")
        second = await Runner.run(agent, "Thanks.", conversation_id="42")
        assert arrived == [["user"], ["function_call_output"], ["user"]]
        [(prompt, _, said), (longer, cached, answered)] = usages(first)
        assert cached >= prompt + said
        [(_, cached, _)] = usages(second)
        assert cached >= longer + answered
        assert [(info.name, info.n_turns) for info in memory.agents()] == [("ann/42", 3)]
        assert [one.role for one in memory.agent("ann/42").messages] == [
            "system", "user", "assistant", "tool", "assistant", "user", "assistant"
        ]  # fmt: skip


async def test_a_streamed_tool_loop_does_so_too() -> None:
    said = "<think>Easy.</think>" + SUM
    async with Memory(scripted(said, "One two three."), ":memory:") as memory:
        result = Runner.run_streamed(adder(AgentMemoryModel(memory)), "1 + 2?", conversation_id="42")
        events = [event async for event in result.stream_events()]
        raw = [event.data for event in events if event.type == "raw_response_event"]
        texts = [one.delta for one in raw if one.type == "response.output_text.delta"]
        assert len(texts) > 2
        assert "".join(texts) == "Let me add.\nOne two three."
        assert [one.delta for one in raw if one.type == "response.function_call_arguments.delta"] == [
            '{"a": 1, "b": 2}'
        ]
        assert "".join(one.delta for one in raw if one.type == "response.reasoning_summary_text.delta") == "Easy."
        assert [one.type for one in result.raw_responses[0].output] == ["reasoning", "message", "function_call"]
        assert result.final_output == "One two three."
        ended = [one.response for one in raw if one.type == "response.completed"]
        assert [one.usage.input_tokens_details.cached_tokens for one in ended] == [one[1] for one in usages(result)]
        named = [event.name for event in events if event.type == "run_item_stream_event"]
        assert named == ["reasoning_item_created", "message_output_created", "tool_called", "tool_output",
                         "message_output_created"]  # fmt: skip


async def test_output_is_held_to_its_type() -> None:
    async with Memory(scripted('{"name": "Tom", "legs": 4}'), ":memory:") as memory:
        agent = Agent(name="cats", model=AgentMemoryModel(memory), output_type=Cat)
        assert (await Runner.run(agent, "A cat.")).final_output == Cat(name="Tom", legs=4)


async def test_an_event_loop_runs_agents_side_by_side() -> None:
    async with Memory(EchoRunner(delay_s=0.001), ":memory:") as memory:
        agent = Agent(name="echo", model=AgentMemoryModel(memory))
        results = await asyncio.gather(*(Runner.run(agent, f"number {n}", conversation_id=str(n)) for n in range(4)))
        assert [result.final_output for result in results] == [f"number {n}" for n in range(4)]
        assert {info.name for info in memory.agents()} == {"0", "1", "2", "3"}


async def test_a_cancelled_task_leaves_the_log_as_it_was() -> None:
    async with Memory(scripted("Hello.", "so " * 2000, delay_s=0.002), ":memory:") as memory:
        settings = ModelSettings(max_tokens=4096)
        agent = Agent(name="long", model=AgentMemoryModel(memory), model_settings=settings)
        await Runner.run(agent, "Hello?", conversation_id="42")
        task = asyncio.create_task(Runner.run(agent, "Go on.", conversation_id="42"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [message.content for message in memory.agent("42").messages] == ["Hello?", "Hello."]


async def test_a_stream_can_be_cancelled() -> None:
    async with Memory(scripted("so " * 2000, delay_s=0.002), ":memory:") as memory:
        settings = ModelSettings(max_tokens=4096)
        agent = Agent(name="long", model=AgentMemoryModel(memory), model_settings=settings)
        result = Runner.run_streamed(agent, "Go on.", conversation_id="42")
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                result.cancel()
        assert memory.agent("42").messages == ()
        assert memory.generate("Still there?").text == "Still there?"


async def test_a_session_is_an_agents_log(tmp_path: Any) -> None:
    async with Memory(scripted(SUM, "Three.", "Bye."), tmp_path) as memory:
        session = AgentMemorySession(memory, "42")
        run = RunConfig(model=session.model)
        first = await Runner.run(adder(), "1 + 2?", session=session, run_config=run)
        second = await Runner.run(adder(), "Thanks.", session=session, run_config=run)
        assert second.final_output == "Bye."
        [(prompt, _, said), (longer, cached, answered)] = usages(first)
        assert cached >= prompt + said
        [(_, cached, _)] = usages(second)
        assert cached >= longer + answered
        items = await session.get_items()
        kinds = ["user", "message", "function_call", "function_call_output", "message", "user", "message"]
        assert [one.get("type", one.get("role")) for one in items] == kinds
        assert await session.get_items(2) == items[-2:]
    async with Memory(scripted("Hello again."), tmp_path) as memory:  # another process, another day
        session = AgentMemorySession(memory, "42")
        assert await session.get_items() == items
        third = await Runner.run(adder(), "Hello.", session=session, run_config=RunConfig(model=session.model))
        [(_, cached, _)] = usages(third)
        assert cached >= usages(second)[0][0] + usages(second)[0][2]


async def test_items_are_taken_back_and_cleared() -> None:
    async with Memory(scripted("Hello.", "Hello to you."), ":memory:") as memory:
        session = AgentMemorySession(memory, "42")
        run = RunConfig(model=session.model)
        agent = Agent(name="echo")
        await session.add_items([{"role": "user", "content": "By hand."}])
        assert await session.get_items() == [{"role": "user", "content": "By hand."}]
        assert await session.pop_item() == {"role": "user", "content": "By hand."}
        await Runner.run(agent, "Hello?", session=session, run_config=run)
        popped = await session.pop_item()
        assert popped["content"][0]["text"] == "Hello."
        assert await session.get_items() == [{"role": "user", "content": "Hello?"}]
        assert await session.pop_item() == {"role": "user", "content": "Hello?"}
        assert await session.pop_item() is None
        await Runner.run(agent, "Hello?", session=session, run_config=run)
        assert [one.content for one in memory.agent("42").messages] == ["Hello?", "Hello to you."]
        await session.clear_session()
        assert memory.agents() == []
        assert await session.get_items() == []


async def test_which_agent_a_call_has() -> None:
    async with Memory(EchoRunner(), ":memory:") as memory:
        run = RunConfig(model_provider=AgentMemoryProvider(memory))
        await Runner.run(Agent(name="a"), "no name", run_config=run)
        assert memory.agents() == []
        await Runner.run(Agent(name="a", model="ann"), "a name", run_config=run)
        await Runner.run(Agent(name="a", model="bob"), "both", run_config=run, conversation_id="42")
        none = ModelSettings(extra_args={"agent": None})
        await Runner.run(Agent(name="a", model="none", model_settings=none), "none", run_config=run)
        assert {info.name for info in memory.agents()} == {"ann", "bob/42"}


async def test_a_conversation_is_handed_over() -> None:
    over = call("transfer_to_bob", {})
    async with Memory(scripted(over, "Bob here."), ":memory:") as memory:
        bob = Agent[None](name="bob", handoffs=[])
        ann = Agent[None](name="ann", handoffs=[bob])
        run = RunConfig(model=AgentMemoryModel(memory))
        result = await Runner.run(ann, "Is Bob there?", conversation_id="42", run_config=run)
        assert (result.last_agent, result.final_output) == (bob, "Bob here.")
        assert [one.role for one in memory.agent("42").messages] == ["user", "assistant", "tool", "assistant"]


async def test_a_side_run_leaves_the_conversation_alone() -> None:
    async with Memory(EchoRunner(), ":memory:") as memory:
        model = AgentMemoryModel(memory, agent="ann")
        await Runner.run(Agent(name="a", model=model), "Hello?")
        branch = ModelSettings(extra_args={"on_diverge": "branch"})
        side = Agent(name="a", model=model, model_settings=branch)
        assert (await Runner.run(side, "Write a title.")).final_output == "Write a title."
        assert [message.content for message in memory.agent("ann").messages] == ["Hello?", "Hello?"]


async def test_what_is_not_supported_is_refused_by_name() -> None:
    async with Memory(EchoRunner(), ":memory:") as memory:
        model = AgentMemoryModel(memory)
        penalty = ModelSettings(presence_penalty=1.0)
        with pytest.raises(UserError, match="presence_penalty is not supported"):
            await Runner.run(Agent(name="a", model=model, model_settings=penalty), "Hello?")
        with pytest.raises(UserError, match="previous_response_id is not supported"):
            await Runner.run(Agent(name="a", model=model), "Hello?", previous_response_id="r")
        with pytest.raises(UserError, match="Hosted tools are not supported"):
            await Runner.run(Agent(name="a", model=model, tools=[WebSearchTool()]), "Hello?")
        with pytest.raises(UnsupportedParameterError, match="give no tools with it"):
            await Runner.run(adder(model).clone(output_type=Cat), "A cat.")
        image: Any = {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"}
        with pytest.raises(UnsupportedParameterError, match="content block 0 is of type 'image_url'"):
            await Runner.run(Agent(name="a", model=model), [{"role": "user", "content": [image]}])


@pytest.mark.model
async def test_the_starter_model_reuses_a_turn_with_a_call(starter: Memory) -> None:
    settings = ModelSettings(tool_choice="required", max_tokens=48)
    agent = adder(AgentMemoryModel(starter, agent="openai-agents"))
    agent.model_settings = settings
    first = await Runner.run(agent, "1 + 2?", conversation_id="42", max_turns=2)
    [(prompt, _, said), (_, cached, _)] = usages(first)
    assert cached >= prompt + said
