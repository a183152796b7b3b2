"""The index of what is stored, and the longest stored prefix of some ids. Pure: no file is opened here.

A look-up walks full chunks by hash, then every chain of tail deltas, then takes the longest token prefix of one more
piece. The caller chooses among these paths. O(tokens) hashing, plus a bisection among the children of one piece.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter

import numpy as np

from agent_memory.prefix.chunks import common_prefix, piece_id
from agent_memory.prefix.pieces import HEAD_IDS, Ids, Piece, sort_key

_MAX_VISITS = 256  #: chains of deltas that are tried in one tail


def n_tokens(path: Sequence[tuple[Piece, int]]) -> int:
    """Return how many tokens a path covers."""
    return sum(take for _, take in path)


class _Siblings:
    """Children of one piece, sorted by head; children with one head are sorted by all ids when that is first needed."""

    __slots__ = ("deltas", "ordered", "pieces")

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.deltas: dict[int, int] = {}  # lengths of deltas among them -> how many
        self.ordered: set[bytes] = set()

    def tied(self, head: bytes) -> tuple[int, int]:
        low = bisect.bisect_left(self.pieces, head, key=lambda p: p.head)
        return low, bisect.bisect_right(self.pieces, head, lo=low, key=lambda p: p.head)


class Index:
    """Pieces of one identity by id, and by parent. Not thread-safe: its owner guards it.

    ``read_ids`` returns the ids of a piece, or None if its file is gone.
    """

    def __init__(self, root: bytes, chunk_tokens: int, read_ids: Callable[[Piece], Ids | None]) -> None:
        self.root, self.chunk_tokens, self._read_ids = root, chunk_tokens, read_ids
        self.pieces: dict[bytes, Piece] = {}
        self._children: dict[bytes, Piece | _Siblings] = {}

    # changing

    def add(self, piece: Piece, ids: Ids | None = None) -> None:
        """Add a piece; its parent is the root or in the index. ``ids``: the piece's own, if at hand."""
        self.pieces[piece.id] = piece
        parent = self.pieces.get(piece.parent)
        if parent is not None:
            piece.parent = parent.id  # one bytes object for all references
        found = self._children.get(piece.parent)
        if found is None:
            self._children[piece.parent] = piece
            return
        if isinstance(found, Piece):
            siblings = _Siblings()
            self._children[piece.parent] = siblings
            self._insert(siblings, found, None)
        else:
            siblings = found
        self._insert(siblings, piece, ids)

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Add many pieces, parents before children, to an empty index: siblings are sorted once."""
        known, children = self.pieces, self._children
        crowds: dict[bytes, list[Piece]] = {}
        for piece in pieces:
            known[piece.id] = piece
            parent = known.get(piece.parent)
            if parent is not None:
                piece.parent = parent.id
            if children.setdefault(piece.parent, piece) is not piece:
                crowds.setdefault(piece.parent, []).append(piece)
        for id, crowd in crowds.items():
            siblings, first = _Siblings(), children[id]
            assert isinstance(first, Piece)
            siblings.pieces = sorted([first, *crowd], key=attrgetter("head"))
            siblings.deltas = dict(Counter(p.n_tokens for p in siblings.pieces if p.n_tokens < self.chunk_tokens))
            children[id] = siblings

    def _insert(self, siblings: _Siblings, piece: Piece, ids: Ids | None) -> None:
        low, high = siblings.tied(piece.head)
        if low < high and piece.head in siblings.ordered:
            own = ids if ids is not None else self.ids(piece)
            low = bisect.bisect_left(siblings.pieces, sort_key(own), low, high, key=lambda p: sort_key(self.ids(p)))
        siblings.pieces.insert(low, piece)
        if piece.n_tokens < self.chunk_tokens:
            siblings.deltas[piece.n_tokens] = siblings.deltas.get(piece.n_tokens, 0) + 1

    def remove(self, piece: Piece) -> None:
        """Remove a piece; its children become unreachable."""
        del self.pieces[piece.id]
        found = self._children[piece.parent]
        if isinstance(found, Piece):
            del self._children[piece.parent]
            return
        found.pieces.remove(piece)
        if piece.n_tokens < self.chunk_tokens:
            found.deltas[piece.n_tokens] -= 1
            if not found.deltas[piece.n_tokens]:
                del found.deltas[piece.n_tokens]
        if not found.pieces:
            del self._children[piece.parent]

    def children(self, parent: bytes) -> list[Piece]:
        """Return the pieces that follow ``parent``."""
        found = self._children.get(parent)
        return [] if found is None else [found] if isinstance(found, Piece) else list(found.pieces)

    def descendants(self, pieces: list[Piece]) -> list[Piece]:
        """Return ``pieces`` and all their descendants, parents before children."""
        found = {p.id: p for p in pieces}
        queue = list(found.values())
        for piece in queue:
            fresh = [c for c in self.children(piece.id) if c.id not in found]
            found.update((c.id, c) for c in fresh)
            queue.extend(fresh)
        return queue

    def ancestors(self, piece: Piece) -> Iterator[Piece]:
        """Yield ``piece`` and all its ancestors."""
        at: Piece | None = piece
        while at is not None:
            yield at
            at = self.pieces.get(at.parent)

    # looking up

    def chunks(self, ids: Ids, *, ready: bool) -> list[Piece]:
        """Return the stored full chunks of the longest prefix of ``ids``; ``ready``: only those that can be read."""
        found: list[Piece] = []
        parent = self.root
        for start in range(0, len(ids) - self.chunk_tokens + 1, self.chunk_tokens):
            piece = self.pieces.get(piece_id(parent, ids[start : start + self.chunk_tokens]))
            if piece is None or (ready and not piece.segment.is_readable):
                break
            found.append(piece)
            parent = piece.id
        return found

    def deltas(self, parent: bytes, rest: Ids, *, ready: bool) -> list[list[Piece]]:
        """Return every chain of whole deltas after ``parent`` that is a prefix of ``rest``; the empty chain first."""
        chains: list[list[Piece]] = [[]]
        for chain in chains:
            if len(chains) > _MAX_VISITS:
                break
            last = chain[-1].id if chain else parent
            done = sum(p.n_tokens for p in chain)
            for length in self._delta_lengths(last):
                if done + length > len(rest):
                    continue
                piece = self.pieces.get(piece_id(last, rest[done : done + length]))
                if piece is not None and (piece.segment.is_readable or not ready):
                    chains.append([*chain, piece])
        return chains

    def paths(self, ids: Ids, *, ready: bool = True, every_end: bool = False) -> Iterator[list[tuple[Piece, int]]]:
        """Yield the paths that cover a prefix of ``ids``: pieces in order, with tokens taken of each. At least one.

        ``every_end``: also paths that end inside a chunk that another lineage fills.
        """
        chunks = self.chunks(ids, ready=ready)
        plan = [(piece, piece.n_tokens) for piece in chunks]
        rest = ids[len(chunks) * self.chunk_tokens :][: self.chunk_tokens]
        parent = chunks[-1].id if chunks else self.root
        for behind in self.covers(parent, rest, ready=ready):
            yield [*plan, *behind]
        for number in range(len(chunks) - 1 if every_end else -1, -1, -1):
            own = ids[number * self.chunk_tokens :][: self.chunk_tokens]
            for chain in self.deltas(chunks[number].parent, own, ready=ready):
                if chain:
                    yield [*plan[:number], *((p, p.n_tokens) for p in chain)]

    def covers(self, parent: bytes, rest: Ids, *, ready: bool) -> Iterator[list[tuple[Piece, int]]]:
        """Yield the paths that cover a prefix of ``rest`` after ``parent``: whole deltas, then a part of one piece."""
        for chain in self.deltas(parent, rest, ready=ready):
            done = sum(p.n_tokens for p in chain)
            partial, take = self._partial(chain[-1].id if chain else parent, rest[done:], ready)
            more = [(partial, take)] if partial is not None and take else []
            yield [*((p, p.n_tokens) for p in chain), *more]

    def plan(self, ids: Ids, *, ready: bool = True) -> list[tuple[Piece, int]]:
        """Return the pieces of the longest stored prefix of ``ids``, with tokens taken of each."""
        return max(self.paths(ids, ready=ready), key=n_tokens)

    def tail(self, parent: bytes, rest: Ids) -> list[tuple[Piece, int]]:
        """Return the readable pieces that cover the longest prefix of ``rest``, less than a chunk, after ``parent``."""
        return max(self.covers(parent, rest, ready=True), key=n_tokens)

    def _delta_lengths(self, parent: bytes) -> list[int]:
        found = self._children.get(parent)
        if isinstance(found, Piece):
            return [found.n_tokens] if found.n_tokens < self.chunk_tokens else []
        return [] if found is None else list(found.deltas)

    def _partial(self, parent: bytes, rest: Ids, ready: bool) -> tuple[Piece | None, int]:
        """Return the child that shares the longest prefix with ``rest``, and that length."""
        found = self._children.get(parent)
        if found is None or not len(rest):
            return None, 0
        if isinstance(found, Piece):
            usable = found.segment.is_readable or not ready
            return (found, common_prefix(self.ids(found), rest)) if usable else (None, 0)
        best: Piece | None = None
        best_take = 0
        for piece in self._neighbours(found, rest, ready):
            take = common_prefix(self.ids(piece), rest)
            if take > best_take:
                best, best_take = piece, take
        return best, best_take

    def _neighbours(self, siblings: _Siblings, rest: Ids, ready: bool) -> Iterator[Piece]:
        """Yield the nearest usable pieces before and after ``rest`` in order: one shares the longest prefix."""
        head = sort_key(rest[:HEAD_IDS])
        low, high = siblings.tied(head)
        at = low
        if high - low > 1:
            if head not in siblings.ordered:
                keys = {p.id: sort_key(self.ids(p)) for p in siblings.pieces[low:high]}
                siblings.pieces[low:high] = sorted(siblings.pieces[low:high], key=lambda p: keys[p.id])
                if all(keys.values()):  # else some ids could not be read, and the order is unknown
                    siblings.ordered.add(head)
            at = bisect.bisect_left(siblings.pieces, sort_key(rest), low, high, key=lambda p: sort_key(self.ids(p)))
        for side in (range(at, len(siblings.pieces)), range(at - 1, -1, -1)):
            for i in side:
                if siblings.pieces[i].segment.is_readable or not ready:
                    yield siblings.pieces[i]
                    break

    def ids(self, piece: Piece) -> Ids:
        """Return a piece's ids; none if they cannot be read."""
        ids = self._read_ids(piece)
        return ids if ids is not None else np.zeros(0, np.uint32)
