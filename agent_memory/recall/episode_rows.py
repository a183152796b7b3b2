"""Episodes to rows and back. Every statement takes the workspace from a ``Scope``; writes are inside a transaction."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import attrs
from attrs import field, frozen

from agent_memory.errors import ClosedError, ItemNotFoundError
from agent_memory.recall.episode_types import Decision, EpisodeRecord, EpisodeStep, Outcome, Score, TaskContext
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows

_COLUMNS = (
    "episode, task, language, framework, domain, tags, state, started_s, ended_s, success, result, error, duration_ms, "
    "quality, score, redactions"
)
_BRIEF = (
    "substr(v.action, 1, 2000), v.ok, CASE WHEN v.ok THEN '' WHEN length(v.observation) <= 4000 THEN v.observation "
    "ELSE substr(v.observation, 1, 2000) || '\n' || substr(v.observation, length(v.observation) - 1999) END, '{}'"
)
_MOST_VARIABLES = 500  #: of one statement
_EVERY = 2**62


@frozen(kw_only=True)
class Event:
    """One row of an episode: a step, a decision (``tool`` is its condition, ``action`` its choice), a checkpoint."""

    kind: Literal["step", "decision", "checkpoint"]
    at: float
    tool: str = ""
    action: str = ""
    ok: bool = True
    observation: str = ""
    parameters: str = "{}"
    latency_ms: float | None = None
    tokens: int | None = None
    cut_chars: int = 0
    redactions: int = field(default=0, eq=False)  #: counted in the episode's row


def add_episode(db: Rows, scope: Scope, task: str, context: TaskContext, redactions: int, now: float) -> int:
    """Insert an open episode; return its id."""
    row = (scope.workspace, task, context.language, context.framework, context.domain, json.dumps(context.tags))
    sql = (
        "INSERT INTO episodes (workspace, task, language, framework, domain, tags, started_s, touched_s, redactions, "
        "state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'open') RETURNING episode"
    )
    return int(db.execute(sql, (*row, now, now, redactions)).fetchone()[0])


def add_event(db: Rows, scope: Scope, episode: int, run: int, event: Event) -> int:
    """Append an event to an open episode; return its number. Raises ClosedError, ItemNotFoundError."""
    sql = (
        "UPDATE episodes SET next_number = next_number + 1, touched_s = ?, redactions = redactions + ? "
        "WHERE episode = ? AND workspace = ? AND state = 'open' AND run = ? RETURNING next_number - 1"
    )
    row = db.execute(sql, (event.at, event.redactions, episode, scope.workspace, run)).fetchone()
    if row is None:
        raise _refusal(db, scope, episode)
    values = attrs.asdict(event, filter=attrs.filters.exclude("redactions"))
    names = ", ".join(values)
    places = ", ".join("?" * len(values))
    sql = f"INSERT INTO episode_events (episode, number, {names}) VALUES (?, ?, {places})"
    db.execute(sql, (episode, row[0], *values.values()))
    return int(row[0])


def _refusal(db: Rows, scope: Scope, episode: int) -> Exception:
    row = db.execute(
        "SELECT state FROM episodes WHERE episode = ? AND workspace = ?", (episode, scope.workspace)
    ).fetchone()
    if row is None:
        return ItemNotFoundError(episode, "episode")
    if row[0] == "open":
        return ClosedError(f"episode {episode} was resumed by another handle: use that one")
    return ClosedError(
        f"episode {episode} is {row[0]}: start a new one, or memory.resume({episode}) where it is abandoned"
    )


def end_episode(
    db: Rows, scope: Scope, episode: int, run: int, outcome: Outcome | None, redactions: int, now: float
) -> None:
    """Complete an open episode, or abandon it where there is no outcome. Raises ClosedError, ItemNotFoundError."""
    known = outcome or Outcome(success=False)
    sql = (
        "UPDATE episodes SET state = ?, ended_s = ?, touched_s = ?, success = ?, result = ?, error = ?, "
        "duration_ms = ?, quality = ?, redactions = redactions + ? "
        "WHERE episode = ? AND workspace = ? AND state = 'open' AND run = ?"
    )
    state, success = ("abandoned", None) if outcome is None else ("completed", outcome.success)
    end = (state, now, now, success, known.result, known.error, known.duration_ms, known.quality, redactions)
    if db.execute(sql, (*end, episode, scope.workspace, run)).rowcount == 0:
        raise _refusal(db, scope, episode)
    note_change(db, scope)


def set_score(db: Rows, scope: Scope, episode: int, score: Score) -> None:
    """Keep an episode's score."""
    shown = json.dumps(attrs.asdict(score))
    db.execute("UPDATE episodes SET score = ? WHERE episode = ? AND workspace = ?", (shown, episode, scope.workspace))


