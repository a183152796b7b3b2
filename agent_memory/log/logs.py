"""Logs: the rows of agents, their turns and facts, written, read and checked.

A turn and an agent's own record carry a checksum each. A log is read up to its first damaged turn.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_memory.errors import StoreError
from agent_memory.log.blobs import agent_sum, blob_text, salt_digest, text_blob
from agent_memory.log.branches import (
    REFERRED,
    Reading,
    collect,
    drop_versions,
    put_branch,
    put_version,
    read_versions,
)
from agent_memory.log.database import Database
from agent_memory.log.listing import AGENT, LIVE, AgentRows, read_agent
from agent_memory.log.pins import pin, unpin
from agent_memory.log.soundness import is_count, sound_agent
from agent_memory.log.turn_rows import end_turns, put_turn
from agent_memory.log.turns import Turn
from agent_memory.log.versions import AgentRecord, Change, Span, ids_of
from agent_memory.prompt.messages import to_json
from agent_memory.types import AgentInfo

#: An agent's system prompt and facts.
Described = tuple[str | None, str | None]

#: Turns that take the place of others, by branch and number.
Rewritten = Mapping[tuple[int, int], Turn]

_ORPHANS = f"SELECT count(*) FROM turns WHERE agent NOT IN ({REFERRED})"
_OLD_ORPHANS = "SELECT count(*) FROM turns WHERE agent NOT IN (SELECT agent FROM agents)"
_LAST_NUMBERS = (
    "SELECT seq FROM sqlite_sequence UNION SELECT max(branch) FROM branches UNION SELECT max(base) FROM branches UNION "
    "SELECT max(branch) FROM versions UNION SELECT max(holder) FROM versions UNION SELECT max(branch) FROM agents "
    "UNION SELECT max(agent) FROM turns"
)


class Logs:
    """Agents and logs of one database. Any thread. Raises sqlite3.Error and OSError as they come.

    Rows may have been altered: values that no version writes are left out or replaced by neutral ones, and reported as
    damage.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_number: int | None = None
        self._agents = AgentRows(database)
        self._has_versions = self._agents.has_versions

    def load_agent(self, salt: str, name: str) -> tuple[AgentRecord, str | None] | None:
        """Return the agent with its log up to the first damaged turn, and what was damaged."""
        with self._database.reading() as db:
            row = db.execute(
                f"SELECT {self._agents.columns} FROM agents a WHERE salt = ? AND name = ?",
                (salt_digest(salt), text_blob(name)),
            ).fetchone()
            if row is None:
                return None
            agent, is_whole = read_agent(row)
            if agent is None:
                return None
            reading = Reading(db)
            state, damage = reading.turns(_live(agent))
            kept, lost = read_versions(db, agent["agent"], reading) if self._has_versions else ((), None)
        damage = (damage or lost) if is_whole else "the agent's own record"
        record = AgentRecord(
            agent["agent"],
            name,
            None if agent["system"] is None else blob_text(agent["system"]),
            blob_text(agent["tools"]),
            state.turns,
            agent["created_s"],
            agent["used_s"],
            agent["agent"] in self.pinned(),
            facts=agent["facts"],
            spans=state.spans,
            kept=kept,
        )
        return record, damage

    def create_agent(
        self, salt: str, name: str, *, system: str | None, tools: str, facts: str | None = None
    ) -> AgentRecord:
        """Commit a new agent. Raises StoreError where it exists."""
        now = time.time()
        record = AgentRecord(self.new_number(), name, system, tools, (), now, now, facts=facts)
        try:
            with self._database.transaction() as db:
                put_agent(db, salt, record)
        except sqlite3.IntegrityError as error:
            raise StoreError(f"agent {name!r} exists already; load it instead of creating it") from error
        return record

    def new_number(self) -> int:
        """Return a number that no agent, branch or version has, nor will have in this process."""
        with self._database.reading() as db:
            if self._last_number is None:
                found = [n for (n,) in db.execute(_LAST_NUMBERS) if is_count(n)]
                self._last_number = max(found, default=0)
            self._last_number += 1
            return self._last_number

    def fork(self, salt: str, record: AgentRecord, turns: Sequence[tuple[Turn, str]]) -> None:
        """Commit a new agent whose log begins with another one's; ``turns``: its last ones, which are its own."""
        with self._database.transaction() as db:
            put_agent(db, salt, record)
            put_branch(db, record.agent_id, _base(record.spans), turns)
            for kept in record.kept:
                put_version(db, record.agent_id, kept)

    def change(self, change: Change, turns: Sequence[tuple[Turn, str]] = ()) -> list[int]:
        """Commit a change of a log; nothing where the agent is gone. ``turns``: the change's, with their JSON.

        Returns the numbers under which the KV of dropped versions was held.
        """
        with self._database.transaction() as db:
            told = (change.agent_id,)
            if db.execute("SELECT 1 FROM agents WHERE agent = ?", told).fetchone() is None:
                return []
            for number, base, own in change.branches:
                put_branch(db, number, base, [(turn, to_json(turn.messages)) for turn in own])
            holders = [h for n in change.dropped for h in _holders(db, change.agent_id, n)]
            freed = drop_versions(db, change.agent_id, change.dropped)
            for kept in change.kept:
                put_version(db, change.agent_id, kept)
            left = []
            if change.branch is not None:
                left = [b for (b,) in db.execute(f"SELECT {LIVE} FROM agents a WHERE agent = ?", told)]
                db.execute("UPDATE agents SET branch = ? WHERE agent = ?", (change.branch, change.agent_id))
                put_branch(db, change.branch, change.base, turns)
            _describe_agent(db, change.agent_id, (change.system, change.facts))
            collect(db, left, freed)
        renumbered = {kept.holder for kept in change.kept}
        return [holder for holder in holders if holder not in renumbered]

    def list_agents(self, salt: str) -> list[AgentInfo]:
        """Return all agents of one salt, by name."""
        return self._agents.infos(salt)

    def names(self, salt: str) -> dict[int, str]:
        """Return the name of every agent of a salt, by its number."""
        with self._database.reading() as db:
            rows = db.execute("SELECT agent, name FROM agents WHERE salt = ?", (salt_digest(salt),))
            return {number: blob_text(name) for number, name in rows}

    def pinned(self) -> set[int]:
        """Return the numbers of the pinned agents, of all salts."""
        return self._agents.pinned()

    def pin(self, agent_id: int, is_pinned: bool) -> None:
        """Commit that an agent is pinned, or no longer."""
        with self._database.transaction() as db:
            (pin if is_pinned else unpin)(db, agent_id)

    def append_turn(
        self, agent_id: int, number: int, turn: Turn, messages: str, described: Described | None = None
    ) -> None:
        """Commit turn ``number`` in place of any from there on; nothing where the agent is gone. ``messages``: JSON.

        ``described``: first system prompt and facts of the agent from now on, where they changed.
        """
        with self._database.transaction() as db:
            if not db.execute("UPDATE agents SET used_s = ? WHERE agent = ?", (time.time(), agent_id)).rowcount:
                return
            (branch,) = db.execute(f"SELECT {LIVE} FROM agents a WHERE agent = ?", (agent_id,)).fetchone()
            end_turns(db, branch, number)
            put_turn(db, branch, number, turn, messages)
            if described is not None:
                _describe_agent(db, agent_id, described)

    def describe(self, agent_id: int, described: Described) -> None:
        """Commit another first system prompt and facts of an agent."""
        with self._database.transaction() as db:
            _describe_agent(db, agent_id, described)

    def has_agent(self, agent_id: int) -> bool:
        """True if the agent exists."""
        with self._database.reading() as db:
            return db.execute("SELECT 1 FROM agents WHERE agent = ?", (agent_id,)).fetchone() is not None

    def has_holder(self, number: int) -> bool:
        """True if an agent or a version has that number."""
        with self._database.reading() as db:
            held = "SELECT 1 FROM agents WHERE agent = ? UNION SELECT 1 FROM versions WHERE holder = ?"
            return db.execute(held, (number, number)).fetchone() is not None

    def holders(self) -> dict[int, int]:
        """Return the agent of each version, by the number that the version's KV is held under."""
        with self._database.reading() as db:
            rows = db.execute("SELECT holder, agent FROM versions") if self._has_versions else ()
            return {holder: agent for holder, agent in rows if is_count(holder) and holder}

    def holders_of(self, agent_id: int) -> list[int]:
        """Return the numbers that the KV of an agent's versions is held under."""
        with self._database.reading() as db:
            rows = db.execute("SELECT holder FROM versions WHERE agent = ?", (agent_id,))
            return [holder for (holder,) in rows if is_count(holder) and holder]

    def without_kv(self) -> dict[int, np.ndarray[Any, Any]]:
        """Return the ids of every fork under whose number no KV is held, as far as they had their KV."""
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT a.agent, b.branch FROM agents a JOIN branches b ON b.branch = {LIVE} "
                "WHERE NOT EXISTS (SELECT 1 FROM lineages l WHERE l.agent = a.agent)"
            ).fetchall()
            reading = Reading(db)
            found = {agent: reading.turns(branch)[0].turns for agent, branch in rows}
        return {agent: ids_of(turns)[: turns[-1].n_kv] for agent, turns in found.items() if turns}

    def n_agents(self) -> int:
        """Return how many agents there are, of all salts."""
        with self._database.reading() as db:
            return int(db.execute("SELECT count(*) FROM agents").fetchone()[0])

    def damaged_turns(self) -> tuple[int, list[str]]:
        """Return how many turns there are, and one line for each damaged log or agent."""
        found = []
        with self._database.reading() as db:
            total = int(db.execute("SELECT count(*) FROM turns").fetchone()[0])
            for row in db.execute(f"SELECT {self._agents.columns} FROM agents a").fetchall():
                agent, is_whole = read_agent(row)
                reading = Reading(db)
                _, damage = reading.turns(row[0] if agent is None else _live(agent))
                _, lost = read_versions(db, row[0], reading) if self._has_versions else ((), None)
                damage = (damage or lost) if is_whole else "its own record"
                if damage is not None:
                    who = repr(blob_text(agent["name"])) if agent is not None else f"number {row[0]}"
                    found.append(f"agent {who}: {damage} is damaged")
            if n_orphans := db.execute(_ORPHANS if self._has_versions else _OLD_ORPHANS).fetchone()[0]:
                found.append(f"{n_orphans} turns are of no agent")
            check = db.execute("PRAGMA quick_check").fetchone()[0]
        return total, found if check == "ok" else [*found, f"manifest: {check}"]

    def examine(self) -> str | None:
        """Return what is wrong with the rows, beyond what a log's checksums say when it is read; None: nothing."""
        with self._database.reading() as db:
            rows = db.execute(f"SELECT {self._agents.columns} FROM agents a").fetchall()
            numbers = db.execute("SELECT seq FROM sqlite_sequence").fetchall()
            n_orphans = db.execute(_ORPHANS).fetchone()[0]
        if n_orphans:
            return f"{n_orphans} turns are no agent's"
        agents = [dict(zip(AGENT, row, strict=True)) for row in rows]
        n_bad = sum(sound_agent(row) != row for row in agents)
        if n_bad or not all(is_count(n) and n >= max((r["agent"] for r in agents), default=0) for (n,) in numbers):
            return f"{n_bad} rows of agents make no sense"
        return None


