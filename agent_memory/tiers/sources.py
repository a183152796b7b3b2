"""Pieces in warm on their way into a KV."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from agent_memory.kvcache.coding import Encoded
from agent_memory.kvfile.sources import MeteredSource
from agent_memory.tiers.copies import Bytes, WarmPiece
from agent_memory.tiers.lookup import Match
from agent_memory.tiers.warm import Warm
from agent_memory.types import Exactness, weakest


class WarmSource:
    """The first ``n_tokens`` of a match, out of memory and, behind that, out of ``rest``: a ``MeteredSource``.

    Window rows and the state come from ``rest`` alone, where there is one.
    """

    # What is read, and from where:
    #
    #   tokens                 full-attention rows    window rows, state
    #   [0, n_warm)            warm                   warm, if the match ends there
    #   [n_warm, n_tokens)     ``rest``               ``rest``

    def __init__(self, warm: Warm, match: Match, n_tokens: int, rest: MeteredSource | None) -> None:
        assert warm.layout is not None
        self._layout, self._codings, self._n_tokens, self._rest = warm.layout, warm.codings, n_tokens, rest
        self._n_read, self._lock = 0, threading.Lock()
        self._pieces: list[tuple[WarmPiece, int]] = []
        at = 0
        for held, whole in match.warm:
            take = min(whole, n_tokens - at)
            if take > 0:
                self._pieces.append((held, take))
            at += take
        needs = warm.needs
        self._held_from = 0
        if needs is not None and needs.window:
            self._held_from = max(match.held_from, needs.boundary_row(n_tokens))

    @property
    def n_tokens(self) -> int:
        """How many tokens it holds."""
        return self._n_tokens

    @property
    def n_read(self) -> int:
        """Bytes of rows and states read so far, from memory and disk, as they are stored."""
        return self._n_read + (self._rest.n_read if self._rest is not None else 0)

    @property
    def exactness(self) -> Exactness:
        """The weakest promise of the window rows and the state that it reads."""
        if self._rest is not None:
            return self._rest.exactness
        last = self._pieces[-1][0] if self._pieces else None
        read = [one for one, _ in self._pieces if one is last or (one.window_rows and one.stop > self._held_from)]
        return weakest("exact", *(one.side_exactness for one in read))

    @property
    def held_from(self) -> int:
        """The first token whose window rows it holds."""
        return self._held_from if self._rest is None else self._rest.held_from

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        """Fill one tensor; of a window, its rows from ``held_from`` on. Encoded rows are left out."""
        if self._rest is not None:
            self._rest.read_into(tensor, out, capacity)
        spec = (*self._layout.tensors, *self._layout.windows)[tensor]
        if self._codings[tensor] is None and spec.row_bytes:
            into = np.frombuffer(out, np.uint8).reshape(spec.heads, capacity, spec.row_bytes)
            for start, rows in self._runs(tensor):
                into[:, start : start + rows.shape[1]] = rows
                self._count(rows.nbytes)

    def encoded(self, tensor: int) -> Sequence[Encoded]:
        """Return the encoded rows of one tensor: warm's in one span, then those of ``rest``."""
        later = list(self._rest.encoded(tensor)) if self._rest is not None else []
        form, runs = self._codings[tensor], list(self._runs(tensor))
        if form is None or not runs:
            return later
        rows = np.concatenate([rows for _, rows in runs], axis=1)
        self._count(rows.nbytes)
        return [Encoded(runs[0][0], runs[0][0] + rows.shape[1], form, rows), *later]

    def _count(self, n_bytes: int) -> None:
        with self._lock:  # two threads may read
            self._n_read += n_bytes

    def _runs(self, tensor: int) -> Iterator[tuple[int, Bytes]]:
        """The rows of one tensor, piece after piece, each with its position in the KV."""
        number = tensor - len(self._layout.tensors)
        for held, take in self._pieces:
            if number < 0:
                yield held.piece.start, held.rows[tensor][:, :take]
            elif self._rest is None and held.window_rows:
                start, stop = max(held.first_row, self._held_from), min(held.stop, self._n_tokens)
                if start < stop:
                    rows = held.window_rows[number][:, start - held.first_row : stop - held.first_row]
                    yield start - self._held_from, rows

    def read_state(self) -> np.ndarray[Any, Any] | None:
        """Return the state at the end."""
        if self._rest is not None:
            return self._rest.read_state()
        state = self._pieces[-1][0].state
        self._count(0 if state is None else state.nbytes)
        return state

    def check(self) -> bool:
        """True if everything read from disk is what was written."""
        return self._rest is None or self._rest.check()

    def close(self) -> None:
        """Close the files; idempotent."""
        if self._rest is not None:
            self._rest.close()
