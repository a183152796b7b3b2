"""A disk that is full, read-only, failing or slow costs KV on disk for a while: no reply, no log and no memory."""

from __future__ import annotations

import errno
import functools
import logging
import re
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from agent_memory import Config, EchoRunner, Memory, OutOfSpaceError, StoreError
from agent_memory.log.files import Files
from agent_memory.log.health import Health, state_of
from agent_memory.log.turns import Turn
from agent_memory.store.store import Store
from agent_memory.types import Message
from tests.parts.breaking import CODES, TEXTS, Refusing
from tests.parts.kvmodel import IDENTITY, SMALL, draw, held_bytes, is_right, load, save
from tests.parts.waiting import wait_for

STATES = {errno.ENOSPC: "full", errno.EROFS: "read-only", errno.EIO: "failing"}
BUDGET = 400_000


@pytest.fixture
def soon(monkeypatch):
    """What the disk refused is tried again at once."""
    monkeypatch.setattr("agent_memory.log.health.FIRST_WAIT_S", 0.0)
    monkeypatch.setattr("agent_memory.store.io.RETRY_S", 0.01)


def open_store(path: Path, files: Files) -> Store:
    store = Store(path, disk_bytes=BUDGET, chunk_tokens=16, files=files)
    store.attach(IDENTITY, SMALL, "h", {"model": "plain"})
    return store


def turn(number: int, before: int, new: np.ndarray) -> Turn:
    return Turn((Message("user", str(number)),), before, new, "t", "stop", 0.0, number)


def flush_error(store: Store) -> StoreError | None:
    try:
        store.flush()
    except StoreError as error:
        return error
    return None


def live(store: Store, agent_id: int, n_turns: int, *, ids: np.ndarray, first: int = 0) -> np.ndarray:
    """Turns, saves, a compaction and flushes; only a flush may raise, and only a StoreError."""
    rng = np.random.default_rng(first)
    for number in range(first, first + n_turns):
        new = draw(rng, 25)
        store.append_turn(agent_id, number, turn(number, len(ids), new))
        ids = np.concatenate([ids, new])
        save(store, ids, agent_id=agent_id)
        save(store, draw(rng, 40))
        assert any(load(store, store.match(ids))[1] for _ in range(3)), "a file may go between match and load, once"
        if (raised := flush_error(store)) is not None:
            assert isinstance(raised, OutOfSpaceError) == (store.stats()["disk_state"] == "full")
        if number % 3 == 2:
            store.compact()
    return ids


@pytest.mark.parametrize("code", STATES)
@pytest.mark.parametrize("n_refused", [1, 30])
def test_whatever_the_disk_refuses_is_made_good_when_it_takes_writes_again(tmp_path, code, n_refused, soon):
    files = Refusing(code)
    store = open_store(tmp_path / "probe", files)
    first = len(files.calls)
    agent = store.create_agent("", "a", system=None, tools="[]").agent_id
    live(store, agent, 5, ids=np.zeros(0, np.uint32))
    n_calls = len(files.calls)
    store.close()
    for at in range(first + 2, n_calls, 47):
        path = tmp_path / f"{at}"
        files = Refusing(code, at, at + n_refused)
        store = open_store(path, files)
        agent = store.create_agent("", "a", system=None, tools="[]").agent_id
        ids = live(store, agent, 5, ids=np.zeros(0, np.uint32))
        files.first = None
        ids = live(store, agent, 1, ids=ids, first=5)
        assert store.stats()["disk_state"] == "ok"
        assert len(files.calls) > at
        assert store.match(ids).n_tokens == len(ids)
        assert is_right(load(store, store.match(ids))[0], ids)
        assert store.stats()["disk_bytes"] == held_bytes(path) <= BUDGET
        store.close()
        store = open_store(path, Files())
        assert [m.content for m in store.load_agent("", "a").messages] == [str(n) for n in range(6)]
        assert store.stats()["damage"] == 0
        assert store.verify().ok
        store.close()


