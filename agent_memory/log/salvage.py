"""Logs out of a damaged manifest: every row that SQLite still reads and whose checksum holds."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attrs import frozen

from agent_memory.log.branches import is_whole_branch, is_whole_version
from agent_memory.log.damage import is_damage
from agent_memory.log.database import Database, manifest_key, open_database
from agent_memory.log.pins import pin, pinned_in
from agent_memory.log.schema import guard
from agent_memory.log.soundness import is_count, sound_agent
from agent_memory.log.turn_rows import is_whole_turn
from agent_memory.sealing import sqlite
from agent_memory.sealing.keys import Keys

#: columns without a default that older versions did not write
_ADDED = {("agents", "facts"), ("agents", "branch"), ("turns", "n_reply")}
_TABLES = ("agents", "branches", "versions", "turns", "meta")
_PATIENCE = 10_000  #: unreadable row numbers in a row, after which a table is given up

Row = dict[str, Any]

#: True if a row of a table outside this room is trusted, given the numbers of the agents and versions found.
IsSound = Callable[[Row, Collection[int]], bool]


@frozen
class Salvaged:
    """How much of the logs was found again."""

    n_agents: int = 0
    n_turns: int = 0

    def __str__(self) -> str:
        return f"{self.n_agents} agents with {self.n_turns} turns"


def readable_rows(path: Path, keys: Keys | None, tables: Iterable[str]) -> dict[str, list[Row]]:
    """Return the rows of a damaged manifest that SQLite still reads, by table. ``tables``: those of other rooms.

    Raises OSError or sqlite3.Error where the file cannot be read now, or, of an encrypted one, the copy that is read
    cannot be written: then what it holds is unknown.
    """
    with closing(open_database(None)) as new, new.reading() as db:
        columns = {table: _columns(db, table) for table in (*_TABLES, *tables)}
    found: dict[str, list[Row]] = {table: [] for table in columns}
    try:
        with _readable_file(path, keys) as db:
            for table in columns:
                found[table] = list(_readable(db, table, columns[table]))
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
    return found


def salvage(found: Mapping[str, list[Row]], database: Database, others: Mapping[str, IsSound]) -> Salvaged:
    """Copy what can be trusted of ``readable_rows`` into a new, empty database, in one transaction.

    A turn is trusted where its checksum and those of all before it in its branch hold. An agent's own record keeps its
    checksum, right or wrong, so that damage in it is noted whenever the agent is opened; of the store's own facts the
    pins are copied. ``others``: tables of other rooms, and which of their rows are trusted.
    """
    sound = [agent for row in found["agents"] if is_count(row["agent"]) and (agent := sound_agent(row)) is not None]
    agents = {row["agent"] for row in sound}
    branches = [row for row in found["branches"] if is_whole_branch(row)]
    versions = [row for row in found["versions"] if is_whole_version(row) and row["agent"] in agents]
    starts = {row["branch"]: row["n_base"] for row in branches}
    live = {row["agent"] if row.get("branch") is None else row["branch"] for row in sound}
    referred = live | {row["base"] for row in branches} | {row["branch"] for row in versions}
    turns = _sound_turns(found["turns"], {branch: starts.get(branch, 0) for branch in referred})
    rows = {"agents": sound, "branches": branches, "versions": versions, "turns": turns}
    owners = agents | {row["holder"] for row in versions}
    rows |= {table: [row for row in found[table] if is_sound(row, owners)] for table, is_sound in others.items()}
    with database.transaction() as db:
        for table, wanted in rows.items():
            for row in wanted:
                names, marks = ", ".join(row), ", ".join("?" * len(row))
                with suppress(sqlite3.IntegrityError, OverflowError):
                    db.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))
        for number in agents & pinned_in(row["key"] for row in found["meta"]):
            pin(db, number)
    return Salvaged(len(sound), len(turns))


@contextmanager
def _readable_file(path: Path, keys: Keys | None) -> Iterator[sqlite3.Connection]:
    """Open a damaged manifest. One that is encrypted and has lost its first page is read with that of a new one.

    The first page has the places of the tables, which are the same in each manifest that was made in one go. All of an
    encrypted page is lost with one bit of it.
    """
    with ExitStack() as opened:
        opened.callback(path.with_name(f"{path.name}-shm").unlink, missing_ok=True)
        name = f"{path.resolve().as_uri()}?mode=ro"  # one that may write folds the WAL as it closes
        db = opened.enter_context(closing(sqlite.connect(name, manifest_key(keys), uri=True)))
        guard(db)
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError:
            if keys is None:
                raise
            mended = Path(opened.enter_context(TemporaryDirectory())) / "mended"
            _mend(path, mended, keys)
            db = opened.enter_context(closing(sqlite.connect(mended, manifest_key(keys))))
            guard(db)
            db.execute("PRAGMA writable_schema=ON")  # its first page counts more pages than there are
        yield db


def _mend(path: Path, place: Path, keys: Keys) -> None:
    """Copy an encrypted manifest and its WAL, with the first page of a new one that has no fewer pages."""
    new = place.with_name("new")
    database = open_database(new, keys=keys)
    with database.transaction() as db:
        db.execute("INSERT INTO meta VALUES ('', zeroblob(?))", (path.stat().st_size,))
    database.close()
    shutil.copyfile(path, place)
    with suppress(FileNotFoundError):  # closed, it has none
        shutil.copyfile(f"{path}-wal", f"{place}-wal")
    with new.open("rb") as source, place.open("r+b") as target:
        target.write(source.read(sqlite.PAGE_BYTES))


def _columns(db: sqlite3.Connection, table: str) -> dict[str, bool]:
    """The columns of a table, and whether a later version than the first added each."""
    rows = db.execute(f"PRAGMA table_info({table})")
    return {name: default is not None or (table, name) in _ADDED for _, name, _, _, default, _ in rows}


def _readable(db: sqlite3.Connection, table: str, columns: Mapping[str, bool]) -> Iterator[Row]:
    """The rows of a table in order, by its columns' names; pages that SQLite cannot read are stepped over."""
    try:
        kinds = db.execute("SELECT type, sql FROM sqlite_master WHERE name = ?", (table,)).fetchall()
        is_table = [kind for kind, sql in kinds if str(sql).startswith("CREATE TABLE")] == ["table"]
        there = set(_columns(db, table))
    except sqlite3.Error:
        return
    if not is_table or not {name for name, is_new in columns.items() if not is_new} <= there:
        return  # its definition is damaged too
    names = [name for name in columns if name in there]
    last, misses = 0, 0
    while misses < _PATIENCE:
        try:
            rows = db.execute(f"SELECT rowid, {', '.join(names)} FROM {table} WHERE rowid > ? ORDER BY rowid", (last,))
            for row in rows:
                last, misses = row[0], 0
                yield dict(zip(names, row[1:], strict=True))
            return
        except sqlite3.Error:
            last, misses = last + 1, misses + 1


def _sound_turns(rows: list[Row], starts: Mapping[int, int]) -> list[Row]:
    """The turns of each branch, from the number that it starts at, up to the first that is missing."""
    by_branch: dict[int, dict[int, Row]] = {branch: {} for branch in starts}
    for row in rows:
        if row["agent"] in by_branch and is_whole_turn(row):
            by_branch[row["agent"]][row["number"]] = row
    found: list[Row] = []
    for branch, turns in by_branch.items():
        for number in range(starts[branch], starts[branch] + len(turns)):
            if number not in turns:
                break
            found.append(turns[number])
    return found
