"""Both APIs in process: replies and every event are valid under the SDKs' own types, and streams add up to replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jiter import from_json
from pydantic import TypeAdapter

from agent_memory import CancelledError, EchoRunner, Memory, Message, ToolResultError, UnsupportedParameterError
from agent_memory.dialects.plain import begun_object
from tests.parts.opening import opening
from tests.parts.waiting import within


@cache
def event_type() -> TypeAdapter[Any]:
    """The SDK's own events. Its import takes seconds, and every process of a run collects this file."""
    from anthropic.types import RawMessageStreamEvent

    return TypeAdapter(RawMessageStreamEvent)


SCHEMA = {
    "type": "object",
    "properties": {
        "location": {"type": "string", "description": "The city name"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["location"],
}
WEATHER = {"name": "get_weather", "description": "Get the current weather for a location", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "function": {**WEATHER, "parameters": SCHEMA}}
del FUNCTION["function"]["input_schema"]  # type: ignore[attr-defined]
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
INPUT = {"location": "Paris", "unit": "celsius"}
CALL = json.dumps({"tool_use": {"name": "get_weather", "input": INPUT}})
#: As the echo template itself writes a call, so that what was generated is reused.
NATIVE = f"<tool_call>{json.dumps({'name': 'get_weather', 'arguments': INPUT})}</tool_call>"
SAYINGS = [
    "Hello, you.", "", "\n", CALL, f"I'll check the weather for you.\n{CALL}", f"One.\n{CALL}\nTwo.\n{CALL}\n\nThree.",
    f"<think>hm</think>\n\nSo: {{x}}\n{CALL}", CALL[:-14], CALL[:40], f"<think>{CALL}", f"{CALL[:-2]}, }}}}",
    '{"tool_use": {"name": "send", "input": {}}}', '{"function_call": {"name": "get_weather", "arguments": "{}"}}',
]  # fmt: skip


@pytest.fixture
def saying() -> Iterator[Callable[..., Memory]]:
    def make(*said: str) -> Memory:
        rest = list(said)
        return Memory(EchoRunner(lambda asked, ids: rest.pop(0) if len(rest) > 1 else rest[0]), ":memory:")

    with opening(make) as open_:
        yield open_


def anthropic_request(**more: Any) -> dict[str, Any]:
    return {"model": "any", "max_tokens": 500, "messages": ASK, "tools": [WEATHER], **more}


def openai_request(**more: Any) -> dict[str, Any]:
    return {"model": "any", "messages": ASK, "tools": [FUNCTION], **more}


def check_anthropic_order(events: list[Any]) -> None:
    """Starts and stops balanced, indices contiguous, one block open at a time (requirement 19)."""
    kinds = [event.type for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    index, is_open = -1, False
    for event in events[1:-2]:
        if event.type == "content_block_start":
            index, is_open = index + 1, not is_open
            assert is_open
        elif event.type == "content_block_stop":
            is_open = False
        else:
            assert is_open
        assert event.index == index
    assert not is_open


@pytest.mark.parametrize("said", SAYINGS)
def test_anthropic_events_are_valid_and_add_up_to_the_message_19(saying: Any, said: str) -> None:
    from anthropic.lib.streaming._messages import accumulate_event
    from anthropic.types import Message as TheirMessage

    memory = saying(said)
    stream = memory.messages.create(**anthropic_request(stream=True))
    snapshot, buffers = None, {}  # type: ignore[var-annotated]
    for event in stream:
        valid = event_type().validate_python(event.to_dict(), strict=True)
        snapshot = accumulate_event(event=valid, current_snapshot=snapshot, json_bufs=buffers)
    check_anthropic_order(list(stream))
    whole = stream.whole().to_dict()
    assert TheirMessage.model_validate(whole, strict=True)
    assert snapshot is not None
    validated = TheirMessage.model_validate(whole)
    assert snapshot.to_dict(exclude_none=True) == validated.to_dict(exclude_none=True)
    alone = memory.messages.create(**anthropic_request()).to_dict()
    for message in (alone, whole):
        message.pop("id")
        message.pop("usage")
        for block in message["content"]:
            block.pop("id", None)
    assert alone == whole


@pytest.mark.parametrize("said", SAYINGS)
def test_openai_chunks_are_valid_and_add_up_to_the_completion_20(saying: Any, said: str) -> None:
    from openai.lib.streaming.chat import ChatCompletionStreamState
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    memory = saying(said)
    stream = memory.chat.completions.create(**openai_request(stream=True, stream_options={"include_usage": True}))
    state: Any = ChatCompletionStreamState()
    chunks = [event.to_dict() for event in stream]
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk, strict=True))
    assert [chunk["choices"] for chunk in chunks[-1:]] == [[]]
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert finishes[:-1] == [None] * (len(finishes) - 1)
    starts = [c for chunk in chunks[:-1] for c in chunk["choices"][0]["delta"].get("tool_calls", ()) if "id" in c]
    assert [call["index"] for call in starts] == list(range(len(starts)))
    whole = stream.whole().to_dict()
    assert ChatCompletion.model_validate(whole, strict=True)
    added_up = state.current_completion_snapshot.to_dict()
    mine, theirs = whole["choices"][0], added_up["choices"][0]
    assert mine["finish_reason"] == finishes[-1] == theirs["finish_reason"]
    for key in ("role", "content", "reasoning_content"):
        assert mine["message"].get(key) == theirs["message"].get(key), key
    stripped = [
        {"id": call["id"], "type": call["type"], "function": {k: call["function"][k] for k in ("name", "arguments")}}
        for call in theirs["message"].get("tool_calls") or ()
    ]
    assert mine["message"].get("tool_calls", []) == stripped
    assert whole["usage"] == chunks[-1]["usage"]


def test_an_anthropic_dialogue_with_a_tool_reuses_what_was_computed(saying: Any) -> None:
    memory = saying(f"I'll check the weather for you.\n{NATIVE}", "It is sunny.")
    first = memory.messages.create(**anthropic_request(metadata={"user_id": "ann"}))
    assert (first.stop_reason, first.role, first.type) == ("tool_use", "assistant", "message")
    text, use = first.content
    assert (text.type, text.text) == ("text", "I'll check the weather for you.\n")
    assert (use.type, use.name, use.input, use["input"]) == ("tool_use", "get_weather", INPUT, INPUT)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "The weather in Paris is 22°C and sunny."}
    history = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = memory.messages.create(**anthropic_request(metadata={"user_id": "ann"}, messages=history))
    assert (second.content[0].text, second.stop_reason) == ("It is sunny.", "end_turn")
    usage = second.usage
    assert usage.cache_read_input_tokens >= first.usage.cache_creation_input_tokens + first.usage.output_tokens - 1
    assert [m.role for m in memory.agent("ann").messages] == ["user", "assistant", "tool", "assistant"]
    counted = memory.messages.count_tokens(model="any", messages=ASK, tools=[WEATHER]).input_tokens
    spent = first.usage
    assert counted == spent.input_tokens + spent.cache_read_input_tokens + spent.cache_creation_input_tokens


