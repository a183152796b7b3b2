"""smolagents: ``AgentMemoryModel``, a model whose agents keep their KV. Extra ``[smolagents]``.

smolagents names no conversation: give each agent, managed ones too, a model with an ``agent=`` of its own (models are
cheap, their ``Memory`` is shared). Without a name, calls share prefixes and no log. Calls beside an agent's steps, for
plans and for an answer when the steps are used up, leave the log as it is.

smolagents writes its history as plain text. The model reads it as what it was:

- "Calling tools: ..." is a call again, and its observation the result. Several calls at once have one observation: the
  last one's result; the others' are empty.
- Of a code agent's step only the model's own words stay: neither the closing tag that smolagents adds to them nor the
  call of ``python_interpreter`` that repeats their code.

``ChatMessage.token_usage`` has ``cached_tokens`` too; ``ChatMessage.raw`` is the ``Reply``. Refused: images, and JSON
without a schema. A call is streamed whole. An agent cannot be loaded from its saved form, which names no Memory.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any

from smolagents import ChatMessage, MessageRole, Model, TokenUsage
from smolagents.models import (
    ChatMessageStreamDelta,
    ChatMessageToolCall,
    ChatMessageToolCallFunction,
    ChatMessageToolCallStreamDelta,
    get_tool_json_schema,
)

from agent_memory import CallEnd, Generation, Memory, Text, UnsupportedParameterError, Usage
from agent_memory.integrations.shapes import choice_of, written

_CALLING, _OBSERVED = "Calling tools:", "Observation:"
_ROLES = {"tool-call": "assistant", "tool-response": "user"}


class CachedTokenUsage(TokenUsage):
    """Tokens of one call; ``cached_tokens`` of its input were not computed again."""

    def __init__(self, usage: Usage) -> None:
        super().__init__(usage.prompt_tokens, usage.output_tokens)
        self.cached_tokens = usage.cached_tokens


class AgentMemoryModel(Model):
    """A model on a ``Memory``, which the caller opens and closes; any number of models may share one.

    ``options``: what else ``Memory.generate`` takes; they come before what an agent asks for, as in any smolagents
    model. Leaving ``generate_stream`` early cancels its request.
    """

    def __init__(self, memory: Memory, agent: str | None = None, **options: Any) -> None:
        super().__init__(model_id=memory.model_name, **options)
        self.memory, self.agent = memory, agent

    def generate(
        self,
        messages: list[ChatMessage],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools_to_call_from: list[Any] | None = None,
        **kwargs: Any,
    ) -> ChatMessage:
        """Generate a reply."""
        with self._start(messages, stop_sequences, response_format, tools_to_call_from, kwargs) as generation:
            reply = generation.result()
        calls = [
            ChatMessageToolCall(ChatMessageToolCallFunction(dict(call.arguments), call.name), call.id, "function")
            for call in reply.tool_calls
        ]
        usage = CachedTokenUsage(reply.usage)
        return ChatMessage(MessageRole.ASSISTANT, reply.text, calls or None, raw=reply, token_usage=usage)

    def generate_stream(
        self,
        messages: list[ChatMessage],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools_to_call_from: list[Any] | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatMessageStreamDelta]:
        """Generate a reply, piece by piece; the last has the usage."""
        with self._start(messages, stop_sequences, response_format, tools_to_call_from, kwargs) as generation:
            for event in (event for delta in generation for event in delta.events):
                if isinstance(event, Text):
                    yield ChatMessageStreamDelta(event.text)
                elif isinstance(event, CallEnd) and (call := event.call) is not None:
                    function = ChatMessageToolCallFunction(written(call), call.name)
                    whole = ChatMessageToolCallStreamDelta(event.index, call.id, "function", function)
                    yield ChatMessageStreamDelta(tool_calls=[whole])
            yield ChatMessageStreamDelta("", token_usage=CachedTokenUsage(generation.result().usage))

    def _start(
        self,
        messages: Sequence[Any],
        stops: list[str] | None,
        format: dict[str, Any] | None,
        tools: list[Any] | None,
        kwargs: dict[str, Any],
    ) -> Generation:
        is_step = bool(tools) or _CALLING in (stops or ())
        options = {"on_diverge": "replace" if is_step else "branch", "stop": stops or (), "schema": _schema(format)}
        if tools:
            options |= {"tools": [get_tool_json_schema(tool) for tool in tools], "tool_choice": "required"}
        options = {"agent": self.agent, **options, **kwargs, **self.kwargs}
        options["tool_choice"] = choice_of(options.get("tool_choice"))
        return self.memory.stream(_prompt(messages, stops or ()), **options)


def _prompt(messages: Sequence[Any], stops: Sequence[str]) -> list[dict[str, Any]]:
    """Messages in OpenAI's shape; neighbours of one role are one message, since many templates ask for turns."""
    out: list[dict[str, Any]] = []
    for place, given in enumerate(messages):
        one = ChatMessage.from_dict(dict(given)) if isinstance(given, dict) else given
        kind, text = str(getattr(one.role, "value", one.role)), _text(one.content, place)
        last: dict[str, Any] = out[-1] if out else {"role": None}
        if kind == "tool-response" and last.get("tool_calls"):
            *others, newest = [call["id"] for call in last["tool_calls"]]
            out += [{"role": "tool", "content": "", "tool_call_id": id} for id in others]
            result = text.removeprefix(_OBSERVED).removeprefix("\n")
            out.append({"role": "tool", "content": result, "tool_call_id": newest})
            continue
        role, calls = _ROLES.get(kind, kind), one.tool_calls or ()
        if kind == "tool-call" and text.startswith(_CALLING):
            calls, text = ast.literal_eval(text.removeprefix(_CALLING).strip()), ""
            calls = [ChatMessage(role, tool_calls=[call]).tool_calls[0] for call in calls]
        for stop in stops if role == "assistant" else ():
            text = text.removesuffix(stop)
        if role != last["role"]:
            out.append({"role": role, "content": text, "tool_calls": []})
        elif text:
            last["content"] += "\n" + text
        out[-1]["tool_calls"] += [_call(call) for call in calls if call.function.name != "python_interpreter"]
    return out


def _call(call: ChatMessageToolCall) -> dict[str, Any]:
    return {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}


def _text(content: Any, place: int) -> str:
    blocks = [{"type": "text", "text": content or ""}] if content is None or isinstance(content, str) else content
    if kinds := [block.get("type") for block in blocks if block.get("type") != "text"]:
        raise UnsupportedParameterError(f"message {place}: content of type {kinds[0]!r}; only text is supported there")
    return "".join(block["text"] for block in blocks)


def _schema(format: dict[str, Any] | None) -> Any:
    if format is None:
        return None
    if format.get("type") != "json_schema":
        raise UnsupportedParameterError(f"response_format of type {format.get('type')!r}; only 'json_schema' is known")
    return format["json_schema"]["schema"]
