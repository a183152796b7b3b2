"""From a caller's arguments to a request that runs, and from its outcome to the log and the reply."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import attrs
from attrs import frozen

from agent_memory.errors import PromptTooLongError
from agent_memory.generation import Feed, Generation
from agent_memory.grammar.grammar import Grammars
from agent_memory.log.log import Log
from agent_memory.prompt.messages import as_written, copied
from agent_memory.protocols import ModelRunner, Tokenizer
from agent_memory.requests.calling import Calling
from agent_memory.requests.options import Settings
from agent_memory.requests.prompting import Planner
from agent_memory.scheduler.callables import Guard, guarded
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.request import Outcome, Prompt, Request
from agent_memory.store.store import Store
from agent_memory.toolcall import ToolParser
from agent_memory.types import Message, Reply

logger = logging.getLogger("agent_memory.requests")


@frozen(eq=False, kw_only=True)
class Session:
    """What the engine asks while one request runs; implements ``scheduler.request.Asker``. Engine thread.

    ``log``: the agent's, to which the turn is added; None: nothing is logged. ``limit``: the model's context.
    """

    id: str  #: of the request
    planner: Planner
    calling: Calling
    log: Log | None
    store: Store
    tokenizer: Tokenizer
    limit: int | None
    remember: Callable[[Sequence[Message]], None] | None = None  #: takes the turn's new messages and its reply

    def prompt(self) -> Prompt:
        """The prompt, planned again where the log has moved on. Raises PromptTooLongError."""
        prompt = self.planner.prompt()
        if self.limit is not None and len(prompt.ids) >= self.limit:
            raise PromptTooLongError(len(prompt.ids), self.limit)
        return prompt

    def parser(self, prompt: Sequence[int]) -> ToolParser:
        """A parser of the text that follows ``prompt``."""
        return self.calling.parser(self.tokenizer, prompt)

    def value(self, outcome: Outcome) -> Any:
        """The reply's JSON; None where it has none. Raises UnsupportedParameterError for JSON that cannot be read."""
        return self.calling.value(outcome)

    def commit(self, outcome: Outcome, value: Any) -> Reply:
        """Write the turn to log and store, and make the reply."""
        parsed = outcome.parsed
        message = Message(
            "assistant",
            parsed.text,
            reasoning=parsed.reasoning,
            tool_calls=as_written(parsed.tool_calls),
            source=outcome.text if outcome.text != parsed.text else "",
        )
        if self.log is not None and not self.planner.is_branch:
            self._append(self.log, outcome, message)
        if self.remember is not None and not self.planner.is_branch:
            self.remember((*self.planner.given[self.planner.n_known :], message))
        return Reply(
            id=self.id,
            agent=None if self.log is None or self.planner.is_branch else self.log.name,
            text=parsed.text,
            reasoning=parsed.reasoning,
            tool_calls=parsed.tool_calls,
            rejected_calls=parsed.rejected_calls,
            parsed=value,
            finish=outcome.finish,
            stopped=outcome.stopped,
            usage=attrs.evolve(
                outcome.usage, replaced_messages=0 if self.planner.is_branch else self.planner.n_replaced
            ),
            message=copied([message])[0],
            token_ids=outcome.kept,
            recalled=self.planner.recalled,
        )

    def _append(self, log: Log, outcome: Outcome, reply: Message) -> None:
        """Add one more turn to the store's queue and to the log."""
        planner = self.planner
        if planner.n_replaced:
            logger.warning(
                "a list replaced an agent's history request=%s agent=%r replaced_messages=%d kept_messages=%d: another "
                'agent= for another conversation, or on_diverge="branch" or "error", keeps it',
                self.id,
                log.name,
                planner.n_replaced,
                len(log.messages) - planner.n_replaced,
            )
        turns = log.turns_of(
            planner.given,
            reply,
            ids=(*outcome.prompt.ids, *outcome.kept),
            n_kv=outcome.n_kv,
            tokenizer=self.tokenizer.digest,
            finish=outcome.finish,
            n_reply=len(outcome.kept),
        )
        first = planner.given[0]
        system = first.content if first.role == "system" else None
        if not log.turns and log.first_system is None:
            log.first_system = system  # a list made the agent
        facts = attrs.evolve(planner.facts, system=None if system == log.first_system else system)
        is_described = (system, facts) == (log.system, log.facts)
        for turn in turns:
            described = None if is_described or turn is not turns[-1] else (log.first_system, facts.to_json())
            self.store.append_turn(log.agent_id, len(log.turns), turn, described)
            log.append(turn)
        log.facts = facts


class Requests:
    """Makes requests and hands them to the engine. Any thread."""

    def __init__(self, runner: ModelRunner, store: Store, engine: Engine, callable_timeout_s: float) -> None:
        self._runner, self._store, self._engine = runner, store, engine
        self._callable_timeout_s = callable_timeout_s

    @cached_property
    def grammars(self) -> Grammars:
        """Of the model's tokenizer, which is there once the model is."""
        return Grammars(self._runner.tokenizer)

    def make(
        self,
        planner: Planner,
        log: Log | None,
        settings: Settings,
        calling: Calling,
        *,
        max_tokens: int | None = None,
        remember: Callable[[Sequence[Message]], None] | None = None,
    ) -> Request:
        """A request that is not yet under way. What is wrong with its prompt raises here, before any work.

        ``log``: the agent's, for the turn to be added to it. The prompt is planned now and, where the log has moved
        on by the time it starts, again. ``max_tokens``: in place of the settings'; 0 is prefill alone.
        """
        self._engine.ensure_places()
        created = time.perf_counter()
        tokenizer = self._runner.tokenizer
        feed = Feed()
        session = Session(
            id=feed.id,
            planner=planner,
            calling=calling,
            log=log,
            store=self._store,
            tokenizer=tokenizer,
            limit=self._runner.context_tokens,
            remember=remember,
        )
        constraint = calling.constraint(self.grammars, session.prompt().ids)
        return Request(
            feed=feed,
            asker=session,
            builder=self._builder(calling),
            constraint=constraint,
            shows_marks=calling.shows_marks(tokenizer),
            owner=log.name if log and not planner.is_branch else None,
            agent_id=log.agent_id if log and not planner.is_branch else None,
            sampling=settings.sampling,
            max_tokens=settings.max_tokens if max_tokens is None else max_tokens,
            stop=settings.stop,
            logits_processors=guarded(settings.logits_processors, self._callable_timeout_s),
            priority=settings.priority,
            created=created,
            deadline=None if settings.timeout_s is None else created + min(settings.timeout_s, threading.TIMEOUT_MAX),
        )

    def start(self, request: Request) -> Generation:
        """Queue a request, and give the handle on it."""
        try:
            request.begin()
            self._engine.submit(request)
        except BaseException as error:
            request.feed.fail(error)
            raise
        engine, running = self._engine, weakref.ref(request)  # a handle that is kept keeps nothing of what has ended

        def cancel() -> None:
            if (found := running()) is not None:
                engine.cancel(found)

        return Generation(request.feed, cancel)

    def _builder(self, calling: Calling) -> Guard | None:
        if calling.build is None:
            return None
        return Guard("the schema's class", calling.build, self._callable_timeout_s, self._engine.wake)
