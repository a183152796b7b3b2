"""A bucket that is slow, dead, lying or another tenant's costs a computation, never an answer."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory import Config, EchoRunner, Memory, RequestTimeoutError
from agent_memory.exchange.adopting import adopt
from agent_memory.exchange.chunks import Chunk, Resume
from agent_memory.exchange.fetch import PATIENCE_S, Fetch
from agent_memory.exchange.fetcher import _TRANSFERS
from agent_memory.remote.bucket import Bucket
from agent_memory.remote.failures import BucketError
from tests.parts.hosts import CHUNK, SYSTEM, breaks, config, exchange, objects, published
from tests.parts.tinyrunner import endless


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """A bucket that has KV of ``SYSTEM``."""
    with Memory(EchoRunner(), tmp_path / "a", config=config(tmp_path / "bucket")) as a:
        a.agent("ann", system=SYSTEM).say("What is a tide?")
        published(a)
    return tmp_path / "bucket"


def _says(memory: Memory, name: str = "bob") -> Any:
    return memory.agent(name, system=SYSTEM).say("What is a wave?")


def _asks(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


@pytest.mark.parametrize("method", ["sizes", "read"])
@pytest.mark.parametrize("kind", ["timeout", "unreachable", "denied", "missing_bucket", "failed"])
def test_a_bucket_that_fails_is_warned_of_once_and_left_alone(
    kind: Any, method: str, bucket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Bucket, *arguments: Any, **named: Any) -> Any:
        raise BucketError(kind, self.place, "looking up", "it does not")

    with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
        assert exchange(b).settle(30)
        calls = breaks(monkeypatch, method, fail)
        with caplog.at_level(logging.WARNING, "agent_memory.remote"):
            usages = [_says(b, name).usage for name in ("bob", "carl", "dora")]
            for number in range(3):
                b.generate(f"{number} " * 3 * CHUNK, max_tokens=2)
        counts = b.stats().remote
        doctor = b.doctor()
    assert usages[0].tier == "none"
    assert usages[0].computed_tokens == usages[0].prompt_tokens
    assert len([one for one in caplog.records if "is left alone" in one.message]) == 1
    assert len(calls) <= 8  # one round, or the transfers of one fetch
    assert counts["failed"] == len(calls)
    assert counts["outages"] == 1
    assert "left alone" in doctor.remote_state
    assert any("left alone" in one for one in doctor.advice)


def test_no_request_waits_longer_than_its_patience_for_a_bucket_that_hangs(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 0.01)
    breaks(monkeypatch, "sizes", lambda self, names, **named: release.wait(60) and [None] * len(names))
    try:
        with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
            assert _says(b).usage.tier == "none"
            assert not release.is_set()
            release.set()
    finally:
        release.set()


def test_only_the_first_request_waits_for_a_bucket_that_hangs(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 0.01)
    asked = breaks(monkeypatch, "sizes", lambda self, names, **named: release.wait(60) and [None] * len(names))
    try:
        with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
            assert _says(b).usage.tier == "none"
            monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 60.0)
            other = b.stream("Another text that nobody has published. " * 8, max_tokens=2)
            assert other.result(20).usage.tier == "none"
            assert len(asked) == 1
            assert b.stats().remote["skipped"] == 1
            release.set()
    finally:
        release.set()


def test_chunks_that_come_too_late_are_stored_and_counted(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, real = threading.Event(), Bucket.read

    def late(self: Bucket, *arguments: Any, **named: Any) -> Any:
        release.wait(60)
        return real(self, *arguments, **named)

    monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 0.5)
    monkeypatch.setattr("agent_memory.exchange.fetch._TOKEN_S", 0.0)
    gets = breaks(monkeypatch, "read", late)
    try:
        with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
            assert _says(b).usage.tier == "none"
            assert gets
            release.set()
            exchange(b)._fetcher.join()  # type: ignore[union-attr]
            counts = b.stats().remote
    finally:
        release.set()
    assert counts["fetched_tokens"] == 0
    assert counts["fetched_chunks"] >= 1
    assert counts["late"] == 1


def test_a_fetch_that_is_late_after_the_question_starts_no_transfer(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, real = threading.Event(), Bucket.sizes

    def late(self: Bucket, *arguments: Any, **named: Any) -> Any:
        release.wait(60)
        return real(self, *arguments, **named)

    monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 0.01)
    monkeypatch.setattr("agent_memory.exchange.fetch._TOKEN_S", 0.0)
    with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
        assert exchange(b).settle(30)
        breaks(monkeypatch, "sizes", late)
        gets = breaks(monkeypatch, "read", Bucket.read)
        try:
            assert _says(b).usage.tier == "none"
        finally:
            release.set()
        exchange(b)._fetcher.join()  # type: ignore[union-attr]
        counts = b.stats().remote
    assert gets == []
    assert (counts["late"], counts["fetched_chunks"]) == (1, 0)


@pytest.mark.parametrize("method", ["sizes", "read"])
def test_a_fetch_that_closing_cuts_off_is_no_fault(
    method: str, bucket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, release, real = threading.Event(), threading.Event(), getattr(Bucket, method)

    def late(self: Bucket, *arguments: Any, **named: Any) -> Any:
        begun.set()
        release.wait(60)
        return real(self, *arguments, **named)

    monkeypatch.setattr("agent_memory.exchange.fetcher._TRANSFERS", 1)
    with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
        assert exchange(b).settle(30)
        breaks(monkeypatch, method, late)
        handle = b.stream(_asks("What is a wave?"))
        try:
            assert begun.wait(60)
            fetcher = exchange(b)._fetcher
            assert fetcher is not None
            fetcher.close()
        finally:
            release.set()
        assert handle.result(60).usage.prompt_tokens
        fetcher.join()
        assert b.stats().remote["failed"] == 0
        assert b.generate("Another text. " * 40).usage.tier == "none", "nothing is asked any more"
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_a_transfer_that_was_queued_until_nobody_waits_is_not_started(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = threading.Event(), Bucket.read

    def slow(self: Bucket, *arguments: Any, **named: Any) -> Any:
        gate.wait(60)
        return real(self, *arguments, **named)

    monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 0.5)
    monkeypatch.setattr("agent_memory.exchange.fetch._TOKEN_S", 0.0)
    gets = breaks(monkeypatch, "read", slow)
    with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
        try:
            assert _says(b).usage.tier == "none"
        finally:
            gate.set()
        exchange(b)._fetcher.join()  # type: ignore[union-attr]
    assert len(objects(bucket)) > _TRANSFERS
    assert len(gets) == _TRANSFERS


@pytest.mark.parametrize("n_good", [0, 1])
@pytest.mark.parametrize("step", ["exchange.adopting.new_file", "store.losses.Losses.forget", "prefix.index.Index.add"])
def test_what_was_entered_when_adopting_fails_is_taken_back(
    step: str, n_good: int, bucket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
        real_adopt = adopt

        def failing(*arguments: Any) -> int:
            with monkeypatch.context() as broken:
                room, name = f"agent_memory.{step}".rsplit(".", 1)
                real, calls, thread = resolve_name(f"agent_memory.{step}"), [], threading.get_ident()

                def fail(*arguments: Any, **named: Any) -> Any:
                    calls.extend([1] * (threading.get_ident() == thread))
                    if len(calls) > n_good and threading.get_ident() == thread:
                        raise MemoryError("of an array")
                    return real(*arguments, **named)

                broken.setattr(resolve_name(room), name, fail)
                return real_adopt(*arguments)

        monkeypatch.setattr("agent_memory.exchange.exchange.adopt", failing)
        with caplog.at_level(logging.ERROR, "agent_memory.remote"):
            b.generate(_asks("What is a wave?"), max_tokens=1)
            exchange(b)._fetcher.join()  # type: ignore[union-attr]
        assert len([one for one in caplog.records if "not stored" in one.message]) == 1
        b.flush()
        catalog = b._tiers.store.parts.catalog
        assert catalog is not None
        assert [one for one in catalog.segments.values() if not one.is_ready] == []
        exchange(b)._is_closed = True  # what follows is of the store alone
        n_tokens = b.prefill(SYSTEM).prompt_tokens
        b.flush()
        b.evict()
        usage = b.prefill(SYSTEM + "!")
        assert usage.tier_tokens["cold"] >= n_tokens - CHUNK
        assert b.verify().damaged == ()


def test_what_the_store_cannot_take_is_said_and_the_request_has_it_all_the_same(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> int:
        raise MemoryError("of an array")

    monkeypatch.setattr("agent_memory.exchange.exchange.adopt", fail)
    with (
        caplog.at_level(logging.ERROR, "agent_memory.remote"),
        Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b,
    ):
        assert _says(b).usage.tier == "remote"
        exchange(b)._fetcher.join()  # type: ignore[union-attr]
    assert len([one for one in caplog.records if "not stored" in one.message]) == 1


def test_a_trial_that_ends_in_an_unknown_error_does_not_lock_the_remote_out(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Bucket, names: Any, **named: Any) -> Any:
        raise OSError("too many open files")

    with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
        assert exchange(b).settle(30)
        calls = breaks(monkeypatch, "sizes", fail)
        breaker = exchange(b).remote.breaker
        breaker.failed(OSError("dead"))
        breaker._retry_at = 0.0  # the pause is over
        assert _says(b).usage.tier == "none"
        exchange(b)._fetcher.join()  # type: ignore[union-attr]
        assert calls
        assert breaker.allows()


def test_patience_is_for_the_question_and_what_is_measured_for_the_transfer() -> None:
    now = [0.0]
    fetch = Fetch(EchoRunner().tokenizer.encode("a" * 10), 0, 0, 0.1, lambda: now[0])  # type: ignore[arg-type]
    now[0] = PATIENCE_S - 0.01
    assert fetch.is_coming
    fetch.expect(2.0)
    now[0] = PATIENCE_S + 3.0 - 0.01
    assert fetch.is_coming
    now[0] += 0.02
    assert fetch.is_late
    assert PATIENCE_S <= 0.25


def test_others_go_on_while_a_request_waits_for_the_bucket(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, real = threading.Event(), Bucket.sizes

    def hang(self: Bucket, names: Any, **named: Any) -> Any:
        release.wait(60)
        return real(self, names, **named)

    try:
        with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
            breaks(monkeypatch, "sizes", hang)
            waits = b.stream(_asks("What is a wave?"), max_tokens=4)
            assert b.generate("short", max_tokens=40).text == "short"
            cancelled = b.stream(_asks("What else?"), max_tokens=4)
            cancelled.cancel()
            assert list(cancelled) == []
            with pytest.raises(RequestTimeoutError):
                b.generate(_asks("And then?"), max_tokens=4, timeout_s=0.05)
            assert waits.state == "queued"
            b._engine.call(b._engine._loop.check)
            release.set()
            assert waits.result().usage.tier == "remote"
    finally:
        release.set()


@pytest.mark.parametrize(
    "other",
    [
        {"salt": "another tenant"},
        {"remote_key": b"another secret of the same length"},
        {"remote_key": b""},
        {"chunk_tokens": CHUNK * 2, "prefill_tokens": CHUNK * 2},
        {"identity": "other weights"},
    ],
    ids=["salt", "key", "no key", "chunks", "weights"],
)
def test_another_tenant_key_or_model_finds_nothing(other: dict[str, Any], bucket: Path) -> None:
    runner = EchoRunner(identity=other.pop("identity", "echo"))
    with Memory(runner, bucket.parent / "b", config=config(bucket, remote_write=False, **other)) as b:
        assert _says(b).usage.tier == "none"
        counts = b.stats().remote
    assert counts["not_there"] == 1
    assert counts["fetched_chunks"] == 0


def test_what_was_not_there_is_not_asked_for_again_at_once(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = breaks(monkeypatch, "sizes", Bucket.sizes)
    with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, remote_write=False)) as b:
        text = "Nobody has asked this before. " * 20
        for _ in range(3):
            b.generate(text, max_tokens=2)
            b.evict()
    assert len(sizes) == 1


def test_neither_names_nor_bodies_tell_of_prompts_ids_or_the_model(bucket: Path) -> None:
    with Memory(EchoRunner(), ":memory:", config=config(bucket)) as memory:
        terms = exchange(memory)._terms
        assert terms is not None
        ids = memory._runner.tokenizer.encode(SYSTEM)[:8]
    secrets = [b"tutor", terms.identity.encode(), bytes.fromhex(terms.identity)]
    secrets += [b"".join(one.to_bytes(4, "little") for one in ids), b"echo"]
    found = [
        path for path in objects(bucket) for one in secrets if one in path.read_bytes() or one in str(path).encode()
    ]
    assert [path for path in found if b"echo" not in str(path).encode()] == []


@pytest.mark.parametrize("place", [0, 2])
def test_an_object_larger_than_what_it_is_asked_for_is_not_read(
    place: int, bucket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store hands over an object whole: who may write to a bucket, and has no key, could fill a host's memory."""
    real_sizes, real_read = Bucket.sizes, Bucket.read
    asked, most = list[str](), list[int]()

    def sizes(self: Bucket, names: list[str], **limits: Any) -> Any:
        asked.extend(names)
        return real_sizes(self, names, **limits)

    def read(self: Bucket, name: str, take: Any, *, max_bytes: int) -> Any:
        most.append(max_bytes)
        return real_read(self, name, take, max_bytes=max_bytes)

    monkeypatch.setattr(Bucket, "sizes", sizes)
    with Memory(EchoRunner(), ":memory:", config=config(bucket)) as b:
        _says(b)
    there = [name for name in asked if "/kv/" in name and (bucket / name).exists()]
    os.truncate(bucket / there[place], 64 << 30)  # a sparse file
    monkeypatch.setattr(Bucket, "read", read)
    caplog.set_level(logging.WARNING, "agent_memory.remote")
    with Memory(EchoRunner(), ":memory:", config=config(bucket)) as c:
        reply = _says(c)
        counts = c.stats().remote
    assert reply.text == "What is a wave?"
    assert reply.usage.cached_tokens == place * CHUNK
    assert counts["damaged"] == 1
    assert "it has 68,719,476,736 bytes" in caplog.text
    assert max(most, default=0) < 4 << 20


