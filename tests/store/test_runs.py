"""Laws 2 and 10 in the bare store and warm: a chain that is no single run's bits is never told ``exact``.

Rows name what they were computed on, so that a restored chain shows by itself whether it is one run's.
"""

from __future__ import annotations

import hashlib
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.kvcache.coding import coding
from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.prefix.authors import GRID, of_row, origin
from agent_memory.prefix.provenance import Provenance
from agent_memory.prefix.resume import Held
from agent_memory.store.rewriting import Compactor
from agent_memory.store.save import Save
from agent_memory.store.store import Store
from agent_memory.tiers.copies import Copy
from agent_memory.tiers.tiers import Tiers
from agent_memory.types import weakest

CHUNK, WINDOW = 8, 5
_FULL = tuple(TensorSpec(f"000.{k}", 1, 8, "F32") for k in "kv")
_WINDOW = tuple(TensorSpec(f"001.{k}", 1, 8, "F32") for k in "kv")
LAYOUTS = {
    "full": Layout(_FULL, ("full",)),
    "windows": Layout(_FULL, ("full", "window"), windows=_WINDOW, window=WINDOW),
    "states": Layout(_FULL, ("full", "snapshot"), snapshots=("Plain",), state_bytes=16),
    "mixed": Layout(
        _FULL, ("full", "window", "snapshot"), windows=_WINDOW, window=WINDOW, snapshots=("Plain",), state_bytes=16
    ),
}
NONE = b"\0" * 16


def digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


@define
class RunKV:
    """A KV whose rows are digests of the run that computed them, their token, and all KV that they were computed on.

    A row of every tensor: its own digest, and that of the KV before it. The state is the last row's own digest.
    """

    layout: Layout
    ids: list[int] = field(factory=list)
    made: list[int] = field(factory=list)
    rows: list[bytes] = field(factory=list)
    window: list[bytes] = field(factory=list)  #: from ``held_from`` on
    state: bytes = NONE
    held_from: int = 0
    exactness: str = "exact"

    def feed(self, ids: list[int], number: int, *, is_on_grid: bool) -> None:
        """Compute tokens in one run. ``is_on_grid``: whole chunks from token 0 on have the bits that anyone's have."""
        n_grid = len(ids) // CHUNK * CHUNK if is_on_grid and not self.ids else 0
        for at, token in enumerate(ids):
            author = GRID if at < n_grid else of_row(number)
            before = self.before()
            own = digest(author.to_bytes(4, "little"), bytes([token]), before)
            self.rows.append(own + before)
            self.window.append(own + before)
            self.state = own
            self.ids.append(token)
            self.made.append(origin(author, 1))

    def before(self) -> bytes:
        """The digest of all that the next token is computed on."""
        n = len(self.ids)
        window = self.window[max(0, n - WINDOW + 1) - self.held_from :] if self.layout.windows else []
        return digest(*self.rows, b"|", *window, b"|", self.state if self.layout.snapshots else b"")

    @property
    def is_one_run(self) -> bool:
        """True if each row was computed on the rows, window rows and state that are here before it."""
        again = RunKV(self.layout)
        for token, row in zip(self.ids, self.rows, strict=True):
            if row[16:] != again.before():
                return False
            again.ids.append(token)
            again.rows.append(row)
            again.window.append(row)
            again.state = row[:16]
        has_windows = not self.layout.windows or self.window == self.rows[self.held_from :]
        return has_windows and (not self.layout.snapshots or self.state == again.state)

    def read(self, tensor: int, start: int, stop: int, codec: str) -> np.ndarray:
        is_full = tensor < len(self.layout.tensors)
        taken = self.rows[start:stop] if is_full else self.window[start - self.held_from : stop - self.held_from]
        form = coding((*self.layout.tensors, *self.layout.windows)[tensor], codec)
        if form is not None:
            return np.zeros((1, len(taken), form.row_bytes), np.uint8)
        return np.frombuffer(b"".join(taken), np.uint8).reshape(1, len(taken), 32)

    def held(self) -> Held:
        return Held(self.held_from, {len(self.ids)})

    def hand_over(self, found: Save | Copy) -> None:
        n_full = len(self.layout.tensors)
        for number, part in enumerate(found.parts):
            for tensor in range(n_full):
                found.put(number, tensor, self.read(tensor, part.start, part.stop, part.codec))
        for number, side in enumerate(found.sides):
            windows = range(n_full, n_full + len(self.layout.windows)) if side.start < side.stop else ()
            rows = [self.read(tensor, side.start, side.stop, side.codec) for tensor in windows]
            found.put_side(number, rows, np.frombuffer(self.state, np.uint8) if side.has_state else None)
        found.finish()


