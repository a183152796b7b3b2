"""Whatever hosts do in whatever order: published turns arrive, one host at a time publishes, nothing is lost."""

from __future__ import annotations

import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory import Agent, AgentMovedError, Config, EchoRunner, Memory, UnknownAgentError

KINDS = ["say", "say", "publish", "publish", "fetch", "rewind", "restart", "checkpoint"]
STEPS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(KINDS)), max_size=30)
_texts = itertools.count()


@define
class Host:
    """One host, and what its agent should be: ``turns`` None where it has none."""

    folder: Path
    config: Config
    memory: Memory = field(init=False)
    turns: list[str] | None = None
    clean: list[str] | None = None  #: its turns when it last published or fetched
    labels: dict[str, list[str]] = field(factory=dict)  #: of its checkpoints -> the turns at that moment

    def open(self) -> None:
        self.memory = Memory(EchoRunner(), self.folder, config=self.config)

    @property
    def agent(self) -> Agent:
        return self.memory.agent("ann")

    def check(self) -> None:
        if self.turns is not None:
            assert said(self.agent) == self.turns
            for label, turns in self.labels.items():
                assert said(self.agent.at(label)) == turns


def said(agent: Agent) -> list[str]:
    return [message.content for message in agent.messages if message.role == "user"]


@define
class World:
    """All hosts, and what is published."""

    hosts: list[Host]
    published: list[str] | None = None
    labels: dict[str, list[str]] = field(factory=dict)  #: that are published
    ever: set[str] = field(factory=set)  #: turns that were published, also those that were taken back
    holder: Host | None = None

    def say(self, host: Host) -> None:
        if host.turns is None and self.published is None:
            host.turns = []
        if host.turns is not None:
            host.turns.append(f"text {next(_texts)}")
            assert host.agent.say(host.turns[-1]).text == host.turns[-1]

    def publish(self, host: Host) -> None:
        if host.turns is None:
            return
        try:
            assert host.memory.publish("ann") == len(host.turns)
        except AgentMovedError:
            assert self.holder is not host
            return
        if self.holder in (None, host):
            self.published, self.holder, host.clean = list(host.turns), host, list(host.turns)
            self.labels = dict(host.labels)
            self.ever |= {*host.turns}
        else:
            assert host.turns == host.clean  # nothing new: it was not asked

    def fetch(self, host: Host) -> None:
        if self.published is None:
            with pytest.raises(UnknownAgentError):
                host.memory.fetch_agent("ann")
            return
        agent, before = host.memory.fetch_agent("ann"), host.turns or []
        is_ahead = before[: len(self.published)] == self.published
        if is_ahead and (host is self.holder or before == self.published or not self.ever.issuperset(before)):
            assert said(agent) == before
        else:  # also where it had turns that the other host has taken back
            assert said(agent) == self.published
            if self.published[: len(before)] != before:
                assert before in [said(agent.at(version)) for version in agent.history()]
            host.turns = list(self.published)
        host.clean = list(self.published)
        host.labels = {**self.labels, **host.labels}
        self.holder = host

    def checkpoint(self, host: Host) -> None:
        if host.turns is not None:
            label = f"label {next(_texts)}"
            host.agent.checkpoint(label)
            host.labels[label] = list(host.turns)

    def rewind(self, host: Host) -> None:
        if host.turns:
            host.agent.rewind(1)
            host.turns.pop()

    def restart(self, host: Host) -> None:
        host.memory.close()
        host.open()


def run(steps: list[tuple[int, str]]) -> None:
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        config = Config(remote=f"file://{root}/share", remote_key=b"k" * 32)
        hosts = [Host(Path(root) / str(number), config) for number in range(3)]
        for host in hosts:
            host.open()
            stack.callback(lambda host=host: host.memory.close())
        world = World(hosts)
        for number, step in steps:
            getattr(world, step)(hosts[number])
            hosts[number].check()
        for host in hosts:
            host.check()
        if world.published is not None:
            world.fetch(hosts[0])


@settings(max_examples=12, deadline=None)
@given(STEPS)
def test_hosts_in_any_order(steps: list[tuple[int, str]]) -> None:
    run(steps)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(STEPS)
def test_hosts_in_many_orders(steps: list[tuple[int, str]]) -> None:
    run(steps)
