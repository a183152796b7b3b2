"""Unkept: prompts whose KV was started or in memory in this process, and why it is gone."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

import numpy as np
from attrs import field, frozen

from agent_memory.prefix.chunks import common_prefix

Ids = np.ndarray[Any, Any]
Reason = Literal["cancelled", "evicted"]

_MOST_IDS = 1 << 20  #: 4 MiB; a look-up compares them all in about a millisecond


@frozen
class Gone:
    """Ids whose KV is not kept, and why. ``owner``: the agent's name; None for a request without one."""

    owner: str | None
    ids: Ids = field(eq=False, repr=False)
    reason: Reason


class Unkept:
    """The newest prompts that were cancelled before they were computed, and lineages evicted from memory.

    - Read only if a prompt's KV is not found: KV that was stored before its eviction is found in its tier.
    - Bounded by ``_MOST_IDS`` ids, the oldest dropped first. Engine thread only.
    - ``forget`` drops the ids of a deleted agent, and all ids once a card is forgotten.
    """

    def __init__(self) -> None:
        self._gone: deque[Gone] = deque()
        self._n_ids = 0

    def note(self, owner: str | None, ids: Ids, reason: Reason) -> None:
        """Record ids, as the newest."""
        if not len(ids) or len(ids) > _MOST_IDS:
            return
        self._gone.append(Gone(owner, ids, reason))
        self._n_ids += len(ids)
        while self._n_ids > _MOST_IDS:
            self._n_ids -= len(self._gone.popleft().ids)

    def longest(self, wanted: Ids) -> tuple[Gone, int] | None:
        """Return the ids with the longest common prefix with ``wanted``, of equal ones the newest, and its length."""
        best: tuple[Gone, int] | None = None
        for gone in reversed(self._gone):
            if len(wanted) and gone.ids[0] == wanted[0]:
                shared = common_prefix(gone.ids, wanted)
                if best is None or shared > best[1]:
                    best = (gone, shared)
        return best

    def forget(self, owner: str | None = None) -> None:
        """Drop the ids of an agent; None: all ids."""
        kept = [gone for gone in self._gone if owner is not None and gone.owner != owner]
        self._gone = deque(kept)
        self._n_ids = sum(len(gone.ids) for gone in kept)
