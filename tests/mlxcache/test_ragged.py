"""Rows that share buffers come and go, and are cut apart, without a copy of those that stay."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agent_memory.types import Sampling
from tests.parts import tiny

pytestmark = pytest.mark.mlx

GREEDY = Sampling()
GAP = 1e-3
#: No shrinking: each example decodes every row alone once more.
quick = settings(
    deadline=None, max_examples=4, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.reuse, Phase.generate]
)


def _batch(name: str = "llama") -> Any:
    from agent_memory.runner.batch import MLXBatch
    from agent_memory.runner.mlx import _probe

    built = tiny.model(name)
    return MLXBatch(built, _probe(built)[0])


def _ids(n: int, seed: int = 0) -> list[int]:
    return [random.Random(n * 1000 + i + seed * 77_777).randrange(300) for i in range(n)]


def _begin(batch: Any, row: int, ids: list[int]) -> None:
    kv = batch.empty()
    batch.prefill(kv, ids[:-1])
    batch.insert(row, kv, ids, group=0, sampling=GREEDY)


def _alone(ids: list[int], n_tokens: int) -> list[int]:
    batch = _batch()
    _begin(batch, 0, ids)
    out: list[int] = []
    while len(out) < n_tokens:
        out += [token for _, token in batch.step(0)]
    return out


def _leaves(batch: Any) -> list[Any]:
    from agent_memory.mlxcache import kinds

    [lane] = batch._lanes[0]
    return kinds.leaves(lane.prompt_cache)


def _buffers(batch: Any) -> list[int]:
    """Where keys and values of all layers are in memory."""
    return [np.array(a, copy=False).ctypes.data for c in _leaves(batch) for a in (c.keys, c.values)]


def _stepped(batch: Any, n_steps: int, out: dict[int, list[int]]) -> None:
    for _ in range(n_steps):
        for row, token in batch.step(0):
            out.setdefault(row, []).append(token)


def test_rows_that_leave_and_rows_that_come_leave_the_others_where_they_are() -> None:
    batch, prompts, out = _batch(), {n: _ids(n) for n in (30, 12, 21, 17)}, dict[int, list[int]]()
    for row, ids in prompts.items():
        _begin(batch, row, ids)
    _stepped(batch, 3, out)
    held, n_bytes = _buffers(batch), batch.nbytes
    for leaving, coming in ((12, 25), (17, 60), (30, 9)):  # from the middle, the last, the first; longer and shorter
        [kv] = batch.remove([leaving])
        assert kv.n_tokens == leaving + len(out[leaving])
        assert batch.spare_nbytes >= n_bytes // 4
        _stepped(batch, 2, out)
        prompts[coming] = _ids(coming)
        _begin(batch, coming, prompts[coming])
        _stepped(batch, 3, out)
        assert batch.nbytes == n_bytes
    assert _buffers(batch) == held, "no other buffer was allocated, no row was moved to one"
    for row, ids in prompts.items():
        assert out[row] == _alone(ids, len(out[row])), row


def test_a_batch_with_room_is_written_in_place_and_a_full_one_once_for_all_layers() -> None:
    import mlx.core as mx

    batch, out = _batch(), dict[int, list[int]]()
    for row in (40, 41, 42, 43):
        _begin(batch, row, _ids(row))
    _stepped(batch, 2, out)
    batch.remove([41, 42])
    layer_bytes = batch.nbytes // len(_leaves(batch))
    _begin(batch, 7, _ids(7))
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    _stepped(batch, 2, out)
    assert mx.get_peak_memory() - before < layer_bytes, "not even one layer was copied"


def test_spare_bytes_are_told_and_freed_and_never_more_than_half() -> None:
    batch, out = _batch(), dict[int, list[int]]()
    for row in (40, 41, 42, 43, 44, 45):
        _begin(batch, row, _ids(row))
    _stepped(batch, 2, out)
    n_bytes = batch.nbytes
    batch.remove([41])
    assert (batch.nbytes, batch.spare_nbytes) == (n_bytes, n_bytes // 6)
    batch.tidy()
    assert (batch.nbytes, batch.spare_nbytes) == (n_bytes * 5 // 6, 0)
    batch.remove([40, 42])
    assert (batch.nbytes, batch.spare_nbytes) == (n_bytes * 5 // 6, n_bytes * 2 // 6)
    batch.remove([43])
    assert (batch.nbytes, batch.spare_nbytes) == (n_bytes * 2 // 6, 0), "three of five would be spare"
    _stepped(batch, 2, out)
    batch.remove([44])
    batch.tidy()
    assert (batch.nbytes, batch.spare_nbytes) == (n_bytes // 6, 0), "one row is alone"
    _stepped(batch, 3, out)
    for row, tokens in out.items():
        assert tokens == _alone(_ids(row), len(tokens))
    assert batch.remove([45])[0].n_tokens == 45 + len(out[45])


@pytest.mark.parametrize("n", range(125, 131))
def test_tidied_buffers_have_no_spare_bytes_however_long_the_rows_are(n: int) -> None:
    batch = _batch()
    for row in (300, n, 20):
        _begin(batch, row, _ids(row))
    _stepped(batch, 1, {})
    batch.remove([300])
    batch.tidy()
    assert batch.spare_nbytes == 0


@pytest.mark.parametrize("broken", [20, 30])
def test_what_a_broken_row_leaves_behind_harms_no_other(broken: int) -> None:
    import mlx.core as mx

    batch, out = _batch(), dict[int, list[int]]()
    for row in (40, 20, 30):
        _begin(batch, row, _ids(row))
    _stepped(batch, 2, out)
    place = batch._lanes[0][0].uids.index(broken)
    for cache in _leaves(batch):
        cache.keys[place], cache.values[place] = mx.nan, mx.nan
        mx.eval(cache.keys, cache.values)
    batch.remove([broken])  # the last row moves to its place, or none does
    for row in (10, 60):  # a shorter row's place has slots before it, a longer one leaves gaps behind the others
        _begin(batch, row, _ids(row))
        _stepped(batch, 4, out)
        if row == 10:
            batch.remove([row])
    for row in {40, 20, 30, 10, 60} - {broken}:
        assert out[row] == _alone(_ids(row), len(out[row])), row


def test_a_window_counts_tokens_and_no_gaps() -> None:
    from mlx_lm.models.base import create_causal_mask

    from agent_memory.mlxcache.ragged import Slots

    slots = Slots([[(0, 3), (5, 9)], [(7, 8)]])
    for window in (None, 4):
        for row, n_tokens in ((0, 12 - 7), (1, 12 - 1)):
            wanted = np.array(create_causal_mask(2, offset=n_tokens - 2, window_size=window))
            found = np.array(slots.mask(2, 12, window))[row, 0]
            assert (found[:, slots._held[row, :12]] == wanted).all()
            assert not found[:, ~slots._held[row, :12]].any()


acts = st.lists(
    st.tuples(st.sampled_from(["come", "come", "go", "step", "verify", "verify"]), st.integers(0, 70)),
    min_size=6,
    max_size=18,
)


def _act(batch: Any, what: str, n: int, rows: dict[int, list[int]], out: dict[int, list[int]]) -> None:
    """One random act; ``rows``: of those that decode, what each would say alone."""
    if what == "come" and len(rows) < 4:
        number = 100 * len(out) + n
        ids = _ids(n + 2, number)
        rows[number], out[number] = [*ids, -1, *_alone(ids, 90)], []
        _begin(batch, number, ids)
        _stepped(batch, 1, out)
    elif what == "go" and rows:
        number = sorted(rows)[n % len(rows)]
        said = rows.pop(number)
        [kv] = batch.remove([number])
        prompt = said[: said.index(-1)]
        _check_kv(kv, [*prompt, *out[number]])
    elif what == "verify" and rows and batch.can_verify(0):
        drafts = {}
        for number, (_, is_given) in batch.ahead(0).items():
            said = rows[number][rows[number].index(-1) + 1 :]
            at = len(out[number]) + (not is_given)
            drafts[number] = [*said[at : at + (n + number) % 5], *([299] * (number % 3))]
        for row, token in batch.verify(0, drafts):
            out[row].append(token)
    elif rows:
        _stepped(batch, 1 + n % 3, out)


def _check_kv(kv: Any, ids: Sequence[int]) -> None:
    batch = _batch()
    alone = batch.empty()
    batch.prefill(alone, list(ids)[: kv.n_tokens])
    for tensor in range(len(kv.layout.tensors)):
        mine, theirs = (np.frombuffer(one.read(tensor, 0, kv.n_tokens).tobytes(), np.float32) for one in (kv, alone))
        assert np.abs(mine - theirs).max(initial=0.0) < GAP


@given(acts=acts)
@quick
def test_whatever_comes_goes_and_is_verified_every_row_says_what_it_says_alone(acts: Any) -> None:
    batch, rows, out = _batch(), dict[int, list[int]](), dict[int, list[int]]()
    for what, n in acts:
        _act(batch, what, n, rows, out)
        for number, said in rows.items():
            answer = said[said.index(-1) + 1 :]
            assert out[number] == answer[: len(out[number])]
        assert 0 <= batch.spare_nbytes <= batch.nbytes // 2 + 1


@pytest.mark.slow
@given(acts=acts)
@settings(quick, max_examples=150)
def test_the_same_many_times(acts: Any) -> None:
    test_whatever_comes_goes_and_is_verified_every_row_says_what_it_says_alone.hypothesis.inner_test(acts)  # type: ignore[attr-defined]
