"""Context patterns: tools that are used in one context rather than in others, and succeed there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from agent_memory.recall.chance import hypergeometric_tail
from agent_memory.recall.drafts import Draft, evidence
from agent_memory.recall.episode_types import EpisodeRecord

MIN_SUPPORT = 3  #: episodes
MIN_SUCCESS = 0.7
MIN_SHARE = 0.6  #: of a tool's episodes, how many have the context
MAX_FEATURES = 3  #: that a context is described by
_ALPHA = 0.01  #: of all the pairs of context and tool that are tested together

Ids = frozenset[int]


def context_patterns(episodes: Sequence[EpisodeRecord]) -> list[Draft]:
    """Return, for each tool that belongs to a context, the context that it belongs to most clearly."""
    known = {episode.id: episode for episode in episodes if episode.outcome is not None}
    contexts = _contexts(list(known.values()))
    tools: dict[str, set[int]] = defaultdict(set)
    for episode in known.values():
        for step in episode.steps:
            if step.ok:
                tools[step.tool].add(episode.id)
    used = {tool: frozenset(ids) for tool, ids in tools.items() if len(ids) >= MIN_SUPPORT}
    alpha = _ALPHA / max(1, len(used) * len(contexts))
    drafts: list[Draft] = []
    for tool, ids in sorted(used.items()):
        best = min(_candidates(ids, contexts, len(known)), default=None)
        if best is not None and best[0] <= alpha:
            features = frozenset(best[2])
            episodes_of = [known[i] for i in sorted(ids & contexts[features])]
            draft = Draft(kind="context_pattern", features=features, tools=(tool,), evidence=evidence(episodes_of))
            if draft.success_rate >= MIN_SUCCESS:
                drafts.append(draft)
    return drafts


def _contexts(episodes: Sequence[EpisodeRecord]) -> dict[frozenset[str], Ids]:
    """Every set of features that enough episodes share, and that not all episodes have."""
    found: dict[frozenset[str], set[int]] = defaultdict(set)
    for episode in episodes:
        for features in _subsets(episode.context.features):
            found[features].add(episode.id)
    return {features: frozenset(ids) for features, ids in found.items() if MIN_SUPPORT <= len(ids) < len(episodes)}


def _subsets(features: frozenset[str]) -> Iterator[frozenset[str]]:
    for size in range(1, MAX_FEATURES + 1):
        yield from map(frozenset, combinations(sorted(features), size))


def _candidates(
    used: Ids, contexts: dict[frozenset[str], Ids], n: int
) -> Iterator[tuple[float, int, tuple[str, ...]]]:
    """(chance, number of features, features) of each context in which most of a tool's episodes lie."""
    for features, ids in contexts.items():
        both = len(used & ids)
        if both >= MIN_SUPPORT and both >= MIN_SHARE * len(used):
            yield hypergeometric_tail(n, len(ids), len(used), both), len(features), tuple(sorted(features))
