"""Statements on the manifest's tables: turns of a log, segments, side files, heads of lineages. Under its lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from agent_memory.log.facts import Facts
from agent_memory.log.turns import Turn, agent_sum, blob_text, text_blob, turn_sum
from agent_memory.prefix.resume import Side
from agent_memory.prompt.messages import from_json
from agent_memory.store.records import SegmentRow
from agent_memory.store.soundness import BAD_JSON, is_turn, sound_agent

#: An agent's system prompt and facts.
Described = tuple[str | None, str | None]

_COLUMNS = tuple(a.name for a in attrs.fields(SegmentRow))
_SIDE_COLUMNS = ("piece", "segment", "file", "n_rows", "has_state", "n_bytes", "header_xxh3")

AGENT_COLUMNS = ("agent", "salt", "name", "system", "tools", "created_s", "used_s", "facts", "xxh3")

#: Part of every transaction.
COUNT_COMMIT = (
    "INSERT INTO meta VALUES ('commits', '1') ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
)


def read_agent(row: Sequence[Any]) -> tuple[dict[str, Any] | None, bool]:
    """The agent of a row with AGENT_COLUMNS, and whether it is as it was written; None: it has no name."""
    found = sound_agent(dict(zip(AGENT_COLUMNS, row, strict=True)))
    if found is None:
        return None, False
    system = None if found["system"] is None else blob_text(found["system"])
    digest = agent_sum(blob_text(found["name"]), system, blob_text(found["tools"]), found["created_s"], found["facts"])
    return found, digest == found["xxh3"]


def system_now(agent: Mapping[str, Any]) -> str | None:
    """The system prompt of an agent's newest turn; its column holds the one before the first turn."""
    later = Facts.from_json(agent["facts"]).system
    return later if later is not None or agent["system"] is None else blob_text(agent["system"])


def read_turns(db: sqlite3.Connection, agent_id: int) -> tuple[tuple[Turn, ...], str | None]:
    """A log up to its first damaged turn, and which that is."""
    turns: list[Turn] = []
    rows = db.execute(
        "SELECT number, messages, keep, ids, tokenizer, finish, created_s, n_messages_kept, n_kv, n_reply, xxh3 "
        "FROM turns WHERE agent = ? ORDER BY number",
        (agent_id,),
    )
    for number, messages, keep, ids, tokenizer, finish, created_s, kept, n_kv, n_reply, digest in rows:
        try:
            turn = checked_turn(
                agent_id, number, messages, keep, ids, tokenizer, finish, created_s, kept, n_kv, n_reply, digest
            )
            if number != len(turns):
                raise ValueError("it does not follow the turn before it")
            turn = attrs.evolve(turn, messages=from_json(messages))
        except BAD_JSON:
            return tuple(turns), f"turn {len(turns)}"
        turns.append(turn)
    return tuple(turns), None


