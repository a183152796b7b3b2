"""Sharing: a lineage that leaves another inside a piece stores its own rows, and refers to those before. Pure.

- Which piece an id names does not change: a chunk has ``chunk_tokens`` ids whoever keeps its rows, and look-ups, heads
  and resume points know nothing of sharing.
- What is shared are rows by their *position*: a reference is a segment and a number of rows (``Segment.n_shared``), and
  ``stretches`` finds these rows by walking back through sources and parents. So segments may be joined, shortened or
  made exact under the same number, and every reference stays right.
- A segment has a smaller number than all that depend on it, so walks end.
- Shared is what stays in any case: rows of a piece that goes on otherwise, or that others need. A lineage's own
  deltas are folded as ever: their rows are written again, and the deltas go.
- Not shared: what would make KV seem better than it is (another codec, a weaker promise, another host), or would
  make it worse (rows of another run), and less than a 16th of a chunk: many prompts begin with the same few tokens, and
  should not depend on one file for them.
- Only where every layer is full attention: window rows and states exist at ends of pieces alone, so such a lineage
  begins at one and computes its rows anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from attrs import evolve, frozen

from agent_memory.prefix.authors import Origins, packed, unpacked
from agent_memory.prefix.index import Index, n_tokens
from agent_memory.prefix.pieces import Ids, Piece, Segment
from agent_memory.prefix.provenance import MAX_DELTAS, Run
from agent_memory.types import Exactness, weakest

_LEAST_SHARE = 16  #: a reference is worth a 16th of a chunk, at least
_MOST_STRETCHES = MAX_DELTAS  #: files that a reference leads to


@frozen
class Stretch:
    """Rows ``[start, stop)`` of a lineage, as one segment's own file has them."""

    segment: Segment
    start: int
    stop: int

    @property
    def first_row(self) -> int:
        """Row of the file that has the first token."""
        return self.start - self.segment.shared_stop


def stretches(segments: Mapping[int, Segment], segment: Segment, start: int, stop: int) -> tuple[Stretch, ...]:
    """Return where rows ``[start, stop)`` of a segment's lineage are, in order; ``segments``: by number.

    Raises LookupError if some are nowhere: the set has changed since, or a manifest lies.
    """
    found: list[Stretch] = []
    at = segment
    while start < stop:
        if stop > at.stop:
            raise LookupError(f"segment {at.number} ends at token {at.stop}, not {stop}")
        if stop > at.shared_stop:
            found.append(Stretch(at, max(start, at.shared_stop), stop))
            stop = found[-1].start
            continue
        number = at.source_number if stop > at.start else at.parent_number
        if number is None or number not in segments or number >= at.number:
            raise LookupError(f"the rows before token {stop} of segment {at.number} are gone")
        at = segments[number]
    return tuple(reversed(found))


def authors_of(rows: Iterable[Stretch]) -> Origins:
    """Return who computed each row of some stretches."""
    found = []
    for one in rows:
        all_of_it = unpacked((piece.authors, piece.n_tokens) for piece in one.segment.pieces)
        found.append(all_of_it[one.start - one.segment.start : one.stop - one.segment.start])
    return np.concatenate(found) if found else np.zeros(0, np.uint32)


def note_sharing(segments: Mapping[int, Segment]) -> None:
    """Let shared rows have the authors of the segments that have them, where these stand for themselves."""
    for one in segments.values():
        if one.source_number is None or not one.pieces or one.pieces[0].seen_authors is not None:
            continue
        with contextlib.suppress(LookupError):  # rows that are nowhere are found when they are read
            rows = authors_of(stretches(segments, one, one.start, one.shared_stop))
            first = one.pieces[0]
            first.seen_authors = packed(np.concatenate([rows, unpacked([(first.authors, first.n_tokens - len(rows))])]))


