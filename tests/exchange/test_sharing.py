"""Two hosts and one bucket: what A has computed, B takes up."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.remote.bucket import Bucket
from tests.parts import tiny
from tests.parts.hosts import CHUNK, SYSTEM, breaks, config, objects, published
from tests.parts.tinyrunner import endless

ALONE = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK)


def test_another_host_takes_up_the_chunks_that_both_share(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        first = a.agent("ann", system=SYSTEM).say("What is a tide?")
    runner = EchoRunner()
    with Memory(runner, tmp_path / "b", config=config(bucket)) as b:
        reply = b.agent("bob", system=SYSTEM).say("What is a wave?")
        usage, shared = reply.usage, reply.usage.cached_tokens
        assert shared > 3 * CHUNK
        assert shared % CHUNK == 0
        assert usage.tier == "remote"
        assert usage.tier_tokens == {"remote": shared}
        assert usage.exactness == "moved"
        assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
        assert runner.calls.computed == usage.computed_tokens
        assert b.verify().damaged == ()
        assert b.stats().remote["fetched_tokens"] == shared
    with Memory(EchoRunner(), ":memory:", config=ALONE) as alone:
        assert alone.agent("bob", system=SYSTEM).say("What is a wave?").text == reply.text
    with Memory(EchoRunner(), tmp_path / "b", config=ALONE) as b:
        again = b.agent("bob").say("And now?").usage
        assert (again.tier, again.exactness) == ("cold", "moved")
        assert again.cached_tokens > shared
    assert first.usage.exactness == "exact"


def test_eight_chunks_cost_one_round_of_look_ups_and_no_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "bucket", chunk_tokens=256, prefill_tokens=256)
    text = "".join(map(chr, range(97, 123))) * 100
    with Memory(EchoRunner(), tmp_path / "a", config=settings) as a:
        text = text[:2400]
        n_brief = a.count_tokens(text)
        a.prefill(text)
        assert n_brief // 256 == 8
        assert published(a) == 8
    sizes = breaks(monkeypatch, "sizes", Bucket.sizes)
    with Memory(
        EchoRunner(),
        tmp_path / "b",
        config=config(tmp_path / "bucket", chunk_tokens=256, prefill_tokens=256, remote_write=False),
    ) as b:
        usage = b.generate(text).usage
    assert (usage.cached_tokens, usage.prompt_tokens) == (2048, n_brief)
    assert len(sizes) == 1
    assert not [name for name in dir(Bucket) if "list" in name]


@pytest.mark.parametrize("name", ["llama_windows", "qwen3_next", "mamba"])
def test_every_kind_of_cache_goes_on_as_if_it_had_computed_all(name: str, tmp_path: Path) -> None:
    _goes_on(name, tmp_path, "exact")


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["exact", "q8"])
@pytest.mark.parametrize("name", [*tiny.SHAPES, *tiny.MORE])
def test_every_kind_and_codec_goes_on(name: str, codec: str, tmp_path: Path) -> None:
    _goes_on(name, tmp_path, codec)


def _goes_on(name: str, tmp_path: Path, codec: str) -> None:
    system = "You are a tutor who answers with what was asked, at length. " * 2
    more: dict[str, Any] = {"chunk_tokens": 16, "prefill_tokens": 16, "cold_codec": codec}
    settings = config(tmp_path / "bucket", **more)
    with Memory(endless(name), tmp_path / "a", config=settings) as a:
        a.prefill([{"role": "system", "content": system}])
        published(a)
        a.evict()
        said = a.agent("ann", system=system).say("What is a wave?", max_tokens=8)
    with Memory(endless(name), tmp_path / "b", config=settings) as b:
        reply = b.agent("ann", system=system).say("What is a wave?", max_tokens=8)
        b.flush()
        assert b.verify().damaged == ()
    usage = reply.usage
    assert usage.tier == "remote"
    assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
    if usage.exactness == "quantized":  # A has its tail decoded, B has computed it on what was decoded
        assert codec != "exact"
    else:
        assert usage.exactness == "moved"
        assert reply.token_ids == said.token_ids  # both on the bits of A's prefill
    with Memory(endless(name), tmp_path / "b", config=Config(**more)) as b:
        again = b.agent("ann").say("And?", max_tokens=4).usage
        assert again.tier == "cold"
        assert again.cached_tokens >= usage.prompt_tokens


@pytest.mark.mlx
def test_a_text_that_finds_nothing_does_not_keep_one_that_begins_like_it_from_asking(tmp_path: Path) -> None:
    brief = "You are a tutor who answers with what was asked, at length. " * 2
    settings = config(tmp_path / "bucket", chunk_tokens=16, prefill_tokens=16)
    with Memory(endless("gemma3_text"), tmp_path / "a", config=settings) as a:
        a.generate(brief, raw=True, max_tokens=1)
        published(a)
    with Memory(endless("gemma3_text"), ":memory:", config=settings) as b:
        # its first chunk is there, and the windows that a restore needs lie at the brief's end alone
        assert b.generate(brief[:40] + "Another end. " * 6, raw=True, max_tokens=1).usage.tier == "none"
        assert b.stats().remote["not_there"] == 1
        assert b.generate(brief, raw=True, max_tokens=1).usage.tier == "remote"


def test_what_is_there_is_not_sent_and_tails_are_not_published(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        usage = a.agent("ann", system=SYSTEM).say("What is a tide?").usage
        n_chunks = (usage.prompt_tokens + usage.output_tokens - 1) // CHUNK
        assert published(a) == n_chunks == len(objects(bucket))
        a.agent("ann").say("?")
        assert published(a) - n_chunks <= 1
    n_there = len(objects(bucket))
    with Memory(EchoRunner(), tmp_path / "c", config=config(bucket)) as c:
        c.agent("ann", system=SYSTEM).say("What is a tide?")
        assert published(c) == 0
    assert len(objects(bucket)) == n_there


def test_chunks_of_its_own_come_before_those_of_others(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    long = SYSTEM + "Be kind, and brief, and clear. " * 12
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        a.prefill(long)
        published(a)
    with Memory(EchoRunner(), tmp_path / "b", config=Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK)) as b:
        b.prefill(SYSTEM)
    with Memory(EchoRunner(), tmp_path / "b", config=config(bucket)) as b:
        usage = b.generate(long, max_tokens=4).usage
        assert usage.tier_tokens["cold"] >= 3 * CHUNK
        assert usage.tier_tokens["remote"] >= 3 * CHUNK
        assert sum(usage.tier_tokens.values()) == usage.cached_tokens
        assert usage.exactness == "moved"  # the same bits: its own chunks have the tags that A's depend on
        assert b.generate(long, max_tokens=4).text


def test_a_host_without_a_disk_and_one_that_may_not_write_fetch_too(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        a.agent("ann", system=SYSTEM).say("What is a tide?")
        n_published = published(a)
    with Memory(EchoRunner(), ":memory:", config=config(bucket)) as b:
        assert b.agent("bob", system=SYSTEM).say("What is a wave?").usage.tier == "remote"
        assert b.stats().remote["published_chunks"] == 0
    with Memory(EchoRunner(), tmp_path / "c", config=config(bucket, remote_write=False)) as c:
        assert c.agent("bob", system=SYSTEM).say("What is a wave, then, and what is a tide?" * 9).usage.tier == "remote"
        c.flush()
        assert c.stats().remote["published_chunks"] == 0
    assert len(objects(bucket)) == n_published
    with Memory(EchoRunner(), tmp_path / "a", read_only=True, config=config(bucket)) as d:
        assert d.generate("Something that nobody has asked.", max_tokens=4).text
        assert d.stats().remote["published_chunks"] == 0
    assert len(objects(bucket)) == n_published


def test_requests_that_begin_alike_share_one_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = tmp_path / "bucket"
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        a.prefill(SYSTEM)
        n_chunks = published(a)
    asked, gate = threading.Event(), threading.Event()
    real = Bucket.read

    def held(self: Bucket, *arguments: Any, **named: Any) -> Any:
        asked.set()
        gate.wait(10)
        return real(self, *arguments, **named)

    monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 20.0)
    gets = breaks(monkeypatch, "read", held)
    with Memory(EchoRunner(), tmp_path / "b", config=config(bucket, remote_write=False)) as b:
        handles = [b.stream(SYSTEM + f" {number}", max_tokens=4) for number in range(4)]
        assert asked.wait(30)
        gate.set()
        usages = [handle.result().usage for handle in handles]
    assert len(gets) == n_chunks
    assert all(usage.cached_tokens >= (n_chunks - 1) * CHUNK for usage in usages)


def test_lossy_kv_has_a_name_of_its_own_and_never_the_exact_one(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    system = "You are a tutor who answers with what was asked, at length. " * 2
    more: dict[str, Any] = {"chunk_tokens": 16, "prefill_tokens": 16}
    with Memory(endless("llama"), tmp_path / "a", config=config(bucket, cold_codec="q8", **more)) as a:
        a.prefill(system)
        assert published(a)
    with Memory(endless("llama"), tmp_path / "b", config=config(bucket, **more)) as b:
        assert b.generate(system, max_tokens=2).usage.cached_tokens == 0
        published(b)
    with Memory(endless("llama"), tmp_path / "c", config=config(bucket, cold_codec="q8", **more)) as c:
        usage = c.agent("carl", system=system).say("So?", max_tokens=2).usage
        assert usage.tier == "none" or usage.exactness == "quantized"
        usage = c.generate(system, max_tokens=2).usage
        assert (usage.tier, usage.exactness) == ("remote", "quantized")
        c.agent("dora", system=system).say("So?", max_tokens=2)
    there = objects(bucket)
    with Memory(endless("llama"), tmp_path / "c", config=config(bucket, **more)) as c:  # exact from now on
        usage = c.generate(system + " And more of it than before.", max_tokens=2).usage
        assert usage.exactness == "quantized"
        assert published(c) == 0
    assert objects(bucket) == there