def end_agent(db: sqlite3.Connection, agent_id: int) -> None:
    """Delete an agent's record, its pin, its log and its versions, but what other agents' logs share.

    Inside a transaction.
    """
    branches = [b for (b,) in db.execute(f"SELECT {LIVE} FROM agents a WHERE agent = ?", (agent_id,))]
    db.execute("DELETE FROM agents WHERE agent = ?", (agent_id,))
    unpin(db, agent_id)
    collect(db, branches, drop_versions(db, agent_id, None))


def replace_turns(db: sqlite3.Connection, turns: Rewritten) -> None:
    """Let other turns stand in some branches. Inside a transaction."""
    for (branch, number), turn in turns.items():
        db.execute("DELETE FROM turns WHERE agent = ? AND number = ?", (branch, number))
        put_turn(db, branch, number, turn, to_json(turn.messages))


def _describe_agent(db: sqlite3.Connection, agent_id: int, described: Described) -> None:
    """Give an agent another first system prompt and facts, under a new checksum; nothing where the agent is gone."""
    system, facts = described
    row = db.execute("SELECT name, tools, created_s, branch FROM agents WHERE agent = ?", (agent_id,)).fetchone()
    if row is not None:
        name, tools, created_s = blob_text(row[0]), blob_text(row[1]), row[2]
        told = None if system is None else text_blob(system)
        digest = agent_sum(name, system, tools, created_s, facts, row[3])
        db.execute("UPDATE agents SET system = ?, facts = ?, xxh3 = ? WHERE agent = ?", (told, facts, digest, agent_id))


