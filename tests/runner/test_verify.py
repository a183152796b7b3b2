"""``Batch.verify`` on tiny random models: drafts, right or wrong, change no token, no KV and no draw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory.types import Sampling
from tests.parts import tiny

pytestmark = pytest.mark.mlx

FULL = ["llama", "qwen3", "deepseek_v3"]
DRAWN = Sampling(temperature=1.0, top_p=0.95, top_k=40, min_p=0.01, seed=11)
N_TOKENS = 24
#: Largest difference of KV and logits that counts as rounding.
GAP = 1e-3

drafts = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8)


def _batch(name: str) -> Any:
    from agent_memory.runner.batch import MLXBatch
    from agent_memory.runner.mlx import _probe

    built = tiny.model(name)
    return MLXBatch(built, _probe(built)[0])


def _ids(n: int) -> list[int]:
    return [random.Random(n * 1000 + i).randrange(300) for i in range(n)]


def _begin(batch: Any, prompts: Sequence[list[int]], sampling: Sampling, **options: Any) -> None:
    for number, ids in enumerate(prompts):
        kv = batch.empty()
        batch.prefill(kv, ids[:-1])
        batch.insert(number, kv, ids, group=0, sampling=sampling, **options)


@cache
def _stepped(name: str, sizes: tuple[int, ...], sampling: Sampling) -> tuple[list[list[int]], list[Any]]:
    """What the same rows say one token a step, and their KV: of a few prompts, which many examples share."""
    prompts = [_ids(n) for n in sizes]
    batch = _batch(name)
    _begin(batch, prompts, sampling)
    out: list[list[int]] = [[] for _ in prompts]
    while min(map(len, out)) < 2 * N_TOKENS:  # verified rows go on by their own
        for row, token in batch.step(0):
            out[row].append(token)
    return out, batch.remove(list(range(len(prompts))))


def _rows(kv: Any, n_tokens: int) -> list[Any]:
    return [np.frombuffer(kv.read(t, 0, n_tokens).tobytes(), np.float32) for t in range(len(kv.layout.tensors))]


def _check(name: str, sizes: list[int], sampling: Sampling, plan: Sequence[tuple[int, int]]) -> int:
    """Verify drafts that are right up to some place; the number of ids that needed no step of their own."""
    prompts = [_ids(n) for n in sizes]
    wanted, kvs = _stepped(name, tuple(sizes), sampling)
    batch = _batch(name)
    _begin(batch, prompts, sampling)
    out: list[list[int]] = [[] for _ in prompts]
    n_saved, moves = 0, list(plan)
    while min(map(len, out)) < N_TOKENS:
        if out[0] and moves and batch.can_verify(0):
            n_right, n_wrong = moves.pop(0)
            given = {}
            for row, (token, is_given) in batch.ahead(0).items():
                at = len(out[row]) + (not is_given)
                assert token == wanted[row][at - 1]
                right = wanted[row][at : min(at + n_right + row, N_TOKENS - 1)]  # rows differ in what is right
                given[row] = [*right, *[299 - (i in right) for i in range(n_wrong)]]
            before = min(map(len, out))
            made = batch.verify(0, given)
            n_saved += max(0, min(sum(row == r for r, _ in made) for row in given) - 1) if before else 0
        else:
            made = batch.step(0)
        for row, token in made:
            out[row].append(token)
    for row, ids in enumerate(out):
        assert ids == wanted[row][: len(ids)] or len(ids) > len(wanted[row])
        assert ids[:N_TOKENS] == wanted[row][:N_TOKENS]
    for row, (kv, other) in enumerate(zip(batch.remove(list(range(len(prompts)))), kvs, strict=True)):
        assert kv.n_tokens == sizes[row] + len(out[row])
        n_tokens = min(kv.n_tokens, other.n_tokens)
        for mine, theirs in zip(_rows(kv, n_tokens), _rows(other, n_tokens), strict=True):
            assert np.abs(mine - theirs).max() < GAP
    return n_saved


quick = settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "seeded"])
@pytest.mark.parametrize("name", FULL)
@given(plan=drafts)
@settings(quick)
def test_drafts_change_no_token_and_no_kv(name: str, sampling: Sampling, plan: Any) -> None:
    _check(name, [21], sampling, plan)


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "seeded"])
@given(plan=drafts)
@settings(quick)
def test_drafts_of_several_rows_change_no_token_and_no_kv(sampling: Sampling, plan: Any) -> None:
    _check("llama", [21, 9, 40], sampling, plan)


def test_right_drafts_save_steps() -> None:
    assert _check("llama", [30], Sampling(), [(5, 0)] * 4) >= 10
    assert _check("llama", [30, 12], DRAWN, [(5, 0)] * 3) >= 8


def test_a_draft_that_fills_the_buffers_makes_them_grow_as_steps_do() -> None:
    assert _check("llama", [250], Sampling(), [(6, 2)] * 3) > 0


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next", "llama4", "falcon_h1"])
def test_kv_that_cannot_be_truncated_is_not_verified(name: str) -> None:
    batch = _batch(name)
    _begin(batch, [_ids(9)], Sampling())
    batch.step(0)
    assert not batch.can_verify(0)


def test_rows_that_are_processed_or_wait_are_not_verified() -> None:
    batch = _batch("llama")
    _begin(batch, [_ids(9)], Sampling())
    assert not batch.can_verify(0)
    batch.step(0)
    assert batch.can_verify(0)
    kv = batch.empty()
    batch.prefill(kv, _ids(7)[:-1])
    batch.insert(5, kv, _ids(7), group=0, sampling=Sampling(repetition_penalty=1.3))
    assert not batch.can_verify(0)
    batch.step(0)
    assert not batch.can_verify(0), "a repetition penalty reads the ids before"
