"""Versions of agents: forks, checkpoints, rewinds, transactions, and the states that they replaced. Copies no KV."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np

from agent_memory.carry.published_versions import Adopted, Past, adopted
from agent_memory.config import is_text
from agent_memory.errors import ClosedError, StaleVersionError, UnsupportedParameterError, repr_of
from agent_memory.log.facts import Facts
from agent_memory.log.log import Log
from agent_memory.log.turns import Turn
from agent_memory.log.versions import Change, Kept, Reason, Span, State, Version, hidden_name, without_replaced
from agent_memory.requests.registry import Agents
from agent_memory.scheduler.engine import Engine
from agent_memory.store.store import Store
from agent_memory.tiers.hot import Heir
from agent_memory.types import Message

_AGAIN_S = 0.002  #: seconds between two looks at a cancelled turn


class Versions:
    """Earlier states of agents' logs. Any thread; a log is changed on the engine thread, between two ticks.

    - A fork shares its parent's turns and chunks: neither is copied. A busy agent is forked at its last finished turn.
    - The state before a rewind, a replacing list, a compaction or a failed transaction is kept as a version. So is a
      checkpoint.
    - An agent keeps its newest ``n_kept`` versions. Checkpoints are not counted, and stay until ``prune``.
    - What lists replaced leaves the log once no version has it, at the latest when it is more than what stays.
    """

    def __init__(self, agents: Agents, store: Store, engine: Engine, n_kept: int | None) -> None:
        self._agents, self._store, self._engine, self._n_kept = agents, store, engine, n_kept
        self._temporary = itertools.count(-1, -1)  # numbers of temporary agents and of their branches
        self._hidden = itertools.count(1)

    def fork(self, log: Log, name: str, at: object = None, *, is_temporary: bool = False) -> Log:
        """Create an agent that continues from a state of another one. Raises ConfigError if the name is taken."""

        def work() -> Log:
            log.ensure_exists()
            self._agents.ensure_free(name)
            fork = self._forked(log, self._state_at(log, at), name, is_temporary=is_temporary)
            self._agents.add(fork)
            self._engine.share(log.name, Heir(name, fork.agent_id, fork.ids[: fork.n_kv], is_temporary))
            return fork

        return self._engine.call(work)

    def checkpoint(self, log: Log, label: str) -> Version:
        """Keep an agent's state under a label; the label moves here from any earlier checkpoint."""
        if not is_text(label) or not label:
            raise UnsupportedParameterError(f"label must be a non-empty str of valid Unicode, got {repr_of(label)}")

        def work() -> Version:
            log.ensure_exists()
            former = [kept.version.number for kept in log.kept if kept.version.label == label]
            kept = log.keep(log.state, "checkpoint", label, holder=self._new_number(log))
            self._drop(log, former)
            self._store_change(log, kept=(kept,), dropped=former)
            return kept.version

        return self._engine.call(work)

    def rewind(self, log: Log, n_turns: int) -> None:
        """Remove an idle agent's newest turns."""
        most = len(log.turns)
        if not isinstance(n_turns, int) or isinstance(n_turns, bool) or not 1 <= n_turns <= most:
            if not most:
                raise UnsupportedParameterError(f"agent {repr_of(log.name)} has no turn that could be taken back")
            raise UnsupportedParameterError(
                f"turns must be between 1 and {most}, the agent's turns: {repr_of(n_turns)}"
            )

        def work() -> None:
            log.ensure_exists()
            self._agents.ensure_idle(log, "rewind")
            self._restore(log, log.state.first(max(0, len(log.turns) - n_turns)), "rewind")

        self._engine.call(work)

    def rewind_to(self, log: Log, to: object) -> None:
        """Restore an idle agent to one of its versions."""

        def work() -> None:
            log.ensure_exists()
            self._agents.ensure_idle(log, "rewind")
            self._restore(log, self._kept(log, to).state, "rewind")

        self._engine.call(work)

    def replace(self, log: Log, state: State, reason: Reason, version: int, *, is_own_turn: bool = False) -> None:
        """Replace an idle agent's log by ``state``; store its turns again. Raises RequestError while a turn runs.

        ``version``: of the log from which ``state`` was made; StaleVersionError if the log has changed since.
        ``is_own_turn``: the caller is a turn of the agent that has not started yet.
        """

        def work() -> None:
            log.ensure_exists()
            if not is_own_turn:
                self._agents.ensure_idle(log, "compact")
            _ensure_unchanged(log, version)
            self._restore(log, state, reason, is_new=True)

        self._engine.call(work)

    def history(self, log: Log) -> list[Version]:
        """Return an agent's versions, the oldest first."""
        return [kept.version for kept in log.kept]

    def view(self, log: Log, version: object) -> Log:
        """Return a read-only log of one version."""
        kept = self._kept(log, version)
        view = log.forked(log.name, log.agent_id)
        view.restore(kept.state)
        view.viewed = (log, kept.version.number)
        return view

    def scratch(self, log: Log, n: int) -> tuple[int, list[Log]]:
        """Return the version of a log and ``n`` temporary forks without a public name; ``discard`` ends them."""

        def work() -> tuple[int, list[Log]]:
            log.ensure_exists()
            names = [hidden_name(next(self._hidden), log.name) for _ in range(n)]
            return log.version, [self._forked(log, log.state, name, is_temporary=True) for name in names]

        return self._engine.call(work)

    def adopt(self, log: Log, fork: Log, version: int) -> tuple[Message, ...]:
        """Give an idle agent the turns and the KV of a fork of its ``version``; return the new messages.

        Raises StaleVersionError if the agent has changed since, RequestError while a turn of it runs.
        """

        def work() -> tuple[Message, ...]:
            log.ensure_exists()
            _ensure_unchanged(log, version)
            self._agents.ensure_idle(log, "add the best reply to")
            n_turns = len(log.turns)
            if fork.spans[: len(log.spans)] == log.spans or not n_turns:
                self.append(log, fork.turns[n_turns:], fork.facts)
            else:  # it was compacted meanwhile
                self._restore(log, fork.state, "compacted", is_new=True)
            self._engine.adopt(fork.name, Heir(log.name, log.agent_id, log.ids, log.is_temporary))
            return tuple(message for turn in fork.turns[-1:] for message in turn.messages)

        return self._engine.call(work)

    def discard(self, forks: Sequence[Log]) -> None:
        """End temporary forks: their requests, and their KV."""

        def work() -> bool:
            is_busy = [self._engine.cancel_all_of(fork.name) for fork in forks]
            for fork in forks if not any(is_busy) else ():
                fork.is_deleted = True
                self._engine.discard(fork.name, fork.agent_id)
            return not any(is_busy)

        with contextlib.suppress(ClosedError):
            while not self._engine.call(work):
                time.sleep(_AGAIN_S)

    @contextlib.contextmanager
    def transaction(self, log: Log) -> Iterator[None]:
        """Restore the agent to its present state if the block raises; turns that run then are cancelled."""
        state, version = log.state, log.version
        try:
            yield
        except BaseException:  # also Ctrl-C: of a transaction all is undone
            while not self._engine.call(lambda: self._roll_back(log, state, version)):
                time.sleep(_AGAIN_S)
            raise

    def prune(self, log: Log, n_kept: int, *, checkpoints: bool) -> int:
        """Drop all versions but the newest ``n_kept``, on request checkpoints too; return how many.

        Replaced turns that no version contains any more leave the log as well.
        """
        if not isinstance(n_kept, int) or isinstance(n_kept, bool) or n_kept < 0:
            raise UnsupportedParameterError(f"keep must be an int of 0 or more, got {repr_of(n_kept)}")

        def drop() -> int:
            log.ensure_exists()
            found = [k.version for k in log.kept if checkpoints or k.version.reason != "checkpoint"]
            numbers = [version.number for version in found[: max(0, len(found) - n_kept)]]
            self._drop(log, numbers)
            self._let_go(log)
            self._store_change(log, dropped=numbers)
            return len(numbers)

        def release() -> None:
            if not log.is_temporary and not log.is_deleted:
                self._store.release(log.agent_id, log.ids[: log.n_kv])

        n_dropped = self._engine.call(drop)
        while not self._engine.call(self._engine.hand_over):  # KV saved after its release would stay for good
            self._store.wait_ready()
        self._engine.call(release)
        return n_dropped

    def extend(self, log: Log, turns: Sequence[Turn], facts: Facts) -> None:
        """Append turns that another host added to the agent. Raises RequestError while a turn runs here."""

        def work() -> None:
            log.ensure_exists()
            self._agents.ensure_idle(log, "take over")
            if turns:
                self.append(log, turns, facts)

        self._engine.call(work)

    def take_over(self, log: Log, pasts: Sequence[Past], n_versions: int) -> None:
        """Join an agent's versions with those that another host has published. ``n_versions``: numbers given there.

        Published ones have their numbers and labels here too; its own others stay, under numbers of their own.
        """

        def work(found: Adopted, turns: Sequence[Turn], kept: Sequence[Kept]) -> bool:
            log.ensure_exists()
            if log.turns is not turns or log.kept is not kept:
                return False
            log.n_versions = found.n_versions
            log.facts = attrs.evolve(log.facts, n_versions=log.n_versions or None)
            log.kept = found.kept
            self._store_change(log, kept=found.written, dropped=found.dropped, branches=found.branches, held=())
            return True

        while pasts:  # what takes long is done here, not on the engine thread
            turns, kept = log.turns, log.kept
            found = adopted(log.state, kept, pasts, max(log.n_versions, n_versions), self._store.new_number)
            if self._engine.call(partial(work, found, turns, kept)):
                return

    def add(self, log: Log, make: Callable[[], Sequence[Message]], tokenizer: str) -> None:
        """Add messages to a log that nothing answers. ``make`` gives them, on the engine thread; none: no change."""

        def work() -> None:
            log.ensure_exists()
            if messages := make():
                self.append(log, [log.unanswered(messages, tokenizer=tokenizer)], None)

        self._engine.call(work)

    # engine thread

    def append(self, log: Log, turns: Sequence[Turn], facts: Facts | None) -> None:
        """Append turns to a log and to the store's queue. ``facts``: the agent's new facts; None: unchanged."""
        dropped: list[int] = []
        if turns and turns[0].n_messages_kept < len(log.messages):
            kept, dropped = self._leave(log, "replaced")
            self._store_change(log, kept=kept, dropped=dropped)
        if facts is not None:
            facts = attrs.evolve(facts, n_versions=log.n_versions or None, holder=log.facts.holder)
        for turn in turns:
            if not log.is_temporary:
                is_told = facts is not None and turn is turns[-1]
                described = (log.first_system, facts.to_json()) if facts is not None and is_told else None
                self._store.append_turn(log.agent_id, len(log.turns), turn, described)
            log.append(turn)
        log.facts = log.facts if facts is None else facts
        if dropped:
            self._let_go(log)

    def _forked(self, log: Log, state: State, name: str, *, is_temporary: bool) -> Log:
        number = next(self._temporary) if is_temporary else self._store.new_number()
        fork = log.forked(name, number)
        if state.turns is not log.turns:
            fork.restore(state)
        fork.is_temporary = is_temporary
        n_shared = len(fork.turns) if is_temporary or _is_stored(log) else 0
        fork.spans = fork.state.first(n_shared).on(number).spans
        self._inherit(fork, state, log)
        if not is_temporary:
            held = [(number, fork.ids[: fork.n_kv])]
            self._store.fork(self._agents.salt, fork.record(), n_shared, held)
        return fork

    def _inherit(self, fork: Log, state: State, parent: Log) -> None:
        """Give a fork the checkpoints of its parent that lie in its own past."""
        for kept in parent.kept:
            n_turns = kept.version.n_turns
            is_past = n_turns <= len(state.turns) and kept.state.is_same(state.first(n_turns))
            if kept.version.reason == "checkpoint" and is_past:
                fork.keep(fork.state.first(n_turns), "checkpoint", kept.version.label)

    def _restore(self, log: Log, state: State, reason: Reason, *, is_new: bool = False) -> None:
        """Set a log to ``state``, and keep its present state as a version. ``is_new``: the log never had ``state``."""
        ids, kept, dropped = log.ids[: log.n_kv], *self._leave(log, reason)
        number = self._new_number(log)
        base = state.first(len(state.turns)).spans[-1].branch
        log.restore(attrs.evolve(state, spans=(Span(number, 0),)) if is_new else state.on(number))
        self._store_change(
            log,
            branch=number,
            base=None if is_new else Span(base, len(state.turns)),
            turns=state.turns if is_new else (),
            kept=kept,
            dropped=dropped,
            ids=ids,
        )
        if dropped:
            self._let_go(log)

    def _leave(self, log: Log, reason: Reason) -> tuple[tuple[Kept, ...], list[int]]:
        """Keep a log's present state as a version, unless it is one already, and drop the oldest beyond ``n_kept``.

        Returns the new version, and the numbers of dropped ones.
        """
        left = log.state.first(len(log.turns))
        is_kept = any(kept.state.is_same(left) for kept in log.kept)
        kept = () if is_kept else (log.keep(left, reason, holder=self._new_number(log)),)
        dropped = self._beyond(log)
        self._drop(log, dropped)
        return tuple(one for one in kept if one.version.number not in dropped), dropped

    def _roll_back(self, log: Log, state: State, version: int) -> bool:
        """Restore an agent to an earlier state; False, and a running turn cancelled, if one still runs."""
        if log.is_deleted:
            return True
        if self._engine.cancel_all_of(log.name):
            return False
        if log.version != version:
            there = (log.state, *(kept.state for kept in log.kept))
            is_stored = any(one.first(len(state.turns)).is_same(state) for one in there)
            self._restore(log, state, "rolled_back", is_new=not is_stored)
        return True

    def _state_at(self, log: Log, at: object) -> State:
        """Return the state that ``at=`` means. Raises UnsupportedParameterError."""
        if at is None:
            return log.state
        if isinstance(at, int) and not isinstance(at, bool):
            if not 0 <= at <= len(log.turns):
                raise UnsupportedParameterError(f"at must be between 0 and {len(log.turns)}, the agent's turns: {at}")
            return log.state.first(at)
        return self._kept(log, at).state

    def _kept(self, log: Log, which: object) -> Kept:
        """Return the version with a number or a label, or one from ``history``. Raises UnsupportedParameterError."""
        number = which.number if isinstance(which, Version) else which
        if isinstance(number, int | str) and not isinstance(number, bool):
            made_s = (
                which.created_s if isinstance(which, Version) else None
            )  # tells one agent's versions from another's
            for kept in reversed(log.kept):
                one = kept.version
                if number in (one.number, one.label) and made_s in (None, one.created_s):
                    return kept
        labels = [kept.version.label for kept in log.kept if kept.version.label is not None]
        raise UnsupportedParameterError(
            f"agent {repr_of(log.name)} has no version {repr_of(which)}: it has {len(log.kept)} versions, labels "
            f"{repr_of(labels)}. history() lists them"
        )

    def _beyond(self, log: Log) -> list[int]:
        """Return the numbers of the oldest versions beyond the limit."""
        numbers = [kept.version.number for kept in log.kept if kept.version.reason != "checkpoint"]
        return [] if self._n_kept is None else numbers[: max(0, len(numbers) - self._n_kept)]

    def _drop(self, log: Log, numbers: Collection[int]) -> None:
        if numbers:
            log.kept = tuple(kept for kept in log.kept if kept.version.number not in numbers)

    def _new_number(self, log: Log) -> int:
        return next(self._temporary) if log.is_temporary else self._store.new_number()

    def _store_change(
        self,
        log: Log,
        *,
        branch: int | None = None,
        base: Span | None = None,
        turns: tuple[Turn, ...] = (),
        kept: tuple[Kept, ...] = (),
        dropped: Sequence[int] = (),
        ids: np.ndarray[Any, Any] | None = None,
        branches: tuple[tuple[int, Span | None, tuple[Turn, ...]], ...] = (),
        held: Sequence[tuple[int, np.ndarray[Any, Any]]] | None = None,
    ) -> None:
        """Queue the change of a log that was made in memory. ``ids``: the ids of ``kept`` whose KV was computed.

        ``held``: which KV ``kept`` holds from now on, where that is not what the log has.
        """
        if log.is_temporary:
            return
        change = Change(
            agent_id=log.agent_id,
            branch=branch,
            base=base,
            turns=turns,
            system=log.first_system,
            facts=log.facts.to_json(),
            kept=kept,
            dropped=tuple(dropped),
            branches=branches,
        )
        if held is None:
            held = [(one.holder, log.ids[: log.n_kv] if ids is None else ids) for one in kept]
        self._store.change(change, held)
        if dropped:
            self._store.release(log.agent_id, log.ids[: log.n_kv])

    def _let_go(self, log: Log) -> None:
        """Rewrite a log, in a new branch, without what lists replaced in it, as far as its versions allow."""
        found = without_replaced(log.state, log.kept)
        if found is None:
            return
        number = self._new_number(log)
        moved = {kept.version.number: kept.on_branch(number) for kept in found.moved}
        log.kept = tuple(moved.get(kept.version.number, kept) for kept in log.kept)
        log.restore(attrs.evolve(log.state, turns=found.turns, spans=(Span(number, 0),)))
        self._store_change(log, branch=number, turns=found.turns, kept=tuple(moved.values()), held=())
        if not log.is_temporary:
            self._store.release(log.agent_id, log.ids[: log.n_kv])


def _is_stored(log: Log) -> bool:
    """True if a log's turns are on disk, and stay there while the log or its version does."""
    if log.viewed is None:
        return not log.is_temporary
    agent, number = log.viewed
    found = (kept.state for kept in agent.kept if kept.version.number == number)
    return not agent.is_temporary and any(state.is_same(log.state) for state in found)


def _ensure_unchanged(log: Log, version: int) -> None:
    if log.version != version:
        raise StaleVersionError(
            f"agent {repr_of(log.name)} had another turn meanwhile, and was left as it is now. Do it again"
        )
