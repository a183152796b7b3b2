"""The file of a segment: written and read tensor by tensor, every byte read is checked.

Its body is in one of two forms, which this file chooses between: ``checked`` (as it is, with checksums), or ``sealed``
(encrypted, under the keys of the store).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from agent_memory.kvcache.coding import coded, named
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.checked import CheckedReader, CheckedWriter
from agent_memory.kvfile.format import Extent, extents, metadata
from agent_memory.kvfile.sealed import SealedReader, SealedWriter, sealed_ids
from agent_memory.log.damage import READ_ERRORS, DamageError, reason_of
from agent_memory.log.files import Files, make_folders, size_of
from agent_memory.prefix.names import TEMP_SUFFIX
from agent_memory.prefix.pieces import Ids, Segment
from agent_memory.sealing.keys import Keys
from agent_memory.types import EXACTNESS, Exactness, weakest

Rows = np.ndarray[Any, np.dtype[np.uint8]]


class SegmentWriter:
    """Writes one segment: tensors in the order of ``extents``, each in one or more parts. I/O thread only.

    ``ids``: of rows. ``state_bytes``: size of a resume segment's state. ``keys``: the file is encrypted under them.
    Creates the folder.
    """

    def __init__(
        self,
        files: Files,
        path: Path,
        segment: Segment,
        layout: Layout,
        *,
        ids: Ids | None,
        state_bytes: int | None,
        keys: Keys | None,
    ) -> None:
        self._files, self._path, self._temp = files, path, path.with_suffix(TEMP_SUFFIX)
        self._segment = segment
        places, facts = extents(layout, segment, state_bytes), metadata(segment)
        self._body: CheckedWriter | SealedWriter
        self._body = CheckedWriter(places, facts) if keys is None else SealedWriter(path.name, places, facts, keys)
        self._ids = b"" if ids is None else ids.astype("<u4").tobytes()
        self._by_tensor = {e.tensor: e for e in places if e.tensor >= 0}
        self._written = dict.fromkeys(self._by_tensor, 0)
        self._fd: int | None = None
        make_folders(files, path.parent)

    @property
    def n_bytes(self) -> int:
        """Size of the finished file."""
        return self._body.n_bytes

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
        self._body.write(self._files, fd, place, at, data)
        self._written[tensor] = at + len(data)

    def finish(self) -> None:
        """Write ids, padding and header, fsync, rename; record sizes and checksum in the segment."""
        if any(self._written[tensor] != e.nbytes for tensor, e in self._by_tensor.items()):
            raise ValueError("the file is not complete")
        fd = self._open()
        header_sum = self._body.finish(self._files, fd, self._ids)
        self._files.sync(fd)
        held_bytes = size_of(os.fstat(fd)).held_bytes
        os.close(fd)
        self._fd = None
        self._files.rename(self._temp, self._path)
        self._segment.n_bytes, self._segment.held_bytes = self.n_bytes, held_bytes
        self._segment.header_xxh3 = header_sum

    def abandon(self) -> None:
        """Close and remove the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._files.unlink(self._temp)


