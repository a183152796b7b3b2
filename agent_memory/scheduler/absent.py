"""Absent: agents whose KV left the hot tier for want of bytes, or that a plan names, with the ids to find it by."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from attrs import field, frozen

from agent_memory.tiers.hot import Lineage

Ids = np.ndarray[Any, Any]

_MOST_IDS = 1 << 20  #: 4 MiB


@frozen
class Absent:
    """An agent and the ids whose KV its next turn starts from."""

    owner: str
    agent_id: int | None
    ids: Ids = field(eq=False, repr=False)
    used_s: float = 0.0  #: last use, by the hot tier's clock
    is_temporary: bool = False


class Absentees:
    """Absent agents by name, at most ``_MOST_IDS`` ids of them, the oldest dropped first. Engine thread only.

    ``is_on`` False: nothing is restored ahead of need, and nobody is recorded.
    """

    def __init__(self, *, is_on: bool = True) -> None:
        self._is_on = is_on
        self._absent: OrderedDict[str, Absent] = OrderedDict()
        self._n_ids = 0

    def note(self, one: Absent) -> None:
        """Record an agent, as the newest."""
        self.forget(one.owner)
        if self._is_on and 0 < len(one.ids) <= _MOST_IDS:
            self._absent[one.owner] = one
            self._n_ids += len(one.ids)
        while self._n_ids > _MOST_IDS:
            self._n_ids -= len(self._absent.popitem(last=False)[1].ids)

    def note_evicted(self, lineage: Lineage) -> None:
        """Record the agent of a lineage that leaves hot, if it has one."""
        if lineage.owner is not None:
            temporary = lineage.is_temporary
            self.note(Absent(lineage.owner, lineage.agent_id, lineage.ids, lineage.used_s, temporary))

    @property
    def n_ids(self) -> int:
        """How many ids are recorded."""
        return self._n_ids

    def get(self, owner: str) -> Absent | None:
        """Return an agent by name."""
        return self._absent.get(owner)

    def forget(self, owner: str | None) -> None:
        """Drop an agent; None: all."""
        if owner is None:
            self._absent.clear()
            self._n_ids = 0
        elif (one := self._absent.pop(owner, None)) is not None:
            self._n_ids -= len(one.ids)
