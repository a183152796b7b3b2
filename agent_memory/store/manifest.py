"""The manifest's rows of KV: identities, segments of both kinds, and the heads of agents' lineages.

These rows have no checksum. In a damaged or altered file a value may have any type and size: rows that no version of
this library writes are left out.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve

from agent_memory.config import auto_budget
from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.log.carried import Arrival, put_arrival
from agent_memory.log.database import Database
from agent_memory.log.logs import Rewritten, end_agent, replace_turns
from agent_memory.log.salvage import IsSound
from agent_memory.prefix.pieces import NOBODY, PIECE_BYTES, HeadMove, Segment
from agent_memory.progress import Progress, silent
from agent_memory.store.sound import disorder, is_facts, is_identity, is_layout, is_lineage, is_model, is_sound

#: Column -> field of a Segment, by table. Fields without a column in ``sides`` are those of the segment it depends on.
_PAGE_ROWS = 1000  #: rows read in one transaction, a few milliseconds long
_ROWS = {
    "segment": "number",
    "identity": "identity",
    "file": "file",
    "n_bytes": "n_bytes",
    "header_xxh3": "header_xxh3",
    "parent": "parent",
    "parent_segment": "parent_number",
    "source_segment": "source_number",
    "n_shared": "n_shared",
    "start": "start",
    "n_tokens": "n_tokens",
    "chunk_tokens": "chunk_tokens",
    "exactness": "exactness",
    "codec": "codec",
    "host": "host",
    "used_s": "used_s",
    "pieces": "packed",
}
_SHARING = ("source_segment", "n_shared")  #: columns since write version 6
_RESUME = {
    "piece": "parent",
    "segment": "parent_number",
    "file": "file",
    "n_rows": "n_tokens",
    "has_state": "has_state",
    "n_bytes": "n_bytes",
    "header_xxh3": "header_xxh3",
}

#: Table of KV that no file proves -> the test of its rows, given the known agents.
SALVAGED: Mapping[str, IsSound] = {
    "identities": lambda row, _: is_model(row["identity"], row["layout"], row["facts"], row["created_s"]),
    "lineages": lambda row, agents: row["agent"] in agents and is_lineage(*row.values()),
}


class Manifest:
    """The KV rows of one database. Any thread. Raises sqlite3.Error and OSError."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def examine(self) -> str | None:
        """Return what is wrong with the rows of a manifest that was not closed; None: nothing. Reads all rows."""
        with self.database.reading() as db:
            models = db.execute("SELECT identity, layout, facts, created_s FROM identities").fetchall()
            heads = db.execute("SELECT agent, identity, head FROM lineages").fetchall()
            rows, resume = _read_rows(db, None), _read_resume(db)
        if not all(is_model(*row) for row in models):
            return "what it says of a model cannot be read"
        if n_bad := sum(not is_lineage(*head) for head in heads):
            return f"{n_bad} ends of lineages make no sense"
        n_bad = sum(not is_sound(segment) for segment in (*rows, *resume)) or disorder(rows, resume)
        return f"{n_bad} of {len(rows) + len(resume)} rows make no sense" if n_bad else None

    def attach(self, identity: str, layout: Layout, facts: Mapping[str, str]) -> Mapping[str, str]:
        """Record an identity and its facts; return them with the codecs that were chosen for it.

        Writes nothing if they are recorded already.
        """
        with self.database.reading() as db:
            row = db.execute("SELECT facts FROM identities WHERE identity = ?", (identity,)).fetchone()
        known: dict[str, str] = json.loads(row[0]) if row is not None and is_facts(row[0]) else {}
        facts = {**{name: codec for name, codec in known.items() if auto_budget(name) is not None}, **facts}
        told = json.dumps(facts, sort_keys=True)
        if row == (told,):
            return facts
        tensors = json.dumps([[t.name, t.heads, t.dim, t.dtype] for t in layout.tensors])
        with self.database.transaction() as db:
            db.execute(
                "INSERT INTO identities VALUES (?, ?, ?, ?) "
                "ON CONFLICT (identity) DO UPDATE SET facts = excluded.facts",
                (identity, tensors, told, time.time()),
            )
        return facts

    def choose(self, identity: str, setting: str, codec: str) -> None:
        """Record which codec a setting such as "auto:0.002" means for an identity."""
        with self.database.transaction() as db:
            row = db.execute("SELECT facts FROM identities WHERE identity = ?", (identity,)).fetchone()
            facts = {**json.loads(row[0]), setting: codec}
            db.execute(
                "UPDATE identities SET facts = ? WHERE identity = ?", (json.dumps(facts, sort_keys=True), identity)
            )

    def facts(self, model: str) -> dict[str, str]:
        """Return the facts of the newest identity of a model of this name; {} for a new model."""
        with self.database.reading() as db:
            rows = db.execute("SELECT facts FROM identities ORDER BY created_s DESC").fetchall()
        found: list[dict[str, str]] = [json.loads(row[0]) for row in rows if is_facts(row[0])]
        return next((facts for facts in found if facts.get("model") == model), {})

    def all_facts(self) -> dict[str, dict[str, str]]:
        """Return the facts of each identity."""
        with self.database.reading() as db:
            rows = db.execute("SELECT identity, facts FROM identities").fetchall()
        return {str(identity): json.loads(facts) for identity, facts in rows if is_facts(facts)}

    def layout(self, identity: str) -> Layout:
        """Return the full-attention tensors of an identity. Raises ValueError if the recorded layout makes no sense."""
        with self.database.reading() as db:
            row = db.execute("SELECT layout FROM identities WHERE identity = ?", (identity,)).fetchone()
        if row is None:
            return Layout(())
        if not is_layout(row[0]):
            raise ValueError("the layout that is recorded makes no sense")
        return Layout(tuple(TensorSpec(*tensor) for tensor in json.loads(row[0])))

    def segments(self, identity: str | None = None, report: Progress = silent) -> list[Segment]:
        """Return all segments, or those of one identity: rows first, parents before children, then resume segments.

        Rows that make no sense are left out. A resume segment whose segment is not stored has no identity.
        """
        with self.database.reading() as db:
            rows = [segment for segment in _read_rows(db, identity, report) if is_sound(segment)]
            resume = [segment for segment in _read_resume(db) if is_sound(segment)]
        known = {segment.number: segment for segment in rows}
        resume = [_completed(segment, known.get(segment.parent_number or 0)) for segment in resume]
        return [*rows, *(segment for segment in resume if identity is None or segment.identity)]

    @staticmethod
    def differ(row: Segment, segment: Segment) -> bool:
        """True if a segment in memory differs from its row.

        Not compared: times of use, which are written later, and pieces of identities that are not attached.
        """
        told, found = _row_of(row), _row_of(segment)
        return any(told[name] != found[name] for name in told if name != "used_s" and (name != "pieces" or found[name]))

    def packed(self, identity: str) -> dict[int, bytes]:
        """Return the pieces of each segment of an identity, by its number."""
        with self.database.reading() as db:
            return {s.number: s.packed for s in _read_rows(db, identity) if is_sound(s)}

    def pieces_of(self, segments: Iterable[Segment]) -> Iterator[tuple[Segment, list[bytes]]]:
        """Yield stored segments with the ids of their pieces, from memory where they are there."""
        with self.database.reading() as db:
            for segment in segments:
                row = None
                if not (ids := segment.piece_ids()):
                    row = db.execute("SELECT pieces FROM segments WHERE segment = ?", (segment.number,)).fetchone()
                if row is not None and isinstance(row[0], bytes) and not len(row[0]) % PIECE_BYTES:
                    ids = evolve(segment, packed=row[0]).piece_ids()
                yield segment, ids

    def commit(
        self,
        *,
        add: Iterable[Segment] = (),
        remove: Iterable[Segment] = (),
        rehang: Mapping[int, int] | None = None,
        dependents: Mapping[int, Iterable[int]] | None = None,
        heads: Sequence[HeadMove] = (),
        lineage: HeadMove | None = None,
        ended_agent: int | None = None,
        arrival: Arrival | None = None,
        moves: Sequence[HeadMove] = (),
        used: Mapping[int, float] | None = None,
        written: str | None = None,
    ) -> None:
        """Commit the change of an Edit, times of use and the bytes of the day, in one transaction.

        ``heads``, ``moves``: of lineages beside the one of a save, made before it and last. ``dependents``: numbers of
        the segments that depend on each one in ``rehang``.
        """
        with self.database.transaction() as db:
            if written is not None:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('written', ?)", (written,))
            if used:
                db.executemany("UPDATE segments SET used_s = ? WHERE segment = ?", [(s, n) for n, s in used.items()])
            _rehang(db, rehang or {}, dependents or {})
            _drop(db, [*remove])
            _put(db, [*add])
            for move in heads:
                _move(db, move)
            if lineage is not None:
                _move(db, lineage)
            if ended_agent is not None:
                end_agent(db, ended_agent)
                db.execute("DELETE FROM lineages WHERE agent = ?", (ended_agent,))
            if arrival is not None:
                put_arrival(db, arrival)
            for move in moves:
                _move(db, move)

    def lineage_identities(self, agent_id: int) -> frozenset[str]:
        """Return the identities under which an agent has stored KV."""
        with self.database.reading() as db:
            rows = db.execute("SELECT DISTINCT identity FROM lineages WHERE agent = ?", (agent_id,))
            return frozenset(identity for (identity,) in rows if is_identity(identity))

    def heads(self) -> list[tuple[int, str, bytes]]:
        """Return (agent id, identity, piece id) of every lineage."""
        with self.database.reading() as db:
            return [row for row in db.execute("SELECT agent, identity, head FROM lineages") if is_lineage(*row)]

    def gather(self, holders: Iterable[int], agent_id: int) -> None:
        """Give the lineages of some versions to their agent, in one transaction."""
        rows = [(agent_id, holder) for holder in holders]
        if rows:
            with self.database.transaction() as db:
                db.executemany("UPDATE OR REPLACE lineages SET agent = ? WHERE agent = ?", rows)

    def forget(self, logs: Rewritten, kv_of: Collection[int]) -> None:
        """Commit replaced turns, and give the KV of agents ``kv_of``, and KV of no agent, to ``NOBODY``. I/O thread."""
        with self.database.transaction() as db:
            replace_turns(db, logs)
            for agent_id in kv_of:
                db.execute("UPDATE OR REPLACE lineages SET agent = ? WHERE agent = ?", (NOBODY, agent_id))
            ends = [(NOBODY, s.identity, s.piece_ids()[-1]) for s in _read_rows(db, None) if is_sound(s)]
            db.executemany("INSERT OR IGNORE INTO lineages VALUES (?, ?, ?)", ends)

    def has_head(self, holders: Iterable[int], identity: str, head: bytes) -> bool:
        """True if the lineage of one of some holders ends in a piece; one look-up each."""
        query = "SELECT 1 FROM lineages WHERE agent = ? AND identity = ? AND head = ?"
        with self.database.reading() as db:
            return any(db.execute(query, (one, identity, head)).fetchone() is not None for one in holders)

    def heads_of(self, agent_id: int, identity: str) -> list[bytes]:
        """Return the heads of one agent under one identity."""
        with self.database.reading() as db:
            rows = db.execute("SELECT head FROM lineages WHERE agent = ? AND identity = ?", (agent_id, identity))
            return [head for (head,) in rows if isinstance(head, bytes)]


