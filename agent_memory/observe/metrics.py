"""Every metric of a Memory, once: name, unit, kind, help, and which figures it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from attrs import field, frozen

from agent_memory.figures import REMOTE_EVENTS, Health, Histogram, Stats
from agent_memory.usage import TIERS, MissCause

Kind = Literal["counter", "gauge", "histogram"]

PREFIX = "agent_memory"
_SUFFIXED = ("seconds", "bytes")  #: units that a Prometheus name ends with
_HELD = {"hot": "hot_bytes", "warm": "warm_bytes", "cold": "disk_bytes"}


@frozen
class AgentFigures:
    """The sums of one agent's replies since the Memory was opened."""

    agent_requests: int = 0
    agent_prompt_tokens: int = 0
    agent_cached_tokens: int = 0
    agent_computed_tokens: int = 0
    agent_output_tokens: int = 0


@frozen(kw_only=True)
class Figures:
    """All figures of a Memory at one moment. ``agents``: those shown by name, with their sums."""

    stats: Stats
    health: Health
    agents: Mapping[str, AgentFigures] = field(factory=dict)


@frozen
class Sample:
    """One value of a metric."""

    value: float | Histogram
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class Metric:
    """One metric. The catalogue is the only place that knows it."""

    name: str
    kind: Kind
    unit: str  #: what it counts: tokens, requests, bytes, seconds ...
    help: str  #: one line
    label: str = field(default="", kw_only=True)  #: what the keys of a figure with several values are
    known: tuple[str, ...] = field(default=(), kw_only=True)  #: keys that are shown with 0 before they first occur
    figure: str = field(default="", kw_only=True)  #: the figure that it shows, where that has another name
    figures: Mapping[str, str] = field(factory=dict, kw_only=True)  #: label's value -> figure, where it shows several
    source: Literal["stats", "times", "health", "agents"] = field(default="stats", kw_only=True)

    @property
    def prometheus(self) -> str:
        """The name in Prometheus: prefix, name, unit of time or size, ``_total`` for counters."""
        unit = f"_{self.unit}" if self.unit in _SUFFIXED and not self.name.endswith(self.unit) else ""
        return f"{PREFIX}_{self.name}{unit}{'_total' if self.kind == 'counter' else ''}"

    @property
    def otel(self) -> str:
        """The name in OpenTelemetry."""
        return f"{PREFIX}.{self.name}"

    def samples(self, figures: Figures) -> Iterator[Sample]:
        """Yield the metric's values."""
        if self.source == "agents":
            for agent, sums in figures.agents.items():
                yield Sample(getattr(sums, self.name), {self.label: agent})
        elif self.source == "times":
            yield Sample(figures.stats.times[self.name])
        else:
            values = figures.stats if self.source == "stats" else figures.health
            if self.figures:
                yield from self._of({key: getattr(values, name) for key, name in self.figures.items()})
            else:
                yield from self._of(getattr(values, self.figure or self.name))

    def _of(self, found: Any) -> Iterator[Sample]:
        if isinstance(found, str):  # a state: 1 for the one that it is in
            found = {key: key == found for key in dict.fromkeys((*self.known, found))}
        if isinstance(found, Mapping):
            for key, value in {**dict.fromkeys(self.known, 0), **found}.items():
                yield Sample(value, {self.label: key})
        else:
            yield Sample(found)


