"""Rehearsal: the bytes that two orders of eviction would have restored, on the turns that really came. Pure."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

_KEPT = 0.99  #: what one more turn leaves of the bytes counted before
_FEWER = 0.1  #: share of bytes that the learned order must have saved to be followed, and
_LINEAGES = 3  #: as many lineages of mean size: less is chance

#: Name -> how far away an agent's next turn is; the farthest is evicted first.
Order = Callable[[str], float]


@define(eq=False)
class _Tier:
    """A hot tier in figures alone."""

    order: Order
    held: dict[str, int] = field(factory=dict)  #: bytes by name
    missed: float = 0.0  #: bytes that would have been restored, decaying

    def turn(self, owner: str, n_bytes: int, room_bytes: int) -> None:
        self.missed *= _KEPT
        if owner not in self.held:
            self.missed += n_bytes
        self.held.pop(owner, None)
        used = sum(self.held.values())
        if used > room_bytes:
            for name in sorted(self.held, key=lambda name: (-self.order(name), name)):
                used -= self.held.pop(name)
                if used <= room_bytes:
                    break
        self.held[owner] = n_bytes


class Rehearsal:
    """Compares a learned order of eviction with the order of last use. Engine thread only.

    - Both start empty and see the same turns, sizes and room; neither knows the other's choices.
    - The learned order is better once it has restored clearly fewer bytes, the newest turns counting most: where turns
      come in no order, the two differ by chance, and what is learned then helps nobody.
    - O(agents in hot) for a turn that evicts.
    """

    def __init__(self, recency: Order, learned: Order) -> None:
        self._recency, self._learned = _Tier(recency), _Tier(learned)

    @property
    def is_learned_better(self) -> bool:
        """True if the learned order would have restored clearly fewer bytes."""
        held = self._learned.held
        saved = self._recency.missed - self._learned.missed
        mean = sum(held.values()) / len(held) if held else 0.0
        return saved > max(_FEWER * self._recency.missed, _LINEAGES * mean)

    def turn(self, owner: str, n_bytes: int, room_bytes: int) -> None:
        """Rehearse a turn. ``n_bytes``: of its agent's KV; ``room_bytes``: what all others' may take beside it."""
        for tier in (self._recency, self._learned):
            tier.turn(owner, n_bytes, room_bytes)

    def resize(self, owner: str, n_bytes: int) -> None:
        """Note the bytes of an agent's KV after its turn."""
        for tier in (self._recency, self._learned):
            if owner in tier.held:
                tier.held[owner] = n_bytes

    def forget(self, owner: str) -> None:
        """Drop an agent."""
        for tier in (self._recency, self._learned):
            tier.held.pop(owner, None)
