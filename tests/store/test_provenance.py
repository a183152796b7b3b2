"""Law 10 in the bare store: whatever happens to a lineage, its rows are encoded once at most, and say so."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.kvcache.coding import coding
from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.prefix import sharing
from agent_memory.prefix.resume import Held
from agent_memory.store.edit import void
from agent_memory.store.save import Save
from agent_memory.store.store import Store
from tests.parts.kvmodel import held_bytes

CHUNK = 8
_SPECS = tuple(TensorSpec(f"{layer:03d}.{k}", 2, 8, "F32") for layer in range(2) for k in "kv")
FULL = Layout(_SPECS[:2], ("full",))
WINDOWS = Layout(_SPECS[:2], ("full", "window"), windows=_SPECS[2:], window=5)


@define
class Toy:
    """A KV whose rows tell how often they were encoded, and whether anything before them was.

    A row of every tensor: (times encoded, tainted, id, position), as bytes.
    """

    layout: Layout
    ids: list[int] = field(factory=list)
    made: list[int] = field(factory=list)
    rows: np.ndarray = field(factory=lambda: np.zeros((0, 4), np.uint8))  #: of full-attention layers
    window: np.ndarray = field(factory=lambda: np.zeros((0, 4), np.uint8))
    held_from: int = 0
    exactness: str = "exact"

    def feed(self, ids: list[int], made: int) -> None:
        for token in ids:
            tainted = bool(self.rows[:, :2].any() or self.window[:, :2].any())
            row = np.array([[0, tainted, token, len(self.ids)]], np.uint8)
            self.rows, self.window = np.concatenate([self.rows, row]), np.concatenate([self.window, row])
            self.ids.append(token)
            self.made.append(made)

    def read(self, tensor: int, start: int, stop: int, codec: str) -> np.ndarray:
        spec = (*self.layout.tensors, *self.layout.windows)[tensor]
        full = tensor < len(self.layout.tensors)
        taken = self.rows[start:stop] if full else self.window[start - self.held_from : stop - self.held_from]
        form = coding(spec, codec)
        row = np.zeros((len(taken), spec.row_bytes if form is None else form.row_bytes), np.uint8)
        row[:, :4] = taken
        row[:, 0] += form is not None
        return np.ascontiguousarray(np.broadcast_to(row, (spec.heads, *row.shape)))

    def save(self, store: Store) -> None:
        self.hand_over(self.begin(store))
        store.flush()

    def begin(self, store: Store) -> Save:
        held, ids = Held(self.held_from, {len(self.ids)}), np.array(self.ids, np.uint32)
        made = np.array(self.made, np.uint32)
        return store.begin_save(ids, len(ids), made, self.exactness, agent_id=None, held=held)

    def hand_over(self, found: Save) -> None:
        n_full = len(self.layout.tensors)
        for number, part in enumerate(found.parts):
            for tensor in range(n_full):
                found.put(number, tensor, self.read(tensor, part.start, part.stop, part.codec))
        for number, side in enumerate(found.sides):
            windows = range(n_full, n_full + len(self.layout.windows))
            found.put_side(number, [self.read(t, side.start, side.stop, side.codec) for t in windows], None)
        found.finish()


def restored(store: Store, ids: list[int], layout: Layout) -> Toy:
    """What the store has of a prefix of ``ids``."""
    match = store.match(np.array(ids, np.uint32))
    if not match.n_tokens:
        return Toy(layout)
    source, found = store.source(match, match.n_tokens), []
    for tensor, spec in enumerate((*layout.tensors, *layout.windows)):
        first = 0 if tensor < len(layout.tensors) else source.held_from
        out = np.zeros((spec.heads, match.n_tokens - first, spec.row_bytes), np.uint8)
        source.read_into(tensor, memoryview(out).cast("B"), match.n_tokens - first)
        for span in source.encoded(tensor):
            out[:, span.start : span.stop, :4] = span.rows[:, :, :4]
        assert (out == out[:1]).all()
        found.append(out[0, :, :4])
    held_from = source.held_from
    is_sound = source.check()
    source.close()
    if not is_sound:  # a file was lost: the store has forgotten it by now
        return restored(store, ids, layout)
    kv = Toy(
        layout,
        list(ids[: match.n_tokens]),
        match.made.tolist(),
        found[0],
        found[-1] if layout.windows else found[0][held_from:],
        held_from,
        match.exactness,
    )
    check(kv)
    return kv


def check(kv: Toy) -> None:
    rows = np.concatenate([kv.rows, kv.window])
    assert rows[:, 0].max(initial=0) <= 1, "a decoded row was encoded again"
    assert kv.exactness == "quantized" or not rows[:, :2].any(), "lossy posed as exact"
    assert kv.rows[:, 2].tolist() == kv.ids
    assert kv.rows[:, 3].tolist() == list(range(len(kv.ids)))


class Life:
    """Two lineages of one store, fed, saved and restored under whatever codec the store is opened with."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout, self.known = folder, layout, [[]]
        self.store = None

    def open(self, codec: str) -> None:
        if self.store is not None:
            self.store.close()
        self.store = Store(self.folder, disk_bytes=None, chunk_tokens=CHUNK, codec=codec)
        self.store.attach("ab" * 32, self.layout, "h", {"model": "toy"})
        self.live = [restored(self.store, self.known[-1 - i % len(self.known)], self.layout) for i in range(2)]

    def say(self, which: int, ids: list[int], made: int) -> None:
        self.live[which].feed(ids, made)
        self.live[which].save(self.store)
        self.known.append(list(self.live[which].ids))

    def begin(self, which: int) -> None:
        """Compute anew, whatever is stored."""
        self.live[which] = Toy(self.layout)

    def go_back(self, which: int, turn: int, keep: int) -> None:
        self.live[which] = restored(self.store, self.known[turn % len(self.known)][: keep or None], self.layout)

    def lose(self, number: int) -> None:
        """A file vanishes under the running store, which finds out when it looks."""
        self.store.flush()
        listed = self.store._manifest.segments()
        if listed:
            (self.folder / "kv" / listed[number % len(listed)].file).unlink(missing_ok=True)
            for ids in self.known:
                restored(self.store, ids, self.layout)


