"""Errors of a store that could not do something: what, where, why, and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from agent_memory.errors import AgentMemoryError, OutOfSpaceError, StoreError
from agent_memory.log.files import manifest_path
from agent_memory.log.health import advice, is_disk_error, state_of

_AGAIN = " and flush again"  #: nothing that was refused is lost: the next flush writes it
_NOT_THE_DISK = "The disk did not refuse it: no other agent is touched, and Memory.verify() says what is damaged"
_MINE = "This process has as many files open as it may ({limit}): close some, or raise its limit (ulimit -n)"
_NO_LOCKS = "The file system has no locks, as some network file systems have none: give a path on a local disk"
_PERMISSION = "Give the user that runs this the right to read and write the folder and the files in it"
_SQLITE_FILES = 4  #: file descriptors of one database: the file, its WAL and index, the folder
_BY_ERRNO: dict[int, str] = {
    errno.EEXIST: "Give another path: a store is a folder, and need not exist yet",
    errno.ENOTDIR: "Give another path: a store is a folder, and need not exist yet",
    errno.EMFILE: _MINE,
    errno.ENFILE: "The system has as many files open as it may: close some, or raise its limit (fs.file-max)",
    errno.ENOLCK: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
    errno.ENOMEM: "Free some memory, and open it again",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "Mount it writable, or give another path",
    errno.ENOSPC: "Free some space, and open it again",
    errno.EDQUOT: "Free some space within the quota, and open it again",
    errno.ELOOP: "Put the file itself there, or give the path of the folder that it points to",
    errno.EIO: "Look at the system's log",
    errno.ESTALE: "Mount the network file system anew, and open it again",
}


@contextlib.contextmanager
def store_errors(doing: str, path: Path | None) -> Iterator[None]:
    """Turn errors of the disk and SQLite into StoreError. ``path``: the store's folder, None in memory."""
    try:
        yield
    except AgentMemoryError:
        raise
    except (sqlite3.Error, OSError) as error:
        raise as_store_error(doing, path, error) from error


def as_store_error(doing: str, path: Path | None, error: BaseException) -> StoreError:
    """Return the StoreError or OutOfSpaceError for an error."""
    state = state_of(error)
    kind = OutOfSpaceError if state == "full" else StoreError
    what = advice(state, again=_AGAIN) if is_disk_error(error) or state == "full" else _NOT_THE_DISK
    if state == "failing" and isinstance(error, OSError):
        what = _by_errno(error) or what
    where = "a store in memory" if path is None else f"the store {path}"
    return kind(f"could not {doing} in {where}: {error}. {what}")


def opening_error(path: Path, error: BaseException) -> StoreError:
    """Return the StoreError or OutOfSpaceError for an error while a store is opened."""
    cause = _beneath(path, error) if isinstance(error, sqlite3.Error) else error
    what = _by_errno(cause) or "Give another path, or ':memory:'"
    kind = OutOfSpaceError if state_of(cause) == "full" else StoreError
    if kind is OutOfSpaceError:
        what = _BY_ERRNO[errno.ENOSPC]
    said = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return kind(f"cannot open the store {path}: {said}. {what}")


def _beneath(path: Path, error: BaseException) -> BaseException:
    """Return the system's error for the file that SQLite could not open: SQLite's own error lacks it."""
    opened: list[int] = []
    try:
        for _ in range(_SQLITE_FILES):
            opened.append(os.open(manifest_path(path), os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return error
    except OSError as cause:
        return cause
    finally:
        for fd in opened:
            os.close(fd)
    return error


def _by_errno(error: BaseException) -> str | None:
    found = _BY_ERRNO.get(error.errno or 0) if isinstance(error, OSError) else None
    return None if found is None else found.replace("{limit}", f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}")
