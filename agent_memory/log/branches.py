"""Branches and versions: which rows hold a log's turns, and what is kept of earlier states. Under the database's lock.

- A branch is a run of turns that only grows. It begins at number 0, or where it leaves another branch, its base, which
  holds the turns before.
- An agent's log is the branch that the agent names; a version is a branch and a number of turns.
- Turns end when no agent, version or branch refers to them. Each row carries a checksum.
"""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import xxhash
from attrs import define, field

from agent_memory.log.blobs import blob_text, text_blob
from agent_memory.log.facts import Facts
from agent_memory.log.listing import LIVE
from agent_memory.log.soundness import BAD_JSON, is_agent_facts, is_count, is_time
from agent_memory.log.turn_rows import checked_turn, put_turn
from agent_memory.log.turns import Turn
from agent_memory.log.versions import REASONS, Kept, Span, State, Version
from agent_memory.prompt.messages import from_json

VERSIONS = "versions"
_BRANCH = ("branch", "base", "n_base", "xxh3")
_VERSION = (
    "agent", "number", "branch", "n_turns", "created_s", "label", "reason", "system", "facts", "holder", "xxh3",
)  # fmt: skip
_LEAST = -(1 << 63)  #: no number is below: a row before a branch's first turn is damage
_DEEP = 10_000  #: branches that leave one another in a row; more are a cycle

#: Branches that something refers to.
REFERRED = f"SELECT {LIVE} FROM agents a UNION SELECT base FROM branches UNION SELECT branch FROM versions"


def branch_sum(branch: int, base: int, n_base: int) -> bytes:
    """The checksum of a branch's row."""
    return xxhash.xxh3_64_digest(json.dumps([branch, base, n_base]).encode())


def version_sum(row: Sequence[Any]) -> bytes:
    """The checksum of a version's row, by _VERSION without the checksum."""
    told = [value.hex() if isinstance(value, bytes) else value for value in row]
    return xxhash.xxh3_64_digest(json.dumps(told).encode())


def is_whole_branch(row: dict[str, Any]) -> bool:
    """True if a branch's row is as it was written."""
    numbers = [row[name] for name in _BRANCH[:3]]
    return all(map(is_count, numbers)) and row["n_base"] > 0 and branch_sum(*numbers) == row["xxh3"]


def is_whole_version(row: dict[str, Any]) -> bool:
    """True if a version's row is as it was written."""
    values = [row[name] for name in _VERSION]
    try:
        is_typed = all(is_count(row[name]) for name in ("agent", "number", "branch", "n_turns", "holder"))
        is_told = is_time(row["created_s"]) and row["reason"] in REASONS and is_agent_facts(row["facts"])
        return is_typed and is_told and version_sum(values[:-1]) == row["xxh3"]
    except BAD_JSON:
        return False


def spans_of(db: sqlite3.Connection, branch: int, n_turns: int | None = None) -> tuple[tuple[Span, ...], bool]:
    """Return where a branch's turns are, or its first ``n_turns``, and whether every row on the way is whole."""
    found: list[Span] = []
    while len(found) < _DEEP:
        row = db.execute(f"SELECT {', '.join(_BRANCH)} FROM branches WHERE branch = ?", (branch,)).fetchone()
        if row is None:
            return (Span(branch, 0), *reversed(found)), True
        told = dict(zip(_BRANCH, row, strict=True))
        if not is_whole_branch(told):
            break
        if n_turns is None or told["n_base"] < n_turns:
            found.append(Span(branch, told["n_base"]))
        branch, n_turns = told["base"], told["n_base"] if n_turns is None else min(n_turns, told["n_base"])
    return (Span(branch, 0), *reversed(found)), False


