"""Haystack: ``AgentMemoryChatGenerator``, a chat generator whose conversations keep their KV. Extra ``[haystack]``.

Haystack names no conversation. The agent of a call is the first of these that is given:

- ``agent`` in its ``generation_kwargs``, which ``Agent.run`` passes on; None is no agent. Other options of
  ``Memory.generate`` too.
- ``agent=`` of the generator: give each Haystack agent a generator of its own (they are cheap, their ``Memory`` is
  shared).

``meta["usage"]`` of a reply has the counts in OpenAI's shape, ``meta["reuse"]`` says why not more was reused.
Structured output: ``response_format`` in the ``generation_kwargs``, a Pydantic class or a JSON Schema in OpenAI's
shape. An ``Agent`` that is run with the messages of its last run puts its system prompt before them once more: the
model reads equal ones once. Refused: images, files, JSON without a schema, ``n``. A call is streamed whole. A pipeline
with this generator cannot be saved: its saved form names no Memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from haystack import component
from haystack.dataclasses import (
    ChatMessage,
    ComponentInfo,
    ReasoningContent,
    StreamingCallbackT,
    StreamingChunk,
    TextContent,
    ToolCall,
    ToolCallDelta,
    select_streaming_callback,
)
from haystack.tools import ToolsType, flatten_tools_or_toolsets

from agent_memory import CallEnd, Delta, Generation, Memory, Reasoning, Reply, Text, UnsupportedParameterError
from agent_memory.integrations.shapes import choice_of, written


@component
class AgentMemoryChatGenerator:
    """A chat generator on a ``Memory``, which the caller opens and closes; any number of generators may share one.

    ``generation_kwargs``: what else ``Memory.generate`` takes, for every call; a call's own come first. A callback that
    raises, and a task that is cancelled, end their request.
    """

    def __init__(
        self,
        memory: Memory,
        agent: str | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        tools: ToolsType | None = None,
    ) -> None:
        self.memory, self.agent = memory, agent
        self.generation_kwargs = generation_kwargs or {}
        self.streaming_callback, self.tools = streaming_callback, tools

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
        tools_strict: bool | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Generate a reply, which the callback gets piece by piece."""
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=False)
        with self._start(messages, generation_kwargs, tools, tools_strict) as generation:
            chunks = _Chunks(self)
            for delta in generation if callback else ():
                for chunk in chunks.of(delta):
                    callback(chunk)
            reply = self._reply(generation.result())
        if callback:
            callback(chunks.last(reply))
        return {"replies": [reply]}

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
        tools_strict: bool | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Generate a reply, which the callback, async or not, gets piece by piece; cancelled with its task."""
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=True)
        with self._start(messages, generation_kwargs, tools, tools_strict) as generation:
            chunks = _Chunks(self)
            if callback:
                async for delta in generation:
                    for chunk in chunks.of(delta):
                        await _told(callback(chunk))
            reply = self._reply(await generation)
        if callback:
            await _told(callback(chunks.last(reply)))
        return {"replies": [reply]}

    def _start(
        self, messages: list[ChatMessage] | str, kwargs: Mapping[str, Any] | None, tools: Any, is_strict: bool | None
    ) -> Generation:
        options = {"agent": self.agent, **self.generation_kwargs, **(kwargs or {})}
        if format := options.pop("response_format", None):
            options["schema"] = _schema(format)
        if offered := flatten_tools_or_toolsets(self.tools if tools is None else tools):
            strict = {} if is_strict is None else {"strict": is_strict}
            options["tools"] = [{"type": "function", **tool.tool_spec, **strict} for tool in offered]
        options["tool_choice"] = choice_of(options.get("tool_choice"))
        given = [ChatMessage.from_user(messages)] if isinstance(messages, str) else messages
        said = [one for message in given for one in _messages(message)]
        while len(said) > 1 and said[0]["role"] == "system" and said[0] == said[1]:
            del said[0]  # an Agent's, which the messages of its last run have too
        return self.memory.stream(said, **options)

    def _reply(self, reply: Reply) -> ChatMessage:
        usage = reply.usage
        counts: dict[str, Any] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.output_tokens}
        counts |= {"total_tokens": sum(counts.values())}
        counts |= {"prompt_tokens_details": {"cached_tokens": usage.cached_tokens}}
        meta = {"model": self.memory.model_name, "index": 0, "finish_reason": reply.finish}
        calls = [ToolCall(call.name, dict(call.arguments), call.id) for call in reply.tool_calls]
        return ChatMessage.from_assistant(
            reply.text or None,
            {**meta, "usage": counts, "reuse": usage.to_dict()},
            tool_calls=calls,
            reasoning=reply.reasoning or None,
        )


class _Chunks:
    """A reply in Haystack's pieces: text, reasoning and each call are numbered blocks."""

    def __init__(self, generator: Any) -> None:
        self._info, self._model = ComponentInfo.from_component(generator), generator.memory.model_name
        self._place, self._kind = -1, type(None)

    def of(self, delta: Delta) -> Iterator[StreamingChunk]:
        for event in delta.events:
            if isinstance(event, Text):
                yield self._chunk(type(event), event.text)
            elif isinstance(event, Reasoning):
                yield self._chunk(type(event), reasoning=ReasoningContent(event.text))
            elif isinstance(event, CallEnd) and (call := event.call) is not None:
                whole = ToolCallDelta(event.index, call.name, written(call), call.id)
                yield self._chunk(type(event), tool_calls=[whole])

    def last(self, reply: ChatMessage) -> StreamingChunk:
        """The end of a reply, with its cost."""
        return StreamingChunk("", reply.meta, self._info, finish_reason=reply.meta["finish_reason"])

    def _chunk(self, kind: Any, text: str = "", **rest: Any) -> StreamingChunk:
        is_new = kind is not self._kind or kind is CallEnd
        self._place, self._kind = self._place + is_new, kind
        return StreamingChunk(text, {"model": self._model}, self._info, self._place, start=is_new, **rest)


async def _told(answer: Any) -> None:
    if inspect.isawaitable(answer):
        await answer


def _messages(message: ChatMessage) -> Iterator[dict[str, Any]]:
    """The messages of one of Haystack's, in OpenAI's shape, which ``Memory`` checks: each result is one."""
    if message.images or message.files:
        raise UnsupportedParameterError("images and files are not supported; only text is")
    for result in message.tool_call_results:
        yield {"role": "tool", "content": _text(result.result), "tool_call_id": result.origin.id}
    if not message.tool_call_results:
        yield {
            "role": message.role.value,
            "content": "".join(message.texts),
            "reasoning": "".join(one.reasoning_text for one in message.reasonings) or None,
            "tool_calls": [{"id": c.id, "name": c.tool_name, "arguments": c.arguments} for c in message.tool_calls],
            "name": message.name,
        }


def _text(result: str | Sequence[Any]) -> str:
    parts: Sequence[Any] = [TextContent(result)] if isinstance(result, str) else result
    if wrong := [type(part).__name__ for part in parts if not isinstance(part, TextContent)]:
        raise UnsupportedParameterError(f"a result with {wrong[0]} is not supported; only text is")
    return "".join(part.text for part in parts)


def _schema(format: Any) -> Any:
    if not isinstance(format, Mapping):
        return format
    if format.get("type") != "json_schema":
        raise UnsupportedParameterError(f"response_format of type {format.get('type')!r}; only 'json_schema' is known")
    return format["json_schema"]["schema"]
