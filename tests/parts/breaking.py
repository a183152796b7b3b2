"""A disk that refuses at the n-th call, and a process that dies there: what is left of its folder is looked at next.

``Dying`` models a power cut too: what was not synced (bytes of files, names in folders) is lost where a test says so.
SQLite's own commits are taken as it promises them: all or nothing, lasting.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent_memory.log.files import Files

CHANGES = ("create", "write", "sync", "rename", "unlink", "remove", "make_folder", "sync_folder", "commit", "fold")
CODES = {errno.ENOSPC: 13, errno.EROFS: 8, errno.EIO: 10}
TEXTS = {13: "database or disk is full", 8: "attempt to write a readonly database", 10: "disk I/O error"}


class Killed(BaseException):
    """The process is dead: nothing after this happens."""


class Counted(Files):
    """Counts the calls that change something, and asks ``before`` about each. Does not wait for the real disk."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def before(self, call: str, *given: object) -> None:
        """Raises where the call is not to happen."""
        self.calls.append(call)


def _asking(name: str):
    real = getattr(Files, name)

    def call(self: Counted, *given):
        self.before(name, *given)
        return real(self, *given)

    return call


for _name in CHANGES:
    setattr(Counted, _name, _asking(_name))


def _sync(self: Counted, fd: int) -> None:
    self.before("sync", fd)


def _sync_folder(self: Counted, path: Path) -> None:
    self.before("sync_folder", path)


def _commit(self: Counted, db: sqlite3.Connection) -> None:
    self.before("commit", db)
    Files.commit(self, db)
    db.execute("PRAGMA synchronous=OFF")  # nobody cuts the real power


Counted.sync, Counted.sync_folder, Counted.commit = _sync, _sync_folder, _commit


class Refusing(Counted):
    """A disk that refuses the calls number ``[first, last)`` with an error; None: those to come."""

    def __init__(self, code: int = errno.ENOSPC, first: int | None = None, last: float = float("inf")) -> None:
        super().__init__()
        self.code, self.first, self.last = code, first, last

    def before(self, call: str, *given: object) -> None:
        super().before(call)
        if self.first is not None and self.first <= len(self.calls) - 1 < self.last:
            self.refuse(call)

    def refuse(self, call: str) -> None:
        """Raise what the system or SQLite would."""
        if call in ("commit", "fold"):
            error = sqlite3.OperationalError(TEXTS[CODES[self.code]])
            error.sqlite_errorcode = CODES[self.code]
            raise error
        if call != "unlink" or self.code != errno.ENOSPC:
            raise OSError(self.code, os.strerror(self.code))

    def unlink(self, path: Path) -> bool:
        """As the real one: an error is no exception."""
        try:
            self.before("unlink", path)
        except OSError:
            return False
        return Files.unlink(self, path)

    @contextmanager
    def refusing(self, code: int | None = None) -> Iterator[None]:
        """Every call while the block runs."""
        self.code, self.first = code or self.code, len(self.calls)
        try:
            yield
        finally:
            self.first = None


class Dying(Counted):
    """The process dies before call number ``at``; a write is half done by then."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at, self.is_dead = at, False
        self._undo: list[tuple[Path, str, Path, Path | bytes | None]] = []  # folder, what, new, old: names not synced
        self._paths: dict[int, Path] = {}
        self._unsynced: set[Path] = set()

    def before(self, call: str, *given: object) -> None:
        if self.is_dead:
            raise Killed
        if len(self.calls) == self.at:
            if call == "write" and len(given[1]) > 1:
                Files.write(self, given[0], given[1][: len(given[1]) // 2], given[2])
            self.is_dead = True
            raise Killed
        super().before(call)

    def create(self, path: Path) -> int:
        self.before("create", path)
        fd = Files.create(self, path)
        self._paths[fd] = path
        self._unsynced.add(path)
        self._undo.append((path.parent, "create", path, None))
        return fd

    def sync(self, fd: int) -> None:
        self.before("sync", fd)
        self._unsynced.discard(self._paths.get(fd, Path()))

    def rename(self, old: Path, new: Path) -> None:
        self.before("rename", old, new)
        if new.exists():
            self._undo.append((new.parent, "unlink", new, new.read_bytes()))
        Files.rename(self, old, new)
        self._undo.append((new.parent, "rename", new, old))

    def unlink(self, path: Path) -> bool:
        self.before("unlink", path)
        if path.exists():
            self._undo.append((path.parent, "unlink", path, path.read_bytes()))
        return Files.unlink(self, path)

    def remove(self, path: Path) -> None:
        self.before("remove", path)
        if path.exists():
            self._undo.append((path.parent, "unlink", path, path.read_bytes()))
        Files.remove(self, path)

    def make_folder(self, path: Path) -> None:
        self.before("make_folder", path)
        if not path.is_dir():
            self._undo.append((path.parent, "make_folder", path, None))
        Files.make_folder(self, path)

    def sync_folder(self, path: Path) -> None:
        self.before("sync_folder", path)
        self._undo = [entry for entry in self._undo if entry[0] != path]

    def leave(self, store: Path, to: Path, *, power_cut: bool) -> None:
        """Copy what the dead process left; ``power_cut``: without what was not synced."""
        shutil.copytree(store, to, ignore=shutil.ignore_patterns("*-shm"))
        if not power_cut:
            return
        for path in self._unsynced:
            left = to / path.relative_to(store)
            if left.exists():
                left.write_bytes(bytes(left.stat().st_size // 2))
        for _, what, new, old in reversed(self._undo):
            there = to / new.relative_to(store)
            if what == "rename" and there.exists():
                there.rename(to / old.relative_to(store))
            elif what == "unlink" and there.parent.is_dir():
                there.write_bytes(old)
            elif what == "create":
                there.unlink(missing_ok=True)
            elif what == "make_folder" and there.is_dir():
                shutil.rmtree(there)
