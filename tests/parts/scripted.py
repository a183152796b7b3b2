"""A model whose replies a test has written."""

from __future__ import annotations

from agent_memory import EchoRunner


def scripted(*replies: str) -> EchoRunner:
    """A model that says these one after another, then what it was asked."""
    rest = list(replies)
    return EchoRunner(lambda asked, ids: rest.pop(0) if rest else asked)
