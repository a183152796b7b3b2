"""A lineage that leaves another in a chunk stores its own rows and shares those before, whatever happens to both."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.log.files import LOCK, MANIFEST
from agent_memory.prefix.sharing import stretches
from agent_memory.reader.shared import SharedStore
from agent_memory.store.edit import check
from tests.parts.breaking import Counted
from tests.parts.kvmodel import (
    IDENTITY,
    MIXED,
    SMALL,
    draw,
    held_bytes,
    is_right,
    kv_files,
    load,
    opened,
    save,
    segment_files,
)

WIDE = Layout(tuple(TensorSpec(f"{i:03d}.{k}", 3, 64, "F32") for i in range(4) for k in "kv"), ("full",) * 4)
SLACK = 65_536  #: bytes of a file beside its rows


def new(store, name: str) -> int:
    return store.create_agent("", name, system=None, tools="[]").agent_id


def turn(store, ids, agent: int | None = None, layout=SMALL, exactness="exact", is_restored=False) -> None:
    """Save a lineage. ``is_restored``: what is stored of it was not computed again."""
    made = np.ones(len(ids), np.uint32)
    if is_restored:
        match = store.match(ids)
        made[: match.n_tokens] = match.made
    save(store, ids, agent_id=agent, layout=layout, exactness=exactness, made=made)
    store.flush()
    assert store._io.call(lambda: check(store._catalog)) == []


def forked(rng, brief, n: int) -> np.ndarray:
    """The brief, and what one agent alone has: its first id is no other's."""
    return np.concatenate([brief, draw(rng, n)])


def lines_of_one_brief(seed: int, n: int) -> list[np.ndarray]:
    """Return lineages that leave one another after a brief of 40 tokens, inside a chunk."""
    rng = np.random.default_rng(seed)
    brief = draw(rng, 40)
    return [forked(rng, brief, 30) for _ in range(n)]


def shared(store) -> list:
    return [s for s in store._catalog.segments.values() if s.n_shared]


def assert_whole(store, ids, layout=SMALL) -> None:
    match = store.match(ids)
    assert match.n_tokens == len(ids)
    kv, is_sound = load(store, match, layout=layout)
    assert is_sound
    assert is_right(kv, ids, layout)


@pytest.mark.parametrize("n_own", [40, 60, 300])
def test_agents_with_one_brief_store_it_once_and_their_own_tokens(tmp_path, n_own):
    rng, layout = np.random.default_rng(n_own), WIDE
    brief = draw(rng, 1740)
    with opened(tmp_path, layout=layout, chunk_tokens=256) as store:
        before = held_bytes(tmp_path)
        agents = {new(store, f"a{i}"): forked(rng, brief, n_own) for i in range(8)}
        for agent, ids in agents.items():
            turn(store, ids, agent, layout)
        n_rows = len(brief) + 8 * n_own
        assert held_bytes(tmp_path) - before <= n_rows * layout.token_bytes + 8 * SLACK
        for agent in agents:  # the chunk of most fills: it is folded, and goes on sharing
            agents[agent] = forked(rng, agents[agent], n_own)
            turn(store, agents[agent], agent, layout)
        assert held_bytes(tmp_path) - before <= (n_rows + 8 * n_own) * layout.token_bytes + 16 * SLACK
        for ids in agents.values():
            assert_whole(store, ids, layout)
    with opened(tmp_path, layout=layout, chunk_tokens=256) as store:
        for ids in agents.values():
            assert_whole(store, ids, layout)
        assert store.verify().ok


def test_a_hundred_forks_cost_their_own_turns(tmp_path):
    rng = np.random.default_rng(1)
    base = draw(rng, 500)
    with opened(tmp_path, layout=WIDE, chunk_tokens=256) as store:
        turn(store, base, new(store, "base"), WIDE)
        before = held_bytes(tmp_path)
        forks = [forked(rng, base, 20) for _ in range(100)]
        for number, ids in enumerate(forks):
            save(store, ids, agent_id=new(store, f"f{number}"), layout=WIDE)
        store.flush()
        assert held_bytes(tmp_path) - before <= 100 * (20 * WIDE.token_bytes + SLACK)
        assert all(store.match(ids).n_tokens == 520 for ids in forks)
        assert_whole(store, forks[-1], WIDE)
        assert sum(s.n_own for s in store._catalog.segments.values()) == 500 + 100 * 12 + 100 * 8
        assert store._io.call(lambda: check(store._catalog)) == []


