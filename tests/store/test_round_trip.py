"""What was saved comes back, for every prefix; shared prefixes are stored once; bytes written follow new tokens."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.prefix.chunks import common_prefix
from tests.parts.kvmodel import SMALL, draw, is_right, load, opened, rows, save, segment_files

specs = st.builds(
    lambda h, d, t: (h, d, t), st.integers(1, 4), st.integers(1, 9), st.sampled_from(["F32", "BF16", "F16"])
)


@st.composite
def layouts(draw_):
    found = draw_(st.lists(specs, min_size=1, max_size=4))
    return Layout(tuple(TensorSpec(f"{i:03d}.k", *s) for i, s in enumerate(found)), ("full",) * len(found))


@given(
    layouts(), st.integers(2, 9), st.lists(st.lists(st.integers(1, 30), max_size=5), min_size=1, max_size=4), st.data()
)
@settings(max_examples=40, deadline=None)
def test_any_turns_of_any_layout_come_back_for_every_prefix(layout, chunk_tokens, agents, data):
    """Turns grow or fork from one another; after a reopening each stored prefix is found whole and right."""
    with tempfile.TemporaryDirectory() as folder:
        saved: list[np.ndarray] = [np.zeros(0, np.uint32)]
        with opened(Path(folder), layout=layout, chunk_tokens=chunk_tokens) as store:
            for turns in agents:
                base = data.draw(st.sampled_from(saved))
                ids = base[: data.draw(st.integers(0, len(base)))]
                for n in turns:
                    new = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
                    ids = np.concatenate([ids, np.array(new, np.uint32)])
                    save(store, ids, layout=layout)
                    saved.append(ids)
            store.flush()
            assert store.stats()["save_failures"] == 0
        with opened(Path(folder), layout=layout, chunk_tokens=chunk_tokens) as store:
            for ids in saved:
                match = store.match(ids)
                assert match.n_tokens == len(ids)
                for n in {0, len(ids) // 3, len(ids) - 1, len(ids)} - {-1}:
                    kv, sound = load(store, match, n, layout=layout)
                    assert sound
                    assert is_right(kv, ids[:n], layout)
            probe = np.array(data.draw(st.lists(st.integers(0, 2), max_size=60)), np.uint32)
            assert store.match(probe).n_tokens == max(common_prefix(ids, probe) for ids in saved)
            assert store.verify().ok


def test_two_agents_with_one_prefix_store_it_once(tmp_path):
    rng = np.random.default_rng(0)
    prefix, own = draw(rng, 16 * 20), 40
    with opened(tmp_path) as store:
        for _ in range(5):
            save(store, np.concatenate([prefix, draw(rng, own)]))
        store.flush()
        n_files = store.stats()["segments"]
    ids = [load_file(f)["ids"] for f in segment_files(tmp_path)]
    assert n_files == len(ids)
    assert sum(map(len, ids)) == len(prefix) + 5 * own


def test_bytes_written_stay_within_twice_the_new_tokens_over_twenty_turns(tmp_path):
    rng = np.random.default_rng(1)
    layout = Layout(tuple(TensorSpec(f"{i:03d}.{k}", 3, 64, "F32") for i in range(6) for k in "kv"), ("full",) * 6)
    for low, high in ((20, 200), (20, 21)):
        ids, n_new = np.zeros(0, np.uint32), 0
        with opened(tmp_path / f"{high}", layout=layout, chunk_tokens=256) as store:
            for turn in range(20):
                n = int(rng.integers(low, high))
                ids, n_new = np.concatenate([ids, draw(rng, n)]), n_new + n
                save(store, ids, layout=layout)
                store.flush()
                assert store.stats()["bytes_written"] <= 2 * n_new * layout.token_bytes + 65_536 * (turn + 1)


def test_tails_of_tiny_turns_are_merged_and_superseded_pieces_leave_no_file(tmp_path):
    rng = np.random.default_rng(2)
    ids = draw(rng, 150)
    with opened(tmp_path, chunk_tokens=64) as store:
        for n in range(1, 151):
            save(store, ids[:n])
            store.flush()
            assert len(segment_files(tmp_path)) <= 2 + 17
            assert store.match(ids).n_tokens == n
        assert is_right(load(store, store.match(ids))[0], ids)


def test_a_delta_that_another_lineage_continues_is_not_removed_when_its_chunk_fills(tmp_path):
    rng = np.random.default_rng(3)
    base = draw(rng, 20)
    left, right = np.concatenate([base, draw(rng, 6)]), np.concatenate([base, draw(rng, 40)])
    with opened(tmp_path) as store:
        for ids in (base, left, right):
            save(store, ids)
        store.flush()
        for ids in (left, right):
            assert store.match(ids).n_tokens == len(ids)
            assert is_right(load(store, store.match(ids))[0], ids)


def test_a_segment_is_a_safetensors_file_aligned_to_64_bytes(tmp_path):
    ids = draw(np.random.default_rng(4), 16 * 11 + 5)
    with opened(tmp_path) as store:
        save(store, ids)
        store.flush()
    lengths = []
    for file in segment_files(tmp_path):
        tensors = load_file(file)
        n = len(tensors["ids"])
        at = next(i for i in range(len(ids)) if np.array_equal(ids[i : i + n], tensors["ids"]))
        for t, spec in enumerate(SMALL.tensors):
            expected = rows(ids, spec, t)[:, at : at + n]
            assert np.array_equal(tensors[spec.name].view(np.uint8), expected)
        raw = file.read_bytes()
        header_bytes = 8 + int.from_bytes(raw[:8], "little")
        assert header_bytes % 64 == 0
        lengths.append(n)
    assert sorted(lengths) == [5, 48, 128]


def test_provenance_comes_back(tmp_path):
    ids = draw(np.random.default_rng(5), 40)
    with opened(tmp_path) as store:
        save(store, ids[:32], made=1)
        save(store, ids, made=2, exactness="recomputed")
    with opened(tmp_path) as store:
        assert store.match(ids[:32]).exactness == "exact"
        match = store.match(ids)
        assert match.exactness == "recomputed"
        assert (match.made & 7).tolist() == [1] * 32 + [2] * 8
    with opened(tmp_path, host="another") as store:
        assert store.match(ids[:32]).exactness == "moved"
    with opened(tmp_path, identity="cd" * 32) as store:
        assert store.match(ids).n_tokens == 0


def test_without_a_folder_nothing_is_stored_and_nothing_fails():
    ids = draw(np.random.default_rng(6), 40)
    with opened(None) as store:
        found = save(store, ids)
        assert found.parts == ()
        assert store.match(ids).n_tokens == 0
        assert store.verify().ok
