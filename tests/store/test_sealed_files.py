"""A sealed file of KV gives what was written, whole or in part, and notices every changed bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.kvfile import sealed
from agent_memory.kvfile.segments import OpenSegment, SegmentWriter, rewrite_under, stored_ids
from agent_memory.log.damage import READ_ERRORS
from agent_memory.log.files import Files
from agent_memory.prefix.names import new_file
from agent_memory.prefix.pieces import Segment
from agent_memory.sealing.keys import Keys

KEYS, OTHER = Keys(bytes(32)), Keys(bytes(range(32)))
IDENTITY = "ab" * 32


def _layout(heads: int, dim: int) -> Layout:
    return Layout(tuple(TensorSpec(f"000.{k}", heads, dim, "F16") for k in "kv"), ("full",))


def _written(
    folder: Path, layout: Layout, n_tokens: int, keys: Keys | None, pieces: int, seed: int
) -> tuple[Path, Segment, list[np.ndarray[Any, Any]]]:
    """Write a segment with each tensor handed over in some pieces; return its tensors as (heads, n, row_bytes)."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 50_000, n_tokens).astype(np.uint32)
    segment = Segment(
        identity=IDENTITY, file=new_file(IDENTITY), parent=bytes(32), start=0, n_tokens=n_tokens,
        chunk_tokens=max(1, n_tokens), exactness="exact", codec="exact", host="h", ids=ids,
    )  # fmt: skip
    segment.divide(ids, lambda start, stop: 1)
    path = folder / segment.file
    path.parent.mkdir(exist_ok=True)
    writer = SegmentWriter(Files(), path, segment, layout, ids=ids, state_bytes=None, keys=keys)
    tensors = []
    for number, spec in enumerate(layout.tensors):
        rows = rng.integers(0, 256, (spec.heads, n_tokens, spec.row_bytes)).astype(np.uint8)
        tensors.append(rows)
        data = memoryview(np.ascontiguousarray(rows)).cast("B")
        cuts = sorted(int(rng.integers(0, len(data) + 1)) for _ in range(pieces - 1))
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            writer.write(number, data[start:stop])
    assert writer.n_bytes >= sum(rows.nbytes for rows in tensors)
    writer.finish()
    assert path.stat().st_size == segment.n_bytes == writer.n_bytes
    return path, segment, tensors


@settings(max_examples=50)
@given(
    heads=st.integers(1, 5),
    dim=st.integers(1, 40),
    n_tokens=st.integers(1, 200),
    pieces=st.integers(1, 5),
    seed=st.integers(0, 99),
    part=st.sampled_from([(4096, 512), (200, 64), (1 << 18, 1 << 14)]),
    data=st.data(),
)
def test_what_was_written_is_read_whole_and_in_part(
    heads: int, dim: int, n_tokens: int, pieces: int, seed: int, part: tuple[int, int], data: st.DataObject
) -> None:
    before = sealed.PART_BYTES, sealed._HEAD_BYTES
    sealed.PART_BYTES, sealed._HEAD_BYTES = part
    try:
        with tempfile.TemporaryDirectory() as name:
            layout = _layout(heads, dim)
            path, segment, tensors = _written(Path(name), layout, n_tokens, KEYS, pieces, seed)
            assert (stored_ids(path, segment, KEYS) == segment.ids).all()
            source = OpenSegment(path, segment, KEYS)
            assert (source.ids() == segment.ids).all()
            first = data.draw(st.integers(0, n_tokens - 1))
            take = data.draw(st.integers(0, n_tokens - first))
            for number, (spec, rows) in enumerate(zip(layout.tensors, tensors, strict=True)):
                assert bytes(source.tensor(spec.name)) == rows.tobytes()
                out = np.full((heads, take + 3, spec.row_bytes), 0xEE, np.uint8)
                runs = [memoryview(out[h, 1 : 1 + take]).cast("B") if take else memoryview(b"") for h in range(heads)]
                source.fill(spec.name, runs, first * spec.row_bytes)
                assert (out[:, 1 : 1 + take] == rows[:, first : first + take]).all()
                assert (out[:, 0] == 0xEE).all(), "beside what was asked for"
                assert (out[:, 1 + take :] == 0xEE).all(), "beside what was asked for"
                assert (source.rows(layout, number, first, first + take) == rows[:, first : first + take]).all()
            list(source.checking())
            source.close()
    finally:
        sealed.PART_BYTES, sealed._HEAD_BYTES = before


@settings(max_examples=50)
@given(heads=st.integers(1, 3), n_tokens=st.integers(1, 60), data=st.data())
def test_every_flipped_bit_and_every_cut_is_noticed(heads: int, n_tokens: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path, segment, _ = _written(Path(name), _layout(heads, 7), n_tokens, KEYS, 1, 0)
        raw = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, 8 * len(raw) - 1))
        raw[at // 8] ^= 1 << at % 8
        path.write_bytes(raw)
        with pytest.raises(READ_ERRORS):
            _check(path, segment, KEYS)
        raw[at // 8] ^= 1 << at % 8
        path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
        with pytest.raises(READ_ERRORS):
            _check(path, segment, KEYS)


def _check(path: Path, segment: Segment, keys: Keys | None) -> None:
    source = OpenSegment(path, segment, keys)
    try:
        list(source.checking())
    finally:
        source.close()


def test_a_file_opens_under_its_key_and_its_name_alone(tmp_path: Path) -> None:
    path, segment, _ = _written(tmp_path, _layout(2, 8), 20, KEYS, 1, 0)
    _check(path, segment, KEYS)
    for keys in (OTHER, None):
        with pytest.raises(READ_ERRORS):
            _check(path, segment, keys)
    renamed = path.with_name(Path(new_file(IDENTITY)).name)
    path.rename(renamed)
    with pytest.raises(READ_ERRORS):
        _check(renamed, segment, KEYS)
    plain, segment, _ = _written(tmp_path, _layout(2, 8), 20, None, 1, 0)
    with pytest.raises(READ_ERRORS, match="not sealed"):
        _check(plain, segment, KEYS)


@pytest.mark.parametrize(("old", "new"), [(None, KEYS), (KEYS, OTHER), (KEYS, None)])
def test_a_file_rewritten_under_another_key_has_the_same_content(
    tmp_path: Path, old: Keys | None, new: Keys | None
) -> None:
    layout = _layout(3, 5)
    path, segment, tensors = _written(tmp_path, layout, 33, old, 1, 0)
    source = OpenSegment(path, segment, old)
    target = path.with_name(Path(new_file(IDENTITY)).name)
    segment.n_bytes, segment.header_xxh3 = rewrite_under(source, Files(), target, new)
    source.close()
    again = OpenSegment(target, segment, new)
    assert [bytes(again.tensor(t.name)) for t in layout.tensors] == [rows.tobytes() for rows in tensors]
    list(again.checking())
    again.close()
    if new is None and old is not None:
        _, plain, _ = _written(tmp_path, layout, 33, None, 1, 0)
        assert plain.n_bytes == segment.n_bytes
