"""Segment files: written as tensors come, read straight into a KV's buffers, every byte checked against its xxh3."""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from attrs import frozen

from agent_memory.config import Codec
from agent_memory.errors import AgentMemoryError
from agent_memory.kvcache.coding import Encoded, coded, coding, named
from agent_memory.kvcache.layout import Layout
from agent_memory.log.files import Files, make_folders, size_of
from agent_memory.log.place import is_passing
from agent_memory.prefix.index import Segment
from agent_memory.prefix.resume import Side
from agent_memory.store.format import TEMP_SUFFIX, Extent, extents, file_sum, header, parse_header, split_sums
from agent_memory.store.rows import facts_of

Ids = np.ndarray[Any, np.dtype[np.uint32]]
_IOV_MAX = 512  # POSIX promises 16, Linux and macOS take 1024
_CHECKED_BYTES = 512 << 10  #: read, then checked while they are in the core's cache: 13 % of the time, else 50 %
_MAX_HEADER_BYTES = 16 << 20


class DamageError(Exception):
    """Inside the room: a segment is not what was written, or cannot be read. ``reason``: see ``reason_of``."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


#: What reading a file of unknown content may raise.
READ_ERRORS = (DamageError, OSError, ValueError, KeyError, IndexError, MemoryError, StopIteration)


def reason_of(error: BaseException) -> str:
    """Why a file could not be used: "damaged", "missing", or "unreadable" where it may be readable later."""
    if isinstance(error, DamageError):
        return error.reason
    return "unreadable" if is_passing(error) else "missing" if isinstance(error, OSError) else "damaged"


WRITE_ERRORS = (OSError, sqlite3.Error, ValueError, DamageError, AgentMemoryError)  #: what ends a save, and no more


class SegmentWriter:
    """One file on its way to disk: tensors in the order of ``places``, each in one or more pieces. I/O thread only.

    ``metadata``: the header's, without checksums. ``ids``: of a segment; side files have none. The folder is made.
    """

    def __init__(
        self, files: Files, path: Path, places: Sequence[Extent], metadata: Mapping[str, str], ids: Ids | None = None
    ) -> None:
        self._files, self._path, self._temp = files, path, path.with_suffix(TEMP_SUFFIX)
        self._places, self._metadata = places, metadata
        self._ids = b"" if ids is None else ids.astype("<u4").tobytes()
        self._by_tensor = {e.tensor: e for e in places if e.tensor >= 0}
        self._data_start = len(header(places, metadata))
        self._sums = {tensor: xxhash.xxh3_64() for tensor in self._by_tensor}
        self._written = dict.fromkeys(self._by_tensor, 0)
        self._fd: int | None = None
        self.held_bytes = 0  #: allocated, once it is finished
        make_folders(files, path.parent)

    @property
    def n_bytes(self) -> int:
        """Size of the finished file."""
        last = self._places[-1]
        return self._data_start + last.start + last.nbytes

    def _open(self) -> int:
        if self._fd is None:
            self._fd = self._files.create(self._temp)
        return self._fd

    def write(self, tensor: int, data: memoryview) -> None:
        """The next bytes of one tensor."""
        fd = self._open()
        place = self._by_tensor[tensor]
        at = self._written[tensor]
        if at + len(data) > place.nbytes:
            raise ValueError(f"tensor {place.name}: {at + len(data)} bytes given, {place.nbytes} expected")
        self._files.write(fd, data, self._data_start + place.start + at)
        self._sums[tensor].update(data)
        self._written[tensor] = at + len(data)

    def finish(self) -> str:
        """Write ids, padding and header, fsync, rename; give the header's checksum."""
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
        self.held_bytes = size_of(os.fstat(fd)).held_bytes
        os.close(fd)
        self._fd = None
        self._files.rename(self._temp, self._path)
        return parse_header(raw)[0]["header_xxh3"]

    def abandon(self) -> None:
        """Close and remove whatever there is."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._files.unlink(self._temp)


class OpenSegment:
    """A segment or side file opened for reading, its header checked."""

    def __init__(self, path: Path, segment: Segment | Side) -> None:
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
            self._compare(segment)
        except READ_ERRORS as error:
            self.close()
            raise DamageError(reason_of(error), f"{path.name}: {error}") from error

    def _compare(self, segment: Segment | Side) -> None:
        """The manifest's row has no checksum: it must say what the header says."""
        if isinstance(segment, Segment):
            told = facts_of(segment).metadata
        else:
            n_rows, has_state = int(self.metadata["stop"]) - int(self.metadata["start"]), "state" in self.table
            told = {"piece": segment.piece.hex()}
            if (n_rows, has_state) != (segment.n_rows, segment.has_state):
                raise DamageError("damaged", "the manifest says otherwise what it holds")
        if wrong := [key for key, value in told.items() if self.metadata.get(key) != value]:
            raise DamageError("damaged", f"the manifest says otherwise of its {wrong[0]}")

    def ids(self, n_tokens: int) -> Ids:
        """The whole segment's ids, checked."""
        place = self.table["ids"]["data_offsets"]
        raw = os.pread(self.fd, 4 * n_tokens, self.data_start + place[0])
        if len(raw) != 4 * n_tokens or file_sum(raw) != self.sums[-1]:
            raise DamageError("damaged", "the ids' checksum is wrong")
        return np.frombuffer(raw, "<u4")

    def tensor(self, name: str, number: int) -> memoryview:
        """One whole tensor, checked; ``number``: its place among the checksums."""
        start, stop = self.table[name]["data_offsets"]
        raw = memoryview(bytearray(stop - start))
        preadv(self.fd, [raw] if raw else [], self.data_start + start)
        if file_sum(raw) != self.sums[number]:
            raise DamageError("damaged", f"the checksum of {name} is wrong")
        return raw

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_header(fd: int, n_bytes: int) -> tuple[dict[str, str], dict[str, Any], int]:
    """Metadata, tensor table and start of the data section; ValueError where the file or its header is damaged."""
    size = os.fstat(fd).st_size
    if size != n_bytes:
        raise ValueError(f"the file has {size:,} bytes, {n_bytes:,} were written")
    first = os.pread(fd, 16384, 0)
    length = 8 + struct.unpack("<Q", first[:8])[0] if len(first) >= 8 else 0
    if not 8 < length <= min(size, _MAX_HEADER_BYTES):
        raise ValueError("the header's length is wrong")
    raw = first[:length] if length <= len(first) else first + os.pread(fd, length - len(first), len(first))
    metadata, table = parse_header(raw)
    return metadata, table, length


