"""Provenance: how the KV of each token came about, and so in which codec it may be stored. Pure.

- Rows decoded from a lossy codec are never encoded again. Where a new piece includes them, their stored bytes are
  reused; if those bytes are gone, the values are stored exactly, marked as quantized.
- KV that follows stored KV of another run is ``recomputed``: what it was computed on is not what is stored before it
  (docs/exactness.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from attrs import evolve, field, frozen

from agent_memory.config import Codec
from agent_memory.prefix.authors import Origins, authors_in, origin, repeated, runs, unpacked
from agent_memory.prefix.index import Index, n_tokens
from agent_memory.prefix.pieces import Ids, Piece, Segment
from agent_memory.types import Exactness, weakest

Made = Literal[1, 2, 3]
MADE: Mapping[int, str] = {1: "prefill", 2: "decode", 3: "mixed"}
#: Flag added to a token's provenance: its KV was decoded from a lossy codec, and is never encoded again.
DECODED = 4
SEGMENT_CHUNKS = 8  #: chunks in one segment, at most
#: Tail deltas before they are merged. Turns of 16 tokens and more never reach it and write at most twice their bytes.
MAX_DELTAS = 16

Stored = tuple[tuple[Piece, int], ...]  #: pieces, with tokens taken of each


@frozen
class Provenance:
    """How the KV of a lineage's tokens came about."""

    made: Origins = field(eq=False, repr=False)  #: per token: a key of ``MADE``, ``DECODED``, and the author above them
    exactness: Exactness  #: the weakest of all tokens

    def n_decoded(self, start: int, stop: int) -> int:
        """Count the tokens of ``[start, stop)`` whose KV was decoded from a lossy codec."""
        return int(np.count_nonzero(self.made[start:stop] & DECODED))

    def made_by(self, start: int, stop: int) -> int:
        """Return prefill, decode or mixed for tokens ``[start, stop)``: a key of ``MADE``."""
        kinds = {int(m) for m in np.unique(self.made[start:stop] & 3)}
        return kinds.pop() if len(kinds) == 1 else 3

    @property
    def authors(self) -> Origins:
        """Who computed the KV of each token (``prefix/authors.py``)."""
        return authors_in(self.made)

    def n_alike(self, taken: Stored, renewed: Collection[int] = ()) -> int:
        """Return how many leading tokens have the bits of stored pieces, the first of which begins at token 0.

        All of them if no piece is of another run. Lossy pieces never have the bits; those of segments ``renewed``
        (numbers) soon will.
        """
        taken = tuple((piece, take) for piece, take in taken if piece.start < len(self.made))
        stored = unpacked((piece.authors, take) for piece, take in taken)[: len(self.made)]
        differs = stored != self.authors[: len(stored)]
        for piece, take in taken:
            own = slice(piece.start, piece.start + take)
            if piece.segment.number in renewed:
                differs[own] = False
            elif piece.segment.exactness == "quantized":
                differs[own] = True
        return int(differs.argmax()) if differs.any() else len(self.made)

    def promise(self, stop: int, n_alike: int) -> Exactness:
        """Return what may be said of its KV behind tokens ``[0, stop)`` as stored; ``n_alike``: of a call before."""
        return self.exactness if stop <= n_alike else weakest(self.exactness, "recomputed")


def made_of(piece: Piece) -> int:
    """Return the flags of the tokens of a restored piece."""
    return piece.made | (DECODED if piece.segment.exactness == "quantized" else 0)


def made_of_all(taken: Sequence[tuple[Piece, int]]) -> Origins:
    """Return the provenance of each token taken of some pieces."""
    found: list[tuple[int, int]] = []
    for piece, take in taken:
        of, flags = piece.authors, made_of(piece)
        if isinstance(of, int):
            found.append((origin(of, flags), take))
        else:
            found += [(origin(author, flags), n) for author, n in runs(of, take)]
    return repeated(found)


@frozen
class Run:
    """Tokens ``[start, stop)`` of a lineage, to be written as one segment."""

    start: int
    stop: int
    before: Piece | None  #: the piece that it follows; None: the last piece of the run before this one, or the root
    codec: Codec = "exact"
    #: pieces whose stored rows are reused for the first tokens, with how many of each
    stored: Stored = ()
    source: Segment | None = None  #: has the last of the rows that are shared
    n_shared: int = 0  #: first tokens whose rows are not written, because other segments keep them


def missing(index: Index, ids: Ids, *, is_cuttable: bool) -> tuple[list[Run], bytes, Piece | None]:
    """Return the runs of ``ids`` that are neither stored nor being saved, the head if there are none, and the last
    stored piece.

    ``is_cuttable``: every layer can be truncated at any token, so a longer piece of another lineage covers a tail.
    """
    chunks = index.chunks(ids, ready=False)
    size = index.chunk_tokens
    done, full = len(chunks) * size, len(ids) // size * size
    last = chunks[-1] if chunks else None
    step = SEGMENT_CHUNKS * size
    runs = [Run(a, min(a + step, full), last if a == done else None) for a in range(done, full, step)]
    if runs or full == len(ids):
        if full < len(ids):
            runs.append(Run(full, len(ids), None))
        return runs, last.id if last else index.root, last
    plan = index.plan(ids, ready=False)
    if n_tokens(plan) == len(ids) and (is_cuttable or plan[-1][0].n_tokens == plan[-1][1]):
        return [], plan[-1][0].id, plan[-1][0]  # a longer piece of another lineage may cover the tail
    chain = max(
        index.deltas(last.id if last else index.root, ids[full:], ready=False),
        key=lambda c: sum(p.n_tokens for p in c),
    )
    if n_tokens([(piece, piece.n_tokens) for piece in chain]) == len(ids) - full:
        return [], chain[-1].id, chain[-1]  # although a longer piece begins with the same tokens
    if len(chain) >= MAX_DELTAS:
        chain = []
    before = chain[-1] if chain else last
    return [Run(full + sum(p.n_tokens for p in chain), len(ids), before)], index.root, before


def coded_runs(runs: Iterable[Run], index: Index, ids: Ids, lineage: Provenance, codec: Codec) -> Iterator[Run]:
    """Split runs where their codec changes. Every run starts at a piece."""
    for run in runs:
        if codec == "exact" or not lineage.n_decoded(run.start, run.stop):
            yield evolve(run, codec=codec)
            continue
        found: list[Run] = []
        for start in range(run.start, run.stop, index.chunk_tokens):
            part = _part(start, min(start + index.chunk_tokens, run.stop), index, ids, lineage, codec)
            if found and found[-1].codec == part.codec and not (found[-1].stored or part.stored):
                found[-1] = evolve(found[-1], stop=part.stop)
            else:
                found.append(part)
        yield evolve(found[0], before=run.before)
        yield from found[1:]


def _part(start: int, stop: int, index: Index, ids: Ids, lineage: Provenance, codec: Codec) -> Run:
    """Plan one piece: encoded if none of its rows were decoded, or if those that were come first and are stored."""
    n = lineage.n_decoded(start, stop)
    if not n:
        return Run(start, stop, None, codec)
    stored = [(piece, take) for piece, take in index.plan(ids[: start + n]) if piece.start >= start]
    codecs = {piece.segment.codec for piece, _ in stored}
    is_first = lineage.n_decoded(start, start + n) == n
    if is_first and n_tokens(stored) == n and len(codecs) == 1 and "exact" not in codecs:
        return Run(start, stop, None, codecs.pop(), tuple(stored))
    return Run(start, stop, None, "exact")