@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_damaged_truncated_and_exchanged_objects_are_misses(data: st.DataObject, bucket: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "bucket"
        shutil.copytree(bucket, copy)
        paths = objects(copy)
        path = data.draw(st.sampled_from(paths))
        body, how = path.read_bytes(), data.draw(st.sampled_from(["flip", "cut", "other", "longer", "empty"]))
        at = data.draw(st.integers(0, len(body) - 1))
        bit = 1 << data.draw(st.integers(0, 7))
        path.write_bytes(
            {
                "flip": body[:at] + bytes([body[at] ^ bit]) + body[at + 1 :],
                "cut": body[:at],
                "other": next(one for one in paths if one != path).read_bytes(),
                "longer": body + body[:at] + b"x",
                "empty": b"",
            }[how]
        )
        with Memory(EchoRunner(), ":memory:", config=config(copy)) as b:
            reply = _says(b)
            counts = b.stats().remote
        assert reply.text == "What is a wave?"
        assert reply.usage.cached_tokens == counts["fetched_tokens"]
        n_shared = counts["fetched_chunks"]
        assert counts["damaged"] or n_shared == _n_shared(bucket)


def _n_shared(bucket: Path) -> int:
    with Memory(EchoRunner(), ":memory:", config=config(bucket)) as b:
        return _says(b).usage.cached_tokens // CHUNK


def test_a_fetch_is_chosen_only_where_it_is_faster_and_both_are_counted(bucket: Path) -> None:
    with Memory(EchoRunner(), ":memory:", config=config(bucket)) as b:
        assert _says(b).usage.tier == "remote"
        rates = exchange(b).remote.rates
        rates.moved(1 << 20, 3600.0)  # a link of some hundred bytes a second
        b.generate("x" * 9 * CHUNK, max_tokens=2)  # computing is measured
        assert b.generate(_asks("And then?"), max_tokens=2).usage.tier in ("hot", "none")
        counts = b.stats().remote
    assert counts["fetches_chosen"] == 1
    assert counts["computing_chosen"] >= 1


def test_a_fetch_stays_within_the_budgets(bucket: Path) -> None:
    with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket, disk_bytes=64 << 10)) as b:
        assert _says(b).usage.tier == "remote"  # there is no room for it on disk
        b.flush()
        stats = b.stats()
        assert stats.hot_bytes <= stats.budgets["hot"]
        assert b.verify().damaged == ()
    token_bytes = EchoRunner().layout.token_bytes
    n_prompt = 400
    tight = config(bucket, hot_bytes=token_bytes * (n_prompt + 1024))
    with Memory(EchoRunner(), ":memory:", config=tight) as b:
        usage = _says(b).usage
        stats = b.stats()
        assert stats.hot_bytes <= stats.budgets["hot"]
        assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens


WITHOUT = """
import socket, sys
events, opening = [], {"socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo"}
sys.addaudithook(lambda name, args: events.append(name) if name in opening else None)
from agent_memory import EchoRunner, Memory
with Memory(EchoRunner(), sys.argv[1]) as memory:
    memory.agent("ann").say("one")
    memory.flush()
assert not events, events
known = [name for name in ("obstore", "cryptography", "agent_memory.remote.bucket", "boto3") if name in sys.modules]
assert not known, known
print("none")
"""


def test_without_a_remote_nothing_is_imported_and_no_socket_opened(tmp_path: Path) -> None:
    import subprocess

    out = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert out.stdout == "none\n", out.stderr
    assert Config().remote is None


def test_who_may_not_write_goes_on_reading(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(self: Bucket, *arguments: Any, **named: Any) -> Any:
        raise BucketError("denied", self.place, "storing", "not for you")

    with caplog.at_level(logging.WARNING, "agent_memory.remote"):
        breaks(monkeypatch, "probe", denied)
        puts = breaks(monkeypatch, "put_new", denied)
        with Memory(EchoRunner(), bucket.parent / "b", config=config(bucket)) as b:
            b.generate("Of this nobody has published a word. " * 9, max_tokens=2)
            b.flush()
            assert exchange(b).settle(30)
            assert _says(b).usage.tier == "remote"
            assert b.stats().remote["failed"] == 1 + len(puts)
    assert len([one for one in caplog.records if "left alone" in one.message]) == 1


def test_what_was_fetched_counts_as_hot_until_it_is_restored(bucket: Path) -> None:
    with Memory(EchoRunner(), ":memory:", config=config(bucket)) as b:
        held: list[int] = []
        real = exchange(b)._ended

        def ended(*arguments: Any) -> None:
            real(*arguments)
            held.append(exchange(b).held_bytes())

        exchange(b)._ended = ended  # type: ignore[method-assign]
        n_tokens = _says(b).usage.cached_tokens
        assert held == [n_tokens * b._runner.layout.token_bytes]
        exchange(b)._fetcher.join()  # type: ignore[union-attr]
        assert exchange(b).held_bytes() == 0
        stats = b.stats()
        assert stats.hot_bytes == b._engine.call(lambda: b._engine._loop.hot.nbytes)


def test_a_server_that_overwrites_is_noticed_at_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    breaks(monkeypatch, "probe", lambda self, **named: False)
    caplog.set_level(logging.WARNING, "agent_memory.remote")
    with Memory(EchoRunner(), tmp_path / "a", config=config(tmp_path / "bucket", remote_key=b"")) as a:
        assert exchange(a).settle(30)
        doctor = a.doctor()
        assert _says(a).text == "What is a wave?"
        assert published(a)  # KV is safe without conditions
    assert len([one for one in caplog.records if "ignores conditions" in one.message]) == 1
    assert doctor.remote_conditions.startswith("ignored")
    assert any("ignores conditions" in one for one in doctor.advice)
    assert any("has no key" in one for one in doctor.advice)


def _other_layers(tree: list[Any]) -> None:
    tree.pop()


def _other_shape(tree: list[Any]) -> None:
    found: Any = tree[0]
    while "a" not in found:
        [[found, *_]] = found.values()
    dtype, shape, start = found["a"]
    found["a"] = [dtype, [*shape[:-1], shape[-1] // 2], start]


def _other_tree(tree: list[Any]) -> None:
    tree[0] = {"v": 0}


@pytest.mark.mlx
@pytest.mark.parametrize("forge", [_other_layers, _other_shape, _other_tree, None])
def test_a_forged_state_without_a_key_is_a_miss(
    forge: Callable[[list[Any]], None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path / "bucket", remote_key=b"", chunk_tokens=16, prefill_tokens=16)
    brief, really = "You are a tutor who answers with what was asked, at length. " * 2, Resume.parts

    def parts(resume: Resume) -> list[memoryview]:
        *rows, state = really(resume)
        start = 8 + int.from_bytes(state[:8], "little")
        text = bytes(state[8:start])
        if forge is not None:
            tree = json.loads(text)
            forge(tree)
            text = json.dumps(tree).encode()
        return [
            *rows,
            memoryview((len(text) + (forge is None) * 1_000_000).to_bytes(8, "little") + text + state[start:]),
        ]

    with Memory(endless("qwen3_next"), tmp_path / "a", config=settings) as a, monkeypatch.context() as patch:
        patch.setattr(Resume, "parts", parts)
        said = a.generate(brief, raw=True, max_tokens=2).text
        published(a)
    with Memory(endless("qwen3_next"), tmp_path / "b", config=settings) as b:
        reply = b.generate(brief, raw=True, max_tokens=2)
        assert b.stats().remote["damaged"] == 1
    assert (reply.usage.tier, reply.text) == ("none", said)


@pytest.mark.parametrize("text", ["\ud800", "a\nb", "x" * 5_000, 3, None], ids=lambda text: ascii(text)[:8])
@pytest.mark.parametrize("name", ["host", "tag", "parent_tag"])
def test_a_forged_text_is_damage_and_stops_no_save(
    name: str, text: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was stored with the rows: no KV could be saved after it, or the bucket was left alone."""
    settings, really = config(tmp_path / "bucket", remote_key=b""), Chunk.header
    with Memory(EchoRunner(), tmp_path / "a", config=settings) as a, monkeypatch.context() as patch:
        patch.setattr(Chunk, "header", lambda chunk: {**really(chunk), name: text})
        said = a.generate(SYSTEM, raw=True, max_tokens=2).text
        published(a)
    with Memory(EchoRunner(), tmp_path / "b", config=settings) as b:
        reply = b.generate(SYSTEM, raw=True, max_tokens=2)
        b.flush()
        counts = b.stats().remote
    assert (reply.text, reply.usage.tier) == (said, "none")
    assert counts["damaged"] >= 1
    assert (counts["failed"], counts["outages"]) == (0, 0)
    assert not [record for record in caplog.records if "could not be saved" in record.message]


def test_hosts_that_publish_one_chunk_at_once_leave_one_object(tmp_path: Path) -> None:
    bucket, start = tmp_path / "bucket", threading.Barrier(4)
    n_published: list[int] = []

    def host(number: int) -> None:
        with Memory(EchoRunner(), tmp_path / f"{number}", config=config(bucket)) as memory:
            start.wait()
            memory.prefill(SYSTEM)
            n_published.append(published(memory))

    threads = [threading.Thread(target=host, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(n_published) == 4
    assert sum(n_published) == len(objects(bucket))
    with Memory(EchoRunner(), ":memory:", config=config(bucket)) as memory:
        assert memory.prefill(SYSTEM).tier == "remote"
