"""Agents as versioned state: forks, checkpoints, rewinds, and what they leave behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from agent_memory import (
    Agent,
    AgentDeletedError,
    ConfigError,
    EchoRunner,
    Memory,
    RequestError,
    UnsupportedParameterError,
)  # fmt: skip
from agent_memory.log.versions import Version

SYSTEM = "Answer with what you heard."


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(EchoRunner(), ":memory:") as opened:
        yield opened


def said(agent: Agent) -> list[str]:
    """What was said to an agent."""
    return [message.content for message in agent.messages if message.role == "user"]


def spoken(memory: Memory, *texts: str, name: str = "a", **how: Any) -> Agent:
    agent = memory.agent(name, system=SYSTEM, **how)
    for text in texts:
        agent.say(text)
    return agent


def shape(version: Version) -> tuple[Any, ...]:
    return version.number, version.n_turns, version.label, version.reason


def test_a_fork_goes_on_alone_with_all_that_its_parent_has(memory: Memory) -> None:
    agent = spoken(memory, "one", "two", keep_reasoning=True)
    fork = agent.fork("b")
    assert (fork.messages, fork.n_tokens, fork.tools) == (agent.messages, agent.n_tokens, agent.tools)
    usage = fork.say("three").usage
    assert (usage.tier, usage.cached_tokens) == ("hot", agent._log.n_kv)
    assert said(fork) == ["one", "two", "three"]
    assert said(agent) == ["one", "two"]
    assert agent.say("other").usage.cached_tokens >= usage.cached_tokens
    assert said(fork) == ["one", "two", "three"]
    assert fork._log.facts.keep_reasoning is True


def test_a_fork_can_be_taken_back_into_the_past_of_its_parent(memory: Memory) -> None:
    agent = spoken(memory, "one", "two", "three")
    fork = agent.fork("b")
    fork.rewind(2)
    assert (said(fork), said(agent)) == (["one"], ["one", "two", "three"])
    assert fork.info.n_turns == 1


def test_a_fork_begins_at_a_turn_a_checkpoint_or_a_version(memory: Memory) -> None:
    agent = spoken(memory, "one")
    agent.checkpoint("first")
    agent.say("two")
    agent.rewind()
    agent.say("other")
    [first, left] = agent.history()
    assert said(agent.fork("at a turn", at=1)) == ["one"]
    assert said(agent.fork("at none", at=0)) == []
    assert said(agent.fork("at a label", at="first")) == ["one"]
    assert said(agent.fork("at a version", at=left)) == ["one", "two"]
    assert said(agent.fork("at a checkpoint", at=first)) == ["one"]
    assert said(agent.fork("now")) == ["one", "other"]
    for at in (3, -1, "nothing", 1.5, True):
        with pytest.raises(UnsupportedParameterError):
            agent.fork("never", at=at)  # type: ignore[arg-type]
    assert "never" not in [info.name for info in memory.agents()]


def test_a_fork_takes_no_name_that_is_taken(memory: Memory) -> None:
    agent = spoken(memory, "one")
    memory.agent("b")
    for name in ("a", "b"):
        with pytest.raises(ConfigError, match=f"agent '{name}' exists already"):
            agent.fork(name)
    for bad in ("", 3, "\ud800"):
        with pytest.raises(ConfigError, match="non-empty str"):
            agent.fork(bad)  # type: ignore[arg-type]
    agent.fork("c").delete()
    assert said(agent.fork("c")) == ["one"]


def test_a_deleted_agent_has_no_fork(memory: Memory) -> None:
    agent = spoken(memory, "one")
    fork = agent.fork("b")
    view = agent.at(agent.checkpoint("c"))
    agent.delete()
    for use in (lambda: agent.fork("c"), agent.history, lambda: view.messages, lambda: view.fork("c")):
        with pytest.raises(AgentDeletedError):
            use()
    assert said(fork) == ["one"]
    assert fork.say("two").text == "two"


def test_the_checkpoints_on_its_way_come_along_with_a_fork(memory: Memory) -> None:
    agent = spoken(memory, "one")
    agent.checkpoint("first")
    agent.say("two")
    agent.checkpoint("second")
    fork = agent.fork("b", at=1)
    assert [version.label for version in fork.history()] == ["first"]
    fork.say("other")
    fork.rewind(to="first")
    assert said(fork) == ["one"]


def test_a_rewind_leaves_a_version_to_which_one_can_go_back(memory: Memory) -> None:
    agent = spoken(memory, "one", "two", "three")
    n_tokens = agent.n_tokens
    agent.rewind(2)
    agent.say("other")
    assert [shape(version) for version in agent.history()] == [(1, 3, None, "rewind")]
    agent.rewind(to=agent.history()[0])
    assert said(agent) == ["one", "two", "three"]
    assert agent.n_tokens == n_tokens
    assert [shape(version) for version in agent.history()] == [(1, 3, None, "rewind"), (2, 2, None, "rewind")]
    agent.rewind(to=agent.history()[1])
    assert said(agent) == ["one", "other"]
    assert len(agent.history()) == 2, "what is a version already is none again"


def test_a_checkpoint_is_gone_back_to_by_its_label(memory: Memory) -> None:
    agent = spoken(memory, "one")
    assert shape(agent.checkpoint("mark")) == (1, 1, "mark", "checkpoint")
    agent.say("two")
    agent.rewind(to="mark")
    assert said(agent) == ["one"]
    agent.say("three")
    agent.checkpoint("mark")
    agent.rewind(2)
    agent.rewind(to="mark")
    assert said(agent) == ["one", "three"]
    assert [version.label for version in agent.history()].count("mark") == 1
    for bad in ("", None, 3):
        with pytest.raises(UnsupportedParameterError):
            agent.checkpoint(bad)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedParameterError, match=r"no version 'other'.*labels \['mark'\]"):
        agent.rewind(to="other")


def test_a_view_shows_a_version_and_changes_nothing(memory: Memory) -> None:
    agent = spoken(memory, "one", "two")
    agent.rewind()
    view = agent.at(1)
    assert said(view) == ["one", "two"]
    assert view.info.n_turns == 2
    assert repr(view) == f"Agent('a' turns=2 tokens={view.n_tokens}, version 1, read-only)"
    for use in (
        lambda: view.say("no"),
        lambda: view.stream("no"),
        lambda: view.rewind(),
        lambda: view.checkpoint("no"),
        lambda: view.pin(),
        lambda: view.delete(),
        lambda: view.prune(),
        lambda: view.transaction(),
        lambda: memory.generate("no", agent=view),
        lambda: memory.delete(view),
    ):
        with pytest.raises(UnsupportedParameterError, match="read-only view of version 1 of agent 'a'"):
            use()
    assert said(view.fork("b")) == ["one", "two"]
    agent.say("other")
    assert said(view) == ["one", "two"]


def test_a_transaction_that_raises_leaves_the_agent_as_it_was(memory: Memory) -> None:
    agent = spoken(memory, "one")
    before = agent.messages, agent.n_tokens

    def fail() -> None:
        with agent.transaction():
            agent.say("two")
            agent.rewind(2)
            agent.say("three")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert (agent.messages, agent.n_tokens) == before
    assert agent.history()[-1].reason == "rolled_back"
    with agent.transaction():
        agent.say("kept")
    assert said(agent) == ["one", "kept"]
    usage = agent.say("more").usage
    assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens


def test_a_transaction_that_did_nothing_leaves_no_version(memory: Memory) -> None:
    agent = spoken(memory, "one")
    with pytest.raises(KeyError), agent.transaction():
        raise KeyError
    assert agent.history() == []


def test_a_turn_that_runs_when_a_transaction_fails_is_cancelled() -> None:
    with Memory(EchoRunner(delay_s=0.002), ":memory:") as memory:
        agent = spoken(memory, "one")
        before = agent.messages
        with contextlib.suppress(KeyError), agent.transaction():
            handle = agent.stream("word " * 400, max_tokens=400)
            raise KeyError
        assert handle.state == "cancelled"
        assert agent.messages == before


def test_a_busy_agent_is_forked_at_its_last_finished_turn() -> None:
    with Memory(EchoRunner(delay_s=0.002), ":memory:") as memory:
        agent = spoken(memory, "one")
        with agent.stream("word " * 200, max_tokens=200) as handle:
            deltas = iter(handle)
            next(deltas)
            fork = agent.fork("b")
            assert said(fork) == ["one"]
            with pytest.raises(RequestError, match="while a turn of it runs"):
                agent.rewind()
            assert agent.checkpoint("busy").n_turns == 1
            assert fork.say("two").text == "two"
            handle.result()
        assert len(said(agent)) == 2


def test_only_the_newest_versions_are_kept_and_every_checkpoint() -> None:
    from agent_memory import Config

    with Memory(EchoRunner(), ":memory:", config=Config(keep_versions=2)) as memory:
        agent = spoken(memory, "one")
        agent.checkpoint("mark")
        for number in range(4):
            agent.say(f"left {number}")
            agent.rewind()
        assert [shape(version)[:1] + shape(version)[3:] for version in agent.history()] == [
            (1, "checkpoint"), (4, "rewind"), (5, "rewind"),
        ]  # fmt: skip
        assert agent.prune(keep=1) == 1
        assert [version.number for version in agent.history()] == [1, 5]
        assert agent.prune() == 1
        assert agent.prune(checkpoints=True) == 1
        assert agent.history() == []


def test_a_temporary_fork_is_an_agent_until_the_memory_closes(tmp_path: Any) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        agent = spoken(memory, "one")
        fork = agent.fork("t", temporary=True)
        assert fork.say("two").text == "two"
        fork.checkpoint("mark")
        fork.say("three")
        fork.rewind(to="mark")
        kept = fork.fork("kept")
        assert said(memory.agent("t")) == ["one", "two"]
        with pytest.raises(ConfigError, match="exists already"):
            agent.fork("t")
        memory.flush()
    with Memory(EchoRunner(), tmp_path) as memory:
        assert sorted(info.name for info in memory.agents()) == ["a", "kept"]
        assert said(memory.agent("kept")) == ["one", "two"]
    assert kept.name == "kept"
