"""The hot tier: live KV of idle lineages, ready to decode, within a byte budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from attrs import define, field, frozen

from agent_memory.prefix.authors import Origins
from agent_memory.prefix.chunks import common_prefix
from agent_memory.protocols import KV
from agent_memory.types import Exactness

#: The KV of an anonymous lineage is moved if a request wants at least this share of its tokens; else it is copied.
_MOVE_SHARE = 0.5


@define(eq=False, slots=True)
class Lineage:
    """A sequence of ids with its live KV. ``len(ids) == kv.n_tokens``, always."""

    owner: str | None
    ids: np.ndarray[Any, Any] = field(repr=False)
    made: Origins = field(repr=False)  #: provenance of each id's KV
    kv: KV = field(repr=False)
    exactness: Exactness = "exact"
    agent_id: int | None = None
    used_s: float = 0.0  #: last use, by the tier's clock
    is_saved: bool = False  #: True if it is on disk, or on its way there
    is_offered: bool = False  #: True if a copy was offered to warm, even if warm refused it
    is_wanted: bool = False  #: computed ahead of need: always saved
    is_ahead: bool = False  #: restored ahead of need, and not used since
    is_turn: bool = True  #: False if its request ended without a reply: the agent's log ends elsewhere
    is_temporary: bool = False  #: True if it must never be written to disk
    n_grid: int = 0  #: leading tokens that were computed in whole prefill chunks from token 0 on, each by one step

    def trim(self, n_tokens: int) -> bool:
        """Truncate to the first ``n_tokens``; False if the KV cannot be truncated."""
        if not self.kv.trim(n_tokens):
            return False
        self.ids, self.made = self.ids[:n_tokens], self.made[:n_tokens]
        self.n_grid = min(self.n_grid, n_tokens)
        return True


@frozen(eq=False)
class Heir:
    """A fork before its first turn: it shares its parent's lineage, and has no KV of its own yet."""

    owner: str
    agent_id: int
    ids: np.ndarray[Any, Any] = field(repr=False)  #: the ids of its log
    is_temporary: bool = False


class HotTier:
    """Idle lineages in order of last use, the oldest first. Engine thread only.

    - A lineage that its own agent continues is moved: no byte is copied. Other requests copy a prefix of it.
    - An agent has at most one lineage; a newer one replaces it.
    - A fork shares its parent's lineage until its first turn, and inherits it if the parent leaves it.
    - An anonymous lineage that is a prefix of a newer one is dropped.

    ``scheduler/eviction.py`` keeps the budget.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lineages: dict[int, Lineage] = {}  # by id(), oldest use first
        self._heirs: dict[str, dict[str, Heir]] = {}  # owner of a lineage -> the forks that share it, by name

    def __iter__(self) -> Iterator[Lineage]:
        return iter(list(self._lineages.values()))

    @property
    def nbytes(self) -> int:
        """Allocated bytes of all lineages, spare capacity included."""
        return sum(one.kv.nbytes for one in self._lineages.values())

    def match(self, ids: np.ndarray[Any, Any], owner: str | None) -> tuple[Lineage | None, int]:
        """Return the lineage with the longest prefix of ``ids`` and that length; of equal ones ``owner``'s own."""
        best: Lineage | None = None
        best_len = 0
        for one in self._lineages.values():
            shared = one.kv.reach(common_prefix(one.ids, ids))
            if shared > best_len or (shared and shared == best_len and one.owner == owner):
                best, best_len = one, shared
        return best, best_len

    def is_moved(self, lineage: Lineage, n_tokens: int, owner: str | None) -> bool:
        """True if ``owner`` takes the lineage itself for its first ``n_tokens``; False if it copies them."""
        if lineage.owner != owner:
            return False
        return owner is not None or n_tokens >= _MOVE_SHARE * len(lineage.ids)

    def take(self, lineage: Lineage) -> Lineage:
        """Remove a lineage and return it."""
        return self._lineages.pop(id(lineage))

    def touch(self, lineage: Lineage) -> None:
        """Record a use."""
        lineage.used_s = self.clock()
        self._lineages[id(lineage)] = self._lineages.pop(id(lineage))

    def put(self, lineage: Lineage) -> list[Lineage]:
        """Add a lineage; return those that it replaces, already removed."""
        replaced = []
        for one in self:
            same_agent = lineage.owner is not None and one.owner == lineage.owner
            extended = one.owner is None and common_prefix(one.ids, lineage.ids) == len(one.ids)
            if extended or (same_agent and not self.bequeath(one)):
                replaced.append(self.take(one))
        self.disinherit(lineage.owner)
        lineage.used_s = self.clock()
        self._lineages[id(lineage)] = lineage
        return replaced

    def share(self, owner: str, heir: Heir) -> None:
        """Let a fork share the lineage that its parent owns or shares, if there is one. O(lineages)."""
        owners = (parent for parent, heirs in self._heirs.items() if owner in heirs)
        holder = owner if self.of(owner) is not None else next(owners, None)
        if holder is not None:
            self._heirs.setdefault(holder, {})[heir.owner] = heir

    def disinherit(self, owner: str | None) -> None:
        """Record that a fork has KV of its own, or was deleted."""
        for heirs in self._heirs.values():
            heirs.pop(owner or "", None)

    def is_shared(self, lineage: Lineage) -> bool:
        """True if a fork shares a lineage."""
        return bool(self._heirs.get(lineage.owner or ""))

    def bequeath(self, lineage: Lineage) -> bool:
        """Give a lineage that its owner leaves to a fork, truncated to the log of that fork; False if none fits."""
        heirs = self._heirs.pop(lineage.owner or "", {})
        while heirs:
            heir = heirs.pop(next(iter(heirs)))
            n_tokens = lineage.kv.reach(common_prefix(lineage.ids, heir.ids))
            if n_tokens and lineage.trim(n_tokens):
                lineage.owner, lineage.agent_id, lineage.is_temporary = heir.owner, heir.agent_id, heir.is_temporary
                self._heirs[heir.owner] = heirs
                return True
        return False

    def of(self, owner: str) -> Lineage | None:
        """Return an agent's lineage."""
        return next((one for one in self._lineages.values() if one.owner == owner), None)

    def uses(self, logs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, tuple[int, int]]:
        """Return (tokens, allocated bytes) of the lineage that each agent owns or shares, by name.

        ``logs``: name -> ids of its log; tokens are those that lead the log.
        """
        held = {one.owner: one for one in self._lineages.values() if one.owner is not None}
        for owner, heirs in self._heirs.items():
            if owner in held:
                held.update(dict.fromkeys(heirs, held[owner]))
        return {
            name: (common_prefix(held[name].ids, ids), held[name].kv.nbytes)
            for name, ids in logs.items()
            if name in held
        }

    def clear(self) -> None:
        """Drop all lineages."""
        self._lineages.clear()
        self._heirs.clear()
