"""Asking: what a Memory and its agents are asked, from arguments to running requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from agent_memory.config import Config
from agent_memory.errors import ClosedError, UnsupportedParameterError
from agent_memory.generation import Generation
from agent_memory.log.log import Log
from agent_memory.protocols import ModelRunner, Tokenizer
from agent_memory.requests.calling import Calling, calling_of
from agent_memory.requests.cleaning import of_tools
from agent_memory.requests.longterm import LongTerm
from agent_memory.requests.options import Settings
from agent_memory.requests.prompting import Planner, Rendering
from agent_memory.requests.recalled import chosen
from agent_memory.requests.registry import Agents
from agent_memory.requests.session import Requests
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.request import Request
from agent_memory.store.store import Store
from agent_memory.tools import as_tools
from agent_memory.types import Recall, Tool, Usage


class Asking:
    """Starts requests, for a Memory and for the agents that hold it. Any thread.

    - What is wrong with a request raises before any work, and leaves nothing behind, not even a new agent.
    - An agent that does not exist yet is stored when its first request starts.
    """

    def __init__(
        self, runner: ModelRunner, store: Store, engine: Engine, config: Config, path: Path | None = None
    ) -> None:
        self._runner, self._engine = runner, engine
        self._requests = Requests(runner, store, engine, config.callable_timeout_s)
        self.longterm = LongTerm(path, config, runner, store, engine, self._requests)
        engine.idle.work = self.longterm.upkeep
        self._clean = self.longterm.clean if config.redact is not None else None
        self.agents = Agents(store, engine, config.salt)
        self.clock: Callable[[], datetime] = datetime.now  #: the local time that chat templates are told
        self._pin_dates = config.pin_dates
        self.longterm.on_forget = self.agents.forget_cards
        self.is_closed = False

    @property
    def identity(self) -> str:
        """Of the model, once it is loaded."""
        return self.agents.identity

    def ensure_open(self) -> Tokenizer:
        """The model's tokenizer. Raises ClosedError after ``close()`` and in a forked child."""
        self._engine.ensure_ours()
        if self.is_closed:
            raise ClosedError("this Memory is closed; open it again")
        return self._runner.tokenizer

    def log(self, name: str) -> Log:
        """The log of the agent ``name``, or a blank one that is no agent's yet. Raises ConfigError for a bad name."""
        self.ensure_open()
        return self.agents.find_or_blank(name, identity=self.identity)

    def start(self, prompt: object, log: Log | None, settings: Settings) -> Generation:
        """Start one request; with ``log``, a turn of that agent."""
        return self._requests.start(self._with_agent(prompt, log, settings, self._planned(prompt, log, settings)))

    def start_all(self, asked: Sequence[tuple[object, Log | None]], settings: Settings) -> list[Generation]:
        """Start several requests, each of a prompt and a log. What is wrong with one raises before work on any."""
        self._engine.ensure_places(len(asked))
        planned = [self._planned(prompt, log, settings) for prompt, log in asked]
        requests = [
            self._with_agent(prompt, log, settings, request)
            for (prompt, log), request in zip(asked, planned, strict=True)
        ]
        handles: list[Generation] = []
        try:
            handles.extend(map(self._requests.start, requests))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def prefill(self, prompt: object, log: Log | None, tools: Sequence[Any]) -> Usage:
        """Compute a prompt's KV and wait for it; nothing is generated or logged."""
        tokenizer = self.ensure_open()
        offered = self._tools(tools) or (log.tools if log else ())
        how = Rendering(
            clock=self.clock, pin_dates=self._pin_dates, tools=offered, generation_prompt=False, clean=self._clean
        )
        planner = Planner(tokenizer, prompt, log, how)
        request = self._requests.make(planner, None, Settings(), Calling(), max_tokens=0)
        if log is not None:
            self.agents.keep(log)
        return self._requests.start(request).result().usage

    def _planned(self, prompt: object, log: Log | None, settings: Settings) -> Request:
        """A request that is not yet under way."""
        tokenizer = self.ensure_open()
        self.longterm.let_pass()
        if self._clean is not None and settings.tools:
            settings = attrs.evolve(settings, tools=self._tools(settings.tools))
        recall, name = self._recall(settings, log), log.name if log else None
        calling = calling_of(settings, grammars=self._requests.grammars, kept=log.tools if log else ())
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
        planner = Planner(tokenizer, prompt, log, how)
        remember = partial(self.longterm.note, recall=recall, agent=name) if recall else None
        return self._requests.make(planner, log, settings, calling, remember=remember)

    def _tools(self, tools: Sequence[Any]) -> tuple[Tool, ...]:
        """Tools as values, without secrets where there is a redactor."""
        given = as_tools(tools)
        return given if self._clean is None else of_tools(given, self._clean)

    def _recall(self, settings: Settings, log: Log | None) -> Recall | None:
        """What a turn recalls; None: nothing. Raises UnsupportedParameterError for a prompt without a message."""
        if settings.raw and settings.recall:
            raise UnsupportedParameterError("raw=True takes no recall=: cards stand in front of a message")
        return None if settings.raw else chosen(settings.recall, log.facts.recall if log else None)

    def _with_agent(self, prompt: object, log: Log | None, settings: Settings, request: Request) -> Request:
        """``request``, its agent stored; planned again where another thread created the agent meanwhile."""
        while log is not None and not self.agents.keep(log):
            log = self.log(log.name)
            request = self._planned(prompt, log, settings)
        if log is not None:
            request.agent_id = log.agent_id
        return request
