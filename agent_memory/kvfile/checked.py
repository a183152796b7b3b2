"""The body of a segment's file that is not encrypted: tensors as they are, each with its xxh3 in the header."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xxhash

from agent_memory.kvfile.format import Extent, file_sum, header, parse_header, split_sums
from agent_memory.log.damage import DamageError
from agent_memory.log.files import Files

_IOV_MAX = 512  # POSIX promises 16, Linux and macOS take 1024
_MAX_HEADER_BYTES = 16 << 20
_CHECKED_BYTES = 512 << 10  #: checked while they are in the core's cache: 13 % of the time, else 50 %
STEP_BYTES = 8 << 20  #: most bytes between two steps of a check


class CheckedWriter:
    """Writes tensors to their places, and the header with their checksums last. I/O thread only."""

    def __init__(self, places: Sequence[Extent], facts: Mapping[str, str]) -> None:
        self._places, self._facts = places, facts
        self._data_start = len(header(places, facts))
        self._sums = {e.tensor: xxhash.xxh3_64() for e in places if e.tensor >= 0}

    @property
    def n_bytes(self) -> int:
        """Size of the finished file."""
        last = self._places[-1]
        return self._data_start + last.start + last.nbytes

    def write(self, files: Files, fd: int, place: Extent, at: int, data: memoryview) -> None:
        """Write the next bytes of one tensor, which has ``at`` before them."""
        files.write(fd, data, self._data_start + place.start + at)
        self._sums[place.tensor].update(data)

    def finish(self, files: Files, fd: int, ids: bytes) -> str:
        """Write ids, padding and header; return the header's checksum."""
        sums = []
        for e in self._places:
            if e.tensor < 0:
                data = memoryview(ids if e.tensor == -1 else bytes(e.nbytes))
                files.write(fd, data, self._data_start + e.start)
            if e.tensor != -2:
                sums.append(self._sums[e.tensor].hexdigest() if e.tensor >= 0 else file_sum(ids))
        raw = header(self._places, self._facts, sums)
        files.write(fd, memoryview(raw), 0)
        return parse_header(raw)[0]["header_xxh3"]


class CheckedReader:
    """An open file whose header was checked; whatever it returns is checked too. Any thread.

    Raises ValueError if file or header is damaged, and what ``READ_ERRORS`` names.
    """

    def __init__(self, fd: int, n_bytes: int) -> None:
        self._fd = fd
        self.metadata, self.table, self._data_start = _read_header(fd, n_bytes)
        self.header_sum = self.metadata["header_xxh3"]
        names = [name for name in self.table if not name.startswith("pad.")]
        self._sums = dict(zip(names, split_sums(self.metadata), strict=False))

    def tensor(self, name: str) -> memoryview:
        """Return one whole tensor, or the ids."""
        start, stop = self.table[name]["data_offsets"]
        raw = memoryview(bytearray(stop - start))
        preadv(self._fd, [raw] if raw else [], self._data_start + start)
        self._ensure(name, file_sum(raw))
        return raw

    def fill(self, name: str, runs: Sequence[memoryview], first: int) -> None:
        """Fill one run of each head of a tensor, ``first`` bytes from the head's start on: one ``preadv``, scattered.

        All of the tensor is read.
        """
        start, stop = self.table[name]["data_offsets"]
        head, place = (stop - start) // max(1, len(runs)), self._data_start + start
        scratch = None if all(len(run) == head for run in runs) else memoryview(bytearray(stop - start))
        digest = xxhash.xxh3_64()
        for group in _groups(runs if scratch is None else [scratch]):
            preadv(self._fd, group, place)
            for part in group:
                digest.update(part)
                place += len(part)
        if scratch is not None:
            for h, run in enumerate(runs):
                run[:] = scratch[h * head + first : h * head + first + len(run)]
        self._ensure(name, digest.hexdigest())

    def checking(self, name: str) -> Iterator[None]:
        """Check one entry of the table, padding included, in steps of at most ``STEP_BYTES``."""
        start, stop = self.table[name]["data_offsets"]
        digest, is_padding, is_zero = xxhash.xxh3_64(), name.startswith("pad."), True
        for raw in _blocks(self._fd, self._data_start + start, stop - start):
            digest.update(raw)
            yield
            is_zero = is_zero and is_padding and not any(raw)
        if is_padding and not is_zero:
            raise DamageError("damaged", f"{name} is not zero")
        if not is_padding:
            self._ensure(name, digest.hexdigest())

    def _ensure(self, name: str, found: str) -> None:
        if found != self._sums.get(name):
            raise DamageError("damaged", f"the checksum of {name} is wrong")


def _read_header(fd: int, n_bytes: int) -> tuple[dict[str, str], dict[str, Any], int]:
    """Return metadata, tensor table and start of the data section. Raises ValueError if file or header is damaged."""
    raw = read_start(fd, n_bytes, 0)
    return *parse_header(raw), len(raw)


def read_start(fd: int, n_bytes: int, at: int) -> bytes:
    """Return a file's bytes up to the end of its header, whose length is the u64 in bytes ``[at, at + 8)``.

    Raises ValueError if the file has not ``n_bytes``, or no such header.
    """
    size = os.fstat(fd).st_size
    if size != n_bytes:
        raise ValueError(f"the file has {size:,} bytes, {n_bytes:,} were written")
    first = os.pread(fd, 16384, 0)
    length = at + 8 + struct.unpack_from("<Q", first, at)[0] if len(first) >= at + 8 else 0
    if not at + 8 < length <= min(size, _MAX_HEADER_BYTES):
        raise ValueError("the header's length is wrong")
    raw = first[:length] + os.pread(fd, max(0, length - len(first)), len(first))
    if len(raw) != length:
        raise ValueError("the file ends within its header")
    return raw


def preadv(fd: int, runs: Sequence[memoryview], at: int) -> None:
    """Fill ``runs`` in order from ``at`` on. Raises DamageError if the file ends before."""
    for first in range(0, len(runs), _IOV_MAX):
        group = list(runs[first : first + _IOV_MAX])
        while group:
            n = os.preadv(fd, group, at)
            if n == 0:
                raise DamageError("damaged", "the file ends too early")
            at += n
            while group and n >= len(group[0]):
                n -= len(group.pop(0))
            if group and n:
                group[0] = group[0][n:]


def _groups(runs: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Yield the same bytes in the same order, in groups of ``_CHECKED_BYTES``."""
    group, room = list[memoryview](), _CHECKED_BYTES
    for run in runs:
        while len(run):
            group.append(run[:room])
            run, room = run[room:], room - len(group[-1])
            if not room:
                yield group
                group, room = [], _CHECKED_BYTES
    if group:
        yield group


def _blocks(fd: int, at: int, nbytes: int) -> Iterator[bytes]:
    while nbytes > 0:
        raw = os.pread(fd, min(nbytes, STEP_BYTES), at)
        if not raw:
            raise DamageError("damaged", "the file ends too early")
        yield raw
        at, nbytes = at + len(raw), nbytes - len(raw)
