"""``Batch.insert`` of several ids on tiny random models: one pass for all of them changes neither text nor KV."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agent_memory.types import Sampling
from tests.parts import tiny

pytestmark = pytest.mark.mlx

GREEDY = Sampling()
#: Largest difference of logits that counts as rounding.
GAP = 1e-3
N_KNOWN, N_NEW, N_OUT = 64, 21, 12
ALL = [*tiny.SHAPES, *(pytest.param(name, marks=pytest.mark.slow) for name in tiny.MORE)]


class _Watch:
    """A logits processor that changes nothing and keeps what it saw."""

    def __init__(self) -> None:
        self.logits: list[np.ndarray[Any, Any]] = []
        self.n_ids: list[int] = []

    def __call__(self, ids: Sequence[int], logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.logits.append(logits.copy())
        self.n_ids.append(len(ids))
        return logits


class _Even:
    """A constraint: even ids alone, of the vocabulary's 300."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def mask(self) -> Any:
        return np.full(10, 0x55555555, np.uint32)

    def ahead(self, token: int, n_ids: int) -> Sequence[int]:
        return ()

    def masks(self, ids: Sequence[int]) -> Sequence[Any]:
        return [self.mask() for _ in ids]


def _batch(name: str) -> Any:
    from agent_memory.runner.batch import MLXBatch
    from agent_memory.runner.mlx import _probe

    built = tiny.model(name)
    return MLXBatch(built, _probe(built)[0], 32)


def _ids(n: int, seed: int = 0) -> list[int]:
    return [random.Random(seed * 1000 + i).randrange(300) for i in range(n)]


def _prefilled(batch: Any, ids: Sequence[int]) -> Any:
    kv = batch.empty()
    for start in range(0, len(ids), 32):
        batch.prefill(kv, ids[start : min(start + 32, len(ids))])
    return kv


def _run(batch: Any, ids: list[int], n_fed: int, *, row: int = 0, n_out: int = N_OUT, **options: Any) -> list[int]:
    """Tokens of one row that starts with KV of ``n_fed`` ids; where that is all but the last one, by ``insert``."""
    kv, out = _prefilled(batch, ids[:n_fed]), []
    if n_fed < len(ids) - 1:
        out.append(batch.insert(row, kv, ids, group=0, **options))
    else:
        batch.insert(row, kv, ids, group=0, **options)
    while len(out) < n_out:
        out += [token for number, token in batch.step(0) if number == row]
    return out


@pytest.mark.parametrize("name", ALL)
def test_one_pass_gives_the_logits_and_tokens_of_two(name: str) -> None:
    ids, found = _ids(N_KNOWN + N_NEW), []
    for n_fed in (len(ids) - 1, N_KNOWN):
        batch, watch = _batch(name), _Watch()
        tokens = _run(batch, ids, n_fed, sampling=GREEDY, logits_processors=[watch])
        [kv] = batch.remove([0])
        found.append((tokens, watch, kv))
    (two, theirs, kv_two), (one, mine, kv_one) = found
    assert mine.n_ids == theirs.n_ids
    for place, (a, b) in enumerate(zip(mine.logits[:N_OUT], theirs.logits, strict=False)):
        gap = float(np.abs(a - b).max())
        assert gap < GAP
        if one[place] != two[place]:  # a flip where the two best are nearer than rounding goes, and no other
            best = np.sort(b)[-2:]
            assert best[1] - best[0] < 2 * gap
            break
    assert kv_one.n_tokens == kv_two.n_tokens == len(ids) + N_OUT
    assert kv_one.snapshots == kv_two.snapshots
    assert kv_one.held_from == kv_two.held_from


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_next", "llama4"])
def test_rows_begun_alone_join_rows_that_decode_and_rows_that_are_yet_to_begin(name: str) -> None:
    prompts = {0: _ids(33, 1), 1: _ids(40, 2), 2: _ids(N_KNOWN, 3), 3: _ids(25, 4)}
    batch = _batch(name)
    alone = {}
    for row, ids in prompts.items():
        alone[row] = _run(batch, ids, len(ids) - 1, row=row, sampling=GREEDY)
        batch.remove([row])
    out: dict[int, list[int]] = {row: [] for row in prompts}
    kvs = {row: _prefilled(batch, ids[: len(ids) - (1 if row in (1, 3) else 9)]) for row, ids in prompts.items()}
    for row, ids in prompts.items():
        if row in (1, 3):
            batch.insert(row, kvs[row], ids, group=0, sampling=GREEDY)
        else:
            out[row].append(batch.insert(row, kvs[row], ids, group=0, sampling=GREEDY))
        if row in (1, 2, 3):  # 0 and 1 begin together, the others find rows that decode
            for number, token in batch.step(0):
                out[number].append(token)
    while min(map(len, out.values())) < N_OUT:
        for number, token in batch.step(0):
            out[number].append(token)
    assert {row: tokens[:N_OUT] for row, tokens in out.items()} == alone


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=1.0, top_p=0.95, top_k=40, seed=11), Sampling(repetition_penalty=1.7)],
    ids=["seeded", "penalty"],
)
def test_a_first_token_is_sampled_as_every_other(sampling: Sampling) -> None:
    ids = _ids(N_KNOWN + N_NEW, 5)
    two = _run(_batch("llama"), ids, len(ids) - 1, sampling=sampling)
    assert _run(_batch("llama"), ids, N_KNOWN, sampling=sampling) == two
    assert two != _run(_batch("llama"), ids, N_KNOWN, sampling=GREEDY)


