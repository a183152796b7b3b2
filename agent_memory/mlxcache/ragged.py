"""A batch of full-attention rows that lets rows come, go and be cut apart without moving the others.

mlx-lm's ``BatchKVCache`` keeps all rows right-justified, with padding on the left of each: a longer row that comes
shifts all the others, one that leaves is gathered out of them, and all can only be truncated together. Here a row may
have gaps anywhere, which the mask hides: positions for RoPE are counted by row, so that a token's slot means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import frozen
from mlx_lm.models.cache import BatchKVCache, KVCache

from agent_memory.mlxcache.kinds import roomy
from agent_memory.mlxcache.together import Buffers, joint

Span = tuple[int, int]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


class Slots:
    """Which slots of which row hold its tokens; shared by the layers of one batch.

    All slots before the end do, but for the ``gaps`` of each row: half-open, in order, apart from one another.
    """

    __slots__ = ("_held", "gaps")

    def __init__(self, gaps: Sequence[Sequence[Span]]) -> None:
        self.gaps = [list(row) for row in gaps]
        self._changed()

    def _changed(self) -> None:
        self._held: Bools = np.ones((len(self.gaps), 0), np.bool_)

    def spans(self, row: int, stop: int) -> list[Span]:
        """Return the slots of a row before ``stop``."""
        found, at = [], 0
        for first, last in [*self.gaps[row], (stop, stop)]:
            if min(first, stop) > at:
                found.append((at, min(first, stop)))
            at = last
        return found

    def add_gaps(self, gaps: Sequence[Span]) -> None:
        """Add a gap at the end of each row; empty ones are none."""
        for row, (first, last) in zip(self.gaps, gaps, strict=True):
            if row and row[-1][1] == first < last:
                row[-1] = (row[-1][0], last)
            elif first < last:
                row.append((first, last))
        self._changed()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep some rows, in this order."""
        self.gaps = [self.gaps[row] for row in rows]
        self._changed()

    def mask(self, n_ids: int, stop: int, window: int | None) -> mx.array:
        """Return what ``n_ids`` new tokens of each row may look at: (rows, 1, n_ids, stop), True for yes.

        ``stop``: the end, the new tokens included. ``window``: tokens, the own one included.
        """
        if self._held.shape[1] < stop:
            self._held = np.ones((len(self.gaps), roomy(stop)), np.bool_)
            for held, row in zip(self._held, self.gaps, strict=True):
                for first, last in row:
                    held[first:last] = False
        held = self._held[:, :stop]
        seen = held[:, None, :]
        if n_ids > 1:
            seen = seen & (np.arange(stop) <= np.arange(stop - n_ids, stop)[:, None])
        if window is not None:
            places = np.cumsum(held, axis=1)
            seen = seen & (places[:, None, :] > places[:, -n_ids:, None] - window)
        return mx.array(seen[:, None])


class RaggedKVCache(BatchKVCache):  # type: ignore[misc]  # mlx-lm is untyped
    """One layer's keys and values of all rows. (at least n_rows, heads, slots, dim): there may be spare rows."""

    keys: Any
    values: Any
    offset: Any  #: tokens of each row, as an array
    _idx: int  #: the end of all rows

    def __init__(self, slots: Slots) -> None:
        super().__init__([0] * len(slots.gaps))
        self.slots = slots

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append tokens to every row; return all of them. The caller has made room (``make_room``)."""
        n_rows, _, n_ids, _ = keys.shape
        if self.keys is None:
            self.keys, self.values = (_blank(a, n_rows, roomy(self._idx + n_ids)) for a in (keys, values))
        first, stop = self._idx, self._idx + n_ids
        self.offset = self.offset + n_ids
        self._idx = stop
        self.keys[:n_rows, :, first:stop] = keys
        self.values[:n_rows, :, first:stop] = values
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """Return the slots in use."""
        n_rows = len(self.slots.gaps)
        return self.keys[:n_rows, :, : self._idx], self.values[:n_rows, :, : self._idx]

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:  # noqa: N803 - mlx-lm's names
        """Return the mask of ``N`` new tokens."""
        return self.slots.mask(N, self._idx + N, window_size)

    def row(self, row: int) -> KVCache:
        """Return one row as a cache of its own: a view, lazy, or one copy where it has gaps."""
        cache = KVCache()
        if self.keys is None:
            return cache
        spans = self.slots.spans(row, self._idx)
        cache.keys, cache.values = (_joined(a, row, spans) for a in (self.keys, self.values))
        cache.offset = sum(last - first for first, last in spans)
        return cache

    def keep(self, rows: Sequence[int]) -> None:
        """Move the last rows to where rows have left; ``Slots.keep`` must follow for all layers."""
        self.offset = self.offset[mx.array(rows)]
        for to, row in enumerate(rows if self.keys is not None else ()):
            if to != row:
                for array in (self.keys, self.values):
                    moved = mx.contiguous(array[row : row + 1, :, : self._idx])
                    mx.eval(moved)  # a view of the buffer would keep it from being written in place
                    array[to : to + 1, :, : self._idx] = moved
                    mx.eval(array)

    def cut(self, stop: int, n_more: Sequence[int]) -> None:
        """Truncate to ``stop`` slots, where each row has taken ``n_more`` ids less than it was fed."""
        self._idx = stop
        self.offset = self.offset - mx.array(n_more)


@frozen
class Source:
    """A row that joins, or moves with its batch: where its tokens are now."""

    part: int  #: the cache, of those that are joined
    row: int
    spans: list[Span]
    gaps: list[Span]
    stop: int  #: the end of its slots

    @property
    def n_tokens(self) -> int:
        """Tokens of the row."""
        return sum(last - first for first, last in self.spans)


@frozen(eq=False)
class Plan:
    """How the layers of a batch take in rows, or are moved to other buffers. A row's tokens begin at slot 0."""

    slots: Slots  #: afterwards
    stop: int  #: the end of all rows afterwards
    sources: list[Source]  #: of all rows, in order
    n_slots: int
    n_held: int = 0  #: rows that stay where they are, in the buffers of the first cache; 0: all are copied
    moves: bool = False  #: True if the gaps of rows are left out
    joint: Buffers | None = None  #: buffers that all rows are in already, and stay in

    def apply(self, caches: Sequence[Any], beside: Any) -> RaggedKVCache:
        """Return the joined cache of one layer, evaluated. ``caches``: the parts of the sources."""
        joined = RaggedKVCache(self.slots)
        if all(c.keys is None for c in caches):
            return joined
        if self.joint is not None:
            keys, values = ([array] for array in self.joint.hand_over())
        else:
            keys, values = [c.keys for c in caches], [c.values for c in caches]
        for cache in caches:
            cache.keys = cache.values = None
        joined.offset, joined._idx = mx.array([one.n_tokens for one in self.sources]), self.stop
        joined.keys = self._rows(keys)
        with mx.stream(beside):
            joined.values = self._rows(values)
        mx.eval(joined.keys, joined.values, joined.offset)
        return joined

    def _rows(self, parts: list[Any]) -> mx.array:
        """Return all rows. What other rows or nobody left in slots that become gaps may be NaN: those are set to 0."""
        stop = self.stop
        if self.n_held:
            rows = parts[0]
            parts[0] = None  # the only reference: it is written in place
            for row, source in enumerate(self.sources[: self.n_held]):
                if source.stop < stop:
                    rows[row : row + 1, :, source.stop : stop] = 0
        elif not self.moves and all(part is not None and part.shape[2] == self.n_slots for part in parts):
            n_rows = [sum(one.part == number for one in self.sources) for number in range(len(parts))]
            rows = mx.concatenate([part[:n] for part, n in zip(parts, n_rows, strict=True)])
            for row, source in enumerate(self.sources):
                if source.stop < stop:
                    rows[row : row + 1, :, source.stop : stop] = 0
            return rows
        else:
            like = next(part for part in parts if part is not None)
            rows = _blank(like, len(self.sources), self.n_slots)
        for row, source in enumerate(self.sources[self.n_held :], self.n_held):
            at = 0
            for first, last in source.spans:
                at = at if self.moves else first
                rows[row : row + 1, :, at : at + last - first] = parts[source.part][
                    source.row : source.row + 1, :, first:last
                ]
                at += last - first
            if self.n_held and at < stop:
                rows[row : row + 1, :, at:stop] = 0
        return rows


