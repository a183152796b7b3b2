"""The tables of the recall file, as numbered steps. ``user_version`` is the number of the last step that was applied.

Every part of the room adds its own steps here, in order of their numbers, so one file serves all parts whichever of
them creates it. A step that was released is never changed: what comes later is a further step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from agent_memory.recall.context_tables import CONTEXT_TABLES, LATER_TABLES
from agent_memory.recall.episode_tables import EPISODE_TABLES

Part = Literal["context", "episodes"]


@frozen
class Step:
    """One change of the schema, applied in one transaction with the others that a file lacks."""

    version: int
    part: Part
    sql: str  #: statements, each ended by a semicolon at a line's end

    @property
    def statements(self) -> Sequence[str]:
        """The statements one by one: ``executescript`` would commit before it begins."""
        return [statement.strip() for statement in f"{self.sql.strip()}\n".split(";\n") if statement.strip()]


#: In order, numbered 1, 2, 3 ... without a gap. A part that needs tables adds ``Step(n, "episodes", EPISODE_TABLES)``.
STEPS: tuple[Step, ...] = (
    Step(1, "context", CONTEXT_TABLES),
    Step(2, "episodes", EPISODE_TABLES),
    Step(3, "context", LATER_TABLES),
)
