"""Hosts that share a bucket: a folder under ``file://``, and what may go wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, Memory
from agent_memory.exchange.exchange import Exchange
from agent_memory.remote.bucket import PROBE, Bucket

KEY = b"a secret of sixteen bytes and more"
SYSTEM = "You are a tutor who answers with what was asked. " * 12
CHUNK = 32


def config(bucket: Path, **more: Any) -> Config:
    """Settings of one host; small chunks."""
    settings = {"remote": bucket.as_uri(), "remote_key": KEY, "chunk_tokens": CHUNK, "prefill_tokens": CHUNK}
    return Config(**{**settings, **more})


def exchange(memory: Memory) -> Exchange:
    """The traffic of a Memory with its bucket."""
    found = memory._tiers.exchange
    assert found is not None
    return found


def published(memory: Memory) -> int:
    """Wait until a Memory has published what it has; return how many chunks that were."""
    memory.flush()
    assert exchange(memory).settle(30)
    return memory.stats().remote["published_chunks"]


def objects(bucket: Path) -> list[Path]:
    """The objects in a bucket, but the one that asks after conditions."""
    return sorted(path for path in bucket.rglob("*") if path.is_file() and path != bucket / PROBE)


def breaks(monkeypatch: pytest.MonkeyPatch, method: str, by: Callable[..., Any]) -> list[int]:
    """Replace a method of every bucket; return a list that gets a 1 with each call. What opening asks goes through."""
    calls: list[int] = []
    real = getattr(Bucket, method)

    def broken(self: Bucket, *arguments: Any, **named: Any) -> Any:
        if method == "sizes" and arguments[:1] == ([PROBE],):
            return real(self, *arguments, **named)
        calls.append(1)
        return by(self, *arguments, **named)

    monkeypatch.setattr(Bucket, method, broken)
    return calls
