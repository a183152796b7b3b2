"""Cache classes of mlx-lm, and the arrays in them: cut, copy, hand over, read out and fill.

``KVCache`` (full attention, MLA latents too) is stored and cut at any token. Every other class is kept live in
memory, continued as it is, and recomputed from the log once it is gone: ``Layout.unstored`` names it.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ArraysCache, BatchKVCache, CacheList, KVCache

from agent_memory.kvcache.layout import Kind, Layout, TensorSpec
from agent_memory.protocols import Source

#: Spare rows are added in this step: mlx-lm's own (``KVCache.step``), so that both grow alike.
STEP: int = KVCache.step

_DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}


def probe(caches: Sequence[Any]) -> Layout:
    """The layout of caches that hold at least one token."""
    tensors: list[TensorSpec] = []
    kinds: list[Kind] = []
    unstored: list[str] = []
    for number, cache in enumerate(caches):
        if type(cache) is KVCache and cache.keys.dtype in _DTYPES:
            kinds.append("full")
            for name, array in (("k", cache.keys), ("v", cache.values)):
                _, heads, _, dim = array.shape
                tensors.append(TensorSpec(f"{number:03d}.{name}", heads, dim, _DTYPES[array.dtype]))
        else:
            kinds.append("unstored")
            unstored.append(f"layer {number}: {type(cache).__name__}")
    return Layout(tuple(tensors), tuple(kinds), tuple(unstored))


class MLXKV:
    """The live caches of one row, layer by layer, and how many tokens they cover. Engine thread only."""

    __slots__ = ("caches", "layout", "n_tokens")

    def __init__(self, caches: list[Any], layout: Layout, n_tokens: int = 0) -> None:
        self.caches, self.layout, self.n_tokens = caches, layout, n_tokens

    @property
    def nbytes(self) -> int:
        """Bytes allocated, spare room included."""
        return sum(int(c.nbytes) for c in self.caches)

    def trim(self, n_tokens: int) -> bool:
        """Cut in place; False where a layer's class cannot."""
        surplus = self.n_tokens - n_tokens
        if surplus < 0:
            return False
        if surplus and not all(c.is_trimmable() for c in self.caches):
            return False
        for cache in self.caches if surplus else ():
            cache.trim(surplus)
        self.n_tokens = n_tokens
        return True

    def copy(self, n_tokens: int) -> MLXKV | None:
        """The first ``n_tokens`` in buffers of their own; O(n_tokens) bytes."""
        if not self.layout.is_storable or n_tokens > self.n_tokens:
            return None
        room = roomy(n_tokens) - n_tokens
        caches = []
        for cache in self.caches:
            twin = KVCache()
            if n_tokens:
                twin.keys, twin.values = (_with_room(a, n_tokens, room) for a in (cache.keys, cache.values))
                twin.offset = n_tokens
                mx.eval(
                    twin.keys, twin.values
                )  # layer by layer: peak memory stays at one layer's worth above the result
            caches.append(twin)
        return MLXKV(caches, self.layout, n_tokens)

    def read(self, tensor: int, start: int, stop: int) -> np.ndarray[Any, Any]:
        """A host copy of tokens ``[start, stop)`` of one layout tensor: (heads, n, row_bytes) uint8."""
        cache = self.caches[tensor // 2]
        array = cache.values if tensor % 2 else cache.keys
        rows = mx.contiguous(array[0, :, start:stop, :]).view(mx.uint8)
        mx.eval(rows)
        return np.array(rows)


def _with_room(array: mx.array, n_tokens: int, room: int) -> mx.array:
    _, heads, _, dim = array.shape
    return mx.concatenate([array[..., :n_tokens, :], mx.zeros((1, heads, room, dim), array.dtype)], axis=2)


def roomy(n_tokens: int) -> int:
    """Rows to allocate for ``n_tokens`` and at least half a step of spare room."""
    return (n_tokens + STEP // 2 + STEP - 1) // STEP * STEP


class _RoomyFile(io.RawIOBase):
    """A safetensors file that exists only while mx.load reads it: stored rows scattered into buffers with spare room.

    mx.load allocates each tensor and asks this object to fill it, so bytes go from the page cache straight to where
    they are used, with no copy and no zeroing.
    """

    def __init__(self, layout: Layout, source: Source, capacity: int) -> None:
        super().__init__()
        self._source, self._capacity = source, capacity
        self._at = 0
        self._starts: dict[int, int] = {}
        header: dict[str, Any] = {}
        end = 0
        for number, spec in enumerate(layout.tensors):
            size = spec.token_bytes * capacity
            shape = [1, spec.heads, capacity, spec.dim]
            header[spec.name] = {"dtype": spec.dtype, "shape": shape, "data_offsets": [end, end + size]}
            self._starts[end] = number
            end += size
        text = json.dumps(header).encode()
        self._header, self._size = struct.pack("<Q", len(text)) + text, end

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._header) + self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, out: Any) -> int:
        """mx.load reads the header in parts, then every tensor whole."""
        view = memoryview(out).cast("B")
        if self._at < len(self._header):
            view[:] = self._header[self._at : self._at + len(view)]
        else:
            self._source.read_into(self._starts[self._at - len(self._header)], view, self._capacity)
        size = len(view)
        self._at += size
        return size


