"""Pins: which agents are pinned. A pin is a fact of the store, ``pinned`` and its number, and ends with the agent.

It is no column of ``agents``: docs/format.md says why.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

_PINNED = "pinned "
_AFTER = "pinned!"  #: the first key behind all of them


def pinned(db: sqlite3.Connection) -> set[int]:
    """Return the numbers of the pinned agents, of all salts."""
    return pinned_in(key for (key,) in db.execute("SELECT key FROM meta WHERE key > ? AND key < ?", (_PINNED, _AFTER)))


def pinned_in(keys: Iterable[object]) -> set[int]:
    """Return the numbers of the agents that facts of a store, by their names, say are pinned."""
    numbers = [key.removeprefix(_PINNED) for key in keys if isinstance(key, str) and key.startswith(_PINNED)]
    return {int(number) for number in numbers if number.isdecimal() and len(number) < 20}


def pin(db: sqlite3.Connection, agent_id: int) -> None:
    """Pin an agent. Inside a transaction."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, '')", (f"{_PINNED}{agent_id}",))


def unpin(db: sqlite3.Connection, agent_id: int) -> None:
    """End the pin of an agent, if it has one. Inside a transaction."""
    db.execute("DELETE FROM meta WHERE key = ?", (f"{_PINNED}{agent_id}",))
