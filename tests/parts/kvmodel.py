"""A plain stand-in for a model's KV: bytes that depend on every id up to and including the token's own.

``SMALL`` has full attention alone; ``WINDOWS`` a layer with a window of 24 tokens beside it, ``STATES`` a recurrent
one, ``MIXED`` both, ``STATE_ALONE`` nothing but the recurrent one.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.log.versions import Change, Span
from agent_memory.prefix.provenance import Provenance
from agent_memory.prefix.resume import Held
from agent_memory.store.reading import Match
from agent_memory.store.save import Save
from agent_memory.store.store import Store
from agent_memory.tiers.tiers import Tiers

IDENTITY = "ab" * 32
OTHER = "cd" * 32
SMALL = Layout(tuple(TensorSpec(f"{i:03d}.{k}", 3, 5, "F32") for i in range(2) for k in "kv"), ("full", "full"))
_FULL = SMALL.tensors[:2]
_WINDOW = tuple(TensorSpec(f"001.{k}", 2, 3, "F32") for k in "kv")
WINDOWS = Layout(_FULL, ("full", "window"), windows=_WINDOW, window=24)
STATES = Layout(_FULL, ("full", "snapshot"), snapshots=("Plain",), state_bytes=48)
MIXED = Layout(_FULL, ("full", "window", "snapshot"), windows=_WINDOW, window=24, snapshots=("Plain",), state_bytes=48)
STATE_ALONE = Layout((), ("snapshot",), snapshots=("Plain",), state_bytes=48)
KINDS = {"windows": WINDOWS, "states": STATES, "mixed": MIXED, "state alone": STATE_ALONE}


def state(ids: np.ndarray) -> np.ndarray:
    """The state after all of ``ids``."""
    return np.frombuffer(hashlib.sha384(ids.astype("<u4").tobytes()).digest(), np.uint8)


def rows(ids: np.ndarray, spec: TensorSpec, tensor: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """(heads, n, row_bytes) uint8, of the tokens ``[start, stop)``."""
    lanes = np.arange(spec.heads * spec.row_bytes, dtype=np.uint64).reshape(spec.heads, 1, spec.row_bytes)
    lanes += np.uint64(tensor * 1000)
    with np.errstate(over="ignore"):
        state = np.cumsum((ids.astype(np.uint64) + np.uint64(7)) * np.uint64(0x9E3779B97F4A7C15), dtype=np.uint64)
        mixed = state[None, start:stop, None] + lanes  # large; changed in place
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed >>= np.uint64(53)
    return mixed.astype(np.uint8)


@contextlib.contextmanager
def opened(
    path: Path | None,
    *,
    layout: Layout = SMALL,
    identity: str = IDENTITY,
    disk_bytes=None,
    chunk_tokens=16,
    host="h",
    files=None,
):
    store = Store(path, disk_bytes=disk_bytes, chunk_tokens=chunk_tokens, files=files)
    try:
        store.attach(identity, layout, host, {"model": "plain"})
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def tiered(path: Path | None, warm_bytes: int, *, layout: Layout = SMALL, chunk_tokens: int = 16):
    """A store with a warm tier in front of it."""
    store = Store(path, disk_bytes=None, chunk_tokens=chunk_tokens)
    try:
        tiers = Tiers(store, warm_bytes=warm_bytes)
        tiers.attach(IDENTITY, layout, "h", {"model": "plain"})
        yield tiers
    finally:
        store.close()


def begin(
    store: Store,
    ids: np.ndarray,
    *,
    agent_id: int | None = None,
    made: int | np.ndarray = 1,
    exactness="exact",
    held_from: int = 0,
    snapshots=(),
    is_turn: bool = True,
) -> Save:
    """Plan a save; ``hand_over`` does the rest. ``made``: provenance of all tokens, or of each."""
    return store.begin_save(
        ids,
        len(ids),
        np.full(len(ids), made, np.uint32),
        exactness,
        agent_id=agent_id,
        held=Held(held_from, {*snapshots, len(ids)}),
        is_turn=is_turn,
    )


def hand_over(found: Save, ids: np.ndarray, *, layout: Layout = SMALL, held_from: int = 0, snapshots=()) -> None:
    """Put all that a save planned, and finish it."""
    for number, part in enumerate(found.parts):
        for t, spec in enumerate(layout.tensors):
            found.put(number, t, rows(ids, spec, t, part.start, part.stop))
    for number, side in enumerate(found.sides):
        assert side.start == side.stop or side.start >= held_from
        taken = [rows(ids, spec, 100 + t, side.start, side.stop) for t, spec in enumerate(layout.windows)]
        assert not side.has_state or side.stop in {*snapshots, len(ids)}
        found.put_side(
            number, taken if side.start < side.stop else [], state(ids[: side.stop]) if side.has_state else None
        )
    found.finish()


def save(store: Store, ids: np.ndarray, *, layout: Layout = SMALL, held_from: int = 0, snapshots=(), **planned) -> Save:
    found = begin(store, ids, held_from=held_from, snapshots=snapshots, **planned)
    hand_over(found, ids, layout=layout, held_from=held_from, snapshots=snapshots)
    return found


def copy(
    tiers: Tiers,
    ids: np.ndarray,
    *,
    layout: Layout = SMALL,
    agent_id: int | None = None,
    held_from: int = 0,
    snapshots=(),
    used_s: float | None = None,
) -> bool:
    """A lineage into warm; whether there was room for it."""
    found = tiers.warm.begin(
        ids,
        Provenance(np.full(len(ids), 1, np.uint8), "exact"),
        Held(held_from, {*snapshots, len(ids)}),
        agent_id=agent_id,
        used_s=used_s,
    )
    if found is None:
        return False
    for number, part in enumerate(found.parts):
        for t, spec in enumerate(layout.tensors):
            found.put(number, t, rows(ids, spec, t, part.start, part.stop))
    for number, side in enumerate(found.sides):
        taken = [rows(ids, spec, 100 + t, side.start, side.stop) for t, spec in enumerate(layout.windows)]
        found.put_side(
            number, taken if side.start < side.stop else [], state(ids[: side.stop]) if side.has_state else None
        )
    found.finish()
    return tiers.warm.find(found.path[-1].piece.id) is not None


def load(store: Store | Tiers, match: Match, n_tokens: int | None = None, *, layout: Layout = SMALL, spare: int = 5):
    """(KV as a list of arrays, whether check() held); the spare room must stay untouched."""
    n = match.n_tokens if n_tokens is None else n_tokens
    source = store.source(match, n)
    found = []
    for t, spec in enumerate(layout.tensors):
        out = np.full((spec.heads, n + spare, spec.row_bytes), 0xEE, np.uint8)
        source.read_into(t, memoryview(out).cast("B"), n + spare)
        assert (out[:, n:] == 0xEE).all()
        found.append(out[:, :n])
    sound = source.check()
    source.close()
    return found, sound


def load_beside(store: Store | Tiers, match: Match, ids: np.ndarray, layout: Layout) -> bool:
    """Whether all that a match gives is right, rows and states; False where the check did not hold."""
    source = store.source(match, match.n_tokens)
    n, first = match.n_tokens, source.held_from
    right = True
    for t, spec in enumerate((*layout.tensors, *layout.windows)):
        start, number = (0, t) if t < len(layout.tensors) else (first, 100 + t - len(layout.tensors))
        out = np.full((spec.heads, n - start + 3, spec.row_bytes), 0xEE, np.uint8)
        source.read_into(t, memoryview(out).cast("B"), n - start + 3)
        right = right and np.array_equal(out[:, : n - start], rows(ids[:n], spec, number, start))
        assert (out[:, n - start :] == 0xEE).all()
    if layout.windows:
        assert first <= max(0, n - layout.window + 1)
    if layout.snapshots:
        found = source.read_state()
        right = right and found is not None and np.array_equal(found, state(ids[:n]))
    sound = source.check()
    source.close()
    assert right or not sound, "something wrong was served"
    return sound


def is_right(kv: list[np.ndarray], ids: np.ndarray, layout: Layout = SMALL) -> bool:
    return all(np.array_equal(kv[t], rows(ids, spec, t)) for t, spec in enumerate(layout.tensors))


def segment_files(path: Path) -> list[Path]:
    return sorted(path.glob("kv/*/*.safetensors"))


def held_bytes(path: Path) -> int:
    """Allocated, of everything in the folder."""
    return sum(f.stat().st_blocks * 512 for f in path.rglob("*") if f.is_file())


def kv_files(path: Path) -> list[Path]:
    return sorted(path.glob("kv/*/*"))


def rewind(store: Store, agent_id: int, n_turns: int) -> None:
    """Take the log of an agent that was never rewound back to its first turns, keeping no version of it."""
    store.change(Change(agent_id=agent_id, branch=store.new_number(), base=Span(agent_id, n_turns)))


def draw(rng: np.random.Generator, n: int, vocabulary: int = 50_000) -> np.ndarray:
    return rng.integers(0, vocabulary, n).astype(np.uint32)
