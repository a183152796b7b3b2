"""Every cache class in and out of a batch: a row that decoded with others holds what it would hold alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from agent_memory.types import Sampling
from tests.parts import tiny

pytestmark = pytest.mark.mlx

GREEDY = Sampling()
SHAPES = [n if n in tiny.ONE_OF_EACH else pytest.param(n, marks=pytest.mark.slow) for n in tiny.SHAPES]
LENGTHS = (5, 60, 33, 100)  #: below, above, at and far above the tiny models' windows and chunks of 32


def _batch(name: str) -> Any:
    from agent_memory.runner.batch import MLXBatch
    from agent_memory.runner.mlx import _probe

    built = tiny.model(name)
    return MLXBatch(built, _probe(built)[0])


def _ids(n: int) -> list[int]:
    return [random.Random(n * 1000 + i).randrange(300) for i in range(n)]


def _fed(batch: Any, ids: list[int]) -> Any:
    kv = batch.empty()
    for start in range(0, len(ids), 16):
        batch.prefill(kv, ids[start : start + 16])
    return kv


def _alone(batch: Any, ids: list[int], n_steps: int) -> tuple[list[int], Any]:
    batch.insert(99, _fed(batch, ids[:-1]), ids, group=99, sampling=GREEDY)
    out: list[int] = []
    for _ in range(n_steps):
        out += [token for row, token in batch.step(99) if row == 99]
    [kv] = batch.remove([99])
    return out, kv


def _arrays(cache: Any) -> list[np.ndarray]:
    """What a cache holds, oldest token first."""
    kind = type(cache).__name__
    if kind == "CacheList":
        return [a for part in cache.caches for a in _arrays(part)]
    if kind == "ArraysCache":
        return [np.array(a) for a in cache.cache]
    arrays = cache.keys_and_values()
    if kind == "WindowKVCache":
        rows = slice(cache.offset - cache.start - cache.size(), cache.offset - cache.start)
        arrays = (cache.keys[..., rows, :], cache.values[..., rows, :])
    return [np.array(a) for a in arrays] + [np.array(cache.offset)]


def _assert_same(one: Any, other: Any) -> None:
    assert one.n_tokens == other.n_tokens
    for number, (mine, theirs) in enumerate(zip(one.caches, other.caches, strict=True)):
        assert type(mine) is type(theirs)
        for a, b in zip(_arrays(mine), _arrays(theirs), strict=True):
            assert a.shape == b.shape, f"layer {number}"
            assert np.allclose(a, b, atol=1e-3), f"layer {number}: {np.abs(a - b).max()}"


@pytest.mark.parametrize("name", SHAPES)
def test_rows_that_join_and_leave_hold_what_they_would_hold_alone(name: str) -> None:
    batch = _batch(name)
    out: dict[int, list[int]] = {}
    for number, n in enumerate(LENGTHS):  # each joins while the ones before it decode
        ids = _ids(n)
        batch.insert(number, _fed(batch, ids[:-1]), ids, group=0, sampling=GREEDY)
        out[number] = []
        for row, token in batch.step(0):
            out[row].append(token)
    rng = random.Random(1)
    while out:
        for _ in range(rng.randrange(3, 20)):
            for row, token in batch.step(0):
                out[row].append(token)
        leaving = rng.sample(list(out), min(len(out), rng.randrange(1, 3)))
        for number, kv in zip(leaving, batch.remove(leaving), strict=True):
            tokens = out.pop(number)
            wanted, alone = _alone(_batch(name), _ids(LENGTHS[number]), len(tokens))
            assert tokens == wanted
            _assert_same(kv, alone)


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_taken_out_decodes_on_and_joins_again(name: str) -> None:
    batch, ids = _batch(name), _ids(60)
    batch.insert(0, _fed(batch, ids[:-1]), ids, group=0, sampling=GREEDY)
    batch.insert(1, _fed(batch, _ids(33)[:-1]), _ids(33), group=0, sampling=GREEDY)
    before: list[int] = []
    for _ in range(8):
        before += [token for row, token in batch.step(0) if row == 0]
    [kv] = batch.remove([0])  # it covers what it gave out: feeding one id more is the next step
    batch.prefill(kv, [7])
    batch.step(0)
    batch.insert(0, kv, [*ids, *before, 7, 8], group=0, sampling=GREEDY)
    out: list[int] = []
    while len(out) < 10:
        out += [token for row, token in batch.step(0) if row == 0]
    [taken] = batch.remove([0])

    other = _batch(name)
    first, kv = _alone(other, ids, 8)
    assert first == before
    other.prefill(kv, [7])
    other.insert(0, kv, [*ids, *first, 7, 8], group=0, sampling=GREEDY)
    wanted: list[int] = []
    while len(wanted) < 10:
        wanted += [token for _, token in other.step(0)]
    assert out == wanted
    _assert_same(taken, other.remove([0])[0])


def test_the_prefix_of_a_decoding_row_is_copied_out_of_the_batch() -> None:
    batch, model_batch = _batch("llama"), _batch("llama")
    for number, n in enumerate((60, 33)):
        batch.insert(number, _fed(batch, _ids(n)[:-1]), _ids(n), group=0, sampling=GREEDY)
    waiting = batch.copy(1, 20)
    for _ in range(4):
        batch.step(0)
    for row, n in ((0, 60), (1, 33)):
        twin = batch.copy(row, 30)
        assert (twin.n_tokens, twin.caches[0].offset) == (30, 30)
        _assert_same(twin, _fed(model_batch, _ids(n)[:30]))
    _assert_same(waiting, _fed(model_batch, _ids(33)[:20]))
    windows = _batch("gemma3_text")
    windows.insert(0, _fed(windows, _ids(60)[:-1]), _ids(60), group=0, sampling=GREEDY)
    windows.step(0)
    assert windows.copy(0, 30) is None, "a wrapped window has lost what stood there"


def test_only_classes_that_mlx_lm_can_merge_share_a_batch() -> None:
    from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

    from agent_memory.mlxcache.joining import can_batch

    assert can_batch([KVCache(), RotatingKVCache(8), ArraysCache(2), CacheList(ArraysCache(1), KVCache())])
    assert not can_batch([KVCache(), ChunkedKVCache(8)])
    assert not can_batch([CacheList(KVCache(), ChunkedKVCache(8))])
    assert not can_batch([RotatingKVCache(8, keep=2)]), "a merge would lose the sinks"
