"""OpenAI's Chat Completions API in process: requests as keyword arguments, replies and chunks as plain data.

Shapes follow the API's reference and the types of its Python SDK; ``reasoning_content`` beside ``content`` holds what
a model writes between its reasoning tags, as local servers commonly name it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

from agent_memory.dialects.plain import Data, Parameters, is_malformed
from agent_memory.dialects.stream import EventStream
from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.generation import Generation
from agent_memory.types import CallArguments, CallEnd, CallStart, Delta, Reasoning, Reply, Sampling, Text, Usage


class OpenAIChat:
    """``memory.chat``, whose ``completions`` is the API."""

    def __init__(self, ask: Callable[..., Generation], model: str) -> None:
        self.completions = OpenAICompletions(ask, model)


class OpenAICompletions:
    """``memory.chat.completions``: ``create`` takes the API's parameters by name.

    ``user``, or ``agent=`` beside the API's own, names the agent; the request's messages are its whole history.
    ``recall=`` beside them is that of ``Memory.generate``.
    ``model`` may be any text: the reply names the model that answered. Without ``temperature`` decoding is greedy.
    Raises UnsupportedParameterError, by name, for what is not supported.
    """

    def __init__(self, ask: Callable[..., Generation], model: str) -> None:
        self._ask, self._model = ask, model

    @overload
    def create(self, *, stream: Literal[False] | None = None, **request: Any) -> Data: ...
    @overload
    def create(self, *, stream: Literal[True], **request: Any) -> EventStream: ...
    @overload
    def create(self, *, stream: bool | None, **request: Any) -> Data | EventStream: ...
    def create(self, **request: Any) -> Data | EventStream:
        """A completion; with ``stream=True`` its chunks."""
        parameters = Parameters(request, "chat.completions")
        is_stream = parameters.take("stream", bool, default=False)
        options = parameters.take("stream_options", Mapping, default={})
        if set(options) - {"include_usage"} or (options and not is_stream):
            raise UnsupportedParameterError(
                f"chat.completions: stream_options={repr_of(dict(options))} is not supported"
            )
        generation = self._generation(parameters)
        created, shows_usage = int(time.time()), bool(options.get("include_usage"))
        events = EventStream(generation, lambda: CompletionWriter(generation.id, self._model, created, shows_usage))
        return events if is_stream else events.whole()

    def _generation(self, parameters: Parameters) -> Generation:
        parameters.take("model", str)
        agent = parameters.take("agent", default=parameters.take("user", str) or None)
        sampling = Sampling(
            temperature=parameters.take("temperature", default=0.0),
            top_p=parameters.take("top_p", default=1.0),
            seed=parameters.take("seed"),
        )
        limits = [parameters.take(name, int) for name in ("max_completion_tokens", "max_tokens")]
        if None not in limits:
            raise UnsupportedParameterError("chat.completions: give max_completion_tokens or max_tokens, not both")
        history = parameters.need("messages", list, tuple)
        tools = parameters.take("tools", list, tuple, default=())
        choice = _choice(parameters.take("tool_choice", str, Mapping, default="auto"))
        is_parallel = parameters.take("parallel_tool_calls", bool, default=True)
        stop = parameters.take("stop", str, list, tuple, default=())
        schema = _schema(parameters.take("response_format", Mapping, default={"type": "text"}))
        parameters.only("n", 1)
        parameters.only("logprobs", False)
        parameters.only("top_logprobs", 0)
        parameters.only("frequency_penalty", 0)
        parameters.only("presence_penalty", 0)
        parameters.only("store", False)
        parameters.only("logit_bias", {})
        parameters.only("metadata", {})
        parameters.only("modalities", ["text"])
        parameters.only("service_tier", "auto", "default")
        for name in ("extra_headers", "extra_query", "extra_body"):  # the SDK's, for its requests over HTTP
            parameters.only(name, {})
        parameters.ignore("prompt_cache_key", "prompt_cache_retention")
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
            max_tokens=next((limit for limit in limits if limit is not None), 512),
            stop=stop,
        )


def _choice(given: Any) -> Any:
    """``Memory.generate``'s tool_choice."""
    if isinstance(given, Mapping):
        function = given.get("function")
        names_one = isinstance(function, Mapping) and function.keys() == {"name"}
        if given.keys() != {"type", "function"} or given["type"] != "function" or not names_one:
            raise UnsupportedParameterError(f"chat.completions: tool_choice={repr_of(dict(given))} is not supported")
        return {"name": given["function"]["name"]}
    if given not in ("auto", "none", "required"):
        raise UnsupportedParameterError(f"chat.completions: tool_choice={repr_of(given)} is not supported")
    return given


