"""AutoGen: ``AgentMemoryClient``, a model client whose agents keep their KV. Extra ``[autogen]``.

AutoGen names no conversation. The agent of a call is the first of these that is given:

- ``agent`` in its ``extra_create_args``; None is no agent. Other options of ``Memory.generate`` too.
- ``agent=`` of the client: give each AutoGen agent a client of its own (they are cheap, their ``Memory`` is shared).

An ``AssistantAgent`` with ``max_tool_iterations`` above 1 answers in the prompt that it called in. One that reflects
(``reflect_on_tool_use``) asks once more without its tools, which is another prompt: its tokens are computed again.

``usage`` of a result has ``cached_tokens`` too, and ``details`` that say why not more. Structured output is
``json_output`` with a Pydantic class. Refused: images, JSON without a schema, a class beside tools. A call is streamed
whole; reasoning comes with the result. The model is not told who said a message (``source``). A client cannot be saved
with its agent: the saved form names no Memory.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autogen_core import CancellationToken, FunctionCall
from autogen_core.models import (
    ChatCompletionClient,
    CreateResult,
    LLMMessage,
    ModelFamily,
    ModelInfo,
    RequestUsage,
)
from autogen_core.tools import Tool, ToolSchema

from agent_memory import CancelledError, Generation, Memory, Reply, UnsupportedParameterError, Usage
from agent_memory.integrations.shapes import choice_of, written

_FINISH = {"tool_calls": "function_calls"}
_THINK, _THOUGHT = "<think>", "</think>"  #: around the reasoning of a reply with calls: its text is in ``thought`` too


class CachedRequestUsage(RequestUsage):
    """Tokens of one call; ``cached_tokens`` of its prompt were not computed again. ``details`` is ``Usage.to_dict``."""

    def __init__(self, usage: Usage) -> None:
        super().__init__(usage.prompt_tokens, usage.output_tokens)
        self.cached_tokens, self.details = usage.cached_tokens, usage.to_dict()


class AgentMemoryClient(ChatCompletionClient):
    """A model client on a ``Memory``, which the caller opens and closes; any number of clients may share one.

    ``options``: what else ``Memory.generate`` takes, for every call; a call's own come first. A token or a task that
    is cancelled, and a stream that is left, end their request. ``close`` closes nothing.
    """

    component_type = "model"

    def __init__(self, memory: Memory, agent: str | None = None, **options: Any) -> None:
        self.memory, self.agent, self.options = memory, agent, options
        self._total = RequestUsage(0, 0)

    async def create(
        self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = (), tool_choice: Any = "auto",
        json_output: Any = None, extra_create_args: Mapping[str, Any] = {},
        cancellation_token: CancellationToken | None = None,
    ) -> CreateResult:  # fmt: skip
        """Generate a reply."""
        generation = self._start(messages, tools, tool_choice, json_output, extra_create_args)
        with _ending(generation, cancellation_token):
            return self._result(await generation)

    async def create_stream(
        self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = (), tool_choice: Any = "auto",
        json_output: Any = None, extra_create_args: Mapping[str, Any] = {},
        cancellation_token: CancellationToken | None = None,
    ) -> AsyncGenerator[str | CreateResult, None]:  # fmt: skip
        """Generate a reply: its text piece by piece, then the result."""
        generation = self._start(messages, tools, tool_choice, json_output, extra_create_args)
        with _ending(generation, cancellation_token):
            async for delta in generation:
                if delta.text:
                    yield delta.text
            yield self._result(await generation)

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        """Return how many tokens the model reads, with its template and the opening of the reply."""
        said = [one for message in messages for one in _messages(message)]
        return self.memory.count_tokens(said, tools=list(map(_tool, tools)))

    def remaining_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        """Return how many tokens of the model's context these leave."""
        return (self.memory.context_tokens or sys.maxsize) - self.count_tokens(messages, tools=tools)

    def actual_usage(self) -> RequestUsage:
        """Return the tokens of all calls so far."""
        return self._total

    def total_usage(self) -> RequestUsage:
        """Return the tokens of all calls so far."""
        return self._total

    @property
    def model_info(self) -> ModelInfo:
        """What AutoGen asks of a model."""
        can: Any = {"vision": False, "function_calling": True, "json_output": False, "structured_output": True}
        return ModelInfo(family=ModelFamily.UNKNOWN, **can)

    @property
    def capabilities(self) -> ModelInfo:
        """``model_info``, by its old name."""
        return self.model_info

    async def close(self) -> None:
        """Do nothing: the ``Memory`` is the caller's."""

    def _start(
        self, messages: Sequence[LLMMessage], tools: Sequence[Any], choice: Any, output: Any, given: Mapping[str, Any]
    ) -> Generation:
        if output is True:
            raise UnsupportedParameterError("json_output=True has no schema; give it a Pydantic class")
        options = {"agent": self.agent, "schema": output or None, **self.options, **given}
        if tools:
            options["tools"] = list(map(_tool, tools))
            if choice != "auto":  # which an agent says that was told nothing: the client's own choice stands
                options["tool_choice"] = choice_of({"name": choice.name} if isinstance(choice, Tool) else choice)
        else:
            options.pop("tool_choice", None)
        return self.memory.stream([one for message in messages for one in _messages(message)], **options)

    def _result(self, reply: Reply) -> CreateResult:
        usage = CachedRequestUsage(reply.usage)
        n_in, n_out = self._total.prompt_tokens, self._total.completion_tokens
        self._total = RequestUsage(n_in + usage.prompt_tokens, n_out + usage.completion_tokens)
        finish: Any = _FINISH.get(reply.finish, reply.finish)
        content: Any = [FunctionCall(call.id, written(call), call.name) for call in reply.tool_calls] or reply.text
        thought = reply.reasoning or ""
        if reply.tool_calls:
            thought = (f"{_THINK}{thought}{_THOUGHT}" if thought else "") + reply.text
        return CreateResult(finish_reason=finish, content=content, usage=usage, cached=False, thought=thought or None)


