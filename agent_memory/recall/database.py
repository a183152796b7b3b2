"""The recall file: one SQLite database with its connections, transactions, migrations and checks.

Policy:

- One writer connection behind a lock; every write is one ``BEGIN IMMEDIATE`` transaction, durable when it returns
  (``synchronous=FULL``, ``fullfsync`` where the system knows it), unless its caller does without ``fsync``.
- Readers take a connection from a pool, never wait for the writer, and see one snapshot per ``read()``.
- Another process may read and write the same file (WAL); a busy file is waited for ``BUSY_S`` seconds.
- ``read_only``: reads a file that another process may write, and writes nothing but SQLite's -shm; what would write
  raises ReadOnlyError. Where the folder takes no file, SQLite reads it as immutable.
- ``":memory:"`` has the writer connection alone: readers share it under the lock.
- Pages that are freed are zeroed (``secure_delete``). ``scrub()`` removes what deleted rows left anywhere in the files;
  where a process died between a deletion and its scrub, the next one to open the file scrubs it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

from agent_memory.config import as_path
from agent_memory.errors import (
    ClosedError,
    IncompatibleStoreError,
    ReadOnlyError,
    StoreError,
)
from agent_memory.recall.schema import STEPS, Step
from agent_memory.recall.sqlite_rows import (
    APPLICATION_ID,
    BUSY_S,
    Connection,
    commit,
    refuse_foreign,
    translated,
    user_version,
)
from agent_memory.recall.storage import Rows
from agent_memory.sealing import sqlite
from agent_memory.sealing.sqlite import FileKey

log = logging.getLogger("agent_memory.recall")

_MERGED_PAGES = 64


class Database:
    """One recall file, for every thread of a process. Raises StoreError and its kinds; ClosedError after ``close``."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        steps: Sequence[Step] = STEPS,
        read_only: bool = False,
        key: FileKey | None = None,
    ) -> None:
        self._key = key
        self.path = None if str(path) == ":memory:" else as_path(path, "path")
        self.is_read_only = read_only
        self._options = "mode=ro"  #: of a reader's connections
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._pool: list[Connection] = []
        self._pool_lock = threading.Lock()
        self._is_closed = False
        self._n_open_writes = 0
        with translated(self.path):
            is_reader = read_only and self.path is not None
            self._writer = self._first_reader() if is_reader else self._connect(create=True)
            try:
                if is_reader:
                    self._ensure_current(steps)
                else:
                    self._migrate(steps)
                    self.finish_scrub()
            except BaseException:  # also Ctrl-C: nobody else closes it
                self._writer.close()
                raise

    @property
    def name(self) -> str:
        """The file's path, or ":memory:"."""
        return ":memory:" if self.path is None else str(self.path)

    def of(self, workspace: int | None) -> Database:
        """Return this file: the room's statements name their workspace, and nobody else reads it."""
        return self

    @contextmanager
    def write(self, *, fsync: bool = True) -> Iterator[Connection]:
        """Open the one write transaction; commit at the end, roll back on any error. Nested calls join the outer one.

        Holds the writer's lock: do no slow work inside. Without ``fsync`` what is committed survives the death of the
        process, and a power cut once a later write with ``fsync`` has returned.
        """
        with self._lock, translated(self.path):
            self._alive()
            self.ensure_writable()
            db = self._writer
            if self._n_open_writes == 0:
                db.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
                db.execute("BEGIN IMMEDIATE")
            self._n_open_writes += 1
            try:
                yield db
            except BaseException:  # also Ctrl-C: no transaction stays open
                if self._n_open_writes == 1 and db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            else:
                if self._n_open_writes == 1:
                    commit(db)
            finally:
                self._n_open_writes -= 1

    def ensure_writable(self) -> None:
        """Raise ReadOnlyError if the file was opened to be read only."""
        if self.is_read_only:
            raise ReadOnlyError(
                "cannot change what is remembered: this Memory was opened with read_only=True. Open one that writes, "
                "where no other process has the store open"
            )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read transaction: one snapshot of the file, whatever is written meanwhile.

        Inside ``write()`` on the same thread use that connection instead: a reader does not see uncommitted rows.
        """
        if self.path is None:
            with self._lock, translated(self.path):
                self._alive()
                yield self._writer
            return
        with translated(self.path):
            db = self._borrow()
            try:
                db.execute("BEGIN")
                yield db
            finally:
                if db.in_transaction:
                    db.execute("COMMIT")
                self._give_back(db)

    @contextmanager
    def if_free(self) -> Iterator[bool]:
        """Hold the writer where nobody else does, here or in another process: False instead of waiting.

        A write inside raises StoreError where another process holds the file at that moment.
        """
        if self._is_closed or not self._lock.acquire(blocking=False):
            yield False
            return
        try:
            self._writer.execute("PRAGMA busy_timeout=0")
            yield True
        finally:
            if not self._is_closed:
                self._writer.execute(f"PRAGMA busy_timeout={int(BUSY_S * 1e3)}")
            self._lock.release()

    def merge_words(self) -> int | None:
        """Merge a few parts of the full-text indexes: every write adds one. Return pages written; None: nothing is due.

        A short step, some 20 ms at most, in a transaction of its own.
        """
        n_written = 0
        for name in self._fts_tables():
            with self.write(fsync=False) as db:
                if db.execute(f"SELECT v FROM {name}_config WHERE k = 'usermerge'").fetchone() != (2,):
                    db.execute(f"INSERT INTO {name} ({name}, rank) VALUES ('usermerge', 2)")
                before = db.total_changes
                db.execute(f"INSERT INTO {name} ({name}, rank) VALUES ('merge', {_MERGED_PAGES})")
                n_written += max(0, db.total_changes - before - 1)
        return n_written or None

    def owe_scrub(self, db: Rows) -> None:
        """Note that rows are deleted in this transaction whose bytes ``scrub`` must remove, whoever calls it."""
        db.execute("INSERT INTO counters (name, value) VALUES ('unscrubbed', 1) ON CONFLICT DO NOTHING")

    def scrub(self) -> None:
        """Remove every byte that deleted rows left: in full-text indexes, free pages, the WAL and backups.

        Costs a rewrite of the file. Raises StoreError where another process holds the file for ``BUSY_S``: the rows are
        gone then, and calling ``scrub`` again finishes.
        """
        with self._lock, translated(self.path):
            self._alive()
            self.ensure_writable()
            for name in self._fts_tables():
                self._writer.execute(f"INSERT INTO {name} ({name}) VALUES ('optimize')")
            if self.path is None:
                self._writer.execute("VACUUM")
                return
            for backup in self.backups():
                backup.unlink(missing_ok=True)
            self._drop_pool()
            self._writer.execute("VACUUM")
            self._truncate_wal()
            self._writer.execute("DELETE FROM counters WHERE name = 'unscrubbed'")

    def finish_scrub(self) -> None:
        """Scrub where a deletion was not followed by it: its process died, or the file was held."""
        with self._lock, translated(self.path):
            self._alive()
            is_owed = self._writer.execute("SELECT 1 FROM counters WHERE name = 'unscrubbed'").fetchone() is not None
        if is_owed:
            log.info("recall file %s: removing the bytes of rows that were deleted before", self.path)
            self.scrub()

    def check(self) -> tuple[str, ...]:
        """Return what SQLite's and FTS5's integrity checks find wrong, one line each. Reads the whole file."""
        with self._lock, translated(self.path):
            self._alive()
            found = [str(row[0]) for row in self._writer.execute("PRAGMA integrity_check")]
            damage = [line for line in found if line != "ok"]
            for name in self._fts_tables() if not self.is_read_only else ():  # FTS5 asks by a statement that writes
                try:
                    self._writer.execute(f"INSERT INTO {name} ({name}) VALUES ('integrity-check')")
                except sqlite3.DatabaseError as error:
                    damage.append(f"full-text index {name}: {error}")
        return tuple(damage)

    def backups(self) -> list[Path]:
        """Return the copies that migrations made beside the file."""
        return [] if self.path is None else sorted(self.path.parent.glob(f"{self.path.name}.v*.backup"))

    @property
    def nbytes(self) -> int:
        """Bytes of the file and its WAL; of the pages where it is in memory."""
        if self.path is None:
            with self.read() as db:
                sql = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
                return int(db.execute(sql).fetchone()[0])
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close every connection; idempotent. What was committed is on the disk already."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._drop_pool()
            if os.getpid() == self._pid:
                self._writer.close()

    def _alive(self) -> None:
        if self._is_closed:
            raise ClosedError("the recall file is closed. Open it again with ContextMemory(path)")
        if os.getpid() != self._pid:
            raise ClosedError("the recall file was opened before a fork: open it again in the child process")

    def _connect(self, *, create: bool = False) -> Connection:
        if self.path is not None and create:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives the WAL the same mode
        name = ":memory:" if self.path is None else str(self.path)
        db = self._opened(name)
        try:
            refuse_foreign(db, name)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA fullfsync=ON")  # a macOS disk keeps a cache that fsync does not empty
            db.execute("PRAGMA secure_delete=ON")
            db.execute("PRAGMA foreign_keys=ON")
        except BaseException:  # also Ctrl-C: nobody else closes it
            db.close()
            raise
        return db

    def _opened(self, name: str, *, uri: bool = False) -> Connection:
        key = None if self.path is None else self._key
        found = sqlite.connect(name, key, factory=Connection, uri=uri, timeout=BUSY_S, cached_statements=256)
        return cast("Connection", found)

    def _borrow(self) -> Connection:
        with self._pool_lock:
            self._alive()
            if self._pool:
                return self._pool.pop()
        return self._reader() if self.is_read_only else self._connect()

    def _first_reader(self) -> Connection:
        """Open a file to be read; as immutable where its folder takes no file. Raises ReadOnlyError."""
        assert self.path is not None
        try:
            return self._reader()
        except sqlite3.OperationalError as error:
            wal = self.path.with_name(f"{self.path.name}-wal")
            if not self.path.exists() or (wal.exists() and wal.stat().st_size):
                raise ReadOnlyError(
                    f"cannot read {self.path}: SQLite needs a file beside it that this process may not make ({error}). "
                    "Let it write to the folder, or close the store that writes first"
                ) from error
            self._options = "mode=ro&immutable=1"
            return self._reader()

    def _reader(self) -> Connection:
        assert self.path is not None
        name = f"{self.path.as_uri()}?{self._options}"
        db = self._opened(name, uri=True)
        try:
            db.execute("PRAGMA query_only=ON")
            refuse_foreign(db, str(self.path))
        except BaseException:  # also Ctrl-C: nobody else closes it
            db.close()
            raise
        return db

    def _ensure_current(self, steps: Sequence[Step]) -> None:
        """Raise IncompatibleStoreError if the file has another version than ``steps`` make."""
        version = user_version(self._writer)
        if version != len(steps):
            way = "Update it" if version > len(steps) else "Open it once with a Memory that writes"
            raise IncompatibleStoreError(
                f"{self.path}: the recall file has version {version}; a reader reads version {len(steps)}. {way}"
            )

    def _give_back(self, db: Connection) -> None:
        with self._pool_lock:
            if not self._is_closed and os.getpid() == self._pid:
                self._pool.append(db)
                return
        db.close()

    def _drop_pool(self) -> None:
        with self._pool_lock:
            pool, self._pool = self._pool, []
        if os.getpid() == self._pid:
            for db in pool:
                db.close()

    def _fts_tables(self) -> list[str]:
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%USING fts5 (%'"
        return [str(name) for (name,) in self._writer.execute(sql)]

    def _truncate_wal(self) -> None:
        (busy, _, _) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreError(
                f"{self.path}: another reader holds the file for {BUSY_S:.0f} s, so its write-ahead log still has "
                "bytes of deleted rows. Close the other reader and call again"
            )

    def _migrate(self, steps: Sequence[Step]) -> None:
        assert [step.version for step in steps] == list(range(1, len(steps) + 1)), "steps are numbered without a gap"
        db = self._writer
        version = user_version(db)
        if version > len(steps):
            raise IncompatibleStoreError(
                f"{self.path}: the recall file has version {version}; this library reads up to {len(steps)}. Update it"
            )
        if version == len(steps):
            return
        if version:
            self._back_up(version)
        db.execute("BEGIN IMMEDIATE")
        try:
            version = user_version(db)  # another process may have migrated meanwhile
            for step in steps[version:]:
                for statement in step.statements:
                    db.execute(statement)
            db.execute(f"PRAGMA user_version={max(version, len(steps))}")
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute("COMMIT")
        except BaseException:  # also Ctrl-C: no transaction stays open
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _back_up(self, version: int) -> None:
        if self.path is None:
            return
        target = self.path.with_name(f"{self.path.name}.v{version}.backup")
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
        with closing(self._opened(str(target))) as copy:
            self._writer.backup(copy)
        log.info("recall file %s: version %d is kept as %s", self.path, version, target.name)
