"""Opening: one holder at a time, versions, file modes, left-overs of a killed process."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

from agent_memory.errors import ClosedError, IncompatibleStoreError, StoreError, StoreLockedError
from agent_memory.store.store import Store
from tests.parts.kvmodel import draw, is_right, load, opened, rewind, save, segment_files

HOLD = """
import sys; from pathlib import Path; from agent_memory.store.store import Store
store = Store(Path(sys.argv[1]), disk_bytes=None, chunk_tokens=16); print("held", flush=True); sys.stdin.read()
"""


def test_a_second_store_in_one_process_is_refused_with_the_holder_named(tmp_path):
    holder = rf"this process \({os.getpid()}\)"
    with opened(tmp_path), pytest.raises(StoreLockedError, match=holder):
        Store(tmp_path, disk_bytes=None, chunk_tokens=16)
    Store(tmp_path, disk_bytes=None, chunk_tokens=16).close()


def test_a_store_whose_last_call_fails_releases_its_folder(tmp_path):
    def fail():
        raise OSError("the network is gone")

    store = Store(tmp_path, disk_bytes=None, chunk_tokens=16)
    store.at_close = fail
    with pytest.raises(OSError, match="network"):
        store.close()
    Store(tmp_path, disk_bytes=None, chunk_tokens=16).close()


def test_another_process_holds_the_store_until_it_ends(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(StoreLockedError, match=f"process {child.pid}"):
            Store(tmp_path, disk_bytes=None, chunk_tokens=16)
    finally:
        child.kill()
        child.communicate()
    Store(tmp_path, disk_bytes=None, chunk_tokens=16).close()


@pytest.mark.parametrize("key", ["read_version", "write_version"])
def test_a_newer_store_is_refused_and_left_as_it_was(tmp_path, key):
    with opened(tmp_path):
        pass
    manifest = tmp_path / "manifest.sqlite3"
    db = sqlite3.connect(manifest)
    db.execute("UPDATE meta SET value = '9' WHERE key = ?", (key,))
    db.commit()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    before = manifest.read_bytes()
    with pytest.raises(IncompatibleStoreError, match="9.*up to 1"):
        Store(tmp_path, disk_bytes=None, chunk_tokens=16)
    assert manifest.read_bytes() == before


def test_a_path_that_is_a_file_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot open the store.*File exists"):
        Store(tmp_path / "file", disk_bytes=None, chunk_tokens=16)


def test_every_file_is_the_owners_alone(tmp_path):
    path = tmp_path / "deep" / "store"
    with opened(path) as store:
        save(store, draw(np.random.default_rng(0), 40))
        store.flush()
        for found in [path, *path.rglob("*")]:
            assert stat.S_IMODE(found.stat().st_mode) == (0o700 if found.is_dir() else 0o600), found


def test_a_folder_that_holds_other_files_keeps_its_mode(tmp_path):
    path = tmp_path / "project"
    path.mkdir()
    path.chmod(0o755)
    (path / "main.py").write_text("x")
    for _ in range(2):  # the second time it holds a store too
        with opened(path) as store:
            save(store, draw(np.random.default_rng(0), 40))
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        for found in path.rglob("*"):
            if found.name != "main.py":
                assert not found.stat().st_mode & 0o077, found


def test_left_overs_are_swept_and_strangers_are_not(tmp_path):
    ids = draw(np.random.default_rng(1), 60)
    with opened(tmp_path) as store:
        save(store, ids)
    folder = segment_files(tmp_path)[0].parent
    left, other = (f"{'0' * 32}.tmp", f"{'1' * 32}.safetensors"), ("1.tmp", "model.safetensors", "notes.txt")
    for name in (*left, *other):
        (folder / name).write_bytes(b"x")
    with opened(tmp_path) as store:
        assert not [name for name in left if (folder / name).exists()]
        assert all((folder / name).exists() for name in other)
        assert store.stats()["damage"] == 0
        assert is_right(load(store, store.match(ids))[0], ids)


def test_opening_starts_no_thread_and_closing_ends_it_twice(tmp_path):
    before = threading.active_count()
    store = Store(tmp_path, disk_bytes=None, chunk_tokens=16)
    assert threading.active_count() == before
    agent = store.create_agent("", "a", system=None, tools="[]")
    rewind(store, agent.agent_id, 0)
    assert threading.active_count() == before + 1
    store.close()
    store.close()
    assert threading.active_count() == before
    with pytest.raises(ClosedError):
        store.describe(agent.agent_id, (None, None))


def test_two_identities_keep_their_kv_apart_in_one_folder(tmp_path):
    ids = draw(np.random.default_rng(2), 50)
    with opened(tmp_path) as store:
        save(store, ids)
    with opened(tmp_path, identity="cd" * 32) as store:
        assert store.match(ids).n_tokens == 0
        save(store, ids)
        store.flush()
        assert store.match(ids).n_tokens == 50
    with opened(tmp_path) as store:
        assert store.match(ids).n_tokens == 50
        assert store.verify().segments == 4


def test_ctrl_c_while_a_manifest_is_checked_ends_the_opening_and_repairs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("agent_memory.log.database._TICK_STEPS", 1)
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    child.kill()  # so that the manifest is checked
    child.communicate()

    def interrupted(done, total, what):
        told.append(what)
        raise KeyboardInterrupt

    told = []
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, disk_bytes=None, chunk_tokens=16, report=interrupted)
    assert told == ["checking the manifest, which was not closed"]
    assert not list(tmp_path.glob("*.damaged-*"))
    Store(tmp_path, disk_bytes=None, chunk_tokens=16).close()
