"""From what was learned to advice: at a task's start, in its middle, after an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from agent_memory.errors import repr_of
from agent_memory.recall.drafts import Draft
from agent_memory.recall.episode_types import Pattern, Recommendation, TaskContext, described
from agent_memory.recall.learned import Learned, Verdicts, as_pattern, freshness
from agent_memory.recall.signatures import error_signature, task_words
from agent_memory.recall.similarity import jaccard, text_similarity

_ALIKE = 0.6  #: from here on an error is taken for one of a kind; how alike they are counts in the score
MIN_EFFECTIVENESS = 0.3  #: patterns below are hidden, not deleted


def advice(
    learned: Learned,
    verdicts: Verdicts,
    task: str,
    context: TaskContext,
    now: float,
    after: Sequence[str] | None,
    error: str,
) -> Iterator[Recommendation]:
    """Yield recommendations, best first: for an error, what put it right; then for what comes next, or for the task."""
    if error:
        yield from _for_error(learned, verdicts, error, now)
    if after is None:
        yield from _for_task(learned, verdicts, task, context, now)
    if after is not None or not error:
        yield from _next(learned, task, after or ())


def _for_error(learned: Learned, verdicts: Verdicts, error: str, now: float) -> Iterator[Recommendation]:
    """Recoveries of that kind of error; where no pattern is left, what single episodes did about it."""
    signature = error_signature(error)
    found: list[Recommendation] = []
    for draft in learned.drafts:
        likeness = text_similarity(draft.error, signature) if draft.kind == "error_recovery" else 0.0
        if likeness >= _ALIKE:
            pattern = as_pattern(draft, verdicts, now)
            parts = {"error": 0.6 * likeness, "effectiveness": 0.4 * pattern.effectiveness.value}
            if pattern.effectiveness.value >= MIN_EFFECTIVENESS:
                found.append(_of_pattern(pattern, parts))
    yield from sorted(found or _single(learned, signature, now), key=lambda one: (-one.score, one.text))


def _single(learned: Learned, signature: str, now: float) -> Iterator[Recommendation]:
    by_tools: dict[tuple[str, ...], Recommendation] = {}
    for detour in learned.detours:
        likeness = text_similarity(detour.signature, signature)
        tools = tuple(dict.fromkeys(detour.tools))
        if likeness >= _ALIKE and detour.is_repaired and tools:
            at = detour.episode.ended_s or detour.episode.started_s
            actions = {step.tool: step.action for step in detour.steps}
            how = " then ".join(described(tools, [actions[tool] for tool in tools]))
            parts = {"error": 0.6 * likeness, "recency": 0.1 * freshness(now, at)}
            known = by_tools.get(tools)
            by_tools[tools] = Recommendation(
                text=f"After the error {repr_of(detour.signature)}: {how}.",
                tools=tools,
                score=sum(parts.values()),
                parts=parts,
                pattern=None,
                episodes=(*(known.episodes if known else ()), detour.episode.id),
            )
    yield from by_tools.values()


def _for_task(
    learned: Learned, verdicts: Verdicts, task: str, context: TaskContext, now: float
) -> Iterator[Recommendation]:
    words, features = frozenset(task_words(task)), context.features
    likeness = {
        id: 0.8 * learned.likeness(words, id) + (0.2 * jaccard(features, other.context.features) if features else 0.0)
        for id, other in learned.episodes.items()
    }
    found: list[Recommendation] = []
    for draft in learned.drafts:
        fit = _fit(draft, likeness, features)
        if draft.kind != "error_recovery" and fit > 0:
            pattern = as_pattern(draft, verdicts, now)
            n = len(pattern.episodes)
            parts = {"fit": 0.6 * fit, "effectiveness": 0.3 * pattern.effectiveness.value, "support": 0.1 * n / (n + 3)}
            if pattern.effectiveness.value >= MIN_EFFECTIVENESS:
                found.append(_of_pattern(pattern, parts))
    yield from sorted(found, key=lambda one: (-one.score, one.text))


def _fit(draft: Draft, likeness: Mapping[int, float], features: frozenset[str]) -> float:
    """How well a pattern fits a task: by its own context, or by the most similar episode that shows it."""
    if draft.kind == "context_pattern":
        return 1.0 if draft.features <= features else 0.0
    return max((likeness[one.episode] for one in draft.evidence), default=0.0)


def _next(learned: Learned, task: str, after: Sequence[str]) -> Iterator[Recommendation]:
    for tool, parts in learned.next_tools.ranked(task, after):
        episodes = learned.next_tools.episodes(tool, after)
        where = f"after {after[-1]}" if after else "first"
        text = (
            f"{tool} came {where} in {len(episodes)} episodes." if episodes else f"{tool} fits the words of the task."
        )
        score = sum(parts.values())
        yield Recommendation(text=text, tools=(tool,), score=score, parts=parts, pattern=None, episodes=episodes)


def _of_pattern(pattern: Pattern, parts: dict[str, float]) -> Recommendation:
    return Recommendation(
        text=pattern.text,
        tools=pattern.tools,
        score=sum(parts.values()),
        parts=parts,
        pattern=pattern,
        episodes=pattern.episodes,
    )
