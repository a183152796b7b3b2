"""The manifest's tables, and what each write version added to them (docs/format.md says what they mean).

To add a table or a column:

- here: raise ``WRITE_VERSION`` and append its statements to ``MIGRATIONS``; a new store runs them all, an older one
  those that it lacks. Nothing else creates or alters a table.
- ``logs.py`` (or the KV room's ``tables.py``): the statements that read and write its rows, and ``_OF_AGENT`` where
  they end with their agent.
- ``salvage.py``: which of its rows are trusted when the file is damaged; ``_ADDED`` for a column without a default.
- ``docs/format.md``, and a fixture of the version before (``tests/store/make_fixtures.py``).
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent_memory.errors import IncompatibleStoreError, StoreError
from agent_memory.sealing import sqlite
from agent_memory.sealing.sqlite import FileKey

READ_VERSION = 1  #: a store that says more cannot be read by this code
#: a store that says more must not be written by this code; 2 added side files, 3 codecs, 4 an agent's facts and which
#: ids of a turn the model wrote, 5 branches and versions, 6 segments that share rows of others, 7 mixed codecs
WRITE_VERSION = 7

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE identities (identity TEXT PRIMARY KEY, layout TEXT NOT NULL, facts TEXT NOT NULL,
    created_s REAL NOT NULL);
CREATE TABLE agents (agent INTEGER PRIMARY KEY AUTOINCREMENT, salt BLOB NOT NULL, name BLOB NOT NULL, system BLOB,
    tools BLOB NOT NULL, created_s REAL NOT NULL, used_s REAL NOT NULL, xxh3 BLOB NOT NULL, UNIQUE (salt, name));
CREATE TABLE turns (agent INTEGER NOT NULL, number INTEGER NOT NULL, messages TEXT NOT NULL,
    n_messages_kept INTEGER NOT NULL,
    n_messages INTEGER NOT NULL, keep INTEGER NOT NULL, n_tokens INTEGER NOT NULL, tokenizer TEXT NOT NULL, finish TEXT,
    created_s REAL NOT NULL, n_kv INTEGER NOT NULL, xxh3 BLOB NOT NULL, ids BLOB NOT NULL, PRIMARY KEY (agent, number));
CREATE TABLE lineages (agent INTEGER NOT NULL, identity TEXT NOT NULL, head BLOB NOT NULL,
    PRIMARY KEY (agent, identity, head));
CREATE TABLE segments (segment INTEGER PRIMARY KEY, identity TEXT NOT NULL, file TEXT NOT NULL,
    n_bytes INTEGER NOT NULL,
    header_xxh3 TEXT NOT NULL, parent BLOB NOT NULL, parent_segment INTEGER, start INTEGER NOT NULL,
    n_tokens INTEGER NOT NULL, chunk_tokens INTEGER NOT NULL, exactness TEXT NOT NULL, host TEXT NOT NULL,
    used_s REAL NOT NULL, pieces BLOB NOT NULL);
"""
_SIDES = """
CREATE TABLE IF NOT EXISTS sides (piece BLOB PRIMARY KEY, segment INTEGER NOT NULL, file TEXT NOT NULL,
    n_rows INTEGER NOT NULL, has_state INTEGER NOT NULL, n_bytes INTEGER NOT NULL, header_xxh3 TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS sides_segment ON sides (segment);
"""
_CODECS = """
ALTER TABLE segments ADD COLUMN codec TEXT NOT NULL DEFAULT 'exact';
"""
_FACTS = """
ALTER TABLE agents ADD COLUMN facts TEXT;
ALTER TABLE turns ADD COLUMN n_reply INTEGER;
"""