class Reading:
    """The turns of some branches, each read and checked once: an agent's versions share most of theirs.

    Within one reading of the database.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._read: dict[int, _Read] = {}

    def turns(self, branch: int, n_turns: int | None = None) -> tuple[State, str | None]:
        """Return a branch's turns, or the first ``n_turns``, up to the first damaged one, and what was damaged.

        The state has neither a system prompt nor facts.
        """
        spans, is_whole = spans_of(self._db, branch, n_turns)
        turns: list[Turn] = []
        damage = None if is_whole else "where its turns are"
        for span, following in zip(spans, (*spans[1:], None), strict=True):
            damage = damage or self._add(span, following.start if following is not None else n_turns, turns)
            if damage is not None:
                break
        if damage is None and n_turns is not None and len(turns) != n_turns:
            damage = f"turn {len(turns)}"
        return State(turns=tuple(turns), spans=spans, system=None, facts=Facts()), damage

    def _add(self, span: Span, stop: int | None, turns: list[Turn]) -> str | None:
        """Add the turns of one branch up to number ``stop``; return the first damaged one."""
        if len(turns) != span.start:
            return f"turn {len(turns)}"
        read = self._read.setdefault(span.branch, _Read(span.start))
        if not read.is_over and (stop is None or read.stop < stop):
            read.go_on(self._db, span.branch, stop)
        found = read.turns if stop is None else read.turns[: max(0, stop - span.start)]
        turns += found
        is_short = read.is_damaged if stop is None else len(turns) < stop
        return f"turn {len(turns)}" if is_short or read.is_strange else None


@define(eq=False)
class _Read:
    """What was read of one branch: turns from number ``start`` on."""

    start: int
    turns: list[Turn] = field(factory=list)
    is_over: bool = False  #: True once nothing can follow: its end, or a damaged turn
    is_damaged: bool = False
    is_strange: bool = False  #: True if it has a row whose number is none

    @property
    def stop(self) -> int:
        """The number after the last turn that was read."""
        return self.start + len(self.turns)

    def go_on(self, db: sqlite3.Connection, branch: int, stop: int | None) -> None:
        """Read further turns, up to number ``stop``."""
        rows = db.execute(
            "SELECT agent, number, messages, keep, ids, tokenizer, finish, created_s, n_messages_kept, n_kv, n_reply, "
            "xxh3 FROM turns WHERE agent = ? AND ((number >= ? AND (? IS NULL OR number < ?)) "
            "OR typeof(number) != 'integer') ORDER BY number",
            (branch, self.stop if self.turns else _LEAST, stop, stop),
        )
        for row in rows:
            try:
                turn = checked_turn(*row)
                if row[1] != self.stop:
                    raise ValueError("it does not follow the turn before it")
                self.turns.append(attrs.evolve(turn, messages=from_json(row[2])))
            except BAD_JSON:
                self.is_over = self.is_damaged = True
                self.is_strange = type(row[1]) is not int
                return
        self.is_over = stop is None


def put_branch(db: sqlite3.Connection, branch: int, base: Span | None, turns: Sequence[tuple[Turn, str]]) -> None:
    """Begin a branch where it leaves ``base``, with turns of its own; those with the JSON of their messages."""
    start = 0
    if base is not None and base.start:
        start = base.start
        row = (branch, base.branch, base.start, branch_sum(branch, base.branch, base.start))
        db.execute("INSERT INTO branches VALUES (?, ?, ?, ?)", row)
    for number, (turn, messages) in enumerate(turns, start):
        put_turn(db, branch, number, turn, messages)


def put_version(db: sqlite3.Connection, agent_id: int, kept: Kept) -> None:
    """Add a version of an agent."""
    version, state = kept.version, kept.state
    row = (
        agent_id,
        version.number,
        state.spans[-1].branch,
        version.n_turns,
        version.created_s,
        None if version.label is None else text_blob(version.label),
        version.reason,
        None if state.system is None else text_blob(state.system),
        state.facts.to_json(),
        kept.holder,
    )
    db.execute(f"INSERT OR REPLACE INTO versions VALUES ({','.join('?' * len(_VERSION))})", (*row, version_sum(row)))


def read_versions(db: sqlite3.Connection, agent_id: int, reading: Reading) -> tuple[tuple[Kept, ...], str | None]:
    """Return an agent's versions, the oldest first, without damaged ones, and what was damaged of them."""
    found: list[Kept] = []
    damage = None
    rows = db.execute(f"SELECT {', '.join(_VERSION)} FROM versions WHERE agent = ? ORDER BY number", (agent_id,))
    for values in rows.fetchall():
        row = dict(zip(_VERSION, values, strict=True))
        state, lost = (None, "it") if not is_whole_version(row) else reading.turns(row["branch"], row["n_turns"])
        if state is None or lost is not None:
            damage = f"version {row['number']}"
            continue
        version = Version(
            number=row["number"],
            n_turns=row["n_turns"],
            created_s=row["created_s"],
            label=None if row["label"] is None else blob_text(row["label"]),
            reason=row["reason"],
        )
        system = None if row["system"] is None else blob_text(row["system"])
        state = attrs.evolve(state, system=system, facts=Facts.from_json(row["facts"]))
        found.append(Kept(version, state, row["holder"]))
    return tuple(found), damage


def drop_versions(db: sqlite3.Connection, agent_id: int, numbers: Iterable[int] | None) -> list[int]:
    """End versions of an agent, or all of them; return the branches that they referred to."""
    where, given = "agent = ?", [(agent_id,)]
    if numbers is not None:
        where, given = "agent = ? AND number = ?", [(agent_id, number) for number in numbers]  # type: ignore[misc]
    branches: list[int] = []
    for values in given:
        branches += [b for (b,) in db.execute(f"SELECT branch FROM versions WHERE {where}", values) if is_count(b)]
        db.execute(f"DELETE FROM versions WHERE {where}", values)
    return branches


def collect(db: sqlite3.Connection, left: Iterable[int], branches: Iterable[int]) -> None:
    """End the turns of some branches, and of their bases, that nothing refers to any more.

    ``left``: those to which an agent added its turns so far. No other agent adds any to them, so no agent is asked.
    """
    left = set(left)
    waiting = deque([*left, *branches])
    while waiting:
        branch = waiting.popleft()
        if (
            branch not in left
            and db.execute(f"SELECT 1 FROM agents a WHERE {LIVE} = ?", (branch,)).fetchone() is not None
        ):
            continue
        needed = [
            db.execute("SELECT max(n_turns) FROM versions WHERE branch = ?", (branch,)).fetchone()[0],
            db.execute("SELECT max(n_base) FROM branches WHERE base = ?", (branch,)).fetchone()[0],
        ]
        n_turns = max((n for n in needed if is_count(n)), default=0)
        db.execute("DELETE FROM turns WHERE agent = ? AND number >= ?", (branch, n_turns))
        if not n_turns:
            waiting += [
                b for (b,) in db.execute("SELECT base FROM branches WHERE branch = ?", (branch,)) if is_count(b)
            ]
            db.execute("DELETE FROM branches WHERE branch = ?", (branch,))
