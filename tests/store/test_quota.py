"""The budget is of real bytes: the manifest, its WAL and strangers' files count, after every reply and flush."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory import Config, EchoRunner, Memory
from tests.parts.breaking import Counted
from tests.parts.kvmodel import draw, held_bytes, kv_files, opened, save

BUDGET = 400_000


def test_a_strangers_file_takes_room_that_kv_must_leave(tmp_path):
    rng = np.random.default_rng(0)
    with opened(tmp_path, disk_bytes=BUDGET, files=Counted()) as store:
        for _ in range(20):
            save(store, draw(rng, 64))
        store.flush()
        before = len(kv_files(tmp_path))
        (tmp_path / "kv" / "notes").mkdir()
        stranger = tmp_path / "kv" / "notes" / "film.mp4"
        stranger.write_bytes(bytes(150_000))
        store.flush()
        assert store.stats()["disk_bytes"] == held_bytes(tmp_path) <= BUDGET
        assert len(kv_files(tmp_path)) < before
        stranger.write_bytes(bytes(2 * BUDGET))
        store.flush()
        assert [f for f in kv_files(tmp_path) if f.name != "film.mp4"] == []
        save(store, draw(rng, 64))
        store.flush()
        assert store.stats()["saves_skipped"] == {"no room": 1}
        assert stranger.stat().st_size == 2 * BUDGET
        stranger.unlink()
        store.flush()
        ids = draw(rng, 64)
        save(store, ids)
        store.flush()
        assert store.match(ids).n_tokens == 64


def test_a_kv_file_that_nobody_knows_goes_at_the_next_flush(tmp_path):
    with opened(tmp_path, files=Counted()) as store:
        save(store, draw(np.random.default_rng(1), 40))
        store.flush()
        known = kv_files(tmp_path)
        leaked = known[0].with_name("0" * 32 + ".safetensors")
        leaked.write_bytes(bytes(10_000))
        store.flush()
        assert kv_files(tmp_path) == known


def test_a_pinned_segment_and_what_it_stands_on_stay(tmp_path):
    rng = np.random.default_rng(2)
    with opened(tmp_path, disk_bytes=BUDGET, files=Counted()) as store:
        pinned = draw(rng, 150)
        save(store, pinned)
        store.flush()
        last = store.match(pinned).pieces[-1][0].segment
        store._catalog.pins.covers = lambda segment: segment.number == last.number
        for _ in range(30):
            save(store, draw(rng, 64))
            store.flush()
            assert held_bytes(tmp_path) <= BUDGET
        assert store.match(pinned).n_tokens == 150


operations = st.lists(
    st.tuples(
        st.sampled_from(["say", "say", "say", "fork", "rewind", "generate", "delete", "stranger", "evict"]),
        st.integers(0, 3),
        st.integers(0, 60),
    ),
    min_size=1,
    max_size=12,
)


def play(memory: Memory, path: Path, steps, budget: int) -> None:
    """Operations on a few agents; after each reply and flush the folder is within its budget."""
    for kind, who, size in steps:
        agent = memory.agent(f"agent {who}")
        text = "unbelievable " * size + "things"
        if kind == "say":
            assert agent.say(text).text == text
        elif kind == "generate":
            assert memory.generate(text).text == text
        elif kind == "rewind" and agent.info.n_turns:
            agent.rewind(1)
        elif kind == "fork":
            before = [{"role": m.role, "content": m.content} for m in agent.messages]
            assert memory.generate([*before, {"role": "user", "content": text}], agent=f"fork {who}").text == text
        elif kind == "delete":
            memory.delete(f"agent {who}")
        elif kind == "stranger":
            (path / f"stranger {who}").write_bytes(bytes(size * 1_000))
        elif kind == "evict":
            memory.evict()
        memory.flush()
        assert memory.stats().disk_bytes == held_bytes(path) <= budget


def memory_in(path: Path, budget: int) -> Memory:
    # Logs are never evicted: without a limit, the versions of 2,000 replaced histories alone exceed the budget.
    config = Config(chunk_tokens=16, prefill_tokens=16, disk_bytes=budget, keep_versions=2)
    return Memory(EchoRunner(), path, config=config)


@settings(max_examples=6, deadline=None)
@given(operations, st.integers(550_000, 900_000))
def test_the_budget_holds_after_every_reply_and_flush(steps, budget):
    with tempfile.TemporaryDirectory() as folder, memory_in(Path(folder), budget) as memory:
        play(memory, Path(folder), steps, budget)


@pytest.mark.slow
def test_the_budget_holds_in_2000_random_operations(tmp_path):
    draws = random.Random(0)
    kinds = ["say", "say", "say", "fork", "rewind", "generate", "delete", "stranger", "evict"]
    for part in range(4):
        with memory_in(tmp_path, 1_500_000) as memory:
            steps = [(draws.choice(kinds), draws.randrange(6), draws.randrange(60)) for _ in range(500)]
            play(memory, tmp_path, steps, 1_500_000)
            assert part or memory.stats().segments
    with memory_in(tmp_path, 1_500_000) as memory:
        assert memory.verify().ok


def test_a_pinned_agents_kv_survives_an_opening_with_less_room(tmp_path):
    with Memory(EchoRunner(), tmp_path) as memory:
        for name in ("kept", "other"):
            memory.agent(name).say(f"{name} " * 300)
        memory.agent("kept").pin()
    with Memory(EchoRunner(), tmp_path, config=Config(disk_bytes=1)) as memory:  # evicts while it opens
        assert memory.agent("kept").say("more").usage.tier == "cold"
        assert memory.agent("other").say("more").usage.computed_tokens > 1_000
