"""Rows restored together, in the buffers that they will decode in.

A batch keeps the keys of all rows in one buffer, and their values in another. Rows that were restored apart are copied
there. Rows that were restored into such buffers are joined by handing the buffers over (``ragged.plan``).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from agent_memory.mlxcache.kinds import roomy, with_room


class Buffers:
    """Keys and values of one layer, (n_rows, heads, slots, dim), and the rows that use them."""

    __slots__ = ("__weakref__", "keys", "n_rows", "rows", "values")

    def __init__(self, keys: Any, values: Any) -> None:
        self.keys, self.values, self.n_rows = keys, values, int(keys.shape[0])
        self.rows: weakref.WeakSet[SharedRow] = weakref.WeakSet()

    @property
    def is_whole(self) -> bool:
        """True while every row uses them."""
        return len(self.rows) == self.n_rows

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, of those that use them no more too; 0 once they were handed over."""
        return 0 if self.keys is None else int(self.keys.nbytes + self.values.nbytes)

    @property
    def left_nbytes(self) -> int:
        """Bytes of rows that use them no more."""
        return self.nbytes * (self.n_rows - len(self.rows)) // self.n_rows

    def hand_over(self) -> tuple[Any, Any]:
        """Return keys and values, to which nothing here refers any more: all rows are empty."""
        found = self.keys, self.values
        self.keys = self.values = None
        for row in list(self.rows):
            row.buffers = None
        return found


class SharedRow(KVCache):  # type: ignore[misc]  # mlx-lm is untyped
    """One row of ``Buffers``, which is written in place.

    It moves to buffers of its own when it outgrows these, at the first token after another row has left them, and where
    it is told to (``move``). Until then it counts its share of their bytes; those of rows that have left are nobody's.
    """

    offset: int

    def __init__(self, buffers: Buffers, row: int, n_tokens: int) -> None:
        self._own: list[Any] = [None, None]
        self.buffers: Buffers | None = None
        super().__init__()
        self.buffers, self.row, self.offset = buffers, row, n_tokens
        buffers.rows.add(self)

    @property
    def keys(self) -> Any:
        """(1, heads, slots, dim): a view, that nobody must keep."""
        return self._own[0] if self.buffers is None else self.buffers.keys[self.row : self.row + 1]

    @keys.setter
    def keys(self, array: Any) -> None:
        self._leave()
        self._own[0] = array

    @property
    def values(self) -> Any:
        """As ``keys``."""
        return self._own[1] if self.buffers is None else self.buffers.values[self.row : self.row + 1]

    @values.setter
    def values(self, array: Any) -> None:
        self._leave()
        self._own[1] = array

    @property
    def nbytes(self) -> int:
        """Its share of the buffers' bytes, or those of its own."""
        if self.buffers is None:
            return sum(0 if array is None else int(array.nbytes) for array in self._own)
        return self.buffers.nbytes // self.buffers.n_rows

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append tokens; return all."""
        buffers, stop = self.buffers, self.offset + keys.shape[2]
        if buffers is not None and not buffers.is_whole:
            self.move(stop)
        elif buffers is not None and stop <= buffers.keys.shape[2]:
            mine, new = slice(self.row, self.row + 1), slice(self.offset, stop)
            buffers.keys[mine, :, new] = keys
            buffers.values[mine, :, new] = values
            self.offset = stop
            return buffers.keys[mine, :, :stop], buffers.values[mine, :, :stop]
        found: tuple[mx.array, mx.array] = super().update_and_fetch(keys, values)
        return found

    def move(self, n_tokens: int = 0) -> None:
        """Move to buffers of its own with room for ``n_tokens``, lazily; nothing where it has them."""
        if self.buffers is not None:
            room = roomy(max(n_tokens, self.offset)) - self.offset
            self.keys, self.values = (with_room(array, self.offset, room) for array in (self.keys, self.values))

    def _leave(self) -> None:
        """Leave the buffers with views of them, which the caller replaces."""
        if (buffers := self.buffers) is not None:
            self._own = [self.keys, self.values]
            self.buffers = None
            buffers.rows.discard(self)


def joint(caches: Sequence[Any]) -> Buffers | None:
    """Return the buffers whose rows these caches are, all of them and in order; None otherwise."""
    buffers = caches[0].buffers if type(caches[0]) is SharedRow else None
    if buffers is None or len(caches) != buffers.n_rows:
        return None
    is_joint = all(type(c) is SharedRow and c.buffers is buffers and c.row == row for row, c in enumerate(caches))
    return buffers if is_joint else None


def shared(caches: Sequence[Any]) -> list[Buffers]:
    """Return the buffers that some caches share with other rows."""
    return [c.buffers for c in caches if type(c) is SharedRow and c.buffers is not None]


def separate(rows: Sequence[Any]) -> None:
    """Move rows that share buffers to buffers of their own, one after another. O(their bytes)."""
    for row in rows:
        if type(row) is SharedRow and row.buffers is not None:
            row.move()
            mx.eval(row.keys, row.values)  # now: a view would keep all rows of the buffers in memory