def test_a_few_common_tokens_are_written_again(tmp_path):
    rng = np.random.default_rng(2)
    start = draw(rng, 15)
    with opened(tmp_path, chunk_tokens=256) as store:
        for _ in range(3):
            turn(store, forked(rng, start, 260))
        assert shared(store) == []
        turn(store, forked(rng, draw(rng, 16), 260))
        assert shared(store) == []


def test_a_fork_of_a_fork_leads_to_the_file_that_has_the_rows(tmp_path):
    rng = np.random.default_rng(3)
    ids = [draw(rng, 64)]
    with opened(tmp_path, chunk_tokens=64) as store:
        for keep in (10, 40, 30, 50, 63):
            turn(store, ids[-1])
            ids.append(forked(rng, ids[-1][:keep], 64 - keep))
        turn(store, ids[-1])
        for one in ids:
            assert_whole(store, one)
        assert sorted(s.n_shared for s in shared(store)) == [10, 30, 40, 50, 63]
        assert [s.n_own for s in store._catalog.segments.values()] == [64, 54, 24, 34, 14, 1]


@pytest.mark.parametrize("layout", [MIXED], ids=["mixed"])
def test_a_lineage_that_can_be_resumed_at_ends_of_pieces_alone_shares_nothing_inside_one(tmp_path, layout):
    rng = np.random.default_rng(4)
    brief = draw(rng, 40)
    with opened(tmp_path, layout=layout) as store:
        for _ in range(3):
            turn(store, forked(rng, brief, 30), layout=layout)
        assert shared(store) == []


def test_damage_in_shared_rows_voids_all_that_share_them(tmp_path):
    lines = lines_of_one_brief(5, 3)
    with opened(tmp_path) as store:
        for ids in lines:
            turn(store, ids)
        source = next(s for s in store._catalog.segments.values() if s.number == shared(store)[0].source_number)
        file = tmp_path / "kv" / source.file
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
        _, is_sound = load(store, store.match(lines[2]))
        assert not is_sound
        match = store.match(lines[2])
        assert match.n_tokens < 40
        assert match.stopped == "damaged"
        assert is_right(load(store, match)[0], lines[2][: match.n_tokens])
        store.flush()
        assert store._io.call(lambda: check(store._catalog)) == []
        assert store.stats()["damage"] == 1
        assert {f"{f.parent.name}/{f.name}" for f in kv_files(tmp_path)} == {
            s.file for s in store._catalog.segments.values()
        }
        for ids in lines:
            turn(store, ids)
            assert_whole(store, ids)


def test_rows_that_cannot_be_read_now_are_no_damage_and_come_back(tmp_path):
    lines = lines_of_one_brief(6, 2)
    with opened(tmp_path) as store:
        for ids in lines:
            turn(store, ids)
        [borrower] = shared(store)
        source = store._catalog.segments[borrower.source_number]
        from agent_memory.store.edit import void

        void(store._catalog, source, "unreadable", "a passing fault")
        assert store.match(lines[1]).n_tokens < 40
        assert store.stats()["damage"] == 0
        store._catalog.losses.clock = lambda: 1e12
        store._catalog.losses.retry()
        assert_whole(store, lines[1])


def test_the_rows_that_forks_share_stay_when_the_base_is_deleted_and_nothing_else_of_it(tmp_path):
    rng = np.random.default_rng(7)
    brief = draw(rng, 40)
    base = forked(rng, brief, 30)
    forks = [forked(rng, brief[:n], 30) for n in (40, 36, 40)]
    with opened(tmp_path) as store:
        agent = new(store, "base")
        turn(store, base, agent)
        others = [new(store, f"f{i}") for i in range(3)]
        for other, ids in zip(others, forks, strict=True):
            turn(store, ids, other)
        assert len(shared(store)) == 3
        store.delete_agent(agent)
        assert store._io.call(lambda: check(store._catalog)) == []
        for ids in forks:
            assert_whole(store, ids)
        assert store.match(base).n_tokens == 40
        secret = base[40:43].astype("<u4").tobytes()
        assert all(secret not in file.read_bytes() for file in kv_files(tmp_path))
    with opened(tmp_path) as store:
        for other, ids in zip(others, forks, strict=True):
            assert_whole(store, ids)
            store.delete_agent(other)
            assert store._io.call(lambda: check(store._catalog)) == []
        assert kv_files(tmp_path) == [], "what was left of the base goes with the last that shares it"