def checked_turn(
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


def put_turn(db: sqlite3.Connection, agent_id: int, number: int, turn: Turn, messages: str) -> None:
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


def describe_agent(db: sqlite3.Connection, agent_id: int, described: Described) -> None:
    """Give an agent another first system prompt and facts, under a new checksum; nothing where the agent is gone."""
    system, facts = described
    row = db.execute("SELECT name, tools, created_s FROM agents WHERE agent = ?", (agent_id,)).fetchone()
    if row is not None:
        name, tools, created_s = blob_text(row[0]), blob_text(row[1]), row[2]
        told = None if system is None else text_blob(system)
        digest = agent_sum(name, system, tools, created_s, facts)
        db.execute("UPDATE agents SET system = ?, facts = ?, xxh3 = ? WHERE agent = ?", (told, facts, digest, agent_id))


def read_segments(db: sqlite3.Connection, identity: str | None) -> list[SegmentRow]:
    """All segments, or those of one identity, parents before children."""
    where, given = ("WHERE identity = ?", (identity,)) if identity is not None else ("", ())
    rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM segments {where} ORDER BY segment", given)
    lenient, db.text_factory = db.text_factory, str  # many texts, all ASCII: any other is an error
    try:
        return [SegmentRow(*row) for row in rows]
    finally:
        db.text_factory = lenient


def put_segments(db: sqlite3.Connection, segments: Iterable[SegmentRow]) -> None:
    """Segments that exist from now on, or are otherwise than they were."""
    marks = ",".join("?" * len(_COLUMNS))
    rows = [tuple(getattr(row, name) for name in _COLUMNS) for row in segments]
    db.executemany(f"INSERT OR REPLACE INTO segments ({', '.join(_COLUMNS)}) VALUES ({marks})", rows)


def drop_segments(db: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Segments that no longer exist, and their side files with them."""
    rows = [(n,) for n in numbers]
    db.executemany("DELETE FROM segments WHERE segment = ?", rows)
    db.executemany("DELETE FROM sides WHERE segment = ?", rows)


def read_sides(db: sqlite3.Connection) -> list[Side]:
    """All side files."""
    rows = db.execute(f"SELECT {', '.join(_SIDE_COLUMNS)} FROM sides")
    return [Side(**dict(zip(_SIDE_COLUMNS, row, strict=True)), is_ready=True) for row in rows]


def put_sides(db: sqlite3.Connection, sides: Iterable[Side]) -> None:
    """Side files that exist from now on, one for a piece."""
    rows = [tuple(getattr(side, name) for name in _SIDE_COLUMNS) for side in sides]
    db.executemany(f"INSERT OR REPLACE INTO sides VALUES ({','.join('?' * len(_SIDE_COLUMNS))})", rows)


def drop_sides(db: sqlite3.Connection, sides: Iterable[Side]) -> None:
    """Side files that no longer exist."""
    db.executemany("DELETE FROM sides WHERE piece = ? AND file = ?", [(side.piece, side.file) for side in sides])


def rehang_segments(db: sqlite3.Connection, rehang: Mapping[int, int]) -> None:
    """What hung on some segments hangs on those that take their place."""
    rows = [(new, old) for old, new in rehang.items()]
    db.executemany("UPDATE sides SET segment = ? WHERE segment = ?", rows)
    db.executemany("UPDATE segments SET parent_segment = ? WHERE parent_segment = ?", rows)


def move_lineage(db: sqlite3.Connection, agent_id: int, identity: str, head: bytes, former: Iterable[bytes]) -> None:
    """An agent's lineage ends with another piece, and no longer with some former ones."""
    rows = [(agent_id, identity, one) for one in former]
    db.executemany("DELETE FROM lineages WHERE agent = ? AND identity = ? AND head = ?", rows)
    db.execute("INSERT OR IGNORE INTO lineages VALUES (?, ?, ?)", (agent_id, identity, head))


def end_agent(db: sqlite3.Connection, agent_id: int) -> None:
    """An agent no longer exists, nor its log."""
    for table in ("agents", "turns", "lineages"):
        db.execute(f"DELETE FROM {table} WHERE agent = ?", (agent_id,))


def end_turns(db: sqlite3.Connection, agent_id: int, n_turns: int) -> None:
    """A log has its first turns alone. Rows whose number could not have been written would hide what comes later."""
    odd = "number < 0 OR typeof(number) != 'integer'"
    db.execute(f"DELETE FROM turns WHERE agent = ? AND (number >= ? OR {odd})", (agent_id, n_turns))


def move_heads(db: sqlite3.Connection, moved: Mapping[bytes, bytes]) -> None:
    """Lineages that end with another piece now."""
    for old, new in moved.items():
        db.execute("UPDATE OR REPLACE lineages SET head = ? WHERE head = ?", (new, old))


def note_written(db: sqlite3.Connection, written: str) -> None:
    """Bytes of the day."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('written', ?)", (written,))
