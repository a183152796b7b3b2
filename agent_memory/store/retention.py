"""What a tier keeps: what is worth most, which is its cost to get back per byte held and second unused. Pure.

Of two things that cost the same per byte, the longer unused goes first (LRU); one that costs ten times as much stays
ten times as long unused. The order is that of hyperbolic caching (Blankstein, Sen and Freedman, USENIX ATC 2017)
without its count of uses.
"""

from __future__ import annotations

from attrs import define, field

from agent_memory.types import Tier

#: Until it is measured: seconds to compute a token, and bytes a second that come back from a tier.
_COMPUTE_S = 1e-3
_LOAD_RATES: dict[Tier, float] = {"warm": 4e9, "cold": 1e9}
#: The share of a new measurement in what is believed.
_NEWS = 0.2
_LEAST_IDLE_S = 1e-6


@define
class Costs:
    """Seconds to get KV back, by what was measured so far. Engine thread only."""

    _token_s: float = field(default=_COMPUTE_S, init=False)
    _byte_s: dict[Tier, float] = field(
        factory=lambda: {tier: 1 / rate for tier, rate in _LOAD_RATES.items()}, init=False
    )

    is_measured: bool = field(default=False, init=False)  #: whether computing was

    def computed(self, n_tokens: int, seconds: float) -> None:
        """So many tokens took so long to prefill."""
        if n_tokens:
            self.is_measured = True
            self._token_s += _NEWS * (seconds / n_tokens - self._token_s)

    def loaded(self, tier: Tier, n_bytes: int, seconds: float) -> None:
        """So many bytes of live KV took so long to come from a tier."""
        if n_bytes and tier in self._byte_s:
            self._byte_s[tier] += _NEWS * (seconds / n_bytes - self._byte_s[tier])

    def compute_s(self, n_tokens: int) -> float | None:
        """What so many tokens cost to compute; None while nobody knows."""
        return self._token_s * n_tokens if self.is_measured else None

    def back_s(self, tier: Tier, n_tokens: int, n_bytes: int) -> float:
        """What KV that is in ``tier`` costs to make live; ``none``: to compute again."""
        return self._byte_s[tier] * n_bytes if tier in self._byte_s else self._token_s * n_tokens


def worth(cost_s: float, n_bytes: int, idle_s: float) -> float:
    """What is gained by keeping something: whatever has least goes first."""
    return cost_s / (max(1, n_bytes) * max(_LEAST_IDLE_S, idle_s))
