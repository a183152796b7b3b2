"""LlamaIndex: ``AgentMemoryLLM``, a model whose chats keep their KV. Extra ``[llama-index]``.

LlamaIndex names no conversation. The agent of a chat is ``agent=`` of the call, where there is one, else ``agent=`` of
the LLM: give each agent and chat engine an LLM of its own (LLMs are cheap, their ``Memory`` is shared), and
``Settings.llm`` one without a name. Completions have no agent.

``additional_kwargs`` of a response has ``cached_tokens`` beside the other counts; ``raw["usage"]`` says why not more.
Structured output is a held call (``structured_predict``), or ``schema=`` of a call. Refused: images and other blocks
that are not text. A call is streamed whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from llama_index.core.base.llms import generic_utils as convert
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection

from agent_memory import CallEnd, Delta, Generation, Memory, Prompt, Reply, ToolCall, UnsupportedParameterError
from agent_memory.integrations.shapes import choice_of

_ROLES = {"chatbot": "assistant", "model": "assistant", "function": "tool"}


class AgentMemoryLLM(FunctionCallingLLM):
    """A model on a ``Memory``, which the caller opens and closes. ``options``: what else ``Memory.generate`` takes.

    ``is_chat=False`` is for a base model: LlamaIndex completes texts with it then, and the model reads them as they
    are. A stream that is left, and a task that is cancelled, end their request.
    """

    memory: Memory = Field(exclude=True, repr=False)
    agent: str | None = None
    is_chat: bool = True
    max_tokens: int = 512
    temperature: float | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    def __init__(self, memory: Memory, agent: str | None = None, **fields: Any) -> None:
        super().__init__(memory=memory, agent=agent, **fields)

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model."""
        length = self.memory.context_tokens
        known: dict[str, Any] = {} if length is None else {"context_window": length}
        known |= {"num_output": self.max_tokens, "model_name": self.memory.model_name}
        return LLMMetadata(is_chat_model=self.is_chat, is_function_calling_model=self.is_chat, **known)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        with self._chat(messages, kwargs) as generation:
            return _whole(generation.result())

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _whole(await self._chat(messages, kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        return _responses(self._chat(messages, kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        return _aresponses(self._chat(messages, kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        with self._complete(prompt, kwargs) as generation:
            return convert.chat_response_to_completion_response(_whole(generation.result()))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return convert.chat_response_to_completion_response(_whole(await self._complete(prompt, kwargs)))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return convert.stream_chat_response_to_completion_response(_responses(self._complete(prompt, kwargs)))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return convert.astream_chat_response_to_completion_response(_aresponses(self._complete(prompt, kwargs)))

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, tool_required: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        new = [ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg] if user_msg else []
        choice, is_parallel = kwargs.pop("tool_choice", None), kwargs.pop("allow_parallel_tool_calls", False)
        kwargs.pop("verbose", None)
        if tools:
            kwargs["tools"] = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
            kwargs |= {"tool_choice": choice_of(choice or tool_required), "parallel_tool_calls": is_parallel}
        return {"messages": [*(chat_history or ()), *new], **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls of a response. Raises ValueError where one was asked for and there is none."""
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if error_on_no_tool_call and not calls:
            raise ValueError("expected at least one tool call, and the model made none")
        return [
            ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=call.tool_kwargs)
            for call in calls
        ]

    def _chat(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Generation:
        return self._start(list(map(_message, messages)), {"agent": self.agent, **self.options, **kwargs})

    def _complete(self, prompt: str, kwargs: dict[str, Any]) -> Generation:
        return self._start(prompt, {"raw": not self.is_chat, **self.options, **kwargs})

    def _start(self, prompt: Prompt, options: dict[str, Any]) -> Generation:
        own = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return self.memory.stream(prompt, **{**own, **options})


def _responses(generation: Generation) -> Iterator[ChatResponse]:
    growing = _Growing()
    with generation:
        for delta in generation:
            yield growing.add(delta)
        yield _whole(generation.result())


async def _aresponses(generation: Generation) -> AsyncIterator[ChatResponse]:
    growing = _Growing()
    with generation:
        async for delta in generation:
            yield growing.add(delta)
        yield _whole(await generation)


class _Growing:
    """A reply as it comes: LlamaIndex's responses hold all that was said before."""

    def __init__(self) -> None:
        self._text, self._thoughts, self._calls = "", "", list[ToolCall]()

    def add(self, delta: Delta) -> ChatResponse:
        self._text += delta.text
        self._thoughts += delta.reasoning
        self._calls += [one.call for one in delta.events if isinstance(one, CallEnd) and one.call is not None]
        new = {"delta": delta.text, "additional_kwargs": {"thinking_delta": delta.reasoning or None}}
        return _response(self._text, self._thoughts, self._calls, **new)


def _whole(reply: Reply) -> ChatResponse:
    return _response(reply.text, reply.reasoning, reply.tool_calls, **_figures(reply))


def _response(text: str, thoughts: str, calls: Sequence[ToolCall], **rest: Any) -> ChatResponse:
    blocks: list[Any] = [ThinkingBlock(content=thoughts)] if thoughts else []
    blocks += [TextBlock(text=text)] if text or not calls else []
    for call in calls:
        blocks.append(ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments)))
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), **rest)


def _figures(reply: Reply) -> dict[str, Any]:
    usage = reply.usage
    counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.output_tokens}
    counts |= {"total_tokens": sum(counts.values()), "cached_tokens": usage.cached_tokens}
    return {"additional_kwargs": counts, "raw": {"usage": usage.to_dict(), "finish_reason": reply.finish}, "delta": ""}


def _message(one: ChatMessage) -> dict[str, Any]:
    """A message in OpenAI's shape, which ``Memory`` checks."""
    said: dict[str, Any] = {"role": _ROLES.get(one.role.value, one.role.value), "content": "", "reasoning": ""}
    said["tool_calls"] = list(one.additional_kwargs.get("tool_calls") or ())  # of other LLMs
    if said["role"] == "tool":
        said["tool_call_id"] = one.additional_kwargs.get("tool_call_id")
    for block in one.blocks:
        if isinstance(block, TextBlock):
            said["content"] += block.text
        elif isinstance(block, ThinkingBlock):
            said["reasoning"] += block.content or ""
        elif isinstance(block, ToolCallBlock):
            said["tool_calls"].append(
                {"id": block.tool_call_id, "name": block.tool_name, "arguments": block.tool_kwargs}
            )
        elif not isinstance(block, CachePoint):  # all KV is kept
            raise UnsupportedParameterError(f"a block of type {block.block_type!r} is not supported; only text is")
    return said