def test_an_openai_dialogue_with_a_tool_reuses_what_was_computed(saying: Any) -> None:
    memory = saying(NATIVE, "It is sunny.")
    first = memory.chat.completions.create(**openai_request(tool_choice="auto", max_tokens=200, user="ann"))
    [choice] = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "get_weather", INPUT)
    answer = {"role": "tool", "tool_call_id": call.id, "content": "22°C and sunny."}
    history = [*ASK, choice.message, answer]  # the object itself, as guides append it
    second = memory.chat.completions.create(**openai_request(messages=history, user="ann"))
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("It is sunny.", "stop")
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.total_tokens - 1
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens


def test_dialogues_that_are_equal_in_both_apis_compute_once_22(saying: Any) -> None:
    memory = saying("Sunny.")
    a = memory.messages.create(**anthropic_request(system=[{"type": "text", "text": "Be brief."}]))
    b = memory.chat.completions.create(**openai_request(messages=[{"role": "system", "content": "Be brief."}, *ASK]))
    assert b.usage.prompt_tokens == a.usage.cache_creation_input_tokens + a.usage.cache_read_input_tokens
    assert b.usage.prompt_tokens_details.cached_tokens == b.usage.prompt_tokens - 1


def test_streams_serve_event_loops_context_managers_and_early_ends(saying: Any) -> None:
    memory = saying(f"Well.\n{CALL}")

    async def both() -> None:
        async with memory.messages.stream(**anthropic_request()) as stream:
            kinds = [event.type async for event in stream]
            assert kinds == [event.type for event in stream]
            assert (await stream).to_dict() == stream.get_final_message().to_dict()
        chunks = [c async for c in memory.chat.completions.create(**openai_request(stream=True))]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

    asyncio.run(both())
    with memory.messages.stream(**anthropic_request()) as stream:
        assert "".join(stream.text_stream) == "Well.\n"
    with memory.messages.stream(**anthropic_request()) as stream:
        next(iter(stream))
    with pytest.raises(CancelledError):
        stream.get_final_message()


