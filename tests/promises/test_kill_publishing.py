"""Killed while it publishes: what was acknowledged is published, the store is whole, the agent goes on elsewhere."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Agent, Config, EchoRunner, Memory, UnknownAgentError
from tests.parts.killing import killed

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from agent_memory import Config, EchoRunner, Memory
folder, url = sys.argv[1:]
with Memory(EchoRunner(), folder, config=Config(remote=url, remote_key=b"k" * 32)) as memory:
    agent = memory.agent("alice", system="Answer with what you heard. " * 60)
    if agent.messages[-1].content == "taken back":
        agent.rewind()  # killed between the two
    memory.publish(agent)
    print("open", flush=True)
    while True:
        text = f"turn {agent.info.n_turns}"
        assert agent.say(text).text == text
        agent.checkpoint(f"after {text}")
        agent.say("taken back")
        agent.rewind()
        print(memory.publish(agent), flush=True)
"""


def test_kills_while_publishing_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    rng, url, n_acknowledged = random.Random(7), f"file://{tmp_path}/share", 0
    for number in range(100):
        folder = tmp_path / "store"
        lines = killed(PROGRAM, str(folder), url, after_s=rng.uniform(0, 0.4))
        n_acknowledged = max([n_acknowledged, *map(int, lines)])
        if number % 10 == 9:  # its own store is whole, and what it published is what it has, or less by one turn
            with Memory(EchoRunner(), folder, config=Config(remote=url, remote_key=b"k" * 32)) as memory:
                assert memory.verify().damaged == ()
                assert memory.agent("alice").info.n_turns >= n_acknowledged
                n_acknowledged = memory.publish("alice")
    with Memory(EchoRunner(), tmp_path / "other", config=Config(remote=url, remote_key=b"k" * 32)) as other:
        alice = other.fetch_agent("alice")
        labels = {version.label: version.n_turns for version in alice.history() if version.label is not None}
        for number in range(n_acknowledged):  # every checkpoint that a publication acknowledged, at its turn
            if (label := f"after turn {number}") in labels:  # one killed between turn and checkpoint has none
                assert alice.at(label).messages[-1].content == f"turn {number}"
                assert labels[label] == number + 1
        assert len(labels) >= n_acknowledged // 2
        texts = [message.content for message in alice.messages if message.role == "assistant"]
        assert texts == [f"turn {number}" for number in range(len(texts))]
        assert len(texts) == n_acknowledged
        assert alice.say("on").text == "on"
        assert other.publish(alice) == n_acknowledged + 1
        with pytest.raises(UnknownAgentError):
            other.fetch_agent("bob")


def test_kills_of_hosts_that_take_turns_lose_nothing(tmp_path: Path) -> None:
    """Each host is killed, and the next one takes the agent over, on another disk."""
    rng, url, n_acknowledged = random.Random(11), f"file://{tmp_path}/share", 0
    program = PROGRAM.replace(
        'agent = memory.agent("alice"',
        'agent = memory.fetch_agent("alice") if sys.argv[1][-1] != "0" else memory.agent("alice"',
    )
    for number in range(20):
        lines = killed(program, str(tmp_path / f"store{number + 10 * (number > 0)}x{int(number > 0)}"), url,
                       after_s=rng.uniform(0.05, 0.4))  # fmt: skip
        if lines:
            assert int(lines[0]) > n_acknowledged
            n_acknowledged = int(lines[-1])
    assert n_acknowledged
    with Memory(EchoRunner(), tmp_path / "other", config=Config(remote=url, remote_key=b"k" * 32)) as other:
        assert other.fetch_agent("alice").info.n_turns >= n_acknowledged


TAKER = """
import os
import sys
from agent_memory import Config, EchoRunner, Memory
from agent_memory.log.files import Files
folder, url, at = sys.argv[1:]
n_commits, real = -1, Files.commit
def commit(self, db):
    global n_commits
    n_commits += n_commits >= 0
    if n_commits > int(at):
        os._exit(9)
    real(self, db)
Files.commit = commit
with Memory(EchoRunner(), folder, config=Config(remote=url, remote_key=b"k" * 32)) as memory:
    n_commits = 0
    memory.fetch_agent("alice")
    print("fetched", flush=True)
"""


@pytest.mark.parametrize("has_some", [False, True], ids=["new here", "older here"])
def test_a_host_that_dies_before_any_commit_of_a_taking_takes_turns_and_versions_the_next_time(
    tmp_path: Path, has_some: bool
) -> None:
    def opened(folder: Path, share: Path) -> Memory:
        return Memory(EchoRunner(), folder, config=Config(remote=f"file://{share}", remote_key=b"k" * 32))

    def past(agent: Agent) -> list[Any]:
        told = [(v.label, v.reason, v.n_turns, [m.content for m in agent.at(v).messages]) for v in agent.history()]
        return [*sorted(told, key=repr), [m.content for m in agent.messages]]

    share, before = tmp_path / "share", tmp_path / "before"
    with opened(tmp_path / "a", share) as memory:
        alice = memory.agent("alice", system="Answer.")
        alice.say("one")
        memory.publish(alice)
        if has_some:
            with opened(before, share) as other:
                assert other.fetch_agent("alice").info.n_turns == 1
            alice = memory.fetch_agent("alice")
        alice.checkpoint("one said")
        alice.say("two")
        alice.rewind()
        alice.say("other")
        memory.publish(alice)
        wanted = past(alice)
    before.mkdir(exist_ok=True)
    at = 0
    while True:
        left = tmp_path / f"left {at}"
        shutil.copytree(before, left / "b")
        shutil.copytree(share, left / "share")
        done = subprocess.run(
            [sys.executable, "-c", TAKER, str(left / "b"), f"file://{left / 'share'}", str(at)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        with opened(left / "b", left / "share") as memory:
            assert past(memory.fetch_agent("alice")) == wanted
            assert memory.verify().ok
        if done.returncode == 0:
            break
        assert done.returncode == 9
        at += 1
    assert done.stdout == "fetched\n"
    assert at >= 3
