"""What is not the store's stays untouched: other files, what links point to, another disk behind ``kv``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from agent_memory.errors import StoreError
from agent_memory.store.store import Store
from tests.parts.kvmodel import draw, held_bytes, is_right, load, opened, save, segment_files

IDS = draw(np.random.default_rng(0), 90)
OTHERS = ("model.safetensors", "0123.tmp", "notes.txt", f"{'A' * 32}.safetensors", f"{'a' * 32}.safetensors.bak")


def fill(path: Path) -> None:
    with opened(path) as store:
        save(store, IDS)
        store.flush()


def contents(files) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in files}


def test_files_that_the_store_did_not_make_are_counted_named_and_never_removed(tmp_path):
    fill(tmp_path)
    folder = segment_files(tmp_path)[0].parent
    mine = [folder / name for name in OTHERS] + [tmp_path / "kv" / "x.safetensors", tmp_path / "lock.txt"]
    mine += [tmp_path / "kv" / "not-of-the-store" / f"{'b' * 32}.safetensors"]
    mine[-1].parent.mkdir()
    for file in mine:
        file.write_bytes(b"mine" * 3000)
    before = contents(mine)
    left_over = folder / f"{'c' * 32}.safetensors"
    left_over.write_bytes(b"a save that was killed")
    with opened(tmp_path) as store:
        store.flush()
        report = store.verify()
        assert set(report.strangers) == {str(file.relative_to(tmp_path)) for file in mine}
        assert report.ok
        assert store.stats()["disk_bytes"] == held_bytes(tmp_path)
        assert is_right(load(store, store.match(IDS))[0], IDS)
    assert contents(mine) == before
    assert not left_over.exists()


def test_a_store_whose_kv_is_a_link_to_another_disk_works_and_touches_nothing_else_there(tmp_path):
    store_path, disk = tmp_path / "store", tmp_path / "disk"
    fill(store_path)
    (store_path / "kv").rename(disk)
    (store_path / "kv").symlink_to(disk)
    mine = [disk / "model.safetensors", disk / "ab" / "model.safetensors", next(disk.glob("?" * 16)) / "a.safetensors"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"a user's model")
    before = contents(mine)
    longer = np.concatenate([IDS, IDS[:40]])
    with opened(store_path) as store:
        assert is_right(load(store, store.match(IDS))[0], IDS)
        save(store, longer)
        store.flush()
        kv_bytes = sum(file.stat().st_blocks * 512 for file in disk.rglob("*") if file.is_file())
        assert store.stats()["disk_bytes"] == held_bytes(store_path) + kv_bytes
        needed = store.stats()["disk_bytes"]
    for budget, is_whole in ((needed + 100_000, True), (needed // 2, False)):
        with opened(store_path, disk_bytes=budget) as store:
            store.flush()
            found = store.match(longer).n_tokens == len(longer)
            assert found == is_whole, "the budget counts what lies behind the link"
            assert store.verify().ok
    assert contents(mine) == before


def test_a_kv_link_whose_disk_is_not_there_is_refused_and_the_list_of_segments_kept(tmp_path):
    fill(tmp_path / "store")
    (tmp_path / "store" / "kv").rename(tmp_path / "disk")
    (tmp_path / "store" / "kv").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    with pytest.raises(StoreError, match="points to .*disk, which is no folder"):
        Store(tmp_path / "store", disk_bytes=None, chunk_tokens=16)
    (tmp_path / "unmounted").rename(tmp_path / "disk")
    with opened(tmp_path / "store") as store:
        assert store.match(IDS).n_tokens == len(IDS)


@pytest.mark.parametrize("name", ["lock", "manifest.sqlite3", "manifest.sqlite3-wal", "manifest.sqlite3-shm"])
def test_a_link_in_place_of_one_of_the_stores_own_files_is_refused_and_its_target_unchanged(tmp_path, name):
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    path = tmp_path / "store"
    fill(path)
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(target)
    with pytest.raises(StoreError, match="symbolic link"):
        Store(path, disk_bytes=None, chunk_tokens=16)
    assert target.read_bytes() == b"precious"
    assert os.readlink(path / name) == str(target)


def test_an_identitys_folder_that_is_a_link_is_refused_at_opening_and_nothing_is_lost(tmp_path):
    path, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    fill(path)
    folder = segment_files(path)[0].parent
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    before = contents(elsewhere.iterdir())
    for _ in range(2):
        with pytest.raises(StoreError, match=f"{folder.name} is a symbolic link.*or link .*kv as a whole"):
            Store(path, disk_bytes=None, chunk_tokens=16)
    assert contents(elsewhere.iterdir()) == before
    folder.unlink()
    elsewhere.rename(folder)
    with opened(path) as store:
        assert store.match(IDS).n_tokens == len(IDS)
        assert store.stats()["damage"] == 0


def test_a_link_that_takes_the_place_of_an_identitys_folder_is_not_written_through_and_nothing_there_is_removed(
    tmp_path,
):
    path, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    fill(path)
    with opened(path) as store:
        folder = segment_files(path)[0].parent
        folder.rename(elsewhere)
        folder.symlink_to(elsewhere)
        before = contents(elsewhere.iterdir())
        save(store, np.concatenate([IDS, IDS[:40]]))
        store.flush()
        assert store.stats()["save_failures"] == 1
        store._catalog.disk.quota.budget_bytes = 1
        store.flush()
    assert contents(elsewhere.iterdir()) == before


def test_a_link_of_another_name_among_the_kv_is_a_strangers(tmp_path):
    fill(tmp_path / "store")
    (tmp_path / "other").mkdir()
    (tmp_path / "store" / "kv" / "other").symlink_to(tmp_path / "other")
    with opened(tmp_path / "store") as store:
        assert store.match(IDS).n_tokens == len(IDS)
        assert store.verify().strangers == ("kv/other",)
