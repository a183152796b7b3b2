"""Errors of reading and writing files of unknown content, and what each says of the file."""

from __future__ import annotations

import sqlite3

from agent_memory.errors import AgentMemoryError
from agent_memory.log.place import is_passing


class DamageError(Exception):
    """Inside the room: a file is not what was written, or cannot be read. ``reason``: see ``reason_of``."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


#: SQLite's errors that say nothing of the file's content: the disk, another process, or memory.
_NOT_DAMAGE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}

#: Errors that reading a file of unknown content may raise.
READ_ERRORS = (DamageError, OSError, ValueError, KeyError, IndexError, MemoryError, StopIteration)

#: Errors that end one write of KV, and no more.
WRITE_ERRORS = (OSError, sqlite3.Error, ValueError, DamageError, AgentMemoryError)


def is_damage(error: sqlite3.Error) -> bool:
    """True if an error of SQLite is about the bytes of the file."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _NOT_DAMAGE


def reason_of(error: BaseException) -> str:
    """Return why a file could not be used: "damaged", "missing", or "unreadable" where it may be readable later."""
    if isinstance(error, DamageError):
        return error.reason
    return "unreadable" if is_passing(error) else "missing" if isinstance(error, OSError) else "damaged"