def test_an_iterator_left_at_its_first_event_cancels_the_request() -> None:
    async def leave(stream: Any) -> None:
        events = aiter(stream)
        assert (await anext(events)).type == "message_start"
        await events.aclose()

    with Memory(EchoRunner(lambda asked, ids: "word " * 400, delay_s=0.005), ":memory:") as memory:
        for is_async in (False, True):
            stream = memory.messages.stream(**anthropic_request())
            if is_async:
                asyncio.run(leave(stream))
            else:
                for event in stream:
                    assert event.type == "message_start"
                    break
            with pytest.raises(CancelledError):
                within(stream.get_final_message)


@pytest.mark.parametrize(
    ("max_tokens", "anthropics", "openais"), [(12, "max_tokens", "length"), (500, "tool_use", "tool_calls")]
)
def test_why_it_ended_in_both_apis_words_17_18(saying: Any, max_tokens: int, anthropics: str, openais: str) -> None:
    memory = saying(CALL)
    assert memory.messages.create(**anthropic_request(max_tokens=max_tokens)).stop_reason == anthropics
    completion = memory.chat.completions.create(**openai_request(max_completion_tokens=max_tokens))
    assert completion.choices[0].finish_reason == openais


def test_stop_sequences_seeds_and_parallel_calls_reach_the_request_16(saying: Any) -> None:
    memory = saying("One two three.", "One two three.", f"{CALL}\n{CALL}", f"{CALL}\n{CALL}", CALL, CALL)
    message = memory.messages.create(**anthropic_request(stop_sequences=["two", "x"]))
    assert (message.stop_reason, message.stop_sequence, message.content[0].text) == ("stop_sequence", "two", "One ")
    completion = memory.chat.completions.create(**openai_request(stop="two", temperature=0, top_p=0.9, seed=7))
    assert completion.choices[0].message.content == "One "
    one = memory.messages.create(**anthropic_request(tool_choice={"type": "auto", "disable_parallel_tool_use": True}))
    assert [block.type for block in one.content] == ["tool_use"]
    other = memory.chat.completions.create(**openai_request(parallel_tool_calls=False))
    assert len(other.choices[0].message.tool_calls) == 1
    none = memory.messages.create(**anthropic_request(tool_choice={"type": "none"}))
    assert ([block.type for block in none.content], none.stop_reason) == (["text"], "end_turn")
    assert memory.chat.completions.create(**openai_request(tool_choice="none")).choices[0].message.content == CALL


