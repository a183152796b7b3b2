"""The agents of one store that are open here: each log once, whoever asks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import attrs
from attrs import frozen

from agent_memory.config import is_text
from agent_memory.errors import ConfigError, RequestError, repr_of
from agent_memory.log.facts import Facts
from agent_memory.log.forgetting import shows_cards, without_cards
from agent_memory.log.log import Log
from agent_memory.log.turns import AgentRecord, Turn
from agent_memory.prompt import messages as shapes
from agent_memory.prompt.results import paired
from agent_memory.requests.cleaning import of_tools, without_secrets
from agent_memory.requests.recalled import checked_recall, chosen
from agent_memory.scheduler.engine import Engine
from agent_memory.store.store import Store
from agent_memory.tools import as_tools, to_json
from agent_memory.types import AgentInfo, Card, Message, Recall, Tool

#: The number of a log that no agent has yet; the store counts from 1.
NOT_STORED = 0


@frozen
class AgentSpec:
    """What ``memory.agent`` says of an agent, checked; None and nothing: as the agent has it."""

    system: str | None = None
    tools: tuple[Tool, ...] = ()
    messages: tuple[Message, ...] = ()  #: the history it begins with, its system message first
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
        """Raises ConfigError or UnsupportedParameterError, and ToolResultError for results without their calls.

        ``clean``: takes secrets out of texts.
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
        """The agent's facts with what this says of them."""
        keeps = kept.keep_reasoning if self.keep_reasoning is None else self.keep_reasoning
        return attrs.evolve(kept, keep_reasoning=keeps, recall=chosen(self.recall, kept.recall))


