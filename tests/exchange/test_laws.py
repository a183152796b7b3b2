"""Laws 2 and 3 across hosts, as a property: whatever was published, by whom and in which order, answers stay right.

EchoRunner's KV is a hash chain over ids: one wrong row anywhere makes it answer garbage.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory import EchoRunner, Memory
from tests.parts.hosts import config, published

BRIEFS = ["You are brief. " * 9, "You are brief. " * 9 + "And kind. " * 12, "You are brief, and so is this. " * 5]
ops = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["say", "say", "say", "fork", "rewind", "evict", "reopen", "delete"]),
        st.sampled_from(["ann", "bob"]),
        st.sampled_from(["one", "a longer word or two, and some more of them. " * 3, "three " * 20]),
    ),
    min_size=3,
    max_size=9,
)


@given(ops=ops, budget=st.sampled_from([None, 96 << 10]))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_two_hosts_that_share_a_bucket_answer_as_if_each_were_alone(ops: Any, budget: int | None) -> None:
    _live(ops, budget)


@pytest.mark.slow
@given(ops=ops, budget=st.sampled_from([None, 64 << 10, 96 << 10, 256 << 10]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_two_hosts_many_times(ops: Any, budget: int | None) -> None:
    _live(ops, budget)


def _live(ops: Any, budget: int | None) -> None:
    """Let two hosts share a bucket, and compare every answer."""
    with tempfile.TemporaryDirectory() as folder:
        hosts = {name: _open(Path(folder), name, budget) for name in "ab"}
        try:
            for host, what, name, text in ops:
                memory = hosts[host]
                if what == "reopen":
                    memory.close()
                    hosts[host] = _open(Path(folder), host, budget)
                    continue
                agent = memory.agent(name, system=None if _has(memory, name) else BRIEFS[len(text) % 3])
                if what == "say":
                    _say(memory, name, text)
                elif what == "fork" and not _has(memory, f"{name} too") and agent.info.n_turns:
                    agent.fork(f"{name} too", at=agent.info.n_turns - 1)
                    _say(memory, f"{name} too", text)
                elif what == "rewind" and agent.info.n_turns:
                    agent.rewind(1)
                elif what == "delete":
                    memory.delete(name)
                elif what == "evict":
                    memory.evict(name)
                published(memory)
            for memory in hosts.values():
                _say(memory, "ann", "so?")
                memory.flush()
                assert memory.verify().damaged == ()
        finally:
            for memory in hosts.values():
                memory.close()


def _open(folder: Path, name: str, budget: int | None) -> Memory:
    return Memory(EchoRunner(), folder / name, config=config(folder / "bucket", disk_bytes=budget))


def _has(memory: Memory, name: str) -> bool:
    return name in [info.name for info in memory.agents()]


def _say(memory: Memory, name: str, text: str) -> None:
    reply = memory.agent(name).say(text, max_tokens=200)
    usage = reply.usage
    assert reply.text == text.strip() or reply.text == text
    assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
    assert sum(usage.tier_tokens.values()) == usage.cached_tokens
    assert usage.exactness != "quantized"
