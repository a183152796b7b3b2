"""Where this library opens SQLite files: as they are, or encrypted page by page by SQLCipher.

- With a key, pages and WAL are encrypted and authenticated (AES-256, HMAC-SHA512, bound to their page numbers); names,
  sizes and the index of the WAL (page numbers) are not. Temporary tables and sorting stay in memory.
- A connection of either kind behaves as one of ``sqlite3``: SQLCipher's errors are raised as the classes of ``sqlite3``
  of the same name and code, so callers catch ``sqlite3.Error`` alone. A wrong key is SQLITE_NOTADB.
- SQLCipher writes its complaints to stderr, in the whole process; they are switched off: they are errors here.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Callable, Hashable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import field, frozen

from agent_memory.errors import INSTALL, MissingExtraError

if TYPE_CHECKING:
    from agent_memory.sealing.keys import Keys

_Call = TypeVar("_Call", bound=Callable[..., Any])
PLAIN_HEAD = b"SQLite format 3\0"  #: how a file that is not encrypted begins
PAGE_BYTES = 4096  #: of an encrypted file's pages: SQLCipher 4's own size
_NO_KEY = "''"
_SALT_BYTES = 16  #: at the start of an encrypted file; here from the key, so that a file that lost it can be read


@frozen
class FileKey:
    """The key of one SQLite file; it never shows itself in a repr."""

    _spec: str = field(repr=False)  #: 32 bytes of key and 16 of salt, in hex: used as they are, without a KDF

    @classmethod
    def of(cls, keys: Keys | None, purpose: str) -> FileKey | None:
        """Return the key for the file of one purpose; None without keys."""
        if keys is None:
            return None
        return cls((keys.key(purpose) + keys.key(f"{purpose} salt")[:_SALT_BYTES]).hex())

    @property
    def literal(self) -> str:
        """The key as a literal of SQL."""
        return f"\"x'{self._spec}'\""


class Connection(sqlite3.Connection):
    """A connection to a file that is not encrypted.

    What SQLite says of a damaged schema quotes it, and may be no UTF-8: Python raises UnicodeDecodeError then, and here
    it is the sqlite3.DatabaseError that was meant.
    """

    def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
        """``sqlite3.Connection.execute``."""
        try:
            return super().execute(sql, values)
        except UnicodeDecodeError as error:
            raise _garbled(error) from error


_PLAIN = Connection


def connect(
    name: str | PathLike[str],
    key: FileKey | None = None,
    *,
    factory: type[Connection] = Connection,
    uri: bool = False,
    timeout: float = 5.0,
    cached_statements: int = 128,
) -> sqlite3.Connection:
    """Return a connection to a file for any thread, without transactions of its own; nothing of the file is read yet.

    ``factory``: its class; with a key, another one that has the same methods. The others as ``sqlite3.connect`` has
    them. Raises sqlite3.Error, MissingExtraError.
    """
    options: dict[str, Any] = {
        "uri": uri,
        "timeout": timeout,
        "cached_statements": cached_statements,
        "check_same_thread": False,
        "isolation_level": None,
    }
    if key is None:
        return sqlite3.connect(name, factory=factory, **options)
    return _connect(name, key, factory, options)


def copy(source: Path, key: FileKey | None, target: Path, target_key: FileKey | None) -> None:
    """Write a database anew into a file that is not there yet, durably, under another key or none; the WAL is read too.

    Raises sqlite3.Error, OSError, MissingExtraError.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    db = _connect(str(target), target_key, Connection, {"isolation_level": None})
    try:
        db.execute(f"ATTACH ? AS source KEY {_NO_KEY if key is None else key.literal}", (str(source),))
        db.execute(f"PRAGMA main.auto_vacuum={_pragma(db, 'auto_vacuum')}")
        db.execute("SELECT sqlcipher_export('main', 'source')")
        for name in ("user_version", "application_id"):
            db.execute(f"PRAGMA main.{name}={_pragma(db, name)}")
    finally:
        db.close()


