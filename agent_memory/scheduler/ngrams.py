"""Prompt lookup: what a conversation says next if it repeats itself, and how likely that is. Pure.

The newest ids are searched for in everything before them: system prompt, tools, turns and the reply so far. What
followed there is proposed (prompt lookup decoding: github.com/apoorvumang/prompt-lookup-decoding). The longer the run
of equal ids, the likelier its next one: the shares are counted at every id of the reply, whether or not it was
proposed, so that nothing need be tried to learn whether trying pays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_LEAST, _MOST = 2, 16  #: lengths of a run: shorter ones propose nothing, longer ones are not told apart
_SEARCHED = 131_072  #: newest ids that are searched
_ROOM = 1024
#: Before anything was counted, the share of right ids by length of the run, from ``_STARTS``, and its weight.
_STARTS, _SHARES, _WEIGHT = (2, 3, 4, 8, 16), (0.2, 0.4, 0.7, 0.9, 0.95), 6.0


class Ngrams:
    """The ids of one conversation, and where they repeat themselves. 4 bytes an id, O(ids) of numpy's time an id.

    The same ids give the same proposals, whatever was verified.
    """

    __slots__ = ("_at", "_counts", "_ids", "_n", "_rights", "_run")

    def __init__(self, ids: np.ndarray[Any, Any]) -> None:
        ids = ids[-_SEARCHED:]
        self._n = len(ids)
        self._ids = np.zeros(self._n + _ROOM, np.uint32)
        self._ids[: self._n] = ids
        self._at = 0  # the place of the next id, as far as the run goes on
        self._run = 0  # equal ids before both places; 0: none found
        self._rights = [share * _WEIGHT for share in _SHARES]
        self._counts = [_WEIGHT] * len(_SHARES)
        self._search()

    def add(self, token: int) -> None:
        """Record the next id of the conversation."""
        is_right = self._run > 0 and int(self._ids[self._at]) == token
        if self._run:
            place = _place(self._run)
            self._counts[place] += 1
            self._rights[place] += is_right
        if self._n == len(self._ids):
            kept = self._ids[-_SEARCHED:]
            self._at -= self._n - len(kept)
            self._ids, self._n = np.concatenate([kept, np.zeros(_ROOM, np.uint32)]), len(kept)
        self._ids[self._n] = token
        self._n += 1
        self._at += 1
        if is_right and self._at > 0:
            self._run += 1
        else:
            self._search()

    def next(self, n_ids: int) -> list[int]:
        """Return the ids that followed the same run before, at most ``n_ids``."""
        if not self._run:
            return []
        found: list[int] = self._ids[self._at : min(self._n, self._at + n_ids)].tolist()
        return found

    def chances(self, n_ids: int) -> list[float]:
        """Return for each of the next ids how likely it is right together with all before it."""
        out, chance, run = [], 1.0, self._run
        for _ in range(min(n_ids, self._n - self._at) if run else 0):
            place = _place(run)
            chance *= self._rights[place] / self._counts[place]
            out.append(chance)
            run += 1
        return out

    def _search(self) -> None:
        """Find the longest run that equals the conversation's end: the first after the last run, else the newest."""
        ids, n, before = self._ids, self._n, self._at
        hits = np.flatnonzero(ids[: max(0, n - 1)] == ids[n - 1]) if n else np.zeros(0, np.intp)
        run = min(1, len(hits))
        while run and run < _MOST:
            longer = hits[hits >= run]
            longer = longer[ids[longer - run] == ids[n - 1 - run]]
            if not len(longer):
                break
            hits, run = longer, run + 1
        self._run = run if run >= _LEAST else 0
        if self._run:
            following = hits[(hits + 1 >= before) & (hits + 1 < before + _ROOM)]
            self._at = int(following[0] if len(following) else hits[-1]) + 1


def _place(run: int) -> int:
    return sum(run >= start for start in _STARTS) - 1
