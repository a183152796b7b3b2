"""Join rows' caches to a batch, and take them out again.

A batch of one keeps the row's own caches; a second row turns them into mlx-lm's batch classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, BatchKVCache, BatchRotatingKVCache, CacheList, KVCache

from agent_memory.mlxcache import windows
from agent_memory.mlxcache.kinds import leaves, roomy


def can_batch(caches: Sequence[Any]) -> bool:
    """True if mlx-lm can batch these caches; not so for chunked caches and windows with attention sinks."""
    return all(
        can_batch(c.caches) if type(c) is CacheList else hasattr(c, "merge") and not getattr(c, "keep", 0)
        for c in caches
    )


def to_batch(cache: Any) -> Any:
    """Return the batch form of one row's cache, a ``KVCache``'s buffers uncopied. A batch is returned as it is."""
    if type(cache) is CacheList:
        return CacheList(*(to_batch(c) for c in cache.caches))
    if hasattr(cache, "extend") and not cache.empty():
        return cache  # a batch already, or an ArraysCache, which is its own batch form
    if type(cache) is not KVCache or cache.keys is None:
        return cache.merge([cache])
    batch = BatchKVCache([0])
    batch.keys, batch.values = cache.keys, cache.values
    batch.offset, batch._idx = mx.array([cache.offset]), cache.offset
    return batch


def from_batch(batch: Any, room: int) -> Any:
    """Return the cache of a batch's last row; ``room``: tokens of a chunk, for windows."""
    if type(batch) is CacheList:
        return CacheList(*(from_batch(c, room) for c in batch.caches))
    if type(batch) is not BatchKVCache:
        return view(batch, 0, room)
    batch.filter([0])  # moves the row to the left edge
    cache = KVCache()
    cache.keys, cache.values, cache.offset = batch.keys, batch.values, batch._idx
    return cache


def join(caches: Sequence[Any], beside: Any) -> Any:
    """Join one layer's caches, each of a row or a batch, to one batch; evaluated; one copy.

    ``beside``: a stream to copy values on while keys are copied on the current one. On CPUs most of the time goes to
    first touches of new memory; two threads take 0.6 of one thread's time.
    """
    first = caches[0]
    if type(first) is CacheList:
        return CacheList(*(join([c.caches[i] for c in caches], beside) for i in range(len(first.caches))))
    if all(type(c) in (KVCache, BatchKVCache) for c in caches):
        joined = _pad([to_batch(c) for c in caches], beside)
    else:
        joined = to_batch(first)
        for other in caches[1:]:
            joined.extend(to_batch(other))
    mx.eval(joined.state)
    return joined


def _pad(parts: Sequence[BatchKVCache], beside: Any) -> BatchKVCache:
    """Merge full-attention batches, right-justified at the longest row, with spare capacity (``merge`` drops it)."""
    length = max(p._idx for p in parts)
    sizes = [int(p.left_padding.size) for p in parts]
    joined = BatchKVCache([0])
    joined.left_padding = mx.concatenate([p.left_padding + (length - p._idx) for p in parts])
    joined.offset, joined._idx = mx.concatenate([p.offset for p in parts]), length
    if any(p.keys is not None for p in parts):
        joined.keys = _rows([(p.keys, p._idx) for p in parts], sizes, length)
        with mx.stream(beside):
            joined.values = _rows([(p.values, p._idx) for p in parts], sizes, length)
    return joined


def _rows(parts: Sequence[tuple[mx.array | None, int]], sizes: Sequence[int], length: int) -> mx.array:
    """Return keys or values of all rows, each part right-justified at ``length``."""
    like = next(array for array, _ in parts if array is not None)
    rows = mx.zeros((sum(sizes), like.shape[1], roomy(length), like.shape[3]), like.dtype)
    at = 0
    for (array, n_tokens), size in zip(parts, sizes, strict=True):
        if array is not None:
            rows[at : at + size, :, length - n_tokens : length] = array[..., :n_tokens, :]
        at += size
    return rows


def view(batch: Any, row: int, room: int) -> Any:
    """Return one row of a cache or batch as a cache of its own, uncopied where the class allows it."""
    if type(batch) is CacheList:
        return CacheList(*(view(c, row, room) for c in batch.caches))
    if type(batch) is ArraysCache:
        alone = ArraysCache(len(batch.cache))
        alone.cache = [None if a is None else a[row : row + 1] for a in batch.cache]
        return alone
    if type(batch) is BatchKVCache:
        padding = int(batch.left_padding[row].item())
        cache = KVCache()
        cache.keys, cache.values = (a[row : row + 1, :, padding:] for a in (batch.keys, batch.values))
        cache.offset = batch._idx - padding
        return cache
    if type(batch) is BatchRotatingKVCache:
        return windows.from_rotating(batch.extract(row), room)
    return batch  # the cache of a single row


def take(batch: Any, row: int, room: int) -> Any:
    """Copy one row of a batch to a cache of its own, with spare capacity. ``room``: tokens of a chunk."""
    seen = view(batch, row, room)
    for cache in leaves([seen]):  # a view would keep the whole batch in memory
        if type(cache) is KVCache:
            cache.keys, cache.values = mx.contiguous(cache.keys), mx.contiguous(cache.values)
        elif type(cache) is ArraysCache:
            cache.cache = [None if a is None else mx.contiguous(a) for a in cache.cache]
    return seen