def fill(layout: Layout, source: Source) -> list[Any]:
    """One ``KVCache`` a layer with the rows of ``source`` and spare room, all of them read."""
    capacity, n_tokens = roomy(source.n_tokens), source.n_tokens
    file: Any = _RoomyFile(layout, source, capacity)  # mx.load asks for read, seek and tell; its stubs for BinaryIO
    arrays: Any = mx.load(file, format="safetensors")
    mx.eval(arrays)  # everything is read when this returns, so that it can be verified before it is used
    caches = []
    for first in range(0, len(layout.tensors), 2):
        cache = KVCache()
        cache.keys, cache.values = (arrays.pop(layout.tensors[first + i].name) for i in (0, 1))
        cache.offset = n_tokens
        caches.append(cache)
    return caches


# A batch of one keeps the row's own caches; a second row turns them into mlx-lm's batch classes, and back.


def can_batch(caches: Sequence[Any]) -> bool:
    """Whether mlx-lm can decode these caches together with others: not chunked ones, nor windows with sinks."""
    return all(
        can_batch(c.caches) if type(c) is CacheList else hasattr(c, "merge") and not getattr(c, "keep", 0)
        for c in caches
    )


def to_batch(cache: Any) -> Any:
    """The batch form of one row's cache; a ``KVCache`` hands its buffers over uncopied, spare room and all.

    A batch stays what it is.
    """
    if type(cache) is CacheList:
        return CacheList(*(to_batch(c) for c in cache.caches))
    if hasattr(cache, "extend") and not cache.empty():
        return cache  # a batch already; of an ArraysCache the batch form is itself
    if type(cache) is not KVCache or cache.keys is None:
        return cache.merge([cache])
    batch = BatchKVCache([0])
    batch.keys, batch.values = cache.keys, cache.values
    batch.offset, batch._idx = mx.array([cache.offset]), cache.offset
    return batch


def from_batch(batch: Any) -> Any:
    """The reverse, for a batch with one row left."""
    if type(batch) is CacheList:
        return CacheList(*(from_batch(c) for c in batch.caches))
    if type(batch) is ArraysCache:
        return batch
    if type(batch) is not BatchKVCache:
        return batch.extract(0)
    batch.filter([0])  # shifts the row to the left edge
    cache = KVCache()
    cache.keys, cache.values, cache.offset = batch.keys, batch.values, batch._idx
    return cache


def join(caches: Sequence[Any]) -> Any:
    """One batch of one layer's caches, each a row's own or a batch already; evaluated. One copy of their bytes."""
    first = caches[0]
    if type(first) is CacheList:
        return CacheList(*(join([c.caches[i] for c in caches]) for i in range(len(first.caches))))
    if all(type(c) in (KVCache, BatchKVCache) for c in caches):
        joined = _pad([to_batch(c) for c in caches])
    else:
        joined = to_batch(first)
        for other in caches[1:]:
            joined.extend(to_batch(other))
    mx.eval(joined.state)
    return joined


def _pad(parts: Sequence[BatchKVCache]) -> BatchKVCache:
    """Full-attention batches as one, right-justified at the longest, with the spare room that ``merge`` drops."""
    length = max(p._idx for p in parts)
    sizes = [int(p.left_padding.size) for p in parts]
    joined = BatchKVCache([0])
    joined.left_padding = mx.concatenate([p.left_padding + (length - p._idx) for p in parts])
    joined.offset, joined._idx = mx.concatenate([p.offset for p in parts]), length
    filled = next((p for p in parts if p.keys is not None), None)
    for name in ("keys", "values") if filled is not None else ():
        like = getattr(filled, name)
        rows = mx.zeros((sum(sizes), like.shape[1], roomy(length), like.shape[3]), like.dtype)
        at = 0
        for part, size in zip(parts, sizes, strict=True):
            if part.keys is not None:
                rows[at : at + size, :, length - part._idx : length] = getattr(part, name)[..., : part._idx, :]
            at += size
        setattr(joined, name, rows)
    return joined


def view(batch: Any, row: int) -> KVCache | None:
    """One row of a full-attention cache or batch, uncopied, spare room included; None for other kinds."""
    if type(batch) is KVCache:
        return batch
    if type(batch) is not BatchKVCache:
        return None
    padding = int(batch.left_padding[row].item())
    cache = KVCache()
    cache.keys, cache.values = (a[row : row + 1, :, padding:] for a in (batch.keys, batch.values))
    cache.offset = batch._idx - padding
    return cache


def take(batch: Any, row: int) -> Any:
    """One row of a batch as a cache of its own; unlike ``extract``, spare room comes along."""
    if type(batch) is CacheList:
        return CacheList(*(take(c, row) for c in batch.caches))
    if type(batch) is ArraysCache:
        alone = ArraysCache(len(batch.cache))  # a view of the row would hold the whole batch in memory
        alone.cache = [None if a is None else mx.contiguous(a[row : row + 1]) for a in batch.cache]
        return alone
    seen = view(batch, row)
    if seen is None:
        return batch.extract(row)
    seen.keys, seen.values = mx.contiguous(seen.keys), mx.contiguous(seen.values)
    return seen
