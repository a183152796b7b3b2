"""Pinned agents: whose KV leaves memory after all others', and the disk not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_memory.prefix.index import Segment

if TYPE_CHECKING:
    from agent_memory.store.manifest import Manifest

_KEY = "pinned "


class Pins:
    """Agents by number, kept among the manifest's facts, and where their lineages of the attached model end."""

    def __init__(self) -> None:
        self.agents: set[int] = set()
        self._heads: set[bytes] = set()

    def load(self, manifest: Manifest) -> None:
        """Read them, of all salts; again when another model is attached or a pin has changed."""
        numbers = [key.removeprefix(_KEY) for key in manifest.meta_keys(_KEY)]
        self.agents.clear()
        self.agents.update(int(number) for number in numbers if number.isdecimal() and len(number) < 20)
        self._heads = {head for agent, _, head in manifest.heads() if agent in self.agents} if self.agents else set()

    def set(self, manifest: Manifest, agent_id: int, is_pinned: bool) -> None:
        """Commit that an agent is pinned, or no longer."""
        change = "INSERT OR REPLACE INTO meta VALUES (?, '')" if is_pinned else "DELETE FROM meta WHERE key = ?"
        with manifest.transaction() as db:
            db.execute(change, (f"{_KEY}{agent_id}",))
        self.load(manifest)

    def note(self, agent_id: int | None, head: bytes | None) -> None:
        """An agent's lineage ends, or will end, at ``head``."""
        if agent_id in self.agents and head is not None:
            self._heads.add(head)

    def covers(self, segment: Segment) -> bool:
        """Whether the lineage of a pinned agent ends in a segment; then what it stands on is kept with it."""
        return bool(self._heads) and any(piece.id in self._heads for piece in segment.pieces)
