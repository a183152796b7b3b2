"""Asking: from the arguments of a Memory's and an agent's methods to running requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from agent_memory.config import Config
from agent_memory.errors import ClosedError, UnsupportedParameterError
from agent_memory.generation import Generation
from agent_memory.log.log import Log
from agent_memory.log.versions import shown_name
from agent_memory.observe.agents import tier_uses
from agent_memory.observe.observing import Observing
from agent_memory.observe.plot import Plot, draw, usages
from agent_memory.protocols import ModelRunner, Tokenizer
from agent_memory.reader.shared import ensure_writable
from agent_memory.requests.calling import Calling, calling_of
from agent_memory.requests.cleaning import of_tools
from agent_memory.requests.compacting import Compacting
from agent_memory.requests.explaining import Explaining
from agent_memory.requests.gate import Gate
from agent_memory.requests.longterm import LongTerm
from agent_memory.requests.moving import Moving
from agent_memory.requests.options import Settings
from agent_memory.requests.prompting import Answers, Planner, Rendering
from agent_memory.requests.recalled import chosen
from agent_memory.requests.registry import NOT_STORED, Agents
from agent_memory.requests.session import Requests
from agent_memory.requests.versions import Versions
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.request import Request
from agent_memory.store.store import Store
from agent_memory.store.uses import TierUse, with_uses
from agent_memory.tools import as_tools
from agent_memory.types import AgentInfo, Message, Recall, Tool, Usage

if TYPE_CHECKING:
    from agent_memory.exchange.opening import Remote
    from agent_memory.requests.publishing import Publishing


class Asking:
    """Starts requests for a Memory and its agents. Any thread.

    - A wrong request raises before any work, and leaves nothing behind, not even a new agent.
    - An agent that does not exist yet is stored when its first request starts.
    """

    def __init__(
        self,
        runner: ModelRunner,
        store: Store,
        engine: Engine,
        config: Config,
        observing: Observing,
        path: Path | None = None,
        remote: Remote | None = None,
    ) -> None:
        self._runner, self._store, self._engine = runner, store, engine
        self._observing, self._path = observing, path
        self.agents = Agents(store, engine, config.salt)
        self.versions = Versions(self.agents, store, engine, config.keep_versions)
        self._requests = Requests(runner, self.versions, engine, config)
        self.longterm = LongTerm(path, config, runner, store, engine, self._requests)
        engine.idle.work = self.longterm.upkeep
        self._clean = self.longterm.clean if config.redact is not None else None
        self.moving = Moving(self.agents, store, engine, runner, self._clean, config.progress)
        self._remote, self._making = remote, threading.Lock()
        self._publishing: Publishing | None = None
        self.clock: Callable[[], datetime] = datetime.now  #: the local time given to chat templates
        self._pin_dates, self._compacts = config.pin_dates, config.on_full == "compact"
        self.longterm.on_forget = self.agents.forget_cards
        self.gate = Gate(engine.wake)
        engine.gathering.is_asked = self.gate.is_passed
        self.is_closed = False
        self.n_tools_abandoned = 0  #: calls of run_tools that were still running when their time was up

    @property
    def identity(self) -> str:
        """The identity of the model's KV, once the model is loaded."""
        return self.agents.identity

    def take_model(self, identity: str) -> None:
        """Go on with the model that is loaded now. Engine thread."""
        self.agents.take_model(identity)
        self._requests.take_model()
        self.longterm.take_model()

    def infos(self) -> list[AgentInfo]:
        """Return every agent, newest use first, with figures by tier that are looked up when one is first read."""
        self.ensure_open()
        return with_uses(self.agents.infos(), lambda: self._uses(self.agents.opened))

    def info(self, log: Log) -> AgentInfo:
        """Return an agent at a glance; of a view without figures by tier."""
        (found,) = with_uses([log.info], lambda: {} if log.viewed is not None else self._uses([log]))
        return found

    def _uses(self, logs: Sequence[Log]) -> dict[str, TierUse]:
        self.ensure_open()
        return tier_uses(self._engine, self._path, self.agents.salt, logs)

    def plot(self, log: Log) -> Plot:
        """Draw the newest turns of an agent."""
        self.ensure_open()
        replies = usages(self._observing.ring.entries(), log.name)
        n_bytes = self.info(log).tier_bytes
        return draw(f"Agent {log.name}", replies, {"hot": n_bytes.get("hot", 0), "cold": n_bytes.get("cold", 0)})

    def ensure_open(self) -> Tokenizer:
        """Return the model's tokenizer. Raises ClosedError after ``close()`` and in a forked child."""
        self._engine.ensure_ours()
        if self.is_closed:
            raise ClosedError("this Memory is closed; open it again")
        return self._runner.tokenizer

    def ensure_writable(self, log: Log | None, doing: str) -> None:
        """Raise ReadOnlyError for a log that is on disk, in a store that is read only.

        Raises UnsupportedParameterError for the log of a group's events.
        """
        if log is not None:
            self.agents.ensure_own(log, doing)
        if log is not None and not log.is_temporary:
            ensure_writable(self._store, doing)

    def log(self, name: str) -> Log:
        """Return the log of an agent, or a blank log if it is not stored. Raises ConfigError for a bad name."""
        self.ensure_open()
        return self.agents.find_or_blank(name, identity=self.identity)

    def start(self, prompt: object, log: Log | None, settings: Settings) -> Generation:
        """Start one request; with ``log``, a turn of that agent."""
        with self.gate.passing():
            try:
                request = self._with_agent(prompt, log, settings, self._planned(prompt, log, settings))
            except UnsupportedParameterError as error:
                raise error.with_traceback(None)  # noqa: B904 - the same error: its traceback leads to the caller's line
            return self._requests.start(request)

    def start_all(self, asked: Sequence[tuple[object, Log | None, Settings]]) -> list[Generation]:
        """Start several requests, each of a prompt, a log and settings. If one is wrong, raise before work on any."""
        with self.gate.passing():
            return self._start_all(asked)

    def _start_all(self, asked: Sequence[tuple[object, Log | None, Settings]]) -> list[Generation]:
        self._engine.ensure_places(len(asked))
        try:
            planned = [self._planned(*one) for one in asked]
        except UnsupportedParameterError as error:
            raise error.with_traceback(None)  # noqa: B904 - as in ``start``
        requests = [self._with_agent(*one, request) for one, request in zip(asked, planned, strict=True)]
        handles: list[Generation] = []
        try:
            handles.extend(map(self._requests.start, requests))
        except BaseException:  # also Ctrl-C: of a batch all requests start, or none goes on
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def keep_results(self, log: Log, answers: Answers) -> None:
        """Store results of some of the open calls, until the others have theirs; durable at the next flush."""
        clean = self._clean or str
        results = [(str(message.tool_call_id), clean(message.content)) for message in answers.messages]
        assert answers.version is not None
        self.agents.keep_results(log, answers.version, results)

    def prefill(self, prompt: object, log: Log | None, tools: Sequence[Any]) -> Usage:
        """Compute a prompt's KV and return when it is there; nothing is generated or logged."""
        with self.gate.passing():
            tokenizer = self.ensure_open()
            if log is not None and log.agent_id == NOT_STORED:
                self.ensure_writable(log, "create an agent")
            offered = self._tools(tools) or (log.tools if log else ())
            planner = Planner(tokenizer, prompt, log, self._how_read(offered))
            request = self._requests.make(
                planner, None, Settings(), Calling(), max_tokens=0, is_temporary=bool(log and log.is_temporary)
            )
            if log is not None:
                self.agents.keep(log)
            handle = self._requests.start(request)
        return handle.result().usage

    def prepare(self, prompt: object, log: Log, settings: Settings) -> Usage:
        """Compute the KV of a turn's prompt but its last id, in memory alone, and wait for it; nothing is logged."""
        planner = self._planner_of(prompt, log, settings)
        ahead = Settings(priority=settings.priority, timeout_s=settings.timeout_s)
        request = self._requests.make(planner, None, ahead, Calling(), max_tokens=0, is_temporary=True, is_prefix=True)
        return self._requests.start(request).result().usage

    def note(self, log: Log, settings: Settings, messages: Sequence[Message]) -> None:
        """Let what was said in a turn be remembered, where the agent or the settings say so."""
        if (remember := self._remember(log, settings)) is not None:
            remember(messages)

    def _how_read(self, tools: tuple[Tool, ...]) -> Rendering:
        """How a conversation is written that nothing is to answer."""
        return Rendering(
            clock=self.clock, pin_dates=self._pin_dates, tools=tools, generation_prompt=False, clean=self._clean
        )

    @property
    def publishing(self) -> Publishing:
        """Published logs. Made, and imported, on first use: who has no remote pays nothing."""
        from agent_memory.requests.publishing import Publishing

        with self._making:
            if self._publishing is None:
                self._publishing = Publishing(
                    self._remote, self.agents, self.versions, self._store, self._engine, self.moving.terms
                )
            return self._publishing

    # The next two are made for each use: kept, they would be cycles, and a dropped Memory would end with a collection.

    @property
    def explaining(self) -> Explaining:
        """Explanations of what requests would reuse."""
        return Explaining(self._engine, self.ensure_open, self._planner_of)

    @property
    def compacting(self) -> Compacting:
        """Compaction of conversations."""
        return Compacting(self.versions, self._how_logged, self.ensure_open)

    def _how_logged(self, log: Log) -> Rendering:
        return self._how_read(log.tools)

    def _planned(self, prompt: object, log: Log | None, settings: Settings) -> Request:
        """Return a request that is not started yet."""
        self.ensure_open()
        self.ensure_writable(log, "add a turn to an agent")
        self.longterm.let_pass()
        calling = self._calling(log, settings)
        is_temporary = bool(log and log.is_temporary)
        return self._requests.make(
            self._planner(prompt, log, settings, calling),
            log,
            settings,
            calling,
            remember=self._remember(log, settings),
            is_temporary=is_temporary,
            compacting=self.compacting if self._compacts else None,
        )

    def _calling(self, log: Log | None, settings: Settings) -> Calling:
        self.ensure_open()
        if self._clean is not None and settings.tools:
            settings = attrs.evolve(settings, tools=self._tools(settings.tools))
        return calling_of(settings, grammars=self._requests.grammars, kept=log.tools if log else ())

    def _planner_of(self, prompt: object, log: Log | None, settings: Settings) -> Planner:
        return self._planner(prompt, log, settings, self._calling(log, settings))

    def _planner(self, prompt: object, log: Log | None, settings: Settings, calling: Calling) -> Planner:
        recall, name = self._recall(settings, log), shown_name(log.name) if log else None
        how = Rendering(
            clock=self.clock,
            pin_dates=self._pin_dates,
            tools=calling.offered,
            raw=settings.raw,
            variables=settings.template,
            keep_reasoning=settings.keep_reasoning,
            on_diverge=settings.on_diverge,
            clean=self._clean,
            recalls=partial(self.longterm.candidates, recall=recall, agent=name) if recall else None,
        )
        return Planner(self._runner.tokenizer, prompt, log, how)

    def _remember(self, log: Log | None, settings: Settings) -> Callable[[Sequence[Message]], None] | None:
        recall = None if log and log.is_temporary else self._recall(settings, log)
        return partial(self.longterm.note, recall=recall, agent=log.name if log else None) if recall else None

    def _tools(self, tools: Sequence[Any]) -> tuple[Tool, ...]:
        """Tools as values, without secrets where there is a redactor."""
        given = as_tools(tools)
        return given if self._clean is None else of_tools(given, self._clean)

    def _recall(self, settings: Settings, log: Log | None) -> Recall | None:
        """Return a turn's recall; None: nothing. Raises UnsupportedParameterError for a prompt without a message."""
        if settings.raw and settings.recall:
            raise UnsupportedParameterError("raw=True takes no recall=: cards stand in front of a message")
        return None if settings.raw else chosen(settings.recall, log.facts.recall if log else None)

    def _with_agent(self, prompt: object, log: Log | None, settings: Settings, request: Request) -> Request:
        """Store the request's agent; plan the request again if another thread created that agent meanwhile."""
        while log is not None and not self.agents.keep(log):
            log = self.log(log.name)
            request = self._planned(prompt, log, settings)
        if log is not None:
            request.agent_id = log.agent_id
        return request
