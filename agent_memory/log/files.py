"""Every call by which the store changes its disk, in one place, and what its folder holds.

A test puts a ``Files`` in place that fails, or stops for good, at the n-th call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

MANIFEST = "manifest.sqlite3"
SEALED_MANIFEST = "sealed.sqlite3"  #: of an encrypted store, where ``MANIFEST`` says only that it is one
REPAIRING = f"{MANIFEST}.repairing"  #: a damaged manifest while a new one is made of it; its WAL's name is as usual
LOCK = "lock"
KV_FOLDER = "kv"
RECALL = "recall.sqlite3"  #: context memory and episodes: ``recall/`` writes it
KEY_FILE = "wrapped.key"  #: the key of an encrypted store, wrapped by the host's: ``keyfile``
BLOCK = 512  #: bytes that ``st_blocks`` counts in, whatever the file system


class Files:
    """The calls themselves; any thread. Raise OSError or sqlite3.Error where the disk refuses.

    ``guard``: raises where the folder is not the store's any more; asked before every call that names a path.
    """

    guard: Callable[[], None] = staticmethod(lambda: None)

    def create(self, path: Path) -> int:
        """A new file, its owner's alone; its descriptor."""
        self.guard()
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, fd: int, data: memoryview, at: int) -> None:
        """All of ``data`` at one place."""
        while len(data):
            n = os.pwrite(fd, data, at)
            data, at = data[n:], at + n

    def sync(self, fd: int) -> None:
        """What was written to a file lasts."""
        os.fsync(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file its name."""
        self.guard()
        os.rename(old, new)

    def unlink(self, path: Path) -> bool:
        """Remove a file; False where that cannot be done now: the next sweep does it."""
        try:
            Files.remove(self, path)
        except OSError:
            return False
        return True

    def remove(self, path: Path) -> None:
        """Remove a file whose removal is a commit: raises OSError where that cannot be done."""
        self.guard()
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Make one folder; nothing where it exists."""
        self.guard()
        path.mkdir(mode=0o700, exist_ok=True)

    def sync_folder(self, path: Path) -> None:
        """The names in a folder last."""
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def commit(self, db: sqlite3.Connection) -> None:
        """A transaction exists from here on, and lasts."""
        self.guard()
        db.execute("COMMIT")

    def fold(self, db: sqlite3.Connection) -> None:
        """Move what the WAL holds into the database file; the WAL is empty afterwards."""
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def manifest_path(root: Path) -> Path:
    """Return where a folder's manifest is: in an encrypted store not where releases that know no key look for it."""
    return root / (SEALED_MANIFEST if (root / KEY_FILE).exists() else MANIFEST)


def holds_store(root: Path) -> bool:
    """True if a folder holds a store, also one whose manifest was being repaired when its process died."""
    return (root / MANIFEST).is_file() or (root / REPAIRING).is_file()


@frozen
class Size:
    """A file's length, and what it takes on disk."""

    n_bytes: int
    held_bytes: int  #: allocated


def size_of(found: os.stat_result) -> Size:
    """The sizes in a ``stat``."""
    return Size(found.st_size, found.st_blocks * BLOCK)


def held_bytes(path: Path) -> int:
    """Allocated bytes of one file; 0 where there is none."""
    try:
        return os.stat(path, follow_symlinks=False).st_blocks * BLOCK
    except OSError:
        return 0


def refuse_links(*paths: Path) -> None:
    """Raise OSError where a path is a symbolic link: what it points to is not the store's."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(path).st_mode):
                raise OSError(errno.ELOOP, f"{path} is a symbolic link, which the store does not follow")


def refuse_dangling(path: Path) -> None:
    """Raise OSError where a path is a link to a folder that is not there: its disk is not mounted, say."""
    if path.is_symlink() and not path.is_dir():
        raise OSError(errno.ENOENT, f"{path} points to {os.readlink(path)}, which is no folder now")


def make_folders(files: Files, path: Path) -> None:
    """Make a folder of one identity, durably."""
    refuse_links(path)
    if not path.is_dir():
        files.make_folder(path.parent)
        files.make_folder(path)
        files.sync_folder(path.parent)
        files.sync_folder(path.parent.parent)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder; nothing where there is none. Raises OSError where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):  # there is none, or it went meanwhile
        return []
