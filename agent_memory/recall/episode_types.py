"""The values of episodic memory that callers see. All frozen; times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from attrs import field, fields, frozen
from attrs.validators import optional

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.recall.given import MOST_INT, a_flag, a_number, a_text, checked_number
from agent_memory.views.page import Note, Page, Plain, Shown, Table
from agent_memory.views.units import ago, short

EpisodeState = Literal["open", "completed", "abandoned"]


def _as_tags(given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise UnsupportedParameterError(f"tags must be a list of texts, got {repr_of(given)}")
    tags = tuple(given)
    if not all(isinstance(tag, str) for tag in tags):
        raise UnsupportedParameterError(f"tags must be texts, got {repr_of(tags)}")
    return tags


@frozen(kw_only=True)
class TaskContext:
    """The setting of a task. Every field may be left empty. Raises UnsupportedParameterError."""

    language: str = field(default="", validator=a_text)
    framework: str = field(default="", validator=a_text)
    domain: str = field(default="", validator=a_text)
    tags: tuple[str, ...] = field(default=(), converter=_as_tags)

    @property
    def features(self) -> frozenset[str]:
        """What is set, as ``language=python`` and ``tag=api``; compared without regard to case."""
        named = {name: getattr(self, name) for name in ("language", "framework", "domain")}
        pairs = [f"{name}={value.lower()}" for name, value in named.items() if value]
        return frozenset((*pairs, *(f"tag={tag.lower()}" for tag in self.tags)))


@frozen(kw_only=True)
class Outcome:
    """How a task ended. Raises UnsupportedParameterError."""

    success: bool = field(validator=a_flag)
    result: str = field(default="", validator=a_text)  #: what came of it
    error: str = field(default="", validator=a_text)  #: why it failed
    duration_ms: float | None = field(default=None, validator=optional(a_number(0, MOST_INT)))  #: None: from the clock
    quality: float | None = field(default=None, validator=optional(a_number(0, 1)))  #: None: from the steps


@frozen(kw_only=True)
class EpisodeStep:
    """One thing that an episode did. ``number`` counts steps, decisions and checkpoints together, from 1."""

    number: int
    at: float
    tool: str
    action: str
    ok: bool
    observation: str = ""
    parameters: Mapping[str, Any] = field(factory=dict)
    latency_ms: float | None = None
    tokens: int | None = None
    cut_chars: int = 0  #: characters that were cut out of the middle of ``observation``


@frozen(kw_only=True)
class Decision:
    """A choice that an episode made under a condition."""

    number: int
    at: float
    condition: str
    choice: str


@frozen(kw_only=True)
class Score:
    """What an episode was worth: ``total`` with its parts. The default: their product.

    ``outcome`` is 1 for a success, else 0. ``efficiency`` is 0.5 to 1.5: above 1 in fewer than ten steps and less than
    a minute. ``quality`` is 0 to 1: the caller's own figure, or the share of steps that did not fail.
    """

    total: float
    outcome: float
    efficiency: float
    quality: float


def checked_score(value: object) -> Score:
    """Return what a score function gave: a Score of finite numbers."""
    if not isinstance(value, Score):
        raise UnsupportedParameterError(f"a score function must return a Score, got {repr_of(value)}")
    for one in fields(Score):
        checked_number(getattr(value, one.name), f"a score's {one.name}")
    return value


@frozen(kw_only=True)
class Insight:
    """One fact about an episode. ``steps`` are the numbers of those that it rests on."""

    kind: Literal["success", "improvement", "insight"]
    text: str
    steps: tuple[int, ...]


@frozen(kw_only=True)
class EpisodeRecord(Shown):
    """An episode as it is stored."""

    id: int
    task: str
    context: TaskContext
    state: EpisodeState
    started_s: float
    ended_s: float | None
    steps: tuple[EpisodeStep, ...]
    decisions: tuple[Decision, ...] = ()
    checkpoints: tuple[int, ...] = ()  #: their numbers
    outcome: Outcome | None = None  #: None while open, and where abandoned
    score: Score | None = None
    redactions: int = 0  #: secrets that were replaced in its texts

    def __repr__(self) -> str:
        end = "" if self.outcome is None else " success" if self.outcome.success else " failure"
        return f"EpisodeRecord({self.id} {repr_of(self.task[:60])} {self.state}{end} {len(self.steps)} steps)"

    def _page(self) -> Page:
        end = self.state if self.outcome is None else "success" if self.outcome.success else "failure"
        worth = f", score {self.score.total:.2f}" if self.score else ""
        rows = [
            (str(one.number), one.tool, short(one.action), "ok" if one.ok else "failed", short(one.observation))
            for one in self.steps
        ]
        said = [Note(f"{one.number}. when {one.condition}: {one.choice}") for one in self.decisions]
        came = [] if self.outcome is None else [Note(self.outcome.result or self.outcome.error)]
        title = f"Episode {self.id}: {short(self.task)} ({end}{worth})"
        steps = [Table(rows, ("", "tool", "action", "", "observation"))] if rows else []
        return Page(title, [Note(f"started {ago(self.started_s)}"), *steps, *said, *came])


ScoreFunction = Callable[[EpisodeRecord], Score]


@frozen
class EpisodeHit(Shown):
    """An episode like the task that was asked about. The values of ``parts`` sum to ``score``."""

    episode: EpisodeRecord
    score: float
    parts: Mapping[str, float]

    def _page(self) -> Page:
        page = self.episode._page()
        return Page(f"{self.score:.3f} {page.title}", [Note(_line(self.parts)), *page.parts])


PatternKind = Literal["tool_sequence", "decision_point", "error_recovery", "context_pattern"]
PATTERN_KINDS: tuple[str, ...] = get_args(PatternKind)


@frozen(kw_only=True)
class Effectiveness:
    """How well a pattern served, as of now: ``value`` = ``mean`` x ``freshness``.

    ``mean`` is that of a Beta posterior with a uniform prior: (1 + successes) / (2 + successes + failures), so that 9
    of 10 ranks above 1 of 1. ``freshness`` halves every 30 days since the pattern was last seen. Computed when read.
    """

    successes: int
    failures: int
    mean: float
    freshness: float
    value: float


@frozen(kw_only=True)
class Branch:
    """One choice at a decision point, and how the episodes that took it ended."""

    choice: str
    successes: int
    failures: int
    episodes: tuple[int, ...]


@frozen(kw_only=True)
class Pattern(Shown):
    """What several episodes have in common. Derived: it cites its ``episodes`` and can be made anew from them.

    What is filled depends on ``kind``:

    - ``tool_sequence``: ``tools``, in order;
    - ``decision_point``: ``condition``, ``choice`` (the best) and ``branches`` (all);
    - ``error_recovery``: ``error`` (a signature without paths, numbers and ids), ``tools`` that put it right, in order;
    - ``context_pattern``: ``features`` of a context, ``tools`` (one) that succeeds there.
    """

    id: str  #: a hash of kind and content: the same in every process and order of episodes
    kind: PatternKind
    episodes: tuple[int, ...]  #: those that show it
    effectiveness: Effectiveness
    tools: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()  #: what each tool did in the newest of the episodes
    condition: str = ""
    choice: str = ""
    branches: tuple[Branch, ...] = ()
    error: str = ""
    features: frozenset[str] = frozenset()
    merged: tuple[str, ...] = ()  #: ids of near duplicates that it absorbed, their episodes included

    @property
    def text(self) -> str:
        """The pattern as one sentence."""
        after = " then ".join(described(self.tools, self.actions))
        match self.kind:
            case "tool_sequence":
                return f"These tools work in this order: {after}."
            case "decision_point":
                return f"When {self.condition}: {self.choice}."
            case "error_recovery":
                return f"After the error {repr_of(self.error)}: {after}."
            case "context_pattern":
                return f"With {', '.join(sorted(self.features))}: {after} works."

    def __repr__(self) -> str:
        return f"Pattern({self.id} {self.text!r} in {len(self.episodes)} episodes, {self.effectiveness.value:.2f})"

    def _page(self) -> Page:
        how = self.effectiveness
        seen = f"{how.successes} successes, {how.failures} failures, worth {how.value:.2f}"
        numbers = ", ".join(map(str, self.episodes))
        return Page(self.kind.replace("_", " "), [Plain(self.text), Note(f"{seen}; episodes {numbers}")])


def described(tools: Sequence[str], actions: Sequence[str]) -> list[str]:
    """Return tools with what they did in brackets, where that is known and says more than the name."""
    padded = (*actions, *[""] * len(tools))
    return [
        f"{tool} ({action[:80]})" if action and action != tool else tool
        for tool, action in zip(tools, padded, strict=False)
    ]


@frozen(kw_only=True)
class Recommendation(Shown):
    """What earlier episodes advise. The values of ``parts`` sum to ``score``."""

    text: str
    tools: tuple[str, ...]  #: what to call, the next one first; () for a decision
    score: float
    parts: Mapping[str, float]
    pattern: Pattern | None  #: None: from the steps of similar episodes
    episodes: tuple[int, ...]  #: what it rests on

    def _page(self) -> Page:
        return Page("", [Plain(self.text), Note(f"score {self.score:.3f}: {_line(self.parts)}")])


@frozen(kw_only=True)
class PRF:
    """Found patterns against those that should have been found, each gold pattern matched at most once."""

    precision: float
    recall: float
    f1: float
    n_found: int
    n_gold: int
    n_matched: int
    missed: tuple[str, ...] = ()  #: gold patterns that nothing matched, as text
    extra: tuple[str, ...] = ()  #: ids of found patterns that matched no gold one


@frozen(kw_only=True)
class EpisodeStats:
    """Figures of one workspace."""

    n_open: int
    n_completed: int
    n_abandoned: int
    n_succeeded: int
    n_steps: int
    n_learned: int  #: episodes that patterns are made from
    n_patterns: Mapping[str, int]  #: by kind


@runtime_checkable
class StepRecorder(Protocol):
    """Whatever takes note of tool calls as they happen: an ``Episode``, or a host's own log.

    A call of a model: ``step(call.name, parameters=call.arguments, ok=not result.is_error, observation=text)``.
    """

    def step(
        self,
        tool: str,
        action: str = "",
        *,
        ok: bool = True,
        observation: str = "",
        parameters: Mapping[str, Any] | None = None,
        latency_ms: float | None = None,
        tokens: int | None = None,
    ) -> int:
        """Record one call of ``tool``; return its number. Called from the thread that ran the tool."""
        ...


def _line(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:+.3f}" for name, value in parts.items() if value)
