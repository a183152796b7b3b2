"""Side files: what windows and recurrent layers need is there, is right, and is no more than is needed."""

from __future__ import annotations

import shutil
import sqlite3
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.kvcache.layout import is_kept
from agent_memory.prefix.pieces import Piece, Segment, resume_segment
from agent_memory.prefix.resume import Needs, restorable
from tests.parts.kvmodel import (
    KINDS,
    MIXED,
    STATES,
    WINDOWS,
    draw,
    held_bytes,
    load_beside,
    opened,
    save,
    segment_files,
)

CHUNK, WINDOW = 16, 24


def marks(n_tokens: int) -> list[int]:
    """Where a live KV of so many tokens has snapshots."""
    newest = n_tokens // CHUNK
    return [b * CHUNK for b in range(1, newest + 1) if is_kept(b, newest)]


def held(n_tokens: int) -> int:
    """The first token whose window rows a live KV holds."""
    return max(0, n_tokens // CHUNK * CHUNK - WINDOW + 1)


def keep(store: Any, ids: np.ndarray, layout: Any, agent_id: int | None = None) -> Any:
    n = len(ids)
    return save(store, ids, layout=layout, agent_id=agent_id, held_from=held(n), snapshots=marks(n))


def sides(store: Any) -> list[Segment]:
    return list(store._catalog.resume.values())


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_restored_at_the_tail_and_wherever_it_can_be(kind, tmp_path):
    layout = KINDS[kind]
    rng = np.random.default_rng(0)
    ids = draw(rng, 400)
    with opened(tmp_path, layout=layout) as store:
        for n in (1, 15, 16, 17, 40, 41, 100, 128, 300, 331, 332):
            keep(store, ids[:n], layout)
            store.flush()
            match = store.match(ids[:n])
            assert match.n_tokens == n
            assert load_beside(store, match, ids, layout)
            reached = 0
            for cut in range(1, n + 1):
                match = store.match(np.concatenate([ids[:cut], draw(rng, 20)]))
                assert reached <= match.n_tokens <= cut
                reached = match.n_tokens
                assert match.n_tokens == cut or match.stopped == "no snapshot"
                if reached and cut % 7 == 0:
                    assert load_beside(store, match, ids, layout)
            for mark in marks(n) if kind.startswith("state") else []:
                assert store.match(ids[:mark]).n_tokens == mark
        assert store.verify().ok
        assert held_bytes(tmp_path) == store.stats()["disk_bytes"]
    with opened(tmp_path, layout=layout) as store:
        assert load_beside(store, store.match(ids[:332]), ids, layout)
        assert store.match(ids[:332]).n_tokens == 332
        assert store.stats()["damage"] == 0


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 10_000), n_steps=st.integers(2, 14))
def test_agents_that_go_on_fork_and_turn_back_find_their_tails_and_leak_nothing(kind, seed, n_steps):
    import tempfile

    layout, rng = KINDS[kind], np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as path, opened(path_of(path), layout=layout) as store:
        agents = {name: store.create_agent("", name, system=None, tools="[]").agent_id for name in "abc"}
        known = {name: draw(rng, int(rng.integers(1, 60))) for name in "abc"}
        for _ in range(n_steps):
            name = "abc"[rng.integers(3)]
            base = known["abc"[rng.integers(3)]] if rng.random() < 0.3 else known[name]
            cut = int(rng.integers(1, len(base) + 1)) if rng.random() < 0.3 else len(base)
            known[name] = np.concatenate([base[:cut], draw(rng, int(rng.integers(1, 70)))])
            keep(store, known[name], layout, agents[name])
            store.flush()
            for who, ids in known.items():
                match = store.match(ids)
                if who == name:
                    assert match.n_tokens == len(ids)
                assert not match.n_tokens or load_beside(store, match, ids, layout)
        assert held_bytes(path_of(path)) == store.stats()["disk_bytes"]
        for name in known:
            if len(agents) > 1:
                store.delete_agent(agents.pop(name))
            store.flush()
            assert store.verify().ok
        last = store.match(known["c"])
        assert not last.n_tokens or load_beside(store, last, known["c"], layout)
        store.delete_agent(agents["c"])
        assert (segment_files(path_of(path)), sides(store)) == ([], [])


