"""KV read out and filled in again: the same bits, wherever it is cut, on every class of cache."""

from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from agent_memory.kvcache.layout import is_kept
from agent_memory.scheduler.faults import stripped
from agent_memory.types import Sampling
from tests.parts import tiny

pytestmark = pytest.mark.mlx

SHAPES = [n if n in tiny.ONE_OF_EACH else pytest.param(n, marks=pytest.mark.slow) for n in tiny.SHAPES]
CHUNK = 16  #: the tiny models' windows and chunks are of 32


class HostSource:
    """What was read out of a KV, in host memory: as much as a restore at ``n_tokens`` needs."""

    def __init__(self, kv: Any, n_tokens: int) -> None:
        layout = kv.layout
        self.n_tokens = n_tokens
        self.held_from = max(0, n_tokens - layout.window + 1) if layout.windows else 0
        self.rows = [kv.read(t, 0, n_tokens) for t in range(len(layout.tensors))]
        for t in range(len(layout.windows)):
            self.rows.append(kv.read(len(layout.tensors) + t, self.held_from, n_tokens))
        self.state = kv.read_state(n_tokens) if layout.snapshots else None

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        rows = self.rows[tensor]
        view = np.frombuffer(out, np.uint8).reshape(rows.shape[0], capacity, rows.shape[2])
        view[:, : rows.shape[1]] = rows

    def encoded(self, tensor: int) -> tuple[Any, ...]:
        return ()

    def read_state(self) -> Any:
        return self.state

    def check(self) -> bool:
        return True

    def close(self) -> None:
        pass


def _setup(name: str, dtype: str = "float32") -> Any:
    import mlx.core as mx

    from agent_memory.runner.batch import MLXBatch
    from agent_memory.runner.mlx import _probe

    built = tiny.model(name)
    built.set_dtype(getattr(mx, dtype))
    return built, MLXBatch(built, _probe(built)[0], CHUNK)


def _logits(model: Any, caches: Any, *tokens: int) -> bytes:
    import mlx.core as mx

    return np.array(model(mx.array([tokens]), cache=caches).astype(mx.float32)).tobytes()


def _fed(batch: Any, ids: list[int], grid: int = CHUNK) -> Any:
    kv = batch.empty()
    for start in range(0, len(ids), grid):
        batch.prefill(kv, ids[start : start + grid])
    return kv


def _ids(n: int) -> list[int]:
    return [random.Random(n).randrange(300) for n in range(n)]


def _assert_equal_from_here(model: Any, one: Any, other: Any) -> None:
    """Decoding, a message, one token fed alone as a message may be, decoding: bit by bit."""
    for tokens in ((1,), (2,), (3,), tuple(_ids(CHUNK)), (4,), (5,), (6, 7), (8,)):
        assert _logits(model, one.caches, *tokens) == _logits(model, other.caches, *tokens), tokens


#: In bfloat16 only what the CPU backend of mlx has kernels for: no mixtures of experts.
PLAIN = ["llama", "llama_windows", "gemma3_text", "falcon_h1"]


OTHERS = [n for n in tiny.SHAPES if n not in tiny.ONE_OF_EACH]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((n, "float32") for n in tiny.ONE_OF_EACH),
        *(pytest.param(n, "float32", marks=pytest.mark.slow) for n in OTHERS),
        *((n, "bfloat16") for n in PLAIN),
    ],
)
def test_a_restored_kv_gives_bit_equal_logits(name: str, dtype: str) -> None:
    model, batch = _setup(name, dtype)
    for n in (1, 15, 31, 32, 33, 48, 100, 256, 300):
        live = _fed(batch, _ids(n))
        _assert_equal_from_here(model, batch.restore(HostSource(live, n)), live)


@pytest.mark.parametrize("name", SHAPES)
def test_a_kv_restored_a_tensor_at_a_time_gives_bit_equal_logits(name: str) -> None:
    model, batch = _setup(name)
    for n in (31, 48):
        live = _fed(batch, _ids(n))
        *nothing_yet, restored = batch.restoring(HostSource(live, n))
        assert len(nothing_yet) == len(batch._layout.tensors) + len(batch._layout.windows)
        assert not any(nothing_yet)
        _assert_equal_from_here(model, restored, live)


