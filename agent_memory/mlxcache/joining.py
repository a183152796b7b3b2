"""Join rows' caches to a batch, and take them out again.

A batch of one keeps the row's own caches; a second row turns them into ``RaggedKVCache`` and mlx-lm's batch classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import mlx.core as mx
from attrs import evolve
from mlx_lm.models.cache import ArraysCache, BatchRotatingKVCache, CacheList, KVCache

from agent_memory.mlxcache import ragged, windows
from agent_memory.mlxcache.kinds import leaves, regrown, roomy, with_room
from agent_memory.mlxcache.ragged import RaggedKVCache


class Joining(Protocol):
    """A row that joins a batch."""

    caches: list[Any]


R = TypeVar("R", bound=Joining)


def can_batch(caches: Sequence[Any]) -> bool:
    """True if mlx-lm can batch these caches; not so for chunked caches and windows with attention sinks."""
    return all(
        can_batch(c.caches) if type(c) is CacheList else hasattr(c, "merge") and not getattr(c, "keep", 0)
        for c in caches
    )


def to_batch(cache: Any) -> Any:
    """Return the batch form of one row's window or state. A batch is returned as it is."""
    if hasattr(cache, "extend") and not cache.empty():
        return cache  # a batch already, or an ArraysCache, which is its own batch form
    return cache.merge([cache])


def order(n_rows: int, leaving: Collection[int]) -> list[int]:
    """Return the rows that stay, in an order that moves the fewest: the last ones to where others have left."""
    stay = [row for row in range(n_rows) if row not in leaving]
    tail = [row for row in stay if row >= len(stay)]
    return [row if row not in leaving else tail.pop() for row in range(len(stay))]


def in_place(rows: list[R]) -> list[R]:
    """Return rows that join, each with ``caches``, in an order in which those that share buffers need no copy."""
    return sorted(rows, key=lambda row: getattr(leaves(row.caches)[0], "row", 0))


def part(layers: list[Any], leaving: Sequence[int], stay: Sequence[int], room: int) -> list[list[Any]]:
    """Copy rows out of a batch, layer by layer, and keep the rows ``stay`` (of ``order``) in ``layers``.

    ``room``: tokens of a chunk, for windows. O(bytes of the rows that leave) for full attention, else of all.
    """
    out: list[list[Any]] = [[] for _ in leaving]
    for number, layer in enumerate(layers):
        for place, taken in zip(leaving, out, strict=True):
            taken.append(take(layer, place, room))
        mx.eval([taken[-1].state for taken in out])
        if stay:
            layers[number] = _kept(layer, stay, room)
            mx.eval(layers[number].state)
    for slots in _slots(layers) if stay else ():
        slots.keep(stay)
    return out


def _kept(batch: Any, rows: Sequence[int], room: int) -> Any:
    if type(batch) is CacheList:
        return CacheList(*(_kept(c, rows, room) for c in batch.caches))
    if type(batch) is RaggedKVCache:
        batch.keep(rows)
        return batch
    batch.filter(list(rows))
    return view(batch, 0, room) if len(rows) == 1 else batch


def cut(caches: Iterable[Any], n_ids: int, n_right: Sequence[int]) -> None:
    """Truncate each row, fed ``n_ids`` of which the first and ``n_right`` more are right, to those. Full attention."""
    caches, most = leaves(caches), max(n_right)
    for cache in caches:
        if type(cache) is RaggedKVCache:
            cache.cut(cache._idx - n_ids + 1 + most, [n_ids - 1 - n for n in n_right])
        else:
            cache.trim(n_ids - 1 - most)
    ends = {id(cache.slots): cache._idx for cache in caches if type(cache) is RaggedKVCache}
    for slots in _slots(caches):
        stop = ends[id(slots)]
        slots.add_gaps([(stop - most + n, stop) for n in n_right])


def lacks_room(caches: Iterable[Any], n_ids: int) -> bool:
    """True if ``n_ids`` more tokens of each row need other buffers (``Join.move``)."""
    return any(ragged.lacks_room(c, n_ids) for c in _ragged(caches))


def spare_nbytes(caches: Iterable[Any]) -> int:
    """Bytes that ``Join.move`` would free: of rows that have left, kept for those that come, and of gaps."""
    full = _ragged(caches)
    return round(ragged.spare_share(full[0]) * sum(int(c.nbytes) for c in full)) if full else 0


