"""The tool loop: the one place where this library runs tools, and only when asked to."""

from __future__ import annotations

import json
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.tools import as_tools, fits, structured
from agent_memory.types import Reply, Tool, ToolCall, ToolResult

if TYPE_CHECKING:
    from agent_memory.recall.episode_types import StepRecorder


def run_rounds(
    say: Callable[..., Reply],
    give: Callable[..., Reply],
    message: object,
    functions: Sequence[Callable[..., Any]],
    max_rounds: int,
    options: Mapping[str, Any],
    episode: StepRecorder | None = None,
) -> Reply:
    """Say ``message``, run the calls of the reply and give their results, until it calls nothing or rounds run out.

    ``episode`` records each call as a step.
    """
    if episode is not None and not callable(getattr(episode, "step", None)):
        raise UnsupportedParameterError(f"episode must have a method step, as an Episode has; got {episode!r:.80}")
    if not isinstance(max_rounds, int) or isinstance(max_rounds, bool) or max_rounds < 1:
        raise UnsupportedParameterError(f"max_rounds must be an int of at least 1, got {repr_of(max_rounds)}")
    tools = as_tools(functions)
    if not tools:  # an empty list would offer the agent's stored tools, for which there is nothing to run
        raise UnsupportedParameterError(
            "run_tools needs at least one function to run, got 0; say() and give() leave an agent's calls to you"
        )
    if not all(callable(function) for function in functions):
        raise UnsupportedParameterError("functions must be Python functions with typed parameters")
    by_name = {tool.name: (tool, function) for tool, function in zip(tools, functions, strict=True)}
    how = {**options, "tools": tools}
    reply = say(message, **how)  # a refusal here leaves no new agent behind
    for _ in range(max_rounds):
        if not reply.tool_calls:
            break
        results = [_recorded(call, *by_name[call.name], episode) for call in reply.tool_calls]
        reply = give(*results, **how)
    return reply


def _recorded(call: ToolCall, tool: Tool, function: Callable[..., Any], episode: StepRecorder | None) -> ToolResult:
    """Return the result of one call, recorded by ``episode``."""
    started = time.perf_counter()
    result = run_call(call, tool, function)
    if episode is not None:
        episode.step(
            call.name,
            ok=not result.is_error,
            observation=str(result.content),
            parameters=call.arguments,
            latency_ms=(time.perf_counter() - started) * 1e3,
        )
    return result


def run_call(call: ToolCall, tool: Tool, function: Callable[..., Any]) -> ToolResult:
    """Return the result of one call; an exception, and arguments of a wrong type, become its error text."""
    properties = tool.parameters.get("properties", {})
    unknown = [name for name in call.arguments if name not in properties]
    missing = [name for name in tool.parameters.get("required", ()) if name not in call.arguments]
    wrong = [name for name, value in call.arguments.items() if not unknown and not fits(value, properties[name])]
    if unknown or missing or wrong:
        said = {"unknown arguments": unknown, "missing arguments": missing, "arguments of the wrong type": wrong}
        return ToolResult(call.id, "; ".join(f"{k}: {', '.join(v)}" for k, v in said.items() if v), is_error=True)
    try:
        hints = typing.get_type_hints(function)
        value = function(**{name: structured(value, hints[name]) for name, value in call.arguments.items()})
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except Exception as error:  # noqa: BLE001 - a user's function: its failure is the model's to read
        return ToolResult(call.id, _readable(_described(error)), is_error=True)
    return ToolResult(call.id, _readable(text))


def _described(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a user's class: its __str__ may fail as its function did
        return type(error).__name__


def _readable(text: str) -> str:
    """Return ``text`` with lone surrogates (as in file names) written as escapes: no prompt can contain them."""
    return text.encode("utf-8", "backslashreplace").decode()
