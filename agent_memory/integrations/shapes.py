"""What several frameworks spell alike: the choice of a tool, and the arguments of a call as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agent_memory import ToolCall, ToolChoice


def choice_of(given: Any) -> ToolChoice:
    """Return ``Memory.generate``'s tool_choice for that of any framework or provider; None and False are no wish."""
    if isinstance(given, Mapping):
        name = given.get("name") or given.get("function", {}).get("name")
        return {"name": name} if name else choice_of(given.get("type"))
    if given in (None, False, "auto"):
        return "auto"
    if given in (True, "any", "required"):
        return "required"
    return "none" if given == "none" else {"name": given}


def written(call: ToolCall) -> str:
    """Return a call's arguments as JSON: as the model wrote them, where it wrote JSON."""
    return call.source or json.dumps(dict(call.arguments), ensure_ascii=False)


def key_of(agent: str | None, thread: object) -> str | None:
    """Return the name of a thread's agent: ``agent/thread``, or the one of them that there is."""
    given = [str(one) for one in (agent, thread) if one]
    return "/".join(given) or None
