"""An agent's log is its own: no caller's object is part of it, and no turn of it is lost or doubled."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    Agent,
    AgentDeletedError,
    EchoRunner,
    Memory,
    Message,
    Tool,
    ToolCall,
    ToolResult,
    ToolResultError,
    UnsupportedParameterError,
)  # fmt: skip
from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.types import CallEnd
from tests.parts.faulty import with_faults
from tests.parts.scripted import scripted
from tests.parts.waiting import PATIENCE_S

TAG = Tool("tag", "Tags.", {"type": "object", "properties": {"words": {"type": "array", "items": {"type": "string"}}}})
CALL = '<tool_call>{"name": "tag", "arguments": {"words": ["a", "b"]}}</tool_call>'
WITH_ID = CALL.replace('{"name"', '{"id": "one", "name"')
SAID = {"words": ["a", "b"]}


def arguments_of(path: Path, name: str = "a") -> list[Any]:
    """The arguments of every call in a stored log."""
    with Memory(EchoRunner(), path) as memory:
        return [dict(call.arguments) for message in memory.agent(name).messages for call in message.tool_calls]


def from_reply(memory: Memory) -> Any:
    return memory.agent("a", tools=[TAG]).say("go").tool_calls[0].arguments


def from_message(memory: Memory) -> Any:
    return memory.agent("a", tools=[TAG]).say("go").message.tool_calls[0].arguments


def from_log(memory: Memory) -> Any:
    agent = memory.agent("a", tools=[TAG])
    agent.say("go")
    return agent.messages[-1].tool_calls[0].arguments


def from_history(memory: Memory) -> Any:
    """Arguments in a history that the caller passes; the reply to it calls nothing."""
    given = json.loads(json.dumps(SAID))
    asked = [
        Message("user", "go"),
        {"role": "assistant", "tool_calls": [{"id": "one", "name": "tag", "arguments": given}]},
        Message("tool", "done", tool_call_id="one"),
    ]
    memory.agent("a", tools=[TAG])
    memory.generate(asked, agent="a", tool_choice="none")
    return given


def from_message_in_a_history(memory: Memory) -> Any:
    given = json.loads(json.dumps(SAID))
    call = Message("assistant", "", tool_calls=(ToolCall("tag", given, "one"),))
    memory.generate([Message("user", "go"), call, Message("tool", "done", tool_call_id="one")], agent="a")
    return given


def test_what_a_caller_does_to_a_calls_arguments_is_not_done_to_the_log(tmp_path: Path) -> None:
    taken: list[Callable[[Memory], Any]] = [
        from_reply, from_message, from_log, from_history, from_message_in_a_history,
    ]  # fmt: skip
    for number, take in enumerate(taken):
        path = tmp_path / str(number)
        with Memory(scripted(CALL), path) as memory:
            arguments = take(memory)
            arguments["words"].pop()
            arguments["more"] = object()
            [call] = [call for message in memory.agent("a").messages for call in message.tool_calls]
            assert call.arguments == SAID, take.__name__
        assert arguments_of(path) == [SAID], take.__name__


def test_what_a_reader_of_a_stream_does_to_a_call_is_not_done_to_the_log(tmp_path: Path) -> None:
    with Memory(scripted(CALL + " and so on " * 20), tmp_path) as memory:
        with memory.agent("a", tools=[TAG]).stream("go") as handle:
            for delta in handle:
                for event in delta.events:
                    if isinstance(event, CallEnd) and event.call:
                        event.call.arguments["words"].append(object())
            handle.result()
        assert memory.agent("a").messages[-1].tool_calls[0].arguments == SAID
    assert arguments_of(tmp_path) == [SAID]


def test_a_tool_that_eats_its_arguments_leaves_the_log_whole(tmp_path: Path) -> None:
    def tag(words: list) -> str:  # type: ignore[type-arg]
        """Tags."""
        return ",".join(words.pop() for _ in range(len(words)))

    with Memory(scripted(CALL), tmp_path) as memory:
        memory.run_tools("a", "go", [tag])
        assert memory.agent("a").messages[1].tool_calls[0].arguments == SAID
        assert memory.agent("a").messages[2].content == "b,a"
    assert arguments_of(tmp_path) == [SAID]


def test_the_calls_results_still_match_after_the_reply_was_changed() -> None:
    with Memory(scripted(CALL), ":memory:") as memory:
        agent = memory.agent("a", tools=[TAG])
        call = agent.say("go").tool_calls[0]
        call.arguments["words"].clear()
        assert agent.give(ToolResult(call.id, "done")).text
        assert agent.messages[1].tool_calls[0].arguments == SAID


def test_a_turn_whose_agent_is_deleted_while_it_is_planned_fails_before_any_work(monkeypatch: Any) -> None:
    runner = EchoRunner()
    render = EchoTokenizer.render

    def deleting(self: EchoTokenizer, messages: Any, **more: Any) -> str:
        if messages[-1]["content"] == "second":
            assert memory.delete("a")
            again.extend(memory.agent(name) for name in ["a"] * is_made_again)
        return render(self, messages, **more)

    monkeypatch.setattr(EchoTokenizer, "render", deleting)
    for is_made_again in (False, True):
        again: list[Agent] = []
        with Memory(runner, ":memory:") as memory:
            memory.agent("a").say("first")
            fed = runner.calls.computed
            with pytest.raises(AgentDeletedError, match="'a' was deleted"):
                memory.generate("second", agent="a")
            assert runner.calls.computed == fed
            assert [agent.messages for agent in again] == [()] * is_made_again
            assert [info.n_turns for info in memory.agents()] == [0] * is_made_again


def ping() -> str:
    """Answer."""
    return "pong"


USES: dict[str, Callable[[Agent], object]] = {
    "messages": lambda agent: agent.messages,
    "tools": lambda agent: agent.tools,
    "n_tokens": lambda agent: agent.n_tokens,
    "info": lambda agent: agent.info,
    "say": lambda agent: agent.say("three"),
    "stream": lambda agent: agent.stream("three"),
    "give": lambda agent: agent.give(ToolResult("one", "done")),
    "rewind": lambda agent: agent.rewind(),
    "rewind too far": lambda agent: agent.rewind(99),
    "pin": lambda agent: agent.pin(),
}


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_handle_of_a_deleted_agent_is_dead_and_touches_no_other_of_its_name(is_made_again: bool) -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        old, other = memory.agent("x", system="S"), memory.agent("x")
        old.say("one")
        assert other.delete()
        if is_made_again:
            memory.agent("x", system="T").say("new")
        before = memory.agents()
        for what, use in USES.items():
            with pytest.raises(AgentDeletedError, match=r"memory\.agent\('x'\)"):
                print(what, use(old))
        assert (old.name, repr(old)) == ("x", "Agent('x' deleted)")
        assert old.delete() is False
        assert memory.agents() == before
        assert [info.system for info in before] == ["T"] * is_made_again


def test_the_error_of_a_deleted_agent_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(AgentDeletedError("x")))
    assert (type(error), error.name, str(error)) == (AgentDeletedError, "x", str(AgentDeletedError("x")))


def test_an_agent_of_another_memory_is_refused() -> None:
    with Memory(EchoRunner(), ":memory:") as memory, Memory(EchoRunner(), ":memory:") as other:
        with pytest.raises(UnsupportedParameterError, match="of another Memory"):
            other.generate("hi", agent=memory.agent("x"))
        assert memory.generate("hi", agent=memory.agent("x")).text == "hi"
        assert other.agents() == []


def test_a_queued_request_is_what_it_was_when_it_was_made() -> None:
    runner = EchoRunner(delay_s=0.001)
    faults = with_faults(runner)
    history: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "asked"}]}]
    variables = {"reply_prefix": ""}
    with Memory(runner, ":memory:") as memory:
        first = memory.stream("one " * 400, agent="a", max_tokens=400)
        with faults.hold("step"):  # the log moves on before the second starts: it is planned again
            second = memory.stream(history, agent="a", template=variables)
            history[0]["content"][0]["text"] = "changed"
            history.insert(0, {"role": "system", "content": "changed too " * 100})
            variables["reply_prefix"] = "and this " * 100
        assert first.result(PATIENCE_S).finish == "length"
        reply = second.result(PATIENCE_S)
        assert (reply.text, reply.usage.prompt_tokens < 50) == ("asked", True)
        assert memory.agent("a").messages == (Message("user", "asked"), Message("assistant", "asked"))


def answering(agent: Agent, content: str) -> Callable[[], object]:
    [call] = agent.messages[-1].tool_calls
    return lambda: agent.give(ToolResult(call.id, content))


@pytest.mark.parametrize("follows", ["text", "a call of the same id", "another call", "a rewind"])
def test_an_open_call_is_answered_once_whoever_answers_it(monkeypatch: Any, follows: str) -> None:
    runner = scripted(WITH_ID, {"a call of the same id": WITH_ID, "another call": CALL}.get(follows, "text"))
    render, rivals = EchoTokenizer.render, []

    def rivalled(self: EchoTokenizer, messages: Any, **more: Any) -> str:
        if messages[-1]["role"] == "tool" and rivals:
            rivals.pop()()
        return render(self, messages, **more)

    monkeypatch.setattr(EchoTokenizer, "render", rivalled)
    with Memory(runner, ":memory:") as memory:
        agent = memory.agent("a", tools=[TAG])
        agent.say("go")
        give = answering(agent, "late")
        rivals.append(agent.rewind if follows == "a rewind" else answering(agent, "first"))
        with pytest.raises(ToolResultError, match="log of agent 'a' has moved on"):
            give()
        said = [message.content for message in agent.messages if message.role == "tool"]
        assert said == ([] if follows == "a rewind" else ["first"])
        assert agent.info.n_turns == len(said) * 2
        if follows in ("a call of the same id", "another call"):
            answering(agent, "at last")()
            assert agent.messages[-2].content == "at last"


def test_answers_wait_for_no_turn_that_moves_nothing() -> None:
    with Memory(scripted(CALL), ":memory:") as memory:
        agent = memory.agent("a", tools=[TAG])
        agent.say("go")
        with pytest.raises(ToolResultError):
            agent.say("not yet")
        answering(agent, "done")()
        assert [message.role for message in agent.messages] == ["user", "assistant", "tool", "assistant"]
        with pytest.raises(ToolResultError, match="no open tool calls"):
            agent.give(ToolResult("one", "again"))


REFUSED: dict[str, Callable[[Memory], object]] = {
    "generate": lambda memory: memory.generate("", agent="typo"),
    "stream": lambda memory: memory.stream([], agent="typo"),
    "too long": lambda memory: memory.generate("word " * 500, agent="typo"),
    "prefill": lambda memory: memory.prefill("", agent="typo"),
    "batch": lambda memory: memory.batch(["fine", ""], agent="typo"),
    "settings": lambda memory: memory.generate("fine", agent="typo", max_tokens=-1),
    "tools": lambda memory: memory.generate("fine", agent="typo", tool_choice="required"),
}


@pytest.mark.parametrize("ask", REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_request_makes_no_agent(ask: Callable[[Memory], object], tmp_path: Path) -> None:
    with Memory(EchoRunner(context_tokens=400), tmp_path) as memory:
        with pytest.raises(ValueError):
            ask(memory)
        assert memory.agents() == []
        assert memory.generate("fine", agent="typo").text == "fine"
    with Memory(EchoRunner(), tmp_path) as memory:
        assert [(info.name, info.n_turns) for info in memory.agents()] == [("typo", 1)]


def test_a_batch_and_a_prefill_make_an_agent_that_was_not_there() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        assert [reply.text for reply in memory.batch(["one", "two"], agent="a")] == ["one", "two"]
        assert [message.content for message in memory.agent("a").messages] == ["one", "one", "two", "two"]
        memory.prefill("a shared beginning", agent="b")
        assert {info.name: info.n_turns for info in memory.agents()} == {"a": 2, "b": 0}


def test_an_agent_that_is_made_while_a_first_turn_of_it_is_planned_is_the_one_that_gets_it(monkeypatch: Any) -> None:
    render = EchoTokenizer.render

    def making(self: EchoTokenizer, messages: Any, **more: Any) -> str:
        if not memory.agents():
            memory.agent("a", system="S").say("first")
        return render(self, messages, **more)

    with Memory(EchoRunner(), ":memory:") as memory:
        monkeypatch.setattr(EchoTokenizer, "render", making)
        assert memory.generate("second", agent="a").text == "second"
        said = [message.content for message in memory.agent("a").messages]
        assert said == ["S", "first", "first", "second", "second"]
