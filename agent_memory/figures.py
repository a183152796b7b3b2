"""What a Memory says of itself: counters, times, health, and the choices it runs with. All frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import attrs
from attrs import field, frozen

from agent_memory.usage import TIERS, AsDict, Tier
from agent_memory.views.page import Bar, Note, Page, Shown, Table
from agent_memory.views.units import count, seconds, size

#: What is counted of the bucket that hosts share (``Stats.remote``); docs/remote.md explains each.
REMOTE_EVENTS = (
    "fetches_chosen", "computing_chosen", "asked", "not_there", "fetched_chunks", "fetched_tokens", "late", "damaged",
    "failed", "outages", "skipped", "published_chunks", "present_chunks",
)  # fmt: skip

#: Where a setting's value comes from.
ChoiceSource = Literal["default", "config", "machine", "store", "model"]


class ByTier(Mapping[Tier, int]):
    """Numbers by tier, looked up when they are first read, and kept then."""

    __slots__ = ("_found", "_look")

    def __init__(self, look: Callable[[], Mapping[Tier, int]]) -> None:
        self._look: Callable[[], Mapping[Tier, int]] | None = look
        self._found: Mapping[Tier, int] = {}

    def _read(self) -> Mapping[Tier, int]:
        if (look := self._look) is not None:
            self._found, self._look = look(), None
        return self._found

    def __getitem__(self, tier: Tier) -> int:
        return self._read()[tier]

    def __iter__(self) -> Iterator[Tier]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(dict(self._read()))

    def __reduce__(self) -> tuple[type[dict[Tier, int]], tuple[dict[Tier, int]]]:
        return dict, (dict(self._read()),)


@frozen(repr=False)
class Histogram(AsDict):
    """How many values fell at or below each bound and above the bound before it; the last count is of all above."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]  #: one more than there are bounds
    sum: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Return the least bound that a share ``q`` (0 to 1) of the values is within; inf above the last, 0 of none."""
        need, seen = q * self.count, 0
        for bound, n in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += n
            if seen >= need and seen:
                return bound
        return 0.0

    def __repr__(self) -> str:
        mean = self.sum / self.count if self.count else 0.0
        return f"Histogram(n={self.count} mean={mean:.3g} p50<={self.quantile(0.5):g} p95<={self.quantile(0.95):g})"


@frozen(kw_only=True)
class Stats(AsDict, Shown):
    """Counters of one Memory since it was opened, and its bytes now. docs/operations.md lists all with their units."""

    requests: int = 0
    ended: Mapping[str, int] = field(factory=dict)  #: requests by how they ended: done, cancelled, failed
    waiting: int = 0  #: requests that have not started, now
    running: int = 0  #: requests that prefill or decode, now
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    output_tokens: int = 0
    hits: Mapping[str, int] = field(factory=dict)  #: requests by slowest tier touched
    tier_tokens: Mapping[str, int] = field(factory=dict)  #: cached tokens by tier
    misses: Mapping[str, int] = field(factory=dict)  #: by reason
    times: Mapping[str, Histogram] = field(factory=dict)  #: seconds of replies: ttft, queue, restore, prefill, request
    evictions: Mapping[str, int] = field(factory=dict)  #: lineages that left hot, pieces that left warm
    restored_bytes: int = 0  #: bytes read from warm and disk for requests that started
    ahead_bytes: int = 0  #: bytes read from warm and disk ahead of need
    ahead: Mapping[str, int] = field(factory=dict)  #: lineages restored ahead of need: useful, wasted
    foresight: str = "last use"  #: what orders eviction now: "learned" turns, or "last use"
    damage: int = 0  #: stored pieces found damaged or missing
    hot_bytes: int = 0
    warm_bytes: int = 0
    disk_bytes: int = 0
    budgets: Mapping[str, int] = field(factory=dict)  #: most bytes of each tier
    bytes_written: int = 0
    segments: int = 0
    chunks: int = 0
    agents: int = 0
    save_failures: int = 0
    saves_skipped: Mapping[str, int] = field(factory=dict)  #: KV that was not written, by reason
    disk_state: str = "ok"  #: "full", "read-only", "failing" or "gone" (the folder) while the disk takes no writes
    disk_failures: int = 0  #: writes that the disk refused
    unwritten_tokens: int = 0  #: tokens whose KV was to be written and is not on disk
    unreadable: int = 0  #: KV files that cannot be read now, and are tried again
    remember_failures: int = 0  #: exchanges that were to be remembered and are not
    tools_abandoned: int = 0  #: calls of run_tools that were still running after tool_timeout_s
    remote: Mapping[str, int] = field(factory=dict)  #: traffic with Config.remote, by event
    remote_bytes: Mapping[str, int] = field(factory=dict)  #: bytes of objects: fetched, published
    computed_ids: int = 0  #: ids fed to the model in prefill, counted where they are fed
    faults: int = 0  #: model steps that raised, and exceptions that struck the engine's thread
    hook_failures: int = 0  #: replies for which ``Config.on_reply`` raised, or came too late to be called
    recorder_failures: int = 0  #: lines that could not be written to ``Config.recorder``

    @property
    def tiers(self) -> list[Bar]:
        """Bytes of each tier that has a budget, as bars."""
        used = {"hot": self.hot_bytes, "warm": self.warm_bytes, "cold": self.disk_bytes}
        budgets = [(tier, used[tier], self.budgets.get(tier) or 0) for tier in used]
        return [Bar([(tier, n, f"{size(n)} of {size(most)}")], total=most) for tier, n, most in budgets if most]

    def _page(self) -> Page:
        title = f"{count(self.requests, 'request')}, {count(self.agents, 'agent')}"
        tokens = [(tier, self.tier_tokens.get(tier, 0)) for tier in TIERS[1:]]
        shares = [(name, n, f"{n:,}") for name, n in (*tokens, ("computed", self.computed_tokens))]
        shown = {"hot_bytes", "warm_bytes", "disk_bytes", "budgets", "tier_tokens", "requests", "agents", "times"}
        rows = [(name, _cell(name, value)) for name, value in self.rows() if name not in shown and value]
        rows += [
            (f"{name} time", f"{seconds(one.sum / one.count)} on average, of {one.count:,}")
            for name, one in self.times.items()
            if one.count
        ]
        return Page(title, [Bar(shares, label="prompt tokens by origin"), *self.tiers, Table(rows)])

    def rows(self) -> list[tuple[str, Any]]:
        """(name, value) of every figure."""
        return [(a.name, getattr(self, a.name)) for a in attrs.fields(type(self))]


@frozen(kw_only=True)
class Health(AsDict, Shown):
    """Whether a Memory serves. ``ready`` implies ``live``."""

    live: bool  #: False after ``close()``, in a forked child, and where the engine's thread has ended
    ready: bool  #: True if a request that came now would be served as usual
    reasons: tuple[str, ...] = ()  #: why it is not ready; one sentence each
    started_s: float = 0.0  #: Unix time of its opening

    def _page(self) -> Page:
        title = "Ready" if self.ready else "Not ready" if self.live else "Not live"
        return Page(title, [Note(reason) for reason in self.reasons])


@frozen(kw_only=True)
class Choice(AsDict):
    """A setting with the value that it has, where that comes from, and what would change it."""

    name: str
    value: Any
    source: ChoiceSource
    why: str  #: one sentence, with its numbers
    change: str  #: what to type or to do for another value

    @property
    def shown(self) -> str:
        """The value in words: bytes in GiB too."""
        return _human(self.name, self.value)


@frozen(kw_only=True)
class Doctor(AsDict, Shown):
    """What was found on this machine and of the model, and what would make it faster or right."""

    facts: Mapping[str, Any]
    advice: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    is_explained: bool = False  #: True: the text says of each choice why, and what would change it

    def choice(self, name: str) -> Choice:
        """Return the choice of that name. Raises KeyError."""
        return {one.name: one for one in self.choices}[name]

    def __str__(self) -> str:
        sources = {one.name: one.source for one in self.choices}
        lines = ["found"] + [f"  {name}: {value}" for name, value in self.facts.items() if name not in sources]
        lines.append("chosen")
        for one in self.choices:
            lines.append(f"  {one.name}: {one.shown} ({one.source})")
            if self.is_explained:
                lines += [f"      why: {one.why}", f"      to change it: {one.change}"]
        return "\n".join(lines + [f"advice: {one}" for one in self.advice])

    def _page(self) -> Page:
        sources = {one.name for one in self.choices}
        found = Table([(name, _human(name, value)) for name, value in self.facts.items() if name not in sources])
        head = ("chosen", "value", "from", *(("why", "to change it") if self.is_explained else ()))
        chosen = [
            (one.name, one.shown, one.source, *((one.why, one.change) if self.is_explained else ()))
            for one in self.choices
        ]
        advice = [Note(f"advice: {one}") for one in self.advice]
        return Page("Doctor", [*advice, found, *([Table(chosen, head)] if chosen else [])])

    def __getattr__(self, name: str) -> Any:
        try:
            return self.facts[name]
        except KeyError:
            raise AttributeError(name) from None


def _human(name: str, value: Any) -> str:
    is_size = name.endswith("_bytes") and isinstance(value, int) and value >= 1 << 20
    return f"{value:,} ({value / (1 << 30):.1f} GiB)" if is_size else str(value)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {n:,}" for key, n in value.items() if n) or "0"
    return size(value) if name in ("bytes_written",) else f"{value:,}" if isinstance(value, int) else str(value)
