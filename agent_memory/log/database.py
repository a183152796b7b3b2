"""The manifest's database: the one SQLite file of a store (``schema`` has its tables). A save exists once it commits.

- One connection under one lock: any thread.
- Every change is a ``transaction``: all of it or nothing, durable when it returns, and counted in ``commits``.
- ``Logs`` and the KV room read and write their own rows through it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent_memory.errors import ReadOnlyError, StoreError
from agent_memory.log.files import REPAIRING, Files, held_bytes
from agent_memory.log.schema import (
    WRITE_VERSION,
    connect,
    ensure_readable,
    free_pages,
    give_back,
    migrate,
    version_of,
)
from agent_memory.sealing import sqlite
from agent_memory.sealing.keys import Keys
from agent_memory.sealing.sqlite import FileKey

_COUNT_COMMIT = (
    "INSERT INTO meta VALUES ('commits', '1') ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
)

_TICK_STEPS = 100_000  #: steps of SQLite's machine between two ticks: some milliseconds


class Database:
    """An open manifest. Raises sqlite3.Error and OSError as they come.

    ``keys``: those of its store, which KV is sealed under too; None: nothing is encrypted.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path | None,
        files: Files,
        *,
        is_read_only: bool = False,
        keys: Keys | None = None,
    ) -> None:
        self._db, self._path, self._files, self._is_read_only, self.keys = db, path, files, is_read_only, keys
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for statements that change nothing."""
        with self._lock:
            yield self._db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for one change: all or nothing, durable when the block ends."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute(_COUNT_COMMIT)
                self._files.commit(self._db)
            except BaseException:  # also Ctrl-C: no transaction stays open
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Fold the WAL back, unless the database is only read, and close."""
        with self._lock:
            if not self._is_read_only:
                with contextlib.suppress(sqlite3.Error):
                    self._files.fold(self._db)
            self._db.close()

    @property
    def folder(self) -> Path | None:
        """The store's folder; None: in memory."""
        return None if self._path is None else self._path.parent

    @property
    def is_whole(self) -> bool:
        """True if, once closed, the file holds everything and there is no WAL beside it."""
        return self._path is not None and not self._path.with_name(f"{self._path.name}-wal").exists()

    def fold(self) -> None:
        """Fold the WAL back, so that it takes no bytes. I/O thread; two fsyncs."""
        with self._lock:
            self._files.fold(self._db)

    def shrink(self, from_share: float = 0.25) -> None:
        """Give the pages back that deleted rows left, from that share of the file on. I/O thread; a commit and a fold.

        All of them (0.0): what was deleted is in no file of the folder afterwards, the WAL included.
        """
        with self._lock:
            free, total = free_pages(self._db)
            if free > total * from_share:
                with self.transaction() as db:
                    give_back(db, free)
            if free > total * from_share or not from_share:  # else the WAL holds rows that were deleted
                self._files.fold(self._db)

    def examine(self, tick: Callable[[], None] | None = None) -> str | None:
        """Return what SQLite finds wrong with the file; None: nothing. Reads all of it, calling ``tick``."""
        with self._lock:
            if tick is None:
                check = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            else:
                check = _ticking(self._db, "PRAGMA integrity_check(1)", tick)
        return None if check == "ok" else str(check)

    @property
    def commits(self) -> int:
        """How many transactions there have been: a lost one shows here."""
        try:
            return int(self.meta("commits") or 0)
        except ValueError:
            return 0

    def count_from(self, commits: int) -> None:
        """Count on from the transactions of the manifest that this one replaces, as far as they were acknowledged."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('commits', ?)", (str(commits),))

    def meta(self, key: str) -> str | None:
        """Return a fact about the store itself."""
        with self._lock:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])


def _ticking(db: sqlite3.Connection, statement: str, tick: Callable[[], None]) -> Any:
    """Return a statement's one value; call ``tick`` meanwhile, and raise what it raises, Ctrl-C included."""
    raised: list[BaseException] = []

    def ticked() -> bool:
        try:
            tick()
        except BaseException as error:  # noqa: BLE001  # SQLite would swallow it
            raised.append(error)
        return bool(raised)  # True ends the statement

    db.set_progress_handler(ticked, _TICK_STEPS)
    try:
        return db.execute(statement).fetchone()[0]
    except sqlite3.OperationalError:
        if raised:
            raise raised[0] from None
        raise
    finally:
        db.set_progress_handler(None, 0)


def open_database(path: Path | None, files: Files | None = None, keys: Keys | None = None) -> Database:
    """Open a manifest to read and write it, upgraded to this write version. ``path`` None: in memory; else a file that
    ``check_versions`` found whole, or none yet.
    """
    if path is not None and not (path.exists() and path.stat().st_size):
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(path, flags, 0o600))  # SQLite gives its side files the same mode
    db = connect(path, manifest_key(keys))
    database = Database(db, path, files or Files(), keys=keys)
    try:
        if version_of(db) < WRITE_VERSION:
            with database.transaction():
                migrate(db)
    except BaseException:  # also Ctrl-C: nobody else closes it
        db.close()
        raise
    return database


def manifest_key(keys: Keys | None) -> FileKey | None:
    """Return the key of a store's manifest; None: it is not encrypted."""
    return FileKey.of(keys, "manifest")


def view_database(path: Path, keys: Keys | None = None) -> Database:
    """Open a manifest only to read it, beside the process that writes it.

    Where the folder takes no file, SQLite reads it as immutable. Raises StoreError, IncompatibleStoreError, and
    ReadOnlyError where that would miss what is in the WAL.
    """
    if (path.parent / REPAIRING).exists():
        raise StoreError(
            f"{path} is being repaired, or was when its process died: open it with Memory, which repairs it"
        )
    errors: list[sqlite3.Error] = []
    for options in ("mode=ro", "mode=ro&immutable=1"):
        if errors and held_bytes(wal := path.with_name(f"{path.name}-wal")):
            raise ReadOnlyError(
                f"cannot read {path}: its newest changes are in {wal.name}, which SQLite reads only with a file beside "
                f"it that this process may not make ({errors[0]}). Let it write to the folder, or close the store first"
            )
        name = f"{path.as_uri()}?{options}"
        db = sqlite.connect(name, manifest_key(keys), uri=True)
        try:
            db.execute("PRAGMA query_only=ON")
            db.execute("PRAGMA busy_timeout=2000")
            ensure_readable(path, dict(db.execute("SELECT key, value FROM meta")))
        except sqlite3.Error as error:
            db.close()
            errors.append(error)
        except BaseException:  # also Ctrl-C: nobody else closes it
            db.close()
            raise
        else:
            return Database(db, path, Files(), is_read_only=True, keys=keys)
    raise StoreError(f"cannot read {path}: {errors[0]}. Let its folder be read, or open it with Memory to repair it")
