"""The manifest's rows of KV: identities, segments, side files, and where the lineages of agents end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping

from agent_memory.log.database import Database
from agent_memory.log.logs import end_agent
from agent_memory.prefix.resume import Side
from agent_memory.store.records import SegmentRow
from agent_memory.store.soundness import disorder, is_facts, is_identity, is_lineage, is_model, is_segment, is_side
from agent_memory.store.tables import (
    drop_segments,
    drop_sides,
    end_lineages,
    move_heads,
    move_lineage,
    note_written,
    put_segments,
    put_sides,
    read_segments,
    read_sides,
    rehang_segments,
)


class Manifest:
    """The KV rows of one database. Any thread. Raises sqlite3.Error and OSError as they come.

    Rows may have been altered: those that no version writes are left out.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def examine(self) -> str | None:
        """Return what is wrong with the rows of a manifest that was not closed; None: nothing. Reads all of them."""
        with self.database.reading() as db:
            models = db.execute("SELECT identity, layout, facts, created_s FROM identities").fetchall()
            heads = db.execute("SELECT agent, identity, head FROM lineages").fetchall()
            rows, sides = read_segments(db, None), read_sides(db)
        if not all(is_model(*row) for row in models):
            return "what it says of a model cannot be read"
        if n_bad := sum(not is_lineage(*head) for head in heads):
            return f"{n_bad} ends of lineages make no sense"
        n_bad = sum(not is_segment(row) for row in rows) + sum(not is_side(side) for side in sides)
        n_bad = n_bad or disorder(rows, sides)
        return f"{n_bad} of {len(rows) + len(sides)} rows make no sense" if n_bad else None

    def attach(self, identity: str, layout: str, facts: Mapping[str, str]) -> None:
        """Record an identity and what is known of it; writes nothing where that is known already."""
        told = json.dumps(dict(facts), sort_keys=True)
        with self.database.reading() as db:
            if db.execute("SELECT facts FROM identities WHERE identity = ?", (identity,)).fetchone() == (told,):
                return
        with self.database.transaction() as db:
            db.execute(
                "INSERT INTO identities VALUES (?, ?, ?, ?) "
                "ON CONFLICT (identity) DO UPDATE SET facts = excluded.facts",
                (identity, layout, told, time.time()),
            )

    def facts(self, model: str) -> dict[str, str]:
        """What was recorded of the model of this name that was first used last; {} for a new one."""
        with self.database.reading() as db:
            rows = db.execute("SELECT facts FROM identities ORDER BY created_s DESC").fetchall()
        found: list[dict[str, str]] = [json.loads(row[0]) for row in rows if is_facts(row[0])]
        return next((facts for facts in found if facts.get("model") == model), {})

    def all_facts(self) -> dict[str, dict[str, str]]:
        """What was recorded of each identity."""
        with self.database.reading() as db:
            rows = db.execute("SELECT identity, facts FROM identities").fetchall()
        return {str(identity): json.loads(facts) for identity, facts in rows if is_facts(facts)}

    def layout(self, identity: str) -> str | None:
        """The layout recorded for an identity, as ``attach`` was given it."""
        with self.database.reading() as db:
            row = db.execute("SELECT layout FROM identities WHERE identity = ?", (identity,)).fetchone()
        return None if row is None else str(row[0])

    def segments(self, identity: str | None = None) -> list[SegmentRow]:
        """All segments, or those of one identity, parents before children; rows that make no sense are left out."""
        with self.database.reading() as db:
            return [row for row in read_segments(db, identity) if is_segment(row)]

    def sides(self) -> list[Side]:
        """All side files; rows that make no sense are left out."""
        with self.database.reading() as db:
            return [side for side in read_sides(db) if is_side(side)]

    def commit(
        self,
        *,
        add: Iterable[SegmentRow] = (),
        remove: Iterable[int] = (),
        rehang: Mapping[int, int] | None = None,
        add_sides: Iterable[Side] = (),
        remove_sides: Iterable[Side] = (),
        lineage: tuple[int, str, bytes | None, Iterable[bytes]] | None = None,
        heads: Mapping[bytes, bytes] | None = None,
        ended_agent: int | None = None,
        used: Mapping[int, float] | None = None,
        written: str | None = None,
    ) -> None:
        """One transaction: what ``edit.Edit`` says, times of use and the bytes of the day."""
        with self.database.transaction() as db:
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
                end_lineages(db, ended_agent)

    def lineage_identities(self, agent_id: int) -> frozenset[str]:
        """Identities under which an agent has stored KV."""
        with self.database.reading() as db:
            rows = db.execute("SELECT DISTINCT identity FROM lineages WHERE agent = ?", (agent_id,))
            return frozenset(identity for (identity,) in rows if is_identity(identity))

    def heads(self) -> list[tuple[int, str, bytes]]:
        """(agent id, identity, piece id) of every lineage."""
        with self.database.reading() as db:
            return [row for row in db.execute("SELECT agent, identity, head FROM lineages") if is_lineage(*row)]

    def gather(self, holders: Iterable[int], agent_id: int) -> None:
        """Commit that what some versions held is held by their agent."""
        rows = [(agent_id, holder) for holder in holders]
        if rows:
            with self.database.transaction() as db:
                db.executemany("UPDATE OR REPLACE lineages SET agent = ? WHERE agent = ?", rows)

    def held_by_others(self, pieces: Iterable[bytes], agent_id: int | None) -> set[bytes]:
        """Return those of some pieces with which a lineage of another agent, or of a version, ends."""
        wanted = set(pieces)
        if not wanted:
            return wanted
        with self.database.reading() as db:
            rows = db.execute("SELECT head FROM lineages WHERE agent IS NOT ?", (agent_id,))
            return {head for (head,) in rows if head in wanted}

    def heads_of(self, agent_id: int, identity: str) -> list[bytes]:
        """The heads of one agent under one identity."""
        with self.database.reading() as db:
            rows = db.execute("SELECT head FROM lineages WHERE agent = ? AND identity = ?", (agent_id, identity))
            return [head for (head,) in rows if isinstance(head, bytes)]
