"""Tool calling through Memory and Agent: what streams is what is returned, and what is logged is what was said."""

from __future__ import annotations

import asyncio
import json
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from agent_memory import (
    Agent,
    ConfigError,
    Memory,
    Message,
    Reply,
    Tool,
    ToolCall,
    ToolResult,
    ToolResultError,
    UnsupportedParameterError,
)  # fmt: skip
from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.types import CallArguments, CallEnd, CallStart, Delta, Reasoning, Text
from tests.parts.opening import opening
from tests.parts.scripted import scripted

ADD = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}})
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
TWO = f"Let me see.\n{CALL}\n{CALL}\nDone."


@pytest.fixture
def opened() -> Iterator[Callable[..., Memory]]:
    with opening(lambda *replies, path=":memory:": Memory(scripted(*replies), path)) as open_:
        yield open_


def without_ids(calls: Sequence[ToolCall]) -> list[tuple[str, Any]]:
    return [(call.name, dict(call.arguments)) for call in calls]


@pytest.mark.parametrize(
    "said",
    [TWO, CALL, "plain", '<tool_call>{"name": "add", "arguments": {"a": 1 "b"}}</tool_call>',
     f"<think>hm {CALL}</think>\n\nSo {CALL}", '<tool_call>{"name": "sub", "arguments": {}}', "{",
     '{"tool_use": {"name": "add", "input": {"a": 1}}}', '<tool_call>{"name": "add", "arguments": {"a": ', "<tool_c"],
)  # fmt: skip
def test_a_stream_and_its_reply_agree(free: None, opened: Any, said: str) -> None:
    memory = opened(said, said, said)
    reply = memory.generate("go", tools=[ADD])
    with memory.stream("go", tools=[ADD]) as handle:
        deltas = list(handle)
        streamed = handle.result()

    async def collect() -> tuple[list[Delta], Reply]:
        handle = memory.stream("go", tools=[ADD])
        return [delta async for delta in handle], await handle

    for found, result in ((deltas, streamed), asyncio.run(collect())):
        events = [event for delta in found for event in delta.events]
        assert "".join(delta.text for delta in found) == reply.text == result.text
        assert "".join(e.text for e in events if isinstance(e, Text)) == reply.text
        assert "".join(e.text for e in events if isinstance(e, Reasoning)) == reply.reasoning == result.reasoning
        assert "".join(event.source for event in events) == said
        ended = [e.call for e in events if isinstance(e, CallEnd) and e.call]
        assert ended == list(result.tool_calls)
        assert without_ids(ended) == without_ids(reply.tool_calls)
        assert result.rejected_calls == reply.rejected_calls
        for start in (e for e in events if isinstance(e, CallStart)):
            pieces = "".join(e.text for e in events if isinstance(e, CallArguments) and e.index == start.index)
            assert not ended or json.loads(pieces) == ended[start.index].arguments
        assert result.finish == reply.finish


def test_a_reply_with_calls_says_so_and_one_without_does_not_18(free: None, opened: Any) -> None:
    memory = opened(TWO, "no call", '<tool_call>{"name": "sub"}</tool_call>')
    reply = memory.generate("go", tools=[ADD])
    assert (reply.finish, reply.text) == ("tool_calls", "Let me see.\n\nDone.")
    assert without_ids(reply.tool_calls) == [("add", {"a": 1, "b": 2})] * 2
    assert reply.message.tool_calls == reply.tool_calls
    assert memory.generate("go", tools=[ADD]).finish == "stop"
    rejected = memory.generate("go", tools=[ADD])
    assert (rejected.finish, rejected.rejected_calls[0].reason) == ("stop", "undeclared")


@pytest.mark.parametrize(
    "call",
    [
        '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>',
        r'<tool_call>{"name": "add", "arguments": "{\"a\": \"\ud800\"}"}</tool_call>',
        r'<tool_call>[{"name": "add", "arguments": {}, "id": "\ud800"}]</tool_call>',
    ],
)
def test_a_call_that_no_message_can_hold_leaves_the_agent_usable(free: None, opened: Any, call: str) -> None:
    ann = opened(call, "fine").agent("ann", tools=[ADD])
    reply = ann.say("go")
    assert (reply.finish, reply.tool_calls, reply.rejected_calls[0].reason) == ("stop", (), "malformed")
    assert ann.say("so?").text == "fine"


