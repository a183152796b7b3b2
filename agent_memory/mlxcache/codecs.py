"""Encode and decode rows of keys and values in MLX, as ``kvcache/coding.py`` specifies. Engine thread.

Each row is encoded independently of the others: encoding a slice gives a slice of the encoded rows.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from agent_memory.kvcache.coding import Coding

_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
_SMALLEST = 1e-30  #: the divisor for groups of equal values, whose step would be 0


def encode(rows: mx.array, form: Coding) -> mx.array:
    """Encode (heads, n, dim) floats to (heads, n, row_bytes) uint8; lazy."""
    heads, n, _ = rows.shape
    groups = _rotated(rows.astype(mx.float32), form).reshape(heads, n, -1, form.group)
    low, high = mx.min(groups, axis=-1), mx.max(groups, axis=-1)
    top = 2**form.bits - 1
    centers = []
    if form.has_centers:
        centers = [((low + high) / 2).astype(mx.bfloat16)]
        center = centers[0].astype(mx.float32)
        groups, low, high = groups - center[..., None], low - center, high - center
    step = _rounded_up(mx.maximum(high, -low) * (2 / top))
    factor = 1 / mx.maximum(step.astype(mx.float32), _SMALLEST)
    # no value is farther from its center than top / 2 of the rounded steps: no code needs clipping
    codes = mx.round(groups * factor[..., None] + top / 2)
    codes = codes.astype(mx.uint8 if form.bits <= 8 else mx.uint16).reshape(heads, n, form.dim)
    return mx.concatenate([*_planes(codes, form), *(one.view(mx.uint8) for one in (step, *centers))], axis=-1)


def decode(rows: Any, form: Coding, dtype: str) -> mx.array:
    """Decode (heads, n, row_bytes) uint8 in host memory to (heads, n, dim); lazy."""
    heads, n, _ = rows.shape
    codes = _joined(rows, form).reshape(heads, n, -1, form.group)
    factors = np.ascontiguousarray(rows[..., form.code_bytes :]).view(np.uint16)
    found = mx.array(factors).view(mx.bfloat16).astype(mx.float32)
    step, *centers = mx.split(found, 2, axis=-1) if form.has_centers else [found]
    half = step * ((2**form.bits - 1) / 2)
    low = centers[0] - half if centers else -half
    values = codes.astype(mx.float32) * step[..., None] + low[..., None]
    return _rotated(values.reshape(heads, n, form.dim), form).astype(_DTYPES[dtype])


def encode_stored(rows: np.ndarray[Any, Any], form: Coding, dtype: str) -> np.ndarray[Any, Any]:
    """Encode (heads, n, bytes) uint8 in host memory, rows of floats of ``dtype``, to (heads, n, row_bytes) uint8."""
    found = encode(mx.array(np.ascontiguousarray(rows)).view(_DTYPES[dtype]), form)
    mx.eval(found)
    return np.array(found)


def _rounded_up(values: mx.array) -> mx.array:
    """Return the least bfloat16 that are no less than positive floats."""
    return ((values.view(mx.uint32) + 0xFFFF) >> 16).astype(mx.uint16).view(mx.bfloat16)


def _rotated(rows: mx.array, form: Coding) -> mx.array:
    """Multiply every block of a row by the orthonormal Hadamard matrix, which is its own inverse."""
    blocks = rows.reshape(*rows.shape[:-1], -1, form.block)
    return mx.hadamard_transform(blocks, scale=form.block**-0.5).reshape(rows.shape)


def _planes(codes: mx.array, form: Coding) -> list[mx.array]:
    made, at = [], 0
    for width in form.planes:
        bits = codes >> at if at else codes
        if at + width < form.bits:
            bits = bits & (2**width - 1)
        bits = bits.astype(mx.uint8)
        if width < 8:
            parts = bits.reshape(*codes.shape[:-1], 8 // width, -1)
            parts = parts.view(_word(parts.shape[-1]))
            bits = sum((parts[..., i, :] << (i * width) for i in range(1, 8 // width)), parts[..., 0, :]).view(mx.uint8)
        made.append(bits)
        at += width
    return made


def _joined(rows: np.ndarray[Any, Any], form: Coding) -> mx.array:
    """Return the codes of encoded rows: (heads, n, dim) uint8, or uint16 for more than 8 bits."""
    found: Any = None
    at = start = 0
    for width in form.planes:
        size = form.dim * width // 8
        plane = mx.array(np.ascontiguousarray(rows[..., start : start + size]))
        if width < 8:
            plane = _spread(plane, width)
        if found is None:
            found = plane
        elif at == 8:
            found = found.astype(mx.uint16) | (plane.astype(mx.uint16) << 8)
        else:
            word = _word(form.dim)
            found = (found.view(word) | (plane.view(word) << at)).view(mx.uint8)
        at, start = at + width, start + size
    return found


def _spread(plane: mx.array, width: int) -> mx.array:
    """Return the values of a plane of less than 8 bits, a byte each; several at a time, as words."""
    word = _word(plane.shape[-1])
    words = plane.view(word)
    mask = mx.array(int.from_bytes(bytes([2**width - 1]) * word.size, "little"), word)
    shifts = mx.arange(0, 8, width, dtype=word)[:, None]
    parts = (words[..., None, :] >> shifts) & mask
    return parts.reshape(*words.shape[:-1], -1).view(mx.uint8)


def _word(n_bytes: int) -> mx.Dtype:
    """Return the largest unsigned integer in which so many bytes are a whole number."""
    return next(word for word in (mx.uint64, mx.uint32, mx.uint16, mx.uint8) if n_bytes % word.size == 0)
