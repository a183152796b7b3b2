"""The folder of an open store: is it still the one that was opened, at the same path."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from agent_memory.log.files import LOCK, MANIFEST

_OWN = ("", LOCK, MANIFEST)  #: the folder, and the two files that exist as long as the store is open

#: Error numbers that mean that a file is missing, or no file. Others say nothing about the bytes.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR}


class GoneError(OSError):
    """Internal: the folder was deleted, moved or replaced since it was opened."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.ENOENT, f"{path} {what} while the store was open; nothing is written there any more")


def is_passing(error: BaseException) -> bool:
    """True if reading may succeed later: the error is not about the bytes (EMFILE, EACCES, EIO, ESTALE ...)."""
    if isinstance(error, GoneError | MemoryError):
        return True
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _ABSENT


@frozen
class Place:
    """Device and inode of a store's folder, lock and manifest when it was opened."""

    root: Path
    _known: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, root: Path) -> Place:
        """Return the place of a store that has just been opened. Raises OSError."""
        return cls(root, {name: _inode(root, name) for name in _OWN})

    def check(self) -> None:
        """Raise GoneError if the folder is not the one that was opened; three calls of ``stat``."""
        for name, known in self._known.items():
            try:
                found = _inode(self.root, name)
            except FileNotFoundError:
                raise GoneError(self.root / name, "was deleted or moved") from None
            except NotADirectoryError:
                raise GoneError(self.root / name, "was replaced") from None
            if found != known:
                raise GoneError(self.root / name, "was replaced")

    @property
    def lost(self) -> GoneError | None:
        """The error if the folder is not the one that was opened; None if it is, or that cannot be told now."""
        try:
            self.check()
        except GoneError as error:
            return error
        except OSError:  # unknown: the next write finds out
            pass
        return None


def _inode(root: Path, name: str) -> tuple[int, int]:
    found = os.stat(root / name, follow_symlinks=not name)  # the folder may be reached through a link
    return found.st_dev, found.st_ino