def reopen(db: Rows, scope: Scope, episode: int, now: float) -> int:
    """Open an open or abandoned episode for a new handle; return its run. Raises ClosedError, ItemNotFoundError."""
    sql = (
        "UPDATE episodes SET state = 'open', ended_s = NULL, run = run + 1, touched_s = ? "
        "WHERE episode = ? AND workspace = ? AND state != 'completed' RETURNING run"
    )
    row = db.execute(sql, (now, episode, scope.workspace)).fetchone()
    if row is None:
        raise _refusal(db, scope, episode)
    note_change(db, scope)
    return int(row[0])


def has_untouched(db: Rows, scope: Scope, before: float) -> bool:
    """True if an open episode has had no addition since ``before``."""
    sql = "SELECT 1 FROM episodes WHERE workspace = ? AND state = 'open' AND touched_s < ? LIMIT 1"
    return db.execute(sql, (scope.workspace, before)).fetchone() is not None


def abandon_untouched(db: Rows, scope: Scope, before: float) -> int:
    """Abandon open episodes that nothing was added to since ``before``; return how many."""
    sql = (
        "UPDATE episodes SET state = 'abandoned', ended_s = touched_s "
        "WHERE workspace = ? AND state = 'open' AND touched_s < ?"
    )
    n = db.execute(sql, (scope.workspace, before)).rowcount
    if n:
        note_change(db, scope)
    return n


def delete(db: Rows, scope: Scope, ids: Sequence[int]) -> int:
    """Delete episodes with all that they did; return how many there were."""
    n = 0
    for some in _batches(ids):
        places = ", ".join("?" * len(some))
        mine = f"SELECT episode FROM episodes WHERE workspace = ? AND episode IN ({places})"
        db.execute(f"DELETE FROM episode_events WHERE episode IN ({mine})", (scope.workspace, *some))
        sql = f"DELETE FROM episodes WHERE workspace = ? AND episode IN ({places})"
        n += db.execute(sql, (scope.workspace, *some)).rowcount
    if n:
        note_change(db, scope)
    return n


def note_change(db: Rows, scope: Scope) -> None:
    """Count a change of what can be learned."""
    sql = "INSERT INTO episode_changes VALUES (?, 1) ON CONFLICT (workspace) DO UPDATE SET n = episode_changes.n + 1"
    db.execute(sql, (scope.workspace,))


def n_changes(db: Rows, scope: Scope) -> int:
    """Return how often what can be learned has changed."""
    row = db.execute("SELECT n FROM episode_changes WHERE workspace = ?", (scope.workspace,)).fetchone()
    return int(row[0]) if row else 0


def ids_of(db: Rows, scope: Scope, states: Iterable[str], newest: int | None = None) -> list[int]:
    """Return the ids of episodes in some states, oldest first; the ``newest`` alone."""
    wanted = tuple(states)
    sql = (
        f"SELECT episode FROM episodes WHERE workspace = ? AND state IN ({', '.join('?' * len(wanted))}) "
        "ORDER BY episode DESC LIMIT ?"
    )
    rows = db.execute(sql, (scope.workspace, *wanted, _EVERY if newest is None else newest)).fetchall()
    return [int(episode) for (episode,) in reversed(rows)]


def records(db: Rows, scope: Scope, ids: Sequence[int], *, is_brief: bool = False) -> list[EpisodeRecord]:
    """Return episodes by id, in the order of their ids; what is not in the workspace is left out.

    Brief ones have only what is learned from: actions cut at 2,000 characters, both ends of failed observations.
    """
    texts = _BRIEF if is_brief else "v.action, v.ok, v.observation, v.parameters"
    found: list[EpisodeRecord] = []
    for some in _batches(sorted(set(ids))):
        places = ", ".join("?" * len(some))
        events: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        sql = (
            f"SELECT v.episode, v.number, v.kind, v.at, v.tool, {texts}, "
            "v.latency_ms, v.tokens, v.cut_chars FROM episode_events v JOIN episodes e ON e.episode = v.episode "
            f"WHERE e.workspace = ? AND v.episode IN ({places}) ORDER BY v.episode, v.number"
        )
        for episode, *event in db.execute(sql, (scope.workspace, *some)):
            events[episode].append(tuple(event))
        sql = f"SELECT {_COLUMNS} FROM episodes WHERE workspace = ? AND episode IN ({places}) ORDER BY episode"
        for row in db.execute(sql, (scope.workspace, *some)):
            found.append(_record(row, events[row[0]]))
    return found


def is_known(db: Rows, scope: Scope, task: str, started_s: float) -> bool:
    """True if the workspace has an episode of that task and start."""
    sql = "SELECT 1 FROM episodes WHERE workspace = ? AND started_s = ? AND task = ? LIMIT 1"
    return db.execute(sql, (scope.workspace, started_s, task)).fetchone() is not None


