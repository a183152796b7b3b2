"""The longest prefix of some ids that is stored, in warm or on disk."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from attrs import field, frozen

from agent_memory.prefix.pieces import Ids
from agent_memory.prefix.provenance import made_of_all
from agent_memory.store import reading
from agent_memory.tiers.copies import WarmPiece
from agent_memory.tiers.warm import Warm
from agent_memory.types import Tier, weakest

TakenWarm = tuple[tuple[WarmPiece, int], ...]  #: pieces in warm, with how many tokens are taken of each


@frozen
class Match(reading.Match):
    """The longest stored prefix of some ids.

    - Tokens ``[0, n_warm)`` are in warm; ``[n_warm, n_tokens)`` are read from disk.
    - ``pieces``: those on disk, from the first token on, whether or not warm has them too.
    """

    warm: TakenWarm = field(default=(), repr=False)

    @property
    def n_warm(self) -> int:
        """How many of its tokens are in warm."""
        return sum(take for _, take in self.warm)

    @property
    def tier(self) -> Tier:
        """The slowest tier that it needs."""
        return "none" if not self.n_tokens else "warm" if self.n_warm == self.n_tokens else "cold"

    @property
    def tier_tokens(self) -> Mapping[str, int]:
        """How many of its tokens come from which tier."""
        found = {"warm": self.n_warm, "cold": self.n_tokens - self.n_warm}
        return {tier: n for tier, n in found.items() if n}


def find(warm: Warm, cold: reading.Match, ids: Ids) -> Match:
    """Return the longest prefix of ``ids`` that is in warm or, by ``cold``, on disk; of equal ones that in warm.

    O(ids) hashing.
    """
    ids = np.ascontiguousarray(ids, dtype=np.uint32)
    plan = warm.plan(ids)
    pieces = tuple((held, take) for p, take in plan.pieces if (held := warm.find(p.id)) is not None)
    n_warm = sum(take for _, take in pieces)
    if not n_warm or n_warm < cold.n_tokens:
        return _led_by(warm, cold)
    return Match(
        n_warm,
        cold.pieces,
        made_of_all([(held.piece, take) for held, take in pieces]),
        weakest(*(held.piece.segment.exactness for held, _ in pieces)),
        "no snapshot" if plan.is_cut else cold.stopped,
        ids[:n_warm],
        plan.rows_from,
        pieces,
    )


def _led_by(warm: Warm, cold: reading.Match) -> Match:
    """Return ``cold`` with its first files replaced, as far as warm has all pieces of each.

    A file is read whole or not at all. The last one is always read: if warm had its rows and what its other layers
    need, the match would be warm's. What is read was computed on what is stored before it, so pieces in warm that
    another run computed are left out.
    """
    found: list[tuple[WarmPiece, int]] = []
    n_pieces = 0
    for (piece, take), (following, _) in pairwise(cold.pieces):
        held = warm.find(piece.id)
        if held is None or held.piece.authors != piece.authors:
            break
        found.append((held, take))
        if following.segment is not piece.segment:
            n_pieces = len(found)
    taken = tuple(found[:n_pieces])
    made, exactness = cold.made, cold.exactness
    if taken:
        in_warm = made_of_all([(held.piece, take) for held, take in taken])
        made = cold.made.copy()
        made[: len(in_warm)] = in_warm
        exactness = weakest(exactness, *(held.piece.segment.exactness for held, _ in taken))
    return Match(cold.n_tokens, cold.pieces, made, exactness, cold.stopped, cold.ids, cold.held_from, taken)
