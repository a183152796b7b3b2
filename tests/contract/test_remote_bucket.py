"""The room of remote objects against a real S3 protocol: moto's server, and a proxy that goes wrong on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from agent_memory import AgentMovedError, Config, EchoRunner, Memory, RemoteError
from agent_memory.remote.breaker import Breaker
from agent_memory.remote.bucket import Bucket, Limits
from agent_memory.remote.failures import BucketError, ObjectDamagedError
from agent_memory.remote.names import remote_keys
from agent_memory.remote.objects import read_object, write_object
from tests.parts.faultproxy import FaultProxy, fault_proxy
from tests.parts.s3 import IN_ENVIRONMENT, S3Server, s3_server

pytestmark = pytest.mark.contract
KEYS = remote_keys(b"k" * 32)
_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def bucket(server: S3Server) -> Iterator[Bucket]:
    found = server.open(f"kv{next(_numbers)}")
    yield found
    found.close()


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.port) as running:
        yield running


@pytest.fixture
def behind(server: S3Server, proxy: FaultProxy) -> Iterator[Bucket]:
    """A bucket behind the proxy, with short limits."""
    limits = Limits(lookup_s=0.5, connect_s=0.5, transfer_s=1.0, bytes_per_s=1e9)
    found = server.open(f"kv{next(_numbers)}", port=proxy.port, limits=limits)
    yield found
    found.close()


def test_objects_are_created_once_and_found(bucket: Bucket) -> None:
    names = [f"v1/{number}" for number in range(100)]
    assert bucket.probe()
    for name in names[::2]:
        assert bucket.put_new(name, name.encode() * 9)
    assert not bucket.put_new(names[0], b"another")
    found = bucket.sizes(names, timeout_s=30)
    assert found == [9 * len(name) if number % 2 == 0 else None for number, name in enumerate(names)]
    assert bucket.get(names[2]) == names[2].encode() * 9
    assert bucket.get(names[1]) is None
    with pytest.raises(BucketError, match="too_large"):
        bucket.get(names[2], max_bytes=9)


def test_eight_writers_of_one_object_have_one_winner(server: S3Server) -> None:
    prefix, start, won = f"kv{next(_numbers)}", threading.Barrier(8), []

    def write(number: int) -> None:
        own = server.open(prefix)
        start.wait()
        if own.put_new("v1/a", bytes([number]) * 200_000):
            won.append(number)
        own.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    reader = server.open(prefix)
    assert reader.get("v1/a") == bytes(won) * 200_000
    reader.close()


def test_a_bucket_that_does_not_exist_is_said(server: S3Server) -> None:
    bucket = Bucket(server.url("kv", bucket="nowhere"), options={"access_key_id": "a", "secret_access_key": "b"})
    with pytest.raises(BucketError, match="missing_bucket"):
        bucket.probe()
    bucket.close()


def test_credentials_come_from_the_environment_as_it_was(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in IN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(server.url(f"kv{next(_numbers)}"))
    for name in IN_ENVIRONMENT:
        monkeypatch.delenv(name)
    assert bucket.put_new("v1/a", b"one")
    bucket.close()


def test_nothing_is_ever_listed_overwritten_or_deleted(behind: Bucket, proxy: FaultProxy) -> None:
    assert behind.probe()
    assert behind.put_new("v1/a", b"one")
    assert behind.sizes(["v1/a", "v1/b", "v1/c"]) == [3, None, None]
    assert behind.get("v1/a") == b"one"
    assert proxy.asked == {"PUT": 3, "HEAD": 3, "GET": 1}


def test_a_server_that_ignores_conditions_is_noticed(behind: Bucket, proxy: FaultProxy) -> None:
    proxy.faults.ignores_conditions = True
    assert not behind.probe()


def refuse(proxy: FaultProxy, status: int) -> None:
    proxy.faults.status = status


def be_slow(proxy: FaultProxy) -> None:
    proxy.faults.delay_s = 10


def die(proxy: FaultProxy) -> None:
    proxy.faults.is_dead = True


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (lambda proxy: refuse(proxy, 403), {"denied"}),
        (lambda proxy: refuse(proxy, 401), {"denied"}),
        (lambda proxy: refuse(proxy, 500), {"failed"}),
        (lambda proxy: refuse(proxy, 503), {"failed"}),
        (be_slow, {"timeout"}),
        (die, {"unreachable", "failed"}),
    ],
)
def test_faults_are_typed_and_open_the_breaker_once(
    behind: Bucket, proxy: FaultProxy, fault: Callable[[FaultProxy], None], kinds: set[str]
) -> None:
    fault(proxy)
    breaker, found = Breaker(behind.place, clock=lambda: 0.0), set()
    calls: list[Callable[[], object]] = [
        lambda: behind.sizes(["v1/a", "v1/b"]),
        lambda: behind.get("v1/a"),
        lambda: behind.put_new("v1/a", b"one"),
        behind.probe,
    ]
    for call in calls:
        with pytest.raises(BucketError) as caught:
            call()
        found.add(caught.value.kind)
        breaker.failed(caught.value)
        assert "Debug" not in str(caught.value)
    assert found <= kinds
    assert not breaker.allows()
    assert breaker.figures().n_outages == 1


def test_a_cut_answer_is_an_error_or_a_damaged_object(behind: Bucket, proxy: FaultProxy) -> None:
    body = write_object("v1/a", KEYS, {"host": "a"}, [b"x" * 5000])
    assert behind.put_new("v1/a", body)
    for share in (0.0, 0.3, 0.999):
        proxy.faults.cut_at = share
        with pytest.raises(BucketError):
            behind.get("v1/a")
    proxy.faults.cut_at = None
    for share in (0.0, 0.3, 0.999):
        proxy.faults.body = lambda text, share=share: text[: int(len(text) * share)]
        with pytest.raises(ObjectDamagedError):
            read_object("v1/a", KEYS, behind.get("v1/a") or b"").parts()


def test_changed_swapped_and_replayed_objects_do_not_open(behind: Bucket, proxy: FaultProxy) -> None:
    for name in ("v1/a", "v1/b"):
        assert behind.put_new(name, write_object(name, KEYS, {"host": name}, [name.encode() * 100]))

    def read() -> bytes:
        found = behind.get("v1/a")
        assert found is not None
        return bytes(read_object("v1/a", KEYS, found).parts()[0])

    assert read() == b"v1/a" * 100
    changed: list[Callable[[bytes], bytes]] = [
        lambda text: text[:-1] + bytes([text[-1] ^ 1]),
        lambda text: text[:9] + bytes([text[9] ^ 128]) + text[10:],
        lambda text: text + b"x",
    ]
    for proxy.faults.body in changed:
        with pytest.raises(ObjectDamagedError):
            read()
    proxy.faults.body = None
    proxy.faults.path = lambda path: path.replace("/v1/a", "/v1/b")  # another object under this name
    with pytest.raises(ObjectDamagedError):
        read()


def test_a_lost_answer_of_a_put_is_told_from_another_writer(behind: Bucket, proxy: FaultProxy) -> None:
    """The server stored it, nobody heard: asked again, the name is taken, and by the same bytes."""
    proxy.faults.delay_s = 1.5  # the proxy passes the object on, after the time limit
    with pytest.raises(BucketError, match="timeout"):
        behind.put_new("v1/a", b"mine", timeout_s=1.0)
    proxy.faults.delay_s = 0
    deadline = time.monotonic() + 30
    while behind.sizes(["v1/a"], timeout_s=10) == [None] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not behind.put_new("v1/a", b"mine")
    assert behind.get("v1/a") == b"mine"


def test_an_agent_moves_through_a_server(
    server: S3Server, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in IN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    config = Config(remote=server.url(f"kv{next(_numbers)}", port=proxy.port), remote_key=b"k" * 32)
    with (
        Memory(EchoRunner(), tmp_path / "a", config=config) as a,
        Memory(EchoRunner(), tmp_path / "b", config=config) as b,
    ):
        alice = a.agent("alice", system="Answer with what you heard.")
        for number in range(20):
            alice.say(f"turn {number}")
            assert a.publish(alice) == number + 1
        there = b.fetch_agent("alice")
        assert there.messages == alice.messages
        there.say("on")
        assert b.publish(there) == 21
        alice.say("late")
        with pytest.raises(AgentMovedError, match="turn 21 on"):
            a.publish(alice)
        assert a.fetch_agent("alice").messages == there.messages
        assert proxy.asked["list"] == 0
        proxy.faults.status = 500
        a.agent("alice").say("unheard")
        with pytest.raises(RemoteError, match="failed"):
            a.publish("alice")
        proxy.faults.status = None
        assert a.publish("alice") == 22
    proxy.faults.ignores_conditions = True
    with Memory(EchoRunner(), tmp_path / "c", config=config) as c, pytest.raises(RemoteError, match="If-None-Match"):
        c.fetch_agent("alice")
