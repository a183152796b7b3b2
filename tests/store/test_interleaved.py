"""Saves that are planned, handed over and ended in any order, also while the I/O thread commits something else."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory.log.files import Files
from agent_memory.store.edit import check, void
from agent_memory.store.save import Save
from agent_memory.store.store import Store
from tests.parts.breaking import Counted
from tests.parts.kvmodel import KINDS, SMALL, WINDOWS, begin, draw, hand_over, is_right, load, load_beside, opened, save

IDS = draw(np.random.default_rng(0), 200)
OTHER = draw(np.random.default_rng(1), 200)
LAYOUTS = {"full": SMALL, **KINDS}


class Interleaved(Counted):
    """Does queued work of other threads around commits of the I/O thread; ``pattern``: how much before each, and after.

    No other thread's commits: the library takes the catalog's lock in none of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work, self.pattern = deque[Callable[[], object]](), deque[int]()

    def commit(self, db: sqlite3.Connection) -> None:
        self._do()
        Files.commit(self, db)
        self._do()

    def _do(self) -> None:
        if threading.current_thread().name != "agent_memory-io":
            return
        n_items = self.pattern.popleft() if self.pattern else 0
        for _ in range(min(n_items, len(self.work))):
            self.work.popleft()()


def found(store: Store) -> list[str]:
    return store._io.call(lambda: check(store._catalog))


def agents(store: Store) -> list[int]:
    return [store.create_agent("", name, system=None, tools="[]").agent_id for name in "ab"]


@pytest.mark.parametrize("is_after", [False, True], ids=["before it lasts", "before memory follows"])
@pytest.mark.parametrize("at", [4, 20, 24])
def test_what_is_planned_after_a_delta_while_a_longer_one_is_committed_is_stored(tmp_path, at, is_after):
    files = Interleaved()
    with opened(tmp_path, files=files) as store:
        one, two = agents(store)
        for stop in (4, 20, 24):
            save(store, IDS[:stop], agent_id=one)
            store.flush()
        fork = np.concatenate([IDS[:at], OTHER[:5]])
        files.work.append(lambda: save(store, fork, agent_id=two))
        files.pattern.extend([0, 1] if is_after else [1])
        save(store, IDS[:40], agent_id=one)
        store.flush()
        assert not files.work
        assert found(store) == []
        for ids in (IDS[:40], fork):
            match = store.match(ids)
            assert match.n_tokens == len(ids)
            assert is_right(load(store, match)[0], ids)
    with opened(tmp_path) as store:
        assert store.match(fork).n_tokens == len(fork)
        assert store.verify().ok
        assert store.stats()["damage"] == 0


def test_a_save_that_is_planned_after_kv_while_that_is_deleted_is_given_up(tmp_path):
    files = Interleaved()
    with opened(tmp_path, files=files) as store:
        one, two = agents(store)
        save(store, IDS[:40], agent_id=one)
        store.flush()
        fork = np.concatenate([IDS[:40], OTHER[:5]])
        files.work.append(lambda: save(store, fork, agent_id=two))
        files.pattern.extend([1])
        store.delete_agent(one)
        store.flush()
        assert not files.work
        assert found(store) == []
        assert store.match(fork).n_tokens == 0
        save(store, fork, agent_id=two)
        store.flush()
        assert store.match(fork).n_tokens == len(fork)
    with opened(tmp_path) as store:
        assert store.match(fork).n_tokens == len(fork)
        assert store.stats()["damage"] == 0


def test_a_resume_file_that_replaces_another_follows_its_piece_into_a_joined_segment(tmp_path):
    with opened(tmp_path, layout=WINDOWS, files=Counted()) as store:
        one, _ = agents(store)
        for stop in (16, 32):
            save(store, IDS[:stop], layout=WINDOWS, agent_id=one, held_from=stop - 8)
            store.flush()
        renewed = begin(store, IDS[:32], agent_id=one)
        assert renewed.sides
        store.compact(rest_s=-1.0)
        assert [s.n_tokens for s in store._catalog.segments.values() if s.kind == "rows"] == [32]
        hand_over(renewed, IDS[:32], layout=WINDOWS)
        store.flush()
        assert found(store) == []
        match = store.match(IDS[:32])
        assert match.n_tokens == 32
        assert load_beside(store, match, IDS[:32], WINDOWS)
    with opened(tmp_path, layout=WINDOWS) as store:
        assert store.match(IDS[:32]).n_tokens == 32
        assert store.stats()["damage"] == 0


def test_an_exact_copy_of_a_lossy_segment_follows_a_parent_that_was_joined(tmp_path):
    lossy = {"exactness": "quantized", "made": 1}
    with opened(tmp_path, files=Counted()) as store:
        one, two = agents(store)
        for stop in (16, 32):
            save(store, IDS[:stop], agent_id=one)
        fork = np.concatenate([IDS[:32], OTHER[:16]])
        save(store, fork, agent_id=two, **lossy)
        store.flush()
        exact = begin(store, fork, agent_id=one)
        assert [part.replaces.number for part in exact.parts] == [3]
        with store._catalog.lock:
            store._catalog.segments[3].used_s = 1e12  # used later than the others: it is joined to none
        store.compact(rest_s=-1.0)
        assert {s.parent_number for s in store._catalog.segments.values()} == {None, 1}
        hand_over(exact, fork)
        store.flush()
        assert found(store) == []
        assert store._catalog.segments[3].exactness == "exact"
        assert store.match(fork).n_tokens == 48
    with opened(tmp_path) as store:
        assert store.match(fork).n_tokens == 48
        assert store.stats()["damage"] == 0