def is_wasteful(caches: Iterable[Any]) -> bool:
    """True if rows that have left take more memory than those that are there."""
    return any(ragged.spare_share(c) > 0.5 for c in _ragged(caches)[:1])


def has_spans(caches: Iterable[Any]) -> bool:
    """True if the only row of these caches is one of a batch: it must be copied out."""
    return bool(_ragged(caches))


def _ragged(caches: Iterable[Any]) -> list[RaggedKVCache]:
    return [c for c in leaves(caches) if type(c) is RaggedKVCache]


def _slots(caches: Iterable[Any]) -> list[ragged.Slots]:
    return list({id(c.slots): c.slots for c in _ragged(caches)}.values())


class Join:
    """Joins rows' caches to one batch, layer by layer.

    ``beside``: a stream to copy values on while keys are copied on the current one. On CPUs most of the time goes to
    first touches of new memory; two threads take 0.6 of one thread's time.
    """

    def __init__(self, beside: Any) -> None:
        self._beside, self._slots = beside, list[ragged.Slots]()

    def layer(self, caches: Sequence[Any]) -> Any:
        """Return one layer's caches, each of a row or a batch, joined and evaluated.

        Full attention: O(bytes of the rows that come) where the batch has room for them, else one copy of all.
        """
        first = caches[0]
        if type(first) is CacheList:
            return CacheList(*(self.layer([c.caches[i] for c in caches]) for i in range(len(first.caches))))
        if all(isinstance(c, (KVCache, RaggedKVCache)) for c in caches):
            return self._full(caches)
        joined = to_batch(first)
        for other in caches[1:]:
            joined.extend(to_batch(other))
        mx.eval(joined.state)
        return joined

    def move(self, caches: Sequence[Any], n_ids: int, room: int) -> list[Any]:
        """Return a batch's caches in buffers that hold its rows and ``n_ids`` more tokens of each; one copy."""
        moved = [self._moved(c, n_ids, room) if type(c) is RaggedKVCache else c for c in leaves(caches)]
        return regrown(caches, iter(moved))

    def _moved(self, cache: RaggedKVCache, n_ids: int, room: int) -> Any:
        if len(cache.slots.gaps) > 1:
            return self._full([cache], n_ids, moves=True)
        alone = take(cache, 0, room)
        mx.eval(alone.state)
        cache.keys = cache.values = None
        return alone

    def _full(self, caches: Sequence[Any], n_ids: int = 1, *, moves: bool = False) -> RaggedKVCache:
        plan = ragged.plan(caches, n_ids, moves=moves)
        for slots in self._slots:  # all layers of a batch share one, where their rows are alike
            if slots.gaps == plan.slots.gaps:
                plan = evolve(plan, slots=slots)
                break
        else:
            self._slots.append(plan.slots)
        return plan.apply(caches, self._beside)


def view(batch: Any, row: int, room: int) -> Any:
    """Return one row of a cache or batch as a cache of its own, uncopied where the class allows it."""
    if type(batch) is CacheList:
        return CacheList(*(view(c, row, room) for c in batch.caches))
    if type(batch) is ArraysCache:
        alone = ArraysCache(len(batch.cache))
        alone.cache = [None if a is None else a[row : row + 1] for a in batch.cache]
        return alone
    if type(batch) is RaggedKVCache:
        return batch.row(row)
    if type(batch) is BatchRotatingKVCache:
        return windows.from_rotating(batch.extract(row), room)
    return batch  # the cache of a single row


def take(batch: Any, row: int, room: int) -> Any:
    """Copy one row of a batch to a cache of its own, with spare capacity. ``room``: tokens of a chunk."""
    seen = view(batch, row, room)
    for cache in leaves([seen]):  # a view would keep the whole batch in memory
        if isinstance(cache, KVCache) and cache.keys is not None:
            room_left = roomy(cache.offset) - cache.offset
            cache.keys, cache.values = (with_room(a, cache.offset, room_left) for a in (cache.keys, cache.values))
        elif type(cache) is ArraysCache:
            cache.cache = [None if a is None else mx.contiguous(a) for a in cache.cache]
    return seen
