"""Pinned agents: their KV leaves memory after all others', and is never evicted from disk."""

from __future__ import annotations

from agent_memory.log.logs import Logs
from agent_memory.prefix.index import Segment
from agent_memory.store.manifest import Manifest


class Pins:
    """Numbers of pinned agents, and the heads of their lineages of the attached model."""

    def __init__(self) -> None:
        self.agents: set[int] = set()
        self._heads: set[bytes] = set()

    def load(self, logs: Logs, manifest: Manifest) -> None:
        """Read the pins of all salts; again after another model is attached or a pin has changed."""
        self.agents.clear()
        self.agents.update(logs.pinned())
        self._heads = {head for agent, _, head in manifest.heads() if agent in self.agents} if self.agents else set()

    def note(self, agent_id: int | None, head: bytes | None) -> None:
        """Record that an agent's lineage ends, or will end, at ``head``."""
        if agent_id in self.agents and head is not None:
            self._heads.add(head)

    def covers(self, segment: Segment) -> bool:
        """True if the lineage of a pinned agent ends in a segment; its ancestors are then kept too."""
        return bool(self._heads) and any(piece.id in self._heads for piece in segment.pieces)
