"""The byte format of encoded rows: bits, groups and sizes. Pure.

Each row (one token of one head) is encoded independently, so rows of any spans can be concatenated, and the store needs
only their size. The bytes of a row of ``dim`` values in groups of ``group``:

* the values' codes of ``bits`` bits each, split into planes of 8, 4, 2 or 1 bits, the lowest bits first. A plane of
  ``w`` bits is ``dim * w / 8`` bytes; value ``i`` lies in byte ``i % size`` of it, shifted left by ``w * (i // size)``;
* the groups' steps, then, under ``q8``, ``q5`` and ``q4``, the groups' centers: bfloat16, little-endian.

A value is ``center + step * (code - (2**bits - 1) / 2)``, without center under a mixed codec, of the row rotated: every
run of ``block`` values multiplied by the orthonormal Hadamard matrix (Sylvester's, natural order), its own inverse.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from attrs import field, frozen

from agent_memory.config import Codec, is_codec
from agent_memory.kvcache.layout import Layout, TensorSpec

#: bits of (keys, values): errors in keys cost attention more
_BITS: dict[Codec, tuple[int, int]] = {"exact": (0, 0), "q8": (8, 8), "q5": (6, 4), "q4": (4, 4)}
#: bits of (keys, values) of full attention where it is rare; ``q5`` has two bits more for keys anyway
_FITTED: dict[Codec, tuple[int, int]] = {"q8": (9, 7), "q4": (5, 3)}
#: Full attention is rare where it is in one of so many layers, the others having windows.
_MOST_FULL = 3
_MIX = "mix."
_DIGITS = "0123456789abc"  #: of a mixed codec's name: the bits of each layer's keys and values
#: The planes of each number of bits, the one with the lowest bits first.
PLANES: dict[int, tuple[int, ...]] = {
    2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,), 9: (8, 1), 10: (8, 2), 12: (8, 4)
}  # fmt: skip
_FLOATS = ("F32", "F16", "BF16")
_GROUP = 64  #: values that share a step and a center, if this divides the row
_MAX_GROUP = 128
_UNIT = 8  #: a row must be a multiple of this many values, so that every plane has whole bytes
_FACTOR_BYTES = 2  #: bytes of a group's step, and of its center


@frozen
class Coding:
    """How the rows of one tensor are encoded."""

    dim: int  #: values of a row
    bits: int
    group: int  #: values that share a step and a center
    block: int  #: values that are rotated together
    has_centers: bool  #: False: steps alone. Rotated values lie around 0: a center costs more bytes than it saves

    @property
    def planes(self) -> tuple[int, ...]:
        """Bits of each plane, the one with the lowest bits first."""
        return PLANES[self.bits]

    @property
    def code_bytes(self) -> int:
        """Bytes of a row's planes."""
        return self.dim * self.bits // 8

    @property
    def row_bytes(self) -> int:
        """Bytes of an encoded row."""
        return self.code_bytes + self.dim // self.group * _FACTOR_BYTES * (1 + self.has_centers)

    @property
    def bits_per_value(self) -> float:
        """Bits stored for each value, steps and centers included."""
        return 8 * self.row_bytes / self.dim


@frozen
class Encoded:
    """Encoded rows ``[start, stop)`` of one tensor of a KV, counted from the first row that the KV has."""

    start: int
    stop: int
    coding: Coding
    rows: np.ndarray[Any, Any] = field(eq=False, repr=False)  #: (heads, stop - start, coding.row_bytes) uint8


@functools.lru_cache(maxsize=4096)
def coding(spec: TensorSpec, codec: Codec) -> Coding | None:
    """Return how ``codec`` encodes the rows of a tensor; None if they are stored exactly.

    Stored exactly: under ``exact``, and where a mixed codec says so; values that are no floating-point numbers; rows
    that are no multiple of 8 values or would not get smaller.
    """
    bits = _bits(spec.name, codec)
    if not bits or spec.dtype not in _FLOATS or not spec.dim or spec.dim % _UNIT:
        return None
    made = Coding(spec.dim, bits, _group(spec.dim), spec.dim & -spec.dim, not codec.startswith(_MIX))
    return made if made.row_bytes < spec.row_bytes else None


