"""An agent that another host takes over: its KV is fetched, and its next turn is what it would have been."""

from __future__ import annotations

from pathlib import Path

from agent_memory import EchoRunner, Memory
from tests.parts.hosts import config

SYSTEM = "Answer with what you heard, and nothing else. " * 30


def test_the_kv_of_an_agent_comes_along(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        alice = a.agent("alice", system=SYSTEM)
        alice.say("one")
        a.publish(alice)
        n_tokens = alice.n_tokens
        expected = alice.fork("bob").say("two")
    with Memory(EchoRunner(), tmp_path / "b", config=config(bucket)) as b:
        there = b.fetch_agent("alice")
        assert there.n_tokens == n_tokens
        reply = there.say("two")
        assert (reply.text, reply.token_ids) == (expected.text, expected.token_ids)
        usage = reply.usage
        assert usage.tier == "remote"
        assert usage.exactness == "recomputed"  # the tail behind the last chunk is computed again
        size = b.config.chunk_tokens
        assert usage.cached_tokens == n_tokens // size * size > 0
        assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