def test_a_constraint_holds_from_the_first_token_on() -> None:
    ids, found = _ids(N_KNOWN + N_NEW, 6), []
    for n_fed in (len(ids) - 1, N_KNOWN):
        rule = _Even()
        found.append(_run(_batch("llama"), ids, n_fed, sampling=GREEDY, constraint=rule))
        assert rule.accepted[:N_OUT] == found[-1]
    assert found[0] == found[1]
    assert not any(token % 2 for token in found[0])
    assert any(token % 2 for token in _run(_batch("llama"), ids, N_KNOWN, sampling=GREEDY))


def test_what_a_processor_raises_at_the_first_token_is_told_and_ends_no_batch() -> None:
    def refuse(ids: Any, logits: Any) -> Any:
        raise LookupError("no")

    batch, ids = _batch("llama"), _ids(30)
    batch.insert(0, _prefilled(batch, ids[:20]), ids, group=0, sampling=GREEDY, logits_processors=[refuse])
    assert isinstance(batch.error(0), LookupError)
    [kv] = batch.remove([0])
    assert kv.n_tokens == 30, "a row that waits to join can be taken out"


def test_a_first_token_that_ends_the_reply_costs_no_step() -> None:
    batch, ids = _batch("llama"), _ids(30)
    kv = _prefilled(batch, ids[:20])
    batch.insert(0, kv, ids, group=0, sampling=GREEDY)
    assert not batch.can_verify(0)
    assert batch.copy(0, 30).n_tokens == 30
    [out] = batch.remove([0])
    assert (out.n_tokens, out.caches) == (30, kv.caches), "the caches are handed back uncopied"
    assert batch.step(0) == []


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_next"])
def test_a_pass_that_raises_leaves_the_kv_as_it_was(name: str) -> None:
    batch, ids = _batch(name), _ids(42)
    kv, model = _prefilled(batch, ids[:32]), batch._model

    def broken(*args: Any, **options: Any) -> Any:
        model(*args, **options)
        raise RuntimeError("no memory")

    batch._model = broken
    with pytest.raises(RuntimeError, match="no memory"):
        batch.insert(0, kv, ids, group=0, sampling=GREEDY)
    assert kv.n_tokens == 32
    assert batch.nbytes == 0, "the row has not joined"
    batch._model = model
    [token] = _run(_batch(name), ids, 41, sampling=GREEDY, n_out=1)
    assert batch.insert(0, kv, ids, group=0, sampling=GREEDY) == token
