"""Authors: which run computed the KV of each token, so that a chain of two runs' KV is noticed. Pure.

A chunk's name says nothing of its bits: two runs of the same tokens may have KV that differs by rounding. So each token
carries the number of its author, beside the flags of its provenance:

- a row of the batch: every row is a run of its own;
- ``GRID``: a prefill chunk that follows nothing but whole prefill chunks, each computed by one step. Whoever computes
  these on one machine gets the same bits;
- a stored segment, for pieces whose authors this process has not seen: they stand for themselves;
- a tag of fetched KV, which is a hash of its bytes.

Numbers live as long as the process has a model open. Nothing of them is written to disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Origins = np.ndarray[Any, np.dtype[np.uint32]]  #: provenance of tokens: flags, and above them the author

GRID = 0

_FLAG_BITS = 3  #: of a token's provenance; the bits above are its author
_KIND_BITS = 27  #: of an author's number within its kind; 29 bits are an author's in all
_LOW = (1 << _KIND_BITS) - 1
_SEGMENT, _TAG = 1 << _KIND_BITS, 2 << _KIND_BITS

#: The authors of a piece's tokens: one of all, or runs of (author, tokens).
Authors = int | tuple[tuple[int, int], ...]


def of_row(number: int) -> int:
    """Return the author that a row of the batch is."""
    return 1 + number % _LOW


def of_segment(number: int) -> int:
    """Return the author that a stored segment is of its own pieces."""
    return _SEGMENT | (number & _LOW)


def of_tag(tag: str) -> int:
    """Return the author that stands for KV of one tag: 32 hexadecimal digits, of its bytes and of all before them."""
    return _TAG | (int(tag, 16) & _LOW)


def origin(author: int, flags: int) -> int:
    """Return the provenance of a token."""
    return author << _FLAG_BITS | flags


def origins(authors: Origins, flags: Origins) -> Origins:
    """Return the provenance of tokens."""
    return authors << np.uint32(_FLAG_BITS) | flags


def authors_in(made: Origins) -> Origins:
    """Return the author of each token, by its provenance."""
    return made >> np.uint32(_FLAG_BITS)


def packed(authors: Origins) -> Authors:
    """Return the authors of some tokens as a piece keeps them; equal authors in the same form."""
    if not len(authors):
        return GRID
    ends = np.flatnonzero(authors[1:] != authors[:-1]) + 1
    if not len(ends):
        return int(authors[0])
    starts = [0, *ends.tolist()]
    return tuple((int(authors[a]), b - a) for a, b in zip(starts, [*starts[1:], len(authors)], strict=True))


def runs(of: Authors, take: int) -> Sequence[tuple[int, int]]:
    """Return the authors of a piece's first tokens, in order, each with how many."""
    if isinstance(of, int):
        return ((of, take),)
    found: list[tuple[int, int]] = []
    for author, n in of:
        n = min(n, take)
        found.append((author, n))
        take -= n
    return found


def repeated(found: Iterable[tuple[int, int]]) -> Origins:
    """Return numbers, each as often as it says; neighbours that are equal cost one."""
    numbers: list[int] = []
    lengths: list[int] = []
    for number, n in found:
        if numbers and numbers[-1] == number:
            lengths[-1] += n
        else:
            numbers.append(number)
            lengths.append(n)
    return np.repeat(np.array(numbers, np.uint32), np.array(lengths, np.int64))


def unpacked(pieces: Iterable[tuple[Authors, int]]) -> Origins:
    """Return the author of each token of some pieces, each with how many tokens are taken of it."""
    return repeated(run for of, take in pieces for run in runs(of, take))
