"""The lock file: which process has a store open, and the manifest's checksum when it was closed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

import xxhash

from agent_memory.errors import StoreLockedError
from agent_memory.log.files import LOCK, MANIFEST, SEALED_MANIFEST, Files, manifest_path, refuse_links
from agent_memory.log.health import state_of
from agent_memory.log.refusals import opening_error

_BLOCK = 1 << 20
_MANIFESTS = (MANIFEST, SEALED_MANIFEST)


class Lock:
    """Creates the folder with mode 0700 and locks it exclusively.

    Raises StoreError, or StoreLockedError naming the holder.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self._path, self._files = path, files
        try:
            _make_ours(path)
            refuse_links(path / LOCK, *(path / f"{name}{end}" for name in _MANIFESTS for end in ("", "-wal", "-shm")))
            self._fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise opening_error(path, error) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            found = self._read()
            os.close(self._fd)
            if not isinstance(error, BlockingIOError):
                raise opening_error(path, error) from error
            raise StoreLockedError(
                f"{path} is in use by {_holder(found)}, give another path, or open it to be read: read_only=True"
            ) from error
        try:
            self._take(self._read())
        except OSError as error:
            os.close(self._fd)
            raise opening_error(path, error) from error

    def _take(self, found: dict[str, Any]) -> None:
        """Read the last holder's notes, and write that the store is open."""
        #: checksum of the manifest when the store was closed; None: not closed, or unknown
        self.closed = closed if isinstance(closed := found.get("closed"), str) else None
        #: acknowledged transactions of the manifest; 0: unknown
        self.commits = n if isinstance(n := found.get("commits"), int) else 0
        self._is_marked = False
        try:
            self.mark()
        except OSError as error:
            if state_of(error) != "full":  # a store on a full disk opens, for reading
                raise

    def mark(self) -> None:
        """Write that the store is open, if the file does not say so: before any change. Raises OSError."""
        if not self._is_marked:
            self._write()
            if self.closed is not None:
                self._files.sync(self._fd)  # after a power cut the store must not seem closed
            self._is_marked = True

    def acknowledge(self, commits: int) -> None:
        """Write how many transactions are durable: if the next open finds fewer, the manifest is damaged.

        Not synced: after a power cut the number may be an older, smaller one.
        """
        if commits != self.commits:
            self.commits = commits
            with contextlib.suppress(OSError):
                self._write()

    def release(self, *, is_whole: bool) -> None:
        """Release the lock. ``is_whole``: the manifest is closed and has all transactions."""
        try:
            if is_whole and self._is_marked:
                with contextlib.suppress(OSError):  # then the next open examines the manifest
                    self._write(manifest_sum(manifest_path(self._path)))
        finally:
            os.close(self._fd)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(os.pread(self._fd, 4096, 0))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, closed: str | None = None) -> None:
        facts: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "commits": self.commits}
        raw = json.dumps(facts if closed is None else {**facts, "closed": closed}).encode()
        self._files.write(self._fd, memoryview(raw.ljust(os.fstat(self._fd).st_size)), 0)


def _make_ours(path: Path) -> None:
    """Create the folder with mode 0700. A folder that had other files before keeps its mode."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.listdir(path):
        os.chmod(path, 0o700)


def _holder(found: dict[str, Any]) -> str:
    """Say who has the store open, and how to close it; ``found``: the text of the lock file."""
    if not {"pid", "host"} <= found.keys():
        return "another process. Close it there"
    if (found["pid"], found["host"]) != (os.getpid(), socket.gethostname()):
        return f"process {found['pid']} on {found['host']}. Close it there"
    return (
        f"this process ({found['pid']}): a Memory that was opened here before is still open. Close that one first "
        "(type memory.close(), by the name you gave it, before you run a notebook's cell again)"
    )


def manifest_sum(path: Path) -> str:
    """Return the xxh3 of a closed manifest; "" if there is none. Reads it at the disk's speed."""
    digest = xxhash.xxh3_64()
    try:
        with path.open("rb") as file:
            while raw := file.read(_BLOCK):
                digest.update(raw)
    except FileNotFoundError:
        return ""
    return digest.hexdigest()
