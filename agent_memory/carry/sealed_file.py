"""Where the bytes of an agent's file are: as they are, or sealed under a key (docs/format.md, "Sealed").

- A sealed file holds a plain one in chunks. Each chunk has a key of its own, derived from random bytes in front of it,
  and is bound to the file's random id and to its place: chunks that were changed, exchanged, cut or taken from another
  file do not open.
- The header says that the file is sealed, and nothing of what is in it. How many bytes that is stands sealed in the
  header, so an end that is missing is noticed before anything is read.
- One chunk is in memory while a file is written, two while it is read.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
from pathlib import Path
from typing import Protocol

from agent_memory.errors import AgentFileError, WrongKeyError
from agent_memory.log.files import Files
from agent_memory.sealing.box import SALT_BYTES, TAG_BYTES, Box, SealBrokenError
from agent_memory.sealing.keys import Keys

NAME = b"agent_memory"  #: how every agent's file begins
PLAIN, SEALED = 1, 2  #: the versions of a file, which follow its name
MAGIC = struct.Struct("<12sI")
CHUNK_BYTES = 256 << 10
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 32
_HEAD_BYTES = MAGIC.size + SALT_BYTES + _LENGTH.size + TAG_BYTES + _DIGEST_BYTES
_MORE = SALT_BYTES + TAG_BYTES  #: bytes that a sealed chunk is longer than what it holds
_PURPOSE = "agent file"
_N_OPEN = 2  #: chunks that a reader keeps: the end of a part is read before its beginning


class Sink(Protocol):
    """Takes a plain file's bytes, from front to back."""

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Take the next bytes. Raises OSError."""
        ...

    def truncate(self, at: int) -> None:
        """Take back what was written from ``at`` on. Raises OSError."""
        ...

    def finish(self) -> None:
        """Write what is left. Raises OSError."""
        ...


class Source(Protocol):
    """Gives a plain file's bytes."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the plain file."""
        ...

    def read(self, at: int, n_bytes: int) -> bytes:
        """Return bytes of the plain file. Raises AgentFileError if they cannot be read."""
        ...


class PlainSink:
    """Writes bytes as they are."""

    def __init__(self, files: Files, fd: int) -> None:
        self._files, self._fd = files, fd

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Write bytes at their place."""
        self._files.write(self._fd, memoryview(data), at)

    def truncate(self, at: int) -> None:
        """Cut the file."""
        os.ftruncate(self._fd, at)

    def finish(self) -> None:
        """Nothing is left."""


class SealedSink:
    """Writes bytes sealed, a chunk at a time; the header comes last. Raises MissingExtraError."""

    def __init__(self, files: Files, fd: int, keys: Keys) -> None:
        self._files, self._fd, self._key = files, fd, keys.key(_PURPOSE)
        self._id = secrets.token_bytes(SALT_BYTES)
        self._open = bytearray()  # what follows the chunks that are written
        self._n_written = 0
        Box(self._key)  # raises MissingExtraError now

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Take the next bytes."""
        assert at == self._n_written * CHUNK_BYTES + len(self._open)
        view = memoryview(data).cast("B")
        while len(view):
            n_bytes = min(len(view), CHUNK_BYTES - len(self._open))
            self._open += view[:n_bytes]
            view = view[n_bytes:]
            if len(self._open) == CHUNK_BYTES:
                self._write_chunk()

    def truncate(self, at: int) -> None:
        """Take back bytes; the chunk that they begin in is sealed anew, under another key."""
        chunk = at // CHUNK_BYTES
        if chunk < self._n_written:
            sealed = os.pread(self._fd, CHUNK_BYTES + _MORE, _place(chunk))
            self._open = bytearray(_chunk_box(self._key, self._id, sealed).open(chunk, sealed[SALT_BYTES:]))
            self._n_written = chunk
            os.ftruncate(self._fd, _place(chunk))
        del self._open[at - chunk * CHUNK_BYTES :]

    def finish(self) -> None:
        """Write the last chunk and the header."""
        n_bytes = self._n_written * CHUNK_BYTES + len(self._open)
        if self._open:
            self._write_chunk()
        start = MAGIC.pack(NAME, SEALED) + self._id
        head = start + Box(self._key, start, self._id).seal(0, _LENGTH.pack(n_bytes))
        self._files.write(self._fd, memoryview(head + hashlib.sha256(head).digest()), 0)

    def _write_chunk(self) -> None:
        box = _chunk_box(self._key, self._id)
        sealed = box.salt + box.seal(self._n_written, memoryview(self._open))
        self._files.write(self._fd, memoryview(sealed), _place(self._n_written))
        self._n_written += 1
        self._open = bytearray()


