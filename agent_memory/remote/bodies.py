"""An object's bytes as they are read: taken in order, so that a part is opened while it is in the core's cache."""

from __future__ import annotations

from typing import BinaryIO, Protocol

from agent_memory.sealing.pages import pages


class Body(Protocol):
    """The bytes of one object. One thread at a time."""

    @property
    def n_bytes(self) -> int:
        """The object's size."""

    def take(self, n_bytes: int) -> memoryview:
        """Return the next bytes, fewer where the object ends; they are valid until the next call."""


class Held:
    """An object that is in memory. What is taken stays valid."""

    def __init__(self, held: bytes | memoryview) -> None:
        self._left = memoryview(held).cast("B")
        self.n_bytes = len(self._left)

    def take(self, n_bytes: int) -> memoryview:
        """Return the next bytes; nothing is copied."""
        found, self._left = self._left[:n_bytes], self._left[n_bytes:]
        return found


class FileBody:
    """An open file of ``n_bytes``, read through memory of the largest piece that is taken."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        self._file, self.n_bytes = file, n_bytes
        self._room = memoryview(b"")

    def take(self, n_bytes: int) -> memoryview:
        """Return the next bytes, read over those before."""
        if n_bytes > len(self._room):
            self._room = pages(n_bytes)
        at = 0
        while at < n_bytes and (n := self._file.readinto(self._room[at:n_bytes])):  # type: ignore[attr-defined]
            at += n
        return self._room[:at]
