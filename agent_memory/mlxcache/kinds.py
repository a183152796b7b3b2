"""mlx-lm's cache classes: truncate, copy and read out.

How each class is stored (``Layout.kinds``): ``KVCache`` (MLA latents too) as rows, ``RotatingKVCache`` as the rows of
its window, all others as snapshots of their whole state. A ``CacheList`` counts as the list of its parts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from agent_memory.config import Codec
from agent_memory.kvcache.coding import coding
from agent_memory.kvcache.layout import Growing, Kind, Layout, TensorSpec, is_kept
from agent_memory.mlxcache import codecs, states
from agent_memory.mlxcache.windows import WindowKVCache

#: Spare rows are added in steps of this many: ``KVCache.step`` of mlx-lm, so that both grow alike.
STEP: int = KVCache.step

_DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}


def fresh(caches: Iterable[Any], chunk_tokens: int) -> list[Any]:
    """Return a model's empty caches, its window caches replaced by ``WindowKVCache``."""
    made = []
    for cache in caches:
        if type(cache) is CacheList:
            cache.caches = tuple(fresh(cache.caches, chunk_tokens))
        elif type(cache) is RotatingKVCache and not cache.keep:
            cache = WindowKVCache(cache.max_size, chunk_tokens)
        made.append(cache)
    return made


def leaves(caches: Iterable[Any]) -> list[Any]:
    """Return the caches with every ``CacheList`` flattened."""
    return [leaf for c in caches for leaf in (leaves(c.caches) if type(c) is CacheList else [c])]


def probe(caches: Sequence[Any]) -> Layout:
    """Return the layout of caches made by ``fresh`` that hold at least one token."""
    tensors: dict[str, list[TensorSpec]] = {"full": [], "window": []}
    kinds: list[Kind] = []
    unstored: list[str] = []
    snapshots: list[str] = []
    state_bytes = 0
    named = [
        (f"{number:03d}" if type(cache) is not CacheList else f"{number:03d}.{part}", leaf)
        for number, cache in enumerate(caches)
        for part, leaf in enumerate(leaves([cache]))
    ]
    for name, cache in named:
        kinds.append(_kind(cache))
        if kinds[-1] in tensors:
            for part, array in (("k", cache.keys), ("v", cache.values)):
                _, heads, _, dim = array.shape
                tensors[kinds[-1]].append(TensorSpec(f"{name}.{part}", heads, dim, _DTYPES[array.dtype]))
        elif kinds[-1] == "snapshot":
            state = states.captured(cache)
            snapshots.append(f"{type(cache).__name__} {states.shapes(state)}")
            state_bytes += states.nbytes(state)
        else:
            unstored.append(f"layer {name}: {type(cache).__name__}")
    window = max((c.max_size for _, c in named if type(c) is WindowKVCache), default=0)
    return Layout(
        tuple(tensors["full"]),
        tuple(kinds),
        tuple(unstored),
        tuple(tensors["window"]),
        window,
        tuple(snapshots),
        state_bytes,
        _growing([cache for _, cache in named if type(cache) is ChunkedKVCache]),
    )


def _growing(caches: Sequence[Any]) -> Growing | None:
    """Return how the rows of chunked attention grow; None without such layers."""
    if not caches:
        return None
    n_rows = caches[0].offset - caches[0].start_position
    row_bytes = sum(states.nbytes(states.captured(cache)) for cache in caches) // n_rows
    return Growing(row_bytes, max(cache.chunk_size for cache in caches), n_rows)


def _kind(cache: Any) -> Kind:
    if type(cache) in (KVCache, WindowKVCache):
        if cache.keys.dtype in _DTYPES:
            return "full" if type(cache) is KVCache else "window"
        return "unstored"
    try:
        states.captured(cache)
    except (TypeError, AttributeError, NotImplementedError):
        return "unstored"
    return "snapshot"


def kind_of_empty(cache: Any) -> Kind:
    """Return how a cache that a model has just made will be stored, by its class alone."""
    if type(cache) is KVCache:
        return "full"
    return "window" if type(cache) is RotatingKVCache and not cache.keep else "snapshot"


