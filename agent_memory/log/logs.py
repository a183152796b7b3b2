"""Logs: the rows of agents, their turns and facts, written, read and checked.

A turn and an agent's own record carry a checksum each. A log is read up to its first damaged turn.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from agent_memory.errors import StoreError
from agent_memory.log.database import Database
from agent_memory.log.facts import Facts
from agent_memory.log.soundness import BAD_JSON, is_count, is_turn, sound_agent
from agent_memory.log.turns import AgentRecord, Turn, agent_sum, blob_text, salt_digest, text_blob, turn_sum
from agent_memory.prompt.messages import from_json, to_json
from agent_memory.types import AgentInfo

#: An agent's system prompt and facts.
Described = tuple[str | None, str | None]

#: For each agent the number of a turn, and the turns that stand from there on.
Rewritten = Mapping[int, tuple[int, Sequence[Turn]]]

_AGENT = ("agent", "salt", "name", "system", "tools", "created_s", "used_s", "facts", "xxh3")
_OF_AGENT = ("agents", "turns")  #: tables of this room whose rows end with their agent
_ORPHANS = "SELECT count(*) FROM turns WHERE agent NOT IN (SELECT agent FROM agents)"
_PINNED = "pinned "  #: and an agent's number: the fact of the store that it is pinned


class Logs:
    """Agents and logs of one database. Any thread. Raises sqlite3.Error and OSError as they come.

    Rows may have been altered: values that no version writes are left out or replaced by neutral ones, and reported as
    damage.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def load_agent(self, salt: str, name: str) -> tuple[AgentRecord, str | None] | None:
        """Return the agent with its log up to the first damaged turn, and what was damaged."""
        with self._database.reading() as db:
            row = db.execute(
                f"SELECT {', '.join(_AGENT)} FROM agents WHERE salt = ? AND name = ?",
                (salt_digest(salt), text_blob(name)),
            ).fetchone()
            if row is None:
                return None
            turns, damage = _read_turns(db, row[0])
        agent, is_whole = _read_agent(row)
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
            agent["agent"] in self.pinned(),
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
            with self._database.transaction() as db:
                agent = db.execute(
                    "INSERT INTO agents (salt, name, system, tools, created_s, used_s, xxh3, facts) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                ).lastrowid
        except sqlite3.IntegrityError as error:
            raise StoreError(f"agent {name!r} exists already; load it instead of creating it") from error
        assert agent is not None
        return AgentRecord(agent, name, system, tools, (), now, now, facts=facts)

    def list_agents(self, salt: str) -> list[AgentInfo]:
        """Return all agents of one salt, by name."""
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT {', '.join(f'a.{name}' for name in _AGENT)}, t.number, t.n_messages, t.n_tokens "
                "FROM agents a LEFT JOIN turns t ON t.agent = a.agent "
                "AND t.number = (SELECT max(number) FROM turns WHERE agent = a.agent) WHERE a.salt = ?",
                (salt_digest(salt),),
            ).fetchall()
        pinned = self.pinned()
        found = []
        for *row, last, n_messages, n_tokens in rows:
            agent, _ = _read_agent(row)
            if agent is None:
                continue
            is_sound = all(is_count(n) for n in (last, n_messages, n_tokens))
            info = AgentInfo(
                name=blob_text(agent["name"]),
                n_turns=last + 1 if is_sound else 0,
                n_messages=n_messages if is_sound else 0,
                n_tokens=n_tokens if is_sound else 0,
                system=_system_now(agent),
                created_s=agent["created_s"],
                used_s=agent["used_s"],
                is_pinned=agent["agent"] in pinned,
            )
            found.append(info)
        return sorted(found, key=lambda info: info.name)

    def names(self, salt: str) -> dict[int, str]:
        """Return the name of every agent of a salt, by its number."""
        with self._database.reading() as db:
            rows = db.execute("SELECT agent, name FROM agents WHERE salt = ?", (salt_digest(salt),))
            return {number: blob_text(name) for number, name in rows}

    def pinned(self) -> set[int]:
        """Return the numbers of the pinned agents, of all salts."""
        numbers = [key.removeprefix(_PINNED) for key in self._database.meta_keys(_PINNED)]
        return {int(number) for number in numbers if number.isdecimal() and len(number) < 20}

    def pin(self, agent_id: int, is_pinned: bool) -> None:
        """Commit that an agent is pinned, or no longer."""
        change = "INSERT OR REPLACE INTO meta VALUES (?, '')" if is_pinned else "DELETE FROM meta WHERE key = ?"
        with self._database.transaction() as db:
            db.execute(change, (f"{_PINNED}{agent_id}",))

    def append_turn(
        self, agent_id: int, number: int, turn: Turn, messages: str, described: Described | None = None
    ) -> None:
        """Commit turn ``number`` in place of any from there on; nothing where the agent is gone. ``messages``: JSON.

        ``described``: first system prompt and facts of the agent from now on, where they changed.
        """
        with self._database.transaction() as db:
            if not db.execute("UPDATE agents SET used_s = ? WHERE agent = ?", (time.time(), agent_id)).rowcount:
                return
            _end_turns(db, agent_id, number)
            _put_turn(db, agent_id, number, turn, messages)
            if described is not None:
                _describe_agent(db, agent_id, described)

    def describe(self, agent_id: int, described: Described) -> None:
        """Commit another first system prompt and facts of an agent."""
        with self._database.transaction() as db:
            _describe_agent(db, agent_id, described)

    def rewind(self, agent_id: int, n_turns: int) -> None:
        """Commit the removal of every turn after the first ``n_turns``."""
        with self._database.transaction() as db:
            _end_turns(db, agent_id, n_turns)

    def has_agent(self, agent_id: int) -> bool:
        """True if the agent exists."""
        with self._database.reading() as db:
            return db.execute("SELECT 1 FROM agents WHERE agent = ?", (agent_id,)).fetchone() is not None

    def n_agents(self) -> int:
        """Return how many agents there are, of all salts."""
        with self._database.reading() as db:
            return int(db.execute("SELECT count(*) FROM agents").fetchone()[0])

    def damaged_turns(self) -> tuple[int, list[str]]:
        """Return how many turns there are, and one line for each damaged log or agent."""
        found = []
        with self._database.reading() as db:
            total = int(db.execute("SELECT count(*) FROM turns").fetchone()[0])
            for row in db.execute(f"SELECT {', '.join(_AGENT)} FROM agents").fetchall():
                _, damage = _read_turns(db, row[0])
                agent, is_whole = _read_agent(row)
                if agent is None or not is_whole:
                    damage = "its own record"
                if damage is not None:
                    who = repr(blob_text(agent["name"])) if agent is not None else f"number {row[0]}"
                    found.append(f"agent {who}: {damage} is damaged")
            if n_orphans := db.execute(_ORPHANS).fetchone()[0]:
                found.append(f"{n_orphans} turns are of no agent")
            check = db.execute("PRAGMA quick_check").fetchone()[0]
        return total, found if check == "ok" else [*found, f"manifest: {check}"]

    def examine(self) -> str | None:
        """Return what is wrong with the rows, beyond what a log's checksums say when it is read; None: nothing."""
        with self._database.reading() as db:
            rows = db.execute(f"SELECT {', '.join(_AGENT)} FROM agents").fetchall()
            numbers = db.execute("SELECT seq FROM sqlite_sequence").fetchall()
            n_orphans = db.execute(_ORPHANS).fetchone()[0]
        if n_orphans:
            return f"{n_orphans} turns are no agent's"
        agents = [dict(zip(_AGENT, row, strict=True)) for row in rows]
        n_bad = sum(sound_agent(row) != row for row in agents)
        if n_bad or not all(is_count(n) and n >= max((r["agent"] for r in agents), default=0) for (n,) in numbers):
            return f"{n_bad} rows of agents make no sense"
        return None


