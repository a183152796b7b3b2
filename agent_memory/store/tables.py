"""Statements on the manifest's tables: turns of a log, segments, side files, heads of lineages. Under its lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

import attrs
import numpy as np

from agent_memory.log.turns import Turn, turn_sum
from agent_memory.prompt.messages import from_json
from agent_memory.store.points import Side
from agent_memory.store.records import SegmentRow

_COLUMNS = tuple(a.name for a in attrs.fields(SegmentRow))
_SIDE_COLUMNS = ("piece", "segment", "file", "n_rows", "has_state", "n_bytes", "header_xxh3")

#: Part of every transaction.
COUNT_COMMIT = (
    "INSERT INTO meta VALUES ('commits', '1') ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
)


def read_turns(db: sqlite3.Connection, agent_id: int) -> tuple[tuple[Turn, ...], str | None]:
    """A log up to its first damaged turn, and which that is."""
    turns: list[Turn] = []
    rows = db.execute(
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


def read_segments(db: sqlite3.Connection, identity: str | None) -> list[SegmentRow]:
    """All segments, or those of one identity, parents before children."""
    where, given = ("WHERE identity = ?", (identity,)) if identity is not None else ("", ())
    rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM segments {where} ORDER BY segment", given)
    return [SegmentRow(*row) for row in rows]


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


def drop_sides(db: sqlite3.Connection, pieces: Iterable[bytes]) -> None:
    """Side files that no longer exist."""
    db.executemany("DELETE FROM sides WHERE piece = ?", [(p,) for p in pieces])


def move_heads(db: sqlite3.Connection, moved: Mapping[bytes, bytes]) -> None:
    """Lineages that end with another piece now."""
    for old, new in moved.items():
        db.execute("UPDATE OR REPLACE lineages SET head = ? WHERE head = ?", (new, old))


def note_written(db: sqlite3.Connection, written: str) -> None:
    """Bytes of the day."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('written', ?)", (written,))
