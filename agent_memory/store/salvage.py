"""Logs out of a damaged manifest: every row that SQLite still reads and whose checksum holds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from agent_memory.log.turns import Turn, turn_sum
from agent_memory.store.manifest import Manifest

_TABLES = ("identities", "agents", "lineages", "turns")
_PATIENCE = 10_000  #: unreadable row numbers in a row, after which a table is given up

Row = dict[str, Any]


@frozen
class Salvaged:
    """How much of the logs was found again."""

    n_agents: int = 0
    n_turns: int = 0

    def __str__(self) -> str:
        return f"{self.n_agents} agents with {self.n_turns} turns"


def salvage(path: Path, manifest: Manifest) -> Salvaged:
    """Copy what can be trusted of the damaged file into a new, empty manifest, in one transaction.

    A turn is trusted where its checksum and those of all before it hold. An agent's own record keeps its checksum,
    right or wrong, so that damage in it is noted whenever the agent is opened.
    """
    found: dict[str, list[Row]] = {table: [] for table in _TABLES}
    with manifest.transaction() as new:
        columns = {table: _columns(new, table) for table in _TABLES}
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as db:
        for table in _TABLES:
            found[table] = list(_readable(db, table, columns[table]))
    agents = {row["agent"] for row in found["agents"] if isinstance(row["agent"], int)}
    turns = _sound_turns(found["turns"], agents)
    rows = {
        "identities": [row for row in found["identities"] if _is_identity(row)],
        "agents": [row for row in found["agents"] if _is_agent(row)],
        "lineages": [r for r in found["lineages"] if r["agent"] in agents and isinstance(r["head"], bytes)],
        "turns": turns,
    }
    with manifest.transaction() as db:
        for table, wanted in rows.items():
            for row in wanted:
                names, marks = ", ".join(row), ", ".join("?" * len(row))
                with suppress(sqlite3.IntegrityError, OverflowError):
                    db.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))
    return Salvaged(len(rows["agents"]), len(turns))


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]


def _readable(db: sqlite3.Connection, table: str, names: Sequence[str]) -> Iterator[Row]:
    """The rows of a table in order, by its columns' names; pages that SQLite cannot read are stepped over."""
    try:
        is_ours = set(names) <= set(_columns(db, table))  # else its definition is damaged too
    except sqlite3.Error:
        return
    last, misses = 0, 0
    while is_ours and misses < _PATIENCE:
        try:
            rows = db.execute(f"SELECT rowid, {', '.join(names)} FROM {table} WHERE rowid > ? ORDER BY rowid", (last,))
            for row in rows:
                last, misses = row[0], 0
                yield dict(zip(names, row[1:], strict=True))
            return
        except sqlite3.Error:
            last, misses = last + 1, misses + 1


def _is_identity(row: Row) -> bool:
    try:
        return isinstance(json.loads(row["facts"]), dict) and isinstance(json.loads(row["layout"]), list)
    except (ValueError, TypeError):
        return False


def _is_agent(row: Row) -> bool:
    blobs = [row[name] for name in ("salt", "name", "tools", "xxh3")]
    times = [row[name] for name in ("created_s", "used_s")]
    has_system = row["system"] is None or isinstance(row["system"], bytes)
    return all(isinstance(b, bytes) for b in blobs) and all(isinstance(t, float) for t in times) and has_system


def _sound_turns(rows: list[Row], agents: set[int]) -> list[Row]:
    by_agent: dict[int, dict[int, Row]] = {agent: {} for agent in agents}
    for row in rows:
        if row["agent"] in by_agent and _is_sound(row):
            by_agent[row["agent"]][row["number"]] = row
    found: list[Row] = []
    for turns in by_agent.values():
        for number in range(len(turns)):
            if number not in turns:
                break
            found.append(turns[number])
    return found


def _is_sound(row: Row) -> bool:
    try:
        turn = Turn(
            messages=(),
            keep=row["keep"],
            ids=np.frombuffer(row["ids"], "<u4"),
            tokenizer=row["tokenizer"],
            finish=row["finish"],
            created_s=row["created_s"],
            n_messages_kept=row["n_messages_kept"],
            n_kv=row["n_kv"],
        )
        return bool(turn_sum(row["agent"], row["number"], turn, row["messages"]) == row["xxh3"])
    except (ValueError, TypeError, AttributeError):
        return False
