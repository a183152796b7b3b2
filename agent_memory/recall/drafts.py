"""What an extractor found, before anybody asks how effective it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

import attrs
from attrs import field, frozen

from agent_memory.recall.episode_types import Branch, EpisodeRecord, PatternKind
from agent_memory.recall.similarity import DUPLICATE, edit_similarity, jaccard, text_similarity


@frozen
class Evidence:
    """One episode that shows a pattern, and whether it worked there (None: nobody knows)."""

    episode: int
    at: float
    success: bool | None


@frozen(kw_only=True)
class Draft:
    """A pattern as its extractor found it. What identifies it is ``key``; the rest is counted."""

    kind: PatternKind
    evidence: tuple[Evidence, ...] = field(repr=False)
    tools: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()  #: what each tool was last asked to do
    condition: str = ""
    choice: str = ""
    branches: tuple[Branch, ...] = ()
    error: str = ""
    features: frozenset[str] = frozenset()
    merged: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two drafts the same. A decision's best choice may change while the decision stays the same."""
        return (self.kind, self.tools, self.condition, self.error, sorted(self.features))

    @property
    def id(self) -> str:
        """A hash of the key: the same in every process and for every order of episodes."""
        return blake2b(json.dumps(self.key).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    @property
    def n_successes(self) -> int:
        return sum(one.success is True for one in self.evidence)

    @property
    def n_failures(self) -> int:
        return sum(one.success is False for one in self.evidence)

    @property
    def success_rate(self) -> float:
        """The share of successes among the episodes of which the outcome is known; 0 for none."""
        known = self.n_successes + self.n_failures
        return self.n_successes / known if known else 0.0


def evidence(episodes: Sequence[EpisodeRecord]) -> tuple[Evidence, ...]:
    """Return the outcomes of episodes, by id."""
    return tuple(sorted((outcome_of(episode) for episode in episodes), key=lambda one: one.episode))


def outcome_of(episode: EpisodeRecord) -> Evidence:
    """Return an episode's outcome as evidence."""
    at = episode.ended_s if episode.ended_s is not None else episode.started_s
    return Evidence(episode.id, at, None if episode.outcome is None else episode.outcome.success)


def likeness(one: Draft, other: Draft) -> float:
    """Return how alike two drafts are: 0 for two kinds, else the least alike of their parts."""
    if one.kind != other.kind:
        return 0.0
    parts = [edit_similarity(one.tools, other.tools)]
    if one.condition or other.condition:
        parts += [text_similarity(one.condition, other.condition), text_similarity(one.choice, other.choice)]
    if one.error or other.error:
        parts.append(text_similarity(one.error, other.error))
    if one.features or other.features:
        parts.append(jaccard(one.features, other.features))
    return min(parts)


def deduplicated(drafts: Sequence[Draft]) -> list[Draft]:
    """Return drafts with near duplicates joined to the best supported one, which then cites the episodes of all."""
    kept: list[Draft] = []
    for draft in sorted(drafts, key=lambda draft: (-len(draft.evidence), draft.id)):
        nearest = next((i for i, other in enumerate(kept) if likeness(other, draft) >= DUPLICATE), None)
        if nearest is None:
            kept.append(draft)
        else:
            kept[nearest] = _joined(kept[nearest], draft)
    return kept


def _joined(main: Draft, other: Draft) -> Draft:
    seen = {one.episode for one in main.evidence}
    added = tuple(one for one in other.evidence if one.episode not in seen)
    return attrs.evolve(
        main,
        evidence=tuple(sorted((*main.evidence, *added), key=lambda one: one.episode)),
        merged=tuple(sorted({*main.merged, *other.merged, *({other.id} - {main.id})})),
    )
