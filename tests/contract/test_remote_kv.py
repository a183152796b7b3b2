"""KV that hosts share through a server of S3's protocol, and what a proxy in between may do to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.remote.bucket import Limits
from tests.parts.faultproxy import FaultProxy, fault_proxy
from tests.parts.hosts import CHUNK, KEY, SYSTEM, published
from tests.parts.s3 import IN_ENVIRONMENT, S3Server, s3_server

pytestmark = pytest.mark.contract
ASKED = "What is a wave?"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.port) as running:
        yield running


@pytest.fixture
def shared(server: S3Server, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The settings of a host whose bucket, behind the proxy, has KV of ``SYSTEM``."""
    for name, value in IN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    more: dict[str, Any] = {"remote_key": KEY, "chunk_tokens": CHUNK, "prefill_tokens": CHUNK}
    with Memory(EchoRunner(), tmp_path / "a", config=Config(remote=server.url(tmp_path.name), **more)) as a:
        a.agent("ann", system=SYSTEM).say("What is a tide?")
        assert published(a) > 8
    return Config(remote=server.url(tmp_path.name, port=proxy.port), remote_write=False, **more)


def test_a_host_takes_up_kv_over_s3_in_one_round_without_listing(
    shared: Config, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 20.0)
    monkeypatch.setattr("agent_memory.remote.bucket.Limits", partial(Limits, lookup_s=20.0, connect_s=20.0))
    proxy.asked.clear()
    with Memory(EchoRunner(), ":memory:", config=shared) as b:
        usage = b.agent("bob", system=SYSTEM).say(ASKED).usage
        assert (usage.tier, usage.exactness) == ("remote", "moved")
        assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
    n_chunks = usage.cached_tokens // CHUNK
    assert proxy.asked["list"] == 0
    assert proxy.asked["GET"] == n_chunks
    assert n_chunks <= proxy.asked["HEAD"] <= n_chunks + 3  # one for each chunk of the prompt, one at opening
    assert proxy.asked["PUT"] == 0


@pytest.mark.parametrize(
    "fault",
    [
        {"delay_s": 10.0},
        {"is_dead": True},
        {"status": 403},
        {"status": 500},
        {"cut_at": 0.5},
        {"body": lambda body: body[:200] + bytes([body[200] ^ 1]) + body[201:]},
    ],
    ids=["slow", "dead", "403", "500", "truncated", "flipped"],
)
def test_a_server_that_fails_costs_a_computation_and_one_warning(
    fault: dict[str, Any], shared: Config, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in fault.items():
        setattr(proxy.faults, name, value)
    with Memory(EchoRunner(), ":memory:", config=shared) as b, caplog.at_level(logging.WARNING, "agent_memory.remote"):
        for name in ("bob", "carl"):
            reply = b.agent(name, system=SYSTEM).say(ASKED)
            assert reply.text == ASKED
            assert reply.usage.tier in ("none", "hot")
        proxy.faults.delay_s = 0.0
        counts = b.stats().remote
    assert counts["fetched_tokens"] == 0
    assert counts["failed"] + counts["damaged"] + counts["late"] >= 1
    assert len([one for one in caplog.records if "left alone" in one.message]) <= 1
    assert counts["outages"] <= 1


def test_exchanged_objects_are_misses(shared: Config, proxy: FaultProxy) -> None:
    paths: list[str] = []

    def swapped(path: str) -> str:
        if "/v1/" in path and path not in paths:
            paths.append(path)
        return paths[0] if "/v1/" in path else path

    proxy.faults.path = swapped
    with Memory(EchoRunner(), ":memory:", config=shared) as b:
        reply = b.agent("bob", system=SYSTEM).say(ASKED)
        counts = b.stats().remote
    assert reply.text == ASKED
    assert reply.usage.cached_tokens <= CHUNK
    assert counts["damaged"] >= 1 or counts["late"] >= 1