def end_agent(db: sqlite3.Connection, agent_id: int) -> None:
    """Delete an agent's record and its log. Inside a transaction."""
    for table in _OF_AGENT:
        db.execute(f"DELETE FROM {table} WHERE agent = ?", (agent_id,))


def replace_turns(db: sqlite3.Connection, logs: Rewritten) -> None:
    """Let other turns stand in some logs. Inside a transaction."""
    for agent_id, (first, turns) in logs.items():
        _end_turns(db, agent_id, first)
        for number, turn in enumerate(turns, first):
            _put_turn(db, agent_id, number, turn, to_json(turn.messages))


def is_whole_turn(row: Mapping[str, Any]) -> bool:
    """True if the checksum of a turn's row holds; columns by name, those of newer versions may be missing."""
    try:
        _checked_turn(
            row["agent"],
            row["number"],
            row["messages"],
            row["keep"],
            row["ids"],
            row["tokenizer"],
            row["finish"],
            row["created_s"],
            row["n_messages_kept"],
            row["n_kv"],
            row.get("n_reply"),
            row["xxh3"],
        )
    except BAD_JSON:
        return False
    return True


def _read_agent(row: Sequence[Any]) -> tuple[dict[str, Any] | None, bool]:
    """The agent of a row with _AGENT, and whether it is as it was written; None: it has no name."""
    found = sound_agent(dict(zip(_AGENT, row, strict=True)))
    if found is None:
        return None, False
    system = None if found["system"] is None else blob_text(found["system"])
    digest = agent_sum(blob_text(found["name"]), system, blob_text(found["tools"]), found["created_s"], found["facts"])
    return found, digest == found["xxh3"]