def _row_of(segment: Segment) -> dict[str, Any]:
    """Return the row of a segment, by column."""
    if segment.kind == "resume":
        return {column: getattr(segment, name) for column, name in _RESUME.items()}
    return {column: getattr(segment, name) for column, name in _ROWS.items()} | {"pieces": segment.pack()}


def _read_rows(db: sqlite3.Connection, identity: str | None, report: Progress = silent) -> list[Segment]:
    where, given = ("AND identity = ?", (identity,)) if identity is not None else ("", ())
    there = {row[1] for row in db.execute("PRAGMA table_info(segments)")}  # an older store that is only viewed has less
    columns = [column for column in _ROWS if column in there or column not in _SHARING]
    query = f"SELECT {', '.join(columns)} FROM segments WHERE segment > ? {where} ORDER BY segment LIMIT {_PAGE_ROWS}"
    names = tuple(_ROWS[column] for column in columns)
    last = -(1 << 63)
    lenient, db.text_factory = db.text_factory, str  # many texts, all ASCII; others are an error
    try:
        found: list[Segment] = []
        total = 0 if report is silent else db.execute("SELECT count(*) FROM segments").fetchone()[0]
        while rows := db.execute(query, (last, *given)).fetchall():  # each statement is a read transaction of its own
            found += [Segment(**dict(zip(names, row, strict=True)), is_ready=True) for row in rows]
            last = rows[-1][names.index("number")]
            report(len(found), total, "")
        return found
    finally:
        db.text_factory = lenient


