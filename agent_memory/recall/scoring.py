"""What an episode was worth, and what can be said of it: both from its steps alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from agent_memory.recall.episode_types import EpisodeRecord, EpisodeStep, Insight, Score
from agent_memory.recall.error_recoveries import detours

_USUAL_S, _USUAL_STEPS = 60.0, 10  #: a minute and ten steps are as expected
_MOST_CITED = 12


def product_score(episode: EpisodeRecord) -> Score:
    """Return outcome x efficiency x quality; see ``Score``."""
    outcome = episode.outcome
    success = 1.0 if outcome is not None and outcome.success else 0.0
    efficiency = (_share(_USUAL_S, seconds(episode)) + _share(_USUAL_STEPS, len(episode.steps))) / 2
    given = None if outcome is None else outcome.quality
    quality = given if given is not None else _worked(episode.steps)
    return Score(total=success * efficiency * quality, outcome=success, efficiency=efficiency, quality=quality)


def seconds(episode: EpisodeRecord) -> float:
    """Return how long an episode took: as its outcome says, else by the clock."""
    if episode.outcome is not None and episode.outcome.duration_ms is not None:
        return episode.outcome.duration_ms / 1000
    return max(0.0, (episode.ended_s or episode.started_s) - episode.started_s)


def _share(usual: float, actual: float) -> float:
    return min(1.5, max(0.5, usual / actual)) if actual > 0 else 1.5


def _worked(steps: tuple[EpisodeStep, ...]) -> float:
    return sum(step.ok for step in steps) / len(steps) if steps else 1.0


def reflection(episode: EpisodeRecord) -> tuple[Insight, ...]:
    """Return what the steps show, each fact with the steps it rests on; no model is asked."""
    return (*_end(episode), *_recoveries(episode), *_decisions(episode), *_repeats(episode), *_slow(episode))


def _end(episode: EpisodeRecord) -> Iterator[Insight]:
    failed = [step.number for step in episode.steps if not step.ok]
    if episode.outcome is None:
        yield _fact("insight", f"Ended without an outcome after {_steps(len(episode.steps))}.", _last(episode))
    elif episode.outcome.success:
        clean = "none failed" if not failed else f"{len(failed)} failed"
        text = f"Succeeded in {_steps(len(episode.steps))} and {seconds(episode):.1f} s; {clean}."
        yield _fact("success", text, failed or [step.number for step in episode.steps])
    else:
        why = f": {episode.outcome.error}" if episode.outcome.error else ""
        yield _fact("improvement", f"Failed after {_steps(len(episode.steps))}{why}.", failed or _last(episode))


def _recoveries(episode: EpisodeRecord) -> Iterator[Insight]:
    for detour in detours(episode):
        cited = [detour.failed.number, *(step.number for step in detour.steps)]
        tool, how = detour.failed.tool, " then ".join(dict.fromkeys(detour.tools)) or "trying again"
        if detour.next_try is None:
            yield _fact("improvement", f"{tool} failed ({detour.signature}) and was not tried again.", cited[:1])
        elif detour.next_try.ok:
            yield _fact("success", f"{tool} failed ({detour.signature}) and worked after {how}.", cited)
        elif not detour.is_repaired:
            yield _fact("improvement", f"{tool} failed ({detour.signature}); {how} did not help.", cited)


def _decisions(episode: EpisodeRecord) -> Iterator[Insight]:
    if episode.outcome is not None:
        end = "succeeded" if episode.outcome.success else "failed"
        for decision in episode.decisions:
            text = f"When {decision.condition}: chose {decision.choice}; the episode {end}."
            yield _fact("insight", text, [decision.number])


def _repeats(episode: EpisodeRecord) -> Iterator[Insight]:
    calls = [(step.tool, step.action, repr(sorted(step.parameters.items()))) for step in episode.steps]
    for call, n in Counter(calls).items():
        if n >= 3:
            cited = [step.number for step, made in zip(episode.steps, calls, strict=True) if made == call]
            yield _fact("improvement", f"{call[0]} was called {n} times with the same arguments.", cited)


def _slow(episode: EpisodeRecord) -> Iterator[Insight]:
    timed = [(step.latency_ms, step) for step in episode.steps if step.latency_ms is not None]
    total = sum(ms for ms, _ in timed)
    if len(timed) >= 3 and total > 0:
        ms, step = max(timed, key=lambda pair: pair[0])
        if ms >= total / 2:
            yield _fact("improvement", f"{step.tool} took {ms:.0f} of {total:.0f} ms.", [step.number])


def _last(episode: EpisodeRecord) -> list[int]:
    return [step.number for step in episode.steps[-1:]]


def _steps(n: int) -> str:
    return f"{n} step" if n == 1 else f"{n} steps"


def _fact(kind: Literal["success", "improvement", "insight"], text: str, steps: list[int]) -> Insight:
    return Insight(kind=kind, text=text, steps=tuple(steps[:_MOST_CITED]))