def test_what_would_be_left_of_a_piece_may_be_there_already(tmp_path):
    """A version holds the brief as a delta, while the base goes on to a whole chunk."""
    rng = np.random.default_rng(8)
    brief = draw(rng, 40)
    with opened(tmp_path) as store:
        base, held, fork = (new(store, name) for name in ("base", "held", "fork"))
        turn(store, brief, base)
        store._hold([(held, brief)])
        store.flush()
        turn(store, forked(rng, brief, 30), base)
        own = forked(rng, brief, 30)
        turn(store, own, fork)
        store.delete_agent(base)
        assert store._io.call(lambda: check(store._catalog)) == []
        assert_whole(store, own)
        assert_whole(store, brief)


def test_a_lost_manifest_finds_shared_rows_again(tmp_path):
    rng = np.random.default_rng(9)
    brief = draw(rng, 40)
    lines = [forked(rng, brief[:n], 30) for n in (40, 40, 36, 46)]
    lines.append(forked(rng, lines[1][:45], 30))
    with opened(tmp_path) as store:
        for ids in lines:
            turn(store, ids)
        n_segments = store.stats()["segments"]
        assert len(shared(store)) >= 4
    (tmp_path / MANIFEST).unlink()
    (tmp_path / LOCK).unlink()
    with opened(tmp_path) as store:
        assert store.stats()["segments"] == n_segments
        assert store._io.call(lambda: check(store._catalog)) == []
        for ids in lines:
            assert_whole(store, ids)
    (tmp_path / MANIFEST).unlink()
    sources = {s.source_number for s in shared(store)}
    for one in store._catalog.segments.values():
        if one.number in sources:
            (tmp_path / "kv" / one.file).unlink()
    with opened(tmp_path) as store:  # those whose shared rows are nowhere are not found again
        assert shared(store) == []
        for ids in lines:
            match = store.match(ids)
            assert is_right(load(store, match)[0], ids[: match.n_tokens])


def test_a_reader_beside_the_writer_reads_shared_rows(tmp_path):
    lines = lines_of_one_brief(10, 3)
    with opened(tmp_path) as store:
        for ids in lines:
            turn(store, ids)
        reader = SharedStore(tmp_path, chunk_tokens=16)
        try:
            reader.attach(IDENTITY, SMALL, "h", {"model": "plain"})
            for ids in lines:
                assert_whole(reader, ids)
            assert reader.verify().ok
        finally:
            reader.close()


def test_kv_is_not_shared_where_it_would_seem_better_than_it_is(tmp_path):
    rng = np.random.default_rng(11)
    brief = draw(rng, 40)
    with opened(tmp_path) as store:
        turn(store, forked(rng, brief, 30), exactness="recomputed")
        turn(store, forked(rng, brief, 30))
        assert shared(store) == []
        turn(store, forked(rng, brief, 30), exactness="recomputed")
        assert [s.exactness for s in shared(store)] == ["recomputed"]
    with opened(tmp_path, host="another") as store:
        turn(store, own := forked(rng, brief[:38], 30), is_restored=True)
        assert len(shared(store)) == 1
        turn(store, moved := forked(rng, brief[:38], 30), exactness="moved", is_restored=True)
        assert_whole(store, own)
        assert_whole(store, moved)
        assert {s.exactness for s in shared(store)} == {"recomputed", "moved"}


def test_chunks_and_tails_that_share_are_joined_with_what_follows_them(tmp_path):
    rng = np.random.default_rng(12)
    brief = draw(rng, 40)
    with opened(tmp_path, files=Counted()) as store:
        turn(store, forked(rng, brief, 60))
        ids = forked(rng, brief, 4)
        for _ in range(12):
            turn(store, ids)
            ids = forked(rng, ids, 5)
        turn(store, ids)
        n_files = len(segment_files(tmp_path))
        store.compact()
        assert len(segment_files(tmp_path)) < n_files
        assert store._io.call(lambda: check(store._catalog)) == []
        assert len(shared(store)) >= 1
        assert_whole(store, ids)
        other = forked(rng, ids[:42], 30)
        turn(store, other)
        assert_whole(store, other)
    with opened(tmp_path) as store:
        assert_whole(store, ids)
        assert_whole(store, other)


