"""Sums over requests since the engine was opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field

from agent_memory.types import Stats, Usage

#: Figures of the store that ``Stats`` shows under the same names.
_STORED = (
    "damage",
    "disk_bytes",
    "bytes_written",
    "segments",
    "chunks",
    "agents",
    "saves_skipped",
    "unwritten_tokens",
    "unreadable",
    "disk_state",
    "disk_failures",
)

#: Figures of the tiers that ``Stats`` shows under the same names.
_RESTORED = ("restored_bytes", "ahead_bytes", "ahead", "foresight")


@define
class Counters:
    """Sums over finished requests. The engine thread writes; any thread may read."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    output_tokens: int = 0
    computed_ids: int = 0
    save_failures: int = 0  #: saves that ended before they reached the store
    hits: dict[str, int] = field(factory=dict)
    tier_tokens: dict[str, int] = field(factory=dict)
    misses: dict[str, int] = field(factory=dict)

    def note(self, usage: Usage) -> None:
        """Add one finished request."""
        self.requests += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.computed_tokens += usage.computed_tokens
        self.output_tokens += usage.output_tokens
        self.hits[usage.tier] = self.hits.get(usage.tier, 0) + 1
        for tier, n_tokens in usage.tier_tokens.items():
            self.tier_tokens[tier] = self.tier_tokens.get(tier, 0) + n_tokens
        if usage.miss is not None:
            self.misses[usage.miss] = self.misses.get(usage.miss, 0) + 1

    def stats(self, live: Mapping[str, Any], stored: Mapping[str, Any]) -> Stats:
        """Return the sums so far, with the engine's memory figures (``live``) and the store's figures."""
        return Stats(
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            computed_tokens=self.computed_tokens,
            output_tokens=self.output_tokens,
            computed_ids=self.computed_ids,
            hits=dict(self.hits),
            tier_tokens=dict(self.tier_tokens),
            misses=dict(self.misses),
            evictions={"hot": live["hot_evictions"], "warm": live["warm_evictions"]},
            hot_bytes=live["hot_bytes"],
            warm_bytes=live["warm_bytes"],
            waiting=live["waiting"],
            running=live["running"],
            save_failures=self.save_failures + stored["save_failures"],
            budgets={"cold": stored["disk_budget_bytes"]},
            remember_failures=stored.get("remember_failures", 0),
            tools_abandoned=stored.get("tools_abandoned", 0),
            **{name: live[name] for name in _RESTORED},
            **{name: stored[name] for name in _STORED},
        )
