"""Memories that a test opens, any number of them; all are closed behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from agent_memory import Config, EchoRunner, Memory


@contextlib.contextmanager
def opening(make: Callable[..., Memory]) -> Iterator[Callable[..., Memory]]:
    """Give a function that opens a Memory as ``make`` does."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(make(*args, **settings))


def small(runner: EchoRunner | None = None, path: Any = ":memory:", **settings: Any) -> Memory:
    """Open a Memory with chunks of 16 tokens."""
    config = Config(**{"chunk_tokens": 16, "prefill_tokens": 16, **settings})
    return Memory(runner or EchoRunner(), path, config=config)
