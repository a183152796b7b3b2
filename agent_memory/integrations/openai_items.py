"""Replies and logged messages as the items and events of OpenAI's Responses; for ``openai_agents``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

from openai.types import responses as parts
from openai.types.responses.response_reasoning_item import Summary
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails, ResponseUsage

from agent_memory import CallEnd, Generation, Message, Reasoning, Reply, Text, ToolCall
from agent_memory.integrations.shapes import written


def output_of(id: str, reply: Message | Reply) -> list[Any]:
    """Return the items of a reply: its reasoning, its text, its calls."""
    text = reply.text if isinstance(reply, Reply) else reply.content
    said = [_reasoning(id, reply.reasoning)] if reply.reasoning else []
    return [*said, *([_message(id, text)] if text else []), *map(_call, reply.tool_calls)]


def items_of(message: Message) -> Iterator[dict[str, Any]]:
    """Yield a logged message as items of a session; the system prompt is the agent's, and none."""
    if message.role == "user":
        yield {"role": "user", "content": message.content}
    elif message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": message.content}
    elif message.role == "assistant":
        yield from (one.model_dump(exclude_none=True) for one in output_of("__fake_id__", message))


def identity_of(item: Any) -> tuple[str, str] | None:
    """Return what an item of a log and one of a run have in common; None for reasoning, which goes with its reply."""
    kind = item.get("type") or "message"
    if kind == "message":
        content = item["content"]
        return item["role"], content if isinstance(content, str) else "".join(one.get("text", "") for one in content)
    return None if kind == "reasoning" else (kind, str(item.get("call_id")))


def usage_of(reply: Reply) -> ResponseUsage:
    """Return the cost of a reply."""
    n_in, n_out = reply.usage.prompt_tokens, reply.usage.output_tokens
    details = InputTokensDetails.model_validate({"cached_tokens": reply.usage.cached_tokens, "cache_write_tokens": 0})
    return ResponseUsage(
        input_tokens=n_in,
        input_tokens_details=details,
        output_tokens=n_out,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=n_in + n_out,
    )


async def events_of(generation: Generation, model: str) -> AsyncIterator[Any]:
    """Yield what a generation says, event by event, and its response at the end."""
    numbers = count()
    opened: dict[str, int] = {}  # places of the items, by id, in the order in which they are begun

    def event(kind: Any, **fields: Any) -> Any:
        return kind(sequence_number=next(numbers), **fields)

    def place(item: Any) -> dict[str, Any]:
        return {"item": item, "output_index": opened[item.id]}

    since = time.time()
    yield event(parts.ResponseCreatedEvent, type="response.created", response=_response(generation.id, model, since))
    async for delta in generation:
        for one in delta.events:
            if isinstance(one, Text | Reasoning):
                item: Any = (_message if isinstance(one, Text) else _reasoning)(generation.id, "", "in_progress")
            elif isinstance(one, CallEnd) and one.call is not None:
                item = _call(one.call)
            else:
                continue
            if item.id not in opened:
                opened[item.id] = len(opened)
                yield event(parts.ResponseOutputItemAddedEvent, type="response.output_item.added", **place(item))
            where: dict[str, Any] = {"item_id": item.id, "output_index": opened[item.id]}
            if isinstance(one, Text):
                where |= {"type": "response.output_text.delta", "content_index": 0, "logprobs": []}
                yield event(parts.ResponseTextDeltaEvent, delta=one.text, **where)
            elif isinstance(one, Reasoning):
                where |= {"type": "response.reasoning_summary_text.delta", "summary_index": 0}
                yield event(parts.ResponseReasoningSummaryTextDeltaEvent, delta=one.text, **where)
            else:
                where["type"] = "response.function_call_arguments.delta"
                yield event(parts.ResponseFunctionCallArgumentsDeltaEvent, delta=item.arguments, **where)
                yield event(parts.ResponseOutputItemDoneEvent, type="response.output_item.done", **place(item))
    reply = await generation
    output = sorted(output_of(generation.id, reply), key=lambda item: opened.setdefault(item.id, len(opened)))
    for said in output:
        if said.type != "function_call":
            yield event(parts.ResponseOutputItemDoneEvent, type="response.output_item.done", **place(said))
    whole = _response(generation.id, model, since, status="completed", output=output, usage=usage_of(reply))
    yield event(parts.ResponseCompletedEvent, type="response.completed", response=whole)


def _response(id: str, model: str, since: float, **fields: Any) -> parts.Response:
    fields = {"status": "in_progress", "output": [], **fields}
    fixed: Any = {"object": "response", "tool_choice": "auto", "tools": [], "parallel_tool_calls": True}
    return parts.Response(id=id, created_at=since, model=model, **fixed, **fields)


def _message(id: str, text: str, status: Any = "completed") -> parts.ResponseOutputMessage:
    content: list[Any] = [parts.ResponseOutputText(text=text, annotations=[], type="output_text")] if text else []
    return parts.ResponseOutputMessage(id=f"msg_{id}", content=content, role="assistant", status=status, type="message")


def _reasoning(id: str, text: str, status: Any = "completed") -> parts.ResponseReasoningItem:
    summary = [Summary(text=text, type="summary_text")] if text else []
    return parts.ResponseReasoningItem(id=f"rs_{id}", summary=summary, status=status, type="reasoning")


def _call(call: ToolCall) -> parts.ResponseFunctionToolCall:
    fixed: Any = {"type": "function_call", "status": "completed"}
    return parts.ResponseFunctionToolCall(
        id=f"fc_{call.id}", call_id=call.id, name=call.name, arguments=written(call), **fixed
    )
