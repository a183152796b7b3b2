"""The arrays that a stranger's state has: they must be those of the open model's snapshots. Pure (docs/format.md).

A cache that was given an array of another shape would fail at the next token, or read beyond it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from agent_memory.log.soundness import is_count, strangers_json

MAX_TEXT_BYTES = 1 << 20
_ALIGN = 64
_FIXED = "ArraysCache"  #: states of this class never grow; those of others may, along their tokens
_TOKENS = -2  #: axis of tokens
_SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2, "uint32": 4, "int32": 4,
    "float32": 4, "uint64": 8, "int64": 8, "complex64": 8,
}  # fmt: skip


def check_packed(state: bytes | memoryview, snapshots: tuple[str, ...]) -> None:
    """``check_state`` of a state in memory, whole."""
    n_text = int.from_bytes(state[:8], "little")
    if n_text > min(MAX_TEXT_BYTES, len(state) - 8):
        raise ValueError("a state is shorter than it tells")
    check_state(bytes(state[8 : 8 + n_text]), len(state) - 8 - n_text, snapshots)


def check_state(text: bytes, n_bytes: int, snapshots: tuple[str, ...]) -> None:
    """Raise ValueError if a state is none of a model's. ``text``: its JSON; ``n_bytes``: of the arrays behind it."""
    told = strangers_json(text)
    if not isinstance(told, list) or len(told) != len(snapshots):
        raise ValueError("a state is of another number of layers")
    for tree, snapshot in zip(told, snapshots, strict=True):
        name, _, shapes = snapshot.partition(" ")
        found = list(_arrays(tree, n_bytes))
        if not shapes:
            continue
        wanted = json.loads(shapes)
        if len(found) != len(wanted) or not all(
            _is_like(one, like, is_fixed=name == _FIXED) for one, like in zip(found, wanted, strict=True)
        ):
            raise ValueError("a state has other arrays than the model's")


def _arrays(tree: Any, n_bytes: int) -> Iterator[list[Any]]:
    """Yield dtype and shape of each array, depth first; each lies within ``n_bytes``."""
    if not isinstance(tree, dict) or len(tree) != 1:
        raise ValueError("a state cannot be read")
    ((kind, value),) = tree.items()
    if kind in ("t", "l") and isinstance(value, list):
        for one in value:
            yield from _arrays(one, n_bytes)
    elif kind == "a" and isinstance(value, list) and len(value) == 3 and isinstance(value[1], list):
        dtype, shape, start = value
        is_sound = isinstance(dtype, str) and dtype in _SIZES and all(type(n) is int and is_count(n) for n in shape)
        if not is_sound or type(start) is not int or start < 0 or start % _ALIGN:
            raise ValueError("an array of a state makes no sense")
        if max(shape, default=0) > n_bytes or start + math.prod(shape) * _SIZES[dtype] > n_bytes:
            raise ValueError("an array of a state is larger than the state")
        yield [dtype, *shape]
    elif kind != "v" or not isinstance(value, int | float | str | None):
        raise ValueError("a state cannot be read")


def _is_like(found: list[Any], wanted: list[Any], *, is_fixed: bool) -> bool:
    """True if an array has the model's dtype and shape, or one that has grown along its tokens."""
    if is_fixed or len(found) != len(wanted) or len(wanted) < 3:
        return found == wanted
    return all(a == b or place == len(wanted) + _TOKENS for place, (a, b) in enumerate(zip(found, wanted, strict=True)))