_WHICH = st.integers(0, 1)
_TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=11)
_STEPS = st.one_of(
    st.tuples(st.just("say"), _WHICH, _TOKENS, st.sampled_from([1, 2])),
    st.tuples(st.just("say"), _WHICH, _TOKENS, st.sampled_from([1, 2])),
    st.tuples(st.just("begin"), _WHICH),
    st.tuples(st.just("go_back"), _WHICH, st.integers(0, 9), st.integers(0, 20)),
    st.tuples(st.just("open"), st.sampled_from(["exact", "q8", "q4"])),
    st.tuples(st.just("lose"), st.integers(0, 3)),
)


@pytest.mark.parametrize("layout", [FULL, WINDOWS], ids=["full", "windows"])
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(_STEPS, min_size=6, max_size=14), codec=st.sampled_from(["q8", "q4"]))
def test_rows_are_encoded_once_at_most_and_say_so(layout: Layout, steps: list, codec: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder), layout)
        life.open(codec)
        for name, *given_ in steps:
            getattr(life, name)(*given_)
        for which in range(2):
            check(life.live[which])
        for ids in life.known:
            restored(life.store, ids, layout)
        life.store.close()


def _told(life: Life, which: int, *turns: list[int]) -> None:
    for ids in turns:
        life.say(which, ids, 1)


IDS = [i % 7 for i in range(48)]


def test_beside_an_exact_piece_no_rows_of_a_window_are_kept_encoded(tmp_path: Path) -> None:
    life = Life(tmp_path, WINDOWS)
    life.open("exact")
    _told(life, 0, IDS[:16], IDS[16:32], IDS[32:])  # the first turn's window is past and gone
    life.open("q4")
    life.begin(0)
    _told(life, 0, IDS[:16])  # its pieces are stored, exactly, and now its window is again
    found = restored(life.store, IDS[:16], WINDOWS)
    life.store.close()
    assert (len(found.ids), found.exactness) == (16, "exact")


