"""Resume points: the positions at which stored KV can be restored. Pure.

- Full-attention rows can be truncated at any token.
- Sliding-window layers need the rows of the window before that token; recurrent layers need their state at that token.
- Both are in resume segments, at most one for a piece. A resume segment may be deleted while its piece stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from attrs import field, frozen

from agent_memory.kvcache.layout import Layout, is_kept
from agent_memory.prefix.index import Index, n_tokens
from agent_memory.prefix.pieces import Piece, Segment


@frozen
class Held:
    """The window rows and states that a live KV has, beside its full-attention rows."""

    held_from: int = 0  #: the first token whose window rows it has
    snapshots: Collection[int] = field(default=())  #: positions at which it has a state


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


def missing_resume(
    index: Index, stored: Mapping[bytes, Segment], needs: Needs, head: bytes, point: int, held: Held
) -> Iterator[tuple[Piece, int, bool]]:
    """Yield what resume segments of a lineage of ``point`` tokens lack and ``held`` can give, the last piece first.

    Each: a piece, how many window rows of its newest tokens, True if its state is needed. ``head``: the lineage's last
    piece.
    """
    for piece in index.ancestors(index.pieces[head]):
        stop = piece.stop
        start = min(stop, max(piece.start, held.held_from))
        n_rows = stop - start if needs.wants_rows(start, stop, point) else 0
        is_fork = len(index.children(piece.id)) > 1 and not needs.window
        has_state = stop in held.snapshots and needs.state and (is_fork or needs.wants_state(stop, point))
        former = stored.get(piece.id)
        found, wanted = (0, False) if former is None else (former.n_tokens, former.has_state), (n_rows, has_state)
        if wanted != found and wanted[0] >= found[0] and wanted[1] >= found[1]:
            yield piece, n_rows, has_state


def restorable(path: Sequence[tuple[Piece, int]], stored: Mapping[bytes, Segment], needs: Needs) -> tuple[int, int]:
    """Return the longest restorable prefix of a path of pieces, and its first token with window rows; O(pieces)."""
    best = (0, 0)
    rows_from = at = 0  # window rows [rows_from, at) are stored without a gap
    for piece, take in path:
        resume = stored.get(piece.id)
        if resume is not None and not resume.is_readable:
            resume = None
        first = at + piece.n_tokens - (resume.n_tokens if resume is not None else 0)
        if first > at:
            rows_from = first
        at += take
        has_rows = not needs.window or needs.first_row(at) >= rows_from
        has_state = not needs.state or (resume is not None and resume.has_state and take == piece.n_tokens)
        if has_rows and has_state:
            best = (at, rows_from)
    return best


@frozen
class Plan:
    """Pieces to restore from, with how many tokens are taken of each."""

    pieces: list[tuple[Piece, int]]
    rows_from: int = 0  #: the first token whose window rows are stored
    is_cut: bool = False  #: True if more is stored, with no resume point in it


def best_plan(paths: Iterable[list[tuple[Piece, int]]], stored: Mapping[bytes, Segment], needs: Needs) -> Plan:
    """Return the path with the longest restorable prefix, truncated to it."""
    best, longest = (0, 0), 0
    chosen: list[tuple[Piece, int]] = []
    for path in paths:
        found = restorable(path, stored, needs)
        longest = max(longest, n_tokens(path))
        if found[0] > best[0]:
            best, chosen = found, path
    pieces = [(p, min(take, best[0] - p.start)) for p, take in chosen if p.start < best[0]]
    return Plan(pieces, best[1], longest > best[0])


def stale(
    lineage: Iterable[Piece],
    stored: Mapping[bytes, Segment],
    needs: Needs,
    former: int,
    is_point: Callable[[Piece], bool],
) -> list[Segment]:
    """Return the resume segments that a lineage no longer needs; ``lineage``: its pieces, the last first.

    - Kept: what restores need at the lineage's end, and where lineages fork or end (``is_point``).
    - Kept: what a restore needs at ``former``, the end before the last turn: that turn may be rewound or replaced.
    """
    gone: list[Segment] = []
    newest = point = 0
    for number, piece in enumerate(lineage):
        stop = piece.start + piece.n_tokens
        newest = max(newest, stop)
        is_here = number == 0 or is_point(piece)
        point = stop if is_here else point
        resume = stored.get(piece.id)
        if resume is None or not resume.is_ready:
            continue
        start = stop - resume.n_tokens
        has_rows = needs.wants_rows(start, stop, point) or (start < former and stop > needs.boundary_row(former))
        has_state = resume.has_state and (is_here or stop == former or needs.wants_state(stop, newest))
        if not (resume.n_tokens and has_rows) and not (has_state and not needs.window):
            gone.append(resume)
    return gone
