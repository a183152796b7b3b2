"""The tool and streaming guides of both APIs, as they are printed, run as method calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from agent_memory import EchoRunner, Memory

QUESTION = '{"role": "user", "content": "What is the weather in Paris?"}'
SCHEMA = """{
  "type": "object",
  "properties": {
    "location": {"type": "string", "description": "The city name"},
    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "description": "Temperature unit"}
  },
  "required": ["location"]
}"""
WEATHER = '{"name": "get_weather", "description": "Get the current weather for a location", '
ANTHROPIC_TOOL = WEATHER + f'"input_schema": {SCHEMA}}}'
OPENAI_TOOL = f'{{"type": "function", "function": {WEATHER}"parameters": {SCHEMA}}}}}'
INPUT = {"location": "Paris", "unit": "celsius"}
ANTHROPIC_ANSWERED = """[
  {"role": "user", "content": "What is the weather in Paris?"},
  {"role": "assistant", "content": [
    {"type": "text", "text": "I'll check the weather for you."},
    {"type": "tool_use", "id": "toolu_01ABC...", "name": "get_weather",
     "input": {"location": "Paris", "unit": "celsius"}}]},
  {"role": "user", "content": [
    {"type": "tool_result", "tool_use_id": "toolu_01ABC...", "content": "The weather in Paris is 22°C and sunny."}]}
]"""
OPENAI_ANSWERED = """[
  {"role": "user", "content": "What is the weather in Paris?"},
  {"role": "assistant", "content": null, "tool_calls": [
    {"id": "call_abc123...", "type": "function",
     "function": {"name": "get_weather", "arguments": "{\\"location\\": \\"Paris\\", \\"unit\\": \\"celsius\\"}"}}]},
  {"role": "tool", "tool_call_id": "call_abc123...", "content": "The weather in Paris is 22°C and sunny."}
]"""
#: The model's side: a call in the form that each API's guide of the server describes.
USES = f"I'll check the weather for you.\n{json.dumps({'tool_use': {'name': 'get_weather', 'input': INPUT}})}"
CALLS = json.dumps({"function_call": {"name": "get_weather", "arguments": INPUT}})


def saying(said: str) -> Memory:
    return Memory(EchoRunner(said), ":memory:")


def anthropic(**more: Any) -> dict[str, Any]:
    return {"model": "gemma-3-12b-it-4bit", "max_tokens": 200, "messages": [json.loads(QUESTION)], **more}


openai = anthropic  # the guides name the same fields


def shape(value: Any, printed: Any) -> None:
    """``value`` has what is printed, key for key and type for type, and may have more."""
    if isinstance(printed, Mapping):
        for key, part in printed.items():
            shape(value[key], part)
    elif isinstance(printed, list):
        assert len(value) == len(printed)
        for one, part in zip(value, printed, strict=True):
            shape(one, part)
    else:
        assert type(value) is type(printed), (value, printed)


def test_a_message_is_answered_as_printed() -> None:
    printed = """{"id": "msg_01ABC...", "type": "message", "role": "assistant",
      "content": [{"type": "text", "text": "Semantic caching is a technique..."}],
      "model": "gemma-3-12b-it-4bit", "stop_reason": "end_turn",
      "usage": {"input_tokens": 15, "output_tokens": 50, "cache_creation_input_tokens": 15,
                "cache_read_input_tokens": 0}}"""
    with saying("Semantic caching is a technique.") as memory:
        message = memory.messages.create(**anthropic())
    shape(message, json.loads(printed))
    assert (message.id[:4], message.type, message.stop_reason) == ("msg_", "message", "end_turn")


def test_a_completion_is_answered_as_printed() -> None:
    printed = """{"id": "chatcmpl-abc123...", "object": "chat.completion", "created": 1706000000,
      "model": "gemma-3-12b-it-4bit",
      "choices": [{"index": 0, "message": {"role": "assistant", "content": "Semantic..."}, "finish_reason": "stop"}],
      "usage": {"prompt_tokens": 15, "completion_tokens": 50, "total_tokens": 65}}"""
    with saying("Semantic caching is a technique.") as memory:
        completion = memory.chat.completions.create(**openai())
    shape(completion, json.loads(printed))
    assert (completion.id[:9], completion.object) == ("chatcmpl-", "chat.completion")
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_the_anthropic_tool_guide_works_as_printed_2_8() -> None:
    printed = """{"id": "msg_01ABC...", "type": "message", "role": "assistant",
      "content": [{"type": "text", "text": "I'll check the weather for you."},
        {"type": "tool_use", "id": "toolu_01ABC...", "name": "get_weather",
         "input": {"location": "Paris", "unit": "celsius"}}],
      "model": "gemma-3-12b-it-4bit", "stop_reason": "tool_use"}"""
    tools = [json.loads(ANTHROPIC_TOOL)]
    with saying(USES) as memory:
        message = memory.messages.create(**anthropic(tools=tools))
        shape(message, json.loads(printed))
        text, use = message.content
        assert (text.text.strip(), use.name, use.input) == ("I'll check the weather for you.", "get_weather", INPUT)
        assert (text.type, use.type, message.stop_reason) == ("text", "tool_use", "tool_use")
    with saying("It is 22°C and sunny in Paris.") as memory:
        message = memory.messages.create(**anthropic(messages=json.loads(ANTHROPIC_ANSWERED), tools=tools))
        assert (message.content[0].text, message.stop_reason) == ("It is 22°C and sunny in Paris.", "end_turn")


def test_the_openai_tool_guide_works_as_printed_2() -> None:
    printed = r"""{"id": "chatcmpl-abc123...", "object": "chat.completion", "created": 1706000000,
      "model": "gemma-3-12b-it-4bit",
      "choices": [{"index": 0, "message": {"role": "assistant", "content": null, "tool_calls": [
        {"id": "call_abc123...", "type": "function",
         "function": {"name": "get_weather", "arguments": "{\"location\": \"Paris\", \"unit\": \"celsius\"}"}}]},
        "finish_reason": "tool_calls"}]}"""
    tools = [json.loads(OPENAI_TOOL)]
    with saying(CALLS) as memory:
        completion = memory.chat.completions.create(**openai(tools=tools, tool_choice="auto"))
        shape(completion, json.loads(printed))
        [choice] = completion.choices
        [call] = choice.message.tool_calls
        assert (choice.finish_reason, call.type, call.function.name) == ("tool_calls", "function", "get_weather")
        assert call.function.arguments == '{"location": "Paris", "unit": "celsius"}'
    with saying("It is 22°C and sunny in Paris.") as memory:
        completion = memory.chat.completions.create(**openai(messages=json.loads(OPENAI_ANSWERED), tools=tools))
        assert completion.choices[0].message.content == "It is 22°C and sunny in Paris."


def test_both_printed_dialogues_have_the_same_prompt_but_for_the_text_22() -> None:
    anthropics, openais = json.loads(ANTHROPIC_ANSWERED), json.loads(OPENAI_ANSWERED)
    openais[1]["content"] = anthropics[1]["content"][0]["text"]
    with saying("Sunny.") as memory:
        first = memory.messages.create(**anthropic(messages=anthropics, tools=[json.loads(ANTHROPIC_TOOL)]))
        second = memory.chat.completions.create(**openai(messages=openais, tools=[json.loads(OPENAI_TOOL)]))
    assert second.usage.prompt_tokens == first.usage.cache_creation_input_tokens
    assert second.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - 1


@pytest.mark.parametrize(
    ("printed", "finish"),
    [
        ('"auto"', "stop"), ('"required"', "tool_calls"), ('"none"', "stop"),
        ('{"type": "function", "function": {"name": "get_weather"}}', "tool_calls"),
    ],
)  # fmt: skip
def test_every_tool_choice_of_the_guide_does_what_it_says_13_14_15(printed: str, finish: str) -> None:
    pytest.importorskip("llguidance")
    tool = json.loads(OPENAI_TOOL)
    tool["function"]["parameters"]["properties"]["location"]["maxLength"] = 12
    with saying("I would rather talk.") as memory:
        asked = openai(tools=[tool], tool_choice=json.loads(printed))
        [choice] = memory.chat.completions.create(**asked).choices
    assert choice.finish_reason == finish
    assert len(choice.message.get("tool_calls", ())) == (finish == "tool_calls")


def test_the_anthropic_stream_is_as_printed_19() -> None:
    printed = """
{"type":"message_start","message":{"id":"msg_01ABC...","type":"message","role":"assistant","content":[],"model":"g"}}
{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}
{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Once"}}
{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" upon"}}
{"type":"content_block_stop","index":0}
{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":50}}
{"type":"message_stop"}"""
    expected = [json.loads(line) for line in printed.strip().splitlines()]
    with saying("Once upon") as memory:
        events = list(memory.messages.create(**anthropic(stream=True)))
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == list(dict.fromkeys(event["type"] for event in expected))
    for event in events:
        shape(event, next(one for one in expected if one["type"] == event.type))
    assert "".join(event.delta.text for event in events if event.type == "content_block_delta") == "Once upon"


def test_the_openai_stream_is_as_printed_20() -> None:
    head = '{"id":"chatcmpl-a","object":"chat.completion.chunk","created":1706000000,"model":"g","choices":[{"index":0,'
    expected = [
        json.loads(head + rest)
        for rest in (
            '"delta":{"role":"assistant","content":""},"finish_reason":null}]}',
            '"delta":{"content":"Once"},"finish_reason":null}]}',
            '"delta":{},"finish_reason":"stop"}]}',
        )
    ]
    with saying("Once upon") as memory:
        chunks = list(memory.chat.completions.create(**openai(stream=True)))
    first, *pieces, last = chunks
    shape(first, expected[0])
    shape(last, expected[2])
    assert first.choices[0].delta == expected[0]["choices"][0]["delta"]
    assert (last.choices[0].delta, last.choices[0].finish_reason) == ({}, "stop")
    for piece in pieces:
        shape(piece, expected[1])
    assert "".join(piece.choices[0].delta.content for piece in pieces) == "Once upon"


def test_tool_calls_are_streamed_incrementally_in_both() -> None:
    with saying(USES) as memory:
        events = list(memory.messages.create(**anthropic(tools=[json.loads(ANTHROPIC_TOOL)], stream=True)))
        pieces = [e.delta.partial_json for e in events if e.get("delta", {}).get("type") == "input_json_delta"]
        assert (len(pieces) > 3, json.loads("".join(pieces))) == (True, INPUT)
        chunks = list(memory.chat.completions.create(**openai(tools=[json.loads(OPENAI_TOOL)], stream=True)))
        deltas = [call.function.arguments for c in chunks for call in c.choices[0].delta.get("tool_calls", ())]
        assert (len(deltas) > 3, json.loads("".join(deltas))) == (True, INPUT)


def test_sessions_of_the_guide_are_agents() -> None:
    said = {"My name is Alice": "Hello Alice!", "My name is Bob": "Hello Bob!"}
    with Memory(EchoRunner(lambda asked, ids: said.get(asked, "You told me.")), ":memory:") as memory:
        for name, text in (("agent-alice", "My name is Alice"), ("agent-bob", "My name is Bob")):
            memory.messages.create(**anthropic(agent=name, messages=[{"role": "user", "content": text}]))
        history = [
            {"role": "user", "content": "My name is Alice"},
            {"role": "assistant", "content": "Hello Alice!"},
            {"role": "user", "content": "What is my name?"},
        ]
        followed = memory.messages.create(**anthropic(agent="agent-alice", messages=history))
        assert followed.usage.cache_read_input_tokens > followed.usage.cache_creation_input_tokens
        assert {info.name for info in memory.agents()} == {"agent-alice", "agent-bob"}
        question = {"role": "user", "content": "Remember: I like Python"}
        memory.chat.completions.create(**openai(user="session-123", messages=[question]))
        assert memory.agent("session-123").messages[0].content == "Remember: I like Python"
