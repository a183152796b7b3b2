"""The file of a segment: written and read tensor by tensor, every byte read is checked against its xxh3."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from agent_memory.kvcache.coding import coded, named
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.format import extents, file_sum, header, metadata, parse_header, split_sums
from agent_memory.log.damage import READ_ERRORS, DamageError, reason_of
from agent_memory.log.files import Files, make_folders, size_of
from agent_memory.prefix.names import TEMP_SUFFIX
from agent_memory.prefix.pieces import Ids, Segment

Rows = np.ndarray[Any, np.dtype[np.uint8]]
_IOV_MAX = 512  # POSIX promises 16, Linux and macOS take 1024
_MAX_HEADER_BYTES = 16 << 20


class SegmentWriter:
    """Writes one segment: tensors in the order of ``extents``, each in one or more parts. I/O thread only.

    ``ids``: of rows. ``state_bytes``: size of a resume segment's state. Creates the folder.
    """

    def __init__(
        self, files: Files, path: Path, segment: Segment, layout: Layout, *, ids: Ids | None, state_bytes: int | None
    ) -> None:
        self._files, self._path, self._temp = files, path, path.with_suffix(TEMP_SUFFIX)
        self._segment, self._metadata = segment, metadata(segment)
        self._places = places = extents(layout, segment, state_bytes)
        self._ids = b"" if ids is None else ids.astype("<u4").tobytes()
        self._by_tensor = {e.tensor: e for e in places if e.tensor >= 0}
        self._data_start = len(header(places, self._metadata))
        self._sums = {tensor: xxhash.xxh3_64() for tensor in self._by_tensor}
        self._written = dict.fromkeys(self._by_tensor, 0)
        self._fd: int | None = None
        make_folders(files, path.parent)

    @property
    def n_bytes(self) -> int:
        """Size of the finished file."""
        last = self._places[-1]
        return self._data_start + last.start + last.nbytes

    def tensor_bytes(self, tensor: int) -> int:
        """Return the size of one tensor."""
        return self._by_tensor[tensor].nbytes

    def _open(self) -> int:
        if self._fd is None:
            self._fd = self._files.create(self._temp)
        return self._fd

    def write(self, tensor: int, data: memoryview) -> None:
        """Write the next bytes of one tensor."""
        fd = self._open()
        place = self._by_tensor[tensor]
        at = self._written[tensor]
        if at + len(data) > place.nbytes:
            raise ValueError(f"tensor {place.name}: {at + len(data)} bytes given, {place.nbytes} expected")
        self._files.write(fd, data, self._data_start + place.start + at)
        self._sums[tensor].update(data)
        self._written[tensor] = at + len(data)

    def finish(self) -> None:
        """Write ids, padding and header, fsync, rename; record sizes and checksum in the segment."""
        if any(self._written[tensor] != e.nbytes for tensor, e in self._by_tensor.items()):
            raise ValueError("the file is not complete")
        fd = self._open()
        sums = []
        for e in self._places:
            if e.tensor < 0:
                data = memoryview(self._ids if e.tensor == -1 else bytes(e.nbytes))
                self._files.write(fd, data, self._data_start + e.start)
            if e.tensor != -2:
                sums.append(self._sums[e.tensor].hexdigest() if e.tensor >= 0 else file_sum(self._ids))
        raw = header(self._places, self._metadata, sums)
        self._files.write(fd, memoryview(raw), 0)
        self._files.sync(fd)
        held_bytes = size_of(os.fstat(fd)).held_bytes
        os.close(fd)
        self._fd = None
        self._files.rename(self._temp, self._path)
        self._segment.n_bytes, self._segment.held_bytes = self.n_bytes, held_bytes
        self._segment.header_xxh3 = parse_header(raw)[0]["header_xxh3"]

    def abandon(self) -> None:
        """Close and remove the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._files.unlink(self._temp)


class OpenSegment:
    """The file of a segment opened for reading, its header checked."""

    def __init__(self, path: Path, segment: Segment) -> None:
        self._segment = segment
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise DamageError(reason_of(error), f"{path.name}: {error.strerror}") from error
        try:
            self.metadata, self.table, self.data_start = read_header(self.fd, segment.n_bytes)
            self.sums = split_sums(self.metadata)
            self.codec = named(self.metadata["codec"])
            if self.metadata["header_xxh3"] != segment.header_xxh3:
                raise DamageError("damaged", "the header is not the one that was written")
            self._compare()
        except READ_ERRORS as error:
            self.close()
            raise DamageError(reason_of(error), f"{path.name}: {error}") from error

    def _compare(self) -> None:
        """Compare the manifest's row, which has no checksum, with the header."""
        told = metadata(self._segment)
        if self._segment.kind == "resume":
            if ("state" in self.table) != self._segment.has_state:
                raise DamageError("damaged", "the manifest says otherwise what it holds")
            del told["codec"], told["host"]  # the manifest has no columns for these
        if wrong := [key for key, value in told.items() if self.metadata.get(key) != value]:
            raise DamageError("damaged", f"the manifest says otherwise of its {wrong[0]}")

    def ids(self) -> Ids:
        """Return the ids of its tokens, checked."""
        place, n_bytes = self.table["ids"]["data_offsets"], 4 * self._segment.n_tokens
        raw = os.pread(self.fd, n_bytes, self.data_start + place[0])
        if len(raw) != n_bytes or file_sum(raw) != self.sums[-1]:
            raise DamageError("damaged", "the ids' checksum is wrong")
        return np.frombuffer(raw, "<u4")

    def tensor(self, name: str, number: int) -> memoryview:
        """Return one whole tensor, checked; ``number``: its position among the checksums."""
        start, stop = self.table[name]["data_offsets"]
        raw = memoryview(bytearray(stop - start))
        preadv(self.fd, [raw] if raw else [], self.data_start + start)
        if file_sum(raw) != self.sums[number]:
            raise DamageError("damaged", f"the checksum of {name} is wrong")
        return raw

    def rows(self, layout: Layout, tensor: int, start: int, stop: int) -> Rows:
        """Return rows ``[start, stop)`` of one full-attention tensor as stored, checked: (heads, n, row_bytes) uint8.

        Counted from the file's first. The whole tensor is read.
        """
        spec = coded(layout.tensors[tensor], self.codec)
        raw = np.frombuffer(self.tensor(spec.name, tensor), np.uint8)
        return raw.reshape(spec.heads, self._segment.n_own, spec.row_bytes)[:, start:stop]

    def close(self) -> None:
        """Close the file; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_header(fd: int, n_bytes: int) -> tuple[dict[str, str], dict[str, Any], int]:
    """Return metadata, tensor table and start of the data section. Raises ValueError if file or header is damaged."""
    size = os.fstat(fd).st_size
    if size != n_bytes:
        raise ValueError(f"the file has {size:,} bytes, {n_bytes:,} were written")
    first = os.pread(fd, 16384, 0)
    length = 8 + struct.unpack("<Q", first[:8])[0] if len(first) >= 8 else 0
    if not 8 < length <= min(size, _MAX_HEADER_BYTES):
        raise ValueError("the header's length is wrong")
    raw = first[:length] if length <= len(first) else first + os.pread(fd, length - len(first), len(first))
    return *parse_header(raw), length


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
