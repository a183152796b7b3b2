"""Tool sequences: orders of tools that come up in several episodes, more often than by chance, and end well."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

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
    runs = [normal_course(episode.steps) for episode in episodes]
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


def normal_course(steps: Sequence[EpisodeStep]) -> list[str]:
    """Return the tools that worked, repeats as one, without detours: what lies between an error and its repair."""
    kept: list[EpisodeStep] = []
    i = 0
    while i < len(steps):
        step = steps[i]
        if step.ok:
            kept.append(step)
            i += 1
        else:
            i = repaired_at(steps, i) or i + 1
    tools = [step.tool for step in kept]
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
    level: dict[tuple[str, ...], Places] = dict(pairs)
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
    """Pairs that follow one another more often than their tools follow, and are followed by, others."""
    places: dict[Pair, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    followed: Counter[Pair] = Counter()  # occurrences of the first that the second follows
    preceded: Counter[Pair] = Counter()  # occurrences of the second that the first precedes
    uses: Counter[str] = Counter(tool for run in runs for tool in run)
    contains: Counter[str] = Counter(tool for run in runs for tool in set(run))
    for i, run in enumerate(runs):
        for at, tool in enumerate(run):
            after, before = run[at + 1 : at + 2 + MAX_GAP], run[max(0, at - 1 - MAX_GAP) : at]
            followed.update((tool, other) for other in set(after))
            preceded.update((other, tool) for other in set(before))
            for shift, other in enumerate(after, at + 1):
                if other != tool:
                    places[tool, other][i].add(shift)
    frequent = {pair for pair, where in places.items() if len(where) >= MIN_SUPPORT}
    follows, precedes = _sums(followed, 1), _sums(preceded, 0)
    n, alpha = sum(uses.values()), _ALPHA / max(1, len(frequent))

    def is_linked(first: str, second: str) -> bool:
        k, support = followed[first, second], len(places[first, second])
        shares = sorted((support / contains[first], support / contains[second]))
        by_first = tail(uses[first], k, rate(follows[second] - k, n - uses[first]))
        k = preceded[first, second]
        by_second = tail(uses[second], k, rate(precedes[first] - k, n - uses[second]))
        return shares[0] >= _MIN_SHARES[0] and shares[1] >= _MIN_SHARES[1] and max(by_first, by_second) <= alpha

    return {
        pair: {i: frozenset(stops) for i, stops in places[pair].items()}
        for pair in sorted(frequent)
        if is_linked(*pair)
    }


def _sums(pairs: Counter[Pair], side: int) -> Counter[str]:
    sums: Counter[str] = Counter()
    for pair, n in pairs.items():
        sums[pair[side]] += n
    return sums


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
