"""Decision points: conditions that several episodes met, and the choice with which they ended better."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from agent_memory.recall.chance import discoveries, probably_better
from agent_memory.recall.drafts import Draft, evidence
from agent_memory.recall.episode_types import Branch, EpisodeRecord
from agent_memory.recall.signatures import choice_key, condition_key, if_then
from agent_memory.recall.similarity import merged

MIN_SUPPORT = 3  #: episodes that took the best choice
FALSE_SHARE = 0.05  #: of the decision points found, how many may be there by chance


@frozen
class _Choice:
    """That an episode decided something; ``condition`` and ``choice`` are keys."""

    condition: str
    choice: str
    choice_words: str
    episode: EpisodeRecord


def decision_points(episodes: Sequence[EpisodeRecord]) -> list[Draft]:
    """Return the conditions under which one choice ends better than the others."""
    groups: dict[str, list[_Choice]] = defaultdict(list)
    for episode in episodes:
        for made in _choices(episode):
            groups[made.condition].append(made)
    outcomes = {episode.id: episode.outcome.success for episode in episodes if episode.outcome is not None}
    tested = [choices for _, choices in merged(groups) if len({made.episode.id for made in choices}) >= MIN_SUPPORT]
    drafts: dict[int, Draft] = {}
    chances: dict[int, float] = {}
    for i, choices in enumerate(tested):
        if draft := _draft(choices):
            drafts[i], chances[i] = draft, 1 - _certainty(draft.branches, outcomes)
    return [drafts[i] for i in sorted(discoveries(chances, FALSE_SHARE, len(tested)))]


def _choices(episode: EpisodeRecord) -> Iterator[_Choice]:
    """What an episode decided, or, where it says nothing of that, its actions of the form "if ..., ..."."""
    pairs = [(decision.condition, decision.choice) for decision in episode.decisions]
    pairs = pairs or [pair for step in episode.steps if (pair := if_then(step.action))]
    for condition, choice in pairs:
        keys = condition_key(condition), choice_key(choice)
        if all(keys):
            yield _Choice(*keys, choice, episode)


def _draft(choices: Sequence[_Choice]) -> Draft | None:
    by_choice: dict[str, dict[int, _Choice]] = defaultdict(dict)
    for made in choices:
        if made.episode.outcome is not None:
            by_choice[made.choice][made.episode.id] = made
    branches = sorted((_branch(list(made.values())) for made in by_choice.values()), key=_rank)
    if not branches or len(branches[0].episodes) < MIN_SUPPORT:
        return None
    best = branches[0]
    supporting = [made.episode for made in by_choice[choice_key(best.choice)].values()]
    return Draft(
        kind="decision_point",
        condition=_most_common(made.condition for made in choices),
        choice=best.choice,
        branches=tuple(branches),
        evidence=evidence(supporting),
    )


def _certainty(branches: Sequence[Branch], outcomes: Mapping[int, bool]) -> float:
    """How certain it is that the first choice is better than the others (than other episodes, where it is alone)."""
    best = branches[0]
    compared = [i for branch in branches[1:] for i in branch.episodes] or [
        i for i in outcomes if i not in best.episodes
    ]
    successes = sum(outcomes[i] for i in compared)
    return probably_better(best.successes, best.failures, successes, len(compared) - successes)


def _branch(made: Sequence[_Choice]) -> Branch:
    successes = sum(one.episode.outcome is not None and one.episode.outcome.success for one in made)
    return Branch(
        choice=_most_common(one.choice_words for one in made),
        successes=successes,
        failures=len(made) - successes,
        episodes=tuple(sorted(one.episode.id for one in made)),
    )


def _rank(branch: Branch) -> tuple[float, int, str]:
    """By the mean of the posterior, best first."""
    return (-(1 + branch.successes) / (2 + len(branch.episodes)), -len(branch.episodes), branch.choice)


def _most_common(texts: Iterable[str]) -> str:
    counts = Counter(texts)
    return min(counts, key=lambda text: (-counts[text], text))
