"""What each layer of a model keeps per token: the shapes and types that a stored KV must match."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from attrs import field, frozen

Kind = Literal["full", "unstored"]
#: ``full``: one row per token, cut anywhere. ``unstored``: kept live in memory only, else recomputed from the log.

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "U8": 1, "I8": 1, "U16": 2, "U32": 4}


@frozen
class TensorSpec:
    """One tensor of one layer, for ``n`` tokens of shape ``(heads, n, dim)``, row-major."""

    name: str  #: "012.k": the layer, then which of its tensors
    heads: int
    dim: int
    dtype: str  #: as safetensors writes it: "F32", "BF16", "F16"

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one head."""
        return self.dim * ITEM_BYTES[self.dtype]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token, all heads."""
        return self.heads * self.row_bytes


@frozen
class Layout:
    """The tensors of all layers in their stored order (layer-major), and the kind of each layer."""

    tensors: tuple[TensorSpec, ...]
    kinds: tuple[Kind, ...] = field(default=())
    #: class names of layers that are not stored, for messages
    unstored: tuple[str, ...] = field(default=())

    @property
    def token_bytes(self) -> int:
        """Bytes that one token costs, all layers."""
        return sum(t.token_bytes for t in self.tensors)

    @property
    def is_storable(self) -> bool:
        """Whether every layer can be stored and cut at any token."""
        return not self.unstored

    @property
    def digest(self) -> str:
        """sha256 hex of the layout: part of the identity of every KV made with it."""
        rows = [[t.name, t.heads, t.dim, t.dtype] for t in self.tensors]
        text = json.dumps([rows, list(self.kinds), list(self.unstored)], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