def add_record(db: Rows, scope: Scope, record: EpisodeRecord) -> int:
    """Insert an ended episode with all that it did; return its id."""
    id = add_episode(db, scope, record.task, record.context, record.redactions, record.started_s)
    events = [
        *(
            (
                s.number,
                Event(
                    kind="step",
                    at=s.at,
                    tool=s.tool,
                    action=s.action,
                    ok=s.ok,
                    observation=s.observation,
                    parameters=json.dumps(s.parameters, ensure_ascii=False),
                    latency_ms=s.latency_ms,
                    tokens=s.tokens,
                    cut_chars=s.cut_chars,
                ),
            )
            for s in record.steps
        ),
        *((d.number, Event(kind="decision", at=d.at, tool=d.condition, action=d.choice)) for d in record.decisions),
        *((number, Event(kind="checkpoint", at=record.started_s)) for number in record.checkpoints),
    ]
    for _, event in sorted(events, key=lambda pair: pair[0]):
        add_event(db, scope, id, 1, event)
    assert record.ended_s is not None
    end_episode(db, scope, id, 1, record.outcome, 0, record.ended_s)
    if record.score is not None:
        set_score(db, scope, id, record.score)
    return id


def _batches(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[start : start + _MOST_VARIABLES] for start in range(0, len(ids), _MOST_VARIABLES))


def _record(row: tuple[Any, ...], events: Sequence[tuple[Any, ...]]) -> EpisodeRecord:
    (id, task, language, framework, domain, tags, state, started_s, ended_s, success, result, error, ms, quality) = row[
        :14
    ]
    outcome = None
    if success is not None:
        outcome = Outcome(success=bool(success), result=result, error=error, duration_ms=ms, quality=quality)
    return EpisodeRecord(
        id=id,
        task=task,
        context=TaskContext(language=language, framework=framework, domain=domain, tags=json.loads(tags)),
        state=state,
        started_s=started_s,
        ended_s=ended_s,
        steps=tuple(_step(event) for event in events if event[1] == "step"),
        decisions=tuple(
            Decision(number=event[0], at=event[2], condition=event[3], choice=event[4])
            for event in events
            if event[1] == "decision"
        ),
        checkpoints=tuple(event[0] for event in events if event[1] == "checkpoint"),
        outcome=outcome,
        score=None if row[14] is None else Score(**json.loads(row[14])),
        redactions=row[15],
    )


def _step(event: tuple[Any, ...]) -> EpisodeStep:
    number, _, at, tool, action, ok, observation, parameters, latency_ms, tokens, cut_chars = event
    return EpisodeStep(
        number=number,
        at=at,
        tool=tool,
        action=action,
        ok=bool(ok),
        observation=observation,
        parameters=json.loads(parameters),
        latency_ms=latency_ms,
        tokens=tokens,
        cut_chars=cut_chars,
    )


def add_verdict(db: Rows, scope: Scope, pattern: str, success: bool, now: float) -> None:
    """Keep what a user of a pattern said of it."""
    sql = "INSERT INTO episode_verdicts (workspace, pattern, at, success) VALUES (?, ?, ?, ?)"
    db.execute(sql, (scope.workspace, pattern, now, success))


def verdicts(db: Rows, scope: Scope) -> dict[str, list[tuple[float, bool]]]:
    """Return pattern id -> (when, whether it served)."""
    found: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    sql = "SELECT pattern, at, success FROM episode_verdicts WHERE workspace = ? ORDER BY verdict"
    for pattern, at, success in db.execute(sql, (scope.workspace,)):
        found[pattern].append((at, bool(success)))
    return dict(found)


def contradictions(db: Rows, scope: Scope) -> list[str]:
    """Return what the rows of a workspace say against one another, one line each."""
    found: list[str] = []
    sql = (
        "SELECT e.episode, e.next_number, count(v.number), coalesce(max(v.number), 0) FROM episodes e "
        "LEFT JOIN episode_events v ON v.episode = e.episode WHERE e.workspace = ? GROUP BY e.episode"
    )
    for episode, next_number, n, last in db.execute(sql, (scope.workspace,)):
        if n != last or next_number != last + 1:
            found.append(f"episode {episode}: {n} events numbered up to {last}, the next would be {next_number}")
    sql = (
        "SELECT episode, state FROM episodes WHERE workspace = ? AND ((state = 'completed') != (success IS NOT NULL) "
        "OR (state = 'open') != (ended_s IS NULL))"
    )
    for episode, state in db.execute(sql, (scope.workspace,)):
        found.append(f"episode {episode}: its state {state} and its end disagree")
    sql = "SELECT count(*) FROM episode_events WHERE episode NOT IN (SELECT episode FROM episodes)"
    (n_orphans,) = db.execute(sql).fetchone()
    return [*found, *([f"{n_orphans} events belong to no episode"] if n_orphans else [])]
