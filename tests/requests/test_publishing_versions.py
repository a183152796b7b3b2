"""Versions of an agent move with its published log: history, labels and what a rewind left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Agent, AgentMovedError, Config, EchoRunner, Memory, RemoteError
from agent_memory.carry import published_versions
from agent_memory.log.carried import Intake
from agent_memory.requests.publishing import Publishing
from tests.requests.test_publishing import KEY, SYSTEM, Hosts

#: What a part's header has in the releases that know no versions: they refuse any other.
OLDER_HEADER = {
    "agent", "number", "before", "kind", "id", "epoch", "holder", "host", "at", "keep", "n_turns", "state", "told",
    "turns",
}  # fmt: skip


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(stack, tmp_path)


def objects(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "share/v1/log").rglob("versions-*"))


def lived(agent: Agent, publish: Any = lambda: None) -> None:
    """A past with a label, turns that were taken back, and a compaction."""
    for text in ("one", "two"):
        agent.say(text)
        publish()
    agent.checkpoint("two said")
    agent.say("three")
    publish()
    agent.rewind()
    agent.say("other")
    agent.say("more")
    agent.rewind(2)
    agent.say("last")
    agent.compact(keep_turns=1, summary="what was said")
    agent.say("after")


def past(agent: Agent) -> list[Any]:
    return [(version, agent.at(version).messages, agent.at(version).n_tokens) for version in agent.history()]


@pytest.mark.parametrize("is_often", [True, False], ids=["published after each turn", "published once"])
def test_history_checkpoints_and_labels_move(hosts: Hosts, is_often: bool) -> None:
    a, b = hosts.open("a"), hosts.open("b")
    alice = a.agent("alice", system=SYSTEM)
    lived(alice, (lambda: a.publish(alice)) if is_often else lambda: None)
    a.publish(alice)
    there = b.fetch_agent("alice")
    assert there.messages == alice.messages
    assert past(there) == past(alice)
    assert len(past(there)) == 4
    there.rewind(to="two said")
    assert [m.content for m in there.messages if m.role == "user"] == ["one", "two"]
    assert there.say("on").text == "on"
    b.publish(there)
    b.close()
    again = hosts.open("b")
    assert past(again.agent("alice"))[:4] == past(alice)
    assert again.verify().ok
    back = a.fetch_agent("alice")
    assert back.messages == again.agent("alice").messages
    assert past(back) == past(again.agent("alice"))
    assert a.verify().ok


def test_versions_that_did_not_change_are_not_written_again(hosts: Hosts, tmp_path: Path) -> None:
    a = hosts.open("a")
    alice = a.agent("alice")
    alice.say("one")
    a.publish(alice)
    assert objects(tmp_path) == []
    alice.checkpoint("first")
    assert a.publish(alice) == 1
    assert (len(objects(tmp_path)), hosts.n_parts()) == (1, 2)
    alice.say("two")
    a.publish(alice)
    assert a.publish(alice) == 2
    assert (len(objects(tmp_path)), hosts.n_parts()) == (1, 3)
    a.close()
    again = hosts.open("a")
    assert again.publish("alice") == 2
    again.agent("alice").checkpoint("first")  # the label moves
    again.publish("alice")
    assert (len(objects(tmp_path)), hosts.n_parts()) == (2, 4)
    [version] = hosts.open("b").fetch_agent("alice").history()
    assert (version.label, version.n_turns) == ("first", 2)


def test_turns_that_parts_have_are_not_in_the_versions_object(hosts: Hosts, tmp_path: Path) -> None:
    """Also after a restart, and also of versions that an earlier object had."""
    a = hosts.open("a")
    alice = a.agent("alice")
    for number in range(3):
        alice.say(f"{number} " * 3_000)
    a.publish(alice)
    alice.rewind(2)
    alice.say("short")
    a.publish(alice)
    a.close()
    again = hosts.open("a")
    again.agent("alice").checkpoint("label")
    again.publish("alice")
    assert [file.stat().st_size < 3_000 for file in objects(tmp_path)] == [True, True]
    there = hosts.open("b").fetch_agent("alice")
    assert past(there) == past(again.agent("alice"))


def test_a_prune_is_published(hosts: Hosts) -> None:
    a = hosts.open("a")
    lived(a.agent("alice"))
    a.publish("alice")
    a.agent("alice").prune(checkpoints=True)
    a.publish("alice")
    assert a.fetch_agent("alice").history() == []  # it holds the agent: nothing comes back
    assert hosts.open("b").fetch_agent("alice").history() == []


def test_versions_of_two_hosts_are_joined_and_none_is_lost(hosts: Hosts) -> None:
    """The host that comes back has a version, a label and a number that the other one gave too."""
    a, b = hosts.open("a"), hosts.open("b")
    alice = a.agent("alice", system=SYSTEM)
    alice.say("one")
    a.publish(alice)
    there = b.fetch_agent("alice")
    there.checkpoint("label")
    there.say("of b")
    b.publish(there)
    alice.say("of a")
    alice.checkpoint("label")
    alice.checkpoint("of a alone")
    back = a.fetch_agent("alice")
    said = [
        (version.label, [m.content for m in back.at(version).messages if m.role == "user"])
        for version in back.history()
    ]
    # the turn that nobody published is the checkpoints' own: no version of its own was needed
    assert said == [("label", ["one"]), ("of a alone", ["one", "of a"]), (None, ["one", "of a"])]
    assert [version.number for version in back.history()] == [1, 2, 3]
    back.rewind(to="label")  # the published one
    assert [m.content for m in back.messages if m.role == "user"] == ["one"]
    a.publish(back)
    assert past(b.fetch_agent("alice")) == past(back)
    for memory in (a, b):
        assert memory.verify().ok
    told = past(back)
    a.close()
    assert past(hosts.open("a").agent("alice")) == told


def test_the_second_writer_of_versions_is_refused_by_name_and_number(hosts: Hosts) -> None:
    a, b = hosts.open("a"), hosts.open("b")
    alice = a.agent("alice")
    alice.say("one")
    a.publish(alice)
    b.fetch_agent("alice")
    alice.checkpoint("mine")
    with pytest.raises(AgentMovedError, match=r"'alice'.* part 2 "):
        a.publish(alice)
    b.fetch_agent("alice")
    assert hosts.open("c").fetch_agent("alice").history() == []


def test_a_missing_damaged_or_exchanged_versions_object_is_said_and_nothing_is_taken(
    hosts: Hosts, tmp_path: Path
) -> None:
    a = hosts.open("a")
    for name in ("alice", "bob"):
        a.agent(name).say(name)
        a.agent(name).checkpoint("label")
        a.publish(name)
    n_parts, b = hosts.n_parts(), hosts.open("b")
    files = objects(tmp_path)
    bodies = [file.read_bytes() for file in files]
    for file, body, other in zip(files, bodies, bodies[::-1], strict=True):
        for wrong in (body[:-1], body[:60] + bytes([body[60] ^ 1]) + body[61:], other, b""):
            file.write_bytes(wrong)
            with pytest.raises(RemoteError, match="damaged or forged|versions"):
                [b.fetch_agent(name) for name in ("alice", "bob")]
        file.unlink()
        with pytest.raises(RemoteError, match="are gone"):
            [b.fetch_agent(name) for name in ("alice", "bob")]
        file.write_bytes(body)
    assert hosts.n_parts() <= n_parts + 1  # at most the other agent was taken
    b.fetch_agent("alice").rewind(to="label")


def test_labels_and_texts_of_versions_are_nowhere_in_the_bucket(hosts: Hosts, tmp_path: Path) -> None:
    a = hosts.open("a")
    agent = a.agent("alice-the-agent", system=SYSTEM)
    agent.say("a very private sentence")
    agent.checkpoint("obsidian-label")
    agent.rewind()
    a.publish(agent)
    for file in (tmp_path / "share").rglob("*"):
        assert "alice" not in file.name
        assert "obsidian" not in file.name
        for text in (b"alice-the-agent", b"private", b"obsidian", b"rewind"):
            assert not file.is_file() or text not in file.read_bytes()


def test_what_is_too_large_or_too_much_stays_and_it_is_said(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(published_versions, "MAX_OWN_BYTES", 9_000)
    a = hosts.open("a")
    alice = a.agent("alice")
    for text in ("large " * 2_000, "small"):
        alice.say(text)
        alice.rewind()  # never published
    assert a.publish(alice) == 0
    assert "oldest 1 versions" in caplog.text
    [version] = hosts.open("b").fetch_agent("alice").history()
    assert version.number == 2
    monkeypatch.setattr("agent_memory.requests.publishing.MAX_VERSIONS", 1)
    a.fetch_agent("alice").checkpoint("newest")
    a.publish(alice)
    assert [version.label for version in hosts.open("c").fetch_agent("alice").history()] == ["newest"]


def test_an_older_release_reads_the_turns_and_passes_the_versions_on(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows the names in a header, refuses others, and takes no notice of what ``told`` has beside what it needs."""
    a, old = hosts.open("a"), hosts.open("old")
    alice = a.agent("alice", system=SYSTEM)
    lived(alice)
    a.publish(alice)
    remote = a._asking.publishing._remote
    body = remote.bucket.get(remote.names.log("alice", 1))
    from agent_memory.remote.objects import read_object

    header = read_object(remote.names.log("alice", 1), remote.keys, body or b"").header
    assert set(header) == OLDER_HEADER
    with monkeypatch.context() as patch:  # as the older release: it neither reads nor tells of versions
        terms = old._asking.publishing._terms()
        told = Intake(terms).agent(dict(header["told"]))
        assert told["name"] == "alice"
        put, read_on = Publishing._put, Publishing._read_on

        def blind(self: Publishing, name: str, replay: Any) -> None:
            read_on(self, name, replay)
            replay.versions = None

        def silent(self: Publishing, part: Any, turns: Any) -> str | None:
            if part.kind == "turns":
                part.told.pop("versions")
            else:  # it passes on what the newest part told
                part.told["versions"] = header["told"]["versions"]
            return put(self, part, turns)

        patch.setattr(Publishing, "_read_on", blind)
        patch.setattr(Publishing, "_put", silent)
        there = old.fetch_agent("alice")
        assert there.messages == alice.messages
        assert there.history() == []
        there.say("of the older release")
        old.publish(there)
    new = hosts.open("new").fetch_agent("alice")
    assert new.messages == there.messages
    assert past(new) == past(alice)
    new.rewind(to="two said")


def test_a_log_of_an_older_release_is_read(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    a = hosts.open("a")
    put = Publishing._put

    def silent(self: Publishing, part: Any, turns: Any) -> str | None:
        part.told.pop("versions")
        return put(self, part, turns)

    with monkeypatch.context() as patch:
        patch.setattr(Publishing, "_put", silent)
        lived(a.agent("alice"))
        a.publish("alice")
    assert hosts.open("b").fetch_agent("alice").history() == []
    with Memory(EchoRunner(), ":memory:", config=Config(remote=hosts.url, remote_key=KEY)) as c:
        assert c.fetch_agent("alice").say("on").text == "on"
