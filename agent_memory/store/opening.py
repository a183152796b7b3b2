"""Opening a manifest that may be damaged or lost; if it is, a new one is made from everything that can be verified.

- A closed manifest has its checksum in the lock file. One that was not closed is examined by SQLite, and row by row.
- A damaged manifest is set aside, never changed.
- The new one gets the logs whose checksums hold, and the list of segments from the segments' own headers.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from attrs import frozen

from agent_memory.log.database import Database, open_database
from agent_memory.log.files import MANIFEST, Files, refuse_dangling
from agent_memory.log.lock import manifest_sum
from agent_memory.log.logs import Logs
from agent_memory.log.salvage import Salvaged, salvage
from agent_memory.log.schema import check_versions
from agent_memory.log.soundness import BAD_JSON
from agent_memory.store.folder import list_files
from agent_memory.store.format import KV_FOLDER
from agent_memory.store.manifest import Manifest
from agent_memory.store.rebuilding import SALVAGED, read_files, rebuild

log = logging.getLogger("agent_memory.store")

_NOT_DAMAGE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


@frozen
class Repair:
    """What was wrong with a manifest, and what the new one has."""

    what: str  #: "is missing", "is damaged (...)"
    aside: str | None  #: name under which the damaged manifest is kept
    logs: Salvaged
    n_segments: int  #: segments that their headers prove
    n_files: int  #: number of KV files

    def __str__(self) -> str:
        kept = f"; it is kept as {self.aside}" if self.aside else ""
        return (
            f"the manifest {self.what}{kept}. Found again: {self.logs}, {self.n_segments} of {self.n_files} KV files; "
            "what is missing of the logs is lost, KV is computed again"
        )


def open_manifest(root: Path, files: Files, closed: str | None, commits: int = 0) -> tuple[Database, Repair | None]:
    """Return the manifest of a store, repaired where that is needed.

    ``closed``: its checksum when the store was closed; ``commits``: how many of its transactions were acknowledged.

    Raises IncompatibleStoreError; OSError and sqlite3.Error where the disk refuses.
    """
    path = root / MANIFEST
    refuse_dangling(root / KV_FOLDER)
    if not path.exists() or not path.stat().st_size:
        has_kv = bool(list_files(root / KV_FOLDER))
        return (open_database(path, files), None) if not has_kv and not closed else _repair(root, files, "is missing")
    if path.with_name(f"{MANIFEST}-wal").exists():
        closed = None  # another program wrote to it since
    try:
        check_versions(path)
        if closed is not None and manifest_sum(path) != closed:
            return _repair(root, files, "is damaged (its checksum is wrong)")
        database = open_database(path, files)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
        return _repair(root, files, f"is damaged ({error})")
    if closed is None and (found := _examine(database, commits)) is not None:
        database.close()
        return _repair(root, files, f"is damaged ({found})")
    return database, None


def _examine(database: Database, commits: int) -> str | None:
    try:
        if lost := max(0, commits - database.commits):
            return f"{lost} of {commits} acknowledged changes are lost"
        return database.examine() or Logs(database).examine() or Manifest(database).examine()
    except (*BAD_JSON, sqlite3.DatabaseError) as error:
        if isinstance(error, sqlite3.Error) and not _is_damage(error):
            database.close()
            raise
        return str(error)


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _NOT_DAMAGE


def _repair(root: Path, files: Files, what: str) -> tuple[Database, Repair]:
    kv = read_files(root / KV_FOLDER)  # first: if it cannot be read now, nothing is changed
    aside = _set_aside(root, files)
    database = open_database(root / MANIFEST, files)
    logs = salvage(root / aside, database, SALVAGED) if aside is not None else Salvaged()
    repair = Repair(what, aside, logs, rebuild(kv, Manifest(database)), kv.n_files)
    log.warning("store: %s", repair)
    return database, repair


def _set_aside(root: Path, files: Files) -> str | None:
    """Rename the manifest and its WAL; return the new name, None if there was no manifest."""
    path = root / MANIFEST
    if not path.exists():
        return None
    number = 1
    while (root / f"{MANIFEST}.damaged-{number}").exists():
        number += 1
    aside = root / f"{MANIFEST}.damaged-{number}"
    wal = path.with_name(f"{MANIFEST}-wal")
    if wal.exists():
        files.rename(wal, aside.with_name(f"{aside.name}-wal"))
    files.unlink(path.with_name(f"{MANIFEST}-shm"))
    files.rename(path, aside)
    files.sync_folder(root)
    return aside.name
