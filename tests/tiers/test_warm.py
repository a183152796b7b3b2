"""The warm tier: what it gives back is right, whatever went in and out, and its bytes are those allocated."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Set
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.kvcache.coding import coded
from agent_memory.kvcache.layout import Layout, TensorSpec, is_kept
from agent_memory.prefix.provenance import DECODED, Provenance
from agent_memory.prefix.resume import Held
from agent_memory.prefix.worth import Costs
from agent_memory.store.reading import NOTHING
from agent_memory.tiers import lookup
from agent_memory.tiers.sources import WarmSource
from agent_memory.tiers.tiers import Tiers
from agent_memory.tiers.warm import Warm
from tests.parts.kvmodel import (
    IDENTITY,
    KINDS,
    SMALL,
    copy,
    draw,
    is_right,
    load,
    load_beside,
    rows,
    save,
    segment_files,
    tiered,
)

CHUNK, WINDOW = 16, 24
ROOM = 1 << 20


class Clock:
    """Time that passes when it is told to."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def bare(budget_bytes: int, *, ttl_s: float | None = None, pins: Set[int] = frozenset()) -> tuple[Warm, Clock]:
    """A warm tier of the layout ``SMALL``, with a clock."""
    clock = Clock()
    warm = Warm(budget_bytes, ttl_s=ttl_s, costs=Costs(), pins=pins, is_stored=lambda _: False, clock=clock)
    warm.attach(IDENTITY, SMALL, "h", CHUNK)
    return warm, clock


def prefilled(ids: np.ndarray) -> Provenance:
    return Provenance(np.full(len(ids), 1, np.uint8), "exact")


def put(warm: Warm, ids: np.ndarray, agent_id: int | None = None, layout: Layout = SMALL) -> bool:
    found = warm.begin(ids, prefilled(ids), Held(), agent_id=agent_id)
    if found is None:
        return False
    for number, part in enumerate(found.parts):
        for t, spec in enumerate(layout.tensors):
            found.put(number, t, rows(ids, spec, t)[:, part.start : part.stop].copy())
    found.finish()
    return True


def held(warm: Warm, ids: np.ndarray) -> int:
    """How many of ``ids`` are found."""
    return sum(take for _, take in warm.plan(ids).pieces)


def marks(n_tokens: int) -> list[int]:
    """Where a live KV of so many tokens has snapshots."""
    newest = n_tokens // CHUNK
    return [b * CHUNK for b in range(1, newest + 1) if is_kept(b, newest)]