def share(
    run: Run,
    index: Index,
    ids: Ids,
    segments: Mapping[int, Segment],
    is_needed: Callable[[Piece], bool],
    *,
    authors: Origins,
    exactness: Exactness,
    host: str,
) -> Run:
    """Return the run with the rows that it need not write: the most that one reference leads to.

    ``exactness``: of the segment that it becomes. ``authors``: of the lineage's tokens. ``is_needed``: True if another
    lineage ends in a piece, or a segment shares rows of it.
    """
    parent = run.before.id if run.before is not None else index.root
    own = ids[run.start : min(run.start + index.chunk_tokens, run.stop)]
    best, paths = run, list(index.covers(parent, own, ready=False))
    is_mixed = weakest(exactness, "recomputed") == exactness  # of several runs as it is
    going = {piece.id for path in paths for piece, take in path if take == piece.n_tokens}  # unless others need them
    found = [_staying(path, going, index, segments, is_needed, run.start) for path in paths]
    for n_shared, source in (*found, *_whole(paths, {n for n, _ in found})):
        n_shared = min(n_shared, len(own) - 1)
        if source is None or n_shared < max(1, best.n_shared) or n_shared * _LEAST_SHARE < index.chunk_tokens:
            continue
        try:
            rows = stretches(segments, source, run.start, run.start + n_shared)
        except LookupError:
            continue
        is_good = len(rows) <= _MOST_STRETCHES and all(_is_as_good(one.segment, run, exactness, host) for one in rows)
        if is_good and (is_mixed or np.array_equal(authors_of(rows), authors[run.start : run.start + n_shared])):
            best = evolve(run, source=rows[-1].segment, n_shared=n_shared)
    return best


def _whole(paths: Iterable[Sequence[tuple[Piece, int]]], numbers: Collection[int]) -> Iterator[tuple[int, Segment]]:
    """Yield the segments in which a whole delta ends behind one of some numbers of tokens.

    Beside a longer piece with the same tokens, a delta is there because a lineage ends in it: so it stays, and what
    would be left of the longer piece, once that goes, would be this delta again.
    """
    for path in paths:
        if path and path[-1][1] == path[-1][0].n_tokens and n_tokens(path) in numbers:
            yield n_tokens(path), path[-1][0].segment


def _is_as_good(segment: Segment, run: Run, exactness: Exactness, host: str) -> bool:
    """True if rows of a segment are no worse than what is told of the run, and as it would store them."""
    is_host_told = segment.host == host or exactness != "exact"
    return segment.codec == run.codec and is_host_told and weakest(segment.exactness, exactness) == exactness


def _staying(
    path: Sequence[tuple[Piece, int]],
    going: Collection[bytes],
    index: Index,
    segments: Mapping[int, Segment],
    is_needed: Callable[[Piece], bool],
    start: int,
) -> tuple[int, Segment | None]:
    """Return how many rows of a path stay stored when its own deltas are superseded, and the segment of the last."""
    n_staying, source = 0, None
    for piece, take in path:
        is_followed = any(child.id not in going for child in index.children(piece.id))
        if take < piece.n_tokens or is_followed or is_needed(piece):
            n_staying, source = piece.start + take - start, piece.segment
    for piece, _ in path:
        of, shared = piece.segment, piece.segment.shared_stop - start
        if of.source_number is not None and piece.index == 0 and piece.start - start >= n_staying < shared:
            return shared, segments.get(of.source_number)
    return n_staying, source


def reused(run: Run, segments: Mapping[int, Segment]) -> tuple[Stretch, ...] | None:
    """Return where the stored rows are that a run takes over behind those it shares; None if not all in its codec."""
    found: list[Stretch] = []
    shared_stop = run.start + run.n_shared
    try:
        for piece, take in run.stored:
            found += stretches(segments, piece.segment, max(piece.start, shared_stop), piece.start + take)
    except LookupError:
        return None
    return tuple(found) if all(one.segment.codec == run.codec for one in found) else None
