"""Edits: what is stored changes whole or not at all, whatever is hidden meanwhile; check finds what is out of step."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent_memory.log.files import Files
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, apply, check, void
from agent_memory.store.store import Store
from tests.parts.breaking import Counted, Refusing
from tests.parts.kvmodel import MIXED, SMALL, draw, is_right, kv_files, load, load_beside, opened, save

IDS = draw(np.random.default_rng(0), 200)


def fill(store: Store, layout=SMALL) -> int:
    """Four small segments of an agent, and a lineage of another agent that leaves it after the second."""
    agents = [store.create_agent("", name, system=None, tools="[]").agent_id for name in "ab"]
    for stop in (16, 32, 48, 64):
        save(store, IDS[:stop], layout=layout, agent_id=agents[0])
        store.flush()
    save(store, np.concatenate([IDS[:32], IDS[100:140]]), layout=layout, agent_id=agents[1])
    store.flush()
    return agents[0]


def found(store: Store) -> list[str]:
    return store._io.call(lambda: check(store._catalog))


def edit(store: Store, one: Edit) -> bool:
    return store._io.call(lambda: apply(store._catalog, one))


def lose_a_row(catalog: Catalog) -> None:
    with catalog.disk.manifest.database.transaction() as db:
        db.execute("DELETE FROM segments WHERE segment = 4")


def change_a_row(catalog: Catalog) -> None:
    with catalog.disk.manifest.database.transaction() as db:
        db.execute("UPDATE segments SET start = start + 1 WHERE segment = 4")


def lose_a_side_row(catalog: Catalog) -> None:
    with catalog.disk.manifest.database.transaction() as db:
        db.execute("DELETE FROM sides WHERE rowid = (SELECT max(rowid) FROM sides)")


def forget_a_segment(catalog: Catalog) -> None:
    with catalog.lock:
        catalog.leave(catalog.segments[4])


def lose_a_parent(catalog: Catalog) -> None:
    with catalog.lock:
        catalog.segments[4].parent_number = 99


def miscount(catalog: Catalog) -> None:
    catalog.held_bytes += 1


FAULTS: dict[str, tuple[Callable[[Catalog], None], str]] = {
    "a row is lost": (lose_a_row, "segment 4 is in memory and not in the manifest"),
    "a row is another": (change_a_row, "segment 4: its row is another"),
    "a side file's row is lost": (lose_a_side_row, "is in memory and not in the manifest"),
    "a segment is forgotten": (forget_a_segment, "segment 4 is in the manifest and not in memory"),
    "a parent is none": (lose_a_parent, "segment 4 has no parent"),
    "a byte is counted too much": (miscount, "counted"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_check_finds_what_is_out_of_step_and_verify_begins_with_it(tmp_path, monkeypatch, name):
    plant, line = FAULTS[name]
    with opened(tmp_path, layout=MIXED, files=Counted()) as store:
        fill(store, MIXED)
        assert found(store) == []
        assert store.verify().ok
        plant(store._catalog)
        assert any(line in one for one in found(store))
        assert any(line in one for one in store.verify().damaged)
        monkeypatch.setattr(Catalog, "edited", lambda self: None)  # closing writes once more


def test_an_edit_of_what_is_gone_or_hidden_changes_nothing(tmp_path):
    with opened(tmp_path, files=Counted()) as store:
        fill(store)
        catalog = store._catalog
        last = catalog.segments[4]
        before = kv_files(tmp_path)
        with catalog.lock:
            catalog.hide([last], "damaged")
        assert store.match(IDS).n_tokens == 48, "found no more, at once"
        assert kv_files(tmp_path) == before
        assert catalog.segments[4] is last, "and stored until it is removed"
        assert not edit(store, Edit(remove=[last])), "the hidden one went first"
        assert len(kv_files(tmp_path)) == len(before) - 1
        assert found(store) == []
        assert store.match(IDS).stopped == "damaged"


def test_an_edit_that_the_disk_refuses_changes_neither_memory_nor_files(tmp_path):
    files = Refusing(errno.ENOSPC)
    with opened(tmp_path, files=files) as store:
        agent = fill(store)
        catalog, before = store._catalog, kv_files(tmp_path)
        segments, n_bytes = dict(catalog.segments), catalog.held_bytes
        with files.refusing(), pytest.raises(sqlite3.OperationalError):
            edit(store, Edit(remove=[catalog.segments[4]]))
        assert (catalog.segments, catalog.held_bytes, kv_files(tmp_path)) == (segments, n_bytes, before)
        assert store.match(IDS).n_tokens == 64
        assert found(store) == []
        store.delete_agent(agent)
        assert store.match(IDS).n_tokens == 32


def test_what_is_hidden_while_the_disk_refuses_is_removed_when_it_takes_writes(tmp_path):
    files = Refusing(errno.ENOSPC)
    with opened(tmp_path, files=files) as store:
        fill(store)
        n_files = len(kv_files(tmp_path))
        with files.refusing():
            void(store._catalog, store._catalog.segments[2], "damaged", "by a test")
            store._io.call(lambda: None)
            assert store.match(IDS).n_tokens == 16
            assert len(kv_files(tmp_path)) == n_files
            assert found(store) == []
        store.flush()
        assert len(kv_files(tmp_path)) == 1
        assert found(store) == []
        assert store.verify().ok


class Meanwhile(Counted):
    """Another thread does something while the n-th commit from now on runs: before it lasts, or after."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.work, self.is_after = 0, lambda: None, False

    def commit(self, db: sqlite3.Connection) -> None:
        self.left -= 1
        if self.left == 0 and not self.is_after:
            self.work()
        Files.commit(self, db)
        if self.left == 0 and self.is_after:
            self.work()