@contextmanager
def _ending(generation: Generation, token: CancellationToken | None) -> Iterator[None]:
    """End the request with its token, as a cancelled task, and when the block is left."""
    if token is not None:
        token.add_callback(generation.cancel)
    try:
        with generation:
            yield
    except CancelledError as error:
        raise asyncio.CancelledError(str(error)) from error


def _tool(tool: Tool | ToolSchema) -> dict[str, Any]:
    schema: Mapping[str, Any] = tool.schema if isinstance(tool, Tool) else tool
    return {"type": "function", "description": "", "parameters": {}, **schema}


def _messages(message: LLMMessage) -> Iterator[dict[str, Any]]:
    """The messages of one of AutoGen's, in OpenAI's shape, which ``Memory`` checks: each result is one."""
    content: Any = message.content
    match message.type:
        case "FunctionExecutionResultMessage":
            for result in content:
                yield {"role": "tool", "content": result.content, "tool_call_id": result.call_id}
        case "AssistantMessage" if isinstance(content, str):
            yield {"role": "assistant", "content": content, "reasoning": message.thought}
        case "AssistantMessage":
            thought = message.thought or ""
            reasoning, _, text = thought.rpartition(_THOUGHT)
            calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in content]
            said = {"reasoning": reasoning.removeprefix(_THINK) or None, "content": text, "tool_calls": calls}
            yield {"role": "assistant", **said}
        case _:
            texts = [content] if isinstance(content, str) else content
            if wrong := [type(part).__name__ for part in texts if not isinstance(part, str)]:
                raise UnsupportedParameterError(f"content of type {wrong[0]!r} is not supported; only text is")
            yield {"role": "system" if message.type == "SystemMessage" else "user", "content": "\n".join(texts)}
