"""The file of one agent: its parts, their digests, and the limits within which it is read (docs/format.md).

- A part is a frame, a small JSON header, a body and the sha256 of these. The last one has the sha256 of all digests.
- Nothing in it is a path, a compressed stream or an offset: nothing can lead out of it, grow or go in circles.
- Read from front to back. A size counts only once it is seen to fit into what is left of the file.
- The writer writes beside the target and renames, so that a file of that name is whole.
- With a key all of it is sealed (``sealed_file``), and read and written as a plain one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from attrs import field, frozen

from agent_memory.carry.sealed_file import (
    MAGIC,
    NAME,
    PLAIN,
    SEALED,
    PlainSink,
    PlainSource,
    SealedSink,
    SealedSource,
    Sink,
    Source,
    exactly,
)
from agent_memory.errors import AgentFileError, OutOfSpaceError, StoreError, WrongKeyError
from agent_memory.log.files import Files
from agent_memory.log.health import state_of
from agent_memory.log.soundness import strangers_json
from agent_memory.sealing.keys import Keys

MAX_HEADER_BYTES = 1 << 16
MAX_JSON_BYTES = 32 << 20  #: of one JSON body: the messages of one turn
_FRAME = struct.Struct("<IQ")  #: bytes of the header and of the body
_DIGEST_BYTES = 32
_BLOCK = 1 << 20


@frozen
class Part:
    """One part of a file, found by the reader."""

    kind: str
    facts: Mapping[str, Any] = field(repr=False)
    at: int = field(repr=False)  #: its frame's first byte
    body_at: int = field(repr=False)
    n_bytes: int  #: of its body
    digest: bytes = field(default=b"", repr=False)  #: as the file has it


class AgentFileWriter:
    """Writes one file, part by part. One thread. ``close`` without ``finish`` leaves nothing.

    ``keys``: what it is sealed under. Raises StoreError or OutOfSpaceError where the disk refuses, MissingExtraError.
    """

    def __init__(self, path: Path, files: Files | None = None, *, keys: Keys | None = None) -> None:
        self._path, self._files = path, files or Files()
        self._temp = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        self._fd = -1
        self._at = self._start = 0
        self._left = 0  # bytes that the open part still lacks
        self._digests: list[bytes] = []
        self._sum = hashlib.sha256()
        with _writing(path):
            if path.is_dir():
                raise StoreError(f"cannot write an agent to {path}: it is a folder. Give the path of a file")
            self._fd = self._files.create(self._temp)
        try:
            fd = self._fd
            self._sink: Sink = PlainSink(self._files, fd) if keys is None else SealedSink(self._files, fd, keys)
            self._put(MAGIC.pack(NAME, PLAIN))
        except BaseException:  # also Ctrl-C: nobody else removes it
            self.close()
            raise

    def __enter__(self) -> AgentFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def n_parts(self) -> int:
        """Parts written so far."""
        return len(self._digests)

    def begin(self, kind: str, facts: Mapping[str, Any], n_bytes: int) -> None:
        """Begin a part with a body of ``n_bytes``."""
        head = json.dumps({"part": kind, **facts}, separators=(",", ":")).encode()
        if len(head) > MAX_HEADER_BYTES:
            raise AgentFileError(f"a {kind} needs a header of {len(head):,} bytes; {MAX_HEADER_BYTES:,} fit")
        self._start, self._left, self._sum = self._at, n_bytes, hashlib.sha256()
        self._put(_FRAME.pack(len(head), n_bytes) + head)

    def write(self, data: bytes | memoryview) -> None:
        """Write the next bytes of the open part's body."""
        self._left -= len(data)
        self._put(data)

    def end(self) -> None:
        """End the open part."""
        assert not self._left, "a part has another size than was announced"
        digest = self._sum.digest()
        self._digests.append(digest)
        self._put(digest)

    def retract(self) -> None:
        """Take the open part back."""
        with _writing(self._path):
            self._sink.truncate(self._start)
        self._at, self._left = self._start, 0

    def part(self, kind: str, facts: Mapping[str, Any], body: bytes = b"") -> None:
        """Write a whole part."""
        self.begin(kind, facts, len(body))
        self.write(body)
        self.end()

    def finish(self) -> None:
        """Write the last part, fsync, and give the file its name, in place of any other."""
        whole = hashlib.sha256(b"".join(self._digests)).hexdigest()
        self.part("end", {"parts": len(self._digests), "sha256": whole})
        with _writing(self._path):
            self._sink.finish()
            self._files.sync(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._files.rename(self._temp, self._path)
            self._files.sync_folder(self._path.parent)

    def close(self) -> None:
        """Close and remove a file that was not finished."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._files.unlink(self._temp)

    def _put(self, data: bytes | memoryview) -> None:
        with _writing(self._path):
            self._sink.write(data, self._at)
        self._sum.update(data)
        self._at += len(data)


class Body:
    """The body of one part, read from front to back, and its digest, which ``close`` compares."""

    def __init__(self, source: Source, path: Path, part: Part) -> None:
        self._source, self._path, self.part = source, path, part
        self._sum = hashlib.sha256(source.read(part.at, part.body_at - part.at))
        self._at = part.body_at

    @property
    def n_left(self) -> int:
        """Bytes not read yet."""
        return self.part.body_at + self.part.n_bytes - self._at

    def read(self, n_bytes: int) -> bytes:
        """Return the next bytes. Raises AgentFileError if there are less."""
        if n_bytes > self.n_left:
            raise AgentFileError(f"{self._path}: a part of {self.part.n_bytes:,} bytes lacks some")
        raw = self._source.read(self._at, n_bytes)
        self._sum.update(raw)
        self._at += n_bytes
        return raw

    def blocks(self, n_bytes: int, block_bytes: int = _BLOCK) -> Iterator[bytes]:
        """Yield the next ``n_bytes`` in blocks."""
        while n_bytes:
            raw = self.read(min(n_bytes, block_bytes))
            n_bytes -= len(raw)
            yield raw

    def json(self) -> Any:
        """Return the rest as JSON. Raises AgentFileError if it is too large, or none."""
        n_bytes = self.n_left
        if n_bytes > MAX_JSON_BYTES:
            raise AgentFileError(f"{self._path}: a text of {n_bytes:,} bytes; at most {MAX_JSON_BYTES:,} are read")
        return read_json(self.read(n_bytes), self._path)

    def close(self) -> bytes:
        """Read what is left and return the digest. Raises AgentFileError if it is not the one that the file has."""
        for _ in self.blocks(self.n_left):
            pass
        digest = self._sum.digest()
        if digest != self.part.digest:
            raise AgentFileError(f"{self._path} is damaged: the sha256 of a part ({self.part.kind}) is another")
        return digest


class AgentFileReader:
    """Reads one file. One thread; a context manager. Raises AgentFileError for whatever is wrong with it.

    ``keys``: what it is sealed under; WrongKeyError for another key, none, or one for a file that is not sealed.
    """

    def __init__(self, path: Path, keys: Keys | None = None) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise AgentFileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):
                raise AgentFileError(f"{path} is no file")
            self._source = self._source_for(found.st_size, keys)
            self.n_bytes = self._source.n_bytes
            self._check_inner()
        except BaseException:  # also Ctrl-C: nobody else closes it
            self.close()
            raise

    def __enter__(self) -> AgentFileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def bodies(self) -> Iterator[Body]:
        """Yield every part's body, in order. After each the digest is compared, at the end that of the whole file."""
        at, digests, last = MAGIC.size, hashlib.sha256(), None
        n_parts = 0
        while last is None:
            part = self._part_at(at)
            body = Body(self._source, self.path, part)
            if part.kind == "end":
                last = part
            else:
                yield body
                n_parts += 1
            digest = body.close()
            digests.update(digest if last is None else b"")
            at = part.body_at + part.n_bytes + _DIGEST_BYTES
        if at != self.n_bytes or last.n_bytes:
            raise AgentFileError(f"{self.path} has {self.n_bytes - at:,} bytes after its end")
        if (last.facts.get("parts"), last.facts.get("sha256")) != (n_parts, digests.hexdigest()):
            raise AgentFileError(f"{self.path} is damaged: its last part tells of other parts than it has")

    def again(self, part: Part) -> Body:
        """Return the body of a part that ``bodies`` gave."""
        return Body(self._source, self.path, part)

    def _source_for(self, n_bytes: int, keys: Keys | None) -> Source:
        if n_bytes < MAGIC.size:
            raise AgentFileError(f"{self.path} is no agent's file: it has {n_bytes:,} bytes")
        name, version = MAGIC.unpack(exactly(self._fd, 0, MAGIC.size, self.path))
        if name != NAME:
            raise AgentFileError(f"{self.path} is no agent's file: agent.export writes one")
        if version == SEALED:
            return SealedSource(self._fd, self.path, keys)
        if version != PLAIN:
            raise AgentFileError(
                f"{self.path} has version {version}; this version of agent_memory reads {PLAIN} and {SEALED} (sealed)"
            )
        if keys is not None:
            raise WrongKeyError(
                f"{self.path} is not sealed, and a key was given: whoever had the file can have changed it. Leave the "
                "key out if that is as it should be"
            )
        return PlainSource(self._fd, self.path)

    def _check_inner(self) -> None:
        """Check that what is sealed is a plain file."""
        if self.n_bytes < MAGIC.size or self._source.read(0, MAGIC.size) != MAGIC.pack(NAME, PLAIN):
            raise AgentFileError(f"{self.path} is damaged: what is sealed in it is no agent's file")

    def _part_at(self, at: int) -> Part:
        left = self.n_bytes - at - _FRAME.size - _DIGEST_BYTES
        if left < 0:
            raise AgentFileError(f"{self.path} ends too early: its last part is missing")
        n_head, n_body = _FRAME.unpack(self._source.read(at, _FRAME.size))
        if n_head > MAX_HEADER_BYTES or n_head + n_body > left:
            raise AgentFileError(f"{self.path}: a part tells of {n_head + n_body:,} bytes; {left:,} are left")
        head_at = at + _FRAME.size
        facts = read_json(self._source.read(head_at, n_head), self.path)
        if not isinstance(facts, dict) or not isinstance(facts.get("part"), str):
            raise AgentFileError(f"{self.path}: a part does not say what it is")
        digest = self._source.read(head_at + n_head + n_body, _DIGEST_BYTES)
        return Part(facts["part"], facts, at, head_at + n_head, n_body, digest)


def read_json(raw: bytes, path: Path) -> Any:
    """Return a JSON text of a stranger. Raises AgentFileError."""
    try:
        return strangers_json(raw)
    except ValueError as error:
        raise AgentFileError(f"{path}: a text cannot be read: {error}") from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = OutOfSpaceError if state_of(error) == "full" else StoreError
        raise kind(f"cannot write an agent to {path}: {error.strerror or error}. Give another path") from error
