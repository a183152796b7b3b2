"""When a message that a caller sends back is the one that the log has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from agent_memory.types import Message, ToolCall

#: Reasoning as callers send it back that keep a reply's whole text: in a pair of tags at its beginning.
_TAGGED = re.compile(r"\s*<(?P<tag>[\w:-]+)>(?P<thought>.*?)</(?P=tag)>", re.S)


def is_same(logged: Message, given: Message) -> bool:
    """True if ``given`` says what ``logged`` does: equal role, text, calls and results.

    - Arguments are compared as JSON values: key order and spelling do not count, 1 and 1.0 differ.
    - Ids of calls do not count: frameworks make their own. Results are in the order of their calls by then.
    - Reasoning counts where it is given: most callers send none back. In its tags in front of the text it is reasoning.
    - Blanks around a reply do not count: some callers strip them.
    """
    if logged is given:
        return True
    if (logged.role, logged.name) != (given.role, given.name) or not _is_same_text(logged, given):
        return False
    if given.reasoning and given.reasoning.strip() != logged.reasoning.strip():
        return False
    return len(logged.tool_calls) == len(given.tool_calls) and all(
        map(_is_same_call, logged.tool_calls, given.tool_calls)
    )


def _is_same_text(logged: Message, given: Message) -> bool:
    """True if the texts are equal, or the given one is the logged one behind its reasoning in tags."""
    if _text(logged) == _text(given):
        return True
    thought = _TAGGED.match(given.content) if logged.reasoning and not given.reasoning else None
    return (
        thought is not None
        and thought["thought"].strip() == logged.reasoning.strip()
        and given.content[thought.end() :].strip() == logged.content.strip()
    )


def _text(message: Message) -> str:
    return message.content.strip() if message.role == "assistant" else message.content


def _is_same_call(logged: ToolCall, given: ToolCall) -> bool:
    return logged.name == given.name and json_key(logged.arguments) == json_key(given.arguments)


def json_key(value: Mapping[str, Any]) -> str:
    """A text that is equal for equal JSON values alone: keys sorted, 1 and 1.0 and true apart."""
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def renamed(logged: Sequence[Message], given: Sequence[Message], following: tuple[Message, ...]) -> tuple[Message, ...]:
    """``following``, its leading results named after the logged calls that they answer.

    ``given``: the caller's messages that were found equal to ``logged``, whose calls may have other ids.
    """
    place = next((place for place in range(len(logged) - 1, -1, -1) if logged[place].tool_calls), None)
    if place is None:
        return following
    ids = {call.id: kept.id for kept, call in zip(logged[place].tool_calls, given[place].tool_calls, strict=True)}
    out = list(following)
    for index, message in enumerate(out):
        if message.role != "tool":
            break
        out[index] = attrs.evolve(message, tool_call_id=ids.get(message.tool_call_id or "", message.tool_call_id))
    return tuple(out)
