"""Codecs: each row is encoded by itself, within a known error; what cannot be encoded stays exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.kvcache.coding import PLANES, Encoded, coded, coding, fallbacks, is_lossy, mixed
from agent_memory.kvcache.layout import Layout, TensorSpec

LOSSY = ("q8", "q5", "q4")
EVERY = (*LOSSY, *(mixed({"000.k": bits, "000.v": bits}) for bits in PLANES))
DIMS = st.sampled_from([8, 16, 24, 32, 64, 80, 96, 112, 128, 192, 256, 512, 576])


def _rows(heads: int, n: int, dim: int, seed: int, spread: float) -> np.ndarray:
    """Floats with a few columns far off the others, as real keys have them."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(heads, n, dim)) * np.where(rng.random(dim) < 0.1, spread, 1)).astype(np.float32)


@pytest.mark.mlx
@given(dim=DIMS, codec=st.sampled_from(EVERY), part=st.sampled_from("kv"), n=st.integers(1, 9), data=st.data())
def test_a_slice_of_the_encoded_rows_is_the_encoding_of_the_slice(
    dim: int, codec: Any, part: str, n: int, data: st.DataObject
) -> None:
    import mlx.core as mx

    from agent_memory.mlxcache import codecs

    form = coding(TensorSpec(f"000.{part}", 2, dim, "F32"), codec)
    assert form is not None
    rows = mx.array(_rows(2, n, dim, data.draw(st.integers(0, 99)), 9.0))
    whole = np.array(codecs.encode(rows, form))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    if start < stop:
        assert np.array_equal(np.array(codecs.encode(rows[:, start:stop], form)), whole[:, start:stop])
    values = np.array(codecs.decode(whole, form, "F32"))
    assert np.array_equal(np.array(codecs.decode(whole[:, :1], form, "F32")), values[:, :1])


@pytest.mark.mlx
@given(
    dim=DIMS,
    codec=st.sampled_from(EVERY),
    part=st.sampled_from("kv"),
    seed=st.integers(0, 99),
    spread=st.sampled_from([1.0, 30.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_a_row_comes_back_within_half_a_step_of_its_range(
    dim: int, codec: Any, part: str, seed: int, spread: float, scale: float
) -> None:
    import mlx.core as mx

    from agent_memory.mlxcache import codecs

    form = coding(TensorSpec(f"000.{part}", 2, dim, "F32"), codec)
    assert form is not None
    rows = _rows(2, 5, dim, seed, spread) * np.float32(scale)
    encoded = np.array(codecs.encode(mx.array(rows), form))
    assert encoded.shape == (2, 5, form.row_bytes)
    error = np.array(codecs.decode(encoded, form, "F32")) - rows
    turned = np.array(mx.hadamard_transform(mx.array(rows).reshape(2, 5, -1, form.block), scale=form.block**-0.5))
    groups = turned.reshape(2, 5, -1, form.group)
    low, high = groups.min(-1), groups.max(-1)
    # centers and steps are bfloat16: a step spans what is farther from the rounded center, or from 0, and is rounded up
    spans = (high - low) / 2 + np.abs(low + high) / 2 * 2.0**-8 if form.has_centers else np.maximum(high, -low)
    half_step = spans / (2**form.bits - 1) * (1 + 2.0**-6)
    rounding = np.square(rows).sum(-1) * 1e-12  # of the rotation, in float32
    assert (np.square(error).sum(-1) <= np.square(half_step).sum(-1) * form.group + rounding).all()


@pytest.mark.mlx
@pytest.mark.parametrize("codec", EVERY)
def test_a_row_of_zeros_comes_back(codec: Any) -> None:
    import mlx.core as mx

    from agent_memory.mlxcache import codecs

    form = coding(TensorSpec("000.k", 1, 64, "F32"), codec)
    assert form is not None
    encoded = np.array(codecs.encode(mx.zeros((1, 3, 64)), form))
    assert not np.array(codecs.decode(encoded, form, "F32")).any()


@pytest.mark.mlx
def test_rows_that_older_releases_wrote_are_read() -> None:
    from agent_memory.mlxcache import codecs

    with np.load(Path(__file__).parent / "fixtures" / "rows-6.npz") as kept:
        for name in (name for name in kept.files if name.endswith(".rows")):
            codec, part, dim, _ = name.split(".")
            form = coding(TensorSpec(f"000.{part}", 2, int(dim), "F32"), codec)
            assert form is not None
            values = np.array(codecs.decode(kept[name], form, "F32"))
            assert np.array_equal(values, kept[name.replace("rows", "values")])
    assert len(kept.files) == 2 * 2 * 3 * 4


def test_bits_per_value_with_steps_and_centers() -> None:
    for dim in (64, 128, 256):
        keys, values = (TensorSpec(f"000.{part}", 3, dim, "F32") for part in "kv")
        bits = {codec: [coding(s, codec).bits_per_value for s in (keys, values)] for codec in LOSSY}
        assert bits == {"q8": [8.5, 8.5], "q5": [6.5, 4.5], "q4": [4.5, 4.5]}


def test_a_coded_tensor_is_bytes_of_the_coding_s_row() -> None:
    spec = TensorSpec("003.v", 2, 80, "BF16")
    assert coded(spec, "q4") == TensorSpec("003.v", 2, 44, "U8")
    assert coded(spec, "exact") is spec


def test_what_no_codec_encodes_stays_exact_and_is_named() -> None:
    odd = TensorSpec("000.k", 2, 12, "F32")
    empty = TensorSpec("000.v", 2, 0, "F32")
    whole = TensorSpec("001.k", 2, 64, "U32")
    small = TensorSpec("001.v", 2, 8, "BF16")  # 16 bytes a row, and 12 with q8
    layout = Layout((odd, empty, whole, small), ("full", "full"))
    assert [coding(spec, "q8") for spec in (odd, empty, whole)] == [None] * 3
    assert fallbacks(layout, "q4") == ("000.k: rows of 12 x F32", "000.v: rows of 0 x F32", "001.k: rows of 64 x U32")
    assert is_lossy(layout, "q4")
    assert not is_lossy(layout, "exact")
    assert fallbacks(layout, "exact") == ()
    assert not is_lossy(Layout((odd, whole), ("full",)), "q4")


def test_encoded_rows_are_not_printed() -> None:
    form = coding(TensorSpec("000.k", 2, 64, "F32"), "q4")
    assert form is not None
    assert "rows" not in repr(Encoded(0, 1, form, np.zeros((2, 1, form.row_bytes), np.uint8)))
