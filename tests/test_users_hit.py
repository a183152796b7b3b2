"""What misled users: each of these did something else than it said, or nothing, without a word."""

from __future__ import annotations

import asyncio
import datetime
import gc
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import pydantic
import pytest

from agent_memory import (
    Agent,
    AgentDeletedError,
    CallArguments,
    CallEnd,
    CallRejected,
    CallStart,
    CancelledError,
    ClosedError,
    Config,
    ConfigError,
    DivergedAt,
    EchoRunner,
    Markup,
    Memory,
    PromptTooLongError,
    Reasoning,
    RequestTimeoutError,
    StoreLockedError,
    Text,
    UnknownAgentError,
    UnsupportedParameterError,
    as_completed,
)


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(EchoRunner(), ":memory:") as memory:
        yield memory


# the store that this very process holds


def test_a_store_that_this_process_holds_says_so_and_what_to_type(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path):
        with pytest.raises(StoreLockedError) as caught:
            Memory(EchoRunner(), tmp_path)
        text = str(caught.value)
        assert f"in use by this process ({os.getpid()})" in text
        assert "type memory.close()" in text
    Memory(EchoRunner(), tmp_path).close()


def test_a_store_that_another_process_holds_names_that_one(tmp_path: Path) -> None:
    program = (
        "import sys; from agent_memory import EchoRunner, Memory\n"
        f"with Memory(EchoRunner(), {str(tmp_path)!r}): print('open', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreLockedError) as caught:
            Memory(EchoRunner(), tmp_path)
        other.communicate()
    assert f"in use by process {other.pid} on {socket.gethostname()}. Close it there" in str(caught.value)
    assert "this process" not in str(caught.value)


def test_a_memory_lives_as_long_as_an_agent_of_it_and_gives_its_store_back_then(tmp_path: Path) -> None:
    agent = Memory(EchoRunner(), tmp_path).agent("ann")
    gc.collect()
    assert agent.say("hello").text == "hello"
    del agent
    gc.collect()
    with Memory(EchoRunner(), tmp_path) as memory:
        assert memory.agent("ann").messages[0].content == "hello"


# an agent, or its name, everywhere


def test_an_agent_is_taken_wherever_its_name_is(memory: Memory) -> None:
    ann = memory.agent("ann")
    user = [{"role": "user", "content": "hi"}]
    asks: dict[str, Any] = {
        "generate": lambda agent: memory.generate("hi", agent=agent),
        "stream": lambda agent: memory.stream("hi", agent=agent).result(),
        "batch": lambda agent: memory.batch(["hi"], agent=agent),
        "prefill": lambda agent: memory.prefill("hi", agent=agent),
        "run_tools": lambda agent: memory.run_tools(agent, "hi", [ping]),
        "messages": lambda agent: memory.messages.create(agent=agent, max_tokens=9, messages=user),
        "chat": lambda agent: memory.chat.completions.create(agent=agent, messages=user),
        "evict": lambda agent: memory.evict(agent),
        "agent": lambda agent: memory.agent(agent),
    }
    for name, ask in asks.items():
        before = ann.info.n_turns
        for agent in (ann, "ann"):
            ask(agent)
        grown = 0 if name in ("prefill", "evict", "agent", "messages", "chat") else 2  # a list is a whole history
        assert name in ("messages", "chat") or ann.info.n_turns == before + grown, name
    assert [info.name for info in memory.agents()] == ["ann"]
    assert memory.agent(ann).messages == ann.messages


def ping() -> str:
    """Answer."""
    return "pong"


def test_deleting_an_agent_by_its_handle_deletes_it(memory: Memory) -> None:
    ann = memory.agent("ann", system="S")
    ann.say("hi")
    assert memory.delete(ann) is True
    assert memory.agents() == []
    assert memory.delete(ann) is False
    assert memory.delete("ann") is False
    with pytest.raises(AgentDeletedError):
        memory.agent(ann)
    assert memory.agent("ann").messages == ()


def test_a_handle_of_a_deleted_agent_deletes_no_new_one_of_its_name(memory: Memory) -> None:
    old = memory.agent("ann")
    memory.delete(old)
    memory.agent("ann").say("hi")
    assert memory.delete(old) is False
    assert [info.n_turns for info in memory.agents()] == [1]


def test_an_agent_of_another_memory_is_refused_everywhere(memory: Memory) -> None:
    with Memory(EchoRunner(), ":memory:") as other:
        ann = other.agent("ann")
        for use in (memory.delete, memory.evict, memory.agent, lambda agent: memory.prefill("hi", agent=agent)):
            with pytest.raises(UnsupportedParameterError, match="of another Memory"):
                use(ann)
        assert [info.name for info in other.agents()] == ["ann"]


def test_evicting_an_agent_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.agent("ann").say("hi")
        with pytest.raises(UnknownAgentError, match="no agent 'anne' in this store") as caught:
            memory.evict("anne")
        assert isinstance(caught.value, LookupError)
        assert pickle.loads(pickle.dumps(caught.value)).name == "anne"
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.evict("ann")  # in the store, though nobody has opened it here
        assert memory.agent("ann").info.n_turns == 1
        assert isinstance(memory.agent("ann"), Agent)


# event loops, and several requests at once


class Slow(EchoRunner):
    """An EchoRunner that takes its time to load."""

    def open(self, recorded: Any) -> None:
        time.sleep(0.3)
        super().open(recorded)


def test_a_memory_opens_without_blocking_the_event_loop(tmp_path: Path) -> None:
    ticks = []

    async def tick() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0.005)

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        async with Memory.aopen(Slow(), tmp_path) as memory:
            assert len(ticks) > 5
            assert (await memory.stream("hi", agent="ann")).text == "hi"
        with pytest.raises(ClosedError):
            memory.agents()
        memory = await Memory.aopen(EchoRunner(), tmp_path)
        assert [info.name for info in memory.agents()] == ["ann"]
        await memory.aclose()
        ticking.cancel()

    asyncio.run(main())