def path_of(path: str) -> Any:
    from pathlib import Path

    return Path(path)


def test_no_more_of_a_window_is_kept_than_itself_a_chunk_and_the_last_turn(tmp_path):
    rng = np.random.default_rng(1)
    ids = draw(rng, 1000)
    with opened(tmp_path, layout=WINDOWS) as store:
        a = store.create_agent("", "a", system=None, tools="[]").agent_id
        keep(store, ids[: 4 * WINDOW], WINDOWS, a)
        store.flush()
        assert sum(side.n_tokens for side in sides(store)) <= WINDOW + CHUNK
        n = 4 * WINDOW
        while n < 900:
            turn = int(rng.integers(1, 60))
            n += turn
            keep(store, ids[:n], WINDOWS, a)
            store.flush()
            assert sum(side.n_tokens for side in sides(store)) <= WINDOW + turn + 2 * CHUNK
            before = np.concatenate([ids[: n - turn], draw(rng, 5)])  # the turn is taken back
            assert store.match(before).n_tokens >= (n - turn) // CHUNK * CHUNK


def test_states_are_kept_by_the_rule_and_where_lineages_part(tmp_path):
    rng = np.random.default_rng(2)
    ids = draw(rng, 16 * 40)
    with opened(tmp_path, layout=STATES) as store:
        a, b = (store.create_agent("", name, system=None, tools="[]").agent_id for name in "ab")
        for n in range(CHUNK, 16 * 32 + 1, CHUNK):
            keep(store, ids[:n], STATES, a)
        store.flush()
        ends = sorted(store._catalog.model.index.pieces[s.parent].start + CHUNK for s in sides(store))
        assert ends == marks(16 * 32)
        other = np.concatenate([ids[: 16 * 28], draw(rng, 20)])
        keep(store, other, STATES, b)
        for n in range(16 * 33, 16 * 40 + 1, CHUNK):
            keep(store, ids[:n], STATES, a)
        store.flush()
        third = np.concatenate([ids[: 16 * 28], draw(rng, 20)])
        assert store.match(third).n_tokens == 16 * 28, "two lineages part there"
        assert store.match(other).n_tokens == len(other)


def test_a_turn_told_otherwise_leaves_no_side_files_behind(tmp_path):
    rng = np.random.default_rng(3)
    ids = draw(rng, 40)
    for layout in (WINDOWS, STATES):
        path = tmp_path / str(layout.window)
        with opened(path, layout=layout) as store:
            a = store.create_agent("", "a", system=None, tools="[]").agent_id
            counts = []
            for _ in range(20):  # each reply is changed before the next message
                ids = np.concatenate([ids[:-3], draw(rng, 20)])
                keep(store, ids, layout, a)
                store.flush()
                counts.append(len(sides(store)))
            assert max(counts) <= 16
            assert store.match(ids).n_tokens == len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_or_a_missing_side_file_costs_a_place_to_restore_at_and_no_more(kind, tmp_path):
    layout = KINDS[kind]
    ids = draw(np.random.default_rng(4), 300)
    with opened(tmp_path / "whole", layout=layout) as store:
        for n in (100, 290, 300):
            keep(store, ids[:n], layout)
    rng = np.random.default_rng(5)
    for round_ in range(30):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "whole", copy)
        with opened(copy, layout=layout) as store:
            beside = sorted(copy / "kv" / side.file for side in sides(store))
            file = beside[round_ % len(beside)]
            if round_ % 5 == 0:
                file.unlink()
            else:
                raw = bytearray(file.read_bytes())
                raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
                file.write_bytes(raw)
            assert [file.name in line for line in store.verify().damaged] == [True]
            for _ in range(3):
                match = store.match(ids)
                if not match.n_tokens or load_beside(store, match, ids, layout):
                    break
            else:
                raise AssertionError("a match keeps offering damage")
            store.flush()
            damage = store.stats()["damage"]
            assert damage <= 1
            if damage:
                assert not file.exists()
            keep(store, ids, layout)
            store.flush()
            assert store.match(ids).n_tokens == 300
            assert load_beside(store, store.match(ids), ids, layout)
            if damage or file.exists():  # else nobody has missed it yet
                assert held_bytes(copy) == store.stats()["disk_bytes"]
        shutil.rmtree(copy)


