"""One copy on its way into the warm tier: what of a lineage is not held there yet, handed over tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define, field, frozen

from agent_memory.config import Codec
from agent_memory.store.planner import Piece

if TYPE_CHECKING:
    from agent_memory.store.warm import Warm

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@define(eq=False)
class WarmPiece:
    """One piece in memory. ``rows``: by layout tensor, (heads, n_tokens, row_bytes)."""

    piece: Piece
    used_s: float = -math.inf  #: by the tier's clock
    n_bytes: int = 0  #: allocated for it, or reserved
    rows: list[Bytes] = field(factory=list, repr=False)
    window_rows: list[Bytes] = field(factory=list, repr=False)  #: by window tensor: of its newest tokens
    state: Bytes | None = field(default=None, repr=False)  #: at its end
    users: set[int | None] = field(factory=set)  #: agents whose lineages stand on it; None: a nameless one
    n_holds: int = 0  #: copies under way that need it

    @property
    def first_row(self) -> int:
        """The token of its oldest window row; its end, where there is none."""
        return self.stop - (self.window_rows[0].shape[1] if self.window_rows else 0)

    @property
    def stop(self) -> int:
        """The token after its last, counted from the lineage's first."""
        return self.piece.start + self.piece.n_tokens


@frozen
class CopyPart:
    """Tokens ``[start, stop)`` of the lineage, to be read from its live KV: the end of one piece."""

    piece: WarmPiece
    start: int
    stop: int
    codec: Codec


@frozen
class CopySide:
    """Window rows ``[first, stop)`` of the lineage, to be held beside a piece, and maybe the state at ``stop``.

    ``[start, stop)`` are to be read from its live KV; those before are taken over.
    """

    piece: WarmPiece
    first: int
    start: int
    stop: int
    codec: Codec
    has_state: bool


class Copy:
    """Made by ``Warm.begin``. Ends with ``finish`` or ``abandon``; one that no longer fits ends by itself, quietly.

    Tokens that an unfinished chunk already held (``base``) are taken from there: their bytes are never made again.
    """

    def __init__(
        self,
        warm: Warm,
        path: Sequence[WarmPiece],
        fresh: Sequence[WarmPiece],
        base: WarmPiece | None,
        sides: tuple[CopySide, ...],
        agent_id: int | None,
    ) -> None:
        self._warm, self.path, self.fresh, self.base, self.sides = warm, path, fresh, base, sides
        self.agent_id = agent_id
        self.parts = tuple(
            CopyPart(p, max(p.piece.start, base.stop if base else 0), p.stop, p.piece.segment.codec) for p in fresh
        )
        self.is_over = False
        for held in self._holding():
            held.n_holds += 1

    def put(self, part: int, tensor: int, array: Bytes) -> None:
        """One layout tensor of one part, in the order of tensors: (heads, n, row_bytes) uint8; kept, not copied."""
        to = self.parts[part]
        if self.base is not None and to.start > to.piece.piece.start:
            array = np.concatenate([self.base.rows[tensor], array], axis=1)
        to.piece.rows.append(array)

    def put_side(self, number: int, rows: Sequence[Bytes], state: Bytes | None) -> None:
        """The window tensors of one of ``sides``, (heads, n_rows, row_bytes) each, and its state where it has one."""
        to, base = self.sides[number], self.base
        if base is not None and to.first < to.start:
            n_rows = to.start - to.first
            rows = [np.concatenate([a[:, -n_rows:], b], axis=1) for a, b in zip(base.window_rows, rows, strict=True)]
        if not self.is_over and not self._warm.put_side(to, list(rows), state, self.agent_id):
            self.abandon()

    def finish(self) -> None:
        """Make it readable."""
        if not self._end():
            self._warm.complete(self)

    def abandon(self) -> None:
        """Forget what was put so far."""
        if not self._end():
            self._warm.undo(self)

    def _end(self) -> bool:
        """Let go of what it needed; whether it was over before."""
        was_over, self.is_over = self.is_over, True
        for held in () if was_over else self._holding():
            held.n_holds -= 1
        return was_over

    def _holding(self) -> list[WarmPiece]:
        return [self.path[-1], *([self.base] if self.base is not None else [])]