def keep(tiers: Tiers, ids: np.ndarray, layout: Layout, agent_id: int | None = None, *, to_disk: bool = False) -> None:
    """A live KV of all of ``ids`` into warm or onto disk."""
    first, states = max(0, len(ids) // CHUNK * CHUNK - WINDOW + 1), marks(len(ids))
    if to_disk:
        save(tiers.store, ids, layout=layout, agent_id=agent_id, held_from=first, snapshots=states)
    else:
        copy(tiers, ids, layout=layout, agent_id=agent_id, held_from=first, snapshots=states)


@pytest.mark.parametrize("kind", ["full", *KINDS])
def test_rows_and_states_that_are_read_from_warm_are_counted(kind: str) -> None:
    layout, ids = ({"full": SMALL} | KINDS)[kind], draw(np.random.default_rng(0), 64)
    with tiered(None, ROOM, layout=layout) as tiers:
        keep(tiers, ids, layout)
        source = tiers.source(tiers.match(ids), len(ids))
        n_bytes = 0
        for number, spec in enumerate((*layout.tensors, *layout.windows)):
            n_rows = len(ids) - (0 if number < len(layout.tensors) else source.held_from)
            source.read_into(number, memoryview(bytearray(n_rows * spec.token_bytes)), n_rows)
            n_bytes += n_rows * spec.token_bytes
            assert source.n_read == n_bytes
        state = source.read_state()
        assert source.n_read == n_bytes + (0 if state is None else state.nbytes)
        assert (state is not None) == bool(layout.snapshots)


@pytest.mark.parametrize("kind", ["full", *KINDS])
def test_a_lineage_that_grows_is_found_whole_at_every_length(kind: str) -> None:
    layout, ids = ({"full": SMALL} | KINDS)[kind], draw(np.random.default_rng(0), 340)
    with tiered(None, ROOM, layout=layout) as tiers:
        for n in (1, 15, 16, 17, 40, 41, 47, 100, 128, 300, 331, 332):
            keep(tiers, ids[:n], layout, 7)
            match = tiers.match(ids)
            assert (match.n_tokens, match.tier, match.tier_tokens) == (n, "warm", {"warm": n})
            assert load_beside(tiers, match, ids, layout)
        tails = [p for p in tiers.warm._held.values() if p.piece.n_tokens < CHUNK]
        assert len(tails) == 1, "a tail that has grown leaves nothing of what it was"


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["full", *KINDS]),
    seed=st.integers(0, 10_000),
    n_steps=st.integers(2, 20),
    budget=st.sampled_from([30_000, 90_000, ROOM]),
)
def test_whatever_goes_in_and_out_what_is_found_is_right_and_bytes_are_counted(
    kind: str, seed: int, n_steps: int, budget: int
) -> None:
    layout, rng = ({"full": SMALL} | KINDS)[kind], np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        path = Path(folder) if rng.random() < 0.5 else None
        with tiered(path, budget, layout=layout) as tiers:
            agents = {
                n: tiers.store.create_agent("", name, system=None, tools="[]").agent_id for n, name in enumerate("abc")
            }
            known = {n: draw(rng, int(rng.integers(1, 60))) for n in range(3)}
            for _ in range(n_steps):
                n = int(rng.integers(3))
                base = known[int(rng.integers(3))] if rng.random() < 0.3 else known[n]
                cut = int(rng.integers(1, len(base) + 1)) if rng.random() < 0.3 else len(base)
                known[n] = np.concatenate([base[:cut], draw(rng, int(rng.integers(1, 70)))])
                if path is not None and rng.random() < 0.6:
                    keep(tiers, known[n], layout, agents[n], to_disk=True)
                    tiers.store.flush()
                if rng.random() < 0.7:
                    keep(tiers, known[n], layout, agents[n])
                if rng.random() < 0.15:
                    tiers.warm.release(agents[int(rng.integers(3))])
                for ids in known.values():
                    match = tiers.match(ids)
                    assert not match.n_tokens or load_beside(tiers, match, ids, layout)
                assert tiers.warm.check() == []
            tiers.warm.clear()
            assert (tiers.warm.n_bytes, len(tiers.warm), tiers.warm.check()) == (0, 0, [])


def test_the_check_of_warm_sees_what_is_out_of_step() -> None:
    warm, _ = bare(ROOM)
    assert put(warm, draw(np.random.default_rng(14), 40))
    assert warm.check() == []
    warm.n_bytes += 1
    assert len(warm.check()) == 1
    warm.n_bytes -= 1
    warm._leaves.clear()
    assert warm.check() == ["the leaves are not the pieces without a child"]


#: Layouts whose rows a lossy codec encodes: with full attention alone, and with windows beside it.
_WIDE = tuple(TensorSpec(f"000.{k}", 2, 16, "F32") for k in "kv")
_WIDE_WINDOW = tuple(TensorSpec(f"001.{k}", 1, 16, "F32") for k in "kv")
LOSSY = {
    "full": Layout(_WIDE, ("full",)),
    "windows": Layout(_WIDE, ("full", "window"), windows=_WIDE_WINDOW, window=WINDOW),
}


