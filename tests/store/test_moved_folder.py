"""The folder goes or moves under a running store: nothing is written elsewhere, and flush and close say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.errors import StoreError
from agent_memory.log.turns import Turn
from agent_memory.store.store import Store
from agent_memory.types import Message
from tests.parts.kvmodel import IDENTITY, SMALL, draw, is_right, load, opened, save

IDS = draw(np.random.default_rng(0), 120)
CONFIG = Config(chunk_tokens=16, prefill_tokens=16)


def running(path: Path) -> tuple[Store, int]:
    """A store with one agent, one turn of whom is acknowledged."""
    store = Store(path, disk_bytes=None, chunk_tokens=16)
    store.attach(IDENTITY, SMALL, "h", {"model": "plain"})
    agent = store.create_agent("", "ann", system=None, tools="[]").agent_id
    go_on(store, agent, 0, 60)
    store.flush()
    return store, agent


def go_on(store: Store, agent: int, number: int, stop: int) -> None:
    start = 0 if number == 0 else 60 + 20 * (number - 1)
    store.append_turn(
        agent, number, Turn((Message("user", str(number)),), start, IDS[start:stop], "t", "stop", 0.0, number)
    )
    save(store, IDS[:stop], agent_id=agent)


def everything(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != "lock"}


def n_turns(path: Path) -> int:
    with opened(path) as store:
        return len(store.load_agent("", "ann").turns)


def refused(store: Store, *, match: str) -> None:
    with pytest.raises(StoreError, match=match):
        store.flush()
    assert store.stats()["disk_state"] == "gone"
    with pytest.raises(StoreError, match=match):
        store.close()


def test_a_deleted_folder_is_said_by_flush_and_by_close_and_is_not_made_anew(tmp_path):
    store, agent = running(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    go_on(store, agent, 1, 80)
    refused(store, match="was deleted or moved while the store was open.*Move the folder back")
    assert not (tmp_path / "a").exists()


def test_a_deleted_folder_is_said_though_nothing_was_to_be_written(tmp_path):
    store, _ = running(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(StoreError, match="was deleted or moved"):
        store.flush()
    with pytest.raises(StoreError, match="was deleted or moved"):
        store.close()


def test_a_moved_folder_keeps_what_was_acknowledged_and_gets_nothing_more(tmp_path):
    store, agent = running(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    before = {name for name in everything(tmp_path / "b") if name.startswith("kv")}
    go_on(store, agent, 1, 80)
    refused(store, match="was deleted or moved")
    assert {name for name in everything(tmp_path / "b") if name.startswith("kv")} == before
    assert not (tmp_path / "a").exists()
    assert n_turns(tmp_path / "b") == 1
    with opened(tmp_path / "b") as again:
        assert is_right(load(again, again.match(IDS))[0], IDS[:60])
        assert again.stats()["damage"] == 0
        assert again.verify().ok


@pytest.mark.parametrize("is_copy", [False, True], ids=["a new store", "a copy of it"])
def test_a_store_that_was_opened_where_this_one_was_is_not_touched(tmp_path, is_copy):
    path = tmp_path / "a"
    store, agent = running(path)
    if is_copy:
        shutil.copytree(path, tmp_path / "copy", ignore=shutil.ignore_patterns("*-shm"))
    path.rename(tmp_path / "b")
    if is_copy:
        (tmp_path / "copy").rename(path)
    with opened(path) as second:
        if not is_copy:
            second.create_agent("", "ann", system=None, tools="[]")
            save(second, IDS[:60])
        second.append_turn(1, 0, Turn((Message("user", "second"),), 0, IDS[:60], "t", "stop", 0.0, 0))
        second.flush()
        go_on(store, agent, 1, 80)
        assert store.match(IDS).n_tokens in (60, 80)
        before = everything(path)
        refused(store, match="was replaced")
        assert everything(path) == before
        assert is_right(load(second, second.match(IDS))[0], IDS[:60])
        second.append_turn(1, 1, Turn((Message("user", "more"),), 60, IDS[60:80], "t", "stop", 0.0, 1))
        second.flush()
    with opened(path) as second:
        assert [m.content for m in second.load_agent("", "ann").messages] == ["second", "more"]
        assert second.verify().ok


def test_a_folder_that_is_moved_back_takes_what_waited(tmp_path, monkeypatch):
    monkeypatch.setattr("agent_memory.log.health.FIRST_WAIT_S", 0.0)
    store, agent = running(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    go_on(store, agent, 1, 80)
    with pytest.raises(StoreError, match="was deleted or moved"):
        store.flush()
    (tmp_path / "b").rename(tmp_path / "a")
    store.flush()
    go_on(store, agent, 2, 100)
    store.close()
    assert n_turns(tmp_path / "a") == 3
    with opened(tmp_path / "a") as again:
        assert again.match(IDS).n_tokens == 100
        assert again.verify().ok


def test_kv_of_a_moved_folder_is_computed_meanwhile_and_no_damage(tmp_path):
    store, _ = running(tmp_path / "a")
    match = store.match(IDS)
    (tmp_path / "a").rename(tmp_path / "b")
    assert not load(store, match)[1]
    assert store.stats()["damage"] == 0
    assert store.stats()["unreadable"] == 1
    (tmp_path / "b").rename(tmp_path / "a")
    store.close()
    with opened(tmp_path / "a") as again:
        assert again.match(IDS).n_tokens == 60


@pytest.mark.parametrize("name", ["lock", "manifest.sqlite3"])
def test_a_lock_or_a_manifest_that_was_replaced_is_noticed(tmp_path, name):
    store, agent = running(tmp_path / "a")
    other = tmp_path / "other"
    other.write_bytes((tmp_path / "a" / name).read_bytes())
    other.rename(tmp_path / "a" / name)
    before = (tmp_path / "a" / name).read_bytes()
    go_on(store, agent, 1, 80)
    refused(store, match=f"{name} was replaced")
    assert (tmp_path / "a" / name).read_bytes() == before


def test_replies_go_on_in_memory_while_the_folder_is_gone(tmp_path):
    memory = Memory(EchoRunner(), tmp_path / "a", config=CONFIG)
    ann = memory.agent("ann")
    ann.say("one")
    memory.flush()
    (tmp_path / "a").rename(tmp_path / "b")
    assert [ann.say(text).text for text in ("two", "three")] == ["two", "three"]
    assert memory.generate("nobody's").text == "nobody's"
    with pytest.raises(StoreError, match="was deleted or moved"):
        memory.flush()
    assert memory.stats().disk_state == "gone"
    with pytest.raises(StoreError, match="was deleted or moved"):
        memory.close()
    with Memory(EchoRunner(), tmp_path / "b", config=CONFIG) as again:
        assert [m.content for m in again.agent("ann").messages[::2]] == ["one"]
        assert again.verify().ok
