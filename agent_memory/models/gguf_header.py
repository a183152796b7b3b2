"""Read the header of a GGUF file, every length checked; standard library alone.

GGUF is a magic, a version, two counts, typed metadata, tensor descriptions, padding, and the tensors' data
(ggml/docs/gguf.md). MLX's own reader trusts all of it, so a truncated file must be found here first.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from attrs import field, frozen

from agent_memory.errors import DamagedModelError, ModelNotFoundError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_MAX_DIMS = 4
_STRING, _ARRAY = 8, 9
#: metadata type -> struct code
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
#: tensor type -> (name, values a block, bytes a block); ggml/include/ggml.h and ggml-common.h
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
}  # fmt: skip


@frozen
class TensorInfo:
    """One tensor's description; ``shape`` is row-major, the reverse of the file's order."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int  #: from the start of the data
    nbytes: int

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@frozen
class Header:
    """The header of a GGUF file: metadata and tensors."""

    version: int
    metadata: Mapping[str, Any] = field(repr=False)  #: scalars, str, and lists of them
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    data_start: int  #: bytes
    file_bytes: int

    @property
    def n_values(self) -> int:
        """Values of all tensors together: the number of parameters."""
        return sum(t.size for t in self.tensors.values())


def read_header(path: Path) -> Header:
    """The checked head of a GGUF file; a second or less, without reading the tensors.

    Raises ModelNotFoundError, UnsupportedModelError (a version or byte order that is not read), and
    DamagedModelError with the bytes expected and found.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                _damaged(path, f"it is {size:,} bytes; the fixed head alone takes 24")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(data, path, size).header()
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such file: {path}. Check the path.") from None
    except IsADirectoryError:
        raise ModelNotFoundError(f"{path} is a directory, not a .gguf file.") from None


class _Cursor:
    """Reads forward through the mapped file and refuses every length that leaves it."""

    __slots__ = ("at", "data", "path", "size")

    def __init__(self, data: mmap.mmap, path: Path, size: int) -> None:
        self.data, self.path, self.size, self.at = data, path, size, 0

    def header(self) -> Header:
        if (magic := self.take(4)) != MAGIC:
            _damaged(self.path, f"it starts with {magic!r}; a GGUF file starts with {MAGIC!r}")
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "big-endian GGUF" if swapped in VERSIONS else f"GGUF version {version}"
            raise UnsupportedModelError(f"{self.path} is {kind}; little-endian versions 2 and 3 are supported.")
        n_tensors, n_metadata = self.number("Q"), self.number("Q")
        # the smallest entry takes 13 (metadata) and 24 (tensor) bytes: more than fit is a damaged count
        for what, count, least in (("tensors", n_tensors, 24), ("metadata entries", n_metadata, 13)):
            if count * least > self.size:
                _damaged(self.path, f"it announces {count:,} {what}, which do not fit its {self.size:,} bytes")
        metadata = {self.string(): self.value(self.number("I")) for _ in range(n_metadata)}
        tensors = [self.tensor() for _ in range(n_tensors)]
        return self.checked(version, metadata, {t.name: t for t in tensors})

    def checked(self, version: int, metadata: dict[str, Any], tensors: dict[str, TensorInfo]) -> Header:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            _damaged(self.path, f"its alignment is {alignment!r}; expected a positive multiple of 8")
        start = -(-self.at // alignment) * alignment
        for t in tensors.values():
            if t.offset % alignment:
                _damaged(self.path, f"tensor {t.name} starts at {t.offset:,}, no multiple of {alignment}")
            if start + t.offset + t.nbytes > self.size:
                _damaged(
                    self.path,
                    f"tensor {t.name} ends at byte {start + t.offset + t.nbytes:,}; the file has {self.size:,}",
                )
        return Header(version, metadata, tensors, start, self.size)

    def tensor(self) -> TensorInfo:
        name, n_dims = self.string(), self.number("I")
        if not 1 <= n_dims <= _MAX_DIMS:
            _damaged(self.path, f"tensor {name} has {n_dims:,} dimensions; 1 to {_MAX_DIMS} are allowed")
        shape = tuple(self.number("Q") for _ in range(n_dims))
        kind, offset = self.number("I"), self.number("Q")
        if kind not in TENSOR_TYPES:
            raise UnsupportedModelError(f"{self.path}: tensor {name} has the unknown type {kind}.")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if shape[0] % block or 0 in shape:
            _damaged(
                self.path, f"tensor {name} has rows of {shape[0]:,} values; {type_name} needs multiples of {block}"
            )
        return TensorInfo(name, shape[::-1], type_name, offset, math.prod(shape) // block * block_bytes)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            _damaged(self.path, f"metadata of the unknown type {kind} at byte {self.at - 4:,}")
        return self.number(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code))))
        if kind != _STRING:
            _damaged(self.path, f"an array of the unknown type {kind} at byte {self.at - 12:,}")
        if count * 8 > self.size:
            _damaged(self.path, f"it announces an array of {count:,} strings, which do not fit its {self.size:,} bytes")
        return [self.string() for _ in range(count)]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def take(self, count: int) -> bytes:
        if self.at + count > self.size:
            _damaged(self.path, f"its head goes on to byte {self.at + count:,} at least; the file has {self.size:,}")
        self.at += count
        return self.data[self.at - count : self.at]


def _damaged(path: Path, why: str) -> NoReturn:
    raise DamagedModelError(f"{path} is truncated or no GGUF file: {why}. Fetch it again.")