def test_beside_an_exact_piece_no_rows_of_a_quantized_lineage_are_kept(tmp_path: Path) -> None:
    life = Life(tmp_path, WINDOWS)
    life.open("q4")
    _told(life, 0, IDS[:16])
    life.open("exact")
    kept = life.live[0]
    assert kept.exactness == "quantized"
    for file in tmp_path.glob("kv/*/*"):
        file.unlink()
    life.open("exact")
    life.live[0] = kept
    life.begin(1)
    _told(life, 1, IDS[:16], IDS[16:32], IDS[32:])  # the same, computed anew; its first window is past and gone
    _told(life, 0, [9])
    found = restored(life.store, IDS[:16], WINDOWS)
    life.store.close()
    assert found.exactness != "quantized"


def _kv_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("kv/*/*"))


def test_an_exact_copy_takes_the_place_of_a_quantized_one(tmp_path: Path) -> None:
    life = Life(tmp_path, FULL)
    life.open("q4")
    _told(life, 0, IDS[:40], IDS[40:])
    life.open("exact")
    held = _kv_bytes(tmp_path)
    reading = life.store.match(np.array(IDS, np.uint32))
    source = life.store.source(reading, len(IDS))
    life.begin(1)
    _told(life, 1, IDS[:44])  # all of the first segment, and half a chunk of the second
    assert [span.rows.shape[1] for span in source.encoded(0)] == [40, 8]  # who reads goes on with what was there
    assert source.check()
    source.close()
    found = restored(life.store, IDS[:40], FULL)
    assert (len(found.ids), found.exactness) == (40, "exact")
    assert restored(life.store, IDS, FULL).exactness == "quantized"
    assert not life.store.verify().damaged
    assert _kv_bytes(tmp_path) > held
    assert life.store.stats()["disk_bytes"] == held_bytes(tmp_path)
    life.open("q8")  # and a lossy one does not take it back, nor does the next process see anything else
    life.begin(1)
    _told(life, 1, IDS[:40])
    assert restored(life.store, IDS[:40], FULL).exactness == "exact"
    life.store.close()


@pytest.mark.parametrize("is_lost", [False, True], ids=["there", "lost by now"])
def test_stored_rows_that_another_save_has_taken_over_are_found_where_they_are_and_no_disk_is_blamed(
    tmp_path, is_lost, monkeypatch
):
    monkeypatch.setattr(sharing, "_LEAST_SHARE", 0)  # too few rows to share: both saves write them
    life = Life(tmp_path, FULL)
    life.open("q8")
    store = life.store
    first = Toy(FULL)
    first.feed([1, 2, 3], 1)
    first.save(store)
    one, two = (restored(store, first.ids, FULL) for _ in range(2))
    one.feed(list(range(10, 20)), 1)
    two.feed(list(range(30, 40)), 1)
    saves = one.begin(store), two.begin(store)
    assert [(rows.start, rows.stop) for save in saves for rows in save.parts[0].stored] == [(0, 3)] * 2, (
        "both begin with the stored rows"
    )
    one.hand_over(saves[0])
    store.flush()
    if is_lost:
        void(store._catalog, store.match(np.array(one.ids, np.uint32)).pieces[0][0].segment, "damaged", "by a test")
    two.hand_over(saves[1])
    store.flush()
    stats = store.stats()
    assert (stats["save_failures"], stats["disk_state"], stats["disk_failures"]) == (0, "ok", 0)
    assert stats["saves_skipped"] == ({"replaced": 1} if is_lost else {})
    assert (stats["unwritten_tokens"] > 0) is is_lost
    if is_lost:
        two.save(store)
    assert store.match(np.array(two.ids, np.uint32)).n_tokens == len(two.ids)
    assert len(restored(store, two.ids, FULL).ids) == len(two.ids), "each of its rows was encoded once"
    assert store.verify().ok
    store.close()