def plan(caches: Sequence[Any], n_ids: int = 1, *, moves: bool = False) -> Plan:
    """Return how one layer's caches, each of a row or a batch, become one batch with room for ``n_ids`` more.

    Rows of a batch stay where they are if it has room. ``moves``: no row does, and their gaps are left out.
    """
    sources: list[Source] = []
    for part, cache in enumerate(caches):
        if type(cache) is RaggedKVCache:
            stop = cache._idx
            for row, gaps in enumerate(cache.slots.gaps):
                sources.append(Source(part, row, cache.slots.spans(row, stop), gaps, stop))
        else:
            sources.append(Source(part, 0, [(0, cache.offset)] if cache.offset else [], [], cache.offset))
    lane = caches[0]
    if moves:
        ends = [one.n_tokens for one in sources]
        slots = Slots([[] for _ in sources])
    else:
        ends = [one.stop for one in sources]
        slots = Slots([one.gaps for one in sources])
    stop = max(ends)
    slots.add_gaps([(end, stop) for end in ends])
    shared = None if moves else joint(caches)
    if shared is not None and stop + n_ids <= shared.keys.shape[2]:
        return Plan(slots, stop, sources, shared.keys.shape[2], len(sources), joint=shared)
    if moves or type(lane) is not RaggedKVCache or lane.keys is None:
        n_held = 0
    else:
        has_room = len(sources) <= lane.keys.shape[0] and stop + n_ids <= lane.keys.shape[2]
        n_held = len(lane.slots.gaps) if has_room else 0
    sizes = {0 if c.keys is None else c.keys.shape[2] for c in caches}
    is_even = not moves and len(sizes) == 1 and stop + n_ids <= max(sizes)
    return Plan(slots, stop, sources, max(sizes) if n_held or is_even else roomy(stop + n_ids), n_held, moves)


def lacks_room(cache: RaggedKVCache, n_ids: int) -> bool:
    """True if ``n_ids`` more tokens of each row need other buffers."""
    return cache.keys is not None and cache._idx + n_ids > cache.keys.shape[2]


def spare_share(cache: RaggedKVCache) -> float:
    """Share of the bytes that moving the rows to other buffers would free: of rows that have left, and of gaps."""
    if cache.keys is None:
        return 0.0
    n_rows, (n_held, _, n_slots, _) = len(cache.slots.gaps), cache.keys.shape
    spans = [cache.slots.spans(row, cache._idx) for row in range(n_rows)]
    longest = max(sum(last - first for first, last in row) for row in spans)
    n_after = roomy(longest + 1 if n_rows > 1 else longest)  # as ``plan``, or as a row alone
    share: float = 1 - n_rows * n_after / (n_held * n_slots)
    return max(0.0, share)


def _blank(like: mx.array, n_rows: int, n_slots: int) -> mx.array:
    return mx.zeros((n_rows, like.shape[1], n_slots, like.shape[3]), like.dtype)


def _joined(array: mx.array, row: int, spans: Sequence[Span]) -> mx.array:
    parts = [array[row : row + 1, :, first:last] for first, last in spans]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2) if parts else array[row : row + 1, :, :0]
