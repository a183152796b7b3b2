"""A model whose replies a test has written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agent_memory import EchoRunner


def scripted(*replies: str, delay_s: float = 0.0) -> EchoRunner:
    """A model that says these one after another, then what it was asked."""
    rest = list(replies)
    return EchoRunner(lambda asked, ids: rest.pop(0) if rest else asked, delay_s=delay_s)


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as such a model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}</tool_call>"
