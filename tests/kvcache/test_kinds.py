"""KV read out and filled in again: the same bits, whatever the spare room, on every storable layout."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from agent_memory.types import Sampling
from tests import tiny

pytestmark = pytest.mark.mlx


class HostSource:
    """Rows held in host memory; the first ``n_tokens`` of what was read out."""

    def __init__(self, rows: list[np.ndarray], n_tokens: int) -> None:
        self.rows, self.n_tokens = rows, n_tokens

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        rows = self.rows[tensor]
        view = np.frombuffer(out, np.uint8).reshape(rows.shape[0], capacity, rows.shape[2])
        view[:, : self.n_tokens] = rows[:, : self.n_tokens]

    def check(self) -> bool:
        return True

    def close(self) -> None:
        pass


def _setup(name: str, dtype: str = "float32") -> Any:
    import mlx.core as mx

    from agent_memory.model.batch import MLXBatch
    from agent_memory.model.mlx import _probe

    built = tiny.model(name)
    built.set_dtype(getattr(mx, dtype))
    return built, MLXBatch(built, _probe(built))


def _logits(model: Any, caches: Any, token: int) -> bytes:
    import mlx.core as mx

    return np.array(model(mx.array([[token]]), cache=caches).astype(mx.float32)).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_restored_kv_gives_bit_equal_logits(name: str, dtype: str) -> None:
    model, batch = _setup(name, dtype)
    for n in (1, 37, 255, 256, 300):
        ids = [random.Random(n).randrange(300) for _ in range(n)]
        live = batch.empty()
        batch.prefill(live, ids)
        rows = [live.read(t, 0, n) for t in range(len(batch._layout.tensors))]
        restored = batch.restore(HostSource(rows, n))
        for step in range(3):
            assert _logits(model, restored.caches, step) == _logits(model, live.caches, step), (n, step)


def test_a_planted_fault_of_one_bit_is_seen_by_the_comparison() -> None:
    model, batch = _setup("llama")
    ids = list(range(40))
    live = batch.empty()
    batch.prefill(live, ids)
    rows = [live.read(t, 0, 40) for t in range(len(batch._layout.tensors))]
    rows[1][0, 3, 2] ^= 1 << 6
    restored = batch.restore(HostSource(rows, 40))
    assert _logits(model, restored.caches, 1) != _logits(model, live.caches, 1)


def test_a_restored_kv_has_room_and_is_not_copied_at_its_first_append() -> None:
    _, batch = _setup("llama")
    live = batch.empty()
    batch.prefill(live, list(range(256)))
    rows = [live.read(t, 0, 256) for t in range(len(batch._layout.tensors))]
    restored = batch.restore(HostSource(rows, 256))
    before = restored.nbytes
    batch.insert(0, restored, [*range(256), 5], group=0, sampling=Sampling())
    assert len(batch.step(0)) == 1
    [kv] = batch.remove([0])
    assert (kv.n_tokens, kv.nbytes) == (257, before)


def test_a_copy_is_independent_and_cut_where_asked() -> None:
    model, batch = _setup("llama")
    ids = list(range(100))
    live = batch.empty()
    batch.prefill(live, ids)
    twin = live.copy(60)
    assert twin is not None
    assert twin.n_tokens == 60
    fresh = batch.empty()
    batch.prefill(fresh, ids[:60])
    before = _logits(model, live.copy(100).caches, 7)
    got, wanted = _logits(model, twin.caches, 9), _logits(model, fresh.caches, 9)
    assert np.allclose(np.frombuffer(got, np.float32), np.frombuffer(wanted, np.float32), atol=1e-3)
    assert _logits(model, live.caches, 7) == before


def test_a_model_with_windows_says_which_layer_is_not_stored() -> None:
    _, batch = _setup("gemma3_text")
    layout = batch._layout
    assert not layout.is_storable
    assert "RotatingKVCache" in layout.unstored[0]
    kv = batch.empty()
    batch.prefill(kv, list(range(80)))
    assert kv.trim(80)
    assert not kv.trim(50), "a wrapped window cannot be cut"
    assert kv.n_tokens == 80
    assert kv.copy(50) is None