def _read_resume(db: sqlite3.Connection) -> list[Segment]:
    rows = db.execute(f"SELECT {', '.join(_RESUME)} FROM sides").fetchall()
    found: list[dict[str, Any]] = [dict(zip(_RESUME.values(), row, strict=True)) for row in rows]
    for row in found:
        row["has_state"] = bool(row["has_state"])
    unknown: dict[str, Any] = {"identity": "", "chunk_tokens": 1, "exactness": "exact", "codec": "exact", "host": ""}
    return [Segment(kind="resume", is_ready=True, **unknown, **row) for row in found]


def _completed(resume: Segment, holder: Segment | None) -> Segment:
    """Complete a resume segment with the fields of the segment that has its piece."""
    if holder is None:
        return resume
    ids = holder.piece_ids()
    n_pieces = ids.index(resume.parent) + 1 if resume.parent in ids else 0
    stop = holder.start + min(n_pieces * holder.chunk_tokens, holder.n_tokens)
    return evolve(
        resume,
        identity=holder.identity,
        start=stop - resume.n_tokens,
        chunk_tokens=holder.chunk_tokens,
        exactness=holder.exactness,
        host=holder.host,
        used_s=holder.used_s,
    )


def _rehang(db: sqlite3.Connection, rehang: Mapping[int, int], dependents: Mapping[int, Iterable[int]]) -> None:
    """Let segments that depended on replaced ones depend on the replacements."""
    db.executemany("UPDATE sides SET segment = ? WHERE segment = ?", [(new, old) for old, new in rehang.items()])
    rows = [(new, one, old) for old, new in rehang.items() for one in dependents.get(old, ())]
    for column in ("parent_segment", "source_segment"):
        db.executemany(f"UPDATE segments SET {column} = ? WHERE segment = ? AND {column} = ?", rows)


