"""The manifest: one SQLite file of agents, their logs, and which segments exist (docs/format.md has the tables).

Its commit is the moment at which a save exists. One connection under one lock: callable from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import attrs
import numpy as np

from agent_memory.errors import IncompatibleStoreError, StoreError
from agent_memory.prompt.messages import from_json, to_json
from agent_memory.store.format import READ_VERSION, WRITE_VERSION
from agent_memory.store.points import Side
from agent_memory.store.records import (
    AgentRecord,
    SegmentRow,
    Turn,
    agent_sum,
    blob_text,
    salt_digest,
    text_blob,
    turn_sum,
)
from agent_memory.types import AgentInfo

SCHEMA = """
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
SIDES = """
CREATE TABLE IF NOT EXISTS sides (piece BLOB PRIMARY KEY, segment INTEGER NOT NULL, file TEXT NOT NULL,
    n_rows INTEGER NOT NULL, has_state INTEGER NOT NULL, n_bytes INTEGER NOT NULL, header_xxh3 TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS sides_segment ON sides (segment);
"""
CODECS = """
ALTER TABLE segments ADD COLUMN codec TEXT NOT NULL DEFAULT 'exact';
"""
#: What each write version added.
UPGRADES = ((2, SIDES), (3, CODECS))

_COLUMNS = tuple(a.name for a in attrs.fields(SegmentRow))
_SIDE_COLUMNS = ("piece", "segment", "file", "n_rows", "has_state", "n_bytes", "header_xxh3")


