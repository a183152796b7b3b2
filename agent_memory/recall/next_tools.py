"""Which tool comes next, learned from earlier episodes: by the tools before, and by the words of the task."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log

from agent_memory.recall.episode_types import EpisodeRecord
from agent_memory.recall.signatures import task_words
from agent_memory.recall.tool_sequences import normal_course
from agent_memory.recall.words import terms

_START = ""  #: stands for the tool before the first one
_TEMPER = 0.5  #: words of one text are not independent: their evidence counts by its square root


class NextTools:
    """Two estimates of the next tool, each a distribution over the tools seen.

    - by order: the two tools before, interpolated with one tool before and with none (Witten and Bell, 1991);
    - by words: naive Bayes over the words of a step's action (of the task, where it has none) and of tools' names.

    Failed steps and what put them right are left out, and so are episodes that failed, unless there are no others.
    """

    def __init__(self, episodes: Sequence[EpisodeRecord]) -> None:
        ended_well = [episode for episode in episodes if episode.outcome is None or episode.outcome.success]
        self._after: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self._words: dict[str, Counter[str]] = defaultdict(Counter)
        self._episodes: dict[tuple[str, str], set[int]] = defaultdict(set)
        for episode in ended_well or episodes:
            self._learn(episode)
        self._uses = self._after[()]
        self._all_words: Counter[str] = sum(self._words.values(), Counter())
        self._names = {tool: frozenset(terms(tool.replace("_", " "))) for tool in self._uses}

    def _learn(self, episode: EpisodeRecord) -> None:
        before: tuple[str, ...] = (_START, _START)
        for step in normal_course(episode.steps):
            for n in range(3):
                self._after[before[2 - n :]][step.tool] += 1
            self._words[step.tool].update(set(task_words(step.action or episode.task)))
            self._episodes[before[1], step.tool].add(episode.id)
            before = (before[1], step.tool)

    def ranked(self, task: str, after: Sequence[str]) -> list[tuple[str, Mapping[str, float]]]:
        """Return every tool seen with its share by ``order`` and by ``words``, best sum first; each sums to a half."""
        by_order, by_words = self._by_order(after), self._by_words(set(task_words(task)))
        parts = {tool: {"order": by_order[tool] / 2, "words": by_words[tool] / 2} for tool in self._uses}
        return sorted(parts.items(), key=lambda pair: (-sum(pair[1].values()), pair[0]))

    def episodes(self, tool: str, after: Sequence[str]) -> tuple[int, ...]:
        """Return the episodes in which ``tool`` came next after the last of ``after``."""
        return tuple(sorted(self._episodes[after[-1] if after else _START, tool]))

    def _by_order(self, after: Sequence[str]) -> dict[str, float]:
        before = (_START, _START, *after)[-2:]
        n = sum(self._uses.values())
        shares = {tool: (uses + 0.5) / (n + 0.5 * len(self._uses)) for tool, uses in self._uses.items()}
        for seen in (self._after.get(before[1:]), self._after.get(before)):
            if seen:
                total, kinds = sum(seen.values()), len(seen)
                shares = {tool: (seen[tool] + kinds * share) / (total + kinds) for tool, share in shares.items()}
        return _normalised(shares)

    def _by_words(self, words: Iterable[str]) -> dict[str, float]:
        known = sorted(words)
        n = sum(self._uses.values())
        logs: dict[str, float] = {}
        for tool, uses in self._uses.items():
            seen, name = self._words[tool], self._names[tool]
            logs[tool] = sum(
                log((seen[word] + (word in name) + 0.1) / (uses + 1.5)) - log((self._all_words[word] + 0.1) / (n + 0.5))
                for word in known
            )
        most = max(logs.values(), default=0.0)
        return _normalised({tool: self._uses[tool] * exp(_TEMPER * (value - most)) for tool, value in logs.items()})


def _normalised(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    return {tool: share / total for tool, share in shares.items()}