def test_without_tools_or_with_the_choice_none_a_call_is_text_13(opened: Any) -> None:
    memory = opened(CALL, CALL)
    for reply in (memory.generate("go"), memory.generate("go", tools=[ADD], tool_choice="none")):
        assert (reply.text, reply.tool_calls, reply.finish) == (CALL, (), "stop")
    with_none = memory.stream("go", tools=[ADD], tool_choice="none").result().usage.prompt_tokens
    assert with_none == memory.generate("go").usage.prompt_tokens < memory.count_tokens("go", tools=[ADD])


def test_a_reply_that_begins_inside_reasoning_is_understood_12(opened: Any) -> None:
    memory = opened(f"I could {CALL}.</think>\n\n{CALL}", "plain")
    reply = memory.generate("go", tools=[ADD], template={"reply_prefix": "<think>\n"})
    assert (reply.reasoning, reply.text, len(reply.tool_calls)) == (f"I could {CALL}.", "", 1)
    assert memory.generate("about <think>", tools=[ADD]).reasoning == ""


def test_one_call_at_most_ends_the_generation_after_it_16(opened: Any) -> None:
    memory = opened(TWO, TWO)
    one = memory.generate("go", tools=[ADD], parallel_tool_calls=False)
    assert without_ids(one.tool_calls) == [("add", {"a": 1, "b": 2})]
    assert (one.finish, one.text.rstrip()) == ("tool_calls", "Let me see.")
    assert one.usage.output_tokens < memory.generate("go", tools=[ADD]).usage.output_tokens * 0.7


@pytest.mark.parametrize("max_tokens", range(4, 60, 5))
def test_a_call_that_max_tokens_cuts_is_marked_and_the_finish_is_length_17(opened: Any, max_tokens: int) -> None:
    memory = opened(CALL, CALL)
    whole = memory.generate("go", tools=[ADD])
    reply = memory.generate("go", tools=[ADD], max_tokens=max_tokens)
    if max_tokens >= whole.usage.output_tokens or reply.tool_calls:
        assert (reply.finish, reply.rejected_calls) == ("tool_calls", ())
    else:
        assert reply.finish == "length"
        assert [call.reason for call in reply.rejected_calls] == ["truncated"] * (
            len(reply.text) >= len("<tool_call>") or not reply.text
        )


@pytest.mark.parametrize("said", [f"{CALL}\n{CALL[:50]}", CALL[:50], f"{CALL} {CALL[:12]}"])
def test_a_call_that_is_cut_counts_more_than_one_that_is_complete_17(free: None, opened: Any, said: str) -> None:
    reply = opened(said).generate("go", tools=[ADD])
    assert (reply.finish, [call.reason for call in reply.rejected_calls]) == ("length", ["truncated"])
    assert len(reply.tool_calls) == (CALL in said)


class Ignorant(EchoTokenizer):
    """A tokenizer whose template knows no tools."""

    @property
    def knows_tools(self) -> bool:
        return False


