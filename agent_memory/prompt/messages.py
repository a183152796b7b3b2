"""Any caller's shape of a conversation -> Messages (OpenAI's or Anthropic's, or both mixed); and their stored form."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import attrs

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.prompt.results import result_text
from agent_memory.types import Card, Message, Role, ToolCall

ROLES: tuple[str, ...] = get_args(Role)
_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"}

#: Keys that frameworks store with a message or a text block, each with its neutral value; None is neutral
#: anywhere. Any other value asks for what is not supported.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "annotations": ([], ()), "audio": (), "citations": ([], ()), "function_call": (), "images": ([], ()),
    "metadata": ({},), "provider_specific_fields": ({},), "refusal": ("",), "thinking_blocks": ([], ()),
}  # fmt: skip
_TEXT_KEYS = {"type", "text"}
_HINTS = {"cache_control"}  #: of any value: all KV is kept here


def normalize(prompt: object) -> tuple[Message, ...]:
    """Messages of a str (one user message), a Message, a mapping, or a list of them; copies, all the way down.

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
    return tuple(message for index, one in enumerate(prompt) for message in _messages(one, index))


def as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them."""
    out = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            one["reasoning_content"] = message.reasoning
        if message.tool_calls:
            one["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": _own(c.arguments)}}
                for c in message.tool_calls
            ]
        if message.tool_call_id is not None:
            one["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            one["name"] = message.name
        out.append(one)
    return out


def copied(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return copies of messages that share no arguments with them: a change of one does not change the other."""
    return tuple(attrs.evolve(m, tool_calls=_own_calls(m.tool_calls)) if m.tool_calls else m for m in messages)


def as_written(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """A reply's calls as the model wrote them, whatever was done to these since."""
    return tuple(
        attrs.evolve(call, arguments=json.loads(call.source)) if call.source else _own_calls([call])[0]
        for call in calls
    )


def to_json(messages: Sequence[Message]) -> str:
    """The log's stored form: compact JSON, fields that are empty left out; ASCII, so that any str can be written.

    Raises UnsupportedParameterError for arguments that are no JSON.
    """
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
        if m.source:
            row["source"] = m.source
        if m.recalled:
            row["recalled"] = [[card.id, card.text, card.workspace] for card in m.recalled]
        rows.append(row)
    try:
        return json.dumps(rows, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedParameterError(f"a tool call's arguments cannot be written as JSON: {error}") from error


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
            source=row.get("source", ""),
            recalled=tuple(Card(*card) for card in row.get("recalled", ())),
        )
        for row in json.loads(text)
    )


def _messages(one: object, index: int) -> list[Message]:
    """One message of the caller's; of Anthropic's shape, each tool result in it is a message of its own."""
    if isinstance(one, Message):
        return [_checked(one, index)]
    one = _as_mapping(one)
    if not isinstance(one, Mapping):
        raise UnsupportedParameterError(f"message {index} must be a Message or a mapping, got {type(one).__name__}")
    one = _less_neutral(one, _KEYS, f"message {index}")
    role = "system" if one.get("role") == "developer" else one.get("role")
    asked = one.get("tool_calls", ())
    if not isinstance(asked, Sequence) or isinstance(asked, (str, bytes)):
        raise UnsupportedParameterError(f"message {index}: tool_calls must be a list, got {type(asked).__name__}")
    content = one.get("content", "" if asked or role in ("assistant", "tool") else None)
    if role == "user" and isinstance(content, Sequence) and (results := _results(content)):
        rest = list(content[len(results) :])
        answers = [_checked(_result(block, index), index) for block in results]
        return answers + (_messages({**one, "content": rest}, index) if rest else [])
    text, thoughts, uses = _blocks(content, index, role)
    return [
        _checked(
            Message(
                role=role,  # type: ignore[arg-type]  # checked right there
                content=text,
                reasoning=one.get("reasoning") or one.get("reasoning_content") or thoughts,
                tool_calls=(*uses, *(_call(call, index) for call in asked)),
                tool_call_id=one.get("tool_call_id"),
                name=one.get("name"),
            ),
            index,
        )
    ]


def _as_mapping(one: object) -> Any:
    """The fields of an SDK's object (pydantic's), without importing what made it; anything else as it is."""
    dump = getattr(type(one), "model_dump", None)
    return one if isinstance(one, Mapping) or not callable(dump) else dump(one)