def test_what_is_wrong_with_opening_is_raised_where_it_is_awaited(tmp_path: Path) -> None:
    async def main() -> None:
        async with Memory.aopen(EchoRunner(), tmp_path):
            with pytest.raises(StoreLockedError):
                await Memory.aopen(EchoRunner(), tmp_path)
            with pytest.raises(StoreLockedError):
                async with Memory.aopen(EchoRunner(), tmp_path):
                    pytest.fail("it opened")

    asyncio.run(main())


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.6])
def test_a_memory_whose_opening_is_cancelled_gives_its_store_back(after_s: float, tmp_path: Path) -> None:
    opened = []

    async def main() -> None:
        async def hold() -> None:
            async with Memory.aopen(Slow(), tmp_path) as memory:
                opened.append(memory)
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert bool(opened) == (after_s > 0.5)
    deadline = time.monotonic() + 20
    while True:  # closed behind the cancellation, on a thread of its own
        try:
            Memory(EchoRunner(), tmp_path).close()
            break
        except StoreLockedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_batch_takes_an_agent_for_each_prompt(memory: Memory) -> None:
    ann = memory.agent("ann")
    replies = memory.batch(["one", "two", "three"], agent=[ann, "bob", None])
    assert [reply.text for reply in replies] == ["one", "two", "three"]
    assert [message.content for message in ann.messages] == ["one", "one"]
    assert [message.content for message in memory.agent("bob").messages] == ["two", "two"]
    assert {info.name for info in memory.agents()} == {"ann", "bob"}
    with pytest.raises(UnsupportedParameterError, match="2 prompts and 3 agents"):
        memory.batch(["one", "two"], agent=["a", "b", "c"])
    assert {info.name for info in memory.agents()} == {"ann", "bob"}


def test_a_batch_gives_errors_in_their_places_where_it_is_asked_to() -> None:
    def burst(ids: Any, logits: Any) -> Any:
        raise ZeroDivisionError("mine")

    with Memory(EchoRunner(context_tokens=60), ":memory:") as memory:
        gone = memory.agent("gone")
        gone.delete()
        found = memory.batch(
            ["fine", "much too long " * 50, "", "also fine", "hers"],
            agent=["ann", None, None, "bob", gone],
            return_errors=True,
        )
        texts = [str(one) if not isinstance(one, BaseException) else type(one) for one in found]
        assert texts == ["fine", PromptTooLongError, UnsupportedParameterError, "also fine", AgentDeletedError]
        assert {info.name for info in memory.agents()} == {"ann", "bob"}
        [error] = memory.batch(["hi"], logits_processors=[burst], return_errors=True)
        assert isinstance(error, ZeroDivisionError)
        with pytest.raises(UnsupportedParameterError, match="did you mean 'max_tokens'"):
            memory.batch(["hi"], return_errors=True, max_tokns=3)  # type: ignore[call-overload]
        with pytest.raises(PromptTooLongError):
            memory.batch(["fine", "much too long " * 50])


