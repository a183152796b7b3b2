"""The cache of a sliding-window layer, its rows in order of time.

mlx-lm's ``RotatingKVCache`` overwrites its oldest row in place: the order in which attention sums depends on where the
conversation wrapped around, and a cache that has wrapped cannot be truncated. This cache keeps its rows in order, and
one chunk more than the window: its results depend on the tokens alone, and it can be truncated to any token since the
last chunk boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import BatchRotatingKVCache, RotatingKVCache


class WindowKVCache:
    """Rows ``[start, offset)`` of one layer; each token attends to ``max_size`` tokens, itself included.

    At rest at most ``max_size + room`` rows are allocated. Shapes: ``keys`` and ``values`` (1, heads, rows, dim).
    """

    def __init__(self, max_size: int, room: int) -> None:
        self.max_size, self.room = max_size, room
        self.keys: Any = None
        self.values: Any = None
        self.start = self.offset = 0
        self._first = 0  # the oldest row that the newest tokens attended to

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append rows; return every row that the first of them may attend to, and all later ones."""
        n_new = keys.shape[2]
        first = max(self.start, self.offset - self.max_size + 1)
        stop = self.offset + n_new
        if self.keys is not None and stop - self.start <= self.keys.shape[2]:
            return self._write(keys, values, first)
        if n_new == 1 and self.keys is not None:
            start = min(first, self._boundary(stop))
            room = min(self.max_size + self.room, stop - start + self.room) - (self.offset - start)
            self.keys, self.values = (self._moved(a, start, room) for a in (self.keys, self.values))
            self.start = start
            return self._write(keys, values, first)
        if self.keys is not None:
            seen = slice(first - self.start, self.offset - self.start)
            keys = mx.concatenate([self.keys[..., seen, :], keys], axis=2)
            values = mx.concatenate([self.values[..., seen, :], values], axis=2)
        self.keys, self.values = keys, values
        self.offset, self.start, self._first = stop, first, first
        return keys, values

    def tidy(self) -> None:
        """Drop rows that a long prefill step left behind; called after the step, because layers may share a cache."""
        if self.keys is not None and self.keys.shape[2] > self.max_size + self.room:
            start = self._boundary(self.offset)
            self.keys, self.values = (self._moved(a, start, 0) for a in (self.keys, self.values))
            self.start = self._first = start

    def _boundary(self, n_tokens: int) -> int:
        """The oldest row needed to resume at the newest chunk boundary, or at any later token."""
        return max(self.start, n_tokens // self.room * self.room - self.max_size + 1)

    def _moved(self, array: mx.array, start: int, room: int) -> mx.array:
        _, heads, _, dim = array.shape
        rows = array[..., start - self.start : self.offset - self.start, :]
        return mx.concatenate([rows, mx.zeros((1, heads, room, dim), array.dtype)], axis=2)

    def _write(self, keys: mx.array, values: mx.array, first: int) -> tuple[mx.array, mx.array]:
        at, stop = self.offset - self.start, self.offset - self.start + keys.shape[2]
        self.keys[..., at:stop, :] = keys
        self.values[..., at:stop, :] = values
        self.offset += keys.shape[2]
        self._first = first
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """Return the last result of ``update_and_fetch``: in some models layers read another layer's cache."""
        seen = slice(self._first - self.start, self.offset - self.start)
        return self.keys[..., seen, :], self.values[..., seen, :]

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Any:  # noqa: N803
        """Return the mask of the next ``N`` tokens over the rows that ``update_and_fetch`` will return."""
        window = window_size or self.max_size
        before = min(self.max_size - 1, self.offset)
        if N > 1:
            is_wide = before + N > window or return_array
            return create_causal_mask(N, before, window_size=window) if is_wide else "causal"
        if before + 1 > window:
            return mx.arange(before + 1) >= before + 1 - window
        return None

    def holds(self, n_tokens: int) -> bool:
        """True if the cache can be truncated to its first ``n_tokens``."""
        oldest = max(0, n_tokens - self.max_size + 1)
        return n_tokens <= self.offset and oldest >= self.start

    def trim(self, n: int) -> int:
        """Drop the newest ``n`` tokens; only where ``holds`` says so."""
        self.offset -= n
        self._first = self.start
        return n

    def is_trimmable(self) -> bool:
        """True if no row was dropped yet; ``holds`` is the exact answer."""
        return self.start == 0

    def copied(self, n_tokens: int) -> WindowKVCache:
        """Copy the first ``n_tokens`` to buffers of their own."""
        start = self._boundary(n_tokens)
        span = slice(start - self.start, n_tokens - self.start)
        keys, values = (mx.contiguous(a[..., span, :]) for a in (self.keys, self.values))
        return filled(self, keys, values, start, n_tokens)

    @property
    def state(self) -> tuple[Any, Any]:
        """The arrays, for ``mx.eval``."""
        return self.keys, self.values

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return 0 if self.keys is None else int(self.keys.nbytes + self.values.nbytes)

    def empty(self) -> bool:
        """True if the cache has no rows."""
        return self.keys is None

    def size(self) -> int:
        """Number of tokens that the next one may attend to."""
        return min(self.offset, self.max_size)

    @classmethod
    def merge(cls, caches: Sequence[WindowKVCache]) -> Any:
        """Return mlx-lm's batch form of several rows."""
        return BatchRotatingKVCache.merge([c._rotating() for c in caches])

    def _rotating(self) -> RotatingKVCache:
        made = RotatingKVCache(self.max_size)
        if self.keys is not None:
            n_rows = min(self.size(), self.offset - self.start)
            made.keys, made.values = (self._newest(a, n_rows) for a in (self.keys, self.values))
            made.offset, made._idx = self.offset, self.size()
        return made

    def _newest(self, array: mx.array, n_rows: int) -> mx.array:
        """Return the newest rows, after a zero row where mlx-lm expects one that the next token overwrites unread."""
        stop = self.offset - self.start
        rows = array[..., stop - n_rows : stop, :]
        _, heads, _, dim = array.shape
        unseen = mx.zeros((1, heads, self.size() - n_rows, dim), array.dtype)
        return mx.concatenate([unseen, rows], axis=2) if n_rows < self.size() else rows


def filled(like: WindowKVCache, keys: Any, values: Any, start: int, offset: int) -> WindowKVCache:
    """Return a cache of the same window with rows ``[start, offset)``; ``keys`` and ``values`` may have spare rows."""
    made = WindowKVCache(like.max_size, like.room)
    made.keys, made.values, made.offset = keys, values, offset
    made.start = made._first = start
    return made


def from_rotating(cache: RotatingKVCache, room: int) -> WindowKVCache:
    """Return the rows of mlx-lm's cache for one row of a batch, put in order of time."""
    made = WindowKVCache(cache.max_size, room)
    if cache.keys is None:
        return made
    keys, values = (cache._temporal_order(a) for a in (cache.keys, cache.values))
    return filled(made, keys, values, cache.offset - keys.shape[2], cache.offset)
