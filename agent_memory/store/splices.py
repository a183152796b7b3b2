"""Encoded rows of stored pieces, copied byte by byte into another file, never decoded."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent_memory.kvcache.coding import coded
from agent_memory.prefix.index import Piece
from agent_memory.prefix.provenance import Stored
from agent_memory.store.catalog import Catalog
from agent_memory.store.segments import OpenSegment


class Splice:
    """The first rows of a piece that is being written. I/O thread; raises DamageError."""

    def __init__(self, catalog: Catalog, stored: Stored) -> None:
        assert catalog.layout is not None
        self._layout = catalog.layout
        self._spans: list[tuple[OpenSegment, Piece, int]] = []
        try:
            for piece, take in stored:
                self._spans.append((OpenSegment(catalog.path(piece.segment), piece.segment), piece, take))
        except BaseException:
            self.close()
            raise

    def joined(self, tensor: int, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the stored rows of one layout tensor, checked, then ``rows``: (heads, n, row_bytes) uint8."""
        parts = []
        for source, piece, take in self._spans:
            spec = coded(self._layout.tensors[tensor], source.codec)
            raw = np.frombuffer(source.tensor(spec.name, tensor), np.uint8)
            held = raw.reshape(spec.heads, piece.segment.n_tokens, spec.row_bytes)
            parts.append(held[:, piece.offset : piece.offset + take])
        return np.concatenate([*parts, rows], axis=1)

    def close(self) -> None:
        """Close the files; idempotent."""
        for source, _, _ in self._spans:
            source.close()
