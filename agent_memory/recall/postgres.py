"""The recall store in a PostgreSQL database: transactions of a workspace, migrations, checks, bytes that are gone.

Policy:

- A writer takes a lock on its workspace before its first statement, so writers of one workspace follow one another, in
  whatever process, and those of others do not wait. Each transaction takes its locks in one order: no deadlock, and no
  update is lost. A lock is waited for ``BUSY_S`` seconds.
- A reader has one snapshot (repeatable read) and waits for nobody.
- Each transaction names its workspace, and row-level security shows it no other's rows (``postgres_tables.py``).
- The tables' owner migrates and scrubs. Another role needs grants alone, and leaves both to the owner.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import lru_cache
from typing import Any

from agent_memory.errors import IncompatibleStoreError
from agent_memory.recall.postgres_pool import Pool
from agent_memory.recall.postgres_tables import POSTGRES_STEPS, SCHEMA, TOLD, PostgresStep
from agent_memory.recall.storage import Answer, Rows, Words

log = logging.getLogger("agent_memory.recall")

LOCKS = 0x616D7263  #: "amrc": the first number of every advisory lock; the second is a workspace, 0 for all of them
REWRITTEN_BYTES = 256 * 2**20  #: up to this size, tables are rewritten after a deletion


class PostgresRows:
    """An open transaction: ``storage.Rows``."""

    def __init__(self, connection: Any, workspace: int | None, pgvector: str | None) -> None:
        self._connection, self._workspace, self._pgvector = connection, workspace, pgvector

    @property
    def words(self) -> Words:
        """The full-text index."""
        from agent_memory.recall.postgres_words import PostgresWords

        return PostgresWords(self, self._workspace)

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Answer:
        """Run one statement."""
        answer: Answer = self._connection.execute(_marked(sql), tuple(values))
        return answer

    def executemany(self, sql: str, values: Iterable[Sequence[Any]], /) -> None:
        """Run one statement for each tuple of values, in one round trip."""
        if rows := list(values):
            self._connection.cursor().executemany(_marked(sql), rows)

    def next_number(self, name: str) -> int:
        """Return the next number of a counter. One that a transaction takes and rolls back is left out."""
        return int(self.execute("SELECT nextval(?::regclass)", (f"{name}_numbers",)).fetchone()[0])

    @property
    def searches_vectors(self) -> bool:
        """True if the tables have a column of pgvector's."""
        return self._pgvector is not None

    def keep_near(self, fingerprint: str, item: int, vector: Sequence[float]) -> None:
        """Give a vector to pgvector, where the tables have a column for it."""
        if self._pgvector is not None:
            kind = f"{self._pgvector}.vector"
            sql = f"UPDATE vectors SET near = ?::{kind} WHERE fingerprint = ? AND item = ?"
            self.execute(sql, (_listed(vector), fingerprint, item))

    def nearest(self, workspace: int, fingerprint: str, query: Sequence[float], n: int) -> list[int] | None:
        """Return the nearest items by cosine, as pgvector finds them: by an HNSW index where the owner made one."""
        if self._pgvector is None:
            return None
        sql = "SELECT 1 FROM vectors WHERE workspace = ? AND fingerprint = ? AND near IS NULL LIMIT 1"
        if self.execute(sql, (workspace, fingerprint)).fetchone() is not None:
            return None  # stored before pgvector was there: it would not find them
        kind = f"{self._pgvector}.vector({len(query)})"
        sql = (
            "SELECT item FROM vectors WHERE workspace = ? AND fingerprint = ? "
            f"ORDER BY (near::{kind}) OPERATOR({self._pgvector}.<=>) ?::{kind} LIMIT ?"
        )
        rows = self.execute(sql, (workspace, fingerprint, _listed(query), n))
        return [int(item) for (item,) in rows]

    def workspace(self, salt: str, name: str, now: float) -> int:
        """Return the number of a workspace, made where it is new; the rest of the transaction is its."""
        (number,) = self.execute("SELECT open_workspace(?, ?, ?)", (salt, name, now)).fetchone()
        sql = "SELECT set_config('agent_memory.workspace', ?, true), pg_advisory_xact_lock(?::int, ?::int)"
        self.execute(sql, (str(number), LOCKS, _lock_of(number)))
        self._workspace = number
        return int(number)


