"""The KV of an EchoRunner: a hash chain over ids, so that one wrong byte anywhere is seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_memory.kvcache.layout import Layout

if TYPE_CHECKING:
    from agent_memory.config import Codec
    from agent_memory.protocols import Source

_GROW = 256  #: spare capacity is added in steps of this many tokens, as in mlx-lm's KVCache

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class EchoKV:
    """The KV of one row in numpy arrays, with spare capacity.

    A row of tensor ``t``, head ``h`` consists of 64-bit words: id and position; the hash chain; then hashes of the
    chain, ``t`` and ``h``.
    """

    __slots__ = ("_layout", "_n", "_seed", "_tensors")

    def __init__(self, layout: Layout, seed: int, capacity: int = 0) -> None:
        self._layout, self._seed, self._n = layout, seed, 0
        self._tensors: list[Bytes] = [np.zeros((t.heads, capacity, t.row_bytes), np.uint8) for t in layout.tensors]

    @property
    def n_tokens(self) -> int:
        """Tokens covered."""
        return self._n

    @property
    def capacity(self) -> int:
        """Number of tokens that fit without growing."""
        return int(self._tensors[0].shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes allocated, spare room included."""
        return sum(t.nbytes for t in self._tensors)

    @property
    def held_from(self) -> int:
        """0: no row is ever dropped."""
        return 0

    @property
    def snapshots(self) -> frozenset[int]:
        """Its own number of tokens: there is no state beside the rows."""
        return frozenset((self._n,))

    @property
    def is_finite(self) -> bool:
        """True: integers are."""
        return True

    def reach(self, n_tokens: int) -> int:
        """Return the longest prefix of at most ``n_tokens`` to which this KV can be truncated."""
        n_tokens = min(n_tokens, self._n)
        return n_tokens if n_tokens == self._n or not self._layout.unstored else 0

    def trim(self, n_tokens: int) -> bool:
        """Truncate in place; False if this kind cannot be truncated."""
        if not 0 <= n_tokens <= self._n or self.reach(n_tokens) != n_tokens:
            return False
        self._n = n_tokens
        return True

    def copy(self, n_tokens: int) -> EchoKV | None:
        """Copy the first ``n_tokens``, with spare capacity; None if this kind cannot be truncated there."""
        if not 0 <= n_tokens <= self._n or self.reach(n_tokens) != n_tokens:
            return None
        made = EchoKV(self._layout, self._seed, room(n_tokens))
        for mine, theirs in zip(self._tensors, made._tensors, strict=True):
            theirs[:, :n_tokens] = mine[:, :n_tokens]
        made._n = n_tokens
        return made

    def read(self, tensor: int, start: int, stop: int, codec: Codec = "exact") -> np.ndarray[Any, Any]:
        """Return a copy of tokens ``[start, stop)``: (heads, stop - start, row_bytes) uint8; never encoded."""
        if not 0 <= start <= stop <= self._n:
            raise ValueError(f"tokens [{start}, {stop}) of a KV of {self._n}")
        return self._tensors[tensor][:, start:stop].copy()

    def read_state(self, n_tokens: int) -> np.ndarray[Any, Any]:
        """Return no bytes: there is no state beside the rows."""
        return np.zeros(0, np.uint8)

    def fill(self, source: Source) -> None:
        """Read all tokens of ``source`` into the spare capacity, one ``read_into`` per tensor."""
        for _ in self.filling(source):
            pass

    def filling(self, source: Source) -> Iterator[None]:
        """Do what ``fill`` does, a tensor at a time."""
        for index, tensor in enumerate(self._tensors):
            source.read_into(index, tensor.reshape(-1).data, self.capacity)
            yield
        self._n = source.n_tokens

    def feed(self, ids: Sequence[int]) -> None:
        """Append one row per id, chained to the last row as memory has it."""
        if not len(ids):
            return
        start, stop = self._n, self._n + len(ids)
        if stop > self.capacity:
            self._grow(stop)
        link = int(self._words(0)[0, start - 1, 1]) if start else self._seed
        chain = np.empty(len(ids), np.uint64)
        for i, token in enumerate(ids):
            link = ((link ^ (token + 1)) * _K + start + i) & _MASK
            link ^= link >> 29
            chain[i] = link
        self._n = stop
        for index in range(len(self._tensors)):
            words = self._words(index)
            heads, _, width = words.shape
            words[:, start:stop] = _rows(index, heads, width, np.asarray(ids, np.uint64), chain, start)

    def conversation(self) -> tuple[int, ...] | None:
        """Return the ids read back from the rows; None if any byte differs from what feeding these ids gives."""
        words = self._words(0)[0, : self._n]
        ids, chain = words[:, 0] & np.uint64(0xFFFF_FFFF), words[:, 1].copy()
        before = np.concatenate([np.array([self._seed], np.uint64), chain[:-1]])[: self._n]
        link = (before ^ (ids + np.uint64(1))) * np.uint64(_K) + np.arange(self._n, dtype=np.uint64)
        link ^= link >> np.uint64(29)
        if not np.array_equal(link, chain):
            return None
        for index in range(len(self._tensors)):
            held = self._words(index)[:, : self._n]
            heads, _, width = held.shape
            if not np.array_equal(held, _rows(index, heads, width, ids, chain, 0)):
                return None
        return tuple(ids.tolist())

    def _words(self, tensor: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return self._tensors[tensor].view(np.uint64)

    def _grow(self, n_tokens: int) -> None:
        for index, old in enumerate(self._tensors):
            new = np.zeros((old.shape[0], room(n_tokens), old.shape[2]), np.uint8)
            new[:, : self._n] = old[:, : self._n]
            self._tensors[index] = new


_K = 0x9E37_79B9_7F4A_7C15
_MASK = (1 << 64) - 1


def room(n_tokens: int) -> int:
    """Return the rows to allocate for ``n_tokens``, spare ones included."""
    return (n_tokens // _GROW + 1) * _GROW


def _rows(
    tensor: int, heads: int, width: int, ids: np.ndarray[Any, Any], chain: np.ndarray[Any, Any], start: int
) -> np.ndarray[Any, Any]:
    """Return rows as 64-bit words: (heads, n, width)."""
    n = len(ids)
    rows = np.empty((heads, n, width), np.uint64)
    rows[:, :, 0] = ids | (np.arange(start, start + n, dtype=np.uint64) << np.uint64(32))
    rows[:, :, 1] = chain
    for head in range(heads):
        for word in range(2, width):
            salt = ((tensor * heads + head) * width + word) * 0xBF58_476D_1CE4_E5B9 & _MASK
            rows[head, :, word] = (chain ^ np.uint64(salt)) * np.uint64(_K)
    return rows
