"""A connection to a recall file, and SQLite's errors as this library's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from agent_memory.errors import ConfigError, OutOfSpaceError, StoreError
from agent_memory.recall.storage import Words
from agent_memory.sealing import sqlite

BUSY_S = 10.0
APPLICATION_ID = 0x616D7263  #: "amrc", in the file's header: says that a SQLite file is a recall file
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class Connection(sqlite.Connection):
    """A connection to a recall file: ``storage.Rows``."""

    @property
    def words(self) -> Words:
        """The full-text index."""
        from agent_memory.recall.sqlite_words import SQLiteWords  # numpy: episodes do without

        return SQLiteWords(self)

    def next_number(self, name: str) -> int:
        """Return the next number of a counter of the file; the first is 1. Inside a write transaction."""
        sql = (
            "INSERT INTO counters (name, value) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 "
            "RETURNING value"
        )
        return int(self.execute(sql, (name,)).fetchone()[0])

    @property
    def searches_vectors(self) -> bool:
        """False: vectors are compared in this process."""
        return False

    def keep_near(self, fingerprint: str, item: int, vector: Sequence[float]) -> None:
        """Do nothing: vectors are compared in this process."""

    def nearest(self, workspace: int, fingerprint: str, query: Sequence[float], n: int) -> list[int] | None:
        """Return None: vectors are compared in this process."""
        return None

    def workspace(self, salt: str, name: str, now: float) -> int:
        """Return the number of a workspace, made where it is new. Inside a write transaction."""
        sql = "INSERT INTO workspaces (salt, name, created_s) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        self.execute(sql, (salt, name, now))
        row = self.execute("SELECT workspace FROM workspaces WHERE salt = ? AND name = ?", (salt, name)).fetchone()
        return int(row[0])


def commit(db: Connection) -> None:
    """Commit; roll back where that fails."""
    try:
        db.execute("COMMIT")
    except BaseException:  # also Ctrl-C: no transaction stays open
        with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some failures
            db.execute("ROLLBACK")
        raise


def user_version(db: Connection) -> int:
    """Return which version the file's tables have; 0 for none."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def refuse_foreign(db: Connection, name: str) -> None:
    """Raise ConfigError if the file is another program's."""
    (found,) = db.execute("PRAGMA application_id").fetchone()
    (n_tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if n_tables and found != APPLICATION_ID:
        raise ConfigError(f"{name} is a SQLite file of another program; name a new file for the recall database")


@contextmanager
def translated(path: Path | None) -> Iterator[None]:
    """Raise SQLite's errors as this library's, with the file's name."""
    try:
        yield
    except sqlite3.Error as error:
        where = ":memory:" if path is None else str(path)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _FULL:
            raise OutOfSpaceError(f"{where}: the disk refuses the write ({error}); nothing was changed") from error
        if code in _BUSY:
            raise StoreError(f"{where}: another process holds the file for {BUSY_S:.0f} s ({error})") from error
        if code == sqlite3.SQLITE_NOTADB:
            raise StoreError(
                f"{where} cannot be read: it is no SQLite file, or it is encrypted, and is read by the Memory of its "
                "store, opened with its key"
            ) from error
        raise StoreError(f"{where}: {error}") from error
    except OSError as error:
        if isinstance(error, OutOfSpaceError):
            raise
        raise StoreError(f"{path}: {error.strerror or error}") from error