class Agents:
    """Logs by name, of one salt. Any thread."""

    def __init__(self, store: Store, engine: Engine, salt: str) -> None:
        self._store, self._engine, self._salt = store, engine, salt
        self._logs: dict[str, Log] = {}
        self._lock = threading.Lock()
        self.identity = ""  #: of the model, once it is loaded

    def open(self, name: str, spec: AgentSpec, *, identity: str, tokenizer: str) -> Log:
        """The log of an agent, loaded or created. Raises ConfigError where it is another than ``spec`` says.

        ``identity``: of the model that is open. ``tokenizer``: its digest.
        """
        _check_name(name)
        system = spec.system
        with self._lock:
            log = self._find(name, identity)
            if log is None:
                facts = spec.facts(Facts())
                record = self._store.create_agent(
                    self._salt, name, system=system, tools=to_json(spec.tools), facts=facts.to_json()
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
        """Store how an agent's turns are asked from now on."""

        def work() -> None:
            log.ensure_exists()
            log.facts = spec.facts(log.facts)
            self._store.describe(log.agent_id, (log.first_system, log.facts.to_json()))

        self._engine.call(work)

    def find(self, name: str, *, identity: str) -> Log | None:
        """The log of an agent that exists."""
        with self._lock:
            return self._find(name, identity)

    def find_or_blank(self, name: str, *, identity: str) -> Log:
        """The log of an agent, or a blank one that is no agent's until ``keep``. Raises ConfigError for a bad name."""
        _check_name(name)
        now = time.time()
        blank = AgentRecord(NOT_STORED, name, None, to_json(()), (), now, now)
        return self.find(name, identity=identity) or Log(blank)

    def keep(self, log: Log) -> bool:
        """Store the agent of a blank log; False where there is one of that name by now, which has another log."""
        if log.agent_id != NOT_STORED:
            return True
        with self._lock:
            if log.name in self._logs:
                return False
            record = self._store.create_agent(self._salt, log.name, system=None, tools=to_json(()))
            log.stored_as(record)
            self._logs[log.name] = log
            return True

    def _find(self, name: str, identity: str) -> Log | None:
        """The same, under the lock."""
        if name not in self._logs and (record := self._store.load_agent(self._salt, name)) is not None:
            stored = self._store.lineage_identities(record.agent_id)
            self._logs[name] = Log(record, is_foreign=bool(stored) and identity not in stored)
        return self._logs.get(name)

    def agent_id(self, name: str) -> int | None:
        """The number of an agent that was opened here."""
        with self._lock:
            log = self._logs.get(name)
        return None if log is None else log.agent_id

    def infos(self) -> list[AgentInfo]:
        """Every agent in the store, newest use first."""
        listed = {info.name: info for info in self._store.list_agents(self._salt)}
        with self._lock:
            listed.update({name: log.info for name, log in self._logs.items()})
        return sorted(listed.values(), key=lambda info: -info.used_s)

    # what changes a log, and what hangs on it: on the engine thread, between two ticks

    def pin(self, log: Log, is_pinned: bool) -> None:
        """Pin an agent, or no longer."""

        def work() -> None:
            log.ensure_exists()
            self._store.pin(log.agent_id, is_pinned)
            log.is_pinned = is_pinned

        self._engine.call(work)

    def forget_cards(self, workspace: str, forgotten: Mapping[int, str]) -> None:
        """Take cards of ``forgotten`` items out of every log, and delete the KV that may have been computed on them.

        Their texts are taken out of results of tools too, and of what the model said behind them.

        Waits until no request runs. Every agent that shows cards or recalls computes its conversation again.
        """

        def is_forgotten(card: Card) -> bool:
            return card.workspace == workspace and card.id in forgotten

        def work() -> None:
            self._engine.evict(None, None, to="cold")
            while not self._engine.hand_over():
                self._store.wait_ready()
            rewritten, kv_of = {}, []
            for info in self._store.list_agents(self._salt):
                with self._lock:  # it stays open: who opens it meanwhile gets the log that is changed here
                    log = self._find(info.name, self.identity)
                if log is None:
                    continue
                found = without_cards(log.turns, is_forgotten, texts)
                if found is not None:
                    rewritten[log] = found
                if found or log.facts.recall is not None or log.facts.has_shown or shows_cards(log.turns):
                    kv_of.append(log.agent_id)
            turns = {log.agent_id: found for log, found in rewritten.items()}
            self._store.forget(turns, kv_of, lambda: self._replace(rewritten))

        texts = frozenset(forgotten.values())
        self._engine.call_idle(work)

    def _replace(self, rewritten: Mapping[Log, tuple[int, tuple[Turn, ...]]]) -> None:
        """Let logs be in memory what they are on disk by now: other turns from a number on."""
        for log, found in rewritten.items():
            log.facts = attrs.evolve(log.facts, forgotten=max(log.n_kv, log.facts.forgotten or 0) or None)
            log.replace(*found)
            self._store.describe(log.agent_id, (log.first_system, log.facts.to_json()))

    def rewind(self, log: Log, turns: int) -> None:
        """Take an idle agent's newest turns back."""

        def work() -> None:
            log.ensure_exists()
            self._ensure_idle(log, "rewind")
            log.rewind(len(log.turns) - turns)
            self._store.rewind(log.agent_id, len(log.turns))
            system = None if log.system == log.first_system else log.system
            if log.facts.system != system:
                log.facts = attrs.evolve(log.facts, system=system)
                self._store.describe(log.agent_id, (log.first_system, log.facts.to_json()))

        self._engine.call(work)

    def delete(self, log: Log) -> bool:
        """End an idle agent, in all tiers; False where it has ended before."""

        def work() -> bool:
            if log.is_deleted:
                return False
            self._ensure_idle(log, "delete")
            self._engine.evict(log.name, log.agent_id, to="cold")
            self._store.delete_agent(log.agent_id)
            log.is_deleted = True
            with self._lock:
                self._logs.pop(log.name, None)
            return True

        return self._engine.call(work)

    def _ensure_idle(self, log: Log, what: str) -> None:
        if self._engine.is_busy(log.name):
            raise RequestError(
                f"cannot {what} agent {repr_of(log.name)} while a turn of it runs; await or cancel the turn first"
            )


def _check_name(name: object) -> None:
    if not is_text(name) or not name:
        raise ConfigError(f"an agent's name must be a non-empty str of valid Unicode, got {repr_of(name)}")