def encode(warm: Warm, ids: np.ndarray, made: np.ndarray, held_from: int) -> None:
    """A live KV into a lossy warm tier; fails where it asks for the rows of tokens that were decoded."""
    found = warm.begin(ids, Provenance(made, "exact"), Held(held_from, {len(ids)}), agent_id=1)
    if found is None:
        return
    layout = warm.layout
    assert layout is not None
    specs = [coded(spec, "q4") for spec in (*layout.tensors, *layout.windows)]

    def read(tensor: int, start: int, stop: int) -> np.ndarray:
        assert not (made[start:stop] & DECODED).any(), "what was decoded is encoded again"
        return rows(ids, specs[tensor], tensor)[:, start:stop].copy()

    n_full = len(layout.tensors)
    for number, part in enumerate(found.parts):
        for tensor in range(n_full):
            found.put(number, tensor, read(tensor, part.start, part.stop))
    for number, side in enumerate(found.sides):
        tensors = range(n_full, len(specs)) if side.start < side.stop else range(0)
        found.put_side(number, [read(t, side.start, side.stop) for t in tensors], None)
    found.finish()


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(sorted(LOSSY)), seed=st.integers(0, 10_000), budget=st.sampled_from([15_000, ROOM]))
def test_what_was_decoded_is_never_encoded_again_and_its_bytes_stay(kind: str, seed: int, budget: int) -> None:
    rng, layout = np.random.default_rng(seed), LOSSY[kind]
    specs = [coded(spec, "q4") for spec in (*layout.tensors, *layout.windows)]
    warm = Warm(budget, codec="q4", costs=Costs(), pins=set(), is_stored=lambda _: False)
    warm.attach(IDENTITY, layout, "h", CHUNK)
    known = draw(rng, 30)
    for _ in range(12):
        cut = int(rng.integers(1, len(known) + 1)) if rng.random() < 0.4 else len(known)
        known = np.concatenate([known[:cut], draw(rng, int(rng.integers(0, 40)))])
        match = lookup.find(warm, NOTHING, known)
        source = WarmSource(warm, match, match.n_tokens, None) if match.n_tokens else None
        for tensor, spec in enumerate(specs) if source is not None else ():
            first = 0 if tensor < len(layout.tensors) else source.held_from
            (span,) = source.encoded(tensor) if first < match.n_tokens else [None]
            if span is not None:
                assert (span.start, span.stop) == (0, match.n_tokens - first)
                assert np.array_equal(span.rows, rows(known, spec, tensor)[:, first : match.n_tokens])
        assert not match.n_tokens or (match.exactness, set(match.made)) == ("quantized", {1 | DECODED})
        made = np.concatenate([match.made, np.ones(len(known) - match.n_tokens, np.uint32)])
        live_from = max(source.held_from if source is not None else 0, len(known) // CHUNK * CHUNK - WINDOW + 1, 0)
        if rng.random() < 0.2:
            warm.clear()
        for piece in [held for held in warm._held.values() if held.window_rows and rng.random() < 0.1]:
            warm._drop_side(piece)  # as when another lineage has moved past it
        encode(warm, known, made, live_from)
        assert warm.n_bytes <= budget


def test_equal_prefixes_of_different_agents_are_held_once() -> None:
    rng = np.random.default_rng(1)
    shared = draw(rng, 10 * CHUNK)
    warm, _ = bare(ROOM)
    assert put(warm, shared, 0)
    one = warm.n_bytes
    for agent in range(1, 6):
        assert put(warm, np.concatenate([shared, draw(rng, 5)]), agent)
    assert len(warm) == 10 + 5
    assert warm.n_bytes < 2 * one
    for agent in range(5):
        warm.release(agent)
    assert len(warm) == 11, "the last one still stands on what all shared"
    warm.release(5)
    assert (len(warm), warm.n_bytes) == (0, 0)


def test_a_tail_that_another_agent_continued_is_not_held_twice() -> None:
    ids = draw(np.random.default_rng(2), 2 * CHUNK + 9)
    warm, _ = bare(ROOM)
    assert put(warm, ids, 1)
    n_bytes = warm.n_bytes
    assert put(warm, ids[: 2 * CHUNK + 4], 2)
    assert warm.n_bytes == n_bytes
    warm.release(1)
    assert held(warm, ids) == len(ids), "agent 2 needs it now"


def test_what_is_longest_unused_goes_first_from_its_end_and_what_others_share_last() -> None:
    rng = np.random.default_rng(3)
    shared = draw(rng, 4 * CHUNK)
    chats = [np.concatenate([shared, draw(rng, 3 * CHUNK)]) for _ in range(3)]
    warm, clock = bare(ROOM)
    for agent, ids in enumerate(chats):
        clock.now_s += 1
        assert put(warm, ids, agent)
    warm.budget_bytes = warm.n_bytes
    clock.now_s += 1
    warm.touch(warm._held[p.id] for p, _ in warm.plan(chats[0]).pieces)
    clock.now_s += 1
    assert put(warm, draw(rng, CHUNK), 9)
    assert [held(warm, ids) // CHUNK for ids in chats] == [7, 6, 7]
    clock.now_s += 1
    assert put(warm, draw(rng, 5 * CHUNK), 9)
    assert [held(warm, ids) // CHUNK for ids in chats] == [7, 4, 4]


def test_what_the_disk_has_goes_before_what_would_be_computed_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    stored, alone = draw(rng, 4 * CHUNK), draw(rng, 4 * CHUNK)
    with tiered(tmp_path, ROOM) as tiers:
        save(tiers.store, stored)
        tiers.store.flush()
        assert copy(tiers, alone, used_s=1.0)
        assert copy(tiers, stored, used_s=2.0)
        tiers.warm.budget_bytes = tiers.warm.n_bytes
        assert copy(tiers, draw(rng, 4 * CHUNK), used_s=3.0)
        assert tiers.match(alone).tier_tokens == {"warm": len(alone)}
        assert tiers.match(stored).tier_tokens == {"cold": len(stored)}


def test_what_is_expected_first_goes_last_whoever_shares_it() -> None:
    waits = {1: 500.0, 2: 3.0}
    clock = Clock()
    warm = Warm(
        1 << 20, costs=Costs(), pins=frozenset(), is_stored=lambda _: False, clock=clock,
        wait_of=lambda agent, idle_s: waits.get(agent or 0, idle_s),
    )  # fmt: skip
    warm.attach(IDENTITY, SMALL, "h", CHUNK)
    rng = np.random.default_rng(8)
    lineages = {agent: draw(rng, 32) for agent in (1, 2, 3)}
    for agent, ids in lineages.items():
        clock.now_s += 10.0
        assert put(warm, ids, agent)
    clock.now_s += 10.0
    warm.budget_bytes = warm.n_bytes * 2 // 3
    assert put(warm, lineages[3][:16], 3)  # 10 s unused: nearer than agent 1, farther than agent 2
    assert held(warm, lineages[1]) < 32
    assert held(warm, lineages[2]) == 32


def test_what_is_pinned_goes_last_and_makes_no_room_for_what_is_not() -> None:
    rng = np.random.default_rng(5)
    mine, others, long = draw(rng, 4 * CHUNK), draw(rng, 4 * CHUNK), draw(rng, 8 * CHUNK)
    pins = {1}
    warm, clock = bare(ROOM, pins=pins)
    for agent, ids in ((1, mine), (2, others)):
        clock.now_s += 1
        assert put(warm, ids, agent)
    warm.budget_bytes = warm.n_bytes
    assert not put(warm, long, 3)
    assert held(warm, mine) == len(mine)
    pins.add(3)
    assert put(warm, long, 3)
    assert (held(warm, mine), held(warm, others), held(warm, long)) == (0, 0, len(long))


def test_what_was_unused_for_its_time_goes_and_what_is_pinned_stays() -> None:
    rng = np.random.default_rng(6)
    chats = [draw(rng, 40) for _ in range(3)]
    warm, clock = bare(ROOM, ttl_s=10.0, pins={0})
    assert warm.expire() is None
    for agent, ids in enumerate(chats):
        assert put(warm, ids, agent)
        clock.now_s += 4.0
    assert warm.expire() == pytest.approx(2.0)  # at 12 s: the pinned one of 0 s never, the one of 4 s at 14 s
    clock.now_s = 14.5
    assert warm.expire() == pytest.approx(3.5)
    assert [held(warm, ids) > 0 for ids in chats] == [True, False, True]


def test_a_lineage_beyond_the_budget_is_not_taken_and_leaves_nothing() -> None:
    rng = np.random.default_rng(7)
    warm, _ = bare(20_000)
    small, large = draw(rng, CHUNK), draw(rng, 40 * CHUNK)
    assert put(warm, small)
    n_bytes = warm.n_bytes
    assert not put(warm, np.concatenate([small, large]))
    assert (warm.n_bytes, held(warm, small)) == (n_bytes, len(small)), "what it was to follow stays"


def test_a_copy_given_up_half_way_takes_along_what_was_to_follow_it() -> None:
    ids = draw(np.random.default_rng(8), 6 * CHUNK)
    warm, _ = bare(ROOM)
    first = warm.begin(ids[: 3 * CHUNK], prefilled(ids[: 3 * CHUNK]), Held(), agent_id=1)
    assert first is not None
    assert held(warm, ids) == 0, "nothing is found before it is there"
    assert put(warm, ids, 2)
    assert held(warm, ids) == 0, "nor what stands on it"
    first.abandon()
    first.abandon()
    assert (len(warm), warm.n_bytes) == (0, 0)


def test_what_is_struck_while_it_begins_leaves_nothing_that_stays() -> None:
    rng = np.random.default_rng(13)
    warm, _ = bare(ROOM)
    ids = draw(rng, 5 * CHUNK)

    class Struck(BaseException):
        pass

    enter, entered = warm._enter, []

    def strike(*args: Any) -> Any:
        if len(entered) == 3:
            raise Struck
        entered.append(enter(*args))
        return entered[-1]

    warm._enter = strike  # type: ignore[method-assign]
    with pytest.raises(Struck):
        put(warm, ids)
    warm._enter = enter  # type: ignore[method-assign]
    assert held(warm, ids) == 0
    assert put(warm, ids)
    assert held(warm, ids) == len(ids)
    warm.clear()
    entered.clear()
    warm._enter = strike  # type: ignore[method-assign]
    with pytest.raises(Struck):
        put(warm, ids)
    warm._enter = enter  # type: ignore[method-assign]
    warm.budget_bytes = 10 * entered[0].n_bytes
    assert put(warm, draw(rng, 10 * CHUNK)), "what was left half done makes room like anything else"
    assert len(warm) == 10


def test_files_whose_pieces_are_all_in_memory_are_not_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    ids = draw(rng, 20 * CHUNK)  # on disk: files of 8, 8 and 4 chunks
    with tiered(tmp_path, ROOM) as tiers:
        save(tiers.store, ids)
        assert copy(tiers, ids[: 12 * CHUNK])
        tiers.store.flush()
        match = tiers.match(ids)
        assert match.tier_tokens == {"warm": 8 * CHUNK, "cold": 12 * CHUNK}
        assert (match.tier, match.n_tokens) == ("cold", len(ids))
        segment_files(tmp_path)[0].stat()
        first = tiers.store._catalog.disk.path(match.pieces[0][0].segment)  # type: ignore[union-attr]
        first.unlink()
        for n in (len(ids), 17 * CHUNK + 3, 8 * CHUNK, 40):
            kv, sound = load(tiers, match, n)
            assert sound
            assert is_right(kv, ids[:n])
        tiers.prefetch(match)
        tiers.store.flush()
        assert tiers.store.stats()["damage"] == 0, "the file that is gone was never looked for"
        later = tiers.store._catalog.disk.path(match.pieces[-1][0].segment)  # type: ignore[union-attr]
        later.write_bytes(later.read_bytes()[:-8])
        _, sound = load(tiers, match)
        assert not sound
        assert tiers.match(ids).n_tokens == 16 * CHUNK


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_in_memory_and_the_rest_on_disk_make_one_kv(kind: str, tmp_path: Path) -> None:
    layout, ids = KINDS[kind], draw(np.random.default_rng(10), 20 * CHUNK + 5)
    with tiered(tmp_path, ROOM, layout=layout) as tiers:
        keep(tiers, ids, layout, to_disk=True)
        tiers.store.flush()
        keep(tiers, ids[: 9 * CHUNK], layout)
        match = tiers.match(ids)
        assert match.tier_tokens == {"warm": 8 * CHUNK, "cold": 12 * CHUNK + 5}
        assert load_beside(tiers, match, ids, layout)


def test_the_bytes_counted_are_at_least_those_allocated_and_little_more() -> None:
    specs = tuple(TensorSpec(f"{i:03d}.{k}", 2, 16, "F32") for i in range(8) for k in "kv")
    layout = Layout(specs, ("full",) * 8)
    rng = np.random.default_rng(11)
    chats = [draw(rng, 64 * n + 9) for n in range(1, 9)]
    warm = Warm(1 << 30, costs=Costs(), pins=set(), is_stored=lambda _: False)
    warm.attach(IDENTITY, layout, "h", 64)
    for ids in chats[:2]:
        put(warm, ids, 0, layout)
    warm.clear()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for agent, ids in enumerate(chats):
            assert put(warm, ids, agent, layout)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.9 * warm.n_bytes <= grown <= warm.n_bytes


def test_without_a_budget_there_is_no_warm_tier() -> None:
    ids: Any = draw(np.random.default_rng(12), 40)
    warm, _ = bare(0)
    assert not warm.is_on
    assert not put(warm, ids)
    assert warm.plan(ids).pieces == []
