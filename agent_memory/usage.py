"""The cost of one request: tokens by tier, times, exactness, and why not more was reused. All frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs import field, frozen

from agent_memory.views.page import Bar, Note, Page, Shown, Table
from agent_memory.views.units import seconds

Role = Literal["system", "user", "assistant", "tool"]
Tier = Literal["hot", "warm", "cold", "remote", "none"]
Exactness = Literal["exact", "moved", "recomputed", "quantized"]
#: Why a request reused less than had been computed before it (docs/reuse.md explains each).
MissCause = Literal[
    "edited_history", "system_changed", "tools_changed", "template_changed", "template_moved", "reasoning_dropped",
    "date_moved", "volatile_text", "key_order", "replaced_history", "compacted", "cancelled", "forgotten", "evicted",
    "not_stored", "damaged", "other_model", "other_tenant", "never_seen",
]  # fmt: skip

TIERS: tuple[Tier, ...] = ("none", "hot", "warm", "cold", "remote")  #: fastest to slowest
EXACTNESS: tuple[Exactness, ...] = ("exact", "moved", "recomputed", "quantized")  #: strongest promise to weakest


def weakest(*promises: Exactness) -> Exactness:
    """The weakest of some promises; ``exact`` of none."""
    return max(promises, key=EXACTNESS.index, default="exact")


def is_weaker(promise: Exactness, other: Exactness) -> bool:
    """True if a promise says less than another."""
    return EXACTNESS.index(promise) > EXACTNESS.index(other)


@frozen
class AsDict:
    """Values that can be written as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return a copy in dicts, lists, numbers and texts alone, as ``json.dumps`` takes them."""
        return {one.name: _plain(getattr(self, one.name)) for one in attrs.fields(type(self))}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    if attrs.has(type(value)):
        return {one.name: _plain(getattr(value, one.name)) for one in attrs.fields(type(value))}
    return str(value)


#: The part of a prompt in which a token lies: a message, the tools, or what the chat template writes around both.
PromptPart = Literal["message", "tools", "template"]


@frozen
class DivergedAt:
    """The place where a prompt diverged from what was computed before: the first different token, and its message."""

    token: int  #: position in the prompt
    message: int | None = None  #: index in the prompt's messages, the system message included; None: in none of them
    role: Role | None = None
    part: PromptPart = "message"
    tool: str | None = None  #: the name of the tool in whose definition it lies


@frozen(kw_only=True)
class Usage(AsDict, Shown):
    """The cost of one request. ``cached_tokens + computed_tokens == prompt_tokens``, always."""

    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    output_tokens: int
    tier: Tier  #: the slowest tier touched
    tier_tokens: Mapping[str, int] = field(factory=dict)  #: cached tokens by tier
    exactness: Exactness = "exact"
    miss: MissCause | None = None  #: why less was reused than had been computed before
    miss_detail: str = ""  #: the same as a sentence, with its numbers
    diverged_at: DivergedAt | None = None  #: where the prompt left the ids that had been computed before, if it did
    replaced_messages: int = 0  #: messages of the agent's log that this request's list took the place of
    ttft_s: float = 0.0  #: from the call to the first token
    queue_s: float = 0.0
    restore_s: float = 0.0
    prefill_s: float = 0.0
    decode_tps: float = 0.0  #: tokens a second after the first
    proposed: int = 0  #: tokens that prompt lookup or a grammar proposed
    accepted: int = 0  #: of these, the ones that the model would have said: no step of their own was needed
    saved_s: float | None = None  #: estimate: what the cached tokens cost at the measured rate, less their restore

    def __repr__(self) -> str:
        return (
            f"Usage(prompt={self.prompt_tokens} cached={self.cached_tokens} computed={self.computed_tokens} "
            f"output={self.output_tokens} tier={self.tier} exactness={self.exactness} ttft={self.ttft_s * 1e3:.0f}ms)"
        )

    @property
    def by_tier(self) -> Bar:
        """The prompt's tokens by where they came from, as a bar."""
        tiers = [(tier, self.tier_tokens.get(tier, 0)) for tier in TIERS[1:]]
        shares = [(name, n, f"{n:,}") for name, n in (*tiers, ("computed", self.computed_tokens))]
        saved = f"about {seconds(self.saved_s)} saved" if self.saved_s and self.saved_s >= 0.01 else ""
        return Bar(shares, label=saved)

    def _page(self) -> Page:
        title = f"{self.cached_tokens:,} of {self.prompt_tokens:,} prompt tokens reused"
        times = [("first token after", self.ttft_s), ("waited", self.queue_s), ("restored in", self.restore_s)]
        rows = [(name, seconds(s)) for name, s in (*times, ("prefilled in", self.prefill_s)) if s]
        if self.output_tokens:
            speed = f", {self.decode_tps:,.0f} a second" if self.decode_tps else ""
            rows.append(("output", f"{self.output_tokens:,} tokens{speed}"))
        if self.exactness != "exact":
            rows.append(("exactness", self.exactness))
        missed = [Note(f"{self.miss}: {self.miss_detail}")] if self.miss else []
        return Page(title, [self.by_tier, *([Table(rows)] if rows else []), *missed])
