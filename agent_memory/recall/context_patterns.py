"""Context patterns: tools that are used in one context rather than in others, and succeed there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from agent_memory.recall.chance import hypergeometric_tail
from agent_memory.recall.drafts import Draft, evidence
from agent_memory.recall.episode_types import EpisodeRecord

MIN_SUPPORT = 3  #: episodes
MIN_SUCCESS = 0.7
MIN_SHARE = 0.6  #: of a tool's episodes, how many have the context
MAX_FEATURES = 4  #: that a context is described by
_ALPHA = 0.01  #: of all that is tested together: pairs of feature and tool; a feature more for one tool

Ids = frozenset[int]


def context_patterns(episodes: Sequence[EpisodeRecord]) -> list[Draft]:
    """Return, for each tool that belongs to a context, that context."""
    known = {episode.id: episode for episode in episodes if episode.outcome is not None}
    features = _having(known, lambda episode: episode.context.features)
    tools = _having(known, lambda episode: {step.tool for step in episode.steps if step.ok})
    used = {tool: ids for tool, ids in tools.items() if len(ids) >= MIN_SUPPORT}
    alpha = _ALPHA / max(1, len(used) * len(features))
    drafts: list[Draft] = []
    for tool, ids in sorted(used.items()):
        context, within = _context(ids, features, frozenset(known))
        cited = evidence([known[i] for i in ids & within])
        draft = Draft(kind="context_pattern", features=context, tools=(tool,), evidence=cited)
        by_chance = hypergeometric_tail(len(known), len(within), len(ids), len(cited))
        if context and by_chance <= alpha and draft.success_rate >= MIN_SUCCESS:
            drafts.append(draft)
    return drafts


def _having(episodes: Mapping[int, EpisodeRecord], traits: Callable[[EpisodeRecord], Iterable[str]]) -> dict[str, Ids]:
    """Which episodes have a trait."""
    found: dict[str, set[int]] = defaultdict(set)
    for episode in episodes.values():
        for trait in traits(episode):
            found[trait].add(episode.id)
    return {trait: frozenset(ids) for trait, ids in found.items()}


def _context(used: Ids, features: Mapping[str, Ids], episodes: Ids) -> tuple[frozenset[str], Ids]:
    """The features that a tool's episodes share beyond chance, and the episodes that have them all.

    One feature after the other is added, the most telling first, as long as it tells something within what the features
    before it left.
    """
    context: list[str] = []
    within = episodes
    while len(context) < MAX_FEATURES:
        ranked = sorted(
            (hypergeometric_tail(len(within), len(ids & within), len(used & within), len(used & ids & within)), name)
            for name, ids in features.items()
            if name not in context and len(used & ids & within) >= max(MIN_SUPPORT, MIN_SHARE * len(used))
        )
        if not ranked or ranked[0][0] > _ALPHA / len(features):
            break
        context.append(ranked[0][1])
        within &= features[ranked[0][1]]
    return frozenset(context), within
