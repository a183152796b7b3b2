"""Anthropic's Messages API in process: requests as keyword arguments, replies and events as plain data.

Shapes follow the API's reference and the types of its Python SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

from agent_memory.dialects.plain import Data, Parameters, begun_object, is_malformed
from agent_memory.dialects.stream import EventStream
from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.generation import Generation
from agent_memory.types import CallArguments, CallEnd, CallStart, Delta, Reasoning, Reply, Sampling, Text, Usage

_NO_USAGE = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class AnthropicMessages:
    """``memory.messages``: ``create``, ``stream`` and ``count_tokens`` take the API's parameters by name.

    ``metadata.user_id``, or ``agent=`` beside the API's own, names the agent; the request's messages are its whole
    history. ``recall=`` likewise is that of ``Memory.generate``. ``model`` may be any text: the reply names the model
    that answered. Without ``temperature`` decoding is greedy. Raises UnsupportedParameterError, by name, for what is
    not supported.
    """

    def __init__(self, ask: Callable[..., Generation], count_tokens: Callable[..., int], model: str) -> None:
        self._ask, self._count_tokens, self._model = ask, count_tokens, model

    @overload
    def create(self, *, stream: Literal[False] | None = None, **request: Any) -> Data: ...
    @overload
    def create(self, *, stream: Literal[True], **request: Any) -> EventStream: ...
    @overload
    def create(self, *, stream: bool | None, **request: Any) -> Data | EventStream: ...
    def create(self, **request: Any) -> Data | EventStream:
        """A message; with ``stream=True`` its events."""
        parameters = Parameters(request, "messages")
        is_stream = parameters.take("stream", bool, default=False)
        events = self._events(parameters)
        return events if is_stream else events.whole()

    def stream(self, **request: Any) -> EventStream:
        """A message's events, at once. ``get_final_message()`` and ``text_stream`` as in the SDK."""
        return self._events(Parameters(request, "messages"))

    def count_tokens(self, **request: Any) -> Data:
        """``input_tokens`` of a request without generating anything."""
        parameters = Parameters(request, "messages.count_tokens")
        parameters.take("model", str)
        history, tools = _history(parameters), parameters.take("tools", list, tuple, default=())
        _schema(parameters)  # not in the prompt: it costs no tokens
        parameters.end()
        return Data({"input_tokens": self._count_tokens(history, tools=tools)})

    def _events(self, parameters: Parameters) -> EventStream:
        generation = self._generation(parameters)
        return EventStream(generation, lambda: MessageWriter(generation.id, self._model))

    def _generation(self, parameters: Parameters) -> Generation:
        parameters.take("model", str)
        metadata = parameters.take("metadata", Mapping, default={})
        if unknown := sorted(map(str, set(metadata) - {"user_id"})):
            raise UnsupportedParameterError(f"messages: metadata.{unknown[0]} is not supported")
        agent = parameters.take("agent", default=metadata.get("user_id"))
        choice, is_parallel = _choice(parameters.take("tool_choice", Mapping, default={"type": "auto"}))
        sampling = Sampling(
            temperature=parameters.take("temperature", default=0.0),
            top_p=parameters.take("top_p", default=1.0),
            top_k=parameters.take("top_k", default=0),
        )
        max_tokens = parameters.need("max_tokens", int)
        stop = parameters.take("stop_sequences", list, tuple, default=())
        tools = parameters.take("tools", list, tuple, default=())
        history, schema = _history(parameters), _schema(parameters)
        _refuse_prefill(history)
        parameters.only("thinking", {"type": "disabled"})
        parameters.only("service_tier", "auto", "standard_only")
        parameters.only("mcp_servers", [])
        for name in ("extra_headers", "extra_query", "extra_body"):  # the SDK's, for its requests over HTTP
            parameters.only(name, {})
        parameters.ignore("cache_control")
        recall = parameters.take("recall")
        parameters.end()
        return self._ask(
            history,
            agent=agent,
            recall=recall,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=is_parallel,
            schema=schema,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
        )


def _history(parameters: Parameters) -> list[Any]:
    system = parameters.take("system", str, list, tuple)
    messages = parameters.need("messages", list, tuple)
    return [{"role": "system", "content": system}, *messages] if system else list(messages)


def _refuse_prefill(history: Sequence[Any]) -> None:
    """Raises UnsupportedParameterError where the last message is the beginning of the reply."""
    last = history[-1] if history else None
    role = last.get("role") if isinstance(last, Mapping) else getattr(last, "role", None)
    if role == "assistant":
        raise UnsupportedParameterError(
            "messages: the last message is an assistant's, and to prefill the reply is not supported; "
            "end with a user's message"
        )