def _less_neutral(given: Mapping[Any, Any], known: Collection[str], place: str) -> dict[str, Any]:
    """Return the known keys of ``given``. Raises UnsupportedParameterError for others, unless neutral."""
    rest = {key: value for key, value in given.items() if value is not None}  # SDKs' objects hold fields that are unset
    for key in sorted(map(str, rest.keys() - known)):
        if key in _HINTS or (key in _NEUTRAL and rest[key] in _NEUTRAL[key]):
            continue
        if key in _NEUTRAL:
            raise UnsupportedParameterError(f"{place}: {key} is not supported, got {repr_of(rest[key])}")
        raise UnsupportedParameterError(f"{place} has the key {repr_of(key)}; known: {', '.join(sorted(known))}")
    return {key: value for key, value in rest.items() if key in known}


def _results(content: Sequence[Any]) -> list[Mapping[str, Any]]:
    """The tool results with which a user's content begins (Anthropic's shape)."""
    found: list[Mapping[str, Any]] = []
    for block in content:
        if not isinstance(block, Mapping) or block.get("type") != "tool_result":
            break
        found.append(block)
    return found


def _result(block: Mapping[str, Any], index: int) -> Message:
    if unknown := sorted(map(str, set(block) - {"type", "tool_use_id", "content", "is_error", "cache_control"})):
        raise UnsupportedParameterError(f"message {index}: a tool result has the key {repr_of(unknown[0])}")
    text = result_text(block.get("content"), is_error=bool(block.get("is_error")))
    return Message("tool", text, tool_call_id=block.get("tool_use_id"))


def _checked(message: Message, index: int) -> Message:
    if message.role not in ROLES:
        known = ", ".join(ROLES)
        raise UnsupportedParameterError(f"message {index} has the role {repr_of(message.role)}; known: {known}")
    if not isinstance(message.content, str):
        raise UnsupportedParameterError(f"message {index}: content must be text, got {type(message.content).__name__}")
    for key in ("reasoning", "name", "tool_call_id"):
        value = getattr(message, key)
        if not isinstance(value, str) and (value is not None or key == "reasoning"):
            raise UnsupportedParameterError(f"message {index}: {key} must be text, got {type(value).__name__}")
    if not message.content and not (message.tool_calls or message.role in ("system", "assistant", "tool")):
        raise UnsupportedParameterError(f"message {index} ({message.role}) is empty")
    if message.role == "tool" and not message.tool_call_id:
        raise UnsupportedParameterError(f"message {index} has the role 'tool' and no tool_call_id")
    try:
        calls = [[c.name, c.id, dict(c.arguments)] for c in message.tool_calls]
        said = json.dumps(calls, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UnsupportedParameterError(f"message {index}: a tool call cannot be written as JSON: {error}") from None
    try:
        f"{message.content}{message.reasoning}{message.name or ''}{message.tool_call_id or ''}{said}".encode()
    except UnicodeEncodeError as error:
        place = f"character {error.start}"
        raise UnsupportedParameterError(f"message {index} is not valid Unicode: a lone surrogate at {place}") from None
    return copied([message])[0]


def _own(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy by way of JSON."""
    return dict(json.loads(json.dumps(dict(arguments))))


def _own_calls(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    return tuple(attrs.evolve(call, arguments=_own(call.arguments)) for call in calls)


def _blocks(content: object, index: int, role: object) -> tuple[str, str, list[ToolCall]]:
    """Text, reasoning and calls of a content: a text, or a list of blocks."""
    if isinstance(content, str):
        return content, "", []
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise UnsupportedParameterError(f"message {index}: content must be text, got {type(content).__name__}")
    texts, thoughts, calls = [], [], []
    for place, block in enumerate(map(_as_mapping, content)):
        kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
        if kind == "tool_use" and role == "assistant":
            calls.append(_call(block, index, "input"))
        elif kind == "thinking" and role == "assistant" and isinstance(block.get("thinking"), str):
            thoughts.append(block["thinking"])
        elif kind == "text" and isinstance(block.get("text"), str):
            texts.append(_less_neutral(block, _TEXT_KEYS, f"message {index}, content block {place}")["text"])
        else:
            raise UnsupportedParameterError(
                f"message {index}: content block {place} is of type {repr_of(kind)}; only text is supported there"
            )
    return "".join(texts), "".join(thoughts), calls


def _call(call: object, index: int, key: str = "arguments") -> ToolCall:
    """A call in OpenAI's shape, bare or inside ``function``, or with another ``key`` in Anthropic's."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise UnsupportedParameterError(f"message {index}: a tool call needs a name and arguments, got {repr_of(call)}")
    arguments = function.get(key)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise UnsupportedParameterError(
                f"message {index}: arguments of {repr_of(name)} are not JSON: {error}"
            ) from None
    arguments = {} if arguments is None else arguments  # null is how some write that there are none
    if not isinstance(arguments, Mapping):
        raise UnsupportedParameterError(f"message {index}: arguments of {repr_of(name)} must be an object")
    return ToolCall(name=name, arguments=dict(arguments), id=str(call.get("id") or ""))