@pytest.mark.parametrize(("code", "state"), STATES.items())
def test_a_disk_that_refuses_is_told_once_and_shown_and_so_is_that_it_recovered(tmp_path, caplog, code, state, soon):
    caplog.set_level(logging.INFO)
    files = Refusing(code)
    store = open_store(tmp_path, files)
    agent = store.create_agent("", "a", system=None, tools="[]").agent_id
    with files.refusing():
        live(store, agent, 3, ids=np.zeros(0, np.uint32))
        assert store.stats()["disk_state"] == state
        assert store.stats()["disk_failures"] > 1
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    assert f"the disk is {state}" in caplog.text
    save(store, draw(np.random.default_rng(1), 30))
    store.flush()
    assert store.stats()["disk_state"] == "ok"
    assert "takes writes again" in caplog.text
    store.close()


@pytest.mark.parametrize("code", STATES)
def test_flush_counts_and_tells_once_what_kv_is_not_on_disk_where_the_logs_are(tmp_path, caplog, code):
    class NoSegments(Refusing):
        def before(self, call: str, *given: object) -> None:
            if call == "create":
                super().before(call)

    files = NoSegments(code)
    store = open_store(tmp_path, files)
    agent = store.create_agent("", "a", system=None, tools="[]").agent_id
    ids = draw(np.random.default_rng(0), 200)
    with files.refusing():
        for number in range(3):
            store.append_turn(agent, number, turn(number, 40 * number, ids[40 * number : 40 * number + 40]))
            save(store, ids[: 40 * number + 40], agent_id=agent)
            store.flush()
        assert store.stats()["unwritten_tokens"] == 120
        told = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(told) == 1
        assert f"the disk is {STATES[code]}" in told[0]
        assert len(store.load_agent("", "a").turns) == 3
    store._catalog.disk.health.worked("KV")
    save(store, ids, agent_id=agent)
    store.flush()
    assert store.stats()["unwritten_tokens"] == 0
    assert store.match(ids).n_tokens == len(ids)
    store.close()


def test_flush_tells_once_what_a_disk_that_is_well_has_not_got(tmp_path, caplog):
    store = open_store(tmp_path, Files())
    (tmp_path / "film.mp4").write_bytes(bytes(2 * BUDGET))
    store.flush()
    for _ in range(2):
        save(store, draw(np.random.default_rng(0), 50))
        store.flush()
    told = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) == 1
    assert re.search(r"the logs are on disk, KV of 50 tokens of 1 conversations is not", told[0])
    assert store.stats()["unwritten_tokens"] == 50
    store.close()


def test_kv_of_a_prompt_that_nobody_logged_is_counted_until_it_is_written(tmp_path, soon):
    files = Refusing()
    store = open_store(tmp_path, files)
    ids = draw(np.random.default_rng(0), 50)
    with files.refusing():
        save(store, ids)
        store.flush()
        assert store.stats()["unwritten_tokens"] == 50
    save(store, ids)
    store.flush()
    assert store.stats()["unwritten_tokens"] == 0
    store.close()


def test_a_log_that_waits_for_the_disk_is_written_without_being_asked(tmp_path, soon):
    files = Refusing()
    store = open_store(tmp_path, files)
    agent = store.create_agent("", "a", system=None, tools="[]").agent_id
    other = store.create_agent("", "b", system=None, tools="[]").agent_id
    with files.refusing():
        store.append_turn(agent, 0, turn(0, 0, draw(np.random.default_rng(0), 5)))
        with pytest.raises(OutOfSpaceError, match="Free some space"):
            store.flush()
        with pytest.raises(OutOfSpaceError):
            store.load_agent("", "a")
        assert store.load_agent("", "b").agent_id == other, "who has nothing waiting is read"
        assert [info.name for info in store.list_agents("")] == ["a", "b"]
    wait_for(lambda: not store._io.has_log_of(agent), "the log to be written")
    assert len(store.load_agent("", "a").turns) == 1
    store.close()


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "Free some space"), (errno.EROFS, "writable"), (errno.EIO, "system's log")]
)
def test_a_refusal_names_the_store_and_says_what_helps(tmp_path, code, advice):
    files = Refusing(code)
    store = open_store(tmp_path, files)
    agent = store.create_agent("", "a", system=None, tools="[]").agent_id
    with files.refusing():
        store.append_turn(agent, 0, turn(0, 0, draw(np.random.default_rng(0), 5)))
        with pytest.raises(StoreError, match="could not write an agent's log") as caught:
            store.flush()
        assert str(tmp_path) in str(caught.value)
        assert advice in str(caught.value)
    store.close()


