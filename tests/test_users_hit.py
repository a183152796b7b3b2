"""What users hit: a turn computes only what is new, and where it computes more it says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory, Reply, Tool, ToolResult
from tests.templated import Templated, says, templated
from tests.templates import NATIVE

SMALL = Config(chunk_tokens=16, prefill_tokens=16)
WRITE = Tool(
    "write",
    "Writes a file.",
    {"type": "object", "properties": {"path": {"type": "string"}, "text": {"type": "string"}, "n": {"type": "number"}}},
)
ARGUMENTS = {"path": "a/b.py", "text": 'the theory in all\nof it: {"x": [1, 2.0]} é', "n": 1}
SPELLINGS: dict[str, Callable[[Any], str]] = {
    "canonical": lambda value: json.dumps(value, ensure_ascii=False),
    "compact": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "newlines": lambda value: json.dumps(value, ensure_ascii=False, indent=2),
    "key order": lambda value: json.dumps(dict(reversed(value.items())), ensure_ascii=False),
    "escapes": lambda value: json.dumps(value, ensure_ascii=True, separators=(" , ", " : ")),
}
RESULT = "written, 42 bytes"


@pytest.fixture(autouse=True)
def free_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are not held to a grammar, so that the model may spell them as it likes."""
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)


@pytest.fixture
def opened() -> Iterator[Callable[..., Memory]]:
    memories: list[Memory] = []

    def open_(runner: EchoRunner, path: Any = ":memory:", **settings: Any) -> Memory:
        memories.append(Memory(runner, path, config=Config(chunk_tokens=16, prefill_tokens=16, **settings)))
        return memories[-1]

    yield open_
    for memory in memories:
        memory.close()


def spelled(tokenizer: Any, spelling: str) -> list[int]:
    """A call in the template's way with its arguments spelled in this one, in uneven ids, and the end of the turn."""
    from tests.templated import uneven

    text = tokenizer.call.format(name="write", args=SPELLINGS[spelling](ARGUMENTS))
    return [*uneven(tokenizer, text), tokenizer.call_end]


def openai_history(reply: Reply, result: str | None) -> list[dict[str, Any]]:
    """As a framework stores it: arguments as a JSON string of its own spelling, ids of its own."""
    calls = [
        {
            "id": f"own_{place}_9bytes",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(reversed(call.arguments.items())), indent=1)},
        }
        for place, call in enumerate(reply.tool_calls)
    ]
    asked = {"role": "user", "content": "Write it."}
    said: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "tool_calls": calls}
    answers = [{"role": "tool", "tool_call_id": call["id"], "content": result} for call in calls]
    return [asked, said, *answers]


def give(memory: Memory, reply: Reply) -> Any:
    return memory.agent("a").give(ToolResult(reply.tool_calls[0].id, RESULT))


def send_list(memory: Memory, reply: Reply) -> Any:
    history = openai_history(reply, RESULT)
    history[1]["content"] = reply.text
    return memory.generate(history, agent="a", tools=[WRITE])


def send_openai(memory: Memory, reply: Reply) -> Any:
    tools = [{"type": "function", "function": {"name": WRITE.name, "description": WRITE.description,
              "parameters": dict(WRITE.parameters)}}]  # fmt: skip
    memory.chat.completions.create(model="m", agent="a", messages=openai_history(reply, RESULT), tools=tools)


def send_anthropic(memory: Memory, reply: Reply) -> Any:
    tools = [{"name": WRITE.name, "description": WRITE.description, "input_schema": dict(WRITE.parameters)}]
    uses = [
        {"type": "tool_use", "id": f"toolu_{n}", "name": call.name, "input": dict(reversed(call.arguments.items()))}
        for n, call in enumerate(reply.tool_calls)
    ]
    text = [{"type": "text", "text": reply.text}] if reply.text else []
    answers = [{"type": "tool_result", "tool_use_id": use["id"], "content": RESULT} for use in uses]
    messages = [
        {"role": "user", "content": "Write it."},
        {"role": "assistant", "content": [*text, *uses]},
        {"role": "user", "content": answers},
    ]
    memory.messages.create(model="m", agent="a", messages=messages, tools=tools, max_tokens=20)


WAYS = {"give": give, "list": send_list, "openai": send_openai, "anthropic": send_anthropic}


def last_turn(memory: Memory) -> tuple[list[int], int]:
    """The agent's ids, and how many of them are the newest reply's."""
    log = memory.agent("a")._log
    return log.ids.tolist(), log.turns[-1].n_reply or 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", [*NATIVE, "prompt-based"])
def test_line_1_after_a_call_in_any_spelling_only_its_result_is_computed(
    opened: Callable[..., Memory], name: str, spelling: str, way: str
) -> None:
    tokenizer: Any = templated(name) if name in NATIVE else no_tools()
    memory = opened(says(tokenizer, spelled(tokenizer, spelling), "Done."))
    reply = memory.agent("a", tools=[WRITE]).say("Write it.")
    assert [(call.name, dict(call.arguments)) for call in reply.tool_calls] == [("write", ARGUMENTS)]
    before, _ = last_turn(memory)
    n_kv = memory.agent("a")._log.n_kv
    assert n_kv >= len(before) - 1  # a model need not have been fed the token that ended its reply
    computed = memory.stats().computed_tokens
    WAYS[way](memory, reply)
    ids, n_reply = last_turn(memory)
    assert ids[: len(before)] == before
    new = ids[len(before) : len(ids) - n_reply]
    assert memory.stats().computed_tokens - computed == len(ids) - n_reply - n_kv
    written = rendered(tokenizer, memory)
    tail = written[written.rindex(RESULT[:7]) :]
    assert tokenizer.key(new).endswith(tokenizer.key(tokenizer.encode(tail)))
    assert len(new) <= len(tokenizer.encode(tail)) + 60  # what the template writes around a result
    assert memory.stats().misses == {}


def rendered(tokenizer: Any, memory: Memory) -> str:
    """The newest prompt as the template writes all of it, in its own spelling."""
    from agent_memory.prompt.template import render

    log = memory.agent("a")._log
    return render(tokenizer, log.messages[:-1], tools=[WRITE], now=log.facts.date)


def no_tools() -> Templated:
    """Qwen's tokens with a template that knows no tools: they, the calls and the results are text to it."""

    class Plain(Templated):
        knows_tools = False  # type: ignore[assignment]
        tool_format = None  # type: ignore[assignment]

    return Plain(NATIVE["qwen"])
