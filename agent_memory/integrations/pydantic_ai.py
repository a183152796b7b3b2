"""Pydantic AI: ``AgentMemoryModel``, a model whose conversations keep their KV. Extra ``[pydantic-ai]``.

The agent of a request is the first of these that is given:

- ``agent_memory_agent`` of its settings; None is no agent.
- the run's ``conversation_id``, as ``agent/conversation`` where the model has an ``agent=``. A run that is given none,
  and no history, makes one up: pass your own to resume the conversation by name, or no agent for single questions.

Structured output: tools by default, or ``NativeOutput`` (JSON Schema) where the agent has no tools. Refused: files,
native tools, ``NativeOutput`` beside tools. Settings in ``unsupported_settings`` do nothing. A call is streamed whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic_ai import messages as parts
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models._tool_choice import resolve_tool_choice  # all adapters' own; it has no public name
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from agent_memory import CallEnd, CancelledError, Generation, Memory, Options, Reasoning, Reply, Text, Tool
from agent_memory.integrations.shapes import key_of, written

_FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_call"}
_SAME = ("max_tokens", "temperature", "top_p", "top_k", "seed", "parallel_tool_calls")  #: settings and options


class AgentMemorySettings(ModelSettings, total=False):  # type: ignore[call-arg]
    """Settings of one request or run beside Pydantic AI's own."""

    agent_memory_agent: str | None
    agent_memory_options: Options  #: what else ``Memory.generate`` takes, e.g. ``on_diverge`` or ``recall``


class AgentMemoryModel(Model[Memory]):
    """A model on a ``Memory``, which the caller opens and closes; any number of models may share one."""

    unsupported_settings = frozenset(
        {"presence_penalty", "frequency_penalty", "logit_bias", "extra_headers", "extra_body", "service_tier"}
    )
    _unsupported_file_inputs = frozenset({"image", "document", "audio", "video"})

    def __init__(
        self, memory: Memory, *, agent: str | None = None, settings: ModelSettings | None = None, profile: Any = None
    ) -> None:
        # An announcement that is sent once it is needed would change the system prompt of a running conversation.
        own = ModelProfile(supports_json_schema_output=True, default_framing_announcement="never")
        if memory.context_tokens is not None:
            own["context_window"] = memory.context_tokens
        super().__init__(settings=settings, profile=profile if callable(profile) else {**own, **(profile or {})})
        self.memory, self.agent = memory, agent

    @property
    def model_name(self) -> str:
        return self.memory.model_name

    @property
    def system(self) -> str:
        return "agent-memory"

    async def request(
        self, messages: list[ModelMessage], model_settings: Any, model_request_parameters: ModelRequestParameters
    ) -> ModelResponse:
        """Generate a reply; cancelled with its task."""
        reply = await self._start(messages, *self.prepare_request(model_settings, model_request_parameters))
        said: list[Any] = [parts.ThinkingPart(reply.reasoning)] if reply.reasoning else []
        said += [parts.TextPart(reply.text)] if reply.text else []
        said += [parts.ToolCallPart(call.name, written(call), call.id) for call in reply.tool_calls]
        told: Any = {"model_name": self.model_name, "provider_name": self.system, **_told(reply)}
        return ModelResponse(said, **told)

    @asynccontextmanager
    async def request_stream(
        self, messages: Any, model_settings: Any, model_request_parameters: Any, run_context: Any = None
    ) -> AsyncGenerator[StreamedResponse]:
        """Generate a reply, event by event; left early, it is cancelled."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        with self._start(messages, settings, parameters) as generation:
            yield _Streamed(parameters, self, generation)

    async def count_tokens(self, messages: Any, model_settings: Any, model_request_parameters: Any) -> RequestUsage:
        """Return how many tokens the model would read, with its template and the opening of the reply."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        tools = _tools(settings or {}, parameters).get("tools", ())
        return RequestUsage(input_tokens=self.memory.count_tokens(self._prompt(messages, parameters), tools=tools))

    def _start(self, messages: list[ModelMessage], given: Any, parameters: ModelRequestParameters) -> Generation:
        settings: dict[str, Any] = given or {}
        options = {name: settings[name] for name in _SAME if settings.get(name) is not None}
        options |= {"timeout_s": settings.get("timeout"), "stop": settings.get("stop_sequences") or ()}
        thread = next((one.conversation_id for one in reversed(messages) if one.conversation_id), None)
        agent = settings.get("agent_memory_agent", key_of(self.agent, thread))
        options |= {**_tools(settings, parameters), **settings.get("agent_memory_options", {})}
        return self.memory.stream(self._prompt(messages, parameters), agent=agent, **options)

    def _prompt(self, messages: list[ModelMessage], parameters: ModelRequestParameters) -> list[dict[str, Any]]:
        """Messages in OpenAI's shape; what stands at the beginning for the system, instructions too, as one."""
        prompt = [said for message in messages for said in _messages(message)]
        n_leading = next((place for place, one in enumerate(prompt) if one["role"] != "system"), len(prompt))
        instructions = self._get_instruction_parts(messages, parameters) or ()
        leading = [*(one["content"] for one in prompt[:n_leading]), *(part.content for part in instructions)]
        return [*([{"role": "system", "content": "\n\n".join(leading)}] if leading else []), *prompt[n_leading:]]