@pytest.mark.parametrize("has_helper", [False, True])
def test_an_error_in_a_restore_holds_none_of_its_arrays(has_helper: bool) -> None:
    """A traceback's frames hold their functions, and these what they close over and their defaults."""
    import mlx.core as mx

    class Struck(HostSource):
        def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
            raise KeyboardInterrupt

    _, batch = _setup("llama")
    source = Struck(_fed(batch, _ids(100)), 100)
    with ThreadPoolExecutor(1) as helper:
        batch._helper = helper if has_helper else None
        gc.collect()
        floor = mx.get_active_memory()
        with pytest.raises(KeyboardInterrupt) as caught:
            batch.restore(source)
        helper.submit(int).result()  # by now the other half is over
        stripped(caught.value)
        gc.collect()
        assert mx.get_active_memory() == floor


@pytest.mark.parametrize("name", SHAPES)
def test_a_kv_read_out_while_it_decodes_is_restored_with_bit_equal_logits(name: str) -> None:
    model, batch = _setup(name)
    for n in (20, 60):
        live = _fed(batch, _ids(n))
        for n_more in (1, 12, 33):  # into the window, past it, round it
            for token in _ids(n_more):
                batch.prefill(live, [token])
            twin = live.copy(live.n_tokens)
            _assert_equal_from_here(model, batch.restore(HostSource(live, live.n_tokens)), twin)


@pytest.mark.parametrize("name", SHAPES)
def test_a_kv_cut_at_a_chunk_boundary_is_as_if_it_had_stopped_there(name: str) -> None:
    model, batch = _setup(name)
    ids = _ids(90)
    n_cuts = 0
    for boundary in range(CHUNK, 90, CHUNK):
        live = _fed(batch, ids)
        if live.reach(boundary) != boundary:
            continue
        n_cuts += 1
        stopped = _fed(batch, ids[:boundary])
        twin, source = live.copy(boundary), HostSource(live, boundary)
        assert live.trim(boundary)
        assert (live.n_tokens, twin.n_tokens) == (boundary, boundary)
        for other in (live, twin, batch.restore(source)):
            _assert_equal_from_here(model, other, _fed(batch, ids[:boundary]))
        _assert_equal_from_here(model, stopped, twin := _fed(batch, ids[:boundary]))
    full = batch._layout.is_full
    assert n_cuts == (5 if full else 1 if batch._layout.windows else 3), "snapshots at 80, 64 and 32"


@pytest.mark.parametrize("name", ["llama_windows", "gemma3_text"])
def test_a_window_can_be_cut_to_any_token_since_the_last_boundary(name: str) -> None:
    model, batch = _setup(name)
    for n in (20, 95):
        ids = _ids(n)
        live = _fed(batch, ids)
        for cut in range(1, n):
            assert (live.reach(cut) == cut) == (n < 32 or cut >= 80), cut
            twin = live.copy(cut)
            assert (twin is None) == (live.reach(cut) != cut)
            if twin is not None:
                fresh = _fed(batch, ids[:cut])
                got, wanted = (np.frombuffer(_logits(model, kv.caches, 9), np.float32) for kv in (twin, fresh))
                assert np.allclose(got, wanted, atol=1e-3)
        assert live.trim(n - 3)
        assert not live.trim(n - 1)
        assert (live.n_tokens, live.reach(n)) == (n - 3, n - 3)


@pytest.mark.parametrize("name", ["llama_windows", "gemma3_text"])
def test_a_window_holds_no_more_than_itself_and_one_chunk(name: str) -> None:
    _, batch = _setup(name)
    layout = batch._layout
    for grid in (CHUNK, 64):
        kv = _fed(batch, _ids(4 * layout.window), grid)
        for n in range(3 * CHUNK + 5):
            held = sum(cache.nbytes for cache in kv._of("window"))
            assert held <= (layout.window + CHUNK) * layout.window_token_bytes, (grid, n)
            batch.prefill(kv, [n])
    assert kv.nbytes <= 256 * layout.token_bytes + layout.fixed_bytes(kv.n_tokens, CHUNK)


