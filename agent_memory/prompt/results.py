"""Tool results: the call that each answers, and the text that the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from agent_memory.errors import ToolResultError, UnsupportedParameterError, repr_of
from agent_memory.types import Message, ToolCall, ToolResult


def result_message(result: ToolResult) -> Message:
    """Return the message that answers a call. Raises ToolResultError, or UnsupportedParameterError for no text."""
    if not isinstance(result, ToolResult) or not isinstance(result.id, str) or not result.id:
        raise ToolResultError(f"a result must be a ToolResult with the id of a call, got {repr_of(result)}")
    return Message("tool", result_text(result.content, is_error=result.is_error), tool_call_id=result.id)


def result_text(content: object, *, is_error: bool = False) -> str:
    """Return the text of a result (none, a text, or a list of text blocks); an error's text says that it is one."""
    text = "" if content is None else content
    if isinstance(text, Sequence) and not isinstance(text, (str, bytes, bytearray)):
        text = "".join(_block(block, place) for place, block in enumerate(text))
    if not isinstance(text, str):
        raise UnsupportedParameterError(f"a tool result must be text or text blocks, got {type(content).__name__}")
    return f"Error: {text}" if is_error else text


def _block(block: object, place: int) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    text = block.get("text") if isinstance(block, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise UnsupportedParameterError(
            f"block {place} of a tool result is of type {repr_of(kind)}; only text is supported"
        )
    return text


def paired(messages: Sequence[Message], *, may_end_open: bool = False) -> tuple[Message, ...]:
    """``messages`` with each call's results right behind it, in the order of the calls and named after them.

    Raises ToolResultError for a result without its call, a call without its result (``may_end_open``: but for those
    of the last message), and a second result or call of one id.
    """
    out: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        if message.role == "tool":
            raise ToolResultError(
                f"message {place - 1} answers {repr_of(message.tool_call_id)}, and no such call is open"
            )
        out.append(message)
        stop = place
        while stop < len(messages) and messages[stop].role == "tool":
            stop += 1
        if message.tool_calls and not (may_end_open and place == stop == len(messages)):
            out += _answers(message.tool_calls, messages[place:stop], place - 1)
            place = stop
    return tuple(out)


def _answers(calls: Sequence[ToolCall], results: Sequence[Message], place: int) -> list[Message]:
    asked, given = [call.id for call in calls], [result.tool_call_id for result in results]
    if not all(isinstance(id, str) for id in asked):
        raise ToolResultError(f"the id of a call must be text: message {place} calls {asked}")
    if sorted(asked) != sorted(map(str, given)) or len(set(asked)) < len(asked):
        raise ToolResultError(
            f"results must answer each open call once: message {place} calls {asked}, answered are {given}"
        )
    by_id = {result.tool_call_id: result for result in results}
    return [attrs.evolve(by_id[call.id], name=call.name) for call in calls]
