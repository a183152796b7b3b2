"""The episodes of one workspace as they are written: redaction, transactions, time."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from attrs import frozen

from agent_memory.errors import ItemNotFoundError
from agent_memory.recall import episode_rows as rows
from agent_memory.recall.episode_types import EpisodeRecord, Outcome, Score, ScoreFunction, TaskContext, checked_score
from agent_memory.recall.given import checked_id
from agent_memory.recall.protocols import Redactor
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Storage


class Cleaner:
    """Redacts texts on their way to the file, and counts in ``n`` what was replaced."""

    def __init__(self, redactor: Redactor | None) -> None:
        self.n = 0
        self._redactor = redactor

    def __call__(self, text: str) -> str:
        """Return ``text`` without secrets and without lone surrogates, for which UTF-8 has no form."""
        if not text:
            return text
        text = text.encode("utf-8", "backslashreplace").decode()
        if self._redactor is None:
            return text
        redacted = self._redactor.redact(text)
        self.n += len(redacted.found)
        return redacted.text

    def context(self, context: TaskContext) -> TaskContext:
        """Return ``context`` with clean texts."""
        named = {name: self(getattr(context, name)) for name in ("language", "framework", "domain")}
        return TaskContext(**named, tags=tuple(map(self, context.tags)))


@frozen(eq=False)
class EpisodeLog:
    """What an ``Episode`` and its memory share. Every method is one transaction.

    What is added survives the death of the process when ``add`` returns; a power cut when a later checkpoint, or the
    episode's end, has returned: these, and its start, wait for the disk.
    """

    database: Storage
    scope: Scope
    redactor: Redactor | None
    score: ScoreFunction
    clock: Callable[[], float]
    fsync_steps: bool

    def cleaner(self) -> Cleaner:
        """Return a new cleaner, for the texts of one row."""
        return Cleaner(self.redactor)

    def start(self, task: str, context: TaskContext) -> int:
        """Add an open episode; return its id."""
        clean = self.cleaner()
        task, context = clean(task), clean.context(context)
        with self.database.write() as db:
            return rows.add_episode(db, self.scope, task, context, clean.n, self.clock())

    def add(self, id: int, run: int, event: rows.Event) -> int:
        """Append an event; return its number. Raises ClosedError, ItemNotFoundError."""
        with self.database.write(fsync=self.fsync_steps or event.kind == "checkpoint") as db:
            return rows.add_event(db, self.scope, id, run, event)

    def complete(self, id: int, run: int, outcome: Outcome) -> Score:
        """End an episode with an outcome. The score function is asked before anything is written."""
        clean = self.cleaner()
        outcome = attrs.evolve(outcome, result=clean(outcome.result), error=clean(outcome.error))
        now = self.clock()
        record = attrs.evolve(self.record(id), state="completed", ended_s=now, outcome=outcome)
        score = checked_score(self.score(record))
        with self.database.write() as db:
            rows.end_episode(db, self.scope, id, run, outcome, clean.n, now)
            rows.set_score(db, self.scope, id, score)
        return score

    def abandon(self, id: int, run: int) -> None:
        """End an episode without an outcome."""
        with self.database.write() as db:
            rows.end_episode(db, self.scope, id, run, None, 0, self.clock())

    def reopen(self, id: int) -> int:
        """Open an episode for a new handle; return its run."""
        with self.database.write() as db:
            return rows.reopen(db, self.scope, checked_id(id), self.clock())

    def record(self, id: int) -> EpisodeRecord:
        """Return one episode. Raises ItemNotFoundError."""
        found = self.records([checked_id(id)])
        if not found:
            raise ItemNotFoundError(id, "episode")
        return found[0]

    def records(self, ids: list[int]) -> list[EpisodeRecord]:
        """Return episodes by id; those that are not in the workspace are left out."""
        with self.database.read() as db:
            return rows.records(db, self.scope, ids)
