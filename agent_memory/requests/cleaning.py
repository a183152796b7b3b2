"""What callers give, without secrets: messages, calls in them, tools, variables of templates.

Replies are not changed: their ids are what the model generated, and a log that said otherwise would compute them anew.
A model that is shown no secret has none to repeat; one that it makes up is taken out where it is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from agent_memory.prompt.sameness import is_same
from agent_memory.types import Message, Tool, ToolCall

Clean = Callable[[str], str]


def cleaned(given: Sequence[Message], logged: Sequence[Message], clean: Clean) -> tuple[Message, ...]:
    """Return messages without secrets. Replies that the log has stand as they are: their ids are its own."""
    out = []
    for index, message in enumerate(given):
        is_logged = index < len(logged) and message.role == "assistant" and is_same(logged[index], message)
        out.append(message if is_logged else without_secrets(message, clean))
    return tuple(out)


def without_secrets(message: Message, clean: Clean) -> Message:
    """Return a message whose text, reasoning and calls' arguments hold no secret."""
    return attrs.evolve(
        message,
        content=clean(message.content),
        reasoning=clean(message.reasoning) if message.reasoning else message.reasoning,
        tool_calls=tuple(_of_call(call, clean) for call in message.tool_calls),
    )


def of_tools(tools: Sequence[Tool], clean: Clean) -> tuple[Tool, ...]:
    """Return tools whose descriptions hold no secret, those of their parameters included. Names and values that a
    schema allows stand: a call must name them.
    """
    return tuple(
        attrs.evolve(tool, description=clean(tool.description), parameters=_of_schema(tool.parameters, clean))
        for tool in tools
    )


def of_value(value: Any, clean: Clean) -> Any:
    """Return a value of JSON whose texts hold no secret. Keys stand."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {key: of_value(one, clean) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [of_value(one, clean) for one in value]
    return value


def _of_call(call: ToolCall, clean: Clean) -> ToolCall:
    arguments = of_value(call.arguments, clean)
    return call if arguments == call.arguments else attrs.evolve(call, arguments=arguments, source="")


def _of_schema(schema: Any, clean: Clean) -> Any:
    if isinstance(schema, Mapping):
        return {
            key: clean(one) if key in ("description", "title", "$comment") and isinstance(one, str)
            else of_value(one, clean) if key in ("default", "examples")
            else _of_schema(one, clean)
            for key, one in schema.items()
        }  # fmt: skip
    return [_of_schema(one, clean) for one in schema] if isinstance(schema, list) else schema