class MLXKV:
    """The live caches of one row, layer by layer, and how many tokens they cover. Engine thread only.

    ``marks``: snapshots by the number of tokens they cover; each has the states of all layers that cannot be truncated.
    """

    __slots__ = ("caches", "layout", "marks", "n_tokens")

    def __init__(
        self, caches: list[Any], layout: Layout, n_tokens: int = 0, marks: dict[int, list[Any]] | None = None
    ) -> None:
        self.caches, self.layout, self.n_tokens = caches, layout, n_tokens
        self.marks = marks if marks is not None else {}

    @property
    def nbytes(self) -> int:
        """Bytes allocated, spare capacity and snapshots included."""
        return marks_nbytes(self.marks) + sum(int(c.nbytes) for c in self.caches)

    @property
    def held_from(self) -> int:
        """The first token whose rows every sliding-window layer holds."""
        return max((c.start for c in self._of("window")), default=0)

    @property
    def snapshots(self) -> frozenset[int]:
        """Numbers of tokens for which the state of all layers that cannot be truncated is in memory."""
        return frozenset(self.marks) | {self.n_tokens}

    @property
    def is_finite(self) -> bool:
        """True if no number of the rows and states that it covers is NaN or infinite."""
        rows = [
            array[..., : self.n_tokens - (cache.start if type(cache) is WindowKVCache else 0), :]
            for cache in self._of("full", "window")
            for array in (cache.keys, cache.values)
        ]
        held = rows + [a for c in self._of("snapshot") for a in states.arrays(states.captured(c))]
        held += [a for mark in self.marks.values() for state in mark for a in states.arrays(state)]
        return all(bool(mx.isfinite(array).all().item()) for array in held)

    def reach(self, n_tokens: int) -> int:
        """Return the longest prefix of at most ``n_tokens`` to which this KV can be truncated."""
        n_tokens = min(n_tokens, self.n_tokens)
        if self.layout.unstored:
            return n_tokens if n_tokens == self.n_tokens else 0
        if not self.layout.snapshots:
            return n_tokens if self._holds(n_tokens) else 0
        return max((n for n in self.snapshots if n <= n_tokens and self._holds(n)), default=0)

    def trim(self, n_tokens: int) -> bool:
        """Truncate in place; False if ``reach`` does not allow it."""
        if n_tokens == self.n_tokens:
            return True
        if n_tokens <= 0 or self.reach(n_tokens) != n_tokens:
            return False
        for cache in self._of("full", "window"):
            cache.trim(self.n_tokens - n_tokens)
        for cache, state in zip(self._of("snapshot"), self.marks.get(n_tokens, ()), strict=True):
            states.give(cache, state)
        self.n_tokens = n_tokens
        self.marks = {n: mark for n, mark in self.marks.items() if n <= n_tokens}
        return True

    def unwind(self, *, is_sound: bool) -> None:
        """Back to ``n_tokens``, where a forward pass raised and each layer may cover another number of them.

        To none where the rows before it are not ``is_sound``, or where a layer's state at that moment is not held.
        """
        state = self.marks.get(self.n_tokens)
        if not is_sound or self.layout.unstored or (self.layout.snapshots and state is None):
            self.n_tokens, self.marks = 0, {}
            return
        for cache in self._of("full", "window"):
            cache.trim(cache.offset - self.n_tokens)
        for cache, one in zip(self._of("snapshot"), state or (), strict=True):
            states.give(cache, one)

    def copy(self, n_tokens: int) -> MLXKV | None:
        """Copy the first ``n_tokens`` to buffers of their own, with spare capacity; O(n_tokens) bytes."""
        if not self.layout.is_storable or n_tokens <= 0 or self.reach(n_tokens) != n_tokens:
            return None
        marked = iter(self._state(n_tokens))
        twins: list[Any] = []
        for cache, kind in zip(leaves(self.caches), self.layout.kinds, strict=True):
            if kind == "full":
                twins.append(_copied(cache, n_tokens))
            elif kind == "window":
                twins.append(cache.copied(n_tokens))
            else:
                twins.append(copy.copy(cache))
                states.give(twins[-1], next(marked))
            mx.eval(twins[-1].state)  # layer by layer: peak memory is the result plus one layer
        marks = {n: mark for n, mark in self.marks.items() if n <= n_tokens}
        return MLXKV(regrown(self.caches, iter(twins)), self.layout, n_tokens, marks)

    def read(self, tensor: int, start: int, stop: int, codec: Codec = "exact") -> np.ndarray[Any, Any]:
        """Return tokens ``[start, stop)`` of one layout tensor on the host: (heads, n, row_bytes) uint8, or encoded."""
        number = tensor - len(self.layout.tensors)
        cache = self._of("full")[tensor // 2] if number < 0 else self._of("window")[number // 2]
        first = 0 if number < 0 else cache.start
        array = cache.values if tensor % 2 else cache.keys
        if not array.size:
            return np.zeros((array.shape[1], stop - start, 0), np.uint8)
        form = coding((*self.layout.tensors, *self.layout.windows)[tensor], codec)
        if start == stop and form is not None:
            return np.zeros((array.shape[1], 0, form.row_bytes), np.uint8)
        rows = array[0, :, start - first : stop - first, :]
        rows = mx.contiguous(rows).view(mx.uint8) if form is None else codecs.encode(rows, form)
        mx.eval(rows)
        return np.array(rows)

    def read_state(self, n_tokens: int) -> np.ndarray[Any, Any]:
        """Return the snapshot at ``n_tokens`` (one of ``snapshots``) as bytes: (n,) uint8."""
        return states.packed(self._state(n_tokens))

    def _state(self, n_tokens: int) -> list[Any]:
        return self.marks.get(n_tokens) or [states.captured(c) for c in self._of("snapshot")]

    def _of(self, *kinds: Kind) -> list[Any]:
        return of_kind(self.layout, self.caches, *kinds)

    def _holds(self, n_tokens: int) -> bool:
        return all(c.holds(n_tokens) for c in self._of("window"))


def marks_nbytes(marks: dict[int, list[Any]]) -> int:
    """Bytes of snapshots."""
    return sum(states.nbytes(state) for mark in marks.values() for state in mark)


def of_kind(layout: Layout, caches: Iterable[Any], *kinds: Kind) -> list[Any]:
    """Return the caches of some kinds, in order."""
    return [leaf for leaf, kind in zip(leaves(caches), layout.kinds, strict=True) if kind in kinds]


def mark(
    marks: dict[int, list[Any]],
    layout: Layout,
    caches: Iterable[Any],
    n_tokens: int,
    chunk_tokens: int,
    row: int | None = None,
) -> None:
    """At a chunk boundary, add a snapshot to ``marks``, and drop those that ``is_kept`` no longer wants.

    ``row``: that row of a batch's caches. Costs the bytes of the states.
    """
    if not layout.snapshots or not layout.is_storable or n_tokens % chunk_tokens:
        return
    for n in [n for n in marks if not is_kept(n // chunk_tokens, n_tokens // chunk_tokens)]:
        del marks[n]
    marks[n_tokens] = [states.captured(c, row) for c in of_kind(layout, caches, "snapshot")]
    mx.eval([states.arrays(state) for state in marks[n_tokens]])


def regrown(caches: Iterable[Any], new: Iterator[Any]) -> list[Any]:
    """Return ``caches`` with the flattened caches replaced."""
    return [CacheList(*regrown(c.caches, new)) if type(c) is CacheList else next(new) for c in caches]


def _copied(cache: KVCache, n_tokens: int) -> KVCache:
    twin = KVCache()
    room = roomy(n_tokens) - n_tokens
    twin.keys, twin.values = (with_room(a, n_tokens, room) for a in (cache.keys, cache.values))
    twin.offset = n_tokens
    return twin


def with_room(array: mx.array, n_tokens: int, room: int) -> mx.array:
    """Copy the first ``n_tokens`` of one row, with ``room`` spare ones."""
    _, heads, _, dim = array.shape
    return mx.concatenate([array[..., :n_tokens, :], mx.zeros((1, heads, room, dim), array.dtype)], axis=2)


def roomy(n_tokens: int) -> int:
    """Return the rows to allocate for ``n_tokens`` and at least half a step of spare capacity."""
    return (n_tokens + STEP // 2 + STEP - 1) // STEP * STEP