def _bits(name: str, codec: Codec) -> int:
    """Return the bits of a tensor's codes; 0: it stays exact, as one of which a mixed codec says nothing."""
    if not codec.startswith(_MIX):
        return _BITS[codec][name.endswith(".v")]
    layer = name.partition(".")[0]
    digit = codec[len(_MIX) :][place(name) :][:1] if layer.isdecimal() and len(layer) < 9 else ""
    return _DIGITS.index(digit) if digit else 0


def mixed(bits: Mapping[str, int]) -> Codec:
    """Return the mixed codec of tensors by name ("012.k"), each with a key of ``PLANES``, or 0 to stay exact.

    Tensors of one layer that share a digit, as "012.0.k" and "012.1.k" do, get the finest bits among them.
    """
    by_place: dict[int, list[int]] = {}
    for name, n in bits.items():
        by_place.setdefault(place(name), []).append(n)
    finest = {at: 0 if 0 in found else max(found) for at, found in by_place.items()}
    return _MIX + "".join(_DIGITS[finest.get(at, 0)] for at in range(2 * (1 + max(finest) // 2)))


def place(name: str) -> int:
    """Return which digit of a mixed codec's name is a tensor's: tensors of one layer may share one."""
    return 2 * int(name.partition(".")[0]) + name.endswith(".v")


def fitted(layout: Layout, codec: Codec) -> Codec:
    """Return the codec that a fixed one stands for on a layout: itself, or a mixed one where few layers have no window.

    Those few read the whole context, and most of all its first token: on Gemma 3 270M the keys of 3 layers of 18 cause
    nine tenths of the error of 4 bits. There a bit goes from the values to the keys.
    """
    is_rare = _MOST_FULL * len(layout.tensors) <= len(layout.tensors) + len(layout.windows)
    if codec not in _FITTED or not layout.tensors or not is_rare:
        return codec
    bits = {spec.name: _FITTED[codec][spec.name.endswith(".v")] for spec in layout.tensors}
    return mixed(bits | {spec.name: _BITS[codec][spec.name.endswith(".v")] for spec in layout.windows})


def is_for(layout: Layout, codec: Codec) -> bool:
    """True if a codec has as many layers as a layout; a fixed one always."""
    if not codec.startswith(_MIX):
        return True
    layers = [int(spec.name.partition(".")[0]) for spec in (*layout.tensors, *layout.windows)]
    return len(codec) == len(_MIX) + 2 * (1 + max(layers, default=-1))


def _group(dim: int) -> int:
    """Return the group size: the smallest divisor in 64..128, else the whole row, else the largest divisor below 64."""
    if dim < _GROUP:
        return dim
    larger = (g for g in range(_GROUP, _MAX_GROUP + 1, _UNIT) if dim % g == 0)
    return next(larger, None) or max(g for g in range(_UNIT, _GROUP, _UNIT) if dim % g == 0)


def coded(spec: TensorSpec, codec: Codec) -> TensorSpec:
    """Return the tensor as stored under ``codec``: rows of bytes, or unchanged where ``coding`` is None."""
    made = coding(spec, codec)
    return spec if made is None else attrs.evolve(spec, dim=made.row_bytes, dtype="U8")


def token_bytes(layout: Layout, codec: Codec) -> int:
    """Return the bytes of one token of all full-attention layers under ``codec``."""
    return sum(coded(spec, codec).token_bytes for spec in layout.tensors)


def is_lossy(layout: Layout, codec: Codec) -> bool:
    """True if ``codec`` changes any tensor of this layout."""
    return any(coding(spec, codec) is not None for spec in (*layout.tensors, *layout.windows))


def fallbacks(layout: Layout, codec: Codec) -> tuple[str, ...]:
    """Return the tensors that ``codec`` leaves exact, each with the reason; snapshots are always exact."""
    left = [spec for spec in (*layout.tensors, *layout.windows) if codec != "exact" and coding(spec, codec) is None]
    return tuple(f"{spec.name}: rows of {spec.dim} x {spec.dtype}" for spec in left)


def named(text: str) -> Codec:
    """Return the codec of a name read from a file. Raises ValueError for any other."""
    if is_codec(text):
        return sys.intern(text)  # each segment has one, and a mixed codec's name may be long
    raise ValueError(f"unknown codec {text!r}")
