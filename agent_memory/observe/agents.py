"""The agents of a store as a list, which a notebook shows as a table, and what of each is in which tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from agent_memory.log.log import Log
from agent_memory.reader.view import StoreView
from agent_memory.scheduler.engine import Engine
from agent_memory.store.uses import TierUse, Use
from agent_memory.types import AgentInfo, Tier
from agent_memory.views.page import Page, Shown, Table
from agent_memory.views.units import ago, count, short, size

_SHOWN: tuple[Tier, ...] = ("hot", "warm", "cold")
#: Agents that a table shows.
_MOST_ROWS = 50


def tier_uses(engine: Engine, path: Path | None, salt: str, logs: Sequence[Log]) -> dict[str, TierUse]:
    """Return what of each agent is in which tier: idle in memory, and on disk as last committed.

    ``logs``: of the agents whose KV may be in memory. Raises ClosedError, StoreError.
    """
    live = engine.call(lambda: engine.memory_uses({log.name: log.ids for log in logs}))
    cold: Mapping[str, Use] = {}
    if path is not None:
        with StoreView(path, salt) as view:
            cold = view.uses({log.name: len(log.ids) for log in logs})
    return {name: TierUse.of({**live.get(name, {}), "cold": cold.get(name)}) for name in {*live, *cold}}


class AgentList(list[AgentInfo], Shown):
    """A list of agents."""

    __slots__ = ()

    def _page(self) -> Page:
        head = ("name", "turns", "tokens", "hot", "warm", "disk", "", "last used")
        rows = [
            (
                short(one.name, 60),
                f"{one.n_turns:,}",
                f"{one.n_tokens:,}",
                *(size(n) if (n := one.tier_bytes.get(tier)) else "" for tier in _SHOWN),
                "pinned" if one.is_pinned else "",
                ago(one.used_s),
            )
            for one in self[:_MOST_ROWS]
        ]
        more = f", the first {_MOST_ROWS} shown" if len(self) > _MOST_ROWS else ""
        return Page(count(len(self), "agent") + more, [Table(rows, head)] if rows else [])
