"""DSPy: ``language_model(memory)``, a ``dspy.LM`` on an engine whose conversations keep their KV. Extra ``[dspy]``.

The agent of a request is the first of these that is given:

- ``user`` among the keywords of a call or of the LM: ``predict(question=..., config={"user": "ann"})``.
- ``agent=`` of the engine. Modules send a prompt of their own with each call, not a conversation: without an agent they
  share what is equal, which is the instructions and the demonstrations. An agent is for ``dspy.History``.

DSPy's response cache is off: what it answers would reach no log. A request's ``extensions`` are options of ``Memory``.
Refused: what is not text, hosted tools, penalties, log probabilities, a schema beside tools. A call is streamed whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import dspy
from dspy import lm15

from agent_memory import CallEnd, Delta, Generation, Memory, Reasoning, Reply, Text
from agent_memory.integrations.shapes import choice_of, written

_SAME = ("max_tokens", "temperature", "top_p", "top_k", "seed")  #: of a request and of ``Memory``
_REFUSED = ("frequency_penalty", "presence_penalty", "logprobs", "probabilities")
_FINISH: Any = {"stop": "stop", "length": "length", "tool_calls": "tool_call"}


def language_model(memory: Memory, *, agent: str | None = None, **options: Any) -> Any:
    """Return a ``dspy.LM`` on a ``Memory``, which the caller opens and closes. ``options``: those of ``dspy.LM``."""
    engines = {"engine": AgentMemoryEngine(memory, agent), "async_engine": AsyncAgentMemoryEngine(memory, agent)}
    return dspy.LM(f"agent-memory/{memory.model_name}", **engines, **{"cache": False, **options})


class _OfMemory:
    """How both engines ask."""

    def __init__(self, memory: Memory, agent: str | None = None) -> None:
        self.memory, self.agent = memory, agent

    def _start(self, request: lm15.Request) -> Generation:
        config = request.config
        if wrong := [name for name in _REFUSED if getattr(config, name) is not None]:
            raise lm15.UnsupportedFeatureError(f"{wrong[0]} is not supported by a local model; leave it out")
        options: dict[str, Any] = {name: getattr(config, name) for name in _SAME if getattr(config, name) is not None}
        options |= {"agent": config.user_id or self.agent, "stop": config.stop, **_tools(request)}
        if config.response_format is not None:
            options["schema"] = config.response_format.get("schema", {"type": "object"})
        system = request.system if isinstance(request.system, str) else "".join(map(_text, request.system or ()))
        leading = [{"role": "system", "content": system}] if system else []
        said = [one for message in request.messages for one in _messages(message)]
        return self.memory.stream([*leading, *said], **{**options, **(config.extensions or {})})

    def _response(self, reply: Reply) -> lm15.Response:
        parts: list[Any] = [lm15.ThinkingPart(reply.reasoning)] if reply.reasoning else []
        calls = [lm15.ToolCallPart(one.id, one.name, dict(one.arguments)) for one in reply.tool_calls]
        parts += [*([lm15.TextPart(reply.text)] if reply.text or not calls else []), *calls]
        message = lm15.Message.assistant(parts)
        return lm15.Response(reply.id, self.memory.model_name, message, _FINISH[reply.finish], **_cost(reply))

    def _opening(self, generation: Generation) -> lm15.StreamStartEvent:
        return lm15.StreamStartEvent(id=generation.id, model=self.memory.model_name)


class AgentMemoryEngine(_OfMemory):
    """An engine for ``dspy.LM(engine=...)``."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Generate a reply."""
        with self._start(request) as generation:
            return self._response(generation.result())

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """Generate a reply, event by event; left early, it is cancelled."""
        with self._start(request) as generation:
            yield self._opening(generation)
            places: dict[str, int] = {}
            for delta in generation:
                yield from _events(delta, places)
            yield _ending(generation.result())

    def close(self) -> None:
        """Do nothing: the Memory is the caller's."""


class AsyncAgentMemoryEngine(_OfMemory):
    """The same for ``dspy.LM(async_engine=...)``."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Generate a reply; cancelled with its task."""
        return self._response(await self._start(request))

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        """Generate a reply, event by event; left early, it is cancelled."""
        with self._start(request) as generation:
            yield self._opening(generation)
            places: dict[str, int] = {}
            async for delta in generation:
                for event in _events(delta, places):
                    yield event
            yield _ending(await generation)

    async def aclose(self) -> None:
        """Do nothing: the Memory is the caller's."""


def _tools(request: lm15.Request) -> dict[str, Any]:
    if not request.tools:
        return {}
    offered = []
    for one in request.tools:
        if one.type != "function":
            raise lm15.UnsupportedFeatureError(f"the tool {one.name} would run elsewhere; only functions are known")
        offered.append({"name": one.name, "description": one.description, "input_schema": dict(one.parameters)})
    options: dict[str, Any] = {"tools": offered}
    if (choice := request.config.tool_choice) is not None:
        allowed = choice.allowed
        one_tool = choice_of(allowed[0]) if len(allowed) == 1 and choice.mode == "required" else choice.mode
        options = {"tools": [one for one in offered if not allowed or one["name"] in allowed], "tool_choice": one_tool}
        options |= {} if choice.parallel is None else {"parallel_tool_calls": choice.parallel}
    return options


def _messages(message: Any) -> Iterator[dict[str, Any]]:
    """A message in OpenAI's shape, or the results of several calls."""
    said: dict[str, Any] = {"role": message.role, "content": "", "reasoning": "", "tool_calls": []}
    for part in message.parts:
        if part.type == "tool_result":
            content = "".join(map(_text, part.content))
            yield {
                "role": "tool",
                "tool_call_id": part.id,
                "content": f"Error: {content}" if part.is_error else content,
            }
        elif part.type == "tool_call":
            said["tool_calls"].append({"id": part.id, "name": part.name, "arguments": dict(part.input)})
        elif part.type == "thinking":
            said["reasoning"] += part.text
        else:
            said["content"] += _text(part)
    if message.role != "tool":
        yield said


def _text(part: Any) -> str:
    if part.type != "text":
        raise lm15.UnsupportedFeatureError(f"a prompt must be text; a part of type {part.type} is not supported")
    return str(part.text)


def _events(delta: Delta, places: dict[str, int]) -> Iterator[Any]:
    """Events of a step; ``places``: of the parts, in the order in which they were begun."""
    for event in delta.events:
        if isinstance(event, Text):
            said: Any = lm15.TextDelta(event.text, part_index=places.setdefault("text", len(places)))
        elif isinstance(event, Reasoning):
            said = lm15.ThinkingDelta(event.text, part_index=places.setdefault("thinking", len(places)))
        elif isinstance(event, CallEnd) and (call := event.call) is not None:
            place = places.setdefault(call.id, len(places))
            said = lm15.ToolCallDelta(written(call), part_index=place, id=call.id, name=call.name)
        else:
            continue
        yield lm15.StreamDeltaEvent(said)


def _ending(reply: Reply) -> lm15.StreamEndEvent:
    return lm15.StreamEndEvent(finish_reason=_FINISH[reply.finish], **_cost(reply))


def _cost(reply: Reply) -> dict[str, Any]:
    """The cost of a reply; ``provider_data`` says why not more was reused."""
    n_in, n_out = reply.usage.prompt_tokens, reply.usage.output_tokens
    counted = {"input_tokens": n_in, "output_tokens": n_out, "total_tokens": n_in + n_out}
    usage = lm15.Usage(**counted, cache_read_tokens=reply.usage.cached_tokens)
    return {"usage": usage, "provider_data": {"usage": reply.usage.to_dict()}}
