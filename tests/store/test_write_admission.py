"""What was promised is written; what was used once and is cheap to compute is not; a day has only so many bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent_memory import Config, EchoRunner, Memory
from agent_memory.store.store import Store
from agent_memory.store.writing import WriteAdmission, Written
from tests.parts.kvmodel import IDENTITY, SMALL, draw, opened, save, segment_files

DAY_S = 86_400.0


def cheap(store: Store) -> None:
    """Computing costs next to nothing, writing a second a save."""
    admission = store._catalog.disk.admission
    for _ in range(100):
        store.costs.computed(1_000, 1e-6)
    admission.note_write(1_000, 1.0)
    admission.note_commit(1.0)


def test_a_nameless_prompt_is_written_at_its_second_use_where_it_is_cheap_to_compute(tmp_path):
    ids = draw(np.random.default_rng(0), 40)
    with opened(tmp_path) as store:
        cheap(store)
        assert save(store, ids).parts == ()
        assert save(store, draw(np.random.default_rng(1), 40)).parts == ()
        assert store.stats()["saves_skipped"] == {"used once": 2}
        other_end = np.concatenate([ids[:32], draw(np.random.default_rng(2), 9)])
        save(store, other_end)
        store.flush()
        assert store.match(other_end).n_tokens == 41, "its beginning had been used before"
        assert store.stats()["saves_skipped"] == {"used once": 2}


def test_what_is_dear_to_compute_or_promised_is_written_at_once(tmp_path):
    rng = np.random.default_rng(3)
    with opened(tmp_path) as store:
        unmeasured = draw(rng, 20)
        save(store, unmeasured)
        agent = store.create_agent("", "a", system=None, tools="[]").agent_id
        cheap(store)
        own, wanted, dear = draw(rng, 20), draw(rng, 20), draw(rng, 40)
        save(store, own, agent_id=agent)
        assert store.begin_save(wanted, 20, np.ones(20), "exact", agent_id=None, is_wanted=True).parts
        store.costs.computed(1, 1e6)
        save(store, dear)
        store.flush()
        assert [store.match(ids).n_tokens for ids in (unmeasured, own, dear)] == [20, 20, 40]
        assert store.stats()["saves_skipped"] == {}


def test_what_an_agent_computed_for_no_reply_is_written_only_where_that_is_dear(tmp_path):
    rng = np.random.default_rng(4)
    with opened(tmp_path) as store:
        agent = store.create_agent("", "a", system=None, tools="[]").agent_id
        own = draw(rng, 32)
        save(store, own, agent_id=agent)
        cheap(store)
        made = np.ones(72, np.uint32)
        cut_short = np.concatenate([own, draw(rng, 40)])
        assert not store.begin_save(cut_short, 72, made, "exact", agent_id=agent, is_turn=False).parts
        assert store.stats()["saves_skipped"] == {"used once": 1}
        store.flush()
        heads = store._manifest.heads()
        store.costs.computed(1, 1e6)
        save(store, cut_short, agent_id=agent, is_turn=False)
        store.flush()
        assert store.match(cut_short).n_tokens == 72
        assert set(heads) < set(store._manifest.heads()), "the turn's lineage ends where it ended"
        store.delete_agent(agent)
        assert store.match(cut_short).n_tokens == 0


def test_over_the_bytes_of_a_day_no_kv_is_written_and_the_next_day_it_is():
    now = [10 * DAY_S]
    admission = WriteAdmission(1_000, Written(10, 900), lambda n: 0.0, clock=lambda: now[0])
    assert admission.refusal(b"a", 1, 100, is_promised=True) is None
    admission.spend(50)
    assert admission.refusal(b"a", 1, 100, is_promised=True) == "bytes of the day"
    assert admission.refusal(b"a", 1, 50, is_promised=True) is None
    now[0] += DAY_S
    assert admission.written == Written(11, 0)
    assert admission.refusal(b"a", 1, 1_000, is_promised=False) is None
    assert Written.parse(str(Written(3, 4))) == Written(3, 4)
    assert Written.parse("never") == Written.parse(None) == Written()


def test_the_bytes_of_a_day_outlast_the_process_and_logs_are_always_written(tmp_path: Path):
    config = Config(chunk_tokens=16, prefill_tokens=16, disk_bytes_per_day=200_000)
    said = []
    for number in range(3):
        with Memory(EchoRunner(), tmp_path, config=config) as memory:
            for turn in range(4):
                said.append(f"turn {number} {turn} " + "believable " * 20)
                memory.agent("ann").say(said[-1])
            memory.flush()
            written = sum(f.stat().st_size for f in segment_files(tmp_path))
            stats = memory.stats()
    assert stats.saves_skipped["bytes of the day"] >= 4
    assert stats.bytes_written == 0, "the day's bytes were written by another process"
    assert 0 < written <= 220_000
    with Memory(EchoRunner(), tmp_path) as memory:
        assert [m.content for m in memory.agent("ann").messages[::2]] == said


def test_a_prompt_that_is_warmed_ahead_of_need_is_stored_and_one_that_came_by_is_not(tmp_path: Path):
    config = Config(chunk_tokens=16, prefill_tokens=16)
    with Memory(EchoRunner(), tmp_path, config=config) as memory:
        cheap(memory._store)
        memory.prefill("A prompt that many will ask.")
        memory.generate("A prompt that came by.")
        memory.evict()
        assert memory.generate("A prompt that many will ask.", max_tokens=1).usage.tier == "cold"
        assert memory.generate("A prompt that came by.", max_tokens=1).usage.cached_tokens < 16
        assert memory.stats().saves_skipped["used once"] >= 1


def test_nothing_is_skipped_where_nothing_is_missing(tmp_path: Path):
    ids = draw(np.random.default_rng(4), 32)
    with opened(tmp_path) as store:
        save(store, ids)
        store.flush()
        cheap(store)
        store.attach(IDENTITY, SMALL, "h", {"model": "plain"})
        assert save(store, ids).parts == ()
        assert store.stats()["saves_skipped"] == {}