@pytest.mark.parametrize("name", ["llama_windows", "gemma3_text"])
def test_a_window_in_order_of_time_computes_what_mlx_lm_computes(name: str) -> None:
    from mlx_lm.models.cache import make_prompt_cache

    model, batch = _setup(name)
    theirs, mine = make_prompt_cache(model), batch.empty().caches
    for n in (20, 5, 1, 1, 30, 16, *[1] * 40, 16, 1):
        got, wanted = (np.frombuffer(_logits(model, caches, *_ids(n)), np.float32) for caches in (mine, theirs))
        assert np.allclose(got, wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1", "llama4"])
def test_snapshots_are_kept_at_powers_of_two_back_in_prefill_and_decoding(name: str) -> None:
    model, batch = _setup(name)
    ids = _ids(10 * CHUNK + 3)
    prefilled = _fed(batch, ids)
    assert prefilled.snapshots == {163, 160, 144, 128, 64}
    decoded = _fed(batch, ids[:40])
    batch.insert(0, decoded, [*ids[:40], 5], group=0, sampling=Sampling())
    mate = _fed(batch, _ids(9))
    batch.insert(1, mate, [*_ids(9), 5], group=0, sampling=Sampling())
    out = [*ids[:40], 5]
    while len(out) < 163 + 1:
        out += [t for row, t in batch.step(0) if row == 0]
    [taken, _] = batch.remove([0, 1])
    assert taken.snapshots == {taken.n_tokens, 160, 144, 128, 64}
    assert taken.trim(144)
    fresh = _fed(batch, out[:144])
    got, wanted = (np.frombuffer(_logits(model, kv.caches, 9), np.float32) for kv in (taken, fresh))
    assert np.allclose(got, wanted, atol=1e-3)


def test_a_snapshot_once_dropped_is_never_wanted_again_and_few_are_kept() -> None:
    kept: set[int] = set()
    for newest in range(1, 600):
        wanted = {b for b in range(1, newest + 1) if is_kept(b, newest)}
        assert wanted - {newest} <= kept
        assert len(wanted) <= newest.bit_length() + 1
        for back in range(newest.bit_length()):  # something is left at a distance of about every power of two
            assert any(2**back <= newest - b < 4 * 2**back for b in {0, *wanted}) or newest < 2 * 2**back
        kept = wanted


def test_a_planted_fault_of_one_bit_is_seen_by_the_comparison() -> None:
    for name in ("llama", "gemma3_text", "qwen3_next"):
        model, batch = _setup(name)
        live = _fed(batch, _ids(40))
        source = HostSource(live, 40)
        if source.state is not None:
            source.state[-998] ^= 1 << 6
        else:
            source.rows[-1][0, 3, 2] ^= 1 << 6
        restored = batch.restore(source)
        assert _logits(model, restored.caches, 1) != _logits(model, live.caches, 1)


def test_a_restored_kv_has_room_and_is_not_copied_at_its_first_append() -> None:
    for name in ("llama", "llama_windows"):
        _, batch = _setup(name)
        live = _fed(batch, _ids(250))
        restored = batch.restore(HostSource(live, 250))
        before = restored.nbytes
        batch.insert(0, restored, [*range(250), 5], group=0, sampling=Sampling())
        assert len(batch.step(0)) == 1
        [kv] = batch.remove([0])
        assert (kv.n_tokens, kv.nbytes) == (251, before)


def test_a_copy_is_independent_and_cut_where_asked() -> None:
    model, batch = _setup("llama")
    ids = list(range(100))
    live = _fed(batch, ids, 256)
    twin = live.copy(60)
    assert twin is not None
    assert twin.n_tokens == 60
    fresh = _fed(batch, ids[:60], 256)
    before = _logits(model, live.copy(100).caches, 7)
    got, wanted = _logits(model, twin.caches, 9), _logits(model, fresh.caches, 9)
    assert np.allclose(np.frombuffer(got, np.float32), np.frombuffer(wanted, np.float32), atol=1e-3)
    assert _logits(model, live.caches, 7) == before


def test_a_window_with_sinks_and_an_unknown_class_are_kept_whole() -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import RotatingKVCache, _BaseCache

    from agent_memory.mlxcache import kinds, states

    class Odd(_BaseCache):
        def __init__(self, value: Any) -> None:
            self.state = value

        state: Any = None
        nbytes = 0

    sinks = RotatingKVCache(8, keep=2)
    for n in range(20):
        sinks.update_and_fetch(mx.full((1, 1, 1, 4), n), mx.full((1, 1, 1, 4), n))
    layout = kinds.probe([sinks, Odd([mx.zeros((2,)), None, (3, "x")]), Odd(object())])
    assert layout.kinds == ("snapshot", "snapshot", "unstored")
    assert not layout.is_storable
    assert "layer 002: Odd" in layout.unstored[0]
    (back,) = states.unpacked(states.packed([states.captured(sinks)]))
    twin = RotatingKVCache(8, keep=2)
    states.give(twin, back)
    assert np.array_equal(np.array(twin.keys), np.array(sinks.keys))
    assert (twin.offset, twin.keep, twin._idx) == (20, 2, sinks._idx)
    sinks.update_and_fetch(mx.full((1, 1, 1, 4), 99), mx.full((1, 1, 1, 4), 99))
    assert not np.array_equal(np.array(twin.keys), np.array(sinks.keys)), "the snapshot does not follow"
