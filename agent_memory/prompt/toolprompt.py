"""Tools, calls and results as plain text, for chat templates that know none of them.

The tools stand at the very beginning, where they stay the same from turn to turn: a prefix that is stored once. A call
is a line ``{"tool_use": {"name": ..., "input": ...}}``, one of the JSON forms that the parser takes; what the model
itself wrote stands as it wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs

from agent_memory.types import Message, Role, Tool

_INTRODUCTION = """You can use these tools. Each line describes one; input_schema is the JSON Schema of its input.
{tools}
To use a tool, write a line of JSON, and nothing after it:
{call}
The answer comes in the next message, as a line of JSON: {result}
Use a tool only where it helps; otherwise answer in plain words."""


def spelled(messages: Sequence[Message], tools: Sequence[Tool], *, has_system: bool = True) -> list[Message]:
    """``messages`` without calls and results but in text, and with the tools introduced.

    The introduction ends the system message, or is one; without ``has_system`` it begins the first user message.
    """
    out: list[Message] = []
    for place, message in enumerate(messages):
        follows_result = place > 0 and messages[place - 1].role == "tool"
        if message.role == "tool":
            answer = _line("tool_result", {"name": message.name or message.tool_call_id, "content": message.content})
            message = Message("user", answer)
        elif message.tool_calls:
            message = Message("assistant", message.source or _asked(message), reasoning=message.reasoning)
        if follows_result and message.role == "user":  # one message: templates want roles in turn
            message = Message("user", f"{out.pop().content}\n{message.content}")
        out.append(message)
    return _introduced(out, tools, has_system=has_system) if tools else out


def _introduced(messages: list[Message], tools: Sequence[Tool], *, has_system: bool) -> list[Message]:
    text = introduction(tools)
    role: Role = "system" if has_system else "user"
    if messages and messages[0].role == role:
        first, parts = messages[0], [messages[0].content, text] if has_system else [text, messages[0].content]
        return [attrs.evolve(first, content="\n\n".join(parts)), *messages[1:]]
    return [Message(role, text), *messages]


def introduction(tools: Sequence[Tool]) -> str:
    """Return the text that tells the model its tools and how to call one."""
    lines = [
        _dumps({"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)})
        for tool in tools
    ]
    return _INTRODUCTION.format(
        tools="\n".join(lines),
        call=_line("tool_use", {"name": tools[0].name, "input": {}}),
        result=_line("tool_result", {"name": tools[0].name, "content": "..."}),
    )


def _asked(message: Message) -> str:
    calls = [_line("tool_use", {"name": call.name, "input": dict(call.arguments)}) for call in message.tool_calls]
    return "\n".join([message.content] * bool(message.content.strip()) + calls)


def _line(kind: str, value: dict[str, Any]) -> str:
    return _dumps({kind: value})


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
