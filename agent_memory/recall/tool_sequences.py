"""Tool sequences: orders of tools that come up in several episodes, more often than by chance, and end well."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from agent_memory.recall.chance import rate, tail
from agent_memory.recall.drafts import Draft, evidence
from agent_memory.recall.episode_types import EpisodeRecord, EpisodeStep

MIN_SUPPORT = 3  #: episodes
MIN_SUCCESS = 0.7  #: of those whose outcome is known
MAX_GAP = 1  #: other tools between two of a sequence
MAX_TOOLS = 8
_ALPHA = 0.01  #: of all the pairs that are tested together
_MIN_SHARES = (0.25, 0.5)  #: of a pair's first and second tool, how often the other is with it: the lower, the higher

Pair = tuple[str, str]
#: A sequence's ends in each episode: episode index -> positions of its last tool.
Places = dict[int, frozenset[int]]


def tool_sequences(episodes: Sequence[EpisodeRecord]) -> list[Draft]:
    """Return the longest frequent sequences of tools whose episodes mostly succeed."""
    runs = [_without_repeats([step.tool for step in normal_course(episode.steps)]) for episode in episodes]
    found = {tools: places for tools, places in _grown(runs) if len(places) >= MIN_SUPPORT}
    drafts = {
        tools: Draft(
            kind="tool_sequence",
            tools=tools,
            actions=_last_actions(tools, [episodes[i] for i in places]),
            evidence=evidence([episodes[i] for i in places]),
        )
        for tools, places in found.items()
    }
    good = {tools: draft for tools, draft in drafts.items() if draft.success_rate >= MIN_SUCCESS}
    return [draft for tools, draft in good.items() if not _is_part(draft, good.values())]


def normal_course(steps: Sequence[EpisodeStep]) -> list[EpisodeStep]:
    """Return the steps that worked, without detours: what lies between an error and its repair."""
    kept: list[EpisodeStep] = []
    i = 0
    while i < len(steps):
        step = steps[i]
        if step.ok:
            kept.append(step)
            i += 1
        else:
            i = repaired_at(steps, i) or i + 1
    return kept


def _without_repeats(tools: Sequence[str]) -> list[str]:
    return [tool for tool, before in zip(tools, [None, *tools], strict=False) if tool != before]


def repaired_at(steps: Sequence[EpisodeStep], failed: int) -> int | None:
    """Return the index of the first later step at which the tool that failed works; None where there is none."""
    return next((j for j in range(failed + 1, len(steps)) if steps[j].ok and steps[j].tool == steps[failed].tool), None)


def _grown(runs: Sequence[Sequence[str]]) -> Iterator[tuple[tuple[str, ...], Places]]:
    """Frequent sequences, from pairs upwards; a longer one needs half of the episodes of the shorter one."""
    pairs = _pairs(runs)
    followers: dict[str, list[str]] = defaultdict(list)
    for first, second in sorted(pairs):
        followers[first].append(second)
    level: dict[tuple[str, ...], Places] = dict(pairs.items())
    while level:
        yield from level.items()
        longer: dict[tuple[str, ...], Places] = {}
        for tools, places in level.items():
            for tool in followers[tools[-1]] if len(tools) < MAX_TOOLS else ():
                extended = _extended(runs, places, tool)
                if tool not in tools and len(extended) >= max(MIN_SUPPORT, len(places) / 2):
                    longer[(*tools, tool)] = extended
        level = longer


def _extended(runs: Sequence[Sequence[str]], places: Places, tool: str) -> Places:
    ends = {
        i: frozenset(
            j for end in stops for j in range(end + 1, min(end + 2 + MAX_GAP, len(runs[i]))) if runs[i][j] == tool
        )
        for i, stops in places.items()
    }
    return {i: stops for i, stops in ends.items() if stops}


def _pairs(runs: Sequence[Sequence[str]]) -> dict[Pair, Places]:
    """Pairs whose tools are together more often than either is with any other."""
    counts = _Counts()
    for i, run in enumerate(runs):
        counts.add(i, run)
    frequent = sorted(pair for pair, where in counts.places.items() if len(where) >= MIN_SUPPORT)
    alpha = _ALPHA / max(1, len(frequent))
    return {
        pair: {i: frozenset(stops) for i, stops in counts.places[pair].items()}
        for pair in frequent
        if counts.are_linked(*pair, alpha)
    }


class _Counts:
    """How often tools come within ``MAX_GAP`` of one another, over all episodes."""

    def __init__(self) -> None:
        self.places: dict[Pair, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        self.followed: Counter[Pair] = Counter()  # occurrences of the first that the second follows
        self.preceded: Counter[Pair] = Counter()  # occurrences of the second that the first precedes
        self.follows: Counter[str] = Counter()  # occurrences of any tool that this one follows
        self.precedes: Counter[str] = Counter()
        self.seen_from_before: Counter[Pair] = Counter()  # adjacent pairs with a tool before them
        self.seen_from_after: Counter[Pair] = Counter()
        self.uses: Counter[str] = Counter()
        self.contains: Counter[str] = Counter()  # episodes

    def add(self, episode: int, run: Sequence[str]) -> None:
        self.uses.update(run)
        self.contains.update(set(run))
        for at, tool in enumerate(run):
            after, before = run[at + 1 : at + 2 + MAX_GAP], run[max(0, at - 1 - MAX_GAP) : at]
            self.followed.update((tool, other) for other in set(after))
            self.preceded.update((other, tool) for other in set(before))
            self.follows.update(set(after))
            self.precedes.update(set(before))
            self.seen_from_before.update(pairwise(after))
            self.seen_from_after.update(pairwise(before))
            for place, other in enumerate(after, at + 1):
                if other != tool:
                    self.places[tool, other][episode].add(place)

    def are_linked(self, first: str, second: str, alpha: float) -> bool:
        """True if one is with the other in enough of its episodes, and more often than by chance, from either side.

        By chance: as often as the one follows (precedes) tools that the other is not near.
        """
        pair, support = (first, second), len(self.places[first, second])
        low, high = sorted((support / self.contains[first], support / self.contains[second]))
        k, m = self.followed[pair], self.preceded[pair]
        either = (pair, (second, first))
        hits = self.follows[second] - k - sum(self.seen_from_before[both] for both in either)
        by_first = tail(self.uses[first], k, self._rate(hits, first, self.follows))
        hits = self.precedes[first] - m - sum(self.seen_from_after[both] for both in either)
        by_second = tail(self.uses[second], m, self._rate(hits, second, self.precedes))
        return low >= _MIN_SHARES[0] and high >= _MIN_SHARES[1] and max(by_first, by_second) <= alpha

    def _rate(self, hits: int, tool: str, near: Counter[str]) -> float:
        """Hits among the occurrences of other tools that ``tool`` is not near."""
        return rate(max(0, hits), max(0, self.uses.total() - self.uses[tool] - near[tool]))


def _is_part(draft: Draft, others: Iterable[Draft]) -> bool:
    """True if a longer sequence says the same of most of the episodes."""
    return any(
        len(other.tools) > len(draft.tools)
        and _is_within(draft.tools, other.tools)
        and len(other.evidence) >= 0.6 * len(draft.evidence)
        for other in others
    )


def _is_within(short: Sequence[str], long: Sequence[str]) -> bool:
    rest = iter(long)
    return all(tool in rest for tool in short)


def _last_actions(tools: Sequence[str], episodes: Sequence[EpisodeRecord]) -> tuple[str, ...]:
    """What each tool was asked to do in the newest episode."""
    newest = max(episodes, key=lambda episode: (episode.ended_s or episode.started_s, episode.id))
    asked = {step.tool: step.action for step in newest.steps if step.ok}
    return tuple(asked.get(tool, "") for tool in tools)