_VERSIONS = """
ALTER TABLE agents ADD COLUMN branch INTEGER;
CREATE TABLE branches (branch INTEGER PRIMARY KEY, base INTEGER NOT NULL, n_base INTEGER NOT NULL, xxh3 BLOB NOT NULL);
CREATE INDEX branches_base ON branches (base);
CREATE TABLE versions (agent INTEGER NOT NULL, number INTEGER NOT NULL, branch INTEGER NOT NULL,
    n_turns INTEGER NOT NULL, created_s REAL NOT NULL, label BLOB, reason TEXT NOT NULL, system BLOB, facts TEXT,
    holder INTEGER NOT NULL, xxh3 BLOB NOT NULL, PRIMARY KEY (agent, number));
CREATE INDEX versions_branch ON versions (branch);
"""

_SHARING = """
ALTER TABLE segments ADD COLUMN source_segment INTEGER;
ALTER TABLE segments ADD COLUMN n_shared INTEGER NOT NULL DEFAULT 0;
"""

#: What each write version added, in order: a new store takes them all, an older one those that it lacks.
MIGRATIONS = ((1, _TABLES), (2, _SIDES), (3, _CODECS), (4, _FACTS), (5, _VERSIONS), (6, _SHARING), (7, ""))


_AUTO_VACUUM = 2  #: incremental
#: Pages of the WAL at which it is folded back: half of SQLite's own number, so that it stays below 4 MiB even where
#: a large transaction comes last.
_WAL_PAGES = 512


def connect(path: Path | None, key: FileKey | None = None) -> sqlite3.Connection:
    """A database in WAL mode that can give pages back; None: in memory. For one lock to guard, on any thread.

    On a full disk, which has no room for the index of its WAL, that index is in memory.
    """
    try:
        return _connect(path, "NORMAL", key)
    except sqlite3.OperationalError:
        if path is None:
            raise
        return _connect(path, "EXCLUSIVE", key)


def _connect(path: Path | None, locking: str, key: FileKey | None) -> sqlite3.Connection:
    db = sqlite.connect(path or ":memory:", key)
    try:
        guard(db)
        db.execute(f"PRAGMA locking_mode={locking}")
        if db.execute("PRAGMA auto_vacuum").fetchone()[0] != _AUTO_VACUUM:  # else setting it writes
            db.execute(f"PRAGMA auto_vacuum={_AUTO_VACUUM}")  # first: it says how the first page is written
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA secure_delete=FAST")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:  # also Ctrl-C: nobody else closes it
        db.close()
        raise
    return db


def guard(db: sqlite3.Connection) -> None:
    """Let no trigger and no view of a database run, whoever put it there and when: a statement that would is an error.

    Text that is no UTF-8 is read with marks in place of what cannot be read.
    """
    db.execute("PRAGMA trusted_schema=OFF")
    db.set_authorizer(lambda *asked: sqlite3.SQLITE_OK if asked[4] is None else sqlite3.SQLITE_DENY)
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")


@functools.cache
def _written_schemas() -> dict[int, frozenset[tuple[str, ...]]]:
    """What ``sqlite_master`` holds after each write version's migration."""
    found: dict[int, frozenset[tuple[str, ...]]] = {}
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for version, statements in MIGRATIONS:
            db.executescript(statements)
            found[version] = frozenset(_objects(db))
    return found


def _objects(db: sqlite3.Connection) -> Iterator[tuple[str, ...]]:
    """Every table, index, view and trigger, by what it was made with; SQLite's own statistics left out."""
    for kind, name, table, sql in db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"):
        if not str(name).startswith("sqlite_stat"):
            yield str(kind), str(name), str(table), " ".join(str(sql).split())


def check_schema(db: sqlite3.Connection, version: int) -> None:
    """Raise sqlite3.DatabaseError where a database is not what that write version made."""
    found, written = frozenset(_objects(db)), _written_schemas().get(version, frozenset())
    if found != written:
        kinds = sorted({f"{kind} {name}" for kind, name, *_ in found ^ written})
        raise sqlite3.DatabaseError(f"its schema is not what write version {version} makes: {', '.join(kinds[:3])}")


def free_pages(db: sqlite3.Connection) -> tuple[int, int]:
    """Pages that hold nothing and could be given back, and all pages; a database made without that has none."""
    (free,), (total,) = db.execute("PRAGMA freelist_count").fetchone(), db.execute("PRAGMA page_count").fetchone()
    (mode,) = db.execute("PRAGMA auto_vacuum").fetchone()
    return (free if mode == _AUTO_VACUUM else 0), total


