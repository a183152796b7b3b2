"""Resume points: the positions at which stored KV can be restored. Pure.

- Full-attention rows can be truncated at any token.
- Sliding-window layers need the rows of the window before that token; recurrent layers need their state at that token.
- Both are in side files, at most one for a piece. A side file may be deleted while its piece stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from attrs import define, field, frozen

from agent_memory.kvcache.layout import Layout, is_kept
from agent_memory.prefix.index import Index, Piece, n_tokens


@frozen
class Held:
    """The window rows and states that a live KV has, beside its full-attention rows."""

    held_from: int = 0  #: the first token whose window rows it has
    snapshots: Collection[int] = field(default=())  #: positions at which it has a state


@define(eq=False)
class Side:
    """The side file of one piece: window rows of its last ``n_rows`` tokens, and maybe the state at its end."""

    piece: bytes
    segment: int  #: number of the segment that holds the piece
    file: str
    n_rows: int
    has_state: bool = field(converter=bool)
    n_bytes: int = 0
    header_xxh3: str = ""
    is_ready: bool = field(default=False)
    held_bytes: int = 0  #: allocated
    is_unreadable: bool = False  #: for a while: it cannot be read now

    @property
    def is_readable(self) -> bool:
        """True if it is committed, and can be read as far as is known."""
        return self.is_ready and not self.is_unreadable

    def covers(self, n_rows: int, has_state: bool) -> bool:
        """Whether nothing would be new in a file with so much."""
        return self.n_rows >= n_rows and self.has_state >= has_state


@frozen
class Needs:
    """The window rows and states that a restore needs, beside full-attention rows."""

    window: int  #: tokens in a window; 0: no layer has one
    state: bool
    chunk_tokens: int

    @classmethod
    def of(cls, layout: Layout, chunk_tokens: int) -> Needs:
        """Return the needs of a model."""
        return cls(layout.window if layout.windows else 0, bool(layout.snapshots), chunk_tokens)

    def first_row(self, n_tokens: int) -> int:
        """Return the first token whose window rows a restore at ``n_tokens`` needs."""
        return max(0, n_tokens - self.window + 1) if self.window else n_tokens

    def boundary_row(self, n_tokens: int) -> int:
        """Return the first token whose window rows a restore at the last chunk boundary up to ``n_tokens`` needs."""
        return self.first_row(n_tokens // self.chunk_tokens * self.chunk_tokens)

    def wants_rows(self, start: int, stop: int, point: int) -> bool:
        """True if window rows ``[start, stop)`` are kept for a lineage that ends at ``point``.

        Those that a restore at ``point`` needs, and older ones within a window and a chunk of it.
        """
        if not self.window or start >= stop:
            return False
        return stop > self.first_row(point) or start >= point - self.window - self.chunk_tokens

    def wants_state(self, at: int, point: int) -> bool:
        """True if the state at ``at`` is kept for a lineage that ends at ``point``: at its end, and by ``is_kept``.

        In a model with windows, only that at the newest chunk boundary: older window rows are gone.
        """
        if not self.state or at == point:
            return self.state
        boundary, newest = at // self.chunk_tokens, point // self.chunk_tokens
        return at % self.chunk_tokens == 0 and (boundary == newest if self.window else is_kept(boundary, newest))


def missing_sides(
    index: Index, sides: Mapping[bytes, Side], needs: Needs, head: bytes, point: int, held: Held
) -> Iterator[tuple[Piece, int, bool]]:
    """Yield what side files of a lineage of ``point`` tokens lack and ``held`` can give, the last piece first.

    Each: a piece, the position of its first window row (the piece's end: no rows), True if its state is needed.
    ``head``: the lineage's last piece.
    """
    for piece in index.ancestors(index.pieces[head]):
        stop = piece.start + piece.n_tokens
        start = min(stop, max(piece.start, held.held_from))
        n_rows = stop - start if needs.wants_rows(start, stop, point) else 0
        is_fork = len(index.children(piece.id)) > 1 and not needs.window
        has_state = stop in held.snapshots and needs.state and (is_fork or needs.wants_state(stop, point))
        former = sides.get(piece.id)
        is_less = former is not None and (n_rows < former.n_rows or has_state < former.has_state)
        if (n_rows or has_state) and not is_less and (former is None or not former.covers(n_rows, has_state)):
            yield piece, stop - n_rows, has_state


def restorable(path: Sequence[tuple[Piece, int]], sides: Mapping[bytes, Side], needs: Needs) -> tuple[int, int]:
    """Return the longest restorable prefix of a path of pieces, and its first token with window rows; O(pieces)."""
    best = (0, 0)
    rows_from = at = 0  # window rows [rows_from, at) are stored without a gap
    for piece, take in path:
        side = sides.get(piece.id)
        if side is not None and not side.is_readable:
            side = None
        first = at + piece.n_tokens - (side.n_rows if side is not None else 0)
        if first > at:
            rows_from = first
        at += take
        has_rows = not needs.window or needs.first_row(at) >= rows_from
        has_state = not needs.state or (side is not None and side.has_state and take == piece.n_tokens)
        if has_rows and has_state:
            best = (at, rows_from)
    return best


@frozen
class Plan:
    """Pieces to restore from, with how many tokens are taken of each."""

    pieces: list[tuple[Piece, int]]
    rows_from: int = 0  #: the first token whose window rows are stored
    is_cut: bool = False  #: True if more is stored, with no resume point in it


def best_plan(paths: Iterable[list[tuple[Piece, int]]], sides: Mapping[bytes, Side], needs: Needs) -> Plan:
    """Return the path with the longest restorable prefix, truncated to it."""
    best, longest = (0, 0), 0
    chosen: list[tuple[Piece, int]] = []
    for path in paths:
        found = restorable(path, sides, needs)
        longest = max(longest, n_tokens(path))
        if found[0] > best[0]:
            best, chosen = found, path
    pieces = [(p, min(take, best[0] - p.start)) for p, take in chosen if p.start < best[0]]
    return Plan(pieces, best[1], longest > best[0])


def stale(
    lineage: Iterable[Piece],
    sides: Mapping[bytes, Side],
    needs: Needs,
    former: int,
    is_point: Callable[[Piece], bool],
) -> list[Side]:
    """Return the side files that a lineage no longer needs; ``lineage``: its pieces, the last first.

    - Kept: what restores need at the lineage's end, and where lineages fork or end (``is_point``).
    - Kept: what a restore needs at ``former``, the end before the last turn: that turn may be rewound or replaced.
    """
    gone: list[Side] = []
    newest = point = 0
    for number, piece in enumerate(lineage):
        stop = piece.start + piece.n_tokens
        newest = max(newest, stop)
        is_here = number == 0 or is_point(piece)
        point = stop if is_here else point
        side = sides.get(piece.id)
        if side is None or not side.is_ready:
            continue
        start = stop - side.n_rows
        has_rows = needs.wants_rows(start, stop, point) or (start < former and stop > needs.boundary_row(former))
        has_state = side.has_state and (is_here or stop == former or needs.wants_state(stop, newest))
        if not (side.n_rows and has_rows) and not (has_state and not needs.window):
            gone.append(side)
    return gone
