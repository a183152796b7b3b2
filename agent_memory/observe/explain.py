"""The answer to "why was my cache missed?": what is reusable, what it costs, where the prompt parted, what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from agent_memory.usage import AsDict, DivergedAt, MissCause
from agent_memory.views.page import Bar, Page, Shown, Table

#: One sentence for each cause: what to do about it.
ADVICE: Mapping[MissCause, str] = {
    "edited_history": "Send earlier messages exactly as they were, or expect this cost where the edit was meant.",
    "system_changed": "Keep the system prompt as it is, and put what changes into the newest message.",
    "tools_changed": "Offer the same tools, in the same order, in each turn.",
    "template_changed": "Give the same template= variables in each turn, or expect this cost where they must change.",
    "template_moved": "Nothing to do: this chat template rewrites earlier turns when a turn is added.",
    "reasoning_dropped": "Use an agent with keep_reasoning=True, so that earlier replies keep their reasoning.",
    "date_moved": "Tell the day in the newest message; the template's own date stays that of an agent's first turn.",
    "volatile_text": "Leave the clock, identifier or counter out, or put it into the newest message.",
    "key_order": "Build the JSON once, or write it with sorted keys.",
    "replaced_history": 'Give another conversation another agent=, or ask with on_diverge="branch".',
    "compacted": "Nothing to do: what compact() keeps is computed once; a smaller keep_turns keeps less.",
    "cancelled": "Let the request finish, or give it more time with timeout_s: only what it had computed is reused.",
    "forgotten": "Nothing to do: a card of this conversation was forgotten, and its KV with it.",
    "evicted": "Give the tier more bytes, or pin the agent: see docs/tiers.md.",
    "not_stored": "Let close() or flush() return before the process ends, and look at stats().saves_skipped.",
    "damaged": "Run memory.verify() and look at the disk: the KV is computed again, and nothing else is lost.",
    "other_model": "Nothing to do: KV belongs to one model, and is computed anew under another.",
    "other_tenant": "Use the same Config.salt where two callers may share KV; tenants with other salts never do.",
    "never_seen": "Nothing to do: this text is new here; memory.prefill() computes a prefix ahead of need.",
}  # fmt: skip


@frozen(kw_only=True)
class CacheReport(AsDict, Shown):
    """What a request would reuse now, and why no more: ``cause`` None where nothing was lost or left behind.

    ``here``, ``there``: the text from the first divergent token on, of this prompt and of what had been computed;
    ``shared``: the text right before it. They hold text of prompts: treat a report as confidential.
    """

    cause: MissCause | None
    detail: str = ""  #: one sentence with its numbers, without any of the prompt's text
    advice: str = ""
    prompt_tokens: int = 0
    reusable: Mapping[str, int] = field(factory=dict)  #: tokens by tier
    diverged_at: DivergedAt | None = None
    shared: str = ""
    here: str = ""
    there: str = ""
    restore_s: float | None = None  #: estimated from this machine's measured rates; None: not measured yet
    prefill_s: float | None = None  #: the same for what is not reusable
    unmeasured: str = ""  #: why an estimate is None
    next_s: float | None = None  #: seconds until the agent's next turn, as expected; None: only its last use is known
    expected: str = ""  #: why the turn is expected then

    @property
    def is_hit(self) -> bool:
        """True if nothing was lost or left behind."""
        return self.cause is None

    @property
    def reusable_tokens(self) -> int:
        """Tokens reusable from all tiers."""
        return sum(self.reusable.values())

    def to_dict(self) -> dict[str, Any]:
        """Return a copy in dicts, lists, numbers and texts alone, ``reusable_tokens`` included."""
        return {**super().to_dict(), "reusable_tokens": self.reusable_tokens}

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def rows(self) -> list[tuple[str, str]]:
        """(name, text) of every line that the report has."""
        tiers = ", ".join(f"{tier} {n:,}" for tier, n in self.reusable.items())
        reusable = f"{self.reusable_tokens:,} of {self.prompt_tokens:,} tokens" + (f" ({tiers})" if tiers else "")
        lines = [("cause", self.cause or "none, a hit"), ("detail", self.detail), ("advice", self.advice)]
        lines += [("reusable", reusable), ("restore", _seconds(self.restore_s)), ("prefill", _seconds(self.prefill_s))]
        lines.append(("not measured", self.unmeasured))
        next_turn = "" if self.next_s is None else f"in {self.next_s:.3f} s"
        lines.append(("next turn", ": ".join(text for text in (next_turn, self.expected) if text)))
        if self.diverged_at is not None:
            lines.append(("diverged at", _place(self.diverged_at)))
            lines += [("shared before", _quoted(self.shared)), ("this prompt", _quoted(self.here))]
            lines.append(("computed before", _quoted(self.there)))
        return [(name, text) for name, text in lines if text]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self.rows())

    def __repr__(self) -> str:
        return f"CacheReport(cause={self.cause} reusable={self.reusable_tokens:,} of {self.prompt_tokens:,})"

    def _page(self) -> Page:
        shares = [(tier, n, f"{n:,}") for tier, n in self.reusable.items()]
        computed = self.prompt_tokens - self.reusable_tokens
        return Page("", [Bar([*shares, ("computed", computed, f"{computed:,}")]), Table(self.rows())])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s (estimated)"


def _place(at: DivergedAt) -> str:
    where = "the chat template's own text" if at.message is None else f"message {at.message} ({at.role})"
    if at.part == "tools":
        where = "the tools" if at.tool is None else f"the tool {at.tool}"
    return f"token {at.token:,}, in {where}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
