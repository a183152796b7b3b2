"""Names of chunks: a hash chain over token ids whose first parent is the model's identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Ids = np.ndarray[Any, np.dtype[np.uint32]] | Sequence[int]

ID_BYTES = 32


def root_id(identity: str) -> bytes:
    """Return the first parent of every lineage: the identity's digest."""
    return bytes.fromhex(identity)


def piece_id(parent: bytes, ids: Ids) -> bytes:
    """Return sha256 of the parent's id and the token ids (u32, little-endian): 32 bytes."""
    return hashlib.sha256(parent + np.ascontiguousarray(ids, dtype="<u4").tobytes()).digest()


def chunk_chain(identity: bytes, ids: Ids, chunk_tokens: int) -> list[bytes]:
    """Return the ids of all full chunks of ``ids``, in order; the unfinished tail has none."""
    tokens = np.ascontiguousarray(ids, dtype="<u4")
    chain: list[bytes] = []
    parent = identity
    for start in range(0, len(tokens) - chunk_tokens + 1, chunk_tokens):
        parent = piece_id(parent, tokens[start : start + chunk_tokens])
        chain.append(parent)
    return chain


def common_prefix(a: Ids, b: Ids) -> int:
    """Return the number of equal leading tokens; O(n)."""
    left, right = np.asarray(a, dtype=np.uint32), np.asarray(b, dtype=np.uint32)
    n = min(len(left), len(right))
    differs = left[:n] != right[:n]
    return int(differs.argmax()) if differs.any() else n


def identity_of(model: Mapping[str, str], salt: str, chunk_tokens: int) -> str:
    """Return the identity of KV: sha256 hex of the model's digests, the tenant's salt and the chunk size."""
    parts = {**model, "salt": salt, "chunk_tokens": chunk_tokens}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
