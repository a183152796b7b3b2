"""The open agents of one store: one log for each, shared by all handles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import attrs
from attrs import frozen

from agent_memory.config import is_text
from agent_memory.errors import ConfigError, RequestError, UnsupportedParameterError, repr_of
from agent_memory.log.facts import Facts
from agent_memory.log.forgetting import bodies, shows_cards, without_cards, without_texts
from agent_memory.log.log import Log
from agent_memory.log.versions import AgentRecord, Change, State
from agent_memory.prompt import messages as shapes
from agent_memory.prompt.results import paired
from agent_memory.reader.shared import ensure_writable
from agent_memory.requests.cleaning import of_tools, without_secrets
from agent_memory.requests.prompting import moved_on
from agent_memory.requests.recalled import checked_recall, chosen
from agent_memory.scheduler.engine import Engine
from agent_memory.store.store import Store
from agent_memory.tools import as_tools, to_json
from agent_memory.types import AgentInfo, Card, Message, Recall, Tool

#: ``agent_id`` of a log without an agent; the store counts from 1.
NOT_STORED = 0


@frozen
class AgentSpec:
    """The arguments of ``memory.agent``, checked; None or empty: unchanged."""

    system: str | None = None
    tools: tuple[Tool, ...] = ()
    messages: tuple[Message, ...] = ()  #: the history that it begins with, its system message first
    keep_reasoning: bool | None = None
    recall: bool | Recall | None = None

    @classmethod
    def of(
        cls,
        system: object,
        tools: object,
        messages: object,
        keep_reasoning: object,
        recall: object = None,
        clean: Callable[[str], str] = str,
    ) -> AgentSpec:
        """Check arguments. Raises ConfigError, UnsupportedParameterError, or ToolResultError for results without calls.

        ``clean``: redacts secrets in texts.
        """
        if keep_reasoning is not None and not isinstance(keep_reasoning, bool):
            raise ConfigError(f"keep_reasoning must be a bool or None, got {repr_of(keep_reasoning)}")
        told = None
        if system == "":
            raise ConfigError("system is empty; give a text, or None for an agent without one")
        if system is not None:
            (checked,) = shapes.normalize([Message("system", system)])  # type: ignore[arg-type]  # checked right there
            told = checked.content
            told = clean(told)
        history = paired(shapes.normalize(messages), may_end_open=True) if messages is not None else ()
        history = tuple(without_secrets(one, clean) for one in history)
        if history and history[0].role == "system":
            if told not in (None, history[0].content):
                raise ConfigError("system= differs from the system message of messages=; give one of them")
            told = history[0].content
        elif history and told is not None:
            history = (Message("system", told), *history)
        if history and history[-1].role != "assistant":
            raise ConfigError(
                f"messages= must end with an assistant's message, got one of role {repr_of(history[-1].role)}: "
                "say() what comes after it"
            )
        return cls(told, of_tools(as_tools(tools), clean), history, keep_reasoning, checked_recall(recall))

    def facts(self, kept: Facts) -> Facts:
        """Return the agent's facts with these arguments applied."""
        keeps = kept.keep_reasoning if self.keep_reasoning is None else self.keep_reasoning
        return attrs.evolve(kept, keep_reasoning=keeps, recall=chosen(self.recall, kept.recall))


