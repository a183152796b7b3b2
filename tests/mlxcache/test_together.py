"""Rows that were restored together join a batch uncopied, and hold what rows restored apart hold."""

from __future__ import annotations

import gc
import random
from typing import Any

import numpy as np
import pytest
from attrs import frozen
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agent_memory.types import Sampling
from tests.parts import tiny

pytestmark = pytest.mark.mlx

quick = settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.reuse, Phase.generate]
)


@frozen
class Stored:
    """The KV of some ids as a source: what it does not fill is NaN, as memory that was used before may be."""

    kv: Any
    n_tokens: int
    held_from = 0

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        spec = self.kv.layout.tensors[tensor]
        into = np.frombuffer(out, np.uint8).reshape(spec.heads, capacity, spec.row_bytes)
        into[:] = 0xFF
        into[:, : self.n_tokens] = self.kv.read(tensor, 0, self.n_tokens)

    def encoded(self, tensor: int) -> list[Any]:
        return []

    def read_state(self) -> None:
        return None

    def check(self) -> bool:
        return True


def _batch(name: str = "llama") -> Any:
    from agent_memory.runner.batch import MLXBatch
    from agent_memory.runner.mlx import _probe

    built = tiny.model(name)
    return MLXBatch(built, _probe(built)[0])


def _ids(n: int, seed: int = 0) -> list[int]:
    return [random.Random(n * 1000 + i + seed * 77_777).randrange(300) for i in range(n)]


def _stored(batch: Any, n: int, seed: int = 0) -> Stored:
    kv = batch.empty()
    batch.prefill(kv, _ids(n, seed))
    return Stored(kv, n)


def _bytes(kv: Any) -> list[bytes]:
    return [kv.read(tensor, 0, kv.n_tokens).tobytes() for tensor in range(len(kv.layout.tensors))]


def _places(caches: list[Any]) -> set[int]:
    """Where keys and values of all layers are in memory."""
    return {np.array(a, copy=False).ctypes.data for c in caches for a in (c.keys, c.values)}


def _insert(batch: Any, row: int, kv: Any) -> None:
    batch.insert(row, kv, [*_ids(kv.n_tokens), 7 + row], group=0, sampling=Sampling())


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("sizes", [(30, 30), (40, 9, 23)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_rows_restored_together_join_where_they_are(name: str, sizes: tuple[int, ...], is_turned: bool) -> None:
    batch, other = _batch(name), _batch(name)
    sources = [_stored(batch, n, seed) for seed, n in enumerate(sizes)]
    together, apart = batch.restore_together(sources), [other.restore(source) for source in sources]
    for seed, kvs in enumerate(zip(together, apart, strict=True)):
        for one, kv in zip((batch, other), kvs, strict=True):
            one.prefill(kv, _ids(3 + seed, 9))
    places = _places(together[0].caches)
    order = list(range(len(sizes)))[:: -1 if is_turned else 1]  # the lane's order is that of the buffers
    tokens: list[list[list[int]]] = []
    for one, kvs in ((batch, together), (other, apart)):
        for row in order:
            _insert(one, row, kvs[row])
        found = [dict(one.step(0)) for _ in range(6)]
        tokens.append([[step[row] for step in found] for row in order])
    assert tokens[0] == tokens[1]
    [lane] = batch._lanes[0]
    assert _places(lane.prompt_cache) == places, "nobody was copied"
    together, apart = (one.remove(order) for one in (batch, other))
    assert [_bytes(kv) for kv in together] == [_bytes(kv) for kv in apart]


@pytest.mark.parametrize("way", ["prefill", "tidy"])
def test_a_row_whose_neighbour_has_left_moves_out_and_frees_the_bytes(way: str) -> None:
    batch = _batch()
    sources = [_stored(batch, 30, seed) for seed in (1, 2)]
    one, other = batch.restore_together(sources)
    apart = batch.restore(sources[0])
    assert one.nbytes == other.nbytes == apart.nbytes
    assert batch.nbytes == batch.spare_nbytes == 0
    del other
    gc.collect()
    assert one.nbytes == apart.nbytes
    assert batch.nbytes == batch.spare_nbytes == apart.nbytes, "the buffers of both are in memory"
    if way == "tidy":
        batch.tidy()
    for kv in (one, apart):
        batch.prefill(kv, _ids(4))
    assert batch.nbytes == batch.spare_nbytes == 0
    assert one.nbytes == apart.nbytes
    assert _bytes(one) == _bytes(apart)


def test_a_row_that_does_not_join_the_others_is_separated_and_each_byte_is_counted() -> None:
    batch = _batch()
    sources = [_stored(batch, n, n) for n in (30, 31, 32)]
    rows = batch.restore_together(sources)
    wanted, n_bytes = [_bytes(kv) for kv in rows], rows[0].nbytes
    batch.separate(rows[1])
    assert [kv.nbytes for kv in rows] == [n_bytes] * 3
    assert batch.spare_nbytes == n_bytes, "the room that it had"
    assert not _places(rows[1].caches) & _places(rows[0].caches)
    batch.separate(rows[1])
    batch.tidy()
    assert batch.nbytes == batch.spare_nbytes == 0
    assert [_bytes(kv) for kv in rows] == wanted


def test_rows_that_outgrow_their_buffers_go_on_alone() -> None:
    batch = _batch()
    sources = [_stored(batch, n) for n in (20, 25)]
    together, apart = batch.restore_together(sources), [batch.restore(source) for source in sources]
    for kv in (*together, *apart):
        batch.prefill(kv, _ids(240))
    assert [_bytes(kv) for kv in together] == [_bytes(kv) for kv in apart]
    assert not _places(together[0].caches) & _places(together[1].caches)


@quick
@given(
    st.lists(st.integers(3, 40), min_size=2, max_size=3),
    st.lists(st.tuples(st.sampled_from(["feed", "trim", "copy", "drop", "join"]), st.integers(0, 2)), max_size=6),
)
def test_whatever_becomes_of_some_rows_the_others_hold_what_they_held(
    sizes: list[int], changes: list[tuple[str, int]]
) -> None:
    batch, other = _batch(), _batch()
    sources = [_stored(batch, n, seed) for seed, n in enumerate(sizes)]
    rows = dict(enumerate(zip(batch.restore_together(sources), map(other.restore, sources), strict=True)))
    joined: list[int] = []
    for what, row in changes:
        if row not in rows:
            continue
        for one, kv in zip((batch, other), rows[row], strict=True):
            if what == "feed":
                one.prefill(kv, _ids(5, row))
            elif what == "trim":
                assert kv.trim(kv.n_tokens - 1)
            elif what == "copy":
                copied = kv.copy(2)
                assert [kv.read(0, 0, 2).tobytes(), kv.read(1, 0, 2).tobytes()] == _bytes(copied)[:2]
            elif what == "join":
                _insert(one, row, kv)
        if what in ("drop", "join"):
            joined += [row] if what == "join" else []
            del rows[row], kv
    found = [[dict(one.step(0)) for _ in range(4 if joined else 0)] for one in (batch, other)]
    assert found[0] == found[1]
    for mine, theirs in [*rows.values(), *zip(batch.remove(joined), other.remove(joined), strict=True)]:
        assert mine.n_tokens == theirs.n_tokens
        assert _bytes(mine) == _bytes(theirs)
