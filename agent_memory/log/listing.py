"""Rows of agents: read, checked and listed without their turns. No numpy: to list agents is to start fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent_memory.log.blobs import agent_sum, blob_text, salt_digest
from agent_memory.log.database import Database
from agent_memory.log.facts import Facts
from agent_memory.log.pins import pinned
from agent_memory.log.soundness import is_count, sound_agent
from agent_memory.types import AgentInfo

AGENT = ("agent", "salt", "name", "system", "tools", "created_s", "used_s", "facts", "branch", "xxh3")

#: The branch that an agent's next turn is added to.
LIVE = "coalesce(a.branch, a.agent)"
#: Of each agent the last turn ``t``: of its branch or, where that has none of its own, of the branch's base.
_LAST_TURNS = (
    f"LEFT JOIN branches b ON b.branch = {LIVE} LEFT JOIN turns t ON t.rowid = coalesce("
    f"(SELECT rowid FROM turns WHERE agent = {LIVE} ORDER BY number DESC LIMIT 1), "
    "(SELECT rowid FROM turns WHERE agent = b.base AND number = b.n_base - 1))"
)
_OLD_LAST_TURNS = (
    "LEFT JOIN turns t ON t.agent = a.agent AND t.number = (SELECT max(number) FROM turns WHERE agent = a.agent)"
)
_CHECKPOINTS = "SELECT agent, count(*) FROM versions WHERE reason = 'checkpoint' GROUP BY agent"


class AgentRows:
    """The rows of agents in one database, whatever its version. Any thread. Raises sqlite3.Error as it comes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.reading() as db:  # one that is only read may be of an older version
            there = {name for _, name, *_ in db.execute("PRAGMA table_info(agents)")}
        self.has_versions = "branch" in there
        self.columns = ", ".join(f"a.{name}" if name in there else f"NULL AS {name}" for name in AGENT)

    def infos(self, salt: str) -> list[AgentInfo]:
        """Return all agents of one salt, by name."""
        last_turns = _LAST_TURNS if self.has_versions else _OLD_LAST_TURNS
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT {self.columns}, t.number, t.n_messages, t.n_tokens FROM agents a {last_turns} "
                "WHERE a.salt = ?",
                (salt_digest(salt),),
            ).fetchall()
            kept = dict(db.execute(_CHECKPOINTS).fetchall()) if self.has_versions else {}
        is_pinned = self.pinned()
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
                system=_system_now(agent),
                created_s=agent["created_s"],
                used_s=agent["used_s"],
                is_pinned=agent["agent"] in is_pinned,
                n_checkpoints=kept.get(agent["agent"], 0),
            )
            found.append(info)
        return sorted(found, key=lambda info: info.name)

    def pinned(self) -> set[int]:
        """Return the numbers of the pinned agents, of all salts."""
        with self._database.reading() as db:
            return pinned(db)


def read_agent(row: Sequence[Any]) -> tuple[dict[str, Any] | None, bool]:
    """The agent of a row with AGENT, and whether it is as it was written; None: it has no name."""
    found = sound_agent(dict(zip(AGENT, row, strict=True)))
    if found is None:
        return None, False
    system = None if found["system"] is None else blob_text(found["system"])
    tools = blob_text(found["tools"])
    digest = agent_sum(blob_text(found["name"]), system, tools, found["created_s"], found["facts"], found["branch"])
    return found, digest == found["xxh3"]


def _system_now(agent: Mapping[str, Any]) -> str | None:
    """The system prompt of an agent's newest turn; its column holds the one before the first turn."""
    later = Facts.from_json(agent["facts"]).system
    return later if later is not None or agent["system"] is None else blob_text(agent["system"])
