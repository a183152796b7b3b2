"""``EpisodicMemory``: what agents did, how it ended, and what can be learned from it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Literal

import attrs

from agent_memory.errors import ConfigError, ItemNotFoundError, UnsupportedParameterError, repr_of
from agent_memory.recall import audit
from agent_memory.recall import episode_rows as rows
from agent_memory.recall.advice import MIN_EFFECTIVENESS, advice
from agent_memory.recall.episode import Episode
from agent_memory.recall.episode_files import read_in, written
from agent_memory.recall.episode_log import EpisodeLog
from agent_memory.recall.episode_types import (
    PATTERN_KINDS,
    PRF,
    EpisodeHit,
    EpisodeRecord,
    EpisodeStats,
    Insight,
    Pattern,
    Recommendation,
    ScoreFunction,
    TaskContext,
)
from agent_memory.recall.given import checked_count, checked_ids, checked_kinds, checked_number, checked_text
from agent_memory.recall.learned import Learned, as_pattern
from agent_memory.recall.opening import open_storage, opened
from agent_memory.recall.protocols import Redactor
from agent_memory.recall.redaction import redactor_of
from agent_memory.recall.scope import checked_name
from agent_memory.recall.scoring import product_score, reflection
from agent_memory.recall.storage import Storage
from agent_memory.recall.types import CheckReport
from agent_memory.recall.validating import validated

MOST_LEARNED = 2_000  #: episodes that patterns are made from: the newest ones
MOST_RESULTS = 1_000
LONGEST_TASK = 25_000


class EpisodicMemory:
    """Episodes of one workspace, and what they teach. Needs no model.

    - ``path``: a recall file (context memory may live in the same one), ``"postgresql://..."``, ``":memory:"``, or an
      open store.
    - ``redact``: takes secrets out before anything is written: the rules, an own ``Redactor``, or None for nobody.
    - ``score``: what an episode was worth; by default outcome x efficiency x quality.
    - A step survives the death of the process when it returns; a power cut once a checkpoint or the end has returned,
      or at once with ``fsync_steps`` (some milliseconds a step, as the disk has it).
    - Patterns are made from the newest 2,000 episodes that ended, when they are first asked for after a change.
    - Open episodes that nothing was added to for ``abandon_after_s`` count as abandoned.

    Threads may share one; other processes may use the same file. Raises ConfigError, StoreError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Storage = ":memory:",
        *,
        workspace: str = "default",
        salt: str = "",
        redact: Redactor | Literal["rules"] | None = "rules",
        score: ScoreFunction = product_score,
        abandon_after_s: float = 86_400.0,
        fsync_steps: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        checked_name(workspace)
        if redact not in ("rules", None) and not isinstance(redact, Redactor):
            raise ConfigError(f"redact must have a method redact(text), be 'rules' or None; got {redact!r:.80}")
        if not callable(score):
            raise ConfigError(f"score must be a function of an EpisodeRecord, got {score!r:.80}")
        if not isinstance(abandon_after_s, int | float) or not abandon_after_s > 0:
            raise ConfigError(f"abandon_after_s must be above 0, got {repr_of(abandon_after_s)}")
        if not callable(clock):
            raise ConfigError(f"clock must be a function, got {repr_of(clock)}")
        storage, self._owns = open_storage(path)
        self._salt, self._abandon_after_s = salt, abandon_after_s
        with opened(storage, owns=self._owns, salt=salt, workspace=workspace, now=clock()) as (db, scope):
            redactor = redactor_of(db, is_read_only=storage.is_read_only) if redact == "rules" else redact
        self._database = storage.of(scope.workspace)
        self._log = EpisodeLog(self._database, scope, redactor, score, clock, fsync_steps)
        self._learned: tuple[int, Learned] | None = None
        self._learning = threading.Lock()

    @property
    def name(self) -> str:
        """The workspace's name."""
        return self._log.scope.name

    @property
    def exists(self) -> bool:
        """False if the file, which was opened to be read, had no such workspace then."""
        return self._log.scope.exists

    def workspace(self, name: str) -> EpisodicMemory:
        """Return a handle on another workspace of the same file and salt; this handle's ``close`` closes both."""
        return EpisodicMemory(
            self._database,
            workspace=name,
            salt=self._salt,
            redact=self._log.redactor,
            score=self._log.score,
            abandon_after_s=self._abandon_after_s,
            fsync_steps=self._log.fsync_steps,
            clock=self._log.clock,
        )

    # --- episodes ---

    def start(self, task: str, *, context: TaskContext | Mapping[str, Any] = TaskContext()) -> Episode:
        """Begin an episode: a context manager with ``step``, ``decide``, ``checkpoint`` and ``complete``. Durable."""
        id = self._log.start(_checked_task(task), as_context(context))
        return Episode(self._log, id, 1, self.recommend)

    def resume(self, id: int) -> Episode:
        """Take up an episode that is open (its process died, or another handle has it) or abandoned.

        The other handle's next step raises ClosedError. Raises ItemNotFoundError; ClosedError where it is completed.
        """
        return Episode(self._log, id, self._log.reopen(id), self.recommend)

    def unfinished(self) -> list[EpisodeRecord]:
        """Return the episodes that can be resumed, oldest first: open ones and abandoned ones."""
        with self._database.read() as db:
            return rows.records(db, self._log.scope, rows.ids_of(db, self._log.scope, ("open", "abandoned")))

    def newest(self, n: int = 20) -> list[EpisodeRecord]:
        """Return the ``n`` episodes that began last, whatever their state, newest first."""
        with self._database.read() as db:
            ids = rows.ids_of(
                db, self._log.scope, ("open", "completed", "abandoned"), checked_count(n, "n", MOST_RESULTS)
            )
            return rows.records(db, self._log.scope, ids)[::-1]

    def get(self, id: int) -> EpisodeRecord:
        """Return one episode. Raises ItemNotFoundError."""
        return self._log.record(id)

    def reflection(self, id: int) -> tuple[Insight, ...]:
        """Return what an episode's steps show: facts that cite step numbers. Raises ItemNotFoundError."""
        return reflection(self.get(id))

    def forget(self, ids: int | Iterable[int] | None = None) -> int:
        """Delete episodes, all of the workspace where ``ids`` is None; return how many.

        No byte of them is left in the file, and no pattern knows them any more. Costs a rewrite of the file.
        """
        wanted = None if ids is None else checked_ids(ids, "ids")
        with self._database.write() as db:
            every = rows.ids_of(db, self._log.scope, ("open", "completed", "abandoned"))
            n = rows.delete(db, self._log.scope, every if wanted is None else wanted)
            audit.note(db, self._log.scope, self._log.clock(), "forget", None, {"episodes": n})
            if n:
                self._database.owe_scrub(db)
        with self._learning:
            self._learned = None
        if n:
            self._database.scrub()
        return n

    # --- what was learned ---

    def recall(
        self, task: str, *, context: TaskContext | Mapping[str, Any] | None = None, k: int = 5
    ) -> list[EpisodeHit]:
        """Return the ``k`` episodes most like ``task``, best first: by words, context, age, and worth."""
        now = self._log.clock()
        hits = self._learn().hits(
            _checked_task(task), as_context(context or {}), now, checked_count(k, "k", MOST_RESULTS)
        )
        whole = {record.id: record for record in self._log.records([hit.episode.id for hit in hits])}
        return [attrs.evolve(hit, episode=whole[hit.episode.id]) for hit in hits if hit.episode.id in whole]

    def patterns(self, *, kinds: Collection[str] = (), min_effectiveness: float = MIN_EFFECTIVENESS) -> list[Pattern]:
        """Return patterns of some kinds (of all), most effective first; those below ``min_effectiveness`` hidden."""
        wanted = checked_kinds(kinds, PATTERN_KINDS)
        least = checked_number(min_effectiveness, "min_effectiveness")
        learned, now = self._learn(), self._log.clock()
        said = self._verdicts()
        found = [as_pattern(draft, said, now) for draft in learned.drafts if not wanted or draft.kind in wanted]
        shown = [pattern for pattern in found if pattern.effectiveness.value >= least]
        return sorted(shown, key=lambda pattern: (-pattern.effectiveness.value, -len(pattern.episodes), pattern.id))

    def recommend(
        self,
        task: str,
        *,
        context: TaskContext | Mapping[str, Any] | None = None,
        k: int = 3,
        after: Sequence[str] | None = None,
        error: str = "",
    ) -> list[Recommendation]:
        """Return at most ``k`` pieces of advice, best first.

        At a task's start the patterns that fit it, then tools to begin with. ``after``: the tools used so far: which
        tool comes next. ``error``: what was just observed: what put such errors right, before anything else.
        """
        is_list = isinstance(after, Sequence) and not isinstance(after, str)
        if after is not None and not (is_list and all(isinstance(tool, str) for tool in after)):
            raise UnsupportedParameterError(f"after must be a list of tools' names, got {repr_of(after)}")
        if not isinstance(error, str):
            raise UnsupportedParameterError(f"error must be a text, got {type(error).__name__}")
        told, learned = as_context(context or {}), self._learn()
        found = advice(learned, self._verdicts(), _checked_task(task), told, self._log.clock(), after, error)
        return list(islice(found, checked_count(k, "k", MOST_RESULTS)))

    def verdict(self, pattern: str, *, success: bool) -> None:
        """Say whether a pattern served; its effectiveness counts it. ``pattern``: its id. Raises ItemNotFoundError."""
        checked_text(pattern, "pattern")
        if all(pattern not in (draft.id, *draft.merged) for draft in self._learn().drafts):
            raise ItemNotFoundError(pattern, "pattern")
        with self._database.write() as db:
            rows.add_verdict(db, self._log.scope, pattern, bool(success), self._log.clock())

    def validate(self, gold: Iterable[Pattern | Mapping[str, Any]]) -> PRF:
        """Return how well the patterns found match those that should be there: one to one, at least 0.85 alike.

        A gold pattern: a ``Pattern``, or a mapping of ``kind`` with ``tools``, ``condition`` and ``choice``,
        ``error`` (a message) or ``features``. Only kinds that ``gold`` has are compared.
        """
        return validated(self._learn().drafts, gold)

    # --- upkeep ---

    def stats(self) -> EpisodeStats:
        """Return counts of the workspace."""
        learned = self._learn()
        with self._database.read() as db:
            n = dict(
                db.execute(
                    "SELECT state, count(*) FROM episodes WHERE workspace = ? GROUP BY state",
                    (self._log.scope.workspace,),
                ).fetchall()
            )
            sql = "SELECT count(*) FROM episodes WHERE workspace = ? AND success"
            (n_succeeded,) = db.execute(sql, (self._log.scope.workspace,)).fetchone()
            sql = (
                "SELECT count(*) FROM episode_events v JOIN episodes e ON e.episode = v.episode "
                "WHERE e.workspace = ? AND v.kind = 'step'"
            )
            (n_steps,) = db.execute(sql, (self._log.scope.workspace,)).fetchone()
        return EpisodeStats(
            n_open=n.get("open", 0),
            n_completed=n.get("completed", 0),
            n_abandoned=n.get("abandoned", 0),
            n_succeeded=n_succeeded,
            n_steps=n_steps,
            n_learned=len(learned.episodes),
            n_patterns={kind: sum(draft.kind == kind for draft in learned.drafts) for kind in PATTERN_KINDS},
        )

    def export_jsonl(self, file: str | os.PathLike[str]) -> int:
        """Write every ended episode to a new file, a line of JSON each; return how many. Raises FileExistsError."""
        return written(self._log, file)

    def import_jsonl(self, file: str | os.PathLike[str]) -> int:
        """Add the episodes of an exported file, all or none; return how many were new. Their ids are new ones.

        Raises UnsupportedParameterError where a line is no episode.
        """
        return read_in(self._log, file)

    def clusters(self, *, n: int = 8, seed: int = 0) -> list[tuple[int, ...]]:
        """Return at most ``n`` groups of similar episodes, as ids: by task, context and tools, over the newest 300."""
        return self._learn().clusters(checked_count(n, "n", MOST_RESULTS), seed)

    def check(self) -> CheckReport:
        """Return what is damaged: the file, by SQLite's own checks, and rows that contradict one another."""
        with self._database.read() as db:
            damaged = rows.contradictions(db, self._log.scope)
        return CheckReport(damaged=(*self._database.check(), *damaged))

    def close(self) -> None:
        """Close the file; idempotent. Every step is durable already."""
        if self._owns:
            self._database.close()

    def __enter__(self) -> EpisodicMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EpisodicMemory({self._database.name!r}, workspace={self.name!r})"

    def _learn(self) -> Learned:
        """What the episodes teach now: made anew where one ended, was resumed or was forgotten, by any process."""
        scope, before = self._log.scope, self._log.clock() - self._abandon_after_s
        with self._learning:
            with self._database.read() as db:
                n, is_stale = rows.n_changes(db, scope), rows.has_untouched(db, scope, before)
            if is_stale and not self._database.is_read_only:
                with self._database.write() as db:
                    rows.abandon_untouched(db, scope, before)
                    n = rows.n_changes(db, scope)
            if self._learned is None or self._learned[0] != n:
                with self._database.read() as db:
                    n = rows.n_changes(db, scope)
                    ended = rows.ids_of(db, scope, ("completed", "abandoned"), MOST_LEARNED)
                    self._learned = n, Learned(rows.records(db, scope, ended, is_brief=True))
            return self._learned[1]

    def _verdicts(self) -> dict[str, list[tuple[float, bool]]]:
        with self._database.read() as db:
            return rows.verdicts(db, self._log.scope)


def as_context(given: object) -> TaskContext:
    """Return a TaskContext, of a mapping its fields. Raises UnsupportedParameterError."""
    if isinstance(given, TaskContext):
        return given
    known = attrs.fields_dict(TaskContext)
    if not isinstance(given, Mapping):
        raise UnsupportedParameterError(f"context must be a TaskContext or a mapping, got {type(given).__name__}")
    if unknown := sorted(set(given) - set(known)):
        raise UnsupportedParameterError(f"context has {repr_of(unknown[0])}; known: {', '.join(known)}")
    return TaskContext(**given)


def _checked_task(task: object) -> str:
    if not isinstance(task, str) or not task.strip():
        raise UnsupportedParameterError(f"task must be a text that is not empty, got {repr_of(task)}")
    if len(task) > LONGEST_TASK:
        raise UnsupportedParameterError(f"task must have at most {LONGEST_TASK:,} characters, got {len(task):,}")
    return task