class _Streamed(StreamedResponse):
    def __init__(self, parameters: ModelRequestParameters, model: AgentMemoryModel, generation: Generation) -> None:
        super().__init__(parameters)
        self._model, self._generation, self._since = model, generation, datetime.now(UTC)

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        manager = self._parts_manager
        async for delta in self._generation:
            for event in delta.events:
                if isinstance(event, Text):
                    for one in manager.handle_text_delta(vendor_part_id=None, content=event.text):
                        yield one
                elif isinstance(event, Reasoning):
                    for one in manager.handle_thinking_delta(vendor_part_id=None, content=event.text):
                        yield one
                elif isinstance(event, CallEnd) and (call := event.call) is not None:
                    yield manager.handle_tool_call_part(
                        vendor_part_id=None, tool_name=call.name, args=written(call), tool_call_id=call.id
                    )
        told = _told(await self._generation)
        self._usage, self.finish_reason, self.provider_details = told.values()

    async def close_stream(self) -> None:
        self._generation.cancel()

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        return (CancelledError,)

    model_name = property(lambda self: self._model.model_name)
    provider_name = property(lambda self: self._model.system)
    provider_url = property(lambda self: None)
    timestamp = property(lambda self: self._since)


def _messages(message: ModelMessage) -> Iterator[dict[str, Any]]:
    """The messages of a request, part by part, or the one of a response, in OpenAI's shape."""
    reply: dict[str, Any] = {"role": "assistant", "content": "", "reasoning": "", "tool_calls": []}
    for part in message.parts:
        match part:
            case parts.SystemPromptPart():
                yield {"role": "system", "content": part.content}
            case parts.UserPromptPart():
                yield {"role": "user", "content": "".join(map(_text, part.content))}
            case parts.ToolReturnPart():
                yield {"role": "tool", "content": part.model_response_str(), "tool_call_id": part.tool_call_id}
            case parts.TextPart():
                reply["content"] += part.content
            case parts.ThinkingPart():
                reply["reasoning"] += part.content
            case parts.ToolCallPart():
                call = {"id": part.tool_call_id, "name": part.tool_name, "arguments": part.args_as_json_str()}
                reply["tool_calls"].append(call)
            case _:
                raise UserError(f"{type(part).__name__} is not supported; known: text, tool calls and their results")
    if isinstance(message, ModelResponse):
        yield reply


def _text(content: Any) -> str:
    if isinstance(content, parts.CachePoint):
        return ""  # all KV is kept
    text = getattr(content, "content", content)
    if not isinstance(text, str):
        raise UserError(f"a prompt must be text; {type(content).__name__} is not supported")
    return text


def _tools(settings: Any, parameters: ModelRequestParameters) -> dict[str, Any]:
    """Options for the tools of a request, and for its schema."""
    choice, offered = resolve_tool_choice(settings, parameters), parameters.declared_tool_defs
    if isinstance(choice, tuple) and choice[0] == "required" and len(choice[1]) == 1:
        choice = {"name": next(iter(choice[1]))}
    elif isinstance(choice, tuple):
        offered = {name: one for name, one in offered.items() if name in choice[1]}
        choice = choice[0]
    found = [Tool(a.name, a.description or "", a.parameters_json_schema, bool(a.strict)) for a in offered.values()]
    options: dict[str, Any] = {"tools": found, "tool_choice": choice} if found else {}
    if parameters.output_mode == "native" and parameters.output_object is not None:
        options["schema"] = parameters.output_object.json_schema
    return options


def _told(reply: Reply) -> dict[str, Any]:
    """The cost of a reply, and why it ended; ``provider_details`` says why not more was reused."""
    n_in, n_cached, n_out = reply.usage.prompt_tokens, reply.usage.cached_tokens, reply.usage.output_tokens
    usage = RequestUsage(input_tokens=n_in, cache_read_tokens=n_cached, output_tokens=n_out)
    details = {"usage": reply.usage.to_dict()}
    return {"usage": usage, "finish_reason": _FINISH[reply.finish], "provider_details": details}
