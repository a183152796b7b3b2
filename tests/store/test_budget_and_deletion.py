"""The disk budget holds and parents outlive children; deletion frees what nobody else uses and keeps the rest."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.log.turns import Turn
from agent_memory.prefix.pieces import Segment
from agent_memory.prefix.worth import victims
from agent_memory.store.edit import void
from agent_memory.store.room import _evict
from agent_memory.types import Message
from tests.parts.breaking import Counted
from tests.parts.kvmodel import IDENTITY, OTHER, draw, held_bytes, is_right, load, opened, rewind, save, segment_files

ROOM = 220_000  #: for the manifest, its WAL and the lock, while a test's budget is for KV


def segment(number, parent, used_s, n_tokens=1):
    return Segment(
        number=number, identity="", parent=b"", parent_number=parent, n_tokens=n_tokens, chunk_tokens=16,
        exactness="exact", codec="exact", host="", used_s=used_s,
    )  # fmt: skip


def evicted(table, n_bytes, excess, now_s=10.0):
    return [s.number for s in victims(table, dict.fromkeys((s.number for s in table), n_bytes), (), excess, now_s)]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(0, 5), st.booleans()), max_size=15),
    st.integers(0, 60),
)
def test_no_parent_goes_before_its_child_and_no_more_goes_than_is_needed(rows, excess):
    table = [segment(i, p if p < i else None, used) for i, (p, _, used, _) in enumerate(rows)]
    sizes = {i: size for i, (_, size, _, _) in enumerate(rows)}
    pinned = {i for i, (_, _, _, is_pinned) in enumerate(rows) if is_pinned}
    gone = [s.number for s in victims(table, sizes, pinned, excess, 6.0)]
    assert pinned.isdisjoint(gone)
    for at, number in enumerate(gone):
        assert {s.number for s in table if s.parent_number == number} <= set(gone[:at])
    freed = [sizes[n] for n in gone]
    assert sum(freed[:-1]) < excess or not gone
    if sum(freed) < excess:
        left = [s for s in table if s.number not in gone]
        assert all(s.number in pinned or any(d.parent_number == s.number for d in left) for s in left)


def test_the_least_recently_used_leaf_goes_first():
    table = [segment(1, None, 0.0), segment(2, 1, 5.0), segment(3, None, 3.0)]
    assert evicted(table, 1, 3) == [3, 2, 1]


def test_of_two_used_at_once_the_one_goes_that_saves_less_for_its_bytes():
    table = [segment(1, None, 0.0, n_tokens=90), segment(2, None, 0.0, n_tokens=10)]
    assert evicted(table, 100, 1) == [2]


def test_what_many_lineages_stood_on_goes_after_what_one_did():
    shared = [segment(1, None, 0.0), *(segment(n, 1, 0.0) for n in range(2, 7))]
    alone = [segment(7, None, 2.0), segment(8, 7, 2.0)]
    assert evicted([*shared, *alone], 10, 70)[-1:] == [7]
    assert evicted([*shared, *alone], 10, 80)[-1:] == [1]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60), st.integers(1, 60), st.booleans()), max_size=15),
    st.integers(1, 60),
)
@settings(max_examples=25, deadline=None)
def test_the_budget_holds_after_every_flush(steps, kib):
    rng = np.random.default_rng(0)
    saved = [np.zeros(0, np.uint32)]
    with tempfile.TemporaryDirectory() as folder:
        for is_reopened in (False, True):
            budget = ROOM + kib * 1024 // (2 if is_reopened else 1)
            with opened(Path(folder), disk_bytes=budget, files=Counted()) as store:
                assert held_bytes(Path(folder)) <= budget
                for base, keep, n, used in steps:
                    ids = np.concatenate([saved[base % len(saved)][:keep], draw(rng, n)])
                    save(store, ids)
                    saved.append(ids)
                    store.flush()
                    assert held_bytes(Path(folder)) == store.stats()["disk_bytes"] <= budget
                    match = store.match(ids)
                    kv, sound = load(store, match)
                    assert sound
                    assert is_right(kv, ids[: match.n_tokens])
                    if used:
                        store.touch(match)


def test_what_was_evicted_is_said_and_what_was_used_stays(tmp_path):
    rng = np.random.default_rng(1)
    first, second = draw(rng, 64), draw(rng, 64)
    with opened(tmp_path, disk_bytes=ROOM + 60_000) as store:
        save(store, first)
        save(store, second)
        store.touch(store.match(first))
        store.flush()
        for _ in range(16):
            store.flush()
            store.touch(store.match(first))
            save(store, draw(rng, 64))
        store.flush()
        assert store.match(first).n_tokens == 64
        match = store.match(second)
        assert (match.n_tokens, match.stopped) == (0, "evicted")
        assert store.stats()["damage"] == 0


def test_a_save_larger_than_the_budget_is_not_written(tmp_path):
    rng = np.random.default_rng(2)
    with opened(tmp_path, disk_bytes=ROOM) as store:
        kept = draw(rng, 32)
        save(store, kept)
        assert save(store, draw(rng, 1000)).parts == ()
        store.flush()
        assert store.match(kept).n_tokens == 32
        assert store.stats()["saves_skipped"] == {"larger than the disk budget": 1}


def test_deleting_an_agent_frees_its_own_and_keeps_what_others_share(tmp_path):
    rng = np.random.default_rng(3)
    shared = draw(rng, 16 * 3)
    mine = [np.concatenate([shared, draw(rng, n)]) for n in (16 * 4 + 5, 16 * 2 + 3)]
    other = np.concatenate([shared, draw(rng, 20)])
    with opened(tmp_path) as store:
        a = store.create_agent("", "a", system=None, tools="[]").agent_id
        b = store.create_agent("", "b", system=None, tools="[]").agent_id
        for ids in mine:  # the second replaces the first, as after a rewind
            save(store, ids, agent_id=a)
        save(store, other, agent_id=b)
        store.flush()
        store.delete_agent(a)
        store.flush()
        assert [i.name for i in store.list_agents("")] == ["b"]
        assert store.match(mine[0]).n_tokens == store.match(mine[1]).n_tokens == 48
        assert is_right(load(store, store.match(other))[0], other)
        assert held_bytes(tmp_path) == store.stats()["disk_bytes"]
        assert store.verify().ok
    stored = b"".join(f.read_bytes() for f in segment_files(tmp_path))
    assert mine[0][48:64].astype("<u4").tobytes() not in stored
    with opened(tmp_path) as store:
        assert is_right(load(store, store.match(other))[0], other)
        store.delete_agent(b)
        assert segment_files(tmp_path) == []
        assert store.stats()["chunks"] == 0


def told(number: int, name: str) -> Turn:
    text = f"{name} confided {number} " * 2_000  # more than a page of SQLite
    return Turn((Message("user", text),), 0, draw(np.random.default_rng(number), 50), "t", "stop", 0.0, number)


def test_of_a_deleted_agents_words_no_file_keeps_one(tmp_path):
    with opened(tmp_path) as store:
        agents = {name: store.create_agent("", name, system=None, tools="[]").agent_id for name in ("ann", "bob")}
        for number in range(6):
            for name, agent in agents.items():
                store.append_turn(agent, number, told(number, name))
        store.flush()
        store.delete_agent(agents["ann"])
        files = {f.name: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
        assert [name for name, data in files.items() if b"ann confided" in data] == []
        assert b"bob confided" in files["manifest.sqlite3"]
        assert len(files["manifest.sqlite3"]) < 10 * len("bob confided 0 " * 2_000), "six turns are left of twelve"
        assert len(store.load_agent("", "bob").turns) == 6
        assert store.verify().ok


def test_what_a_rewind_leaves_of_the_manifest_is_given_back(tmp_path):
    with opened(tmp_path) as store:
        agent = store.create_agent("", "ann", system=None, tools="[]").agent_id
        for number in range(8):
            store.append_turn(agent, number, told(number, "ann"))
        store.flush()
        before = store.stats()["disk_bytes"]
        rewind(store, agent, 1)
        store.flush()
        assert store.stats()["disk_bytes"] == held_bytes(tmp_path) < before / 2
        assert len(store.load_agent("", "ann").turns) == 1
        assert store.verify().ok


def test_deleting_reaches_the_kv_of_models_that_are_not_loaded(tmp_path):
    rng = np.random.default_rng(4)
    ids = draw(rng, 100)
    with opened(tmp_path) as store:
        a = store.create_agent("", "a", system=None, tools="[]").agent_id
        save(store, ids[:70])  # nobody's: ends with it
        save(store, ids, agent_id=a)
        save(
            store,
            np.concatenate([ids[:32], draw(rng, 30)]),
            agent_id=store.create_agent("", "b", system=None, tools="[]").agent_id,
        )
    with opened(tmp_path, identity="cd" * 32) as store:
        save(store, ids, agent_id=a)
        store.flush()
        store.delete_agent(a)
        assert store.match(ids).n_tokens == 0
    with opened(tmp_path) as store:
        assert store.match(ids).n_tokens == 32
        assert is_right(load(store, store.match(ids))[0], ids[:32])
        assert store.verify().ok


def test_a_save_of_an_agent_that_was_deleted_meanwhile_is_dropped(tmp_path):
    ids = draw(np.random.default_rng(5), 40)
    with opened(tmp_path) as store:
        a = store.create_agent("", "a", system=None, tools="[]").agent_id
        store.delete_agent(a)
        save(store, ids, agent_id=a)
        store.flush()
        assert segment_files(tmp_path) == []
        assert store.stats()["save_failures"] == 0


def test_what_another_agent_ends_with_stays_though_nothing_follows_it(tmp_path):
    ids = draw(np.random.default_rng(6), 60)
    with opened(tmp_path) as store:
        a, b = (store.create_agent("", name, system=None, tools="[]").agent_id for name in "ab")
        save(store, ids[:32], agent_id=b)
        save(store, ids, agent_id=a)
        store.flush()
        store.delete_agent(a)
        assert store.match(ids).n_tokens == 32


def test_what_was_used_last_is_remembered_when_the_store_closes(tmp_path):
    rng = np.random.default_rng(7)
    first, second = draw(rng, 64), draw(rng, 64)
    with opened(tmp_path) as store:
        save(store, first)
        save(store, second)
        store.flush()
        store.touch(store.match(first))
    n_bytes = held_bytes(tmp_path)
    with opened(tmp_path, disk_bytes=n_bytes + 30_000) as store:  # shm, which is there while it is open, is 32 KiB
        assert [store.match(ids).n_tokens for ids in (first, second)] == [64, 0]


def test_an_agent_is_known_under_the_models_that_it_has_kv_of(tmp_path):
    ids = draw(np.random.default_rng(8), 40)
    with opened(tmp_path) as store:
        a, b = (store.create_agent("", name, system=None, tools="[]").agent_id for name in "ab")
        assert store.lineage_identities(a) == frozenset()
        save(store, ids, agent_id=a)
        store.flush()
        assert (store.lineage_identities(a), store.lineage_identities(b)) == ({IDENTITY}, frozenset())
    with opened(tmp_path, identity=OTHER) as store:
        save(store, ids, agent_id=a)
        store.flush()
        assert store.lineage_identities(a) == {IDENTITY, OTHER}
    with opened(None) as store:
        c = store.create_agent("", "c", system=None, tools="[]").agent_id
        save(store, ids, agent_id=c)
        store.flush()
        assert store.lineage_identities(c) == frozenset()


@pytest.mark.parametrize("how", ["evicted", "damaged", "evicted under another model"])
def test_a_lineage_that_lost_its_end_is_deleted_from_its_beginning(tmp_path, how):
    ids = draw(np.random.default_rng(8), 100)
    with opened(tmp_path) as store:
        a = store.create_agent("", "a", system=None, tools="[]").agent_id
        for stop in (34, 60, 100):  # three files, each after the one before
            save(store, ids[:stop], agent_id=a)
            store.flush()
    with opened(tmp_path, identity=OTHER if how == "evicted under another model" else IDENTITY) as store:
        catalog = store._catalog
        if how == "damaged":
            void(catalog, max(catalog.segments.values(), key=lambda s: s.stop), "damaged", "a test")
        else:
            assert store._io.call(lambda: _evict(catalog, 1))
        store.flush()
    with opened(tmp_path) as store:
        assert 0 < store.match(ids).n_tokens < 100
        store.delete_agent(a)
        assert store.match(ids).n_tokens == 0
    assert segment_files(tmp_path) == []
