"""``Episode``: one task while it is worked on, recorded step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import attrs

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.recall.episode_log import Cleaner, EpisodeLog
from agent_memory.recall.episode_rows import Event
from agent_memory.recall.episode_texts import parameters_json, shortened
from agent_memory.recall.episode_types import EpisodeRecord, Insight, Outcome, Recommendation, Score
from agent_memory.recall.given import MOST_INT, checked_number
from agent_memory.recall.scoring import reflection

LONGEST_OBSERVATION = 16 * 2**20  #: characters
LONGEST_TEXT = 25_000  #: characters of any other text


class Episode:
    """A task that is being worked on: a context manager that records steps, decisions and the outcome.

    - ``complete`` ends it. An exception that leaves the block completes it as failed. KeyboardInterrupt and its like,
      and a block that ends without ``complete``, abandon it: no outcome is known, its steps are still learned from.
    - A process that dies leaves it open: ``memory.resume(id)`` takes it up.
    - Texts are redacted before they are written. Threads may share it; steps are numbered in order of arrival.
    """

    def __init__(self, log: EpisodeLog, id: int, run: int, advise: Callable[..., list[Recommendation]]) -> None:
        self.id = id
        self._log, self._run, self._advise = log, run, advise
        self._is_done = False

    def step(
        self,
        tool: str,
        action: str = "",
        *,
        ok: bool = True,
        observation: str = "",
        parameters: Mapping[str, Any] | None = None,
        latency_ms: float | None = None,
        tokens: int | None = None,
    ) -> int:
        """Record that ``tool`` was used to do ``action``; return the step's number.

        ``observation``: what came back, the error's text where it is not ``ok``. Over 100,000 bytes its middle is
        cut out (``EpisodeStep.cut_chars`` says how much). The step survives the process; see ``EpisodicMemory``.
        Raises UnsupportedParameterError, and ClosedError after the end.
        """
        _check_step(tool, action, ok, observation, latency_ms, tokens)
        if parameters is not None and not isinstance(parameters, Mapping):
            raise UnsupportedParameterError(f"parameters must be a mapping, got {type(parameters).__name__}")
        clean = self._log.cleaner()
        kept, cut = shortened(clean(observation))  # in this order: half a secret would not be seen
        event = Event(
            kind="step",
            at=self._log.clock(),
            tool=clean(tool),
            action=clean(action),
            ok=ok,
            observation=kept,
            parameters=parameters_json(parameters, clean),
            latency_ms=latency_ms,
            tokens=tokens,
            cut_chars=cut,
        )
        return self._add(event, clean)

    def decide(self, condition: str, choice: str) -> int:
        """Record that under ``condition`` the choice was ``choice``; return its number.

        The condition is best put as what the episode met ("the cache is cold"): decisions are compared by it.
        """
        for name, text in (("condition", condition), ("choice", choice)):
            _check_text(name, text, may_be_empty=False)
        clean = self._log.cleaner()
        event = Event(kind="decision", at=self._log.clock(), tool=clean(condition), action=clean(choice))
        return self._add(event, clean)

    def checkpoint(self) -> int:
        """Mark that the task can be resumed from here; return the mark's number. Waits for the disk."""
        return self._add(Event(kind="checkpoint", at=self._log.clock()), self._log.cleaner())

    def complete(self, outcome: bool | Outcome) -> Score:
        """End the episode; return its score. Raises ClosedError where it has ended."""
        if isinstance(outcome, bool):
            outcome = Outcome(success=outcome)
        if not isinstance(outcome, Outcome):
            raise UnsupportedParameterError(f"outcome must be True, False or an Outcome, got {repr_of(outcome)}")
        score = self._log.complete(self.id, self._run, outcome)
        self._is_done = True
        return score

    def abandon(self) -> None:
        """End the episode without an outcome; it can be resumed."""
        self._log.abandon(self.id, self._run)
        self._is_done = True

    def recommend(self, *, k: int = 3) -> list[Recommendation]:
        """Return what to do next: after a failed step what put such errors right, then the likely next tools."""
        record = self.record
        last = record.steps[-1] if record.steps else None
        error = "" if last is None or last.ok else (last.observation or f"{last.tool} failed")
        asked = last.action if last is not None and last.action else ""
        return self._advise(
            f"{record.task} {asked}".strip(),
            context=record.context,
            k=k,
            after=[step.tool for step in record.steps if step.ok],
            error=error,
        )

    @property
    def record(self) -> EpisodeRecord:
        """The episode as it is stored."""
        return self._log.record(self.id)

    @property
    def reflection(self) -> tuple[Insight, ...]:
        """What its steps show so far."""
        return reflection(self.record)

    def _add(self, event: Event, clean: Cleaner) -> int:
        return self._log.add(self.id, self._run, attrs.evolve(event, redactions=clean.n))

    def __enter__(self) -> Episode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_done:
            return
        if isinstance(error, Exception):
            self.complete(Outcome(success=False, error=f"{type(error).__name__}: {error}"))
        else:
            self.abandon()

    def __repr__(self) -> str:
        return f"Episode({self.id} {'done' if self._is_done else 'open'})"


def _check_step(
    tool: object, action: object, ok: object, observation: object, latency_ms: object, tokens: object
) -> None:
    _check_text("tool", tool, may_be_empty=False)
    _check_text("action", action)
    if not isinstance(ok, bool):
        raise UnsupportedParameterError(f"ok must be True or False, got {repr_of(ok)}")
    if not isinstance(observation, str):
        raise UnsupportedParameterError(f"observation must be a text, got {type(observation).__name__}")
    if len(observation) > LONGEST_OBSERVATION:
        n = f"{len(observation):,}"
        raise UnsupportedParameterError(f"observation must have at most {LONGEST_OBSERVATION:,} characters, got {n}")
    for name, value in (("latency_ms", latency_ms), ("tokens", tokens)):
        if value is not None:
            checked_number(value, name, 0, MOST_INT)


def _check_text(name: str, text: object, *, may_be_empty: bool = True) -> None:
    if not isinstance(text, str) or not (text.strip() or may_be_empty):
        raise UnsupportedParameterError(
            f"{name} must be a text{'' if may_be_empty else ' that is not empty'}, got {repr_of(text)}"
        )
    if len(text) > LONGEST_TEXT:
        raise UnsupportedParameterError(f"{name} must have at most {LONGEST_TEXT:,} characters, got {len(text):,}")