def test_forced_choices_and_schemas_are_held_in_both_apis_14_15(saying: Any) -> None:
    memory = saying("I do not know.")
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        message = memory.messages.create(**anthropic_request(tool_choice=choice, max_tokens=60))
        assert ([block.type for block in message.content], message.stop_reason) == (["tool_use"], "max_tokens")
    for choice in ("required", {"type": "function", "function": {"name": "get_unit"}}):
        unit = {"type": "object", "properties": {"unit": SCHEMA["properties"]["unit"]}, "required": ["unit"]}
        tool = {"type": "function", "function": {"name": "get_unit", "parameters": unit}}
        [answer] = memory.chat.completions.create(**openai_request(tool_choice=choice, tools=[tool])).choices
        [call] = answer.message.tool_calls
        assert (answer.finish_reason, call.function.name) == ("tool_calls", "get_unit")
        assert json.loads(call.function.arguments)["unit"] in ("celsius", "fahrenheit")
    wanted = {"type": "json_schema", "json_schema": {"name": "unit", "strict": True, "schema": unit}}
    [answer] = memory.chat.completions.create(**openai_request(response_format=wanted, tools=[])).choices
    assert json.loads(answer.message.content)["unit"] in ("celsius", "fahrenheit")
    assert answer.finish_reason == "stop"


def test_a_named_choice_calls_that_tool_alone_and_finishes_as_a_call_15(saying: Any) -> None:
    memory = saying("neither", f"<tool_call>{json.dumps({'name': 'get_weather', 'arguments': INPUT})}</tool_call>")
    other = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}
    for _ in range(2):  # whatever the model says
        message = memory.messages.create(
            **anthropic_request(tools=[WEATHER, other], tool_choice={"type": "tool", "name": "get_time"})
        )
        assert (message.stop_reason, [(block.type, block.name) for block in message.content]) == (
            "tool_use", [("tool_use", "get_time")],
        )  # fmt: skip
        function = {"type": "function", "function": {"name": "get_time", "parameters": other["input_schema"]}}
        [choice] = memory.chat.completions.create(
            **openai_request(
                tools=[FUNCTION, function], tool_choice={"type": "function", "function": {"name": "get_time"}}
            )
        ).choices
        assert (choice.finish_reason, [call.function.name for call in choice.message.tool_calls]) == (
            "tool_calls", ["get_time"],
        )  # fmt: skip


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_anthropics_output_format_is_held(saying: Any, name: str) -> None:
    unit = {"type": "object", "properties": {"unit": SCHEMA["properties"]["unit"]}, "required": ["unit"]}
    wanted: dict[str, Any] = {"type": "json_schema", "schema": unit}
    more = {name: {"format": wanted} if name == "output_config" else wanted, "tools": None}
    message = saying("Celsius, I think.").messages.create(**anthropic_request(**more))
    assert json.loads(message.content[0].text)["unit"] in ("celsius", "fahrenheit")
    assert (message.stop_reason, message.content[0].type) == ("end_turn", "text")
    counts = [saying("x").messages.count_tokens(messages=ASK, **some).input_tokens for some in ({}, {name: more[name]})]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"output_config": {"effort": "high"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "text"}}}, "text"), ({"output_format": {}}, "only json_schema"),
        ({"output_format": {"type": "json_schema", "schema": 3}}, "must be an object"),
        ({"output_format": {"type": "json_schema", "schema": {}}}, "give no tools"),
        ({"output_format": {"type": "json_schema", "schema": {"not": {}}}, "tools": None}, "schema.not"),
        ({"output_format": {"type": "json_schema"}, "output_config": {"format": {}}}, "not both"),
        ({"max_tokens": None}, "max_tokens is missing"), ({"messages": None}, "messages is missing"),
        ({"betas": ["x"]}, "betas is not supported"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "'f'"),
        ({"tool_choice": {"type": "maybe"}}, "maybe"), ({"metadata": {"team": "x"}}, "metadata.team"),
        ({"messages": "hi"}, "messages must be list"), ({"max_tokens": True}, "max_tokens must be int"),
        ({"stream": "yes"}, "stream must be bool"),
        ({"metadata": {1: 1, "a": 2}}, "metadata.1 is"), ({"output_config": {2: 2, "a": 1}}, "output_config.2 is"),
        ({"temperature": "hot"}, "temperature"), ({"system": 3}, "system must be"),
        ({"service_tier": "x"}, "service_tier"),
    ],
)  # fmt: skip
def test_what_messages_does_not_support_is_refused_by_name(saying: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedParameterError, match=said):
        saying("x").messages.create(**anthropic_request(**more))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"n": 2}, "n=2"), ({"logprobs": True}, "logprobs"), ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"1": 2}}, "logit_bias"), ({"audio": {}}, "audio"), ({"functions": []}, "functions"),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"tools": [], "response_format": {"type": "json_schema", "json_schema": {"schema": {"if": 1}}}}, "schema.if"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "give no tools"),
        ({"response_format": {"type": "json_schema"}}, "needs a schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}}, "json_schema.x"),
        ({"response_format": {"type": "text", "json_schema": {}}}, "json_schema"),
        ({"tool_choice": {"type": "function", "function": {"name": "get_weather", "x": 1}}}, "'x': 1"),
        ({"tool_choice": "any"}, "any"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "'f'"),
        ({"tool_choice": {"type": "allowed_tools"}}, "allowed_tools"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "both"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"messages": None}, "messages is missing"),
        ({"reasoning_effort": "low"}, "reasoning_effort"), ({"user": 3}, "user must be str"),
    ],
)  # fmt: skip
def test_what_completions_does_not_support_is_refused_by_name(saying: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedParameterError, match=said):
        saying("x").chat.completions.create(**openai_request(**more))