CHANGES: dict[str, Callable[[Store, int], object]] = {
    "a save": lambda store, agent: save(store, IDS[:80], agent_id=agent),
    "a join": lambda store, agent: store.compact(),
    "a deletion": lambda store, agent: store.delete_agent(agent),
    "a deletion that cuts": lambda store, agent: (store.compact(), store.delete_agent(agent)),
    "an eviction": lambda store, agent: setattr(store._catalog.disk.quota, "budget_bytes", 1) or store.flush(),
}


@pytest.mark.parametrize("is_after", [False, True], ids=["before it lasts", "before memory follows"])
@pytest.mark.parametrize("at", [1, 2])  # the second is that of what was hidden, or of what follows
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", CHANGES)
def test_damage_found_while_an_edit_commits_is_served_no_more_and_all_is_in_step(tmp_path, name, number, at, is_after):
    files = Meanwhile()
    with opened(tmp_path, files=files) as store:
        agent = fill(store)
        store._catalog.segments[1].used_s = 0.0
        catalog, harmed = store._catalog, store._catalog.segments[number]
        files.work = lambda: void(catalog, harmed, "damaged", "by a test")
        files.left, files.is_after = at, is_after
        CHANGES[name](store, agent)
        store._catalog.disk.quota.budget_bytes = 1 << 30
        store.flush()
        store.flush()
        assert found(store) == []
        assert not catalog.hidden
        stored = {f"{file.parent.name}/{file.name}" for file in kv_files(tmp_path)}
        assert stored == {segment.file for segment in catalog.segments.values()}
        for ids in (IDS[:80], np.concatenate([IDS[:32], IDS[100:140]])):
            match = store.match(ids)
            assert files.left > 0 or harmed not in [piece.segment for piece, _ in match.pieces]
            assert not match.n_tokens or is_right(load(store, match)[0], ids[: match.n_tokens])
        assert store.verify().ok
    with opened(tmp_path) as store:
        assert store.stats()["damage"] == 0
        assert store.verify().ok


def test_side_files_follow_the_segment_that_takes_the_place_of_theirs(tmp_path):
    with opened(tmp_path, layout=MIXED, files=Counted()) as store:
        fill(store, MIXED)
        n_sides = sum(s.kind == "resume" for s in store._catalog.segments.values())
        store.compact()
        store.flush()
        assert found(store) == []
        assert sum(s.kind == "resume" for s in store._catalog.segments.values()) == n_sides > 1
        assert load_beside(store, store.match(IDS[:64]), IDS[:64], MIXED)


def test_a_file_goes_only_when_the_manifest_no_longer_names_it(tmp_path):
    named: list[int] = []

    class Ordered(Counted):
        def unlink(self, path: Path) -> bool:
            nonlocal named
            db = sqlite3.connect(f"file:{tmp_path}/manifest.sqlite3?mode=ro", uri=True)
            name = f"{path.parent.name}/{path.name}"
            named += db.execute("SELECT count(*) FROM segments WHERE file = ?", (name,)).fetchone()
            db.close()
            return super().unlink(path)

    with opened(tmp_path, files=Ordered()) as store:
        agent = fill(store)
        store.compact()
        store.delete_agent(agent)
    assert set(named) == {0}