def test_a_source_is_evicted_after_all_that_share_its_rows(tmp_path):
    rng = np.random.default_rng(13)
    brief = draw(rng, 200)
    with opened(tmp_path / "all", layout=WIDE, chunk_tokens=256) as store:
        lines = [forked(rng, brief, 200) for _ in range(8)]
        for ids in lines:
            turn(store, ids, layout=WIDE)
        whole = held_bytes(tmp_path / "all")
    for share in (0.9, 0.6, 0.3):
        path = tmp_path / f"{share}"
        shutil.copytree(tmp_path / "all", path)
        budget = int(whole * share)
        with opened(path, layout=WIDE, chunk_tokens=256, disk_bytes=budget) as store:
            store.flush()
            assert held_bytes(path) <= budget
            assert store._io.call(lambda: check(store._catalog)) == []
            assert store.stats()["segments"] > 0
            for ids in lines:
                match = store.match(ids)
                assert is_right(load(store, match, layout=WIDE)[0], ids[: match.n_tokens], WIDE)


def test_a_missing_source_at_opening_is_a_miss_of_all_that_share_it(tmp_path):
    lines = lines_of_one_brief(14, 2)
    with opened(tmp_path) as store:
        for ids in lines:
            turn(store, ids)
        [borrower] = shared(store)
        file = store._catalog.segments[borrower.source_number].file
    os.unlink(tmp_path / "kv" / file)
    with opened(tmp_path) as store:
        assert store.match(lines[1]).n_tokens < 40
        assert store._io.call(lambda: check(store._catalog)) == []
        turn(store, lines[1])
        assert_whole(store, lines[1])


STEPS = st.tuples(
    st.sampled_from("abcd"),  # whose turn
    st.sampled_from("abcd"),  # whose ids it goes on from
    st.integers(0, 90),  # how many of them
    st.integers(1, 40),
    st.sampled_from(["turn", "turn", "turn", "turn", "delete", "compact", "open", "squeeze", "lose"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=2, max_size=14), st.integers(0, 5))
def test_whatever_is_shared_rows_files_and_manifest_agree_and_what_is_found_is_right(steps, seed):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        ids = {name: np.zeros(0, np.uint32) for name in "abcd"}
        agents: dict[str, int] = {}
        lineages: dict[str, list[np.ndarray]] = {name: [] for name in "abcd"}  # an agent's earlier ones stay its own
        budget, is_lossless, was_lost = None, True, False
        store_of = opened(path)
        store = store_of.__enter__()
        try:
            for name, other, keep, n, what in steps:
                if what == "turn":
                    agents.setdefault(name, 0)
                    agents[name] = agents[name] or new(store, name)
                    ids[name] = np.concatenate([ids[other][:keep], draw(rng, n)])
                    turn(store, ids[name], agents[name])
                    lineages[name].append(ids[name])
                elif what == "delete" and agents.get(name):
                    store.delete_agent(agents.pop(name))
                    private, ids[name], lineages[name] = ids[name], np.zeros(0, np.uint32), []
                    kept = store.match(private).n_tokens
                    others = (one for of in lineages.values() for one in of)
                    assert was_lost or kept <= max((common(private, one) for one in others), default=0)
                elif what == "compact":
                    store.compact()
                elif what == "squeeze":
                    budget, is_lossless = held_bytes(path) * 3 // 4, False
                elif what == "lose":
                    is_lossless = is_lossless and not agents
                if what in ("open", "squeeze", "lose"):
                    store_of.__exit__(None, None, None)
                    if what == "lose":
                        (path / MANIFEST).unlink()
                        agents = {}
                    store_of = opened(path, disk_bytes=budget)
                    store = store_of.__enter__()
                    budget, was_lost = None, what == "lose"
                assert store._io.call(partial(check, store._catalog)) == []
                for one in ids.values():
                    match = store.match(one)
                    assert is_right(load(store, match)[0], one[: match.n_tokens])
                    assert load(store, match)[1]
                    assert match.n_tokens == len(one) or not is_lossless or not len(one)
                for segment in shared(store):
                    assert stretches(store._catalog.segments, segment, segment.start, segment.stop)
            store.flush()
            assert store.stats()["damage"] == was_lost
            assert len(store.verify().damaged) == was_lost, "the manifest alone"
        finally:
            store_of.__exit__(None, None, None)


def common(a, b) -> int:
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n
