"""Versions of agents on disk: what a fork, a rewind and a checkpoint leave there, and what is gone after them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Agent, Config, EchoRunner, Memory, UnsupportedParameterError, open_store
from agent_memory.log import branches
from agent_memory.log.files import MANIFEST
from agent_memory.log.turn_rows import checked_turn
from tests.parts.scripted import scripted

SYSTEM = "Answer with what you heard. " * 8
CONFIG = Config(chunk_tokens=16, prefill_tokens=16)


def opened(path: Path, **how: Any) -> Memory:
    return Memory(EchoRunner(layers=1, heads=1, dim=8), path, config=CONFIG, **how)


def said(agent: Agent) -> list[str]:
    return [message.content for message in agent.messages if message.role == "user"]


def bytes_of(path: Path) -> bytes:
    """Everything that is in a store's folder."""
    return b"".join(file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file())


def ids_of(memory: Memory, text: str) -> bytes:
    """A text's ids as segments and logs hold them."""
    return b"".join(id.to_bytes(4, "little") for id in memory._runner.tokenizer.encode(text))


def n_rows(path: Path, table: str) -> int:
    db = sqlite3.connect(f"file:{path / MANIFEST}?mode=ro", uri=True)
    try:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        db.close()


def test_forks_and_versions_are_there_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM, keep_reasoning=True)
        for text in ("one", "two", "three"):
            agent.say(text)
        agent.checkpoint("three said")
        agent.rewind(2)
        agent.say("other")
        fork = agent.fork("b")
        fork.say("more")
        agent.fork("c", at="three said")
        wanted = {name: memory.agent(name).messages for name in "abc"}
        tokens = {name: memory.agent(name).n_tokens for name in "abc"}
        history = agent.history()
    assert {info.name: (info.n_turns, info.n_tokens) for info in open_store(tmp_path).agents()} == {
        "a": (2, tokens["a"]), "b": (3, tokens["b"]), "c": (3, tokens["c"]),
    }  # fmt: skip
    with opened(tmp_path) as memory:
        assert {name: memory.agent(name).messages for name in "abc"} == wanted
        assert {name: memory.agent(name).n_tokens for name in "abc"} == tokens
        agent = memory.agent("a")
        assert agent.history() == history
        assert memory.agent("b")._log.facts.keep_reasoning is True
        assert said(agent.at("three said")) == ["one", "two", "three"]
        agent.rewind(to="three said")
        memory.agent("b").rewind(3)
        assert said(memory.agent("b")) == []
        assert memory.verify().ok
    with opened(tmp_path) as memory:
        assert said(memory.agent("a")) == ["one", "two", "three"]
        assert memory.agent("a").checkpoint("again").number == len(history) + 2
        assert said(memory.agent("b").at(memory.agent("b").history()[-1])) == ["one", "other", "more"]


