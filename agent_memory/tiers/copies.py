"""One copy into the warm tier: the tokens of a lineage that warm has not got yet, handed over tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from attrs import define, field, frozen

from agent_memory.config import Codec
from agent_memory.prefix.pieces import Piece
from agent_memory.types import Exactness

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@define(eq=False)
class WarmPiece:
    """One piece in memory."""

    piece: Piece
    used_s: float = -math.inf  #: last use, by the tier's clock
    n_bytes: int = 0  #: allocated for it, or reserved
    rows: list[Bytes] = field(factory=list, repr=False)  #: by layout tensor: (heads, n_tokens, row_bytes)
    window_rows: list[Bytes] = field(factory=list, repr=False)  #: by window tensor: rows of its newest tokens
    state: Bytes | None = field(default=None, repr=False)  #: recurrent state after its last token
    side_exactness: Exactness = "exact"  #: of its window rows and its state
    users: set[int | None] = field(factory=set)  #: agents whose prefix includes it; None: anonymous requests
    n_holds: int = 0  #: copies under way that need it; it is not evicted before they end

    @property
    def first_row(self) -> int:
        """Position of its oldest window row; ``stop`` if it has none."""
        return self.stop - (self.window_rows[0].shape[1] if self.window_rows else 0)

    @property
    def stop(self) -> int:
        """Position after its last token, counted from the lineage's first."""
        return self.piece.start + self.piece.n_tokens


@frozen
class Base:
    """A piece that shares its tokens before ``stop`` with the first new piece: mostly the tail that this one extends.

    Rows before ``taken_stop`` were decoded from a lossy codec: their stored bytes are reused, never encoded again.
    """

    piece: WarmPiece
    stop: int
    taken_stop: int


@frozen
class CopyPart:
    """Tokens ``[start, stop)`` of the lineage, read from its live KV: all of one piece, or its end."""

    piece: WarmPiece
    start: int
    stop: int
    codec: Codec


@frozen
class CopySide:
    """Window rows ``[first, stop)`` of the lineage for one piece, and with ``has_state`` the state at ``stop``.

    Rows ``[first, start)`` are those of ``Base``; ``[start, stop)`` are read from the live KV.
    """

    piece: WarmPiece
    first: int
    start: int
    stop: int
    codec: Codec
    has_state: bool
    exactness: Exactness


class Keeper(Protocol):
    """The owner of the pieces that a copy fills: the warm tier."""

    def put_side(self, to: CopySide, rows: list[Bytes], state: Bytes | None, agent_id: int | None) -> bool:
        """Give a piece its window rows and state; False, and nothing changed, where they do not fit the budget."""

    def complete(self, copy: Copy) -> None:
        """Make the pieces of a copy findable."""

    def undo(self, copy: Copy) -> None:
        """Forget the pieces that a copy entered."""


class Copy:
    """A lineage on its way into the warm tier. Engine thread only.

    - ``Warm.begin`` makes it; ``finish`` or ``abandon`` ends it, and later calls do nothing.
    - Bytes of rows are reserved before it begins. Those of ``sides`` are not: if they do not fit, it is abandoned.
    - Pieces that it needs are not evicted before it ends.
    """

    # Where the rows of a new piece come from:
    #
    #   tokens                            rows
    #   [piece.start, base.taken_stop)    bytes of ``base``, already encoded; the first new piece alone
    #   [part.start, part.stop)           the lineage's live KV

    def __init__(
        self,
        keeper: Keeper,
        path: Sequence[WarmPiece],
        fresh: Sequence[WarmPiece],
        base: Base | None,
        sides: tuple[CopySide, ...],
        agent_id: int | None,
    ) -> None:
        self._keeper, self.path, self.fresh, self.base, self.sides = keeper, path, fresh, base, sides
        self.agent_id = agent_id
        taken_stop = base.taken_stop if base is not None else 0
        self.parts = tuple(CopyPart(p, max(p.piece.start, taken_stop), p.stop, p.piece.segment.codec) for p in fresh)
        self.is_over = False
        self._needed = {id(held): held for held in (path[-1], *fresh, *([base.piece] if base is not None else []))}
        for held in self._needed.values():
            held.n_holds += 1

    @property
    def standing(self) -> list[WarmPiece]:
        """The pieces of the lineage, and the base of the first new piece."""
        return [*self.path, *([self.base.piece] if self.base is not None else [])]

    def put(self, part: int, tensor: int, array: Bytes) -> None:
        """Give one tensor of one part, in layout order: (heads, n, row_bytes) uint8; the array is kept, not copied."""
        to = self.parts[part]
        n_taken = to.start - to.piece.piece.start
        if self.base is not None and n_taken:
            array = np.concatenate([self.base.piece.rows[tensor][:, :n_taken], array], axis=1)
        to.piece.rows.append(array)

    def put_side(self, number: int, rows: Sequence[Bytes], state: Bytes | None) -> None:
        """Give the window tensors of one of ``sides``, (heads, n_rows, row_bytes) each, and the state if it has one."""
        to, base = self.sides[number], self.base
        if base is not None and to.first < to.start:
            first_row = base.piece.first_row
            taken = [a[:, to.first - first_row : to.start - first_row] for a in base.piece.window_rows]
            rows = [np.concatenate(pair, axis=1) for pair in zip(taken, rows or [a[:, :0] for a in taken], strict=True)]
        if not self.is_over and not self._keeper.put_side(to, list(rows), state, self.agent_id):
            self.abandon()

    def finish(self) -> None:
        """Make its pieces findable."""
        if not self._end():
            self._keeper.complete(self)

    def abandon(self) -> None:
        """Forget its pieces."""
        if not self._end():
            self._keeper.undo(self)

    def _end(self) -> bool:
        """Release the pieces that it needed; True if it had ended before."""
        was_over, self.is_over = self.is_over, True
        for held in () if was_over else self._needed.values():
            held.n_holds -= 1
        return was_over
