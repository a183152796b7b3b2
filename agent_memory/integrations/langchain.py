"""LangChain: ``ChatAgentMemory``, a chat model whose conversations keep their KV. Extra ``[langchain]``.

The agent of a call is the first of these that is given:

- ``agent=`` of the call: ``model.invoke(messages, agent="ann")``; None is no agent.
- ``thread_id`` or ``session_id`` of the config (LangGraph's, RunnableWithMessageHistory's), as ``agent/thread`` where
  the model has an ``agent=``: several models in one thread need names of their own.
- ``agent=`` of the model; without any, calls share prefixes and no log.

Refused: images and other content that is not text, ``n``, ``logprobs``, ``model=`` of a call. A call is streamed whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig, RunnableMap, RunnablePassthrough, ensure_config
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field

from agent_memory import CallEnd, Delta, Generation, Memory, Reasoning, Reply, Text
from agent_memory.integrations.shapes import choice_of, key_of, written

_ROLES = {"human": "user", "ai": "assistant"}
_ELSEWHERE = ("reasoning", "thinking", "tool_call", "tool_call_chunk", "tool_use")  #: blocks that other fields repeat


class ChatAgentMemory(BaseChatModel):
    """A chat model on a ``Memory``, which the caller opens and closes; any number of models may share one.

    ``options``: what else ``Memory.generate`` takes, for every call; a call's own keywords come first. ``api_key`` and
    ``max_retries``, which callers give any chat model, ask nothing of a local one. Thread-safe.
    """

    model_config = ConfigDict(extra="forbid")

    memory: Memory = Field(exclude=True, repr=False)
    agent: str | None = None
    temperature: float | None = None
    max_tokens: int = 512
    stop: list[str] | None = None
    timeout: float | None = None  #: seconds
    options: dict[str, Any] = Field(default_factory=dict)
    streaming: bool = False
    api_key: Any = Field(default=None, exclude=True, repr=False)
    max_retries: int | None = None

    @property
    def _llm_type(self) -> str:
        return "agent-memory"

    @property
    def model_name(self) -> str:
        """The model's name, as traces show it."""
        return self.memory.model_name

    def _resolve_model_profile(self) -> ModelProfile:
        # No structured_output: LangChain's agents would ask for it beside tools, in one request.
        length = self.memory.context_tokens
        known: ModelProfile = {} if length is None else {"max_input_tokens": length}
        return {"text_inputs": True, "text_outputs": True, "tool_calling": True, "tool_choice": True, **known}

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Return how many tokens the model reads, with its template and the opening of the reply."""
        given = [convert_to_openai_tool(one) for one in tools or ()]
        return self.memory.count_tokens([_message(one) for one in messages], tools=given)

    def get_num_tokens(self, text: str) -> int:
        return self.get_num_tokens_from_messages([HumanMessage(text)])

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, strict: Any = None, **kwargs: Any) -> Any:
        """Bind tools of any shape that LangChain knows; ``tool_choice`` of any provider's."""
        offered = [convert_to_openai_tool(one, strict=strict) for one in tools]
        return self.bind(tools=offered, tool_choice=choice_of(tool_choice), **kwargs)

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, method: str = "json_schema", strict: Any = None, **kwargs: Any
    ) -> Any:
        """Hold replies to a schema, whatever the method; ``function_calling`` asks for the call of a tool."""
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        described = convert_to_json_schema(schema)
        shown = {"kwargs": {"method": method}, "schema": described}
        llm = self.bind(schema=described, ls_structured_output_format=shown, **kwargs)
        is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
        parser: Any = PydanticOutputParser(pydantic_object=schema) if is_model else JsonOutputParser()
        if not include_raw:
            return llm | parser
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    # LangChain passes a config, which names the thread, no further than these.
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        return super().invoke(input, config, **self._keyed(config, kwargs))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        return await super().ainvoke(input, config, **self._keyed(config, kwargs))

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().stream(input, config, **self._keyed(config, kwargs))

    def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream(input, config, **self._keyed(config, kwargs))

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().stream_events(input, config, **self._keyed(config, kwargs))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream_events(input, config, **self._keyed(config, kwargs))

    def _keyed(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        named = ensure_config(config)["configurable"]
        thread = named.get("thread_id") or named.get("session_id")
        return {"agent": key_of(self.agent, thread), **kwargs} if thread else kwargs

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        with self._start(messages, stop, kwargs) as generation:
            return self._result(generation.result())

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return self._result(await self._start(messages, stop, kwargs))

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
        with self._start(messages, stop, kwargs) as generation:  # left early, it cancels
            for delta in generation:
                yield from _chunks(delta)
            yield _chunk("", chunk_position="last", **self._figures(generation.result()))

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        with self._start(messages, stop, kwargs) as generation:
            async for delta in generation:
                for chunk in _chunks(delta):
                    yield chunk
            yield _chunk("", chunk_position="last", **self._figures(await generation))

    def _start(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Generation:
        own = {"max_tokens": self.max_tokens, "temperature": self.temperature, "timeout_s": self.timeout}
        options = {"agent": self.agent, **own, **self.options, **kwargs, "stop": stop or self.stop or ()}
        options.pop("stream", None)  # LangChain's own word to itself
        return self.memory.stream([_message(one) for one in messages], **options)

    def _result(self, reply: Reply) -> ChatResult:
        calls = [{"name": one.name, "args": dict(one.arguments), "id": one.id} for one in reply.tool_calls]
        thoughts = {"reasoning_content": reply.reasoning} if reply.reasoning else {}
        message = AIMessage(reply.text, tool_calls=calls, additional_kwargs=thoughts, **self._figures(reply))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _figures(self, reply: Reply) -> dict[str, Any]:
        """The cost; ``response_metadata["usage"]`` says why not more was reused."""
        usage = reply.usage
        counted: Any = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.output_tokens}
        counted |= {"total_tokens": sum(counted.values()), "input_token_details": {"cache_read": usage.cached_tokens}}
        told = {"model_name": self.model_name, "finish_reason": reply.finish, "usage": usage.to_dict()}
        return {"usage_metadata": counted, "response_metadata": told}


def _message(one: BaseMessage) -> dict[str, Any]:
    """A message in OpenAI's shape, which ``Memory`` checks; its calls stand in ``tool_calls`` alone."""
    kind = one.type.removesuffix("MessageChunk").lower()
    blocks: list[Any] = [block.get("value", block) for block in one.content_blocks]
    thoughts = [str(block.get("reasoning") or block.get("thinking") or "") for block in blocks]
    calls = [{"id": a["id"], "name": a["name"], "arguments": a["args"]} for a in getattr(one, "tool_calls", ())]
    return {
        "role": getattr(one, "role", None) or _ROLES.get(kind, kind),
        "content": [
            {"type": "text", "text": block["text"]} if block["type"] == "text" else block
            for block in blocks
            if block["type"] not in _ELSEWHERE
        ],
        "reasoning": "".join(thoughts) or None,
        "tool_calls": calls or None,
        "tool_call_id": getattr(one, "tool_call_id", None),
        "name": one.name,
    }


def _chunks(delta: Delta) -> Iterator[ChatGenerationChunk]:
    for event in delta.events:
        if isinstance(event, Text):
            yield _chunk(event.text)
        elif isinstance(event, Reasoning):
            yield _chunk("", additional_kwargs={"reasoning_content": event.text})
        elif isinstance(event, CallEnd) and event.call is not None:
            call = {"name": event.call.name, "args": written(event.call), "id": event.call.id}
            yield _chunk("", tool_call_chunks=[{**call, "index": None}])  # a number would join it with text of that one


def _chunk(text: str, **rest: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(text, **rest))