def test_a_fork_and_a_version_start_from_stored_kv_in_another_process(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        for text in ("one", "two", "three"):
            agent.say(text)
        agent.fork("b")
        agent.rewind(2)
        agent.say("other")
        n_kv = agent._log.kept[0].state.turns[-1].n_kv
    with opened(tmp_path) as memory:
        fork = memory.agent("b").say("next").usage
        assert (fork.tier, fork.cached_tokens) == ("cold", n_kv)
        agent = memory.agent("a")
        agent.rewind(to=agent.history()[0])
        again = agent.say("back").usage
        assert (again.exactness, again.cached_tokens >= n_kv) == ("exact", True)
        assert memory.verify().ok


def test_a_fork_copies_no_turn_and_no_kv(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        for number in range(6):
            agent.say(f"turn {number}")
        memory.flush()
        rows, before = n_rows(tmp_path, "turns"), memory.stats()
        hot = memory.stats().hot_bytes
        forks = [agent.fork(f"fork {number}") for number in range(20)]
        memory.flush()
        after = memory.stats()
        assert (n_rows(tmp_path, "turns"), after.bytes_written) == (rows, before.bytes_written)
        assert (after.hot_bytes, after.segments) == (hot, before.segments)
        forks[0].say("own")
        memory.flush()
        assert n_rows(tmp_path, "turns") == rows + 1
        assert forks[0].say("and").usage.cached_tokens > 100


def test_a_deleted_agent_leaves_its_forks_whole_and_nothing_that_it_said_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("shared words")
        fork = agent.fork("b")
        agent.say("private secret one")
        agent.rewind()
        agent.say("private secret two")
        agent.checkpoint("private label")
        agent.say("private secret three")
        n_kv = fork._log.n_kv
        memory.evict()
        assert agent.delete()
        private = [b"private", *(ids_of(memory, f"private secret {n}") for n in ("one", "two", "three"))]
        left = bytes_of(tmp_path)
        assert [text for text in private if text in left] == []
        assert ids_of(memory, "shared words") in left
        usage = fork.say("next").usage
        assert usage.cached_tokens >= n_kv - n_kv % 16
        assert said(fork) == ["shared words", "next"]
        assert memory.verify().ok
        fork.delete()
        memory.flush()
        assert ids_of(memory, "shared words") not in bytes_of(tmp_path)
    assert [n_rows(tmp_path, table) for table in ("agents", "turns", "branches", "versions", "lineages")] == [0] * 5


def test_a_fork_of_a_deleted_agent_is_whole_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("one")
        agent.say("two")
        n_kv = agent._log.n_kv
        agent.fork("b")
    with opened(tmp_path) as memory:
        memory.delete("a")
        assert memory.verify().ok
    with opened(tmp_path) as memory:
        fork = memory.agent("b")
        assert said(fork) == ["one", "two"]
        assert fork.say("three").usage.cached_tokens >= n_kv - n_kv % 16


def test_what_is_pruned_is_gone_and_the_rest_is_reused(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("kept words")
        agent.checkpoint("mark")
        agent.say("private secret one")
        agent.rewind()
        agent.say("private secret two")
        agent.rewind(to="mark")
        agent.say("last")
        gone = [b"private", ids_of(memory, "private secret one"), ids_of(memory, "private secret two")]
        memory.flush()
        assert [text in bytes_of(tmp_path) for text in gone] == [True] * 3
        n_kv = agent._log.n_kv
        memory.evict()
        assert agent.prune() == 2
        memory.flush()
        assert [text in bytes_of(tmp_path) for text in gone] == [False] * 3
        assert [version.label for version in agent.history()] == ["mark"]
        usage = agent.say("next").usage
        assert usage.cached_tokens >= n_kv - n_kv % 16
        assert memory.verify().ok
    with opened(tmp_path) as memory:
        assert said(memory.agent("a")) == ["kept words", "last", "next"]


def test_what_a_list_replaced_is_a_version_and_gone_once_pruned(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a")
        for text in ("one", "private secret", "three"):
            agent.say(text)
        history = [{"role": m.role, "content": m.content} for m in agent.messages[:2]]
        memory.generate([*history, {"role": "user", "content": "instead"}], agent="a")
        [version] = agent.history()
        assert (version.reason, version.n_turns) == ("replaced", 3)
        assert said(agent.at(version)) == ["one", "private secret", "three"]
        assert said(agent) == ["one", "instead"]
        assert agent.prune() == 1
        memory.flush()
        memory.evict()
        left = bytes_of(tmp_path)
        assert (b"private" in left, ids_of(memory, "private secret") in left) == (False, False)
        assert (said(agent), agent.info.n_turns) == (["one", "instead"], 2)
    with opened(tmp_path) as memory:
        assert said(memory.agent("a")) == ["one", "instead"]
        assert memory.verify().ok


def test_only_the_versions_that_are_kept_keep_their_words(tmp_path: Path) -> None:
    config = Config(chunk_tokens=16, prefill_tokens=16, keep_versions=1)
    with Memory(EchoRunner(layers=1, heads=1, dim=8), tmp_path, config=config) as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("kept words")
        for number in range(3):
            agent.say(f"private {number}")
            agent.rewind()
        memory.flush()
        left = bytes_of(tmp_path)
        assert [f"private {number}".encode() in left for number in range(3)] == [False, False, True]
        assert len(agent.history()) == 1


@pytest.mark.parametrize("keep", [0, 1])
def test_what_a_list_replaced_leaves_the_log_with_the_last_version_of_it(keep: int, tmp_path: Path) -> None:
    config = Config(chunk_tokens=16, prefill_tokens=16, keep_versions=keep)
    with Memory(EchoRunner(layers=1, heads=1, dim=8), tmp_path, config=config) as memory:
        agent = memory.agent("a")
        for text in ("one", "private secret", "three"):
            agent.say(text)
        history = [{"role": m.role, "content": m.content} for m in agent.messages[:2]]
        memory.generate([*history, {"role": "user", "content": "instead"}], agent="a")
        assert len(agent.history()) == keep
        for _ in range(2 * keep):  # the first version that takes the place of that one has it in its past
            agent.say("more")
            agent.rewind()
        memory.flush()
        memory.evict()
        assert (said(agent), agent.info.n_turns) == (["one", "instead"], 2)
        left = bytes_of(tmp_path)
        assert (b"private" in left, ids_of(memory, "private secret") in left) == (False, False)
    with opened(tmp_path) as memory:
        assert said(memory.agent("a")) == ["one", "instead"]
        assert memory.agent("a").say("and now").text == "and now"
        assert memory.verify().ok


def sliding(memory: Memory, n_turns: int, n_kept: int = 5) -> list[list[str]]:
    """Ask with the newest messages alone, so that each list replaces the agent's history; what was said each time."""
    history: list[dict[str, str]] = []
    seen = []
    for number in range(n_turns):
        history = [*history[1 - n_kept :], {"role": "user", "content": f"question {number}"}]
        reply = memory.generate(history, agent="a", max_tokens=20)
        history.append({"role": "assistant", "content": reply.text})
        seen.append(said(memory.agent("a")))
    return seen


def test_the_log_of_a_caller_that_replaces_its_list_each_turn_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds what its versions have and as much again; each version is what the agent was, also once read again."""
    config = Config(chunk_tokens=16, prefill_tokens=16, keep_versions=4)
    read: list[int] = []
    monkeypatch.setattr(branches, "checked_turn", lambda *row: read.append(1) or checked_turn(*row))
    with Memory(EchoRunner(layers=1, heads=1, dim=8), tmp_path, config=config) as memory:
        seen = sliding(memory, 60)
        agent = memory.agent("a")
        before = [said(agent.at(version)) for version in agent.history()]
        assert before == seen[-5:-1]
        numbers = [(version.number, version.n_turns) for version in agent.history()]
        memory.flush()
        most = 2 * 3 * 6  # a list is three turns; four versions and the agent, and one that is about to go
        assert agent.info.n_turns <= n_rows(tmp_path, "turns") <= most
    for name in ("a", "b"):
        with Memory(EchoRunner(layers=1, heads=1, dim=8), tmp_path, config=config) as memory:
            read.clear()
            agent = memory.agent(name)
            assert len(read) <= n_rows(tmp_path, "turns"), "a turn was read twice"
            assert said(agent) == seen[-1]
            history = memory.agent("a").history()
            assert [said(memory.agent("a").at(version)) for version in history] == before
            assert [(version.number, version.n_turns) for version in history] == numbers
            assert memory.verify().ok
            if name == "a":
                agent.at(history[0]).fork("old")
                assert said(memory.agent("old")) == before[0]
                agent.fork("b")


def test_what_is_held_of_a_version_is_good_after_its_log_was_written_anew(tmp_path: Path) -> None:
    config = Config(chunk_tokens=16, prefill_tokens=16, keep_versions=12)
    with Memory(EchoRunner(layers=1, heads=1, dim=8), tmp_path, config=config) as memory:
        seen = sliding(memory, 24)
        agent = memory.agent("a")
        held = agent.history()[-1]
        view, n_before = agent.at(held), held.n_turns
        fork = agent.fork("fork", at=held)
        sliding(memory, 8)
        [now] = [version for version in agent.history() if version.number == held.number]
        assert now.n_turns < n_before, "the log was not written anew"
        assert said(view) == said(fork) == seen[-2]
        assert said(view.fork("of the view")) == seen[-2]
        assert said(agent.at(held)) == seen[-2]
        agent.rewind(to=held)
        assert said(agent) == seen[-2]
    with opened(tmp_path) as memory:
        for name in ("a", "fork", "of the view"):
            assert said(memory.agent(name)) == seen[-2]
            assert memory.agent(name).say("and now").text == "and now"
        assert memory.verify().ok


def changed(memory: Memory, agent: Agent, change: str) -> int:
    """Change an agent three times, so that versions are dropped; return 0."""
    for number in range(3):
        if change == "compact":
            agent.compact(1)
        elif change == "replace":
            memory.generate([{"role": "user", "content": f"instead {number}"}], agent="a")
        else:
            agent.rewind()
            agent.say(f"then {number}")
    if change == "prune":
        agent.prune()
    return 0


@pytest.mark.parametrize("keep", [0, 1, 32])
@pytest.mark.parametrize("change", ["rewind", "replace", "prune", "compact"])
def test_what_a_failed_transaction_restores_is_on_disk_whatever_was_dropped_meanwhile(
    keep: int, change: str, tmp_path: Path
) -> None:
    config = Config(chunk_tokens=16, prefill_tokens=16, keep_versions=keep)
    with Memory(EchoRunner(layers=1, heads=1, dim=8), tmp_path, config=config) as memory:
        agent = memory.agent("a")
        for text in ("one", "two", "three"):
            agent.say(text)
        with pytest.raises(ZeroDivisionError), agent.transaction():
            1 / changed(memory, agent, change)
        assert said(agent) == ["one", "two", "three"]
    with opened(tmp_path) as memory:
        assert said(memory.agent("a")) == ["one", "two", "three"]
        assert memory.verify().ok
        assert memory.stats().damage == 0


def test_a_temporary_fork_never_reaches_the_disk(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("shared words")
        memory.flush()
        fork = agent.fork("t", temporary=True)
        fork.say("private secret")
        fork.checkpoint("private label")
        fork.rewind()
        memory.prefill("private prefix", agent=fork)
        memory.evict("t")
        memory.flush()
        left = bytes_of(tmp_path)
        words = (b"private", ids_of(memory, "private secret"), ids_of(memory, "private prefix"))
        assert [word in left for word in words] == [
            False, False, False,
        ]  # fmt: skip
        fork.say("private again")
        kept = fork.fork("kept")
        memory.flush()
        assert b"private again" in bytes_of(tmp_path)
        assert said(kept) == ["shared words", "private again"]
    with opened(tmp_path) as memory:
        assert said(memory.agent("kept")) == ["shared words", "private again"]
        assert memory.verify().ok


def test_a_damaged_row_of_a_version_is_told_and_takes_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a")
        agent.say("one")
        agent.checkpoint("first")
        agent.say("two")
        agent.checkpoint("second")
    db = sqlite3.connect(tmp_path / MANIFEST)
    db.execute("UPDATE versions SET n_turns = 0 WHERE number = 1")
    db.commit()
    db.close()
    with opened(tmp_path) as memory:
        damaged = memory.verify().damaged
        assert any("version 1" in line for line in damaged) or any("is damaged" in line for line in damaged)
        agent = memory.agent("a")
        assert said(agent) == ["one", "two"]
        assert [version.label for version in agent.history()] == ["second"]


def test_logs_of_branches_are_found_again_in_a_damaged_manifest(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a")
        for text in ("one", "two"):
            agent.say(text)
        agent.rewind()
        agent.say("other")
        agent.fork("b").say("more")
        agent.checkpoint("mark")
        history = agent.history()
    db = sqlite3.connect(tmp_path / MANIFEST)
    db.execute("PRAGMA writable_schema = ON")
    db.execute("DROP TABLE sides")
    db.commit()
    db.close()
    with opened(tmp_path) as memory:
        assert any("manifest is damaged" in line for line in memory.verify().damaged)
        assert said(memory.agent("a")) == ["one", "other"]
        assert said(memory.agent("b")) == ["one", "other", "more"]
        assert memory.agent("a").history() == history
        assert said(memory.agent("a").at(1)) == ["one", "two"]


def test_compaction_keeps_the_older_turns_in_history_through_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        for number in range(6):
            agent.say(f"turn {number}")
        agent.compact(2, "They counted.")
        agent.say("next")
        wanted = agent.messages
    with opened(tmp_path) as memory:
        agent = memory.agent("a")
        assert agent.messages == wanted
        [version] = agent.history()
        assert (version.reason, version.n_turns, agent.info.n_turns) == ("compacted", 6, 3)
        agent.rewind(to=version)
        usage = agent.say("back").usage
        assert usage.exactness == "exact"
        assert usage.computed_tokens < usage.cached_tokens


@pytest.mark.parametrize("is_hot", [True, False])
def test_forgotten_cards_are_gone_from_versions_and_forks(tmp_path: Path, is_hot: bool) -> None:
    with Memory(scripted("fine", "well", "so"), tmp_path, config=CONFIG) as memory:
        report = memory.context.remember("The password of the old gate is swordfish.")
        agent = memory.agent("a", recall=True)
        agent.say("What is the password of the old gate?")
        assert "swordfish" in agent.messages[0].recalled[0].text
        agent.checkpoint("mark")
        agent.say("later")
        fork = agent.fork("b")
        temporary = agent.fork("t", temporary=True)
        agent.rewind(2)
        memory.flush()
        if not is_hot:
            memory.evict()
        memory.context.forget(report.ids[0])
        for one in (fork, temporary, agent.at("mark"), agent.at(agent.history()[-1])):
            assert [card.text for m in one.messages for card in m.recalled] == ["- [forgotten]\n"], one
        memory.flush()
        left = bytes_of(tmp_path)
        assert (b"swordfish" in left, ids_of(memory, "swordfish") in left) == (False, False)
        assert fork.say("and now").usage.miss == "forgotten"
        assert memory.verify().ok


def test_a_fork_of_what_is_not_on_disk_has_turns_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a")
        agent.say("one")
        agent.say("two")
        temporary = agent.fork("t", temporary=True)
        agent.rewind()
        view = agent.at(1)
        agent.prune()
        view.fork("of a pruned version")
        agent.delete()
        temporary.fork("of a temporary agent")
    with opened(tmp_path) as memory:
        for name in ("of a pruned version", "of a temporary agent"):
            assert said(memory.agent(name)) == ["one", "two"]
        assert memory.verify().ok


def test_no_number_of_a_version_is_given_twice(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        agent = memory.agent("a")
        agent.say("one")
        old = agent.checkpoint("mark")
        agent.say("two")
        assert agent.prune(checkpoints=True) == 1
    with opened(tmp_path) as memory:
        agent = memory.agent("a")
        assert agent.checkpoint("mark").number == old.number + 1
        assert agent.fork("b").checkpoint("other").number == 2, "a fork counts its own, the inherited one first"
        with pytest.raises(UnsupportedParameterError, match="has no version .*number=1"):
            agent.rewind(to=old)


def test_a_compaction_is_the_cause_of_a_miss_through_a_restart(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        agent = memory.agent("a", system=SYSTEM)
        for number in range(6):
            agent.say(f"turn {number}")
        agent.compact(2)
    with Memory(EchoRunner(), tmp_path) as memory:
        agent = memory.agent("a")
        assert agent.explain().cause == "compacted"
        usage = agent.say("next").usage
        assert (usage.miss, usage.miss_detail[:7]) == ("compacted", "4 turns")
    with Memory(EchoRunner(), tmp_path) as memory:
        assert memory.agent("a").say("more").usage.miss is None
