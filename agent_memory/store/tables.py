"""Statements on the manifest's tables: segments, side files, heads of lineages. Under its lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

import attrs

from agent_memory.prefix.resume import Side
from agent_memory.store.records import SegmentRow

_COLUMNS = tuple(a.name for a in attrs.fields(SegmentRow))
_SIDE_COLUMNS = ("piece", "segment", "file", "n_rows", "has_state", "n_bytes", "header_xxh3")


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


def move_lineage(
    db: sqlite3.Connection, agent_id: int, identity: str, head: bytes | None, former: Iterable[bytes]
) -> None:
    """An agent's lineage ends with another piece, or with none, and no longer with some former ones."""
    rows = [(agent_id, identity, one) for one in former]
    db.executemany("DELETE FROM lineages WHERE agent = ? AND identity = ? AND head = ?", rows)
    if head is not None:
        db.execute("INSERT OR IGNORE INTO lineages VALUES (?, ?, ?)", (agent_id, identity, head))


def end_lineages(db: sqlite3.Connection, agent_id: int) -> None:
    """Delete the lineages of an agent."""
    db.execute("DELETE FROM lineages WHERE agent = ?", (agent_id,))


def move_heads(db: sqlite3.Connection, moved: Mapping[bytes, bytes]) -> None:
    """Lineages that end with another piece now."""
    for old, new in moved.items():
        db.execute("UPDATE OR REPLACE lineages SET head = ? WHERE head = ?", (new, old))


def note_written(db: sqlite3.Connection, written: str) -> None:
    """Bytes of the day."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('written', ?)", (written,))