@frozen
class Span:
    """Tokens ``[0, take)`` of one segment, wanted from ``at`` on in the KV that is filled."""

    segment: Segment
    path: Path
    at: int
    take: int


class SegmentSource:
    """The first ``n_tokens`` of a match on their way into a KV, each segment in its own codec; implements
    ``protocols.Source``.

    ``on_damage(segment, reason, text)`` is called at most once, from whatever thread found it; nothing here raises.
    Tensors may be read by several threads at once, all of which have ended before ``close``.
    """

    def __init__(
        self, layout: Layout, spans: Sequence[Span], ids: Ids, on_damage: Callable[[Segment, str, str], None]
    ) -> None:
        self._layout, self._spans, self._on_damage = layout, spans, on_damage
        self._n_tokens = len(ids)
        self._lock = threading.Lock()  # of ``damage``
        self._open: list[OpenSegment] = []
        self._places: dict[tuple[int, Codec], dict[int, Extent]] = {}
        self.damage: str | None = None
        self._cut: int = self._n_tokens  # tokens from here on are zeros
        for span in spans:
            try:
                found = OpenSegment(span.path, span.segment)
                self._open.append(found)
                stored = found.ids(span.segment.n_tokens)[: span.take]
                if not np.array_equal(stored, ids[span.at : span.at + span.take]):
                    raise DamageError("damaged", f"{span.path.name}: it holds other ids than the index says")
            except READ_ERRORS as error:
                self._note(span, error)
                break
            key = span.segment.n_tokens, found.codec
            if key not in self._places:
                self._places[key] = {e.tensor: e for e in extents(layout, *key)}

    @property
    def n_tokens(self) -> int:
        """How many tokens it holds."""
        return self._n_tokens

    @property
    def held_from(self) -> int:
        """0: there are no sliding-window layers."""
        return 0

    def encoded(self, tensor: int) -> list[Encoded]:
        """The spans whose rows are stored encoded, checked."""
        spec = self._layout.tensors[tensor]
        found: list[Encoded] = []
        for i, span in enumerate(self._spans):
            if self.damage is not None:
                break
            form = coding(spec, self._open[i].codec)
            if form is None:
                continue
            try:
                raw = self._open[i].tensor(spec.name, tensor)
            except READ_ERRORS as error:
                self._note(span, error)
                break
            rows = np.frombuffer(raw, np.uint8).reshape(spec.heads, -1, form.row_bytes)
            found.append(Encoded(span.at, span.at + span.take, form, rows[:, : span.take]))
        return found

    def read_state(self) -> None:
        """None: there is no state."""

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        """Fill one tensor: one ``preadv`` per segment, scattered over the heads of ``out``, and checked."""
        spec = self._layout.tensors[tensor]
        flat = out.cast("B") if out.format != "B" or out.ndim != 1 else out
        for i, span in enumerate(self._spans):
            if self.damage is None:
                if coding(spec, self._open[i].codec) is not None:
                    continue  # ``encoded`` gives it
                try:
                    self._read(i, span, tensor, flat, capacity)
                    continue
                except READ_ERRORS as error:
                    self._note(span, error)
            self._zero(tensor, flat, capacity, span.at)
            break

    def _read(self, i: int, span: Span, tensor: int, out: memoryview, capacity: int) -> None:
        spec, source = self._layout.tensors[tensor], self._open[i]
        row = spec.row_bytes
        n = span.segment.n_tokens
        place = source.data_start + self._places[n, source.codec][tensor].start
        runs = [
            out[(h * capacity + span.at) * row : (h * capacity + span.at + span.take) * row] for h in range(spec.heads)
        ]
        scratch = None if span.take == n else memoryview(bytearray(spec.token_bytes * n))
        digest = xxhash.xxh3_64()
        for group in _groups(runs if scratch is None else [scratch]):
            preadv(source.fd, group, place)
            for part in group:
                digest.update(part)
                place += len(part)
        if scratch is not None:
            for h, run in enumerate(runs):
                run[:] = scratch[h * n * row : (h * n + span.take) * row]
        if digest.hexdigest() != source.sums[tensor]:
            raise DamageError("damaged", f"{span.path.name}: the checksum of {spec.name} is wrong")

    def _zero(self, tensor: int, out: memoryview, capacity: int, at: int) -> None:
        spec = self._layout.tensors[tensor]
        for h in range(spec.heads):
            run = out[(h * capacity + at) * spec.row_bytes : (h * capacity + self._n_tokens) * spec.row_bytes]
            run[:] = bytes(len(run))

    def _note(self, span: Span, error: BaseException) -> None:
        with self._lock:
            is_first, self.damage = self.damage is None, self.damage or str(error)
        if is_first:
            self._on_damage(span.segment, reason_of(error), str(error))

    def check(self) -> bool:
        """Whether everything read so far was what had been written."""
        return self.damage is None

    def close(self) -> None:
        """Give the files back; idempotent."""
        for found in self._open:
            found.close()


def _groups(runs: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The same bytes in the same order, in groups of ``_CHECKED_BYTES``."""
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


def preadv(fd: int, runs: Sequence[memoryview], at: int) -> None:
    """Fill ``runs`` in order from ``at`` on; DamageError where the file ends before."""
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


def copy_prefix(source: Path, segment: Segment, writer: SegmentWriter, layout: Layout, n_tokens: int) -> str:
    """Write the first ``n_tokens`` of a segment as another one, checked on the way; the new header's checksum."""
    found = OpenSegment(source, segment)
    try:
        for i, spec in enumerate(coded(t, found.codec) for t in layout.tensors):
            raw = found.tensor(spec.name, i)
            run = segment.n_tokens * spec.row_bytes
            for h in range(spec.heads):
                writer.write(i, raw[h * run : h * run + n_tokens * spec.row_bytes])
        return writer.finish()
    finally:
        found.close()