@pytest.mark.parametrize("last", [{"role": "assistant", "content": "It is"}, Message("assistant", "It is")])
def test_the_beginning_of_a_reply_is_refused_by_name_and_may_be_counted(saying: Any, last: Any) -> None:
    memory = saying("x")
    for ask in (memory.messages.create, memory.messages.stream):
        with pytest.raises(UnsupportedParameterError, match=r"the last message .* prefill"):
            ask(**anthropic_request(messages=[*ASK, last]))
    assert memory.messages.count_tokens(messages=[*ASK, last]).input_tokens > 0


def test_a_result_that_answers_nothing_is_refused_in_both_21(saying: Any) -> None:
    memory = saying("x")
    result = {"type": "tool_result", "tool_use_id": "1", "content": "x"}
    answer = {"role": "tool", "tool_call_id": "1", "content": "x"}
    with pytest.raises(ToolResultError):
        memory.messages.create(**anthropic_request(messages=[*ASK, {"role": "user", "content": [result]}]))
    with pytest.raises(ToolResultError):
        memory.chat.completions.create(**openai_request(messages=[*ASK, answer]))


def test_a_reply_without_content_and_an_empty_result_can_be_sent_back_to_completions(saying: Any) -> None:
    memory = saying("<think>hmm", NATIVE, "fine")
    thought = memory.chat.completions.create(**openai_request()).choices[0].message
    assert (thought.content, thought.reasoning_content) == (None, "hmm")
    asked = memory.chat.completions.create(**openai_request(messages=[*ASK, thought, *ASK])).choices[0].message
    answer = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": None}
    history = [*ASK, thought, *ASK, asked, answer]
    assert memory.chat.completions.create(**openai_request(messages=history)).choices[0].message.content == "fine"
    with pytest.raises(UnsupportedParameterError, match="NoneType"):
        memory.chat.completions.create(**openai_request(messages=[{"role": "user", "content": None}]))


def test_objects_read_like_the_sdks(saying: Any) -> None:
    message = saying(CALL).messages.create(**anthropic_request())
    assert message.content[0].name == message["content"][0]["name"]
    assert dict(**message.content[0].input) == INPUT
    assert message.model_dump() == message.to_dict() == json.loads(json.dumps(message.to_dict()))
    assert message == message.to_dict()
    with pytest.raises(AttributeError, match="no 'colour'; it has id"):
        message.colour  # noqa: B018


#: Not told by the scanner, which leaves a string's escapes to the parser of the whole.
UNREADABLE = [r'"\d"', r'"\u12"', r'"\ud800"', "1e999"]


