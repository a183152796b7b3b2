"""Draft: what one row may say next, and what came of it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from attrs import define, field

from agent_memory.protocols import Constraint
from agent_memory.scheduler.ngrams import Ngrams

#: Before anything was counted, the share of right ids in text that a grammar forces, and its weight.
_FORCED, _WEIGHT = 0.9, 6.0


@define(eq=False)
class Draft:
    """The drafts of one row. Engine thread only.

    - What a grammar forces comes first; where it forces nothing, what the conversation said before.
    - The same ids give the same drafts: nothing here depends on time or on other rows.
    """

    _prompt: np.ndarray[Any, Any] = field(repr=False)
    ids: list[int] = field(factory=list, init=False)  #: the draft: ids that may follow the one fed next
    chances: list[float] = field(factory=list, init=False)  #: of each, how likely it is right with all before it
    n_proposed: int = field(default=0, init=False)
    n_accepted: int = field(default=0, init=False)
    _ngrams: Ngrams | None = field(default=None, init=False, repr=False)
    _n_seen: int = field(default=0, init=False)  # output ids that the n-grams know, the one fed next included
    _is_forced: bool = field(default=False, init=False)
    _right: float = field(default=_FORCED * _WEIGHT, init=False)
    _count: float = field(default=_WEIGHT, init=False)

    def follow(self, output: Sequence[int]) -> None:
        """Record what the row has said since."""
        if self._ngrams is None:
            self._ngrams = Ngrams(self._prompt)
        for token in output[self._n_seen :]:
            self._ngrams.add(token)
        self._n_seen = max(self._n_seen, len(output))

    def look(self, n_ids: int) -> None:
        """Make the draft of what the conversation says next if it repeats itself."""
        assert self._ngrams is not None
        self._is_forced = False
        self.ids, self.chances = self._ngrams.next(n_ids), self._ngrams.chances(n_ids)

    def force(self, constraint: Constraint | None, token: int, n_ids: int) -> None:
        """Make the draft of what must follow ``token``; leave it as it is where nothing must."""
        if constraint is not None and n_ids > 0 and (forced := constraint.ahead(token, n_ids)):
            self._is_forced = True
            self.ids = list(forced)
            share = self._right / self._count
            self.chances = [share ** (place + 1) for place in range(len(forced))]

    def cut(self, n_ids: int, ends: Collection[int]) -> None:
        """Shorten the draft, to its first end of a reply at most."""
        end = next((place for place, token in enumerate(self.ids) if token in ends), len(self.ids))
        n_ids = max(0, min(n_ids, end + 1))
        self.ids, self.chances = self.ids[:n_ids], self.chances[:n_ids]

    def verified(self, n_right: int) -> None:
        """Record that the first ``n_right`` ids of the draft were right."""
        self.n_proposed += len(self.ids)
        self.n_accepted += n_right
        if self._is_forced:
            self._right += n_right
            self._count += min(len(self.ids), n_right + 1)