def _schema(given: Mapping[str, Any]) -> Any:
    """``Memory.generate``'s schema for a response_format."""
    kind, described = given.get("type"), given.get("json_schema", {})
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    if kind not in ("text", "json_schema") or given.keys() - known:
        raise UnsupportedParameterError(f"chat.completions: response_format={repr_of(dict(given))} is not supported")
    if kind == "text":
        return None
    if not isinstance(described, Mapping) or not isinstance(described.get("schema"), Mapping):
        raise UnsupportedParameterError("chat.completions: response_format.json_schema needs a schema, an object")
    if unknown := sorted(map(str, described.keys() - {"name", "description", "schema", "strict"})):
        raise UnsupportedParameterError(f"chat.completions: response_format.json_schema.{unknown[0]} is not supported")
    return described["schema"]


class CompletionWriter:
    """A reply as chunks: the role, text and calls as they come, one with the finish reason, and usage where asked."""

    def __init__(self, id: str, model: str, created: int, shows_usage: bool = False) -> None:
        self._base = {"id": f"chatcmpl-{id}", "created": created, "model": model}
        self._shows_usage = shows_usage
        self._is_open = False
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._malformed: set[int] = set()  # calls that are none after all
        self._finish: str | None = None
        self._usage: dict[str, Any] = {}

    def begin(self) -> list[dict[str, Any]]:
        """Return nothing: the first chunk waits for the first piece, which decides whether there is text."""
        return []

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        """Chunks of one piece."""
        out = []
        for event in delta.events:
            if isinstance(event, Text):
                out += self._opening("")
                self._content.append(event.text)
                out.append(self._chunk({"content": event.text}))
            elif isinstance(event, Reasoning):
                out += self._opening(None)
                self._reasoning.append(event.text)
                out.append(self._chunk({"reasoning_content": event.text}))
            elif isinstance(event, CallStart):
                out += self._opening(None)
                self._calls.append(_call(event))
                out.append(self._chunk({"tool_calls": [{"index": event.index, **_call(event)}]}))
            elif isinstance(event, CallArguments):
                self._calls[event.index]["function"]["arguments"] += event.text
                out.append(self._chunk({"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}))
            elif isinstance(event, CallEnd) and is_malformed(event):
                self._malformed.add(event.index)
        return out

    def end(self, reply: Reply) -> list[dict[str, Any]]:
        """The finish reason, and usage where it was asked for."""
        self._finish, self._usage = reply.finish, usage_of(reply.usage)
        out = [*self._opening(""), self._chunk({}, reply.finish)]
        if self._shows_usage:
            out.append({**self._base, "object": "chat.completion.chunk", "choices": [], "usage": self._usage})
        return out

    def whole(self) -> dict[str, Any]:
        """The completion."""
        calls = [call for index, call in enumerate(self._calls) if index not in self._malformed]
        has_content = self._content or not (calls or self._reasoning)
        content = "".join(self._content) if has_content else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        return {**self._base, "object": "chat.completion", "choices": [choice], "usage": self._usage}

    def _opening(self, content: str | None) -> list[dict[str, Any]]:
        """The role, once."""
        if self._is_open:
            return []
        self._is_open = True
        return [self._chunk({"role": "assistant", "content": content})]

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._base, "object": "chat.completion.chunk", "choices": [choice]}


def _call(start: CallStart) -> dict[str, Any]:
    return {"id": start.id, "type": "function", "function": {"name": start.name, "arguments": ""}}


def usage_of(usage: Usage) -> dict[str, Any]:
    """The API's figures."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
