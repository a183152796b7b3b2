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

from agent_memory.errors import StoreError
from agent_memory.log.turns import AgentRecord, Turn, agent_sum, blob_text, salt_digest, text_blob
from agent_memory.prefix.resume import Side
from agent_memory.store.files import Files
from agent_memory.store.format import WRITE_VERSION
from agent_memory.store.records import SegmentRow
from agent_memory.store.schema import connect, free_pages, give_back, migrate, version_of
from agent_memory.store.soundness import (
    disorder,
    is_count,
    is_facts,
    is_identity,
    is_layout,
    is_lineage,
    is_segment,
    is_side,
    is_time,
    sound_agent,
)
from agent_memory.store.tables import (
    AGENT_COLUMNS,
    COUNT_COMMIT,
    Described,
    describe_agent,
    drop_segments,
    drop_sides,
    end_agent,
    end_turns,
    move_heads,
    move_lineage,
    note_written,
    put_segments,
    put_sides,
    put_turn,
    read_agent,
    read_segments,
    read_sides,
    read_turns,
    rehang_segments,
    system_now,
)
from agent_memory.types import AgentInfo


class Manifest:
    """Agents, logs and the list of segments. ``path`` None: in memory; else what ``check_versions`` found whole.

    Raises sqlite3.Error and OSError as they come. What it reads may have been altered: values that no version writes
    are left out or made neutral, and noted as damage.
    """

    def __init__(self, path: Path | None, files: Files | None = None) -> None:
        self._lock = threading.RLock()
        self._files = files or Files()
        self._path = path
        if path is not None and not (path.exists() and path.stat().st_size):
            flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o600))  # SQLite gives its side files the same mode
        self._db = connect(path)
        try:
            if version_of(self._db) < WRITE_VERSION:
                with self.transaction() as db:
                    migrate(db)
        except BaseException:
            self._db.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable when it returns."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute(COUNT_COMMIT)
                self._files.commit(self._db)
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Fold the WAL back and close."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):
                self._files.fold(self._db)
            self._db.close()

    @property
    def is_whole(self) -> bool:
        """Whether, once closed, the file holds everything and there is no WAL beside it."""
        return self._path is not None and not self._path.with_name(f"{self._path.name}-wal").exists()

    def fold(self) -> None:
        """Fold the WAL back, so that it takes no bytes. I/O thread; two fsyncs."""
        with self._lock:
            self._files.fold(self._db)

    def shrink(self, from_share: float = 0.25) -> None:
        """Give the pages back that deleted rows left, from that share of the file on. I/O thread; a commit and a fold.

        All of them: what was deleted is in no file of the folder afterwards.
        """
        with self._lock:
            free, total = free_pages(self._db)
            if free > total * from_share:
                with self.transaction() as db:
                    give_back(db, free)
                self._files.fold(self._db)

    def examine(self) -> str | None:
        """What is wrong with a manifest that was not closed, beyond what logs say themselves; None: nothing.

        Reads all of it. sqlite3.DatabaseError where SQLite cannot read it.
        """
        with self._lock:
            check = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if check != "ok":
                return str(check)
            facts = self._db.execute("SELECT identity, layout, facts, created_s FROM identities").fetchall()
            agents = self._db.execute(f"SELECT {', '.join(AGENT_COLUMNS)} FROM agents").fetchall()
            heads = self._db.execute("SELECT agent, identity, head FROM lineages").fetchall()
            numbers = self._db.execute("SELECT seq FROM sqlite_sequence").fetchall()
            orphans = "SELECT count(*) FROM turns WHERE agent NOT IN (SELECT agent FROM agents)"
            n_lost = self._db.execute(orphans).fetchone()[0]
            rows, sides = read_segments(self._db, None), read_sides(self._db)
        if n_lost:
            return f"{n_lost} turns are no agent's"
        if not all(is_identity(i) and is_layout(t) and is_facts(f) and is_time(s) for i, t, f, s in facts):
            return "what it says of a model cannot be read"
        found = [dict(zip(AGENT_COLUMNS, row, strict=True)) for row in agents]
        n_bad = sum(sound_agent(row) != row for row in found) + sum(not is_lineage(*head) for head in heads)
        if n_bad or not all(is_count(n) and n >= max((r["agent"] for r in found), default=0) for (n,) in numbers):
            return f"{n_bad} rows of agents make no sense"
        n_bad = sum(not is_segment(row) for row in rows) + sum(not is_side(side) for side in sides)
        n_bad = n_bad or disorder(rows, sides)
        return f"{n_bad} of {len(rows) + len(sides)} rows make no sense" if n_bad else None

    @property
    def commits(self) -> int:
        """How many transactions there have been: what was lost of them shows here."""
        try:
            return int(self.meta("commits") or 0)
        except ValueError:
            return 0

    def meta(self, key: str) -> str | None:
        """A fact about the store itself."""
        with self._lock:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    # agents and logs

    def load_agent(self, salt: str, name: str) -> tuple[AgentRecord, str | None] | None:
        """The agent with its log up to the first damaged turn, and what was damaged."""
        with self._lock:
            row = self._db.execute(
                f"SELECT {', '.join(AGENT_COLUMNS)} FROM agents WHERE salt = ? AND name = ?",
                (salt_digest(salt), text_blob(name)),
            ).fetchone()
            if row is None:
                return None
            turns, damage = read_turns(self._db, row[0])
        agent, is_whole = read_agent(row)
        if agent is None or not is_whole:
            damage = "the agent's own record"
        if agent is None:
            return None
        record = AgentRecord(
            agent["agent"],
            name,
            None if agent["system"] is None else blob_text(agent["system"]),
            blob_text(agent["tools"]),
            turns,
            agent["created_s"],
            agent["used_s"],
            facts=agent["facts"],
        )
        return record, damage

    def create_agent(
        self, salt: str, name: str, *, system: str | None, tools: str, facts: str | None = None
    ) -> AgentRecord:
        """Commit a new agent. Raises StoreError where it exists."""
        now = time.time()
        digest = agent_sum(name, system, tools, now, facts)
        told = None if system is None else text_blob(system)
        row = (salt_digest(salt), text_blob(name), told, text_blob(tools), now, now, digest, facts)
        try:
            with self.transaction() as db:
                agent = db.execute(
                    "INSERT INTO agents (salt, name, system, tools, created_s, used_s, xxh3, facts) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                ).lastrowid
        except sqlite3.IntegrityError as error:
            raise StoreError(f"agent {name!r} exists already; load it instead of creating it") from error
        assert agent is not None
        return AgentRecord(agent, name, system, tools, (), now, now, facts=facts)

    def list_agents(self, salt: str, pins: Collection[int] = ()) -> list[AgentInfo]:
        """All agents of one salt, by name. ``pins``: those that are pinned."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT {', '.join(f'a.{name}' for name in AGENT_COLUMNS)}, t.number, t.n_messages, t.n_tokens "
                "FROM agents a LEFT JOIN turns t ON t.agent = a.agent "
                "AND t.number = (SELECT max(number) FROM turns WHERE agent = a.agent) WHERE a.salt = ?",
                (salt_digest(salt),),
            ).fetchall()
        found = []
        for *row, last, n_messages, n_tokens in rows:
            agent, _ = read_agent(row)
            if agent is None:
                continue
            is_sound = all(is_count(n) for n in (last, n_messages, n_tokens))
            info = AgentInfo(
                name=blob_text(agent["name"]),
                n_turns=last + 1 if is_sound else 0,
                n_messages=n_messages if is_sound else 0,
                n_tokens=n_tokens if is_sound else 0,
                system=system_now(agent),
                created_s=agent["created_s"],
                used_s=agent["used_s"],
                is_pinned=agent["agent"] in pins,
            )
            found.append(info)
        return sorted(found, key=lambda info: info.name)

    def meta_keys(self, prefix: str) -> list[str]:
        """The names of facts of the store that begin so."""
        with self._lock:
            return [key for (key,) in self._db.execute("SELECT key FROM meta") if str(key).startswith(prefix)]

    def append_turn(
        self, agent_id: int, number: int, turn: Turn, messages: str, described: Described | None = None
    ) -> None:
        """Commit turn ``number`` in place of any from there on; nothing where the agent is gone. ``messages``: JSON.

        ``described``: first system prompt and facts of the agent from now on, where they changed.
        """
        with self.transaction() as db:
            if not db.execute("UPDATE agents SET used_s = ? WHERE agent = ?", (time.time(), agent_id)).rowcount:
                return
            end_turns(db, agent_id, number)
            put_turn(db, agent_id, number, turn, messages)
            if described is not None:
                describe_agent(db, agent_id, described)

    def describe(self, agent_id: int, described: Described) -> None:
        """Commit another first system prompt and facts of an agent."""
        with self.transaction() as db:
            describe_agent(db, agent_id, described)

    def rewind(self, agent_id: int, n_turns: int) -> None:
        """Commit the removal of every turn after the first ``n_turns``."""
        with self.transaction() as db:
            end_turns(db, agent_id, n_turns)

    def has_agent(self, agent_id: int) -> bool:
        """Whether the agent exists."""
        with self._lock:
            return self._db.execute("SELECT 1 FROM agents WHERE agent = ?", (agent_id,)).fetchone() is not None

    def damaged_turns(self) -> tuple[int, list[str]]:
        """How many turns there are, and one line for each damaged log or agent."""
        found = []
        with self._lock:
            total = int(self._db.execute("SELECT count(*) FROM turns").fetchone()[0])
            for row in self._db.execute(f"SELECT {', '.join(AGENT_COLUMNS)} FROM agents").fetchall():
                _, damage = read_turns(self._db, row[0])
                agent, is_whole = read_agent(row)
                if agent is None or not is_whole:
                    damage = "its own record"
                if damage is not None:
                    who = repr(blob_text(agent["name"])) if agent is not None else f"number {row[0]}"
                    found.append(f"agent {who}: {damage} is damaged")
            orphans = "SELECT count(*) FROM turns WHERE agent NOT IN (SELECT agent FROM agents)"
            if n_orphans := self._db.execute(orphans).fetchone()[0]:
                found.append(f"{n_orphans} turns are of no agent")
            check = self._db.execute("PRAGMA quick_check").fetchone()[0]
        return total, found if check == "ok" else [*found, f"manifest: {check}"]

    def n_agents(self) -> int:
        """How many agents there are, of all salts."""
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM agents").fetchone()[0])

    # KV

    def attach(self, identity: str, layout: str, facts: Mapping[str, str]) -> None:
        """Record an identity and what is known of it; writes nothing where that is known already."""
        told = json.dumps(dict(facts), sort_keys=True)
        with self._lock:
            if self._db.execute("SELECT facts FROM identities WHERE identity = ?", (identity,)).fetchone() == (told,):
                return
        with self.transaction() as db:
            db.execute(
                "INSERT INTO identities VALUES (?, ?, ?, ?) "
                "ON CONFLICT (identity) DO UPDATE SET facts = excluded.facts",
                (identity, layout, told, time.time()),
            )

    def facts(self, model: str) -> dict[str, str]:
        """What was recorded of the model of this name that was first used last; {} for a new one."""
        with self._lock:
            rows = self._db.execute("SELECT facts FROM identities ORDER BY created_s DESC").fetchall()
        found: list[dict[str, str]] = [json.loads(row[0]) for row in rows if is_facts(row[0])]
        return next((facts for facts in found if facts.get("model") == model), {})

    def all_facts(self) -> dict[str, dict[str, str]]:
        """What was recorded of each identity."""
        with self._lock:
            rows = self._db.execute("SELECT identity, facts FROM identities").fetchall()
        return {str(identity): json.loads(facts) for identity, facts in rows if is_facts(facts)}

    def layout(self, identity: str) -> str | None:
        """The layout recorded for an identity, as ``attach`` was given it."""
        with self._lock:
            row = self._db.execute("SELECT layout FROM identities WHERE identity = ?", (identity,)).fetchone()
        return None if row is None else str(row[0])

    def segments(self, identity: str | None = None) -> list[SegmentRow]:
        """All segments, or those of one identity, parents before children; rows that make no sense are left out."""
        with self._lock:
            return [row for row in read_segments(self._db, identity) if is_segment(row)]

    def sides(self) -> list[Side]:
        """All side files; rows that make no sense are left out."""
        with self._lock:
            return [side for side in read_sides(self._db) if is_side(side)]

    def commit(
        self,
        *,
        add: Iterable[SegmentRow] = (),
        remove: Iterable[int] = (),
        rehang: Mapping[int, int] | None = None,
        add_sides: Iterable[Side] = (),
        remove_sides: Iterable[Side] = (),
        lineage: tuple[int, str, bytes, Iterable[bytes]] | None = None,
        heads: Mapping[bytes, bytes] | None = None,
        ended_agent: int | None = None,
        used: Mapping[int, float] | None = None,
        written: str | None = None,
    ) -> None:
        """One transaction: what ``edit.Edit`` says, times of use and the bytes of the day."""
        with self.transaction() as db:
            if written is not None:
                note_written(db, written)
            if used:
                db.executemany("UPDATE segments SET used_s = ? WHERE segment = ?", [(s, n) for n, s in used.items()])
            rehang_segments(db, rehang or {})
            drop_segments(db, [*remove, *(rehang or {})])
            drop_sides(db, remove_sides)
            put_sides(db, add_sides)
            put_segments(db, add)
            move_heads(db, heads or {})
            if lineage is not None:
                move_lineage(db, *lineage)
            if ended_agent is not None:
                end_agent(db, ended_agent)

    def lineage_identities(self, agent_id: int) -> frozenset[str]:
        """Identities under which an agent has stored KV."""
        with self._lock:
            rows = self._db.execute("SELECT DISTINCT identity FROM lineages WHERE agent = ?", (agent_id,))
            return frozenset(identity for (identity,) in rows if is_identity(identity))

    def heads(self) -> list[tuple[int, str, bytes]]:
        """(agent id, identity, piece id) of every lineage."""
        with self._lock:
            return [row for row in self._db.execute("SELECT agent, identity, head FROM lineages") if is_lineage(*row)]

    def heads_of(self, agent_id: int, identity: str) -> list[bytes]:
        """The heads of one agent under one identity."""
        with self._lock:
            rows = self._db.execute("SELECT head FROM lineages WHERE agent = ? AND identity = ?", (agent_id, identity))
            return [head for (head,) in rows if isinstance(head, bytes)]
