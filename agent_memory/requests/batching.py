"""Several prompts at once: the agent of each, and how the batch ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from agent_memory.errors import AgentMemoryError, UnsupportedParameterError
from agent_memory.generation import Generation
from agent_memory.types import Message, Reply

P = TypeVar("P")


def with_agents(prompts: Iterable[P], agent: Any) -> list[tuple[P, Any]]:
    """Pair each prompt with its agent. Raises UnsupportedParameterError for no list, or lists of different lengths."""
    if isinstance(prompts, (str, bytes, Mapping, Message)) or not isinstance(prompts, Iterable):
        raise UnsupportedParameterError(f"prompts must be a list of prompts, got {type(prompts).__name__}")
    given = list(prompts)
    if isinstance(agent, (str, bytes)) or not isinstance(agent, Sequence):
        return [(prompt, agent) for prompt in given]
    if len(agent) != len(given):
        raise UnsupportedParameterError(
            f"{len(given)} prompts and {len(agent)} agents: give one agent for all prompts, or a list with one for "
            "each (None: no agent)"
        )
    return list(zip(given, agent, strict=True))


def replies(handles: Sequence[Generation]) -> list[Reply]:
    """Return the replies in order. Raises the first error, after cancelling the other requests."""
    try:
        return [handle.result() for handle in handles]
    finally:
        for handle in handles:
            handle.cancel()


def outcomes(starts: Sequence[Callable[[], Generation]]) -> list[Reply | BaseException]:
    """Start requests and wait for all of them; return for each its reply or its error."""
    handles: list[Generation | AgentMemoryError] = []
    try:
        for start in starts:
            try:
                handles.append(start())
            except AgentMemoryError as error:
                handles.append(error)
        return [one.outcome() if isinstance(one, Generation) else one for one in handles]
    finally:
        for one in handles:
            if isinstance(one, Generation):
                one.cancel()