def _connect(
    name: str | PathLike[str], key: FileKey | None, factory: type[Connection], options: Mapping[str, Any]
) -> sqlite3.Connection:
    """Return a connection of SQLCipher's, whose file is plain without a key."""
    cipher = _sqlcipher()
    try:
        db = cipher.connect(name, factory=_sealed(cast(Hashable, factory)), **options)
    except cipher.Error as error:
        raise _as_sqlite(error) from error
    try:
        db.execute("PRAGMA cipher_log_level=NONE")  # first: what follows may complain
        if key is not None:
            unlock(db, key)
    except BaseException:  # also Ctrl-C: nobody else closes it
        db.close()
        raise
    return cast(sqlite3.Connection, db)


def _garbled(error: UnicodeDecodeError) -> sqlite3.DatabaseError:
    return sqlite3.DatabaseError(f"malformed: {error.object.decode('utf-8', 'backslashreplace')}")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA source.{name}").fetchone()[0])


def unlock(db: sqlite3.Connection, key: FileKey) -> None:
    """Give a connection its key. SQLCipher's format is fixed, whatever a later version takes by itself."""
    db.execute(f"PRAGMA key={key.literal}")
    db.execute("PRAGMA cipher_compatibility=4")


def _sqlcipher() -> Any:
    try:
        from sqlcipher3 import dbapi2
    except ImportError as error:
        raise MissingExtraError(
            f"encryption needs the package sqlcipher3. Install it: {INSTALL['encryption']}"
        ) from error
    return dbapi2


@functools.cache
def _sealed(factory: Any) -> type:
    """Return SQLCipher's Connection, whose errors are those of ``sqlite3``, with the methods that ``factory`` adds."""
    cipher = _sqlcipher()

    class Cursor(cipher.Cursor):  # type: ignore[name-defined]
        execute = _translating(cipher.Cursor.execute)
        executemany = _translating(cipher.Cursor.executemany)
        executescript = _translating(cipher.Cursor.executescript)
        fetchone = _translating(cipher.Cursor.fetchone)
        fetchmany = _translating(cipher.Cursor.fetchmany)
        fetchall = _translating(cipher.Cursor.fetchall)
        __next__ = _translating(cipher.Cursor.__next__)

    class Connection(cipher.Connection):  # type: ignore[name-defined]
        commit = _translating(cipher.Connection.commit)
        rollback = _translating(cipher.Connection.rollback)
        close = _translating(cipher.Connection.close)
        backup = _translating(cipher.Connection.backup)
        set_progress_handler = _translating(cipher.Connection.set_progress_handler)
        set_authorizer = _translating(cipher.Connection.set_authorizer)

        _cursor = _translating(cipher.Connection.cursor)

        def cursor(self, factory: type = Cursor) -> Any:
            return self._cursor(factory)

        def execute(self, sql: str, values: Any = (), /) -> Any:
            return self.cursor().execute(sql, values)

        def executemany(self, sql: str, values: Iterable[Any], /) -> Any:
            return self.cursor().executemany(sql, values)

        def executescript(self, sql: str, /) -> Any:
            return self.cursor().executescript(sql)

    added = {} if factory is _PLAIN else vars(factory)
    return type(factory.__name__, (Connection,), {n: v for n, v in added.items() if not n.startswith("__")})


def _translating(call: _Call) -> _Call:
    """Return a method of SQLCipher's that raises the errors of ``sqlite3``."""
    errors = _sqlcipher().Error

    @functools.wraps(call)
    def called(*args: Any) -> Any:
        try:
            return call(*args)
        except errors as error:
            raise _as_sqlite(error) from error
        except UnicodeDecodeError as error:
            raise _garbled(error) from error

    return cast(_Call, called)


def _as_sqlite(error: Exception) -> sqlite3.Error:
    """Return the error of ``sqlite3`` of the same name, message and code."""
    kind = getattr(sqlite3, type(error).__name__, sqlite3.DatabaseError)
    found: sqlite3.Error = kind(*error.args)
    for name in ("sqlite_errorcode", "sqlite_errorname"):
        if hasattr(error, name):
            setattr(found, name, getattr(error, name))
    return found