def test_handles_come_as_they_end() -> None:
    with Memory(EchoRunner(delay_s=0.002), ":memory:") as memory:
        long, short = memory.stream("a long way to go " * 8, max_tokens=200), memory.stream("short", max_tokens=3)
        ended = [one for one in as_completed([long, short]) if one.state == "done"]
        assert ended == [short, long]
        assert list(as_completed([long, short])) == [long, short]  # both have ended: in their order
        assert list(as_completed([])) == []
        with pytest.raises(UnsupportedParameterError, match="takes handles of stream"):
            as_completed([short.result()])  # type: ignore[list-item]


def test_a_cancelled_handle_and_a_failed_one_come_too() -> None:
    with Memory(EchoRunner(delay_s=0.01), ":memory:") as memory:
        handles = [memory.stream("count to a hundred " * 9, max_tokens=100), memory.stream("late", timeout_s=0.001)]
        threading.Timer(0.05, handles[0].cancel).start()
        found = {one: one.state for one in as_completed(handles)}
        assert [found[one] for one in handles] == ["cancelled", "failed"]
        assert [type(one.outcome()) for one in handles] == [CancelledError, RequestTimeoutError]


def test_handles_come_as_they_end_in_an_event_loop_too() -> None:
    async def main() -> None:
        async with Memory.aopen(EchoRunner(delay_s=0.002), ":memory:") as memory:
            long, short = memory.stream("a long way to go " * 8, max_tokens=200), memory.stream("short", max_tokens=3)
            assert [one async for one in as_completed([long, short])] == [short, long]

    asyncio.run(main())


# what real frameworks store and send

CALLED = {"id": "c1", "type": "function", "function": {"name": "ping", "arguments": "{}"}}
USER = {"role": "user", "content": "hi"}
TEXT = {"type": "text", "text": "hi"}

#: A history's message, and what it is the same as.
NEUTRAL_MESSAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "annotations": ({**USER, "annotations": []}, USER),
    "refusal and audio": ({"role": "assistant", "content": "x", "refusal": None, "audio": None},
                          {"role": "assistant", "content": "x"}),
    "no content": ({"role": "assistant", "content": None, "tool_calls": None}, {"role": "assistant", "content": ""}),
    "content left out": ({"role": "assistant", "function_call": None}, {"role": "assistant", "content": ""}),
    "no thoughts": ({"role": "assistant", "content": "x", "thinking_blocks": [], "provider_specific_fields": {}},
                    {"role": "assistant", "content": "x"}),
    "cache_control of a message": ({**USER, "cache_control": {"type": "ephemeral"}}, USER),
    "cache_control of a block": ({"role": "user", "content": [{**TEXT, "cache_control": {"type": "ephemeral"}}]}, USER),
    "metadata": ({**USER, "metadata": {}}, USER),
    "citations": ({"role": "user", "content": [{**TEXT, "citations": None}]}, USER),
    "no citations": ({"role": "user", "content": [{**TEXT, "citations": []}]}, USER),
}  # fmt: skip


@pytest.mark.parametrize("kind", NEUTRAL_MESSAGES)
def test_what_says_nothing_in_a_message_changes_nothing(kind: str, memory: Memory) -> None:
    given, same = NEUTRAL_MESSAGES[kind]
    history, plain = [given, USER], [same, USER]
    if given["role"] == "assistant":
        history, plain = [USER, *history], [USER, *plain]
    memory.generate(history, agent="given")
    memory.generate(plain, agent="same")
    assert memory.agent("given").messages == memory.agent("same").messages
    assert memory.count_tokens(history) == memory.count_tokens(plain)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({**USER, "annotations": [{"type": "url_citation"}]}, "message 0: annotations is not supported"),
        ({"role": "user", "content": [{**TEXT, "citations": [1]}]}, "content block 0: citations is not supported"),
        ({**USER, "audio": {"id": "x"}}, "message 0: audio is not supported"),
        ({**USER, "metadata": {"a": 1}}, "message 0: metadata is not supported"),
        ({**USER, "anotations": []}, "has the key 'anotations'"),
        ({"role": "user", "content": None}, "content must be text"),
        ({"role": "user", "content": [{**TEXT, "txt": "x"}]}, "content block 0 has the key 'txt'"),
    ],
)
def test_what_says_something_in_a_message_is_refused_by_name(message: Any, said: str, memory: Memory) -> None:
    with pytest.raises(UnsupportedParameterError, match=said):
        memory.generate([message])


