"""The open tool calls of a log, and the messages that answer them."""

from __future__ import annotations

from collections.abc import Sequence

from agent_memory.errors import ToolResultError, repr_of
from agent_memory.log.log import Log
from agent_memory.prompt.results import result_message
from agent_memory.requests.prompting import Answers
from agent_memory.types import Message, ToolCall, ToolResult


def open_calls(log: Log) -> tuple[ToolCall, ...]:
    """The calls of the newest reply, where nothing was said after it."""
    messages = log.messages
    return messages[-1].tool_calls if messages else ()


def answers_of(log: Log, results: Sequence[ToolResult]) -> Answers:
    """``results`` as messages, with those that the log keeps for the other open calls.

    A result takes the place of a kept one of its call. Raises ToolResultError for a result of no open call, a second
    one of the same call, and where no call is open.
    """
    version, asked = log.version, [call.id for call in open_calls(log)]  # in this order: a turn in between is noticed
    if not asked:
        raise ToolResultError(f"agent {repr_of(log.name)} has no open tool calls; got {len(results)} results")
    given = tuple(map(result_message, results))
    ids = [message.tool_call_id for message in given]
    if unknown := [id for place, id in enumerate(ids) if id not in asked or id in ids[:place]]:
        raise ToolResultError(
            f"results must answer each open call once: open calls are {asked}, answered are {ids}; {unknown[0]!r} is "
            "unknown or repeated"
        )
    kept = [Message("tool", text, tool_call_id=id) for id, text in log.facts.answered if id in asked and id not in ids]
    return Answers((*given, *kept), version)
