"""Any caller's shape of a conversation -> Messages; and their stored form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from agent_memory.errors import UnsupportedParameterError
from agent_memory.types import Message, Role, ToolCall

ROLES: tuple[str, ...] = get_args(Role)
_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"}


def normalize(prompt: object) -> tuple[Message, ...]:
    """Messages of a str (one user message), a Message, a mapping, or a list of them.

    Raises UnsupportedParameterError naming the message and what was found.
    """
    if isinstance(prompt, str):
        return (_checked(Message("user", prompt), 0),)
    if isinstance(prompt, (Message, Mapping)):
        prompt = [prompt]
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise UnsupportedParameterError(f"a prompt must be a str or a list of messages, got {type(prompt).__name__}")
    if not prompt:
        raise UnsupportedParameterError("a prompt must hold at least one message; the list is empty")
    return tuple(_message(one, index) for index, one in enumerate(prompt))


def as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them."""
    out = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            one["reasoning_content"] = message.reasoning
        if message.tool_calls:
            one["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}}
                for c in message.tool_calls
            ]
        if message.tool_call_id is not None:
            one["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            one["name"] = message.name
        out.append(one)
    return out


def to_json(messages: Sequence[Message]) -> str:
    """The log's stored form: compact JSON, fields that are empty left out; ASCII, so that any str can be written."""
    rows = []
    for m in messages:
        row: dict[str, Any] = {"role": m.role, "content": m.content}
        if m.reasoning:
            row["reasoning"] = m.reasoning
        if m.tool_calls:
            row["tool_calls"] = [{"name": c.name, "arguments": dict(c.arguments), "id": c.id} for c in m.tool_calls]
        if m.tool_call_id is not None:
            row["tool_call_id"] = m.tool_call_id
        if m.name is not None:
            row["name"] = m.name
        rows.append(row)
    return json.dumps(rows, separators=(",", ":"))


def from_json(text: str) -> tuple[Message, ...]:
    """The reverse of ``to_json``."""
    return tuple(
        Message(
            role=row["role"],
            content=row["content"],
            reasoning=row.get("reasoning", ""),
            tool_calls=tuple(ToolCall(**call) for call in row.get("tool_calls", ())),
            tool_call_id=row.get("tool_call_id"),
            name=row.get("name"),
        )
        for row in json.loads(text)
    )


def _message(one: object, index: int) -> Message:
    if isinstance(one, Message):
        return _checked(one, index)
    if not isinstance(one, Mapping):
        raise UnsupportedParameterError(f"message {index} must be a Message or a mapping, got {type(one).__name__}")
    if unknown := sorted(map(str, set(one) - _KEYS)):
        known = ", ".join(sorted(_KEYS))
        raise UnsupportedParameterError(f"message {index} has the key {unknown[0]!r}; known: {known}")
    role = "system" if one.get("role") == "developer" else one.get("role")
    asked = one.get("tool_calls") or ()
    if not isinstance(asked, Sequence) or isinstance(asked, (str, bytes)):
        raise UnsupportedParameterError(f"message {index}: tool_calls must be a list, got {type(asked).__name__}")
    calls = tuple(_call(call, index) for call in asked)
    content = _text(one.get("content"), index, optional=bool(calls))
    message = Message(
        role=role,  # type: ignore[arg-type]  # checked right below
        content=content,
        reasoning=one.get("reasoning") or one.get("reasoning_content") or "",
        tool_calls=calls,
        tool_call_id=one.get("tool_call_id"),
        name=one.get("name"),
    )
    return _checked(message, index)


def _checked(message: Message, index: int) -> Message:
    if message.role not in ROLES:
        known = ", ".join(ROLES)
        raise UnsupportedParameterError(f"message {index} has the role {message.role!r}; known: {known}")
    if not isinstance(message.content, str):
        raise UnsupportedParameterError(f"message {index}: content must be text, got {type(message.content).__name__}")
    for key in ("reasoning", "name", "tool_call_id"):
        value = getattr(message, key)
        if not isinstance(value, str) and (value is not None or key == "reasoning"):
            raise UnsupportedParameterError(f"message {index}: {key} must be text, got {type(value).__name__}")
    if not message.content and not (message.tool_calls or message.role in ("assistant", "tool")):
        raise UnsupportedParameterError(f"message {index} ({message.role}) is empty")
    if message.role == "tool" and not message.tool_call_id:
        raise UnsupportedParameterError(f"message {index} has the role 'tool' and no tool_call_id")
    try:
        said = json.dumps([[c.name, c.id, dict(c.arguments)] for c in message.tool_calls], ensure_ascii=False)
    except (TypeError, ValueError, AttributeError) as error:
        raise UnsupportedParameterError(f"message {index}: a tool call cannot be written as JSON: {error}") from None
    try:
        f"{message.content}{message.reasoning}{message.name or ''}{message.tool_call_id or ''}{said}".encode()
    except UnicodeEncodeError as error:
        place = f"character {error.start}"
        raise UnsupportedParameterError(f"message {index} is not valid Unicode: a lone surrogate at {place}") from None
    return message


def _text(content: object, index: int, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise UnsupportedParameterError(f"message {index}: content must be text, got {type(content).__name__}")
    parts = []
    for place, block in enumerate(content):
        kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
        text = block.get("text") if isinstance(block, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise UnsupportedParameterError(
                f"message {index}: content block {place} is of type {kind!r}; only text blocks are supported"
            )
        parts.append(text)
    return "".join(parts)


def _call(call: object, index: int) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str):
        raise UnsupportedParameterError(f"message {index}: a tool call needs a name and arguments, got {call!r}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise UnsupportedParameterError(f"message {index}: arguments of {name!r} are not JSON: {error}") from None
    if not isinstance(arguments, Mapping):
        raise UnsupportedParameterError(f"message {index}: arguments of {name!r} must be an object")
    return ToolCall(name=name, arguments=dict(arguments), id=str(call.get("id") or ""))