def test_a_history_given_as_dicts_reuses_what_the_model_really_wrote() -> None:
    runner = scripted('{"tool_use":{"name":"add","input":{"a":1}}}', "one")  # not spaced as we would write it
    runner._tokenizer = Ignorant()
    with Memory(runner, ":memory:") as memory:
        asked = memory.generate("1?", agent="ann", tools=[ADD])
        [call] = asked.tool_calls
        history = [
            {"role": "user", "content": "1?"},
            {
                "role": "assistant",
                "tool_calls": [{"id": call.id, "function": {"name": "add", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "1"},
        ]
        answered = memory.generate(history, agent="ann", tools=[ADD])
        assert answered.text == "one"
        assert answered.usage.cached_tokens >= asked.usage.prompt_tokens + asked.usage.output_tokens - 1


def test_a_dialogue_with_calls_reuses_everything_and_survives_a_restart(tmp_path: Path) -> None:
    runner = scripted(f"Hm.\n{CALL}", "three", "bye")
    with Memory(runner, tmp_path) as memory:
        ann = memory.agent("ann", system="You add.", tools=[ADD])
        asked = ann.say("1 + 2?")
        answered = ann.give(ToolResult(asked.tool_calls[0].id, "3"))
        assert answered.text == "three"
        assert answered.usage.cached_tokens >= asked.usage.prompt_tokens + asked.usage.output_tokens - 1
        assert [m.role for m in ann.messages] == ["system", "user", "assistant", "tool", "assistant"]
        assert ann.messages[3] == Message("tool", "3", tool_call_id=asked.tool_calls[0].id, name="add")
        before = ann.messages
    with Memory(scripted(CALL), tmp_path) as memory:
        ann = memory.agent("ann")
        assert (ann.tools, ann.messages) == ((ADD,), before)
        assert ann.messages[2].source == f"Hm.\n{CALL}"
        reply = ann.say("again")
        assert (reply.usage.tier, reply.finish) == ("cold", "tool_calls")  # its own tools, without naming them


def test_an_agent_keeps_its_tools_and_refuses_others(opened: Any) -> None:
    memory = opened()
    assert memory.agent("ann", tools=[ADD]).tools == (ADD,)
    assert memory.agent("ann").tools == memory.agent("ann", tools=[ADD]).tools == (ADD,)
    with pytest.raises(ConfigError, match=r"other tools \(\['add'\]; given \['sub'\]\)"):
        memory.agent("ann", tools=[Tool("sub")])


@pytest.mark.parametrize(
    "results",
    [(), ("x",), ("1", "1"), ("1", "x")],
    ids=["missing", "unknown", "repeated", "one too many"],
)
def test_results_that_answer_no_open_call_are_refused_before_any_work_21(opened: Any, results: tuple[str, ...]) -> None:
    memory = opened(CALL)
    ann = memory.agent("ann", tools=[ADD])
    call_id = ann.say("go").tool_calls[0].id
    before, fed = ann.messages, memory.stats().computed_ids
    with pytest.raises(ToolResultError):
        ann.give(*(ToolResult(call_id if one == "1" else one, "3") for one in results))
    with pytest.raises(ToolResultError, match="open call"):
        ann.say("never mind")
    assert (ann.messages, memory.stats().computed_ids) == (before, fed)
    ann.rewind()
    assert ann.say("never mind").text == "never mind"


def test_an_error_and_text_blocks_reach_the_model_21(opened: Any) -> None:
    memory = opened(f"{CALL}{CALL}")
    ann = memory.agent("ann", tools=[ADD])
    one, two = ann.say("go").tool_calls
    ann.give(ToolResult(two.id, [{"type": "text", "text": "boom"}], is_error=True), ToolResult(one.id, "3"))
    assert [m.content for m in ann.messages if m.role == "tool"] == ["3", "Error: boom"]


def test_histories_in_both_apis_shapes_have_the_same_ids_22(opened: Any) -> None:
    memory = opened()
    anthropic = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": [
            {"type": "text", "text": "Hm."},
            {"type": "tool_use", "id": "a", "name": "add", "input": {"a": 1, "b": 2}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "3"}]},
    ]  # fmt: skip
    openai = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "Hm.", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}]},
        {"role": "tool", "tool_call_id": "a", "content": "3"},
    ]  # fmt: skip
    tools = [{"name": "add", "description": "Adds.", "input_schema": dict(ADD.parameters)}]
    functions = [{"type": "function", "function": {
        "name": "add", "description": "Adds.", "parameters": dict(ADD.parameters)}}]  # fmt: skip
    assert memory.count_tokens(anthropic, tools=tools) == memory.count_tokens(openai, tools=functions)
    first = memory.generate(anthropic, tools=tools)
    second = memory.generate(openai, tools=functions)
    assert second.usage.cached_tokens == first.usage.prompt_tokens - 1


def test_the_tools_of_a_function_reach_the_template_and_bad_ones_are_refused(opened: Any) -> None:
    memory = opened()
    assert memory.count_tokens("x", tools=[ADD]) > memory.count_tokens("x")
    for ask in (memory.generate, memory.agent("ann").say, memory.prefill):
        with pytest.raises(UnsupportedParameterError, match="tool 0"):
            ask("x", tools=[3])
    assert memory.prefill("x", tools=[ADD]).computed_tokens > 0


def test_a_batch_keeps_the_calls_of_its_prompts_apart(opened: Any) -> None:
    memory = opened(CALL, "no", TWO)
    assert [len(reply.tool_calls) for reply in memory.batch(["a", "b", "c"], tools=[ADD])] == [1, 0, 2]


def add(a: int, b: int = 0, unit: Literal["m", "s"] | None = None) -> dict[str, Any]:
    """Adds."""
    if b == 13:
        raise ArithmeticError("unlucky")
    return {"sum": a + b, "unit": unit}


