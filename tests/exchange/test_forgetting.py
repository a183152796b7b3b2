"""What is forgotten while it is on its way from the bucket does not come back to disk."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from agent_memory import EchoRunner, Memory
from agent_memory.remote.bucket import Bucket
from tests.parts.hosts import SYSTEM, breaks, config, exchange, published


def test_kv_that_comes_after_its_agent_was_deleted_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "bucket"
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        a.agent("ann", system=SYSTEM).say("What is a tide?")
        published(a)
    release, real = threading.Event(), Bucket.read

    def late(self: Bucket, *arguments: Any, **named: Any) -> Any:
        release.wait(60)
        return real(self, *arguments, **named)

    monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 0.2)
    monkeypatch.setattr("agent_memory.exchange.fetch._TOKEN_S", 0.0)
    try:
        with Memory(EchoRunner(), tmp_path / "b", config=config(bucket, remote_write=False)) as b:
            gets = breaks(monkeypatch, "read", late)
            assert b.agent("bob", system=SYSTEM).say("What is a wave?").usage.tier == "none"
            b.flush()
            assert gets
            b.delete("bob")
            assert b.stats().chunks == 0
            release.set()
            exchange(b)._fetcher.join()  # type: ignore[union-attr]
            b.flush()
            assert b.stats().chunks == 0
    finally:
        release.set()


def test_whoever_publishes_is_told_that_the_bucket_keeps_what_was_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Memory(EchoRunner(), tmp_path / "a", config=config(tmp_path / "bucket")) as a:
        a.agent("ann", system=SYSTEM).say("What is a tide?")
        with caplog.at_level(logging.WARNING, "agent_memory.remote"):
            assert a.delete("ann")
    assert any("age rule" in one.message for one in caplog.records)
