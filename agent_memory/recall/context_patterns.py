"""Context patterns: tools that are used in one context rather than in others, and succeed there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from agent_memory.recall.chance import discoveries, hypergeometric_tail
from agent_memory.recall.drafts import Draft, evidence
from agent_memory.recall.episode_types import EpisodeRecord

MIN_SUPPORT = 3  #: episodes
MIN_SUCCESS = 0.7
MIN_SHARE = 0.6  #: of a tool's episodes, how many have the context
MAX_FEATURES = 3  #: that a context is described by
FALSE_SHARE = 0.05  #: of the patterns found, how many may be there by chance

Ids = frozenset[int]


def context_patterns(episodes: Sequence[EpisodeRecord]) -> list[Draft]:
    """Return, for each tool that belongs to a context, that context."""
    known = {episode.id: episode for episode in episodes if episode.outcome is not None}
    contexts = _contexts(list(known.values()))
    tools = _having(known, lambda episode: {step.tool for step in episode.steps if step.ok})
    used = {tool: ids for tool, ids in tools.items() if len(ids) >= MIN_SUPPORT}
    best = {tool: min(_chances(ids, contexts, len(known)), default=(1.0, ())) for tool, ids in used.items()}
    drafts: list[Draft] = []
    for tool in sorted(discoveries({tool: chance for tool, (chance, _) in best.items()}, FALSE_SHARE, len(used))):
        features = frozenset(best[tool][1])
        cited = evidence([known[i] for i in used[tool] & contexts[features]])
        draft = Draft(kind="context_pattern", features=features, tools=(tool,), evidence=cited)
        if draft.success_rate >= MIN_SUCCESS:
            drafts.append(draft)
    return drafts


def _having(episodes: Mapping[int, EpisodeRecord], traits: Callable[[EpisodeRecord], Iterable[str]]) -> dict[str, Ids]:
    """Which episodes have a trait."""
    found: dict[str, set[int]] = defaultdict(set)
    for episode in episodes.values():
        for trait in traits(episode):
            found[trait].add(episode.id)
    return {trait: frozenset(ids) for trait, ids in found.items()}


def _contexts(episodes: Sequence[EpisodeRecord]) -> dict[frozenset[str], Ids]:
    """Every set of features that enough episodes share, and that not all episodes have."""
    found: dict[frozenset[str], set[int]] = defaultdict(set)
    for episode in episodes:
        for size in range(1, MAX_FEATURES + 1):
            for features in combinations(sorted(episode.context.features), size):
                found[frozenset(features)].add(episode.id)
    return {features: frozenset(ids) for features, ids in found.items() if MIN_SUPPORT <= len(ids) < len(episodes)}


def _chances(used: Ids, contexts: Mapping[frozenset[str], Ids], n: int) -> Iterator[tuple[float, tuple[str, ...]]]:
    """(chance, features) of each context in which most of a tool's episodes lie.

    The chance counts how many contexts of that size there are, and how many sizes: of two contexts that fit alike, the
    simpler one is less likely to fit by chance.
    """
    n_contexts = Counter(map(len, contexts))
    for features, ids in contexts.items():
        both = len(used & ids)
        if both >= max(MIN_SUPPORT, MIN_SHARE * len(used)):
            chance = hypergeometric_tail(n, len(ids), len(used), both) * n_contexts[len(features)] * len(n_contexts)
            yield min(1.0, chance), tuple(sorted(features))
