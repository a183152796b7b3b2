"""The hot tier: live KV of idle lineages, ready to decode, within a byte budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from attrs import define, field

from agent_memory.prefix.chunks import common_prefix
from agent_memory.protocols import KV
from agent_memory.types import Exactness

#: Of a nameless lineage at least this share must be wanted for its KV to be moved; else it is copied and stays.
_MOVE_SHARE = 0.5


@define(eq=False, slots=True)
class Lineage:
    """A run of ids with its live KV. ``len(ids) == kv.n_tokens``, always."""

    owner: str | None
    ids: np.ndarray[Any, Any] = field(repr=False)
    made: np.ndarray[Any, Any] = field(repr=False)  #: per id: see ``prefix.provenance.MADE`` and ``DECODED``
    kv: KV = field(repr=False)
    exactness: Exactness = "exact"
    agent_id: int | None = None
    used_s: float = 0.0  #: when it was put or touched, by the tier's clock
    is_saved: bool = False  #: whether it is on disk, or on its way there
    is_offered: bool = False  #: whether warm was given a copy, which it may have refused
    is_wanted: bool = False  #: computed ahead of need: to be stored, whatever that costs
    is_turn: bool = True  #: False: of a request that ended without a reply, so its agent's log ends elsewhere

    def trim(self, n_tokens: int) -> bool:
        """Cut to the first ``n_tokens``; False where the KV cannot be cut."""
        if not self.kv.trim(n_tokens):
            return False
        self.ids, self.made = self.ids[:n_tokens], self.made[:n_tokens]
        return True


class HotTier:
    """Idle lineages in order of last use, the oldest first. Owned by the engine thread.

    Policy: a lineage that its own agent continues is moved (no byte is copied); one that somebody else wants a prefix
    of is copied. Each agent has at most one; a nameless lineage that a newer one extends is dropped.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lineages: dict[int, Lineage] = {}  # by id(), oldest use first

    def __iter__(self) -> Iterator[Lineage]:
        return iter(list(self._lineages.values()))

    @property
    def nbytes(self) -> int:
        """Allocated bytes of all lineages, spare room included."""
        return sum(one.kv.nbytes for one in self._lineages.values())

    def match(self, ids: np.ndarray[Any, Any], owner: str | None) -> tuple[Lineage | None, int]:
        """The lineage that reaches the longest prefix of ``ids``, an own one first among equals, and that length."""
        best: Lineage | None = None
        best_len = 0
        for one in self._lineages.values():
            shared = one.kv.reach(common_prefix(one.ids, ids))
            if shared > best_len or (shared and shared == best_len and one.owner == owner):
                best, best_len = one, shared
        return best, best_len

    def is_moved(self, lineage: Lineage, n_tokens: int, owner: str | None) -> bool:
        """Whether ``owner`` may take the lineage itself for its first ``n_tokens``, or must copy them."""
        if lineage.owner != owner:
            return False
        return owner is not None or n_tokens >= _MOVE_SHARE * len(lineage.ids)

    def take(self, lineage: Lineage) -> Lineage:
        """Remove a lineage, for its next turn or for good."""
        return self._lineages.pop(id(lineage))

    def touch(self, lineage: Lineage) -> None:
        """Note a use."""
        lineage.used_s = self.clock()
        self._lineages[id(lineage)] = self._lineages.pop(id(lineage))

    def put(self, lineage: Lineage) -> list[Lineage]:
        """Add a lineage; returns those it replaces, already removed."""
        replaced = []
        for one in self:
            same_agent = lineage.owner is not None and one.owner == lineage.owner
            extended = one.owner is None and common_prefix(one.ids, lineage.ids) == len(one.ids)
            if same_agent or extended:
                replaced.append(self.take(one))
        lineage.used_s = self.clock()
        self._lineages[id(lineage)] = lineage
        return replaced

    def of(self, owner: str) -> Lineage | None:
        """An agent's lineage."""
        return next((one for one in self._lineages.values() if one.owner == owner), None)

    def clear(self) -> None:
        """Drop all."""
        self._lineages.clear()
