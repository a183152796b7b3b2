"""What of each agent is in which tier, as ``AgentInfo`` says it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from agent_memory import Config, EchoRunner, Memory, open_store

SYSTEM = "Be brief. " * 20
CONFIG = Config(chunk_tokens=16, prefill_tokens=16, warm_bytes=1 << 24)


def opened(path: Path | str) -> Memory:
    return Memory(EchoRunner(), path, config=CONFIG)


def test_each_tier_says_what_of_the_log_it_holds(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        assert (dict(agent.info.tier_tokens), dict(agent.info.tier_bytes)) == ({}, {})
        agent.say("one")
        memory.flush()
        n_kv, n_hot = agent._log.n_kv, memory.stats().hot_bytes
        info = agent.info
        assert dict(info.tier_tokens) == {"hot": n_kv, "cold": n_kv}
        files = sum(file.stat().st_size for file in tmp_path.glob("kv/*/*"))
        assert dict(info.tier_bytes) == {"hot": n_hot, "cold": files}
        memory.evict(to="warm")
        info = agent.info
        assert dict(info.tier_tokens) == {"warm": n_kv, "cold": n_kv}
        assert info.tier_bytes["warm"] == memory.stats().warm_bytes
        memory.evict()
        assert dict(agent.info.tier_tokens) == {"cold": n_kv}
        assert agent.info == info, "figures are no part of equality"


def test_figures_are_those_of_the_moment_at_which_they_are_first_read(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("one")
        memory.flush()
        info, later = agent.info, agent.info
        assert list(info.tier_tokens) == ["hot", "cold"]
        memory.evict()
        assert list(info.tier_tokens) == ["hot", "cold"]
        assert list(agent.info.tier_tokens) == ["cold"]
        copy = pickle.loads(pickle.dumps(info))
        assert dict(copy.tier_tokens) == dict(info.tier_tokens)
    assert dict(later.tier_tokens) == {}, "read after close()"


def test_bytes_that_agents_share_count_in_full_for_each(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("one")
        fork = agent.fork("b")
        temporary = agent.fork("t", temporary=True)
        memory.flush()
        found = {info.name: info for info in memory.agents()}
        assert dict(found["b"].tier_bytes) == dict(found["a"].tier_bytes) == dict(fork.info.tier_bytes)
        assert dict(temporary.info.tier_tokens) == {"hot": agent._log.n_kv}
        fork.say("two")
        memory.flush()
        assert fork.info.tier_bytes["cold"] > agent.info.tier_bytes["cold"]
        assert fork.info.tier_tokens["hot"] == fork._log.n_kv


def test_no_tier_counts_more_than_the_log_after_a_rewind(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("one")
        agent.say("two " * 30)
        memory.flush()
        agent.rewind()
        assert set(agent.info.tier_tokens) == {"hot", "cold"}
        assert max(agent.info.tier_tokens.values()) <= agent.n_tokens
        view = agent.at(agent.history()[0])
        assert dict(view.info.tier_tokens) == {}


def test_a_view_of_a_store_says_what_is_on_disk(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("one")
        memory.agent("b")
        memory.flush()
        cold = {"cold": agent.info.tier_tokens["cold"]}
        with open_store(tmp_path) as view:
            found = {info.name: info for info in view.agents()}
            assert dict(found["a"].tier_tokens) == dict(view.show("a").info.tier_tokens) == cold
            assert found["a"].tier_bytes["cold"] == agent.info.tier_bytes["cold"]
            assert dict(found["b"].tier_tokens) == {}
            unread = view.agents()
        assert dict(unread[0].tier_tokens) == {}, "read after close()"
        with Memory(EchoRunner(), tmp_path, config=CONFIG, read_only=True) as reader:
            assert dict(reader.agent("a").info.tier_tokens) == cold


def test_a_list_of_agents_reads_no_log_and_looks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent_memory.reader import view

    with opened(tmp_path) as memory:
        for number in range(5):
            memory.agent(f"a{number}", system=SYSTEM).say("one")
        memory.flush()
    looks: list[int] = []
    look = view.StoreView.uses
    monkeypatch.setattr(view.StoreView, "uses", lambda *told: looks.append(1) or look(*told))
    with opened(tmp_path) as memory:
        agents = memory.agents()
        assert looks == []
        assert memory._asking.agents.opened == []
        assert [list(info.tier_bytes) for info in agents] == [["cold"]] * 5
        assert looks == [1]
        assert "hot</th>" in agents._repr_html_()  # type: ignore[attr-defined]
        assert looks == [1]