def _drop(db: sqlite3.Connection, segments: Sequence[Segment]) -> None:
    numbers = [(s.number,) for s in segments if s.kind == "rows"]
    resume = [(s.parent, s.file) for s in segments if s.kind == "resume"]
    db.executemany("DELETE FROM segments WHERE segment = ?", numbers)
    db.executemany("DELETE FROM sides WHERE piece = ? AND file = ?", resume)


def _put(db: sqlite3.Connection, segments: Sequence[Segment]) -> None:
    """Insert or replace segments; a piece has one resume segment."""
    for kind, table in (("resume", "sides"), ("rows", "segments")):
        rows = [_row_of(s) for s in segments if s.kind == kind]
        if rows:
            names = ", ".join(rows[0]), ", ".join("?" * len(rows[0]))
            db.executemany(
                f"INSERT OR REPLACE INTO {table} ({names[0]}) VALUES ({names[1]})", [(*row.values(),) for row in rows]
            )


def _move(db: sqlite3.Connection, move: HeadMove) -> None:
    rows = [(move.agent_id, move.identity, one) for one in move.former]
    db.executemany("DELETE FROM lineages WHERE agent = ? AND identity = ? AND head = ?", rows)
    if move.head is not None:
        db.execute("INSERT OR IGNORE INTO lineages VALUES (?, ?, ?)", (move.agent_id, move.identity, move.head))