def _system_now(agent: Mapping[str, Any]) -> str | None:
    """The system prompt of an agent's newest turn; its column holds the one before the first turn."""
    later = Facts.from_json(agent["facts"]).system
    return later if later is not None or agent["system"] is None else blob_text(agent["system"])


def _read_turns(db: sqlite3.Connection, agent_id: int) -> tuple[tuple[Turn, ...], str | None]:
    """A log up to its first damaged turn, and which that is."""
    turns: list[Turn] = []
    rows = db.execute(
        "SELECT number, messages, keep, ids, tokenizer, finish, created_s, n_messages_kept, n_kv, n_reply, xxh3 "
        "FROM turns WHERE agent = ? ORDER BY number",
        (agent_id,),
    )
    for number, messages, keep, ids, tokenizer, finish, created_s, kept, n_kv, n_reply, digest in rows:
        try:
            turn = _checked_turn(
                agent_id, number, messages, keep, ids, tokenizer, finish, created_s, kept, n_kv, n_reply, digest
            )
            if number != len(turns):
                raise ValueError("it does not follow the turn before it")
            turn = attrs.evolve(turn, messages=from_json(messages))
        except BAD_JSON:
            return tuple(turns), f"turn {len(turns)}"
        turns.append(turn)
    return tuple(turns), None


def _checked_turn(
    agent_id: Any,
    number: Any,
    messages: Any,
    keep: Any,
    ids: Any,
    tokenizer: Any,
    finish: Any,
    created_s: Any,
    kept: Any,
    n_kv: Any,
    n_reply: Any,
    digest: Any,
) -> Turn:
    """The turn of a row, its messages not taken apart yet. Raises one of BAD_JSON where its checksum is wrong."""
    is_typed = isinstance(n_reply, int | None) and isinstance(tokenizer, str)
    if not is_typed or not is_turn((agent_id, number, keep, kept, n_kv), ids, created_s):
        raise ValueError("its values could not have been written")
    turn = Turn((), keep, np.frombuffer(ids, "<u4"), tokenizer, finish, created_s, kept, n_kv, n_reply)
    if turn_sum(agent_id, number, turn, messages) != digest or n_kv > keep + len(turn.ids):
        raise ValueError("its checksum is wrong")
    return turn


def _put_turn(db: sqlite3.Connection, agent_id: int, number: int, turn: Turn, messages: str) -> None:
    """Add a turn of a log; ``messages``: JSON of its own."""
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
        turn.n_reply,
    )
    db.execute(f"INSERT INTO turns VALUES ({','.join('?' * len(row))})", row)


def _describe_agent(db: sqlite3.Connection, agent_id: int, described: Described) -> None:
    """Give an agent another first system prompt and facts, under a new checksum; nothing where the agent is gone."""
    system, facts = described
    row = db.execute("SELECT name, tools, created_s FROM agents WHERE agent = ?", (agent_id,)).fetchone()
    if row is not None:
        name, tools, created_s = blob_text(row[0]), blob_text(row[1]), row[2]
        told = None if system is None else text_blob(system)
        digest = agent_sum(name, system, tools, created_s, facts)
        db.execute("UPDATE agents SET system = ?, facts = ?, xxh3 = ? WHERE agent = ?", (told, facts, digest, agent_id))


def _end_turns(db: sqlite3.Connection, agent_id: int, n_turns: int) -> None:
    """A log has its first turns alone. Rows whose number could not have been written would hide what comes later."""
    odd = "number < 0 OR typeof(number) != 'integer'"
    db.execute(f"DELETE FROM turns WHERE agent = ? AND (number >= ? OR {odd})", (agent_id, n_turns))