def test_side_files_missing_at_the_opening_are_counted_and_strangers_swept(tmp_path):
    ids = draw(np.random.default_rng(6), 100)
    with opened(tmp_path, layout=MIXED) as store:
        keep(store, ids, MIXED)
        store.flush()
        beside = [tmp_path / "kv" / side.file for side in sides(store)]
    for file in beside:
        file.rename(file.with_name("0" * 31 + file.name[31:]))
    with opened(tmp_path, layout=MIXED) as store:
        assert store.stats()["damage"] == len(beside)
        assert store.match(ids).n_tokens == 0
        assert len(segment_files(tmp_path)) == 2, "the segments"
        keep(store, ids, MIXED)
        store.flush()
        assert load_beside(store, store.match(ids), ids, MIXED)


def test_a_budget_counts_side_files_and_evicts_them_with_their_segments(tmp_path):
    rng = np.random.default_rng(7)
    with opened(tmp_path, layout=MIXED, disk_bytes=280_000) as store:
        for _ in range(20):
            keep(store, draw(rng, 70), MIXED)
            store.flush()
            assert held_bytes(tmp_path) == store.stats()["disk_bytes"] <= 280_000


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_older_write_version_gets_what_it_lacks_when_it_is_opened(tmp_path, version):
    ids = draw(np.random.default_rng(8), 100)
    with opened(tmp_path) as store:
        save(store, ids)
    db = sqlite3.connect(tmp_path / "manifest.sqlite3")
    (tmp_path / "lock").write_text("{}")  # those versions noted no checksum there
    db.execute("ALTER TABLE segments DROP COLUMN codec")
    if version == 1:
        db.execute("DROP TABLE sides")
    db.execute("UPDATE meta SET value = ? WHERE key = 'write_version'", (str(version),))
    db.commit()
    db.close()
    for layout, identity in ((MIXED, "ef" * 32), (MIXED, "ef" * 32)):
        with opened(tmp_path, layout=layout, identity=identity) as store:
            keep(store, ids, layout)
            store.flush()
            assert load_beside(store, store.match(ids), ids, layout)
    with opened(tmp_path) as store:
        assert store.match(ids).n_tokens == 100


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_restorable_finds_what_trying_every_length_finds(data):
    needs = Needs(data.draw(st.sampled_from([0, 5, 24])), data.draw(st.booleans()), CHUNK)
    path, stored, sides_, at = [], set(), {}, 0
    states = set()
    for number in range(data.draw(st.integers(0, 6))):
        n_tokens = data.draw(st.sampled_from([CHUNK, CHUNK, 3]))
        segment = Segment(
            number=number, identity="", parent=b"", start=at, n_tokens=n_tokens, chunk_tokens=CHUNK, exactness="exact",
            codec="exact", host="",
        )  # fmt: skip
        piece = Piece(bytes([number]), b"", segment, 0, n_tokens, 1, b"")
        if data.draw(st.booleans()):
            n_rows = data.draw(st.integers(0, n_tokens))
            is_ready = data.draw(st.sampled_from([True, True, False]))
            sides_[piece.id] = resume_segment(piece, n_rows, data.draw(st.booleans()))
            sides_[piece.id].is_ready = is_ready
            if is_ready:
                stored.update(range(at + n_tokens - n_rows, at + n_tokens))
                states.update([at + n_tokens] if sides_[piece.id].has_state else [])
        path.append((piece, n_tokens))
        at += n_tokens
    if path and data.draw(st.booleans()):
        path[-1] = (path[-1][0], data.draw(st.integers(1, path[-1][1])))
    length = sum(take for _, take in path)
    ends = [sum(take for _, take in path[: i + 1]) for i in range(len(path))]
    wanted = 0
    for n in ends:  # inside a piece no more is restorable than at its end, or the next one's
        has_rows = not needs.window or all(t in stored for t in range(max(0, n - needs.window + 1), n))
        has_state = not needs.state or n in states
        wanted = n if has_rows and has_state else wanted
    found, rows_from = restorable(path, sides_, needs)
    assert found == wanted <= length
    if found and needs.window:
        assert all(t in stored for t in range(rows_from, found))