def test_sqlites_own_full_is_full_too(tmp_path):
    store = open_store(tmp_path, Files())
    agent = store.create_agent("", "a", system=None, tools="[]").agent_id
    pages = store._database._db.execute("PRAGMA page_count").fetchone()[0]
    store._database._db.execute(f"PRAGMA max_page_count = {pages}")
    store.append_turn(agent, 0, turn(0, 0, draw(np.random.default_rng(0), 9_000)))
    with pytest.raises(OutOfSpaceError, match="full"):
        store.flush()
    assert store.stats()["disk_state"] == "full"
    store._database._db.execute("PRAGMA max_page_count = 1000000")
    store.flush()
    assert len(store.load_agent("", "a").turns) == 1
    store.close()


def test_what_an_error_says_of_the_disk():
    assert {code: state_of(OSError(code, "")) for code in STATES} == STATES
    for code, number in CODES.items():
        error = sqlite3.OperationalError(TEXTS[number])
        error.sqlite_errorcode = number
        assert state_of(error) == STATES[code]
    assert state_of(sqlite3.OperationalError("database or disk is full")) == "full"


def test_kv_is_tried_again_less_and_less_often():
    now = [0.0]
    health = Health(clock=lambda: now[0])
    waits = []
    for _ in range(9):
        health.failed("KV", OSError(errno.ENOSPC, "full"))
        before = now[0]
        while not health.may_save:
            now[0] += 0.5
        waits.append(now[0] - before)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    health.worked("KV")
    assert health.state == "ok"


@pytest.mark.parametrize("code", STATES)
def test_replies_go_on_while_the_disk_refuses_and_nothing_acknowledged_later_is_lost(tmp_path, monkeypatch, code, soon):
    files = Refusing(code)
    monkeypatch.setattr("agent_memory.store.store.Store", functools.partial(Store, files=files))
    config = Config(chunk_tokens=16, prefill_tokens=16)
    with Memory(EchoRunner(), tmp_path, config=config) as memory:
        agent = memory.agent("ann")
        agent.say("before")
        memory.flush()
        with files.refusing():
            assert [agent.say(text).text for text in ("one", "two")] == ["one", "two"]
            assert memory.generate("nobody's").text == "nobody's"
            with pytest.raises(StoreError):
                memory.flush()
            assert agent.say("three").usage.tier == "hot"
            assert memory.stats().disk_state == STATES[code]
        memory.flush()
        agent.say("four")
        memory.flush()
        assert memory.stats().disk_state == "ok"
    with Memory(EchoRunner(), tmp_path, config=config) as memory:
        agent = memory.agent("ann")
        assert [m.content for m in agent.messages[::2]] == ["before", "one", "two", "three", "four"]
        reply = agent.say("five")
        assert (reply.text, reply.usage.tier, reply.usage.exactness) == ("five", "cold", "exact")


class Slow(Files):
    """A disk whose files take nothing until they are let."""

    def __init__(self) -> None:
        self.is_open = threading.Event()

    def create(self, path: Path) -> int:
        self.is_open.wait()
        return super().create(path)


def test_a_slow_disk_holds_up_no_reply_and_little_memory_and_what_it_missed_comes_with_the_next_turn(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("agent_memory.store.io.HIGH_WATER_BYTES", 100_000)
    monkeypatch.setattr("agent_memory.store.io.LIMIT_BYTES", 300_000)
    files = Slow()
    monkeypatch.setattr("agent_memory.store.store.Store", functools.partial(Store, files=files))
    config = Config(chunk_tokens=16, prefill_tokens=16)
    with Memory(EchoRunner(), tmp_path, config=config) as memory:
        agent = memory.agent("ann")
        highest = 0
        for number in range(12):
            said = f"number {number} " + "and more of it " * 20
            assert agent.say(said).text == said
            highest = max(highest, memory._store._io.pending_bytes)
        assert memory.stats().saves_skipped["slow disk"] > 0
        assert 100_000 < highest < 400_000
        files.is_open.set()
        memory.flush()
        agent.say("the last")
        memory.evict()
        assert agent.say("again").usage.tier == "cold"
