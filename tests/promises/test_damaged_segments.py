"""Damage is never served and never raised: a miss, a count and a warning."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.parts.breaking import Counted
from tests.parts.kvmodel import draw, is_right, load, opened, save, segment_files

TURNS = (10, 100, 300, 330)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A closed store of one lineage in several segments, and its ids."""
    path = tmp_path_factory.mktemp("template") / "store"
    ids = draw(np.random.default_rng(0), TURNS[-1])
    with opened(path) as store:
        for n in TURNS:
            save(store, ids[:n])
    return path, ids


def settle(store, ids) -> int:
    """Load as the engine does until a check holds; how many damages that took. What is served must be right."""
    for tries in range(10):
        match = store.match(ids)
        kv, sound = load(store, match)
        if sound:
            assert is_right(kv, ids[: match.n_tokens])
            return tries
    raise AssertionError("a match keeps offering damaged pieces")


def test_a_flipped_bit_anywhere_is_never_served_and_always_counted(template, tmp_path):
    path, ids = template
    rng = np.random.default_rng(1)
    for round_ in range(200):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        files = segment_files(copy)
        file = files[round_ % len(files)]
        raw = bytearray(file.read_bytes())
        at = (
            int(rng.integers(0, 8 + int.from_bytes(raw[:8], "little")))
            if round_ % 4 == 0
            else int(rng.integers(len(raw)))
        )
        raw[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(raw)
        with opened(copy, files=Counted()) as store:
            report = store.verify()
            assert [file.name in line for line in report.damaged] == [True], at
            tries = settle(store, ids)
            store.flush()
            assert tries == store.stats()["damage"] <= 1
            if tries:  # else the flip was in padding, which no KV depends on
                assert store.match(ids).stopped == "damaged"
                assert not file.exists()
                save(store, ids)
                store.flush()
                assert store.match(ids).n_tokens == len(ids)
                assert is_right(load(store, store.match(ids))[0], ids)
                assert store.verify().ok
        shutil.rmtree(copy)


def test_a_file_truncated_anywhere_under_an_open_store_is_noticed(template, tmp_path):
    path, ids = template
    for k in range(64):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        file = segment_files(copy)[k % 3]
        with opened(copy, files=Counted()) as store, file.open("r+b") as f:
            match = store.match(ids)
            source = store.source(match, match.n_tokens) if k % 2 else None
            f.truncate(file.stat().st_size * k // 64)
            is_noted = False
            if source is not None:  # cut after it was opened: found while reading, or nothing but the ids was cut off
                found = [np.ones((3, len(ids), 20), np.uint8) for _ in range(4)]
                for tensor, out in enumerate(found):
                    source.read_into(tensor, memoryview(out).cast("B"), len(ids))
                is_noted = not source.check()
                assert is_noted or (k > 56 and is_right(found, ids))
                source.close()
            assert settle(store, ids) == (0 if is_noted else 1)
            assert store.stats()["damage"] == 1
        with opened(copy, files=Counted()) as store:
            assert settle(store, ids) == 0
            assert store.verify().ok
        shutil.rmtree(copy)


def test_after_damage_the_rest_of_the_buffer_is_zero(template, tmp_path):
    path, ids = template
    shutil.copytree(path, tmp_path / "copy")
    file = max(segment_files(tmp_path / "copy"), key=lambda f: f.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 255
    file.write_bytes(raw)
    with opened(tmp_path / "copy") as store:
        kv, sound = load(store, store.match(ids))
        assert not sound
        assert not kv[-1].any()


def test_a_store_whose_kv_folder_was_deleted_opens_and_says_what_is_missing(template, tmp_path):
    path, ids = template
    shutil.copytree(path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "kv")
    with opened(tmp_path / "copy") as store:
        match = store.match(ids)
        assert (match.n_tokens, match.stopped) == (0, "missing")
        assert store.stats()["damage"] > 0
        save(store, ids)
        store.flush()
        assert is_right(load(store, store.match(ids))[0], ids)


def test_a_file_deleted_under_an_open_store_is_a_miss(template, tmp_path):
    path, ids = template
    shutil.copytree(path, tmp_path / "copy")
    with opened(tmp_path / "copy") as store:
        for file in segment_files(tmp_path / "copy"):
            file.unlink()
        assert settle(store, ids) == 1
        assert store.match(ids).stopped == "missing"
