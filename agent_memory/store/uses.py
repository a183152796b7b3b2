"""What of each agent is in which tier, looked up when it is first read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from agent_memory.errors import AgentMemoryError
from agent_memory.figures import ByTier
from agent_memory.types import AgentInfo, Tier

if TYPE_CHECKING:
    from agent_memory.prefix.pieces import Segment

#: (tokens of an agent's log, bytes of their KV) in one tier.
Use = tuple[int, int]


@frozen
class TierUse:
    """What of an agent's log each tier holds; no entry where a tier holds nothing of it."""

    tokens: Mapping[Tier, int] = field(factory=dict)
    bytes: Mapping[Tier, int] = field(factory=dict)

    @classmethod
    def of(cls, uses: Mapping[Tier, Use | None]) -> TierUse:
        """Join the uses of several tiers."""
        found = {tier: use for tier, use in uses.items() if use is not None and use[0]}
        return cls({tier: n for tier, (n, _) in found.items()}, {tier: n for tier, (_, n) in found.items()})


def with_uses(infos: Iterable[AgentInfo], look: Callable[[], Mapping[str, TierUse]]) -> list[AgentInfo]:
    """Return agents whose figures by tier are those of ``look``, by name.

    ``look`` is called once, when one of the figures is first read. An AgentMemoryError of it leaves them empty: a
    Memory or a view that was closed meanwhile.
    """

    @cache
    def looked() -> Mapping[str, TierUse]:
        try:
            return look()
        except AgentMemoryError:
            return {}

    def found(info: AgentInfo) -> AgentInfo:
        tokens = ByTier(lambda: looked().get(info.name, TierUse()).tokens)
        return attrs.evolve(
            info, tier_tokens=tokens, tier_bytes=ByTier(lambda: looked().get(info.name, TierUse()).bytes)
        )

    return [found(info) for info in infos]


class Lines:
    """The segments of each lineage, by its last piece, and the bytes of their files."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._rows = {row.number: row for row in segments if row.kind == "rows"}
        self._homes = {(row.identity, piece): row.number for row in self._rows.values() for piece in row.piece_ids()}
        #: bytes and files of each segment of rows, its resume files included
        self.sizes = {number: row.n_bytes for number, row in self._rows.items()}
        self.files = dict.fromkeys(self._rows, 1)
        for segment in segments:
            if segment.kind == "resume" and segment.parent_number in self.sizes:
                self.sizes[segment.parent_number] += segment.n_bytes
                self.files[segment.parent_number] += 1

    def ancestry(self, identity: str, head: bytes) -> set[int]:
        """Return the segment of piece ``head`` and all that it depends on; empty if the piece is gone."""
        found: set[int] = set()
        home = self._homes.get((identity, head))
        queue = [] if home is None else [home]
        while queue:
            segment = queue.pop()
            if segment in self._rows and segment not in found:
                found.add(segment)
                queue += self._rows[segment].needs
        return found

    def uses(self, heads: Iterable[tuple[int, str, bytes]]) -> dict[int, Use]:
        """Return the tokens and bytes of each agent's lineages: the most tokens of any model, the bytes of all."""
        tokens: dict[int, int] = defaultdict(int)
        segments: dict[int, set[int]] = defaultdict(set)
        for agent, identity, head in heads:
            found = self.ancestry(identity, head)
            if found:
                segments[agent] |= found
                tokens[agent] = max(tokens[agent], self._stop(identity, head))
        return {agent: (tokens[agent], sum(self.sizes[one] for one in found)) for agent, found in segments.items()}

    def _stop(self, identity: str, head: bytes) -> int:
        row = self._rows[self._homes[identity, head]]
        return row.start + min(row.n_tokens, (row.piece_ids().index(head) + 1) * row.chunk_tokens)
