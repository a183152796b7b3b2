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


#: Errors that reading a file of unknown content may raise.
READ_ERRORS = (DamageError, OSError, ValueError, KeyError, IndexError, MemoryError, StopIteration)

#: Errors that end one write of KV, and no more.
WRITE_ERRORS = (OSError, sqlite3.Error, ValueError, DamageError, AgentMemoryError)


def reason_of(error: BaseException) -> str:
    """Return why a file could not be used: "damaged", "missing", or "unreadable" where it may be readable later."""
    if isinstance(error, DamageError):
        return error.reason
    return "unreadable" if is_passing(error) else "missing" if isinstance(error, OSError) else "damaged"