@pytest.mark.parametrize("value", UNREADABLE)
@pytest.mark.parametrize("rest", ["}}</tool_call>", "", ', "b": "x'], ids=["ended", "cut", "cut later"])
def test_no_reply_raises_for_what_a_model_wrote(free: None, saying: Any, value: str, rest: str) -> None:
    said = f'<tool_call>{{"name": "get_weather", "arguments": {{"location": "Paris", "unit": {value}{rest}'
    memory = saying(said)
    message = memory.messages.create(**anthropic_request())
    [choice] = memory.chat.completions.create(**openai_request()).choices
    assert choice.finish_reason in ("stop", "length")
    if message.stop_reason == "max_tokens":
        [block] = message.content
        assert block.input == {"location": "Paris"}
    else:
        assert (message.stop_reason, rest[:2]) == ("end_turn", "}}")
    for stream in (
        memory.messages.stream(**anthropic_request()),
        memory.chat.completions.create(**openai_request(stream=True)),
    ):
        assert list(stream)
    assert json.dumps(message.to_dict(), ensure_ascii=False).encode()


BROKEN = '<tool_call>{"name": "get_weather", "arguments": {"location": "Paris" "unit"}}</tool_call>'
TWICE = '<tool_call>{"name": "get_weather", "arguments": {}, "arguments": {"location": "Paris"}}</tool_call>'


@pytest.mark.parametrize("broken", [BROKEN, TWICE, BROKEN.replace('"Paris" ', "1e999}} ")])
def test_a_malformed_call_is_text_in_anthropics_message_10(free: None, saying: Any, broken: str) -> None:
    memory = saying(f"So.\n{broken}\nBye.", f"{broken}{NATIVE}", "fine")
    stream = memory.messages.stream(**anthropic_request())
    events = [event_type().validate_python(event.to_dict(), strict=True) for event in stream]
    check_anthropic_order(events)
    starts = [event.content_block.type for event in events if event.type == "content_block_start"]
    assert starts == ["text", "tool_use", "text"]
    message = stream.get_final_message()
    assert (message.stop_reason, [block.type for block in message.content]) == ("end_turn", ["text"])
    assert message.content[0].text == f"So.\n{broken}\nBye." == "".join(stream.text_stream)
    history = [*ASK, {"role": "assistant", "content": message.content}, *ASK]
    second = memory.messages.create(**anthropic_request(messages=history))
    text, use = second.content
    assert (text.text, use.name, second.stop_reason) == (broken, "get_weather", "tool_use")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "22"}
    answered = [*history, {"role": "assistant", "content": second.content}, {"role": "user", "content": [result]}]
    assert memory.messages.create(**anthropic_request(messages=answered)).content[0].text == "fine"


@pytest.mark.parametrize("broken", [BROKEN, TWICE])
def test_a_malformed_call_is_text_in_openais_completion_10(free: None, saying: Any, broken: str) -> None:
    from openai.types.chat import ChatCompletionChunk

    memory = saying(f"So.\n{broken}", f"{broken}{NATIVE}", "fine")
    stream = memory.chat.completions.create(**openai_request(stream=True))
    chunks = [ChatCompletionChunk.model_validate(c.to_dict(), strict=True) for c in stream]
    begun = [call.index for chunk in chunks for call in chunk.choices[0].delta.tool_calls or () if call.id]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (begun, said, chunks[-1].choices[0].finish_reason) == ([0], f"So.\n{broken}", "stop")
    message = stream.get_final_completion().choices[0].message
    assert (message.content, "tool_calls" in message) == (f"So.\n{broken}", False)
    second = memory.chat.completions.create(**openai_request(messages=[*ASK, message, *ASK])).choices[0]
    [call] = second.message.tool_calls
    assert (second.message.content, call.function.name, second.finish_reason) == (broken, "get_weather", "tool_calls")
    answer = {"role": "tool", "tool_call_id": call.id, "content": "22"}
    history = [*ASK, message, *ASK, second.message, answer]
    assert memory.chat.completions.create(**openai_request(messages=history)).choices[0].message.content == "fine"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.integers(1, 200), st.sampled_from([None, 2]))
@example({"0[": None}, 4, None)
def test_what_is_complete_in_cut_arguments_is_what_the_sdk_makes_of_them(value: Any, stop: int, indent: Any) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)[:stop]
    assert begun_object(text) == from_json(text.encode(), partial_mode=True)
