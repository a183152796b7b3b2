"""What is learned from the episodes of a workspace: patterns, likeness of tasks, the next tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from math import log

from agent_memory.recall.context_patterns import context_patterns
from agent_memory.recall.decision_points import decision_points
from agent_memory.recall.drafts import Draft, deduplicated
from agent_memory.recall.episode_types import Effectiveness, EpisodeHit, EpisodeRecord, Pattern, TaskContext
from agent_memory.recall.error_recoveries import Detour, detours, error_recoveries
from agent_memory.recall.next_tools import NextTools
from agent_memory.recall.signatures import task_words
from agent_memory.recall.similarity import clusters, jaccard
from agent_memory.recall.tool_sequences import tool_sequences

HALF_LIFE_S = 30 * 86_400.0
MOST_CLUSTERED = 300  #: episodes
EXTRACTORS = (tool_sequences, decision_points, error_recoveries, context_patterns)

#: Pattern id -> what users of the pattern said: (when, whether it served).
Verdicts = Mapping[str, Sequence[tuple[float, bool]]]


class Learned:
    """Derived from ``episodes`` alone, made anew when they change, and never changed itself: safe from any thread."""

    def __init__(self, episodes: Sequence[EpisodeRecord]) -> None:
        self.episodes = {episode.id: episode for episode in episodes}
        drafts = [draft for extract in EXTRACTORS for draft in extract(episodes)]
        self.drafts = sorted(deduplicated(drafts), key=lambda draft: (-len(draft.evidence), draft.id))
        self.next_tools = NextTools(episodes)
        self.detours: list[Detour] = [detour for episode in episodes for detour in detours(episode)]
        self._words = {episode.id: frozenset(task_words(episode.task)) for episode in episodes}
        self._n_with = Counter(word for words in self._words.values() for word in words)

    def likeness(self, words: Set[str], episode: int) -> float:
        """Return how alike a task's words and an episode's are: shared words over all, rare words counting more."""
        theirs = self._words[episode]
        union = sum(map(self._weight, words | theirs))
        return sum(map(self._weight, words & theirs)) / union if union else 0.0

    def _weight(self, word: str) -> float:
        return log(1 + len(self.episodes) / (1 + self._n_with[word]))

    def clusters(self, n: int, seed: int) -> list[tuple[int, ...]]:
        """Return at most ``n`` groups of the newest episodes: k-medoids by task, context and tools."""
        newest = list(self.episodes.values())[-MOST_CLUSTERED:]
        tools = {episode.id: frozenset(step.tool for step in episode.steps) for episode in newest}

        def alike(one: EpisodeRecord, other: EpisodeRecord) -> float:
            task = self.likeness(self._words[one.id], other.id)
            shared = jaccard(one.context.features, other.context.features)
            return 0.5 * task + 0.2 * shared + 0.3 * jaccard(tools[one.id], tools[other.id])

        return [tuple(newest[i].id for i in group) for group in clusters(newest, alike, n=n, seed=seed)]

    def hits(self, task: str, context: TaskContext, now: float, k: int) -> list[EpisodeHit]:
        """Return the ``k`` episodes that are most like a task; none that shares neither a word nor a feature."""
        words, features = frozenset(task_words(task)), context.features
        found: list[EpisodeHit] = []
        for episode in self.episodes.values():
            likeness = self.likeness(words, episode.id)
            shared = jaccard(features, episode.context.features) if features else 0.0
            if likeness or shared:
                worth = min(1.0, episode.score.total / 1.5) if episode.score is not None else 0.0
                parts = {
                    "task": 0.6 * likeness,
                    "context": 0.2 * shared,
                    "recency": 0.1 * freshness(now, episode.ended_s or episode.started_s),
                    "worth": 0.1 * worth,
                }
                found.append(EpisodeHit(episode, sum(parts.values()), parts))
        return sorted(found, key=lambda hit: (-hit.score, -hit.episode.id))[:k]


def freshness(now: float, at: float) -> float:
    """Return 1 for now, a half for 30 days ago, a quarter for 60."""
    return float(0.5 ** (max(0.0, now - at) / HALF_LIFE_S))


def effectiveness(draft: Draft, verdicts: Sequence[tuple[float, bool]], now: float) -> Effectiveness:
    """Return how well a pattern served so far, by its episodes and by what its users said."""
    successes = draft.n_successes + sum(served for _, served in verdicts)
    failures = draft.n_failures + sum(not served for _, served in verdicts)
    last = max((*(one.at for one in draft.evidence), *(at for at, _ in verdicts)), default=now)
    mean, fresh = (1 + successes) / (2 + successes + failures), freshness(now, last)
    return Effectiveness(successes=successes, failures=failures, mean=mean, freshness=fresh, value=mean * fresh)


def as_pattern(draft: Draft, verdicts: Verdicts, now: float) -> Pattern:
    """Return a draft as callers see it."""
    said = [one for id in (draft.id, *draft.merged) for one in verdicts.get(id, ())]
    return Pattern(
        id=draft.id,
        kind=draft.kind,
        episodes=tuple(one.episode for one in draft.evidence),
        effectiveness=effectiveness(draft, said, now),
        tools=draft.tools,
        actions=draft.actions,
        condition=draft.condition,
        choice=draft.choice,
        branches=draft.branches,
        error=draft.error,
        features=draft.features,
        merged=draft.merged,
    )