class Life:
    """Two agents' lineages over one store and its warm tier."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout, self.numbers = folder, layout, count()
        self.known: list[list[int]] = [[]]
        self.store: Store | None = None
        self.open("exact")

    def open(self, codec: str) -> None:
        """A new process: it knows nothing of who computed what is stored."""
        if self.store is not None:
            self.store.close()
        self.store = Store(self.folder, disk_bytes=None, chunk_tokens=CHUNK, codec=codec)
        self.tiers = Tiers(self.store, warm_bytes=1 << 20)
        self.tiers.attach("ab" * 32, self.layout, "h", {"model": "toy"})
        self.live = [RunKV(self.layout), RunKV(self.layout)]
        self.numbers = count()

    def say(self, which: int, ids: list[int]) -> None:
        self.live[which].feed(ids, next(self.numbers), is_on_grid=False)
        self._save(which)

    def compute(self, which: int, turn: int, is_on_grid: bool) -> None:
        """Compute known tokens anew, whatever is stored."""
        kv = self.live[which] = RunKV(self.layout)
        kv.feed(self.known[turn % len(self.known)], next(self.numbers), is_on_grid=is_on_grid)
        self._save(which)

    def _save(self, which: int) -> None:
        kv = self.live[which]
        ids, made = np.array(kv.ids, np.uint32), np.array(kv.made, np.uint32)
        kv.hand_over(self.store.begin_save(ids, len(ids), made, kv.exactness, agent_id=None, held=kv.held()))
        self.store.flush()
        self.known.append(list(kv.ids))

    def warm(self, which: int) -> None:
        kv = self.live[which]
        lineage = Provenance(np.array(kv.made, np.uint32), kv.exactness)
        copy = self.tiers.warm.begin(np.array(kv.ids, np.uint32), lineage, kv.held(), agent_id=None)
        if copy is not None:
            kv.hand_over(copy)

    def go_back(self, which: int, turn: int, keep: int) -> None:
        self.live[which] = self.restored(self.known[turn % len(self.known)][: keep or None])

    def join(self) -> None:
        self.store._io.call(lambda: list(Compactor(self.store.parts.catalog).steps(rest_s=-1.0)))

    def lose(self, number: int) -> None:
        """A file vanishes, which is found when it is read."""
        listed = self.store._manifest.segments()
        if listed:
            (self.folder / "kv" / listed[number % len(listed)].file).unlink(missing_ok=True)

    def restored(self, ids: list[int]) -> RunKV:
        """What the tiers have of a prefix of ``ids``, after the law is checked."""
        match = self.tiers.match(np.array(ids, np.uint32))
        if not match.n_tokens:
            return RunKV(self.layout)
        source, found = self.tiers.source(match, match.n_tokens), []
        for tensor, spec in enumerate((*self.layout.tensors, *self.layout.windows)):
            first = 0 if tensor < len(self.layout.tensors) else source.held_from
            out = np.zeros((1, match.n_tokens - first, spec.row_bytes), np.uint8)
            source.read_into(tensor, memoryview(out).cast("B"), match.n_tokens - first)
            source.encoded(tensor)
            found.append([row.tobytes() for row in out[0]])
        state = source.read_state() if self.layout.snapshots else None
        is_sound = source.check()
        source.close()
        if not is_sound:  # a file was lost: the store has forgotten it by now
            return self.restored(ids)
        kv = RunKV(
            self.layout,
            list(ids[: match.n_tokens]),
            match.made.tolist(),
            found[0],
            found[-1] if self.layout.windows else found[0][source.held_from :],
            NONE if state is None else state.tobytes(),
            source.held_from,
            weakest(match.exactness, source.exactness),
        )
        assert kv.exactness in ("recomputed", "quantized") or kv.is_one_run, f"{kv.exactness}, and of several runs"
        return kv


_WHICH = st.integers(0, 1)
_TURN, _KEEP = st.integers(0, 9), st.integers(0, 30)
_TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=11)
_STEPS = st.one_of(
    st.tuples(st.just("say"), _WHICH, _TOKENS),
    st.tuples(st.just("say"), _WHICH, _TOKENS),
    st.tuples(st.just("compute"), _WHICH, _TURN, st.booleans()),
    st.tuples(st.just("warm"), _WHICH),
    st.tuples(st.just("go_back"), _WHICH, _TURN, _KEEP),
    st.tuples(st.just("open"), st.sampled_from(["exact", "exact", "q8"])),
    st.tuples(st.just("join")),
    st.tuples(st.just("lose"), st.integers(0, 3)),
)


def live(layout: Layout, steps: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder), layout)
        for name, *how in steps:
            getattr(life, name)(*how)
        for ids in life.known:
            life.restored(ids)
        life.store.close()


@pytest.mark.parametrize("kind", LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(_STEPS, min_size=6, max_size=14))
def test_what_is_no_single_runs_bits_is_never_told_exact(kind: str, steps: list) -> None:
    live(LAYOUTS[kind], steps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYOUTS)
@settings(max_examples=1500, deadline=None)
@given(steps=st.lists(_STEPS, min_size=6, max_size=25))
def test_what_is_no_single_runs_bits_is_never_told_exact_in_many_lives(kind: str, steps: list) -> None:
    live(LAYOUTS[kind], steps)


WORDS, MORE, LAST = [n % 7 for n in range(21)], [5, 4, 3], [1, 1, 2]


@pytest.fixture(params=LAYOUTS)
def life(request: pytest.FixtureRequest, tmp_path: Path) -> Life:
    found = Life(tmp_path, LAYOUTS[request.param])
    yield found
    found.store.close()


def test_what_a_second_run_of_the_same_words_goes_on_with_is_recomputed(life: Life) -> None:
    life.say(0, WORDS)
    life.say(1, WORDS)  # the same chunks, with other bits: the first ones stay
    assert life.restored(WORDS).exactness == "exact"
    life.say(1, MORE)
    found = life.restored([*WORDS, *MORE])
    assert (len(found.ids), found.exactness, found.is_one_run) == (len(WORDS) + len(MORE), "recomputed", False)
    life.open("exact")  # a promise is not raised by another process, nor by what follows
    life.go_back(0, 3, 0)
    life.say(0, LAST)
    assert life.restored([*WORDS, *MORE, *LAST]).exactness == "recomputed"


@pytest.mark.parametrize("kind", ["windows", "states", "mixed"])
def test_window_rows_and_states_of_another_run_than_the_rows_say_so(kind: str, tmp_path: Path) -> None:
    life = Life(tmp_path, LAYOUTS[kind])
    life.say(0, WORDS)
    for one in [one for one in life.store._manifest.segments() if one.kind == "resume"]:
        (life.folder / "kv" / one.file).unlink()
    assert not life.restored(WORDS).ids  # the rows are there; what the other layers need is not
    life.say(1, WORDS)  # has both, and stores what is missing
    for codec in ("exact", "exact"):
        found = life.restored(WORDS)
        assert (len(found.ids), found.exactness, found.is_one_run) == (len(WORDS), "recomputed", False)
        life.warm(0)
        life.open(codec)
    life.store.close()


def test_a_tail_that_short_files_cover_is_not_stored_again_beside_a_longer_one(life: Life) -> None:
    life.say(0, [0, 0, 0])
    life.live[0] = RunKV(life.layout)
    life.say(0, [0])
    life.say(0, [0])
    life.live[0] = RunKV(life.layout)
    life.say(0, [0, 0])
    assert life.restored([0, 0, 0]).ids == [0, 0, 0]
    assert life.restored([0, 0]).exactness == "exact"


@pytest.mark.parametrize("is_on_grid", [False, True])
def test_one_run_stays_exact(life: Life, is_on_grid: bool) -> None:
    life.live[0].feed(WORDS, next(life.numbers), is_on_grid=is_on_grid)
    life.say(0, MORE)
    life.live[1] = life.restored(WORDS[: CHUNK * 2])  # as forks, and agents that begin alike, do
    life.say(1, LAST)
    life.warm(0)
    life.say(0, LAST)
    life.open("exact")
    life.go_back(0, 3, 0)
    life.say(0, WORDS)
    life.join()
    life.warm(0)
    assert [life.restored(ids).exactness for ids in life.known[1:]] == ["exact"] * 4
    assert len(life.restored(life.known[-1]).ids) == len(life.known[-1])


def test_chunks_of_the_prefill_grid_are_everyones(life: Life) -> None:
    life.live[0].feed(WORDS, next(life.numbers), is_on_grid=True)
    life.say(0, MORE)
    life.live[1].feed([*WORDS[: CHUNK * 2], 6], next(life.numbers), is_on_grid=True)
    life.say(1, MORE)
    assert [life.restored(ids).exactness for ids in life.known[1:]] == ["exact"] * 2


def test_what_warm_has_of_another_run_is_not_put_before_what_is_read_from_disk(life: Life) -> None:
    life.say(0, WORDS)
    life.say(0, MORE * 8)
    life.live[1].feed(WORDS, next(life.numbers), is_on_grid=False)
    life.warm(1)
    found = life.restored(life.known[-1])
    assert (len(found.ids), found.exactness, found.is_one_run) == (len(WORDS) + 24, "exact", True)