def test_a_save_whose_leftovers_cannot_be_removed_is_stored_all_the_same(tmp_path):
    files = Interleaved()

    def refuse() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with opened(tmp_path, files=files) as store:
        one, _ = agents(store)
        save(store, IDS[:20], agent_id=one)
        store.flush()
        files.work.append(refuse)
        files.pattern.extend([0, 0, 1])
        save(store, IDS[:40], agent_id=one)
        store.flush()
        assert not files.work
        assert found(store) == []
        assert store.match(IDS[:40]).n_tokens == 40
        assert store.verify().ok
        assert [s.n_tokens for s in store._catalog.segments.values()] == [16, 16, 8], "the delta went later"


class Driver:
    """What engine threads do with a store: saves of two agents that share prefixes, begun and ended in any order."""

    def __init__(self, store: Store, kind: str) -> None:
        self.store, self.layout = store, LAYOUTS[kind]
        self.agents = agents(store)
        self.lineages = [IDS[:1], OTHER[:1]]
        self.begun: deque[tuple[Save, np.ndarray]] = deque()

    def begin(self, draw: int) -> None:
        """Plan a save: an agent goes on, from where it or the other one was."""
        who, base = draw % 2, self.lineages[draw // 2 % 2]
        cut = len(base) if draw // 4 % 3 else draw // 12 % len(base) + 1
        n_new = (1, 3, 12, 16, 33)[draw // 48 % 5]
        tail = (IDS, OTHER)[draw // 240 % 2][cut : cut + n_new]
        ids = self.lineages[who] = np.concatenate([base[:cut], tail])[:150]
        self.begun.append((begin(self.store, ids, agent_id=self.agents[who]), ids))

    def finish(self, draw: int) -> None:
        """Hand over one of the planned saves, or drop it."""
        if self.begun:
            self.begun.rotate(draw % len(self.begun))
            found, ids = self.begun.popleft()
            if draw % 7 == 6:
                found.abandon()
            else:
                hand_over(found, ids, layout=self.layout)

    def harm(self, draw: int) -> None:
        """Find one of the stored files damaged."""
        catalog = self.store._catalog
        assert catalog is not None
        with catalog.lock:
            ready = [s for s in catalog.segments.values() if s.is_ready]
        if ready:
            void(catalog, ready[draw % len(ready)], "damaged", "by a test")

    def end(self, draw: int) -> None:
        """Delete an agent; a new one takes its place."""
        who = draw % 2
        self.store.delete_agent(self.agents[who])
        self.agents[who] = self.store.create_agent("", f"agent {self.agents}", system=None, tools="[]").agent_id

    def evict(self, draw: int) -> None:
        """Let the folder take less for a while."""
        catalog = self.store._catalog
        assert catalog is not None
        catalog.disk.quota.budget_bytes = 1 << (draw % 20)
        self.store.flush()
        catalog.disk.quota.budget_bytes = 1 << 30

    def join(self, draw: int) -> None:
        """Join segments."""
        self.store.compact(rest_s=-1.0)

    def flush(self, draw: int) -> None:
        """Wait for the disk."""
        self.store.flush()

    def check(self) -> None:
        """Whatever is found is right, and all is in step."""
        self.store.flush()
        self.store.flush()
        catalog = self.store._catalog
        assert catalog is not None
        assert found(self.store) == []
        assert not catalog.hidden
        assert not catalog.disk.unfinished
        for ids in self.lineages:
            match = self.store.match(ids)
            assert not match.n_tokens or load_beside(self.store, match, ids, self.layout)


MEANWHILE = st.tuples(st.sampled_from(["begin", "finish", "begin", "finish", "harm"]), st.integers(0, 10_000))
STEPS = st.tuples(
    st.sampled_from(["begin", "finish", "begin", "finish", "harm", "end", "evict", "join", "flush"]),
    st.integers(0, 10_000),
    st.lists(st.integers(0, 2), max_size=6),
    st.lists(MEANWHILE, max_size=4),
)


def drive(path: Path, kind: str, steps) -> None:
    files = Interleaved()
    with opened(path, layout=LAYOUTS[kind], files=files) as store:
        driver = Driver(store, kind)
        for name, number, pattern, meanwhile in steps:
            files.pattern.extend(pattern)
            files.work.extend(lambda one=one, n=n: getattr(driver, one)(n) for one, n in meanwhile)
            getattr(driver, name)(number)
        store.flush()
        files.pattern.clear()
        while driver.begun:
            driver.finish(0)
        driver.check()
        assert store.verify().ok
    with opened(path, layout=LAYOUTS[kind]) as store:
        damage = store.stats()["damage"]
        assert store.verify().ok
        assert damage == 0


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(LAYOUTS)), steps=st.lists(STEPS, max_size=20))
def test_saves_in_any_order_with_all_else_leave_manifest_memory_and_files_in_step(kind, steps, edit_faults):
    with tempfile.TemporaryDirectory() as path:
        drive(Path(path), kind, steps)
    faults, edit_faults[:] = edit_faults[:], []  # the next run begins without those of this one
    assert faults == []