@pytest.mark.parametrize("arguments", ["null", "", None, "{}", {}])
def test_arguments_that_are_null_are_none(arguments: Any, memory: Memory) -> None:
    call = {**CALLED, "function": {"name": "ping", "arguments": arguments}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    memory.generate([USER, called, {"role": "tool", "tool_call_id": "c1", "content": None}], agent="ann")
    ann = memory.agent("ann")
    assert ann.messages[1].tool_calls[0].arguments == {}
    assert ann.messages[2].content == ""


def test_an_empty_system_message_is_one_and_no_fault(memory: Memory) -> None:
    memory.generate([{"role": "system", "content": ""}, USER], agent="ann")
    assert [message.content for message in memory.agent("ann").messages] == ["", "hi", "hi"]
    memory.messages.create(system="", messages=[USER], max_tokens=9, agent="bob")
    assert [message.role for message in memory.agent("bob").messages] == ["user", "assistant"]
    with pytest.raises(ConfigError, match="system is empty"):
        memory.agent("cat", system="")


def test_the_objects_of_the_sdks_are_taken_as_messages(memory: Memory) -> None:
    import anthropic.types
    import openai.types.chat

    ours = openai.types.chat.ChatCompletionMessage(role="assistant", content="x")
    block = anthropic.types.TextBlock(type="text", text="x")
    memory.generate([USER, ours, USER], agent="ann")
    memory.generate([USER, {"role": "assistant", "content": [block]}, USER], agent="bob")
    assert memory.agent("ann").messages == memory.agent("bob").messages
    assert memory.agent("ann").messages[1].content == "x"


NEUTRAL_CHAT: dict[str, Any] = {
    "logit_bias": {}, "metadata": {}, "service_tier": "auto", "modalities": ["text"], "n": 1, "store": False,
    "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0.0, "presence_penalty": 0, "stop": None, "user": "",
    "tools": [], "seed": None, "response_format": {"type": "text"}, "prompt_cache_key": "k", "extra_headers": {},
    "reasoning_effort": None, "max_completion_tokens": None, "parallel_tool_calls": True, "tool_choice": "auto",
}  # fmt: skip
NEUTRAL_MESSAGE_REQUESTS: dict[str, Any] = {
    "metadata": {}, "service_tier": "auto", "thinking": {"type": "disabled"}, "tools": [], "stop_sequences": [],
    "system": [], "top_k": None, "mcp_servers": [], "cache_control": {"type": "ephemeral"}, "container": None,
    "extra_body": {},
}  # fmt: skip


def test_parameters_of_the_two_apis_that_ask_for_nothing_are_taken(memory: Memory) -> None:
    import anthropic
    import openai

    for name, value in NEUTRAL_CHAT.items():
        assert memory.chat.completions.create(messages=[USER], **{name: value}).choices[0].message.content == "hi", name
    for name, value in NEUTRAL_MESSAGE_REQUESTS.items():
        assert memory.messages.create(messages=[USER], max_tokens=9, **{name: value}).content[0].text == "hi", name
    for unset in (openai.NOT_GIVEN, openai.omit):
        assert memory.chat.completions.create(messages=[USER], tools=unset, audio=unset).choices
    assert memory.messages.create(messages=[USER], max_tokens=9, container=anthropic.NOT_GIVEN).content
    assert memory.chat.completions.create(messages=[USER], **NEUTRAL_CHAT).choices[0].message.content == "hi"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"logit_bias": {"5": 1}}, "logit_bias="),
        ({"metadata": {"a": "b"}}, "metadata="),
        ({"service_tier": "flex"}, "service_tier='flex'"),
        ({"modalities": ["audio"]}, "modalities="),
        ({"extra_body": {"top_k": 3}}, "extra_body="),
        ({"temprature": 1.0}, "temprature is not supported; did you mean 'temperature'"),
    ],
)
def test_parameters_that_ask_for_something_are_refused_by_name(more: Any, said: str, memory: Memory) -> None:
    with pytest.raises(UnsupportedParameterError, match=said):
        memory.chat.completions.create(messages=[USER], **more)


# classes of other libraries as schema


def test_a_pydantic_class_is_a_schema_and_the_reply_an_instance_of_it() -> None:
    class City(pydantic.BaseModel):
        name: str
        inhabitants: int | None = None

    class Country(pydantic.BaseModel):
        cities: list[City]
        at: datetime.datetime

    value = {"cities": [{"name": "Oslo", "inhabitants": 7}, {"name": "Bergen"}], "at": "2026-01-02T03:04:05Z"}
    with Memory(EchoRunner(json.dumps(value)), ":memory:") as memory:
        country = memory.generate("go", schema=Country).parsed
    assert isinstance(country, Country)
    assert [city.name for city in country.cities] == ["Oslo", "Bergen"]
    assert country.at.year == 2026


