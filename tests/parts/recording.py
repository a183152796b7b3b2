"""Planted episodes as a memory records them, and what was planted as gold patterns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agent_memory.recall.episode_types import Decision, EpisodeRecord, EpisodeStep, Outcome, TaskContext
from agent_memory.recall.episodes import EpisodicMemory
from tests.parts.planted_corpus import Gold, PlantedEpisode


class Clock:
    """A clock that is set by hand; each reading is a millisecond later."""

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        self.at += 0.001
        return self.at


def record(memory: EpisodicMemory, episodes: Iterable[PlantedEpisode]) -> None:
    """Live every episode through the public names."""
    for planted in episodes:
        with memory.start(planted.task, context=planted.context) as episode:
            for event in planted.events:
                if event.condition:
                    episode.decide(event.condition, event.choice)
                else:
                    episode.step(event.tool, event.action, ok=event.ok, observation=event.observation)
            episode.complete(planted.succeeded)


def records(episodes: Sequence[PlantedEpisode]) -> list[EpisodeRecord]:
    """The same as values, without a file."""
    made: list[EpisodeRecord] = []
    for id, planted in enumerate(episodes, 1):
        numbered = list(enumerate(planted.events, 1))
        made.append(
            EpisodeRecord(
                id=id,
                task=planted.task,
                context=TaskContext(**planted.context),
                state="completed",
                started_s=float(id),
                ended_s=id + 0.5,
                steps=tuple(
                    EpisodeStep(number=n, at=id + 0.1, tool=e.tool, action=e.action, ok=e.ok, observation=e.observation)
                    for n, e in numbered
                    if not e.condition
                ),
                decisions=tuple(
                    Decision(number=n, at=id + 0.1, condition=e.condition, choice=e.choice)
                    for n, e in numbered
                    if e.condition
                ),
                outcome=Outcome(success=planted.succeeded),
            )
        )
    return made


def gold_patterns(gold: Gold) -> dict[str, list[dict[str, Any]]]:
    """What was planted, by kind, as ``validate`` takes it."""
    return {
        "tool_sequence": [{"kind": "tool_sequence", "tools": tools} for tools in gold.tool_sequences],
        "decision_point": [
            {"kind": "decision_point", "condition": condition, "choice": choice} for condition, choice in gold.decisions
        ],
        "error_recovery": [
            {"kind": "error_recovery", "error": error, "tools": tools} for error, tools in gold.recoveries
        ],
        "context_pattern": [
            {"kind": "context_pattern", "features": TaskContext(**features).features, "tools": (tool,)}
            for features, tool in gold.contexts
        ],
    }