def _schema(parameters: Parameters) -> Any:
    """``Memory.generate``'s schema for ``output_config.format``, or ``output_format`` as the API had it before."""
    config = parameters.take("output_config", Mapping, default={})
    if unknown := sorted(str(name) for name, value in config.items() if name != "format" and value is not None):
        raise UnsupportedParameterError(f"messages: output_config.{unknown[0]} is not supported")
    both = config.get("format"), parameters.take("output_format", Mapping)
    formats = [given for given in both if given is not None]
    if not formats:
        return None
    if len(formats) == 2:
        raise UnsupportedParameterError("messages: give output_config.format or output_format, not both")
    [given] = formats
    if not isinstance(given, Mapping) or given.get("type") != "json_schema" or set(given) != {"type", "schema"}:
        raise UnsupportedParameterError(
            f"messages: the output format {repr_of(given)} is not supported; only json_schema is"
        )
    if not isinstance(given["schema"], Mapping):
        raise UnsupportedParameterError(
            f"messages: the output format's schema must be an object, got {repr_of(given['schema'])}"
        )
    return given["schema"]


def _choice(given: Mapping[str, Any]) -> tuple[Any, bool]:
    """``Memory.generate``'s tool_choice and parallel_tool_calls for Anthropic's tool_choice."""
    kind, rest = given.get("type"), set(given) - {"type", "name", "disable_parallel_tool_use"}
    if kind not in ("auto", "any", "tool", "none") or rest:
        raise UnsupportedParameterError(f"messages: tool_choice={repr_of(dict(given))} is not supported")
    choice = {"any": "required", "tool": {"name": given.get("name")}}.get(kind, kind)
    return choice, not given.get("disable_parallel_tool_use", False)


class MessageWriter:
    """A reply as ``message_start``, blocks, ``message_delta`` and ``message_stop``. One block is open at a time."""

    def __init__(self, id: str, model: str) -> None:
        self._message: dict[str, Any] = {
            "id": f"msg_{id}", "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": dict(_NO_USAGE),
        }  # fmt: skip
        self._blocks: list[dict[str, Any]] = []
        self._malformed: set[int] = set()  # blocks that are no calls after all
        self._input = ""  # of the tool_use block that is open
        self._open = ""  # the type of the block that is open

    def begin(self) -> list[dict[str, Any]]:
        """The message, still empty; its usage is known at the end."""
        return [{"type": "message_start", "message": {**self._message, "content": []}}]

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        """Events of one piece."""
        out: list[dict[str, Any]] = []
        for event in delta.events:
            if isinstance(event, Text):
                out += self._on("text", {"text": ""})
                self._blocks[-1]["text"] += event.text
                out.append(self._delta({"type": "text_delta", "text": event.text}))
            elif isinstance(event, Reasoning):
                out += self._on("thinking", {"thinking": "", "signature": ""})
                self._blocks[-1]["thinking"] += event.text
                out.append(self._delta({"type": "thinking_delta", "thinking": event.text}))
            elif isinstance(event, CallStart):
                out += self._on("tool_use", {"id": event.id, "name": event.name, "input": {}})
            elif isinstance(event, CallArguments):
                self._input += event.text
                out.append(self._delta({"type": "input_json_delta", "partial_json": event.text}))
            elif isinstance(event, CallEnd):
                if is_malformed(event):
                    self._malformed.add(len(self._blocks) - 1)
                out += self._close()
        return out

    def end(self, reply: Reply) -> list[dict[str, Any]]:
        """Return the end of the stream: stop reason and usage."""
        out = self._close()
        reason = "stop_sequence" if reply.finish == "stop" and reply.stopped else _STOP_REASONS[reply.finish]
        ended = {"stop_reason": reason, "stop_sequence": reply.stopped if reason == "stop_sequence" else None}
        self._message |= {"content": self._content(), **ended, "usage": usage_of(reply.usage)}
        out.append({"type": "message_delta", "delta": ended, "usage": usage_of(reply.usage)})
        return [*out, {"type": "message_stop"}]

    def whole(self) -> dict[str, Any]:
        """The message."""
        return self._message

    def _content(self) -> list[dict[str, Any]]:
        """The blocks without malformed calls; the texts around one are one text."""
        out: list[dict[str, Any]] = []
        for place, block in enumerate(self._blocks):
            if place in self._malformed:
                continue
            if out and block["type"] == out[-1]["type"] == "text":
                out[-1] = {"type": "text", "text": out[-1]["text"] + block["text"]}
            else:
                out.append(block)
        return out

    def _on(self, kind: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
        """Make sure that a block of this kind is open."""
        if self._open == kind:
            return []
        out = self._close()
        self._open = kind
        self._blocks.append({"type": kind, **fields})
        start = {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(self._blocks[-1])}
        return [*out, start]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _close(self) -> list[dict[str, Any]]:
        if not self._open:
            return []
        if self._open == "tool_use":
            self._blocks[-1]["input"], self._input = begun_object(self._input), ""
        self._open = ""
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}]


def usage_of(usage: Usage) -> dict[str, Any]:
    """The API's figures: its three kinds of input tokens add up to the prompt. All that is computed is also kept."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens - usage.computed_tokens,
        "cache_creation_input_tokens": usage.computed_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }
