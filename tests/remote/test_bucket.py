"""Buckets: what is stored whole under a free name is found, and nothing holds a caller."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent_memory.errors import ClosedError, ConfigError, RemoteError
from agent_memory.remote.bodies import Body
from agent_memory.remote.bucket import Bucket, Limits, address_of
from agent_memory.remote.failures import BucketError


@pytest.fixture
def folder(tmp_path: Path) -> Bucket:
    return Bucket(f"file://{tmp_path}/a share")


def test_objects_are_found_as_they_were_stored_and_never_overwritten(folder: Bucket) -> None:
    assert folder.sizes(["v1/a", "v1/b"]) == [None, None]
    assert folder.put_new("v1/a", b"one")
    assert not folder.put_new("v1/a", b"another")
    assert folder.sizes(["v1/b", "v1/a"]) == [None, 3]
    assert folder.get("v1/a") == b"one"
    assert folder.get("v1/b") is None
    assert folder.probe()
    assert folder.probe()
    folder.close()


def test_a_larger_object_than_asked_for_is_not_read(folder: Bucket) -> None:
    folder.put_new("v1/a", b"12345")
    assert folder.get("v1/a", max_bytes=5) == b"12345"
    with pytest.raises(BucketError) as caught:
        folder.get("v1/a", max_bytes=4)
    assert caught.value.kind == "too_large"


def test_eight_writers_of_one_name_have_one_winner(folder: Bucket) -> None:
    start, won = threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        if folder.put_new("v1/a", bytes([number]) * 100_000):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert folder.get("v1/a") == bytes(won) * 100_000


def test_a_file_system_without_hard_links_is_noticed(folder: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert not folder.probe()
    assert folder.put_new("v1/a", b"one")
    assert not folder.put_new("v1/a", b"another")
    assert folder.get("v1/a") == b"one"


def test_a_failure_is_typed_and_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    bucket = Bucket(f"file://{tmp_path}/file")
    with pytest.raises(RemoteError, match="storing failed") as caught:
        bucket.put_new("v1/a", b"one")
    assert str(tmp_path) in str(caught.value)
    bucket.close()
    bucket.close()
    with pytest.raises(ClosedError):
        bucket.get("v1/a")


@pytest.mark.parametrize("what", ["asyncio.new_event_loop", "threading.Thread.start"])
def test_a_system_without_files_or_threads_is_a_typed_failure_of_one_call(
    what: str, folder: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(what, refuse)
    with pytest.raises(BucketError, match="Too many open files"):
        folder.put_new("v1/a", b"one")
    monkeypatch.undo()
    assert folder.put_new("v1/a", b"one")
    folder.close()
    with pytest.raises(ClosedError):
        folder.get("v1/a")


def test_a_file_that_ends_early_is_read_as_far_as_it_is(folder: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put_new("v1/a", b"12345")
    real = os.fstat

    def larger(handle: int) -> object:
        found = list(real(handle))
        found[6] += 3  # its size
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", larger)
    assert folder.get("v1/a") == b"12345"


def test_a_server_that_says_nothing_costs_its_time_limit() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        url = f"s3://bucket/kv?endpoint=http://127.0.0.1:{silent.getsockname()[1]}&region=us-east-1"
        keys = {"access_key_id": "a", "secret_access_key": "b"}
        bucket = Bucket(url, options=keys, limits=Limits(lookup_s=0.1))
        with pytest.raises(BucketError) as caught:
            bucket.sizes([f"v1/{number}" for number in range(100)])
        assert caught.value.kind == "timeout"
        assert "Debug source" not in str(caught.value)
        bucket.close()
    dead = Bucket(url, options=keys)
    with pytest.raises(BucketError) as caught:
        dead.get("v1/a")
    assert caught.value.kind == "unreachable"
    dead.close()


def test_closing_ends_the_calls_that_run() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        url = f"s3://bucket/kv?endpoint=http://127.0.0.1:{silent.getsockname()[1]}&region=us-east-1"
        bucket = Bucket(url, options={"access_key_id": "a", "secret_access_key": "b"})
        found: list[BaseException] = []

        def ask() -> None:
            try:
                bucket.get("v1/a")
            except ClosedError as error:
                found.append(error)

        caller = threading.Thread(target=ask)
        caller.start()
        with silent.accept()[0]:  # it is on its way
            bucket.close()
            caller.join()
        assert len(found) == 1


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://server/bucket", "must begin with"),
        ("bucket", "must begin with"),
        ("s3:///prefix", "names no bucket"),
        ("s3://key:secret@bucket/x", "credentials"),
        ("s3://bucket/x?secret_access_key=abc", "option 'secret_access_key'"),
        ("s3://bucket/x#y", "'#'"),
        ("file://host/share", "whole path"),
        ("file:///", "whole path"),
        ("file:///share?region=x", "whole path"),
        (7, "must be a URL"),
    ],
)
def test_a_wrong_url_is_refused_without_showing_secrets(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        address_of(url)
    assert "abc" not in str(caught.value)
    assert "key:secret" not in str(caught.value)


def test_an_option_that_obstore_does_not_know_is_a_setting_that_is_wrong() -> None:
    with pytest.raises(ConfigError):
        Bucket("s3://bucket/x", options={"no_such_option": "1"})


def test_lookups_do_not_wait_for_transfers(folder: Bucket) -> None:
    """A slow share is not a dead one: its look-ups have 0.25 s, and reads of large objects may take seconds."""
    folder.put_new("v1/a", b"one")
    go, n_reads = threading.Event(), 40
    begun = threading.Semaphore(0)

    def take(body: Body) -> int:
        begun.release()
        assert go.wait(60)
        return body.n_bytes

    with ThreadPoolExecutor(n_reads) as threads:
        reads = [threads.submit(folder.read, "v1/a", take) for _ in range(n_reads)]
        try:
            assert begun.acquire(timeout=60)
            assert folder.sizes(["v1/a", "v1/b"], timeout_s=10) == [3, None]
        finally:
            go.set()
        assert {one.result() for one in reads} == {3}
    folder.close()
