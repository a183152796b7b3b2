"""Agents' logs: what was appended comes back whole, in order, under any name; damage ends a log and is counted."""

from __future__ import annotations

import sqlite3

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.errors import OutOfSpaceError, StoreError, UnsupportedParameterError
from agent_memory.log.turns import Turn
from agent_memory.prompt.messages import from_json, to_json
from agent_memory.store.store import Store
from agent_memory.types import Message, ToolCall
from tests.parts.kvmodel import opened, rewind

TOOLS = '[["look", "", {"type": "object"}, false]]'
NAMES = ["../../etc/passwd", "A", "a", "nul\0", "\ud800", "🦆 " * 200, "'; DROP TABLE agents; --"]


def turn(number: int, n: int = 5) -> Turn:
    messages = (Message("user", f"question {number}"), Message("assistant", f"answer {number}\ud83d"))
    return Turn(messages, 5 * number, np.arange(n, dtype=np.uint32) + number, "tok", "stop", 1.5, 2 * number, 4)


def is_same(a: Turn, b: Turn) -> bool:
    return a == b and np.array_equal(a.ids, b.ids)


texts = st.text(st.characters(), max_size=10)
calls = st.builds(ToolCall, texts, st.dictionaries(texts, st.integers() | texts | st.none(), max_size=3), texts)
messages = st.builds(
    Message, st.sampled_from(["user", "tool"]), texts, texts, st.lists(calls, max_size=2).map(tuple), st.none() | texts
)


@given(st.lists(messages, max_size=4).map(tuple))
def test_messages_come_back_equal(given_):
    assert from_json(to_json(given_)) == given_


def test_any_name_is_a_value_and_salts_never_meet(tmp_path):
    with opened(tmp_path) as store:
        made = {n: store.create_agent("s", n, system=n, tools=TOOLS).agent_id for n in NAMES}
    with opened(tmp_path) as store:
        assert sorted(i.name for i in store.list_agents("s")) == sorted(NAMES)
        for name, agent_id in made.items():
            found = store.load_agent("s", name)
            assert (found.agent_id, found.system, found.tools) == (agent_id, name, TOOLS)
            assert store.load_agent("other", name) is None
        with pytest.raises(StoreError, match="exists"):
            store.create_agent("s", "A", system=None, tools="[]")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", "manifest.sqlite3"]


@pytest.mark.parametrize("on_disk", [True, False])
def test_turns_are_seen_at_once_and_rewind_then_append_replaces(tmp_path, on_disk):
    with opened(tmp_path if on_disk else None) as store:
        agent = store.create_agent("", "a", system="s", tools="[]").agent_id
        for number in range(4):
            store.append_turn(agent, number, turn(number))
        assert [len(store.load_agent("", "a").turns), store.list_agents("")[0].n_turns] == [4, 4]
        rewind(store, agent, 1)
        store.append_turn(agent, 1, turn(1, 9))
        store.append_turn(agent, 2, turn(2, 9))
        store.append_turn(agent, 1, turn(1, 7))
        found = store.load_agent("", "a")
        assert [is_same(a, b) for a, b in zip(found.turns, [turn(0), turn(1, 7)], strict=True)] == [True, True]
        assert found.ids.tolist() == [0, 1, 2, 3, 4, *range(1, 8)]
        assert [m.content for m in found.messages][2] == "question 1"
        assert [store.list_agents("")[0].n_turns, store.stats()["agents"]] == [2, 1]
        info = store.list_agents("")[0]
        assert (info.n_turns, info.n_messages, info.n_tokens) == (2, 4, 12)


@pytest.mark.parametrize("column", [a.name for a in attrs.fields(Turn)])
def test_a_damaged_turn_ends_the_log_and_is_counted(tmp_path, column, caplog):
    with opened(tmp_path) as store:
        agent = store.create_agent("", "a", system=None, tools="[]").agent_id
        for number in range(4):
            store.append_turn(agent, number, turn(number))
    db = sqlite3.connect(tmp_path / "manifest.sqlite3")
    new = {"messages": '[{"role":"user","content":"forged"}]', "ids": b"\1\0\0\0", "tokenizer": "x", "finish": None}
    db.execute(f"UPDATE turns SET {column} = ? WHERE number = 2", (new.get(column, 77),))
    db.commit()
    db.close()
    with opened(tmp_path) as store:
        found = store.load_agent("", "a")
        assert len(found.turns) == 2
        assert store.stats()["damage"] == 1
        assert "damage" in caplog.text
        assert len(store.verify().damaged) == 1


def test_a_log_write_that_failed_is_raised_by_flush_and_tried_again(tmp_path, monkeypatch):
    with opened(tmp_path) as store:
        agent = store.create_agent("", "a", system=None, tools="[]").agent_id
        real = store._logs.append_turn

        def full(*args):
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(store._logs, "append_turn", full)
        store.append_turn(agent, 0, turn(0))
        store.append_turn(agent, 1, turn(1))
        for _ in range(2):
            with pytest.raises(OutOfSpaceError, match="full"):
                store.flush()
        monkeypatch.setattr(store._logs, "append_turn", real)
        store.flush()
        assert len(store.load_agent("", "a").turns) == 2


def test_a_turn_that_can_never_be_written_is_refused_before_it_is_queued(tmp_path):
    call = ToolCall("f", {"x": object()}, "1")
    with opened(tmp_path) as store:
        agent = store.create_agent("", "a", system=None, tools="[]").agent_id
        with pytest.raises(UnsupportedParameterError, match="JSON"):
            store.append_turn(agent, 0, attrs.evolve(turn(0), messages=(Message("assistant", "", tool_calls=(call,)),)))
        store.append_turn(agent, 0, turn(0))
        store.flush()
        assert len(store.load_agent("", "a").turns) == 1


def test_a_log_that_can_never_be_written_holds_up_no_other(tmp_path, monkeypatch):
    with opened(tmp_path) as store:
        bad, good = (store.create_agent("", name, system=None, tools="[]").agent_id for name in "ab")
        real = store._logs.append_turn

        def odd(agent_id, *args):
            if agent_id == bad:
                raise TypeError("no such row")
            real(agent_id, *args)

        monkeypatch.setattr(store._logs, "append_turn", odd)
        for number in range(3):
            store.append_turn(bad, number, turn(number))
            store.append_turn(good, number, turn(number))
        for _ in range(2):
            with pytest.raises(StoreError, match="no such row"):
                store.flush()
        assert len(store.load_agent("", "b").turns) == 3
        with pytest.raises(StoreError, match="no such row"):
            store.load_agent("", "a")
        rewind(store, good, 2)
        assert len(store.load_agent("", "b").turns) == 2
        monkeypatch.setattr(store._logs, "append_turn", real)
        store.flush()  # nothing was written over a hole
        assert [len(store.load_agent("", name).turns) for name in "ab"] == [3, 2]


def test_an_agent_whose_log_can_never_be_written_can_be_deleted(tmp_path, monkeypatch):
    with opened(tmp_path) as store:
        agent = store.create_agent("", "a", system=None, tools="[]").agent_id

        def odd(*args):
            raise TypeError("no such row")

        monkeypatch.setattr(store._logs, "append_turn", odd)
        store.append_turn(agent, 0, turn(0))
        store.delete_agent(agent)
        store.flush()
        assert store.load_agent("", "a") is None


def test_an_empty_name_is_refused():
    store = Store(None, disk_bytes=None, chunk_tokens=16)
    with pytest.raises(StoreError, match="empty"):
        store.create_agent("", "", system=None, tools="[]")
    store.close()