class PlainSource:
    """Reads bytes as they are."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd, self._path, self.n_bytes = fd, path, os.fstat(fd).st_size

    def read(self, at: int, n_bytes: int) -> bytes:
        """Return bytes of the file."""
        return exactly(self._fd, at, n_bytes, self._path)


class SealedSource:
    """Reads a sealed file. Raises AgentFileError for damage, WrongKeyError for no key or another one."""

    def __init__(self, fd: int, path: Path, keys: Keys | None) -> None:
        self._fd, self._path = fd, path
        n_there = os.fstat(fd).st_size
        if n_there < _HEAD_BYTES:
            raise AgentFileError(f"{path} ends too early: it is sealed, and its header is cut")
        head = exactly(fd, 0, _HEAD_BYTES, path)
        told, digest = head[:-_DIGEST_BYTES], head[-_DIGEST_BYTES:]
        if hashlib.sha256(told).digest() != digest:
            raise AgentFileError(f"{path} is damaged: the sha256 of its header is another")
        if keys is None:
            raise WrongKeyError(
                f"{path} is sealed, and no key was given. Give the key that it was exported with: "
                "import_agent(file, key=...), or --seal"
            )
        self._key = keys.key(_PURPOSE)
        start = told[: MAGIC.size + SALT_BYTES]
        self._id = start[MAGIC.size :]
        try:
            (self.n_bytes,) = _LENGTH.unpack(Box(self._key, start, self._id).open(0, told[len(start) :]))
        except SealBrokenError as error:
            raise WrongKeyError(
                f"{path} is sealed under another key than the one given. Give the key that it was exported with"
            ) from error
        expected = _HEAD_BYTES + self.n_bytes + _MORE * -(-self.n_bytes // CHUNK_BYTES)
        if n_there != expected:
            raise AgentFileError(f"{path} is damaged: it has {n_there:,} bytes, and should have {expected:,}")
        self._chunks: dict[int, bytes] = {}  # the newest ones, the oldest first

    def read(self, at: int, n_bytes: int) -> bytes:
        """Return bytes of the plain file, each verified."""
        if at + n_bytes > self.n_bytes:
            raise AgentFileError(f"{self._path} ends too early")
        parts: list[bytes] = []
        while n_bytes:
            chunk, start = divmod(at, CHUNK_BYTES)
            parts.append(self._chunk(chunk)[start : start + n_bytes])
            at += len(parts[-1])
            n_bytes -= len(parts[-1])
        return b"".join(parts)

    def _chunk(self, number: int) -> bytes:
        if number not in self._chunks:
            n_bytes = min(CHUNK_BYTES, self.n_bytes - number * CHUNK_BYTES)
            sealed = exactly(self._fd, _place(number), n_bytes + _MORE, self._path)
            try:
                opened = _chunk_box(self._key, self._id, sealed).open(number, memoryview(sealed)[SALT_BYTES:])
            except SealBrokenError as error:
                raise AgentFileError(f"{self._path} is damaged: chunk {number} does not open") from error
            while len(self._chunks) >= _N_OPEN:
                self._chunks.pop(next(iter(self._chunks)))
            self._chunks[number] = opened
        return self._chunks[number]


def _place(chunk: int) -> int:
    return _HEAD_BYTES + chunk * (CHUNK_BYTES + _MORE)


def _chunk_box(key: bytes, file_id: bytes, sealed: bytes | None = None) -> Box:
    """Return what seals a new chunk, or opens ``sealed``."""
    return Box(key, MAGIC.pack(NAME, SEALED) + file_id, None if sealed is None else bytes(sealed[:SALT_BYTES]))


def exactly(fd: int, at: int, n_bytes: int, path: Path) -> bytes:
    """Return bytes of an open file. Raises AgentFileError if there are fewer."""
    try:
        raw = os.pread(fd, n_bytes, at)
        while len(raw) < n_bytes and (more := os.pread(fd, n_bytes - len(raw), at + len(raw))):
            raw += more
    except OSError as error:
        raise AgentFileError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) != n_bytes:
        raise AgentFileError(f"{path} ends too early")
    return raw
