"""The contract of the one adapter of mlx-lm's batching, on tiny random models."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from agent_memory.types import Sampling
from tests.parts import tiny

pytestmark = pytest.mark.mlx

GREEDY = Sampling()


def _batch(name: str = "llama", seed: int = 0) -> Any:
    from agent_memory.runner.batch import MLXBatch
    from agent_memory.runner.mlx import _probe

    built = tiny.model(name, seed)
    return MLXBatch(built, _probe(built)[0])


def _ids(n: int, seed: int) -> list[int]:
    return [random.Random(seed * 1000 + i).randrange(300) for i in range(n)]


def _begin(
    batch: Any, row: int, ids: list[int], sampling: Sampling = GREEDY, *, group: int = 0, **options: Any
) -> None:
    kv = batch.empty()
    batch.prefill(kv, ids[:-1])
    batch.insert(row, kv, ids, group=group, sampling=sampling, **options)


def _solo(batch: Any, ids: list[int], n_tokens: int, sampling: Sampling = GREEDY) -> list[int]:
    _begin(batch, 99, ids, sampling, group=99)
    out: list[int] = []
    while len(out) < n_tokens:
        out += [token for _, token in batch.step(99)]
    batch.remove([99])
    return out


def test_a_token_given_out_by_step_is_covered_by_the_kv() -> None:
    batch, ids = _batch(), _ids(20, 1)
    kv = batch.empty()
    batch.prefill(kv, ids[:-1])
    assert kv.n_tokens == 19
    batch.insert(0, kv, ids, group=0, sampling=GREEDY)
    assert batch.remove([0])[0].n_tokens == 19, "nothing is fed before the first step"
    _begin(batch, 0, ids)
    batch.step(0)
    assert batch.copy(0, 20).n_tokens == 20, "the first token is not fed before the second step"
    batch.step(0)
    batch.step(0)
    [out] = batch.remove([0])
    assert out.n_tokens == 23
    assert all(cache.offset == 23 for cache in out.caches)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text"])
def test_rows_that_join_and_leave_get_the_tokens_of_their_solo_runs(name: str) -> None:
    batch = _batch(name)
    prompts = [_ids(n, n) for n in (5, 60, 33)]
    alone = [_solo(batch, ids, 12) for ids in prompts]
    together: dict[int, list[int]] = {}
    for number, ids in enumerate(prompts):  # each joins while the ones before it decode
        _begin(batch, number, ids)
        together[number] = []
        for row, token in batch.step(0):
            together[row].append(token)
    while together:
        for row, token in batch.step(0):
            together[row].append(token)
        for row in [r for r, out in together.items() if len(out) >= 12]:
            [kv] = batch.remove([row])
            assert kv.n_tokens == len(prompts[row]) + len(together[row])
            assert together.pop(row)[:12] == alone[row]


def test_rows_that_come_together_share_their_first_step() -> None:
    batch = _batch()
    prompts = {n: _ids(n, n) for n in (5, 60, 33)}
    alone = {n: _solo(batch, ids, 6) for n, ids in prompts.items()}
    for n, ids in prompts.items():
        _begin(batch, n, ids)
    first = batch.step(0)
    assert [row for row, _ in first] == list(prompts)
    together = {row: [token] for row, token in first}
    for _ in range(5):
        for row, token in batch.step(0):
            together[row].append(token)
    assert together == alone


def test_groups_are_stepped_apart_and_one_that_is_dropped_leaves_the_others() -> None:
    batch = _batch()
    alone = _solo(batch, _ids(9, 2), 6)
    _begin(batch, 1, _ids(30, 1), group=1)
    _begin(batch, 2, _ids(9, 2), group=2)
    out = [token for _ in range(3) for _, token in batch.step(2)]
    assert [row for row, _ in batch.step(1)] == [1]
    held = batch.nbytes
    batch.drop(1)
    assert 0 < batch.nbytes < held
    out += [token for _ in range(3) for _, token in batch.step(2)]
    assert out == alone
    assert batch.step(1) == []
    [kv] = batch.remove([2])
    assert kv.n_tokens == 9 + 5 + 1
    assert batch.nbytes == 0


def test_a_row_taken_out_of_a_batch_continues_as_if_alone() -> None:
    batch = _batch()
    first, second = _ids(40, 1), _ids(9, 2)
    alone = _solo(batch, first, 20)
    _begin(batch, 0, first)
    _begin(batch, 1, second)
    out: list[int] = []
    for _ in range(6):
        out += [token for row, token in batch.step(0) if row == 0]
    [kv] = batch.remove([0])
    ids = first + out
    assert kv.trim(len(ids) - 1)
    batch.insert(7, kv, ids, group=0, sampling=GREEDY)
    for _ in range(12):
        out += [token for row, token in batch.step(0) if row == 7]
    assert out[:16] == alone[:16]


def test_a_seeded_row_draws_the_same_tokens_whatever_shares_its_batch() -> None:
    import mlx.core as mx

    batch, ids = _batch(), _ids(30, 3)
    seeded = Sampling(temperature=1.0, top_p=0.95, seed=7)
    before = np.array(mx.random.state[0]).tolist()
    alone = _solo(batch, ids, 10, seeded)
    _begin(batch, 0, _ids(11, 4), Sampling(temperature=1.0))
    _begin(batch, 1, ids, seeded)
    out: list[int] = []
    for _ in range(10):
        out += [token for row, token in batch.step(0) if row == 1]
    assert out == alone
    assert alone != _solo(batch, ids, 10, Sampling(temperature=1.0, top_p=0.95, seed=8))
    assert np.array(mx.random.state[0]).tolist() == before, "mlx's global random state was used"


def test_a_raising_processor_fails_its_row_and_no_other() -> None:
    batch, ids = _batch(), _ids(12, 5)
    alone = _solo(batch, ids, 6)

    def bad(_: Any, logits: Any) -> Any:
        raise ZeroDivisionError("mine")

    _begin(batch, 0, ids, logits_processors=[bad])
    _begin(batch, 1, ids)
    out: list[int] = []
    for _ in range(6):
        out += [token for row, token in batch.step(0) if row == 1]
    assert isinstance(batch.error(0), ZeroDivisionError)
    assert batch.error(1) is None
    assert out == alone


def test_a_processor_sees_the_ids_so_far_and_decides() -> None:
    batch, ids = _batch(), _ids(12, 5)
    seen: list[int] = []

    def force(tokens: Any, logits: Any) -> Any:
        seen.append(len(tokens))
        logits[:] = -1e9
        logits[len(tokens) % 7] = 1e9
        return logits

    _begin(batch, 0, ids, logits_processors=[force])
    out: list[int] = []
    for _ in range(4):
        out += [token for _, token in batch.step(0)]
    assert out == [n % 7 for n in (12, 13, 14, 15)]
    assert seen[:4] == [12, 13, 14, 15]
