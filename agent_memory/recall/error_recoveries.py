"""Error recoveries: what put an error right, at any distance from it, in several episodes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from attrs import frozen

from agent_memory.recall.chance import rate, tail
from agent_memory.recall.drafts import Draft, Evidence, outcome_of
from agent_memory.recall.episode_types import EpisodeRecord, EpisodeStep
from agent_memory.recall.signatures import error_signature
from agent_memory.recall.similarity import merged

MIN_SUPPORT = 3  #: repaired errors
MIN_SHARE = 0.6  #: of the repaired errors, how many had a tool in between
_ALPHA = 0.01  #: of all the tools that are tested for one error


@frozen
class Detour:
    """An error, and the steps that worked between it and the next try of the tool that failed.

    They repaired it where that try works, or fails in another way. Without another try the steps go on to the episode's
    end, and count as a repair where the episode succeeds.
    """

    signature: str
    episode: EpisodeRecord
    failed: EpisodeStep
    steps: tuple[EpisodeStep, ...]
    is_repaired: bool
    next_try: EpisodeStep | None

    @property
    def tools(self) -> tuple[str, ...]:
        return tuple(step.tool for step in self.steps)


def detours(episode: EpisodeRecord) -> Iterator[Detour]:
    """Yield what followed each failed step of an episode."""
    steps = episode.steps
    for i, step in enumerate(steps):
        if step.ok:
            continue
        signature = error_signature(step.observation, step.tool)
        j = next((j for j in range(i + 1, len(steps)) if steps[j].tool == step.tool), None)
        between = tuple(s for s in steps[i + 1 : j] if s.ok)
        if j is None:
            succeeded = episode.outcome is not None and episode.outcome.success
            yield Detour(signature, episode, step, between, succeeded, None)
        else:
            again = steps[j]
            is_repaired = again.ok or error_signature(again.observation, again.tool) != signature
            yield Detour(signature, episode, step, between, is_repaired, again)


def error_recoveries(episodes: Sequence[EpisodeRecord]) -> list[Draft]:
    """Return the tools that lie between an error and its repair more often than by chance, by kind of error."""
    groups: dict[str, list[Detour]] = defaultdict(list)
    for episode in episodes:
        for detour in detours(episode):
            groups[detour.signature].append(detour)
    uses = Counter(step.tool for episode in episodes for step in episode.steps if step.ok)
    drafts = (_draft(signature, found, uses) for signature, found in merged(groups))
    return [draft for draft in drafts if draft is not None]


def _draft(signature: str, found: Sequence[Detour], uses: Counter[str]) -> Draft | None:
    repaired = [detour for detour in found if detour.is_repaired]
    if len({detour.episode.id for detour in repaired}) < MIN_SUPPORT:
        return None
    tools = _telling(repaired, uses)
    applied = [detour for detour in found if set(tools) <= set(detour.tools)]
    cited = {
        detour.episode.id: Evidence(detour.episode.id, outcome_of(detour.episode).at, detour.is_repaired)
        for detour in applied
    }
    if not tools or sum(one.success is True for one in cited.values()) < MIN_SUPPORT:
        return None
    newest = max((d for d in applied if d.is_repaired), key=lambda d: (outcome_of(d.episode).at, d.episode.id))
    actions = {step.tool: step.action for step in newest.steps}
    return Draft(
        kind="error_recovery",
        error=signature,
        tools=tools,
        actions=tuple(actions[tool] for tool in tools),
        evidence=tuple(cited[episode] for episode in sorted(cited)),
    )


def _telling(repaired: Sequence[Detour], uses: Counter[str]) -> tuple[str, ...]:
    """Tools that most of the repairs share and that are rarer elsewhere, in the order in which they come."""
    within = Counter(tool for detour in repaired for tool in detour.tools)
    n_elsewhere = sum(uses.values()) - sum(within.values())
    windows = Counter(tool for detour in repaired for tool in set(detour.tools))
    alpha = _ALPHA / max(1, len(windows))

    def is_telling(tool: str) -> bool:
        base = rate(uses[tool] - within[tool], n_elsewhere)
        by_chance = sum(1 - (1 - base) ** len(detour.steps) for detour in repaired) / len(repaired)
        k = windows[tool]
        return k >= MIN_SHARE * len(repaired) and tail(len(repaired), k, by_chance) <= alpha

    def place(tool: str) -> float:
        places = [detour.tools.index(tool) / len(detour.tools) for detour in repaired if tool in detour.tools]
        return sum(places) / len(places)

    return tuple(sorted(filter(is_telling, windows), key=lambda tool: (place(tool), tool)))