def called(**arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': 'add', 'arguments': arguments})}</tool_call>"


def tool_messages(agent: Agent) -> list[str]:
    return [message.content for message in agent.messages if message.role == "tool"]


def test_the_loop_runs_what_is_called_and_ends_with_an_answer(opened: Any) -> None:
    memory = opened(called(a=1, b=2), called(a=3, unit="m") + called(a=4), "All done.")
    reply = memory.run_tools("ann", "go", [add])
    assert (reply.text, reply.finish) == ("All done.", "stop")
    assert [json.loads(text) for text in tool_messages(memory.agent("ann"))] == [
        {"sum": 3, "unit": None}, {"sum": 3, "unit": "m"}, {"sum": 4, "unit": None},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"a": "1"}, "wrong type: a"), ({"a": True}, "wrong type: a"), ({"a": 1, "unit": "kg"}, "wrong type: unit"),
        ({}, "missing arguments: a"), ({"a": 1, "c": 2}, "unknown arguments: c"),
        ({"a": 1, "b": 13}, "ArithmeticError: unlucky"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_a_tool_is_the_models_to_read(free: None, opened: Any, arguments: Any, said: str) -> None:
    memory = opened(called(**arguments), "sorry")
    assert memory.run_tools(memory.agent("ann"), "go", [add]).text == "sorry"
    [answer] = tool_messages(memory.agent("ann"))
    assert answer.startswith("Error: ")
    assert said in answer


def test_the_loop_ends_after_its_rounds_with_the_calls_open(opened: Any) -> None:
    memory = opened(*[called(a=1)] * 9)
    reply = memory.run_tools("ann", "go", [add], max_rounds=3)
    assert (reply.finish, len(tool_messages(memory.agent("ann")))) == ("tool_calls", 3)
    for bad in (0, True, "3"):
        with pytest.raises(UnsupportedParameterError, match="max_rounds"):
            memory.run_tools("bob", "go", [add], max_rounds=bad)
    with pytest.raises(UnsupportedParameterError, match="functions"):
        memory.run_tools("bob", "go", [ADD])
    with pytest.raises(UnsupportedParameterError, match="needs an agent"):
        memory.run_tools(None, "go", [add])  # type: ignore[arg-type]
    with pytest.raises(UnsupportedParameterError):
        memory.run_tools("bob", [{"role": "nobody", "content": "go"}], [add])
    assert [info.name for info in memory.agents()] == ["ann"], "what is refused leaves no new agent"


@pytest.mark.parametrize("functions", [[], ()])
def test_the_loop_needs_a_function_before_it_generates_anything(opened: Any, functions: Any) -> None:
    memory = opened(CALL)
    ann = memory.agent("ann", tools=[ADD])
    with pytest.raises(UnsupportedParameterError, match="at least one function"):
        memory.run_tools(ann, "go", functions)
    assert (ann.messages, memory.stats().computed_ids) == ((), 0)


class Unspeakable(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no words")


def named(kind: str) -> Any:
    """A file's name, in one way or another."""
    if kind == "error":
        raise OSError("no such file: \udcff")
    if kind == "unspeakable":
        raise Unspeakable
    return {"text": "a\udcff", "list": ["a\udcff"], "number": float("inf"), "set": {1}}[kind]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "a\\udcff"), ("list", '["a\\udcff"]'), ("number", "Infinity"),
        ("error", "OSError: no such file: \\udcff"),
        ("unspeakable", "Unspeakable"), ("set", "TypeError: Object of type set is not JSON serializable"),
    ],
)  # fmt: skip
def test_whatever_a_tool_gives_or_raises_reaches_the_model(opened: Any, kind: str, said: str) -> None:
    memory = opened(f'<tool_call>{{"name": "named", "arguments": {{"kind": "{kind}"}}}}</tool_call>', "I see.")
    assert memory.run_tools("ann", "go", [named]).text == "I see."
    [answer] = tool_messages(memory.agent("ann"))
    assert answer == (f"Error: {said}" if ":" in said or kind == "unspeakable" else said)


def count(rows: typing.Sequence, named: typing.Mapping, more: typing.List, rest: typing.Dict) -> str:  # type: ignore[type-arg]  # noqa: UP006
    """Counts."""
    return f"{len(rows)} {sorted(named)} {more} {rest}"


def test_parameters_of_a_kind_without_its_parts_are_passed_as_they_are(opened: Any) -> None:
    arguments = json.dumps({"rows": [1, "b"], "named": {"c": 1, "a": []}, "more": [None], "rest": {"x": {}}})
    memory = opened(f'<tool_call>{{"name": "count", "arguments": {arguments}}}</tool_call>', "I see.")
    assert memory.run_tools("ann", "go", [count]).text == "I see."
    assert tool_messages(memory.agent("ann")) == ["2 ['a', 'c'] [None] {'x': {}}"]