class Agents:
    """Logs by name, of one salt. Any thread."""

    def __init__(self, store: Store, engine: Engine, salt: str) -> None:
        self._store, self._engine, self.salt = store, engine, salt
        self._logs: dict[str, Log] = {}
        self._names: set[str] | None = None  # names of all agents on disk, once one was looked up
        self._lock = threading.Lock()
        self._ran_under: dict[Log, set[str]] = {}  # identities of models under which open agents had turns
        self.identity = ""  #: identity of the model's KV, once the model is loaded
        self.group_of: Callable[[Log], str | None] = lambda log: None  #: the group whose events a log holds, if it does

    def open(self, name: str, spec: AgentSpec, *, identity: str, tokenizer: str) -> Log:
        """Return the log of an agent, loaded or created. Raises ConfigError if it differs from ``spec``.

        ``identity``: the open model's. ``tokenizer``: the digest of its tokenizer.
        """
        check_name(name)
        system = spec.system
        with self._lock:
            log = self._find(name, identity)
            if log is None:
                facts = spec.facts(Facts())
                record = self._store.create_agent(
                    self.salt, name, system=system, tools=to_json(spec.tools), facts=facts.to_json()
                )
                log = Log(record)
                self._seed(log, spec.messages, tokenizer)
                self._logs[name] = log
        if system is not None and log.system != system:
            raise ConfigError(
                f"agent {repr_of(name)} exists with another system prompt ({len(log.system or '')} characters; given "
                f"{len(system)}). Open it without system=, or use another name, or delete it first"
            )
        if spec.tools and log.tools != spec.tools:
            raise ConfigError(
                f"agent {repr_of(name)} exists with other tools ({[tool.name for tool in log.tools]}; given "
                f"{[tool.name for tool in spec.tools]}). Open it without tools=, or give them with each turn"
            )
        if (n_same := log.n_same(spec.messages)) < len(spec.messages):
            raise ConfigError(
                f"agent {name!r} exists with another history: message {n_same} of the {len(spec.messages)} given "
                f"differs. Open it without messages=, or use another name, or delete it first"
            )
        if spec.facts(log.facts) != log.facts:
            self._describe(log, spec)
        return log

    def _seed(self, log: Log, messages: tuple[Message, ...], tokenizer: str) -> None:
        """Give a new log a history: one turn for each reply in it."""
        for turn in log.seeded(messages, tokenizer=tokenizer):
            self._store.append_turn(log.agent_id, len(log.turns), turn)
            log.append(turn)

    def _describe(self, log: Log, spec: AgentSpec) -> None:
        """Store the options of an agent's turns from now on."""
        ensure_writable(self._store, "change an agent's settings")

        def work() -> None:
            log.ensure_exists()
            log.facts = spec.facts(log.facts)
            if not log.is_temporary:
                self._store.describe(log.agent_id, (log.first_system, log.facts.to_json()))

        self._engine.call(work)

    def keep_results(self, log: Log, version: int, results: Sequence[tuple[str, str]]) -> None:
        """Store results of open calls, each with its call's id, until the others have theirs; nothing is generated.

        Raises ToolResultError where the log has moved on from ``version``.
        """
        ensure_writable(self._store, "keep a tool's result")

        def work() -> None:
            log.ensure_exists()
            if log.version != version:
                raise moved_on(log.name)
            log.facts = attrs.evolve(log.facts, answered=tuple(results))
            if not log.is_temporary:
                self._store.describe(log.agent_id, (log.first_system, log.facts.to_json()))

        self._engine.call(work)

    def hold(self, log: Log, holder: str) -> None:
        """Store by which right an agent's log is published; durable at the next flush."""

        def work() -> None:
            log.ensure_exists()
            log.facts = attrs.evolve(log.facts, holder=holder)
            self._store.describe(log.agent_id, (log.first_system, log.facts.to_json()))

        self._engine.call(work)

    def take_model(self, identity: str) -> None:
        """Note that another model is loaded: KV of open agents that only other models made is of no use to it."""
        with self._lock:
            before, self.identity = self.identity, identity
            for log in self._logs.values():
                if log.turns and not log.is_foreign:
                    self._ran_under.setdefault(log, set()).add(before)
                known = self._store.lineage_identities(log.agent_id) | self._ran_under.get(log, set())
                log.is_foreign = bool(log.turns) and identity not in known

    def find(self, name: str, *, identity: str) -> Log | None:
        """Return the log of an agent that exists; None if it does not."""
        with self._lock:
            return self._find(name, identity)

    def find_or_blank(self, name: str, *, identity: str) -> Log:
        """Return the log of an agent, or a blank log until ``keep`` stores it. Raises ConfigError for a bad name."""
        check_name(name)
        now = time.time()
        blank = AgentRecord(NOT_STORED, name, None, to_json(()), (), now, now)
        return self.find(name, identity=identity) or Log(blank)

    def keep(self, log: Log) -> bool:
        """Store the agent of a blank log; False if another thread has created an agent of that name."""
        if log.agent_id != NOT_STORED:
            return True
        with self._lock:
            if log.name in self._logs:
                return False
            record = self._store.create_agent(self.salt, log.name, system=None, tools=to_json(()))
            log.stored_as(record)
            self._logs[log.name] = log
            return True

    def _find(self, name: str, identity: str) -> Log | None:
        """``find``, under the lock."""
        if name in self._logs and self._store.is_read_only and not self._logs[name].is_temporary:
            del self._logs[name]  # another process may have written to it
        if name not in self._logs and (record := self._store.load_agent(self.salt, name)) is not None:
            stored = self._store.lineage_identities(record.agent_id)
            self._logs[name] = Log(record, is_foreign=bool(stored) and identity not in stored)
        return self._logs.get(name)

    def ensure_free(self, name: str) -> None:
        """Raise ConfigError if an agent has that name, or if it is no valid name."""
        check_name(name)
        with self._lock:
            if self._names is None:
                self._names = {info.name for info in self._store.list_agents(self.salt)}
            if name in self._names or name in self._logs:
                raise ConfigError(
                    f"agent {repr_of(name)} exists already. Take another name, or memory.delete({repr_of(name)}) first"
                )

    def add(self, log: Log) -> None:
        """Add an agent that was forked from another one; its name is free."""
        with self._lock:
            self._logs[log.name] = log

    def arrived(self, name: str, *, is_foreign: bool) -> Log:
        """Return the log of an agent that was stored as a whole. ``is_foreign``: its KV is of other models alone."""
        with self._lock:
            log = self._find(name, self.identity)
            if self._names is not None:
                self._names.add(name)
        assert log is not None
        log.is_foreign |= is_foreign
        return log

    def agent_id(self, name: str) -> int | None:
        """Return the number of an open agent."""
        with self._lock:
            log = self._logs.get(name)
        return None if log is None else log.agent_id

    @property
    def opened(self) -> list[Log]:
        """The logs of the agents that are open, temporary ones included."""
        with self._lock:
            return list(self._logs.values())

    def infos(self) -> list[AgentInfo]:
        """Return every agent in the store, newest use first."""
        listed = {info.name: info for info in self._store.list_agents(self.salt)}
        with self._lock:
            is_own = not self._store.is_read_only
            listed.update({name: log.info for name, log in self._logs.items() if is_own or log.is_temporary})
        return sorted(listed.values(), key=lambda info: -info.used_s)

    # changes of logs and of the KV that depends on them: on the engine thread, between two ticks

    def pin(self, log: Log, is_pinned: bool) -> None:
        """Pin or unpin an agent. Raises UnsupportedParameterError for a temporary one."""

        def work() -> None:
            log.ensure_exists()
            if log.is_temporary:
                raise UnsupportedParameterError(
                    f"agent {repr_of(log.name)} is temporary and cannot be pinned: nothing of it is kept on disk"
                )
            self._store.pin(log.agent_id, is_pinned)
            log.is_pinned = is_pinned

        self._engine.call(work)

    def forget_cards(self, workspace: str, forgotten: Mapping[int, str]) -> None:
        """Take forgotten cards out of every log, and delete the KV that may have been computed on them.

        Their texts are taken out of tools' results too, and of what the model said after them.

        Waits until no request runs. Every agent that shows cards or recalls computes its conversation again.
        """

        def is_forgotten(card: Card) -> bool:
            return card.workspace == workspace and card.id in forgotten

        def work() -> None:
            self._engine.evict(None, None, to="cold")
            self._engine.forget(None)
            while not self._engine.hand_over():
                self._store.wait_ready()
            logs = {log: [log.state, *(kept.state for kept in log.kept)] for log in self._all()}
            every = [turn for states in logs.values() for state in states for turn in state.turns]
            texts = {*forgotten.values(), *bodies(every, is_forgotten)}
            rewritten: dict[Log, list[State | None]] = {}
            kv_of: list[int] = []
            for log, states in logs.items():
                found = [_without_cards(state, is_forgotten, texts) for state in states]
                if any(found):
                    rewritten[log] = found
                shows = log.facts.recall is not None or log.facts.has_shown
                if any(found) or shows or any(shows_cards(state.turns) for state in states):
                    kv_of += [log.agent_id, *(kept.holder for kept in log.kept)]
            turns = {
                (state.branch_of(number), number): turn
                for log, found in rewritten.items()
                for state in found
                if state is not None and not log.is_temporary
                for number, turn in enumerate(state.turns)
            }
            self._store.forget(turns, [n for n in kv_of if n > 0], lambda: self._replace(rewritten))

        self._engine.call_idle(work)

    def _all(self) -> list[Log]:
        """Return every agent's log, opened. It stays open: a handle opened meanwhile shares the log changed here."""
        infos = self._store.list_agents(self.salt)
        with self._lock:
            stored = [log for info in infos if (log := self._find(info.name, self.identity)) is not None]
            return [*stored, *(log for log in self._logs.values() if log.is_temporary)]

    def _replace(self, rewritten: Mapping[Log, Sequence[State | None]]) -> None:
        """Replace turns of logs in memory, in the present state and in each version, as they were replaced on disk."""
        for log, (now, *before) in rewritten.items():
            log.kept = tuple(
                kept if state is None else attrs.evolve(kept, state=state)
                for kept, state in zip(log.kept, before, strict=True)
            )
            changed = tuple(one for one, state in zip(log.kept, before, strict=True) if state is not None)
            if now is not None:
                forgotten = max(log.n_kv, log.facts.forgotten or 0) or None
                log.restore(attrs.evolve(now, facts=attrs.evolve(now.facts, forgotten=forgotten)))
            if not log.is_temporary:
                system, facts = log.first_system, log.facts.to_json()
                self._store.change(Change(agent_id=log.agent_id, system=system, facts=facts, kept=changed))

    def delete(self, log: Log) -> bool:
        """Delete an idle agent in all tiers; False if it was deleted before."""

        def work() -> bool:
            if log.is_deleted:
                return False
            if not log.is_temporary:
                ensure_writable(self._store, "delete an agent")
            self.ensure_idle(log, "delete")
            self._engine.evict(log.name, log.agent_id, to="cold")
            self._engine.forget(log.name)
            if not log.is_temporary:
                self._store.delete_agent(log.agent_id)
            log.is_deleted = True
            with self._lock:
                self._logs.pop(log.name, None)
                self._ran_under.pop(log, None)
                if self._names is not None:
                    self._names.discard(log.name)
            return True

        return self._engine.call(work)

    def ensure_own(self, log: Log, doing: str, instead: str = "turn() or say()") -> None:
        """Raise UnsupportedParameterError for the log of a group's events, which its Group alone may change."""
        if (group := self.group_of(log)) is not None:
            raise UnsupportedParameterError(
                f"cannot {doing}: {repr_of(log.name)} is the log of group {repr_of(group)}, which would be destroyed. "
                f"Use memory.group({group!r}).{instead}"
            )

    def ensure_idle(self, log: Log, what: str) -> None:
        """Raise RequestError while a turn of an agent waits or runs. Engine thread."""
        if self._engine.is_busy(log.name):
            raise RequestError(
                f"cannot {what} agent {repr_of(log.name)} while a turn of it runs; await or cancel the turn first"
            )


def _without_cards(state: State, is_forgotten: Callable[[Card], bool], texts: Collection[str]) -> State | None:
    """Return a state without forgotten cards and texts; None if it shows none."""
    found, facts = without_cards(state.turns, is_forgotten, texts), state.facts
    answered = without_texts(facts.answered, texts, is_behind=found is not None)
    if found is None and answered == facts.answered:
        return None
    first, turns = found or (len(state.turns), ())
    return attrs.evolve(state, turns=(*state.turns[:first], *turns), facts=attrs.evolve(facts, answered=answered))


def check_name(name: object) -> None:
    """Raise ConfigError for what no agent can be called."""
    if not is_text(name) or not name:
        raise ConfigError(f"an agent's name must be a non-empty str of valid Unicode, got {repr_of(name)}")
