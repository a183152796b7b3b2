"""Episodes as lines of JSON: out of one workspace, into another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from agent_memory.config import as_path
from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.recall import episode_rows as rows
from agent_memory.recall.dates import seconds_of
from agent_memory.recall.episode_log import Cleaner, EpisodeLog
from agent_memory.recall.episode_texts import parameters_json
from agent_memory.recall.episode_types import (
    Decision,
    EpisodeRecord,
    EpisodeStep,
    Outcome,
    Score,
    TaskContext,
    checked_score,
)
from agent_memory.recall.given import MOST_INT, checked_number, checked_text

FORMAT = 1


def written(log: EpisodeLog, file: str | os.PathLike[str]) -> int:
    """Write every ended episode of the workspace to a new file, a line each; return how many."""
    with log.database.read() as db:
        ids = rows.ids_of(db, log.scope, ("completed", "abandoned"))
    target = as_path(file, "file")
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as lines:
        for start in range(0, len(ids), 100):
            for record in log.records(ids[start : start + 100]):
                lines.write(json.dumps({"format": FORMAT, **attrs.asdict(record)}, ensure_ascii=False) + "\n")
    return len(ids)


def read_in(log: EpisodeLog, file: str | os.PathLike[str]) -> int:
    """Add the episodes of a file, all or none; return how many were new: known is what has the same task and start.

    Texts are redacted again. Raises UnsupportedParameterError with the number of a line that cannot be read.
    """
    records = list(_records(as_path(file, "file")))
    n = 0
    with log.database.write() as db:
        for record in records:
            clean = log.cleaner()
            record = _cleaned(record, clean)
            if not rows.is_known(db, log.scope, record.task, record.started_s):
                rows.add_record(db, log.scope, attrs.evolve(record, redactions=record.redactions + clean.n))
                n += 1
    return n


def _records(file: Path) -> Iterator[EpisodeRecord]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield _record(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                raise UnsupportedParameterError(f"{file} line {number} is no episode: {repr_of(error)}") from error


def _record(told: dict[str, Any]) -> EpisodeRecord:
    if told.pop("format") != FORMAT:
        raise ValueError("unknown format")
    told["context"] = TaskContext(**told["context"])
    told["steps"] = tuple(EpisodeStep(**step) for step in told["steps"])
    told["decisions"] = tuple(Decision(**decision) for decision in told["decisions"])
    told["checkpoints"] = tuple(told["checkpoints"])
    told["outcome"] = None if told["outcome"] is None else Outcome(**told["outcome"])
    told["score"] = None if told["score"] is None else Score(**told["score"])
    record = EpisodeRecord(**told)
    numbers = [*(s.number for s in record.steps), *(d.number for d in record.decisions), *record.checkpoints]
    if record.state not in ("completed", "abandoned") or sorted(numbers) != list(range(1, len(numbers) + 1)):
        raise ValueError("its state or its numbers are not those of an ended episode")
    if (record.state == "completed") != (record.outcome is not None) or record.ended_s is None:
        raise ValueError("its state and its outcome disagree")
    _ensure_sound(record)
    return record


def _ensure_sound(record: EpisodeRecord) -> None:
    """Raise ValueError for values that no export has: some would be stored, and raise with the next recall."""
    steps, decisions = record.steps, record.decisions
    told = [text for step in steps for text in (step.tool, step.action, step.observation)]
    for text in (record.task, *told, *(text for made in decisions for text in (made.condition, made.choice))):
        checked_text(text, "a text")
    for at in (record.started_s, record.ended_s, *(step.at for step in steps), *(made.at for made in decisions)):
        seconds_of(at)  # type: ignore[arg-type]  # whatever it is
    for step in steps:
        if type(step.ok) is not bool or not isinstance(step.parameters, dict):
            raise ValueError(f"step {step.number} has ok {repr_of(step.ok)}, parameters {repr_of(step.parameters)}")
        for name in ("latency_ms", "tokens"):
            if getattr(step, name) is not None:
                checked_number(getattr(step, name), name, 0, MOST_INT)
    numbers = (*(step.number for step in steps), *(made.number for made in decisions), *record.checkpoints)
    counts = (record.redactions, *(step.cut_chars for step in steps), *numbers)
    if not all(type(n) is int and 0 <= n <= MOST_INT for n in counts):
        raise ValueError("its counts are none")
    if record.score is not None:
        checked_score(record.score)


def _cleaned(record: EpisodeRecord, clean: Cleaner) -> EpisodeRecord:
    outcome = record.outcome
    return attrs.evolve(
        record,
        task=clean(record.task),
        context=clean.context(record.context),
        steps=tuple(
            attrs.evolve(
                step,
                tool=clean(step.tool),
                action=clean(step.action),
                observation=clean(step.observation),
                parameters=json.loads(parameters_json(step.parameters, clean)),
            )
            for step in record.steps
        ),
        decisions=tuple(
            attrs.evolve(made, condition=clean(made.condition), choice=clean(made.choice)) for made in record.decisions
        ),
        outcome=outcome and attrs.evolve(outcome, result=clean(outcome.result), error=clean(outcome.error)),
    )
