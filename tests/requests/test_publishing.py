"""Agents that move through a bucket: every published turn arrives, and one host at a time may publish."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest

from agent_memory import (
    AgentMovedError,
    Config,
    ConfigError,
    EchoRunner,
    Memory,
    Message,
    RemoteError,
    Tool,
    UnknownAgentError,
    UnsupportedParameterError,
)
from agent_memory.carry.published import Part, Replay, read_part
from agent_memory.remote.bucket import Bucket
from agent_memory.remote.failures import ObjectDamagedError
from agent_memory.remote.names import ObjectNames, remote_keys
from agent_memory.remote.objects import read_object, write_object
from tests.parts.agentfile import ODD

KEY = b"k" * 32
SYSTEM = "Answer with what you heard. " * 8


class Hosts:
    """Memories that share one bucket."""

    def __init__(self, stack: ExitStack, tmp_path: Path) -> None:
        self._stack, self._tmp_path, self.url = stack, tmp_path, f"file://{tmp_path}/share"
        self.share = tmp_path / "share"

    def open(self, name: str, *, path: str | None = None, **settings: object) -> Memory:
        config = Config(**{"remote": self.url, "remote_key": KEY, **settings})  # type: ignore[arg-type]
        memory = Memory(EchoRunner(), path or self._tmp_path / name, config=config)
        return self._stack.enter_context(memory)

    def n_parts(self) -> int:
        return len(list((self._tmp_path / "share/v1/log").rglob("0*")))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(stack, tmp_path)


def test_an_agent_moves_with_every_published_turn(hosts: Hosts) -> None:
    a, b = hosts.open("a"), hosts.open("b")
    tool = Tool("look", "looks", {"type": "object", "properties": {}})
    alice = a.agent("alice", system=SYSTEM, tools=[tool])
    for text in ("one", "two", "three"):
        alice.say(text)
        assert a.publish(alice) == len(alice.messages) // 2
    assert a.publish("alice") == 3
    assert hosts.n_parts() == 3  # nothing new, nothing written
    there = b.fetch_agent("alice")
    assert there.messages == alice.messages
    assert there.n_tokens == alice.n_tokens
    assert there.tools == alice.tools
    with Memory(EchoRunner(), ":memory:") as alone:
        single = alone.agent("alice", system=SYSTEM, tools=[tool])
        texts = [single.say(text).text for text in ("one", "two", "three", "four")]
    assert there.say("four").text == texts[-1]
    assert b.publish(there) == 4


def test_the_second_writer_of_a_turn_is_refused_by_name_and_number(hosts: Hosts) -> None:
    a, b = hosts.open("a"), hosts.open("b")
    alice = a.agent("alice")
    alice.say("one")
    a.publish(alice)
    there = b.fetch_agent("alice")
    alice.say("mine")
    with pytest.raises(AgentMovedError, match=r"'alice'.* part 2 .*turn 2.*epoch 2") as caught:
        a.publish(alice)
    assert (caught.value.name, caught.value.part, caught.value.turn, caught.value.epoch) == ("alice", 2, 2, 2)
    there.say("two")
    assert b.publish(there) == 2
    with pytest.raises(AgentMovedError):
        a.publish(alice)
    back = a.fetch_agent("alice")
    assert back.messages == there.messages
    (kept,) = back.history()
    assert [message.content for message in back.at(kept.number).messages if message.role == "user"] == ["one", "mine"]
    back.say("three")
    assert a.publish("alice") == 3
    assert b.publish("alice") == 2  # nothing new: all that it has is published
    there.say("too late")
    with pytest.raises(AgentMovedError):
        b.publish("alice")


def test_a_host_that_is_behind_gets_what_it_lacks(hosts: Hosts) -> None:
    a, b = hosts.open("a"), hosts.open("b")
    alice = a.agent("alice", system=SYSTEM)
    alice.say("one")
    a.publish(alice)
    there = b.fetch_agent("alice")
    there.say("two")
    there.say("three")
    b.publish(there)
    back = a.fetch_agent("alice")
    assert back.messages == there.messages == alice.messages
    assert not back.history()
    assert a.fetch_agent("alice").messages == back.messages  # it holds the agent already: no new epoch
    assert hosts.n_parts() == 4


def test_of_many_hosts_that_take_an_agent_one_may_publish(hosts: Hosts) -> None:
    first = hosts.open("first")
    first.agent("alice").say("one")
    first.publish("alice")
    others = [hosts.open(f"host{number}", path=":memory:") for number in range(4)]
    start, agents = threading.Barrier(4), {}

    def take(memory: Memory) -> None:
        start.wait()
        agents[memory] = memory.fetch_agent("alice")

    threads = [threading.Thread(target=take, args=(memory,)) for memory in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = []
    for memory in others:
        agents[memory].say("two")
        try:
            assert memory.publish("alice") == 2
        except AgentMovedError as error:
            refused.append(error.epoch)
    assert sorted(refused) == [3, 4, 5]  # the next taking stands in each one's way but the last's


def test_what_was_published_survives_the_host_and_its_folder(hosts: Hosts) -> None:
    a = hosts.open("a")
    told = [Message(role, f"turn {number}") for number in range(300) for role in ("user", "assistant")]
    a.agent("alice", system=SYSTEM, messages=told)  # more turns than one part holds
    assert a.publish("alice") == 300
    assert hosts.n_parts() == 2
    a.close()
    again = hosts.open("a")
    again.agent("alice").say("more")
    assert again.publish("alice") == 301  # after a restart the newest part is found, and only what is new is written
    assert hosts.n_parts() == 3
    b = hosts.open("b")
    assert b.fetch_agent("alice").messages == again.agent("alice").messages


def test_a_rewind_is_published(hosts: Hosts) -> None:
    a = hosts.open("a")
    alice = a.agent("alice")
    for text in ("one", "two", "three"):
        alice.say(text)
    a.publish(alice)
    alice.rewind(2)
    assert a.publish(alice) == 1
    alice.say("other")
    a.close()
    again = hosts.open("a")
    assert again.publish("alice") == 2
    there = hosts.open("b").fetch_agent("alice")
    assert [message.content for message in there.messages if message.role == "user"] == ["one", "other"]


def test_an_agent_that_is_made_anew_does_not_write_over_the_old_one(hosts: Hosts) -> None:
    a = hosts.open("a")
    a.agent("alice").say("one")
    a.publish("alice")
    a.delete("alice")
    a.agent("alice").say("another")
    with pytest.raises(AgentMovedError):
        a.publish("alice")
    fork = a.agent("alice").fork("bob")
    assert a.publish(fork) == 1


def test_an_exported_agent_does_not_take_the_right_to_publish_along(hosts: Hosts, tmp_path: Path) -> None:
    a, b = hosts.open("a"), hosts.open("b")
    a.agent("alice").say("one")
    a.publish("alice")
    a.agent("alice").export(tmp_path / "alice.file")
    assert b'"holder' not in (tmp_path / "alice.file").read_bytes().replace(b"\\", b"")
    b.import_agent(tmp_path / "alice.file")
    with pytest.raises(AgentMovedError):
        b.publish("alice")


def test_what_is_missing_is_said(hosts: Hosts, tmp_path: Path) -> None:
    a = hosts.open("a")
    with pytest.raises(UnknownAgentError):
        a.publish("nobody")
    with pytest.raises(UnknownAgentError):
        a.fetch_agent("nobody")
    a.agent("alice").say("one")
    a.publish("alice")
    with pytest.raises(UnknownAgentError):  # another tenant's
        hosts.open("salted", salt="other").fetch_agent("alice")
    with pytest.raises(UnknownAgentError):
        hosts.open("other", remote_key=b"l" * 32).fetch_agent("alice")
    with pytest.raises(ConfigError, match="remote_write"):
        hosts.open("reader", remote_write=False).fetch_agent("alice")
    with Memory(EchoRunner(), ":memory:") as plain, pytest.raises(ConfigError, match="no remote"):
        plain.fetch_agent("alice")


def test_damaged_and_missing_parts_are_said_and_nothing_is_taken(hosts: Hosts) -> None:
    a = hosts.open("a")
    alice = a.agent("alice")
    for text in ("one", "two", "three"):
        alice.say(text)
        a.publish(alice)
    names, path = ObjectNames(remote_keys(KEY)), Path(hosts.url.removeprefix("file://"))
    second, third = (path / names.log("alice", number) for number in (2, 3))
    body = second.read_bytes()
    b = hosts.open("b")
    for wrong in (body[:-1], body[:50] + bytes([body[50] ^ 1]) + body[51:], third.read_bytes(), b""):
        second.write_bytes(wrong)
        with pytest.raises(RemoteError, match="part 2 .*alice"):
            b.fetch_agent("alice")
    second.write_bytes(body)
    (path / names.log("alice", 1)).unlink()
    with pytest.raises(RemoteError, match="first part"):
        b.fetch_agent("alice")
    assert hosts.n_parts() == 2
    assert not b.agents()


def test_parts_of_two_histories_are_no_log(hosts: Hosts, tmp_path: Path) -> None:
    """Each part is genuine and has its own name; the first one was written again, as after a backup came back."""
    a = hosts.open("a")
    alice = a.agent("alice")
    for text in ("one", "two"):
        alice.say(text)
        a.publish(alice)
    keys = remote_keys(KEY)
    names = ObjectNames(keys)
    bodies = [(tmp_path / "share" / names.log("alice", number)).read_bytes() for number in (1, 2)]
    first, second = (read_part("alice", number, body, names, keys) for number, body in enumerate(bodies, 1))
    whole = Replay()
    whole.take(first)
    whole.take(second)
    assert len(whole.turns) == 2
    for before, wrong in (([], second), ([first], first), ([attrs.evolve(first, digest="0" * 64)], second)):
        mixed = Replay()
        for part in before:
            mixed.take(part)
        with pytest.raises(ObjectDamagedError, match="does not follow"):
            mixed.take(wrong)


def test_names_and_texts_are_nowhere_in_the_bucket(hosts: Hosts) -> None:
    a = hosts.open("a")
    a.agent("alice-the-agent", system=SYSTEM).say("a very private sentence")
    a.publish("alice-the-agent")
    a.close()
    for path in Path(hosts.url.removeprefix("file://")).rglob("*"):
        assert "alice" not in str(path.name)
        if path.is_file():
            body = path.read_bytes()
            for text in (b"alice-the-agent", b"private", b"Answer with", b"tokenizer"):
                assert text not in body


def test_a_publication_whose_answer_was_lost_is_not_another_hosts(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = hosts.open("a")
    alice = a.agent("alice")
    alice.say("one")
    a.publish(alice)
    put_new = Bucket.put_new

    def lost(self: Bucket, *arguments: object, **options: object) -> bool:
        put_new(self, *arguments, **options)  # type: ignore[arg-type]
        raise RemoteError("no answer")

    for text, stays in (("two", False), ("three", True)):
        alice.say(text)
        monkeypatch.setattr(Bucket, "put_new", lost)
        with pytest.raises(RemoteError, match="no answer"):
            a.publish(alice)
        monkeypatch.setattr(Bucket, "put_new", put_new)
        if stays:
            alice.say("four")
        assert a.publish(alice) == len(alice.messages) // 2
    assert hosts.n_parts() == 4
    assert hosts.open("b").fetch_agent("alice").messages == alice.messages


def test_a_bucket_that_overwrites_is_refused(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bucket, "probe", lambda self: False)
    a = hosts.open("a")
    a.agent("alice").say("one")
    with pytest.raises(RemoteError, match="If-None-Match"):
        a.publish("alice")


def test_a_published_agent_takes_neither_a_temporary_agents_place_nor_a_groups(hosts: Hosts) -> None:
    """Refused before the taking: the host that has it goes on."""
    a, b = hosts.open("a"), hosts.open("b")
    for name in ("alice", "team/"):
        a.agent(name).say("one")
        a.publish(name)
    b.agent("bob").say("here")
    b.agent("bob").fork("alice", temporary=True)
    group = b.group("team", ["bob"])
    group.say("Welcome.")
    with pytest.raises(UnsupportedParameterError, match="temporary"):
        b.fetch_agent("alice")
    with pytest.raises(UnsupportedParameterError, match="log of group"):
        b.fetch_agent("team/")
    assert [str(one) for one in group.transcript] == ["host: Welcome."]
    for name in ("alice", "team/"):
        a.agent(name).say("two")
        assert a.publish(name) == 2
    for bad in ("", "\ud800", 5):
        with pytest.raises(ConfigError, match="an agent's name"):
            b.fetch_agent(bad)  # type: ignore[arg-type]


DROPPED = object()
PLACES = [
    *[(one.name,) for one in attrs.fields(Part)],
    *[("told", key) for key in ("name", "system", "tools", "facts", "created_s", "used_s", "versions")],
    *[("turns", 0, key) for key in ("keep", "n_messages_kept", "tokenizer", "finish", "created_s", "n_kv", "n_reply")],
]


FORGED = (DROPPED, *ODD, {"versions": {}}, '{"answered":[1]}', '{"answered":[["a","b"]],"date":"x"}', "[" * 5000)


@pytest.mark.parametrize("share", [3, pytest.param(1, marks=pytest.mark.slow)], ids=["a third", "all"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_forged_part_is_refused_by_a_typed_error(place: tuple[Any, ...], share: int, hosts: Hosts) -> None:
    """Without a key anybody who can write to the bucket can write parts that pass."""
    a, b = hosts.open("a", remote_key=b""), hosts.open("b", remote_key=b"")
    a.agent("alice", system=SYSTEM).say("one")
    a.publish("alice")
    keys = remote_keys(b"")
    name = ObjectNames(keys).log("alice", 1)
    path = hosts.share / name
    found = read_object(name, keys, path.read_bytes())
    bodies = found.parts()
    for odd in FORGED[PLACES.index(place) % share :: share]:
        header = json.loads(json.dumps(found.header))
        within = header
        for key in place[:-1]:
            within = within[key]
        within[place[-1]] = odd
        if odd is DROPPED:
            del within[place[-1]]
        with contextlib.suppress(ValueError):  # NaN is no JSON
            path.write_bytes(write_object(name, keys, header, bodies))
        with contextlib.suppress(RemoteError, UnknownAgentError):
            b.fetch_agent("alice").say("two")
        b.delete("alice")
        for later in sorted(path.parent.glob("0*"))[1:]:
            later.unlink()


def test_a_part_larger_than_any_that_is_written_is_not_read(hosts: Hosts) -> None:
    """Who may write to the bucket, and has no key, could fill the memory of whoever takes the agent over."""
    a, b = hosts.open("a"), hosts.open("b")
    a.agent("alice", system=SYSTEM).say("one")
    a.publish("alice")
    [part] = (hosts.share / "v1/log").rglob("0*")
    os.truncate(part, 64 << 30)  # a sparse file
    with pytest.raises(RemoteError, match="68,719,476,736 bytes"):
        b.fetch_agent("alice")


def test_long_turns_are_published_in_parts_of_bounded_size(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_memory.carry.published.FULL_BYTES", 3_000)
    a, b = hosts.open("a"), hosts.open("b")
    alice = a.agent("alice")
    for number in range(9):
        alice.say(f"{number} " * 300, max_tokens=2)
    assert a.publish(alice) == 9
    assert hosts.n_parts() == 9
    assert b.fetch_agent("alice").messages == alice.messages


def test_what_no_part_can_hold_is_said(hosts: Hosts) -> None:
    a = hosts.open("a")
    alice = a.agent("alice", system="x" * (5 << 20))
    with pytest.raises(RemoteError, match=r"cannot be published: .* Move it by agent\.export"):
        a.publish(alice)
    assert hosts.n_parts() == 0
