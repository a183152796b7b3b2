"""Saves, joins and evictions read and write rows of their own lineages, however many other agents there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent_memory.kvcache.layout import Layout
from agent_memory.store.room import _evict
from agent_memory.store.store import Store
from tests.parts.kvmodel import MIXED, SMALL, draw, opened, save
from tests.parts.rowsread import Read


def others(store: Store, n: int, layout: Layout) -> None:
    """``n`` agents whose KV is stored."""
    for number in range(n):
        agent_id = store.create_agent("", f"other {number}", system=None, tools="[]").agent_id
        save(store, draw(np.random.default_rng(number), 20), agent_id=agent_id, layout=layout)
    store.flush()


def turns(store: Store, agent_id: int, layout: Layout) -> None:
    """Turns whose saves supersede the deltas before them."""
    ids = draw(np.random.default_rng(1_000), 60)
    for n_tokens in range(6, 61, 6):
        save(store, ids[:n_tokens], agent_id=agent_id, layout=layout)
        store.flush()


def evict(store: Store, agent_id: int) -> None:
    """Evict something, while a turn of the agent is expected."""
    catalog = store._catalog
    assert catalog is not None
    catalog.waits = lambda: {agent_id: 1.0}
    catalog.disk.io.call(lambda: _evict(catalog, 1))


@pytest.mark.parametrize("layout", [SMALL, MIXED])
@pytest.mark.parametrize("work", ["save", "join", "evict"])
def test_no_table_is_looked_through(work: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Read] = []
    for n_others in (4, 24):
        with opened(tmp_path / str(n_others), layout=layout) as store:
            others(store, n_others, layout)
            agent_id = store.create_agent("", "ann", system=None, tools="[]").agent_id
            if work != "save":
                turns(store, agent_id, layout)
            n_files = store.stats()["segments"]
            with monkeypatch.context() as patch, Read(store, patch) as read:
                if work == "save":
                    turns(store, agent_id, layout)
                elif work == "join":
                    store.compact()
                else:
                    evict(store, agent_id)
                store.flush()
            assert store.stats()["segments"] != n_files, "something was done"
            found.append(read)
    few, many = found
    assert many.scanned == set()
    if work == "save":
        assert many.n_steps - few.n_steps < 20 * 5, "and no step of SQLite's more for another agent, or few"
