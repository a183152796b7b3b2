"""Small segments at rest are joined: fewer files, the same KV, whoever reads meanwhile; agents and deletions go on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.prefix.sharing import stretches
from agent_memory.store.rewriting import Compactor
from tests.parts.breaking import Counted
from tests.parts.kvmodel import (
    MIXED,
    SMALL,
    draw,
    held_bytes,
    is_right,
    kv_files,
    load,
    load_beside,
    opened,
    save,
    segment_files,
)


def resume_segments(store):
    return [segment for segment in store._manifest.segments() if segment.kind == "resume"]


def grow(store, ids, step: int, agent_id=None, layout=SMALL) -> None:
    for n in range(step, len(ids) + step, step):
        save(store, ids[:n], agent_id=agent_id, layout=layout)
        store.flush()


def test_segments_of_a_chunk_each_become_full_ones_and_tails_one(tmp_path):
    ids = draw(np.random.default_rng(0), 16 * 11 + 12)
    with opened(tmp_path, files=Counted()) as store:
        grow(store, ids, 4)
        assert len(segment_files(tmp_path)) == 11 + 3
        store.compact()
        assert len(segment_files(tmp_path)) == 3, "eight chunks, three, and the tail"
        assert store.stats()["segments"] == 3
        assert is_right(load(store, store.match(ids))[0], ids)
        assert store.match(ids).n_tokens == len(ids)
        assert store.verify().ok
        longer = np.concatenate([ids, draw(np.random.default_rng(1), 30)])
        save(store, longer)
        store.flush()
        assert is_right(load(store, store.match(longer))[0], longer)
        assert store.stats()["disk_bytes"] == held_bytes(tmp_path)
    with opened(tmp_path) as store:
        assert is_right(load(store, store.match(longer))[0], longer)
        assert store.stats()["damage"] == 0


def test_side_files_stay_with_their_pieces(tmp_path):
    ids = draw(np.random.default_rng(2), 16 * 6)
    with opened(tmp_path, layout=MIXED, files=Counted()) as store:
        grow(store, ids, 16, layout=MIXED)
        n_sides = len(resume_segments(store))
        store.compact()
        assert store.stats()["segments"] == 1
        assert len(resume_segments(store)) == n_sides > 1
        assert store.match(ids).n_tokens == len(ids)
        assert load_beside(store, store.match(ids), ids, MIXED)
    with opened(tmp_path, layout=MIXED) as store:
        assert store.stats()["damage"] == 0
        assert load_beside(store, store.match(ids), ids, MIXED)


def test_what_is_in_use_or_ends_a_lineage_is_left_alone(tmp_path):
    ids = draw(np.random.default_rng(3), 44)
    with opened(tmp_path, files=Counted()) as store:
        a, b = (store.create_agent("", name, system=None, tools="[]").agent_id for name in "ab")
        save(store, ids[:36], agent_id=b)
        grow(store, ids, 4, agent_id=a)
        before = segment_files(tmp_path)
        store.compact(rest_s=1000.0)
        assert segment_files(tmp_path) == before, "used just now"
        store.compact()
        assert segment_files(tmp_path) == before, "b ends inside the tail"
        assert {h for _, _, h in store._manifest.heads()} <= set(store._catalog.model.index.pieces)
        store.delete_agent(a)
        assert store.match(ids).n_tokens == 36
        assert is_right(load(store, store.match(ids))[0], ids[:36])


def test_the_head_of_an_agent_moves_to_the_joined_tail_and_goes_with_the_agent(tmp_path):
    ids = draw(np.random.default_rng(4), 28)
    with opened(tmp_path, files=Counted()) as store:
        agent = store.create_agent("", "a", system=None, tools="[]").agent_id
        grow(store, ids, 4, agent_id=agent)
        store.compact()
        assert len(segment_files(tmp_path)) == 2
        store.delete_agent(agent)
        assert kv_files(tmp_path) == []


def test_a_reader_keeps_what_it_has_open_and_a_match_from_before_is_a_miss_without_damage(tmp_path):
    ids = draw(np.random.default_rng(5), 64)
    with opened(tmp_path, files=Counted()) as store:
        grow(store, ids, 16)
        match = store.match(ids)
        source = store.source(match, 64)
        store.compact()
        out = [np.zeros((3, 64, 20), np.uint8) for _ in range(4)]
        for tensor, rows in enumerate(out):
            source.read_into(tensor, memoryview(rows).cast("B"), 64)
        assert source.check()
        assert is_right(out, ids)
        source.close()
        assert not load(store, match)[1]
        assert store.stats()["damage"] == 0
        assert is_right(load(store, store.match(ids))[0], ids)


def test_a_turn_that_comes_between_two_steps_is_kept(tmp_path):
    ids = draw(np.random.default_rng(6), 30)
    with opened(tmp_path, files=Counted()) as store:
        grow(store, ids[:24], 4)
        for n_steps in range(20):
            longer = np.concatenate([ids[:24], draw(np.random.default_rng(n_steps), 5)])
            steps = Compactor(store._catalog).steps(0.0)
            for _ in range(n_steps):
                store._io.call(lambda steps=steps: next(steps, None))
            save(store, longer)
            store._io.call(lambda steps=steps: list(steps))
            store.flush()
            assert store.match(longer).n_tokens == len(longer)
            assert is_right(load(store, store.match(longer))[0], longer)
            assert store.stats()["disk_bytes"] == held_bytes(tmp_path)


def test_damage_is_not_joined_into_something_whole(tmp_path):
    ids = draw(np.random.default_rng(7), 64)
    with opened(tmp_path, files=Counted()) as store:
        grow(store, ids, 16)
        file = segment_files(tmp_path)[2]
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
        store.compact()
        assert not load(store, store.match(ids))[1]
        match = store.match(ids)
        assert is_right(load(store, match)[0], ids[: match.n_tokens])
        assert store.stats()["damage"] == 1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 90), st.integers(1, 40)), min_size=1, max_size=10),
    st.sampled_from([SMALL, MIXED]),
    st.lists(st.sampled_from("abc"), max_size=2, unique=True),
)
def test_whatever_was_joined_all_lineages_are_found_as_before_and_deletion_frees_what_nobody_uses(turns, layout, gone):
    """Mark and sweep, by the manifest alone: what is stored is what the agents that are left can reach."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), layout=layout, files=Counted()) as store:
        path = Path(folder)
        agents = {name: store.create_agent("", name, system=None, tools="[]").agent_id for name in "abc"}
        ids = {name: np.zeros(0, np.uint32) for name in "abc"}
        rng = np.random.default_rng(len(turns))
        for number, (name, keep, n) in enumerate(turns):
            base = ids["abc"[number % 3]] if number % 4 == 3 else ids[name]
            ids[name] = np.concatenate([base[:keep], draw(rng, n)])
            save(store, ids[name], agent_id=agents[name], layout=layout)
            store.flush()
            if number % 3 == 1:
                reach = {name: store.match(one).n_tokens for name, one in ids.items()}
                store.compact()
                assert {name: store.match(one).n_tokens for name, one in ids.items()} == reach
        for name in gone:
            store.delete_agent(agents.pop(name))
        store.compact()
        store.flush()
        for name in agents:
            match = store.match(ids[name])
            if layout is SMALL:
                assert match.n_tokens == len(ids[name])
                assert is_right(load(store, match)[0], ids[name])
            else:
                assert not match.n_tokens or load_beside(store, match, ids[name], layout)
        index, reached = store._catalog.model.index, set()
        for _, _, head in store._manifest.heads():
            reached |= {p.id for p in index.ancestors(index.pieces[head])}
        for segment in [index.pieces[id].segment for id in reached]:  # and whose rows those share
            for one in stretches(store._catalog.segments, segment, segment.start, segment.shared_stop):
                reached |= {p.id for p in one.segment.pieces if p.start < one.stop}
        assert set(index.pieces) == reached
        assert {f"{f.parent.name}/{f.name}" for f in kv_files(path)} == {
            file.file for file in store._manifest.segments()
        }
        assert store.stats()["disk_bytes"] == held_bytes(path)
        assert store.stats()["damage"] == 0
        assert store.verify().ok
