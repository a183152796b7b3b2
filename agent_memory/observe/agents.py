"""The agents of a store as a list, which a notebook shows as a table with their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from agent_memory.errors import AgentMemoryError
from agent_memory.reader.view import StoreView
from agent_memory.scheduler.engine import Engine
from agent_memory.types import AgentInfo
from agent_memory.views.page import Page, Shown, Table
from agent_memory.views.units import ago, count, short, size

#: Agents that a table shows.
_MOST_ROWS = 50


def agent_sizes(engine: Engine, path: Path | None, salt: str) -> dict[str, tuple[int, int]]:
    """Return the bytes of each agent: idle in the hot tier, and on disk as last committed."""
    hot = engine.call(engine.hot_bytes_by_agent)
    disk: dict[str, int] = {}
    if path is not None:
        with StoreView(path, salt) as view:
            disk = {use.name: use.own_bytes + use.shared_bytes for use in view.du().agents}
    return {name: (hot.get(name, 0), disk.get(name, 0)) for name in {*hot, *disk}}


class AgentList(list[AgentInfo], Shown):
    """A list of agents. ``sizes``: asked only when it is shown; name -> (bytes in the hot tier, bytes on disk)."""

    __slots__ = ("_sizes",)

    def __init__(self, infos: Iterable[AgentInfo], sizes: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        super().__init__(infos)
        self._sizes = sizes

    def _page(self) -> Page:
        try:
            sizes = self._sizes()
        except AgentMemoryError:  # closed meanwhile: the table without sizes
            sizes = {}
        head = ("name", "turns", "tokens", "hot", "disk", "", "last used")
        rows = [
            (
                short(one.name, 60),
                f"{one.n_turns:,}",
                f"{one.n_tokens:,}",
                *(size(n) if n else "" for n in sizes.get(one.name, (0, 0))),
                "pinned" if one.is_pinned else "",
                ago(one.used_s),
            )
            for one in self[:_MOST_ROWS]
        ]
        more = f", the first {_MOST_ROWS} shown" if len(self) > _MOST_ROWS else ""
        return Page(count(len(self), "agent") + more, [Table(rows, head)] if rows else [])
