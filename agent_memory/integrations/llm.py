"""The ``llm`` command: ``llm -m agent-memory``, whose conversations keep their KV between processes. Extra ``[llm]``.

The agent of a prompt is the first of these that is given:

- ``-o agent NAME``; ``-o agent ''`` is no agent.
- the conversation's id: ``llm -c`` and ``llm --cid ID`` resume it. In Python, ``model.prompt`` alone has none.

``-o model`` and ``-o path`` are those of ``Memory``: the starter model, and a store in llm's own folder. One process
uses a store at a time. ``--no-log`` is llm's own log alone: leave the agent out as well, or it keeps the conversation.
Refused: attachments, a schema beside tools. A call is streamed whole.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart
from pydantic import Field

import agent_memory  # its names load when they are used: the command lists its models without them
from agent_memory.integrations.shapes import written

if TYPE_CHECKING:
    from agent_memory import Delta, Generation, Memory, Reply

_SAME = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "timeout_s")  #: of ``-o`` and of ``Memory``


class AgentMemoryOptions(llm.Options):
    """What ``-o`` takes; ``llm models options set agent-memory model NAME`` keeps one for all prompts."""

    model: str | None = Field(None, description="hub id, mlx-lm folder or .gguf file; the starter model")
    path: str | None = Field(None, description="the store's folder; agent-memory in llm's own folder")
    agent: str | None = Field(None, description="name of the agent; the conversation's id, and '' for none")
    max_tokens: int | None = Field(None, description="most tokens of the reply; 512")
    temperature: float | None = Field(None, description="0, the default, is greedy")
    top_p: float | None = Field(None, description="the likeliest tokens up to this sum")
    top_k: int | None = Field(None, description="the k likeliest tokens")
    min_p: float | None = Field(None, description="tokens from this share of the likeliest")
    seed: int | None = Field(None, description="equal seeds draw equal tokens")
    timeout_s: float | None = Field(None, description="seconds until the prompt fails")


class _Home:
    """The Memory of one process's models: one that was given, or opened by the first prompt and saved at exit.

    A prompt that asks for another model or path has the one before it closed. Thread-safe.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self._given, self._opened, self._asked, self._lock = memory, memory, ("", ""), threading.Lock()

    def open(self, options: AgentMemoryOptions) -> Memory:
        asked = (options.model or "", options.path or "")
        with self._lock:
            if self._given is not None and any(asked):
                raise agent_memory.ConfigError("this model was made with a Memory: -o model and -o path are its own")
            if self._opened is None or (self._given is None and asked != self._asked):
                if self._opened is not None:
                    self._opened.close()
                path = options.path or llm.user_dir() / "agent-memory"
                self._opened, self._asked = agent_memory.Memory(options.model, path), asked
            return self._opened


class _OfMemory:
    """What both models are, and how they ask."""

    model_id = "agent-memory"
    can_stream = supports_schema = supports_tools = True
    Options = AgentMemoryOptions

    def __init__(self, memory: Memory | None = None, home: _Home | None = None) -> None:
        self._home = home or _Home(memory)

    def _start(self, prompt: Any, conversation: Any) -> Generation:
        given = prompt.options
        options = {name: getattr(given, name) for name in _SAME if getattr(given, name) is not None}
        if prompt.tools:
            options["tools"] = [
                agent_memory.Tool(one.name, one.description or "", one.input_schema) for one in prompt.tools
            ]
        agent = given.agent if given.agent is not None else getattr(conversation, "id", None)
        messages = [said for message in prompt.messages for said in _messages(message)]
        return self._home.open(given).stream(messages, agent=agent or None, schema=prompt.schema, **options)

    def _tell(self, reply: Reply, response: Any) -> None:
        """The calls and the cost of a reply; ``response_json`` says why not more was reused."""
        for call in reply.tool_calls:
            response.add_tool_call(llm.ToolCall(call.name, dict(call.arguments), call.id))
        usage = reply.usage
        cached = {"cached_tokens": usage.cached_tokens}
        response.set_usage(input=usage.prompt_tokens, output=usage.output_tokens, details=cached)
        response.response_json = {"finish": reply.finish, "usage": usage.to_dict()}


class AgentMemoryModel(_OfMemory, llm.Model):
    """A model of the command, or on a ``memory`` that the caller opens and closes."""

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any = None) -> Iterator[StreamEvent]:
        """Generate a reply, event by event; left early, it is cancelled."""
        with self._start(prompt, conversation) as generation:
            for delta in generation:
                yield from _events(delta)
            self._tell(generation.result(), response)


class AsyncAgentMemoryModel(_OfMemory, llm.AsyncModel):
    """The same for an event loop; the first prompt's Memory is opened on it."""

    async def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any = None
    ) -> AsyncIterator[StreamEvent]:
        """Generate a reply, event by event; left early or cancelled, it ends."""
        with self._start(prompt, conversation) as generation:
            async for delta in generation:
                for event in _events(delta):
                    yield event
            self._tell(await generation, response)


@llm.hookimpl
def register_models(register: Any) -> None:
    """Add ``agent-memory`` to llm's models; nothing is opened before its first prompt."""
    home = _Home()
    register(AgentMemoryModel(home=home), AsyncAgentMemoryModel(home=home))


def _messages(message: Message) -> Iterator[dict[str, Any]]:
    """A message in OpenAI's shape, or the results of several calls."""
    said: dict[str, Any] = {"role": message.role, "content": "", "reasoning": "", "tool_calls": []}
    for part in message.parts:
        match part:
            case ToolResultPart(attachments=[]):
                yield {"role": "tool", "content": part.output, "tool_call_id": part.tool_call_id}
            case TextPart():
                said["content"] += part.text
            case ReasoningPart():
                said["reasoning"] += part.text
            case ToolCallPart():
                said["tool_calls"].append({"id": part.tool_call_id, "name": part.name, "arguments": part.arguments})
            case _:
                raise agent_memory.UnsupportedParameterError(
                    f"{type(part).__name__} is not supported or has an attachment; known: text, calls and their results"
                )
    if message.role != "tool":
        yield said


def _events(delta: Delta) -> Iterator[StreamEvent]:
    for event in delta.events:
        match event:
            case agent_memory.Text():
                yield StreamEvent("text", event.text)
            case agent_memory.Reasoning():
                yield StreamEvent("reasoning", event.text)
            case agent_memory.CallEnd(call=agent_memory.ToolCall() as call):
                yield StreamEvent("tool_call_name", call.name, tool_call_id=call.id)
                yield StreamEvent("tool_call_args", written(call), tool_call_id=call.id)