def _live(agent: Mapping[str, Any]) -> int:
    """The branch that an agent's next turn is added to."""
    branch: int = agent["agent"] if agent["branch"] is None else agent["branch"]
    return branch


def _base(spans: Sequence[Span]) -> Span | None:
    """Where a log's last branch leaves another one."""
    return Span(spans[-2].branch, spans[-1].start) if len(spans) > 1 else None


def _holders(db: sqlite3.Connection, agent_id: int, number: int) -> list[int]:
    rows = db.execute("SELECT holder FROM versions WHERE agent = ? AND number = ?", (agent_id, number))
    return [holder for (holder,) in rows if is_count(holder) and holder]


def put_agent(db: sqlite3.Connection, salt: str, record: AgentRecord) -> None:
    """Add an agent's record. Inside a transaction; raises sqlite3.IntegrityError where it exists."""
    digest = agent_sum(record.name, record.system, record.tools, record.created_s, record.facts)
    row = (
        record.agent_id,
        salt_digest(salt),
        text_blob(record.name),
        None if record.system is None else text_blob(record.system),
        text_blob(record.tools),
        record.created_s,
        record.used_s,
        digest,
        record.facts,
    )
    names = "agent, salt, name, system, tools, created_s, used_s, xxh3, facts"
    db.execute(f"INSERT INTO agents ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
