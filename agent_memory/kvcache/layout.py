"""The layout of a model's KV: the kind of each layer, and the shapes and dtypes that stored KV must match."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from attrs import field, frozen

Kind = Literal["full", "window", "snapshot", "unstored"]
#: ``full``: one row per token (full attention, MLA latents); truncates anywhere. ``window``: the newest rows alone.
#: ``snapshot``: a state that cannot be truncated, saved at chunk boundaries (recurrent layers, chunked attention,
#: unknown classes). ``unstored``: live in memory only, else recomputed from the log.

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
class Growing:
    """Rows of chunked attention in a state, of all such layers together.

    They are at most ``most_rows``, and those of the newest forward pass.
    """

    row_bytes: int
    most_rows: int
    n_rows: int  #: counted in ``Layout.state_bytes``


@frozen
class Layout:
    """The tensors of all layers in their stored order (layer-major), and the kind of each layer.

    A ``CacheList`` counts as the list of its parts. Tensors are numbered through: ``tensors``, then ``windows``.
    """

    tensors: tuple[TensorSpec, ...]
    kinds: tuple[Kind, ...] = field(default=())
    #: class names of layers that are not stored, for messages
    unstored: tuple[str, ...] = field(default=())
    #: the tensors of sliding-window layers
    windows: tuple[TensorSpec, ...] = field(default=())
    #: the largest window in tokens, the token itself included; 0: no sliding-window layer
    window: int = 0
    #: classes and sizes of the snapshots
    snapshots: tuple[str, ...] = field(default=())
    #: bytes of one snapshot as first seen; the snapshot of a chunked layer grows
    state_bytes: int = field(default=0, eq=False)
    #: how it grows; None: it does not
    growing: Growing | None = field(default=None, eq=False)

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes in full-attention layers."""
        return sum(t.token_bytes for t in self.tensors)

    @property
    def window_token_bytes(self) -> int:
        """Bytes that one token takes in sliding-window layers."""
        return sum(t.token_bytes for t in self.windows)

    @property
    def is_storable(self) -> bool:
        """True if every layer can be stored."""
        return not self.unstored

    @property
    def is_full(self) -> bool:
        """True if every layer can be truncated at any token."""
        return self.is_storable and not self.windows and not self.snapshots

    def fixed_bytes(self, n_tokens: int, chunk_tokens: int) -> int:
        """Return the bytes that a live row of ``n_tokens`` may take beyond ``token_bytes``: windows and snapshots."""
        rows = min(n_tokens + chunk_tokens, self.window + chunk_tokens) if self.windows else 0
        states = 2 + (n_tokens // chunk_tokens).bit_length() if self.snapshots else 0
        return rows * self.window_token_bytes + states * self.state_bytes_at(n_tokens, chunk_tokens)

    def state_bytes_at(self, n_tokens: int, n_newest: int) -> int:
        """Return the bytes of a snapshot at ``n_tokens``, of which the newest forward pass had ``n_newest``."""
        if (growing := self.growing) is None:
            return self.state_bytes
        n_newest = min(n_newest, n_tokens)
        n_rows = min(n_tokens - n_newest, growing.most_rows) + n_newest
        return self.state_bytes + (n_rows - growing.n_rows) * growing.row_bytes

    @property
    def digest(self) -> str:
        """sha256 hex of the layout: part of the identity of every KV made with it."""
        parts: list[object] = [_rows(self.tensors), list(self.kinds), list(self.unstored)]
        if self.windows or self.snapshots:
            parts += [_rows(self.windows), self.window, list(self.snapshots)]
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


def _rows(tensors: tuple[TensorSpec, ...]) -> list[list[object]]:
    return [[t.name, t.heads, t.dim, t.dtype] for t in tensors]


def is_kept(boundary: int, newest: int) -> bool:
    """True if the snapshot of chunk ``boundary`` is kept once chunk ``newest`` is reached.

    Kept: the newest, and about one at every power of two back; at most ``log2(newest) + 2``. A dropped one is never
    wanted again.
    """
    lowest_bit = boundary & -boundary
    return boundary == newest or newest - boundary < 2 * lowest_bit