class OpenSegment:
    """The file of a segment opened for reading, its header checked. ``keys``: of an encrypted store."""

    def __init__(self, path: Path, segment: Segment, keys: Keys | None) -> None:
        self._segment = segment
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise DamageError(reason_of(error), f"{path.name}: {error.strerror}") from error
        try:
            self._body = body_of(self._fd, segment.n_bytes, path.name, keys)
            self.metadata, self.table = self._body.metadata, self._body.table
            self.codec = named(self.metadata["codec"])
            self.exactness = promise_of(self.metadata, segment)
            if self._body.header_sum != segment.header_xxh3:
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
            told = {
                key: told[key] for key in told if key not in ("codec", "host", "exactness")
            }  # the manifest lacks these
        if wrong := [key for key, value in told.items() if self.metadata.get(key) != value]:
            raise DamageError("damaged", f"the manifest says otherwise of its {wrong[0]}")

    def ids(self) -> Ids:
        """Return the ids of its tokens, checked."""
        raw = self._body.tensor("ids")
        if len(raw) != 4 * self._segment.n_tokens:
            raise DamageError("damaged", f"it has {len(raw):,} bytes of ids")
        return np.frombuffer(raw, "<u4")

    def tensor(self, name: str) -> memoryview:
        """Return one whole tensor, checked."""
        return self._body.tensor(name)

    def fill(self, name: str, runs: Sequence[memoryview], first: int) -> None:
        """Fill one run of each head of a tensor, ``first`` bytes from the head's start on; checked."""
        self._body.fill(name, runs, first)

    def checking(self) -> Iterator[None]:
        """Read and check every byte, in steps of at most 8 MB."""
        for name in self.table:
            yield from self._body.checking(name)

    def rows(self, layout: Layout, tensor: int, start: int, stop: int) -> Rows:
        """Return rows ``[start, stop)`` of one full-attention tensor as stored, checked: (heads, n, row_bytes) uint8.

        Counted from the file's first. The whole tensor is read.
        """
        spec = coded(layout.tensors[tensor], self.codec)
        raw = np.frombuffer(self.tensor(spec.name), np.uint8)
        return raw.reshape(spec.heads, self._segment.n_own, spec.row_bytes)[:, start:stop]

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def promise_of(metadata: Mapping[str, str], segment: Segment) -> Exactness:
    """Return the weakest of what a file says of its KV and of what is known of it.

    A resume file has it only where it is weaker than ``exact``; older ones never do. Raises ValueError.
    """
    told = metadata.get("exactness", "exact")
    return weakest(segment.exactness, EXACTNESS[EXACTNESS.index(told)])


def rewrite_under(source: OpenSegment, files: Files, path: Path, keys: Keys | None) -> tuple[int, str]:
    """Write a file's content into a new one, encrypted under other keys or none; return its size and header's checksum.

    One tensor is in memory at a time. The folder is not synced. Raises READ_ERRORS, and OSError.
    """
    places = tuple(_places(source.table))
    facts = {name: value for name, value in source.metadata.items() if name not in ("xxh3", "header_xxh3")}
    body = CheckedWriter(places, facts) if keys is None else SealedWriter(path.name, places, facts, keys)
    temp = path.with_suffix(TEMP_SUFFIX)
    fd = files.create(temp)
    try:
        try:
            for place in places:
                if place.tensor >= 0:
                    body.write(files, fd, place, 0, source.tensor(place.name))
            header_sum = body.finish(files, fd, bytes(source.tensor("ids")) if "ids" in source.table else b"")
            files.sync(fd)
        finally:
            os.close(fd)
        files.rename(temp, path)
    except BaseException:  # also Ctrl-C: else it takes space until the store is opened
        files.unlink(temp)
        raise
    return body.n_bytes, header_sum


def _places(table: Mapping[str, Any]) -> Iterator[Extent]:
    number = count()
    for name, entry in table.items():
        start, stop = entry["data_offsets"]
        tensor = -1 if name == "ids" else -2 if name.startswith("pad.") else next(number)
        yield Extent(name, entry["dtype"], tuple(entry["shape"]), start, stop - start, tensor)


def body_of(fd: int, n_bytes: int, name: str, keys: Keys | None) -> CheckedReader | SealedReader:
    """Return the body of an open file, its header checked. ``keys``: of an encrypted store, whose files are all sealed.

    Raises ValueError if file or header is damaged.
    """
    return CheckedReader(fd, n_bytes) if keys is None else SealedReader(fd, n_bytes, name, keys)


def stored_ids(path: Path, segment: Segment, keys: Keys | None, start: int = 0, stop: int | None = None) -> Ids:
    """Return ids ``[start, stop)`` of a segment from its file; none where they cannot be read. For look-ups: few KB.

    Without ``keys`` they are not verified.
    """
    stop = segment.n_tokens if stop is None else stop
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return np.zeros(0, np.uint32)
    try:
        if keys is not None:
            return np.frombuffer(sealed_ids(fd, path.name, segment.n_tokens, keys), "<u4")[start:stop]
        raw = os.pread(fd, 4 * (stop - start), segment.n_bytes - 4 * (segment.n_tokens - start))
    except READ_ERRORS:
        raw = b""
    finally:
        os.close(fd)
    return np.frombuffer(raw[: len(raw) // 4 * 4], "<u4")
