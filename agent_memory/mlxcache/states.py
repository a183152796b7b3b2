"""Snapshots: the state of a cache that cannot be truncated, as arrays and as bytes.

mlx arrays are immutable, so a snapshot of a live cache copies only what it keeps. As bytes: u64 little-endian length of
a JSON tree, the tree, then the arrays, each at a multiple of 64 from the start. In the tree an array is
``{"a": [dtype, shape, start]}``, a list ``{"l": [...]}``, a tuple ``{"t": [...]}``, anything else ``{"v": value}``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ChunkedKVCache

_ALIGN = 64


def captured(cache: Any, row: int | None = None) -> Any:
    """Return a cache's state as it is now, lazily; ``row``: of one row of a batch. Later updates do not change it."""
    state = cache.state
    if type(cache) is ChunkedKVCache and cache.keys is not None:
        state = (*cache.keys_and_values(), *state[2:])  # rows that were trimmed or not written yet are left out
    # Copy a view: it would keep its whole buffer alive.
    return _mapped(state, lambda a: mx.contiguous(a if row is None else a[row : row + 1]))


def give(cache: Any, state: Any) -> None:
    """Set a cache to a state; the state is not changed by later updates."""
    cache.state = _mapped(state, mx.array)


def nbytes(state: Any) -> int:
    """Return the bytes of a state's arrays."""
    return sum(int(a.nbytes) for a in arrays(state))


def arrays(state: Any) -> list[Any]:
    """Yield a state's arrays, depth first."""
    found: list[Any] = []
    _mapped(state, found.append)
    return found


def shapes(state: Any) -> str:
    """Return dtypes and shapes of a state's arrays, as text."""
    return json.dumps([[str(a.dtype).removeprefix("mlx.core."), *a.shape] for a in arrays(state)])


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return the tree with each array replaced. Raises TypeError for all but arrays, lists, tuples and plain values."""
    if isinstance(tree, mx.array):
        return change(tree)
    if type(tree) in (list, tuple):
        return type(tree)([_mapped(t, change) for t in tree])
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    raise TypeError(f"a cache's state holds a {type(tree).__name__}")


def packed(states: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Serialize the states of all layers to bytes: (n,) uint8; O(their bytes)."""
    at = 0
    data: list[tuple[int, np.ndarray[Any, Any]]] = []

    def place(tree: Any) -> dict[str, Any]:
        nonlocal at
        if isinstance(tree, mx.array):
            raw = np.array(mx.contiguous(tree).reshape(-1).view(mx.uint8)) if tree.size else np.zeros(0, np.uint8)
            data.append((at, raw))
            entry = [str(tree.dtype).removeprefix("mlx.core."), list(tree.shape), at]
            at += -(-len(raw) // _ALIGN) * _ALIGN
            return {"a": entry}
        if type(tree) in (list, tuple):
            return {"t" if type(tree) is tuple else "l": [place(t) for t in tree]}
        return {"v": tree}

    text = json.dumps([place(s) for s in states], separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    head = struct.pack("<Q", len(text)) + text
    out = np.zeros(len(head) + at, np.uint8)
    out[: len(head)] = np.frombuffer(head, np.uint8)
    for start, raw in data:
        out[len(head) + start : len(head) + start + len(raw)] = raw
    return out


def unpacked(blob: np.ndarray[Any, np.dtype[np.uint8]]) -> list[Any]:
    """Deserialize what ``packed`` returned; the arrays do not share its memory."""
    start = 8 + int(struct.unpack("<Q", blob[:8].tobytes())[0])

    def read(entry: dict[str, Any]) -> Any:
        ((kind, value),) = entry.items()
        if kind == "v":
            return value
        if kind != "a":
            return (tuple if kind == "t" else list)(read(e) for e in value)
        name, shape, at = value
        dtype = getattr(mx, name)
        size = int(np.prod(shape)) * dtype.size
        raw = mx.array(blob[start + at : start + at + size])
        return raw.view(dtype).reshape(shape) if size else mx.zeros(shape, dtype)

    return [read(entry) for entry in json.loads(blob[8:start].tobytes())]