class PostgresDatabase:
    """A PostgreSQL database as a recall store, for every thread of a process.

    ``url``: ``postgresql://user:password@host:port/database``, with libpq's parameters behind ``?``. Makes its tables
    in the schema ``agent_memory`` where they are not there. Raises ConfigError for a URL that cannot be read,
    RemoteError where the server cannot be reached or refuses, StoreError and its kinds.
    """

    def __init__(self, url: str, *, steps: Sequence[PostgresStep] = POSTGRES_STEPS) -> None:
        self._pool = Pool(url)
        self._workspace: int | None = None
        self._open = threading.local()
        try:
            self._migrate(steps)
            self._pgvector = self._with_pgvector()
            self.finish_scrub()
        except BaseException:  # also Ctrl-C: nobody else closes it
            self._pool.close()
            raise

    @property
    def name(self) -> str:
        """The URL without user and password."""
        return self._pool.name

    @property
    def is_read_only(self) -> bool:
        """False: a role that may not write is refused by the server."""
        return False

    def ensure_writable(self) -> None:
        """Do nothing: the server refuses what a role may not write."""

    def of(self, workspace: int | None) -> PostgresDatabase:
        """Return this database for one workspace, over the same connections."""
        handle = copy(self)
        handle._open = threading.local()
        handle._workspace = workspace
        return handle

    @contextmanager
    def write(self, *, fsync: bool = True) -> Iterator[Rows]:
        """Open a write transaction; commit at the end, roll back on any error. Nested calls join the outer one.

        Without ``fsync`` the server answers before its log is on the disk: what is committed survives this process, and
        a crash of the server some 600 ms later. Where the connection is lost while the transaction commits, RemoteError
        says so and the transaction is whole or absent.
        """
        outer: PostgresRows | None = getattr(self._open, "rows", None)
        if outer is not None:
            yield outer
            return
        with self._pool.connection(self._writing(fsync)) as connection:
            self._open.rows = PostgresRows(connection, self._workspace, self._pgvector)
            try:
                yield self._open.rows
            finally:
                self._open.rows = None  # an error rolls back when the connection is given back
            connection.execute("COMMIT")

    @contextmanager
    def read(self) -> Iterator[Rows]:
        """Open a read transaction: one snapshot of the database."""
        with self._pool.connection(f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{self._named()}") as connection:
            yield PostgresRows(connection, self._workspace, self._pgvector)
            connection.execute("COMMIT")

    def merge_words(self) -> int | None:
        """Return None: the index is kept without a list of pending words."""
        return None

    def owe_scrub(self, db: Rows) -> None:
        """Note that rows are deleted in this transaction whose bytes ``scrub`` must remove."""
        db.execute("INSERT INTO unscrubbed (workspace) VALUES (?) ON CONFLICT DO NOTHING", (self._workspace,))

    def scrub(self) -> None:
        """Remove the bytes that deleted rows left in tables and indexes: not in the server's log, nor in backups.

        Tables of up to 256 MiB in all are rewritten while writers wait; larger ones are vacuumed, which leaves bytes in
        pages until they are used again. Left to the owner where another role calls it: noted, done when the owner
        opens or maintains the database. Raises StoreError where others hold the tables for ``BUSY_S``: the rows are
        gone then, and calling ``scrub`` again finishes.
        """
        with self._pool.connection() as db:
            if not _is_owner(db):
                log.info("%s: the tables' owner removes the bytes of deleted rows; this role cannot", self.name)
                return
            owed = [workspace for (workspace,) in db.execute("SELECT workspace FROM unscrubbed")]
            is_small = _nbytes(db) <= REWRITTEN_BYTES
            if is_small:
                db.execute(f"SELECT pg_advisory_lock({LOCKS}, 0)")  # writers wait: they hold it shared
            try:
                for table in TOLD:
                    db.execute(f"VACUUM (FULL) {table}" if is_small else f"VACUUM (INDEX_CLEANUP on) {table}")
                db.execute("DELETE FROM unscrubbed WHERE workspace = ANY (%s)", (owed,))
            finally:
                if is_small and not db.closed:
                    db.execute(f"SELECT pg_advisory_unlock({LOCKS}, 0)")

    def finish_scrub(self) -> None:
        """Scrub where a deletion was not followed by it."""
        with self._pool.connection() as db:
            is_owed = _is_owner(db) and db.execute("SELECT 1 FROM unscrubbed LIMIT 1").fetchone() is not None
        if is_owed:
            log.info("%s: removing the bytes of rows that were deleted before", self.name)
            self.scrub()

    def check(self) -> tuple[str, ...]:
        """Return which indexes are not valid. Pages are the server's to check (``data_checksums``, ``pg_amcheck``)."""
        sql = (
            "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND NOT (i.indisvalid AND i.indisready)"
        )
        with self._pool.connection() as db:
            return tuple(f"index {name} is not valid: REINDEX INDEX" for (name,) in db.execute(sql, (SCHEMA,)))

    @property
    def nbytes(self) -> int:
        """Bytes of all tables and indexes of the schema."""
        with self._pool.connection() as db:
            return _nbytes(db)

    def close(self) -> None:
        """Close every connection; idempotent. What was committed is on the server's disk already."""
        self._pool.close()

    def _named(self) -> str:
        return "" if self._workspace is None else f"; SET LOCAL agent_memory.workspace = '{self._workspace:d}'"

    def _writing(self, fsync: bool) -> str:
        """The statements that begin a write: the workspace, then the locks in their one order."""
        own = "" if self._workspace is None else f", pg_advisory_xact_lock({LOCKS}, {_lock_of(self._workspace)})"
        later = "" if fsync else "; SET LOCAL synchronous_commit = off"
        return f"BEGIN{self._named()}{later}; SELECT pg_advisory_xact_lock_shared({LOCKS}, 0){own}"

    def _migrate(self, steps: Sequence[PostgresStep]) -> None:
        assert [step.version for step in steps] == list(range(1, len(steps) + 1)), "steps are numbered without a gap"
        with self._pool.connection() as db:
            if self._is_current(db, len(steps)):
                return
            db.execute("BEGIN")
            db.execute(f"SELECT pg_advisory_xact_lock({LOCKS}, 0)")  # before the look: others may migrate
            db.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            db.execute(f"CREATE TABLE IF NOT EXISTS {SCHEMA}.versions (version INTEGER PRIMARY KEY, "
                       "applied_at TIMESTAMPTZ NOT NULL DEFAULT now())")  # fmt: skip
            version = _version(db)
            for step in steps[version:]:
                db.execute(step.sql)
                db.execute("INSERT INTO versions (version) VALUES (%s)", (step.version,))
            db.execute("COMMIT")
            if steps[version:]:
                log.info("%s: tables brought from version %d to %d", self.name, version, len(steps))

    def _with_pgvector(self) -> str | None:
        """The schema of pgvector's type where the tables use it; the owner adds the column where the type is there."""
        known = (
            "SELECT n.nspname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
            "JOIN pg_namespace n ON n.oid = t.typnamespace "
            f"WHERE a.attrelid = '{SCHEMA}.vectors'::regclass AND a.attname = 'near' AND NOT a.attisdropped"
        )
        there = (
            "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
            "WHERE e.extname = 'vector'"
        )
        with self._pool.connection() as db:
            if (row := db.execute(known).fetchone()) is not None:
                return str(row[0])
            if not _is_owner(db) or (row := db.execute(there).fetchone()) is None:
                return None
            db.execute(f"ALTER TABLE vectors ADD COLUMN IF NOT EXISTS near {row[0]}.vector")
            db.execute("ALTER TABLE vectors ALTER COLUMN near SET STATISTICS 0")
            db.execute("CREATE INDEX IF NOT EXISTS vectors_far ON vectors (workspace, fingerprint) WHERE near IS NULL")
            return str(row[0])

    def _is_current(self, db: Any, known: int) -> bool:
        found = _version(db)
        if found > known:
            raise IncompatibleStoreError(
                f"{self.name}: the recall tables have version {found}; this library reads up to {known}. Update it"
            )
        return found == known


@lru_cache(maxsize=1_000)
def _marked(sql: str) -> str:
    """A statement of the room with psycopg's marks for values."""
    return sql.replace("%", "%%").replace("?", "%s")


def _version(db: Any) -> int:
    if db.execute(f"SELECT to_regclass('{SCHEMA}.versions')").fetchone()[0] is None:
        return 0
    return int(db.execute("SELECT coalesce(max(version), 0) FROM versions").fetchone()[0])


def _listed(vector: Sequence[float]) -> str:
    return f"[{','.join(f'{number:.7g}' for number in vector)}]"


def _lock_of(workspace: int) -> int:
    return workspace % (2**31 - 1) + 1


def _is_owner(db: Any) -> bool:
    sql = f"SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = '{SCHEMA}.texts'::regclass"
    return bool(db.execute(sql).fetchone()[0])


def _nbytes(db: Any) -> int:
    sql = (
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
        f"WHERE c.relnamespace = '{SCHEMA}'::regnamespace AND c.relkind = 'r'"
    )
    return int(db.execute(sql).fetchone()[0])