def test_a_generic_pydantic_class_is_a_schema() -> None:
    """Its JSON Schema has brackets in the names of its definitions."""
    T = TypeVar("T")

    class Box(pydantic.BaseModel, Generic[T]):
        of: T

    class Shelf(pydantic.BaseModel):
        boxes: list[Box[int]]

    schema = Shelf.model_json_schema()
    assert "Box_int_" in schema["$defs"] or "Box[int]" in schema["$defs"]
    with Memory(EchoRunner('{"boxes": [{"of": 3}]}'), ":memory:") as memory:
        assert memory.generate("go", schema=Shelf).parsed == Shelf(boxes=[Box[int](of=3)])


def test_any_class_with_the_two_methods_is_a_schema_and_its_faults_are_told() -> None:
    class Plain:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

        @classmethod
        def model_validate(cls, value: Any) -> str:
            return f"validated {value}"

    class Broken(Plain):
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            raise ZeroDivisionError("mine")

    class Refusing(Plain):
        @classmethod
        def model_validate(cls, value: Any) -> str:
            raise ZeroDivisionError("mine")

    with Memory(EchoRunner('{"a": 1}'), ":memory:") as memory:
        assert memory.generate("go", schema=Plain).parsed == "validated {'a': 1}"
        with pytest.raises(UnsupportedParameterError, match=r"Broken\.model_json_schema\(\) fails: ZeroDivisionError"):
            memory.generate("go", schema=Broken)
        with pytest.raises(ZeroDivisionError):
            memory.generate("go", schema=Refusing)
        with pytest.raises(UnsupportedParameterError, match="or one with model_json_schema"):
            memory.generate("go", schema=int)


def test_a_schema_of_a_pydantic_class_imports_no_pydantic() -> None:
    program = (
        "import sys\nfrom agent_memory import EchoRunner, Memory\n"
        "class A:\n"
        "    model_json_schema = classmethod(lambda cls: {'type': 'integer'})\n"
        "    model_validate = classmethod(lambda cls, value: value)\n"
        "with Memory(EchoRunner('7'), ':memory:') as memory: assert memory.generate('go', schema=A).parsed == 7\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# what a Memory says of itself


def test_a_memory_tells_its_model_folder_settings_and_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(chunk_tokens=16)
    memory = Memory(EchoRunner(context_tokens=99), "agents", config=config)
    assert memory.path == tmp_path / "agents"
    assert memory.config is config
    assert memory.context_tokens == 99
    assert memory.model_name == memory.chat.completions.create(messages=[USER]).model
    assert memory.is_closed is False
    memory.close()
    assert memory.is_closed is True
    with Memory(EchoRunner(), ":memory:") as memory:
        assert memory.path is None


def test_figures_can_be_written_as_json(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        reply = memory.agent("ann").say("hi")
        report, stats, doctor = memory.verify(), memory.stats(), memory.doctor()
    for value in (reply.usage, report, stats, doctor):
        fields = json.loads(json.dumps(value.to_dict(), allow_nan=False))
        assert fields.keys() == {one.name for one in attrs.fields(type(value))}
    assert reply.usage.to_dict()["tier_tokens"] == dict(reply.usage.tier_tokens)
    assert reply.usage.to_dict()["prompt_tokens"] == reply.usage.prompt_tokens
    assert doctor.to_dict()["facts"]["hot_bytes"] == doctor.hot_bytes
    assert report.to_dict()["damaged"] == []
    nested = attrs.evolve(reply.usage, diverged_at=DivergedAt(3, 1, "user"))
    place = {"token": 3, "message": 1, "role": "user", "part": "message", "tool": None}
    assert nested.to_dict()["diverged_at"] == place


def test_the_events_of_a_reply_can_be_told_apart_by_their_public_classes() -> None:
    said = '<think>hm</think>So. <tool_call>{"name": "ping", "arguments": {}}</tool_call>'
    with Memory(EchoRunner(said), ":memory:") as memory, memory.stream("go", tools=[ping]) as handle:
        events = [event for delta in handle for event in delta.events]
    kinds = {type(event) for event in events}
    assert {Reasoning, Text, CallStart, CallArguments, CallEnd} <= kinds
    assert kinds <= {Reasoning, Text, Markup, CallStart, CallArguments, CallEnd, CallRejected}


def test_a_dialect_gives_events_where_it_is_asked_to_stream(memory: Memory) -> None:
    for stream, kind in ((True, "EventStream"), (False, "Data"), (None, "Data")):
        assert type(memory.messages.create(messages=[USER], max_tokens=9, stream=stream)).__name__ == kind
        assert type(memory.chat.completions.create(messages=[USER], stream=stream)).__name__ == kind