def give_back(db: sqlite3.Connection, n_pages: int) -> None:
    """Move the last pages to where free ones are, and end the file before them. Inside a transaction."""
    for _ in range(n_pages):
        db.execute("PRAGMA incremental_vacuum(1)")  # Python steps such a statement once, whatever its number says


def is_empty(db: sqlite3.Connection) -> bool:
    """True if a database has no table yet."""
    return not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def version_of(db: sqlite3.Connection) -> int:
    """The write version of a database; 0 for an empty one."""
    if is_empty(db):
        return 0
    found = db.execute("SELECT value FROM meta WHERE key = 'write_version'").fetchone()
    return 1 if found is None else int(found[0])


def migrate(db: sqlite3.Connection) -> None:
    """Bring a database to this write version. Inside a transaction."""
    found = version_of(db)
    for version, statements in MIGRATIONS:
        if version > found:
            for statement in statements.split(";"):
                db.execute(statement)
    facts = {"read_version": READ_VERSION, "created_s": time.time()}
    db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", [(k, str(v)) for k, v in facts.items()])
    db.execute("INSERT OR REPLACE INTO meta VALUES ('write_version', ?)", (str(WRITE_VERSION),))


def check_versions(path: Path, key: FileKey | None = None) -> None:
    """Refuse what a newer version wrote, untouched, and whatever no version wrote.

    Raises IncompatibleStoreError; sqlite3.DatabaseError for a schema that is not the one of its write version.
    """
    with contextlib.closing(_for_reading(path, key)) as db:
        if is_empty(db):
            if db.execute("PRAGMA freelist_count").fetchone()[0]:
                raise sqlite3.DatabaseError("its tables are gone")
            return
        meta = next(one for one in _written_schemas()[1] if one[:2] == ("table", "meta"))
        if meta not in frozenset(_objects(db)):  # else reading it might run a view
            raise sqlite3.DatabaseError("its schema is not what any version makes: meta")
        found = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('read_version', 'write_version')"))
        try:
            write = _ensure_supported(path, found)
        except (KeyError, ValueError, TypeError) as error:
            raise sqlite3.DatabaseError(f"its versions are {found}") from error
        check_schema(db, write)


def ensure_readable(path: Path, meta: Mapping[str, str]) -> None:
    """Raise IncompatibleStoreError for what a newer version wrote, StoreError for what says nothing of its version."""
    try:
        _ensure_supported(path, meta)
    except (KeyError, ValueError) as error:
        raise StoreError(f"{path} says nothing of its version: it is no manifest of this library") from error


def _ensure_supported(path: Path, meta: Mapping[str, str]) -> int:
    """Return the write version."""
    read, write = int(meta["read_version"]), int(meta.get("write_version", 1))
    if read > READ_VERSION or write > WRITE_VERSION:
        raise IncompatibleStoreError(
            f"{path.parent} was written with read version {read} and write version {write}; this version of "
            f"agent_memory supports up to {READ_VERSION} and {WRITE_VERSION}. Use a newer agent_memory, or another "
            "folder."
        )
    return write


def _for_reading(path: Path, key: FileKey | None) -> sqlite3.Connection:
    """A connection that changes no byte. On a full disk, which has no room for a WAL's index, one to the file alone
    where there is no WAL.
    """
    for options in ("mode=ro", "mode=ro&immutable=1"):
        db = sqlite.connect(f"{path.resolve().as_uri()}?{options}", key, uri=True)
        try:
            guard(db)
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return db
        except sqlite3.OperationalError:
            db.close()
            if options != "mode=ro" or _has_wal(path):
                raise
        except BaseException:  # also Ctrl-C: nobody else closes it
            db.close()
            raise
    raise AssertionError


def _has_wal(path: Path) -> bool:
    wal = path.with_name(f"{path.name}-wal")
    return wal.exists() and wal.stat().st_size > 0
