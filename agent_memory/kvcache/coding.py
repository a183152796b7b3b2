"""What a codec makes of one tensor's rows: how many bits, in which groups, how many bytes. Pure.

A row (one token of one head) is encoded by itself: an encoded row is another run of bytes, rows of any spans join, and
the store needs to know no more than their size. Its bytes, for ``dim`` values in groups of ``group``:

* the values' codes of ``bits`` bits each, split into planes of 8, 4 or 2 bits, the lowest bits first. A plane of ``w``
  bits is ``dim * w / 8`` bytes; value ``i`` lies in byte ``i % size`` of it, shifted left by ``w * (i // size)``;
* the groups' steps, then the groups' centers: bfloat16, little-endian.

A value is ``center + step * (code - (2**bits - 1) / 2)``, of the row rotated: every run of ``block`` values multiplied
by the orthonormal Hadamard matrix (Sylvester's, natural order), which is its own inverse.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from attrs import field, frozen

from agent_memory.config import CODECS, Codec
from agent_memory.kvcache.layout import Layout, TensorSpec

#: bits of (keys, values): attention errs more by its keys
_BITS: dict[Codec, tuple[int, int]] = {"q8": (8, 8), "q5": (6, 4), "q4": (4, 4)}
_FLOATS = ("F32", "F16", "BF16")
_GROUP = 64  #: values that share a step and a center, where this divides the row
_MAX_GROUP = 128
_UNIT = 8  #: a row of a multiple of this many values fills whole bytes in every plane
_FACTOR_BYTES = 4  #: a group's step and center


@frozen
class Coding:
    """How the rows of one tensor are encoded."""

    dim: int  #: values of a row
    bits: int
    group: int  #: values that share a step and a center
    block: int  #: values that are rotated together

    @property
    def planes(self) -> tuple[int, ...]:
        """Bits of each plane, the one with the lowest bits first."""
        return {8: (8,), 6: (4, 2), 4: (4,)}[self.bits]

    @property
    def code_bytes(self) -> int:
        """Bytes of a row's planes."""
        return self.dim * self.bits // 8

    @property
    def row_bytes(self) -> int:
        """Bytes of an encoded row."""
        return self.code_bytes + self.dim // self.group * _FACTOR_BYTES

    @property
    def bits_per_value(self) -> float:
        """Steps and centers included."""
        return 8 * self.row_bytes / self.dim


@frozen
class Encoded:
    """Rows ``[start, stop)`` of one tensor of a KV that is being filled, counted from the first that it holds."""

    start: int
    stop: int
    coding: Coding
    rows: np.ndarray[Any, Any] = field(eq=False, repr=False)  #: (heads, stop - start, coding.row_bytes) uint8


def coding(spec: TensorSpec, codec: Codec) -> Coding | None:
    """How ``codec`` encodes the rows of a tensor; None: exactly, byte for byte.

    That is so for ``exact``, for values that are no floating-point numbers, and where a row is no multiple of 8 values
    or would not get smaller.
    """
    if codec == "exact" or spec.dtype not in _FLOATS or not spec.dim or spec.dim % _UNIT:
        return None
    keys, values = _BITS[codec]
    made = Coding(spec.dim, values if spec.name.endswith(".v") else keys, _group(spec.dim), spec.dim & -spec.dim)
    return made if made.row_bytes < spec.row_bytes else None


def _group(dim: int) -> int:
    """The smallest divisor from 64 on; the whole row, or else the largest below, where there is none up to 128."""
    if dim < _GROUP:
        return dim
    larger = (g for g in range(_GROUP, _MAX_GROUP + 1, _UNIT) if dim % g == 0)
    return next(larger, None) or max(g for g in range(_UNIT, _GROUP, _UNIT) if dim % g == 0)


def coded(spec: TensorSpec, codec: Codec) -> TensorSpec:
    """What is stored of a tensor under ``codec``: rows of bytes, or the tensor as it is where ``coding`` is None."""
    made = coding(spec, codec)
    return spec if made is None else attrs.evolve(spec, dim=made.row_bytes, dtype="U8")


def token_bytes(layout: Layout, codec: Codec) -> int:
    """Bytes that one token of full-attention layers costs under ``codec``."""
    return sum(coded(spec, codec).token_bytes for spec in layout.tensors)


def is_lossy(layout: Layout, codec: Codec) -> bool:
    """Whether ``codec`` changes anything of this layout."""
    return any(coding(spec, codec) is not None for spec in (*layout.tensors, *layout.windows))


def fallbacks(layout: Layout, codec: Codec) -> tuple[str, ...]:
    """The tensors that ``codec`` leaves exact, each with why; states of layers that cannot be cut are always exact."""
    left = [spec for spec in (*layout.tensors, *layout.windows) if codec != "exact" and coding(spec, codec) is None]
    return tuple(f"{spec.name}: rows of {spec.dim} x {spec.dtype}" for spec in left)


def named(text: str) -> Codec:
    """The codec of that name, as a stored file has it. Raises ValueError for any other."""
    for codec in CODECS:
        if codec == text:
            return codec
    raise ValueError(f"unknown codec {text!r}")