CATALOGUE: tuple[Metric, ...] = (
    Metric("requests", "counter", "requests", "Requests that ended with a reply."),
    Metric(
        "ended",
        "counter",
        "requests",
        "Requests by how they ended.",
        label="state",
        known=("done", "cancelled", "failed"),
    ),
    Metric("waiting", "gauge", "requests", "Requests that have not started yet."),
    Metric("running", "gauge", "requests", "Requests that prefill or decode."),
    Metric("prompt_tokens", "counter", "tokens", "Prompt tokens of replies: cached and computed ones."),
    Metric("cached_tokens", "counter", "tokens", "Prompt tokens whose KV was reused."),
    Metric("computed_tokens", "counter", "tokens", "Prompt tokens that were computed for a reply."),
    Metric("output_tokens", "counter", "tokens", "Tokens generated for replies."),
    Metric("computed_ids", "counter", "tokens", "Prompt tokens fed to the model, also for requests without a reply."),
    Metric(
        "hits", "counter", "requests", "Replies by the slowest tier that their KV came from.", label="tier", known=TIERS
    ),
    Metric(
        "tier_tokens",
        "counter",
        "tokens",
        "Reused prompt tokens by tier.",
        label="tier",
        known=tuple(t for t in TIERS if t != "none"),
    ),
    Metric(
        "misses",
        "counter",
        "requests",
        "Replies that reused less than had been computed before, by cause (docs/reuse.md).",
        label="cause",
        known=get_args(MissCause),
    ),
    Metric("ttft", "histogram", "seconds", "From the call to the first token.", source="times"),
    Metric("queue", "histogram", "seconds", "From the call to the start of the request.", source="times"),
    Metric("restore", "histogram", "seconds", "Taking or restoring KV, of replies that reused some.", source="times"),
    Metric("prefill", "histogram", "seconds", "From the start of the prefill to the first token.", source="times"),
    Metric("request", "histogram", "seconds", "From the call to the reply.", source="times"),
    Metric("tier_bytes", "gauge", "bytes", "Bytes in each tier, as allocated.", label="tier", figures=_HELD),
    Metric("budget_bytes", "gauge", "bytes", "Most bytes of each tier.", label="tier", figure="budgets"),
    Metric(
        "evictions",
        "counter",
        "evictions",
        "Lineages that left hot, and pieces that left warm.",
        label="tier",
        known=("hot", "warm"),
    ),
    Metric("restored", "counter", "bytes", "Bytes read from warm and disk for requests.", figure="restored_bytes"),
    Metric("restored_ahead", "counter", "bytes", "Bytes read from warm and disk ahead of need.", figure="ahead_bytes"),
    Metric(
        "ahead",
        "counter",
        "lineages",
        "Lineages restored ahead of need, by what became of them.",
        label="outcome",
        known=("useful", "wasted"),
    ),
    Metric(
        "foresight",
        "gauge",
        "state",
        "1 for what orders eviction: learned turns, or last use.",
        label="order",
        known=("learned", "last use"),
    ),
    Metric("written", "counter", "bytes", "Bytes of KV files written.", figure="bytes_written"),
    Metric("segments", "gauge", "segments", "KV files in the store."),
    Metric("chunks", "gauge", "chunks", "Chunks in those files."),
    Metric("agents", "gauge", "agents", "Agents in the store, of every salt."),
    Metric("damage", "counter", "pieces", "Stored pieces found damaged or missing; their KV is computed again."),
    Metric("unreadable", "gauge", "files", "KV files that cannot be read now, and are tried again."),
    Metric("save_failures", "counter", "saves", "Saves of KV that failed."),
    Metric("saves_skipped", "counter", "saves", "KV that was not written, by reason.", label="reason"),
    Metric("unwritten_tokens", "gauge", "tokens", "Tokens whose KV was to be written and is not on disk."),
    Metric(
        "disk_state",
        "gauge",
        "state",
        "1 for the state that the disk is in.",
        label="state",
        known=("ok", "full", "read-only", "failing", "gone"),
    ),
    Metric("disk_failures", "counter", "writes", "Writes that the disk refused."),
    Metric("remember_failures", "counter", "exchanges", "Exchanges that were to be remembered and are not."),
    Metric("tools_abandoned", "counter", "calls", "Calls of run_tools that were still running after tool_timeout_s."),
    Metric(
        "remote",
        "counter",
        "events",
        "Traffic with the bucket that hosts share, by event (docs/remote.md).",
        label="event",
        known=REMOTE_EVENTS,
    ),
    Metric(
        "remote_bytes",
        "counter",
        "bytes",
        "Bytes of objects that were fetched from that bucket, and published there.",
        label="way",
        known=("fetched", "published"),
    ),
    Metric("faults", "counter", "faults", "Model steps that raised, and exceptions that struck the engine's thread."),
    Metric("hook_failures", "counter", "replies", "Replies for which on_reply raised, or could not be called."),
    Metric("recorder_failures", "counter", "lines", "Lines that could not be written to the recorder's file."),
    Metric("live", "gauge", "state", "1 while the engine's thread runs.", source="health"),
    Metric("ready", "gauge", "state", "1 if a request that came now would be served as usual.", source="health"),
    Metric(
        "started", "gauge", "seconds", "Unix time at which the Memory was opened.", source="health", figure="started_s"
    ),
    Metric("agent_requests", "counter", "requests", "Replies of an agent.", label="agent", source="agents"),
    Metric(
        "agent_prompt_tokens",
        "counter",
        "tokens",
        "Prompt tokens of an agent's replies.",
        label="agent",
        source="agents",
    ),
    Metric(
        "agent_cached_tokens",
        "counter",
        "tokens",
        "Prompt tokens of an agent's replies whose KV was reused.",
        label="agent",
        source="agents",
    ),
    Metric(
        "agent_computed_tokens",
        "counter",
        "tokens",
        "Prompt tokens that were computed for an agent's replies.",
        label="agent",
        source="agents",
    ),
    Metric(
        "agent_output_tokens",
        "counter",
        "tokens",
        "Tokens generated for an agent's replies.",
        label="agent",
        source="agents",
    ),
)
