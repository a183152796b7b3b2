"""Two hosts and one bucket: what A has computed, B takes up."""

from __future__ import annotations

from pathlib import Path

from agent_memory import Config, EchoRunner, Memory

KEY = b"a secret of sixteen bytes and more"
SYSTEM = "You are a tutor who answers with what was asked. " * 40


def config(bucket: Path, **more: object) -> Config:
    settings = {"remote": bucket.as_uri(), "remote_key": KEY, "chunk_tokens": 64, "prefill_tokens": 64, **more}
    return Config(**settings)  # type: ignore[arg-type]


def test_another_host_takes_up_the_chunks_that_both_share(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        first = a.agent("ann", system=SYSTEM).say("What is a tide?")
        a.flush()
    runner = EchoRunner()
    with Memory(runner, tmp_path / "b", config=config(bucket)) as b:
        reply = b.agent("bob", system=SYSTEM).say("What is a wave?")
        usage = reply.usage
        shared = usage.cached_tokens
        assert shared > 64
        assert shared % 64 == 0
        assert usage.tier == "remote"
        assert usage.tier_tokens == {"remote": shared}
        assert usage.exactness == "moved"
        assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
        assert runner.calls.computed == usage.computed_tokens
        assert usage.prompt_tokens - shared < 64 + 40
        b.flush()
        assert b.verify().damaged == ()
    with Memory(EchoRunner(), ":memory:", config=Config(chunk_tokens=64, prefill_tokens=64)) as alone:
        assert alone.agent("bob", system=SYSTEM).say("What is a wave?").text == reply.text
    with Memory(EchoRunner(), tmp_path / "b", config=Config(chunk_tokens=64, prefill_tokens=64)) as b:
        again = b.agent("bob").say("And now?").usage
        assert again.tier == "cold"
        assert again.exactness == "moved"
        assert again.cached_tokens > shared
    assert first.usage.exactness == "exact"