class Manifest:
    """Agents, logs and the list of segments. ``path`` None: in memory. Raises IncompatibleStoreError, StoreError."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.RLock()
        try:
            is_new = path is None or not path.exists() or path.stat().st_size == 0
            if path is not None and not is_new:
                _check_versions(path)
            if path is not None and is_new:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its side files the same mode
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA secure_delete=FAST")
            if is_new or not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._create()
            self._upgrade()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot open the store's manifest {path}: {error}") from error

    def _create(self) -> None:
        with self.transaction() as db:
            for statement in (SCHEMA + SIDES + CODECS).split(";"):
                db.execute(statement)
            versions = {"read_version": READ_VERSION, "write_version": WRITE_VERSION, "created_s": time.time()}
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, str(v)) for k, v in versions.items()])

    def _upgrade(self) -> None:
        """Bring a store of an older write version to this one."""
        found = self._db.execute("SELECT value FROM meta WHERE key = 'write_version'").fetchone()
        version = 1 if found is None else int(found[0])
        if version < WRITE_VERSION:
            with self.transaction() as db:
                for statement in ";".join(added for number, added in UPGRADES if number > version).split(";"):
                    db.execute(statement)
                db.execute("INSERT OR REPLACE INTO meta VALUES ('write_version', ?)", (str(WRITE_VERSION),))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable when it returns."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Fold the WAL back and close."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    # agents and logs

    def load_agent(self, salt: str, name: str) -> tuple[AgentRecord, str | None] | None:
        """The agent with its log up to the first damaged turn, and what was damaged."""
        with self._lock:
            row = self._db.execute(
                "SELECT agent, system, tools, created_s, used_s, xxh3 FROM agents WHERE salt = ? AND name = ?",
                (salt_digest(salt), text_blob(name)),
            ).fetchone()
            if row is None:
                return None
            turns, damage = self._turns(row[0])
        system, tools = None if row[1] is None else blob_text(row[1]), blob_text(row[2])
        if agent_sum(name, system, tools, row[3]) != row[5]:
            damage = "the agent's own record"
        return AgentRecord(row[0], name, system, tools, turns, row[3], row[4]), damage

    def _turns(self, agent_id: int) -> tuple[tuple[Turn, ...], str | None]:
        turns: list[Turn] = []
        rows = self._db.execute(
            "SELECT number, messages, keep, ids, tokenizer, finish, created_s, n_messages_kept, n_kv, xxh3 FROM turns "
            "WHERE agent = ? ORDER BY number",
            (agent_id,),
        )
        for number, messages, keep, ids, tokenizer, finish, created_s, kept, n_kv, digest in rows:
            try:
                turn = Turn((), keep, np.frombuffer(ids, "<u4"), tokenizer, finish, created_s, kept, n_kv)
                if number != len(turns) or turn_sum(agent_id, number, turn, messages) != digest:
                    raise ValueError("checksum")
                turns.append(attrs.evolve(turn, messages=from_json(messages)))
            except (ValueError, TypeError, AttributeError):
                return tuple(turns), f"turn {len(turns)}"
        return tuple(turns), None

    def create_agent(self, salt: str, name: str, *, system: str | None, tools: str) -> AgentRecord:
        """Commit a new agent. Raises StoreError where it exists."""
        now = time.time()
        digest = agent_sum(name, system, tools, now)
        told = None if system is None else text_blob(system)
        row = (salt_digest(salt), text_blob(name), told, text_blob(tools), now, now, digest)
        try:
            with self.transaction() as db:
                agent = db.execute(
                    "INSERT INTO agents (salt, name, system, tools, created_s, used_s, xxh3) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    row,
                ).lastrowid
        except sqlite3.IntegrityError as error:
            raise StoreError(f"agent {name!r} exists already; load it instead of creating it") from error
        assert agent is not None
        return AgentRecord(agent, name, system, tools, (), now, now)

    def list_agents(self, salt: str, pins: Collection[int] = ()) -> list[AgentInfo]:
        """All agents of one salt, by name. ``pins``: those that are pinned."""
        with self._lock:
            rows = self._db.execute(
                "SELECT a.agent, a.name, a.system, a.created_s, a.used_s, t.number, t.n_messages, t.n_tokens "
                "FROM agents a LEFT JOIN turns t ON t.agent = a.agent "
                "AND t.number = (SELECT max(number) FROM turns WHERE agent = a.agent) WHERE a.salt = ?",
                (salt_digest(salt),),
            ).fetchall()
        found = [
            AgentInfo(
                name=blob_text(name),
                n_turns=0 if last is None else last + 1,
                n_messages=n_messages or 0,
                n_tokens=n_tokens or 0,
                system=None if system is None else blob_text(system),
                created_s=created_s,
                used_s=used_s,
                is_pinned=agent in pins,
            )
            for agent, name, system, created_s, used_s, last, n_messages, n_tokens in rows
        ]
        return sorted(found, key=lambda info: info.name)

    def meta_keys(self, prefix: str) -> list[str]:
        """The names of facts of the store that begin so."""
        with self._lock:
            return [key for (key,) in self._db.execute("SELECT key FROM meta") if str(key).startswith(prefix)]

    def append_turn(self, agent_id: int, number: int, turn: Turn) -> None:
        """Commit turn ``number`` in place of any from there on; nothing where the agent is gone."""
        messages = to_json(turn.messages)
        row = (
            agent_id,
            number,
            messages,
            turn.n_messages_kept,
            turn.n_messages_kept + len(turn.messages),
            turn.keep,
            turn.keep + len(turn.ids),
            turn.tokenizer,
            turn.finish,
            turn.created_s,
            turn.n_kv,
            turn_sum(agent_id, number, turn, messages),
            turn.ids.astype("<u4").tobytes(),
        )
        with self.transaction() as db:
            if not db.execute("UPDATE agents SET used_s = ? WHERE agent = ?", (time.time(), agent_id)).rowcount:
                return
            db.execute("DELETE FROM turns WHERE agent = ? AND number >= ?", (agent_id, number))
            db.execute(f"INSERT INTO turns VALUES ({','.join('?' * len(row))})", row)

    def rewind(self, agent_id: int, n_turns: int) -> None:
        """Commit the removal of every turn after the first ``n_turns``."""
        with self.transaction() as db:
            db.execute("DELETE FROM turns WHERE agent = ? AND number >= ?", (agent_id, n_turns))

    def has_agent(self, agent_id: int) -> bool:
        """Whether the agent exists."""
        with self._lock:
            return self._db.execute("SELECT 1 FROM agents WHERE agent = ?", (agent_id,)).fetchone() is not None

    def damaged_turns(self) -> tuple[int, list[str]]:
        """How many turns there are, and one line for each damaged log or agent."""
        found = []
        with self._lock:
            total = int(self._db.execute("SELECT count(*) FROM turns").fetchone()[0])
            agents = self._db.execute("SELECT agent, name, system, tools, created_s, xxh3 FROM agents").fetchall()
            for agent, name, system, tools, created_s, digest in agents:
                _, damage = self._turns(agent)
                told = None if system is None else blob_text(system)
                if agent_sum(blob_text(name), told, blob_text(tools), created_s) != digest:
                    damage = "its own record"
                if damage is not None:
                    found.append(f"agent {blob_text(name)!r}: {damage} is damaged")
            check = self._db.execute("PRAGMA quick_check").fetchone()[0]
        return total, found if check == "ok" else [*found, f"manifest: {check}"]

    def n_agents(self) -> int:
        """How many agents there are, of all salts."""
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM agents").fetchone()[0])

    # KV

    def attach(self, identity: str, layout: str, facts: Mapping[str, str]) -> None:
        """Record an identity and what is known of it."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO identities VALUES (?, ?, ?, ?) "
                "ON CONFLICT (identity) DO UPDATE SET facts = excluded.facts",
                (identity, layout, json.dumps(dict(facts), sort_keys=True), time.time()),
            )

    def facts(self, model: str) -> dict[str, str]:
        """What was recorded of the model of this name that was first used last; {} for a new one."""
        with self._lock:
            rows = self._db.execute("SELECT facts FROM identities ORDER BY created_s DESC").fetchall()
        found: list[dict[str, str]] = [json.loads(row[0]) for row in rows]
        return next((facts for facts in found if facts.get("model") == model), {})

    def layout(self, identity: str) -> str | None:
        """The layout recorded for an identity, as ``attach`` was given it."""
        with self._lock:
            row = self._db.execute("SELECT layout FROM identities WHERE identity = ?", (identity,)).fetchone()
        return None if row is None else str(row[0])

    def segments(self, identity: str | None = None) -> list[SegmentRow]:
        """All segments, or those of one identity, parents before children."""
        where, given = ("WHERE identity = ?", (identity,)) if identity is not None else ("", ())
        with self._lock:
            rows = self._db.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM segments {where} ORDER BY segment", given
            ).fetchall()
        return [SegmentRow(**dict(zip(_COLUMNS, row, strict=True))) for row in rows]

    def sides(self) -> list[Side]:
        """All side files."""
        with self._lock:
            rows = self._db.execute(f"SELECT {', '.join(_SIDE_COLUMNS)} FROM sides").fetchall()
        return [Side(**dict(zip(_SIDE_COLUMNS, row, strict=True)), is_ready=True) for row in rows]

    def drop_sides(self, pieces: Iterable[bytes]) -> None:
        """Commit the end of some pieces' side files."""
        with self.transaction() as db:
            db.executemany("DELETE FROM sides WHERE piece = ?", [(p,) for p in pieces])

    def commit_segments(
        self,
        *,
        add: Iterable[SegmentRow] = (),
        drop: Iterable[int] = (),
        sides: Iterable[Side] = (),
        used: Mapping[int, float] | None = None,
        lineage: tuple[int, str, bytes, Iterable[bytes]] | None = None,
        moved: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """One transaction: segments that exist from now on, those that no longer do, times of use, an agent's head.

        ``sides``: side files that exist from now on. ``lineage``: agent id, identity, head, and former heads that it
        replaces. ``moved``: heads whose piece another took over.
        """
        with self.transaction() as db:
            if used:
                db.executemany("UPDATE segments SET used_s = ? WHERE segment = ?", [(s, n) for n, s in used.items()])
            _drop_segments(db, drop)
            side_rows = [tuple(getattr(side, name) for name in _SIDE_COLUMNS) for side in sides]
            db.executemany(f"INSERT OR REPLACE INTO sides VALUES ({','.join('?' * len(_SIDE_COLUMNS))})", side_rows)
            marks = ",".join("?" * len(_COLUMNS))
            rows = [tuple(getattr(row, name) for name in _COLUMNS) for row in add]
            db.executemany(f"INSERT OR REPLACE INTO segments ({', '.join(_COLUMNS)}) VALUES ({marks})", rows)
            for old, new in (moved or {}).items():
                db.execute("UPDATE OR REPLACE lineages SET head = ? WHERE head = ?", (new, old))
            if lineage is not None:
                agent_id, identity, head, stale = lineage
                stale_rows = [(agent_id, identity, former) for former in stale]
                db.executemany("DELETE FROM lineages WHERE agent = ? AND identity = ? AND head = ?", stale_rows)
                db.execute("INSERT OR IGNORE INTO lineages VALUES (?, ?, ?)", (agent_id, identity, head))

    def lineage_identities(self, agent_id: int) -> frozenset[str]:
        """Identities under which an agent has stored KV."""
        with self._lock:
            rows = self._db.execute("SELECT DISTINCT identity FROM lineages WHERE agent = ?", (agent_id,))
            return frozenset(identity for (identity,) in rows)

    def heads(self) -> list[tuple[int, str, bytes]]:
        """(agent id, identity, piece id) of every lineage."""
        with self._lock:
            return list(self._db.execute("SELECT agent, identity, head FROM lineages"))

    def heads_of(self, agent_id: int, identity: str) -> list[bytes]:
        """The heads of one agent under one identity."""
        with self._lock:
            rows = self._db.execute("SELECT head FROM lineages WHERE agent = ? AND identity = ?", (agent_id, identity))
            return [head for (head,) in rows]

    def delete_agent(
        self, agent_id: int, *, drop: Iterable[int], change: Iterable[SegmentRow], stale: Iterable[bytes] = ()
    ) -> None:
        """Commit the end of an agent, its log and the KV that was its alone; ``change``: segments now shorter.

        ``stale``: pieces whose side file no longer exists.
        """
        with self.transaction() as db:
            for table in ("agents", "turns", "lineages"):
                db.execute(f"DELETE FROM {table} WHERE agent = ?", (agent_id,))
            _drop_segments(db, drop)
            db.executemany("DELETE FROM sides WHERE piece = ?", [(p,) for p in stale])
            for row in change:
                db.execute(
                    "UPDATE segments SET file = ?, n_bytes = ?, header_xxh3 = ?, n_tokens = ?, pieces = ? "
                    "WHERE segment = ?",
                    (row.file, row.n_bytes, row.header_xxh3, row.n_tokens, row.pieces, row.segment),
                )


def _drop_segments(db: sqlite3.Connection, numbers: Iterable[int]) -> None:
    rows = [(n,) for n in numbers]
    db.executemany("DELETE FROM segments WHERE segment = ?", rows)
    db.executemany("DELETE FROM sides WHERE segment = ?", rows)


def _check_versions(path: Path) -> None:
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return
        found = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('read_version', 'write_version')"))
    finally:
        db.close()
    read, write = int(found.get("read_version", 0)), int(found.get("write_version", 0))
    if read > READ_VERSION or write > WRITE_VERSION or read < 1:
        raise IncompatibleStoreError(
            f"{path.parent} was written with read version {read} and write version {write}; this version of "
            f"agent_memory supports up to {READ_VERSION} and {WRITE_VERSION}. Use a newer agent_memory, or another "
            "folder."
        )
