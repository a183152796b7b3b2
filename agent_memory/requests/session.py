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

from agent_memory.config import Config
from agent_memory.errors import PromptTooLongError
from agent_memory.generation import Feed, Generation
from agent_memory.grammar.grammar import Grammars
from agent_memory.log.log import Log
from agent_memory.log.versions import shown_name
from agent_memory.prompt.messages import as_written, copied
from agent_memory.protocols import ModelRunner, Tokenizer
from agent_memory.requests.calling import Calling
from agent_memory.requests.compacting import Compacting
from agent_memory.requests.options import Settings
from agent_memory.requests.prompting import Planner
from agent_memory.requests.versions import Versions
from agent_memory.scheduler.callables import Guard, guarded
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.request import Outcome, Prompt, Request
from agent_memory.toolcall import ToolParser
from agent_memory.types import Message, Reply

logger = logging.getLogger("agent_memory.requests")

_REPLY_SHARE = 8  #: a conversation that is compacted where it is full leaves this share of the context for a reply


@frozen(eq=False, kw_only=True)
class Session:
    """The engine's callbacks for one request: implements ``scheduler.request.Asker``. Engine thread.

    ``log``: the agent's, to which the turn is added; None: nothing is logged. ``limit``: the model's context.
    """

    id: str  #: of the request
    planner: Planner
    calling: Calling
    log: Log | None
    versions: Versions
    tokenizer: Tokenizer
    limit: int | None
    remember: Callable[[Sequence[Message]], None] | None = None  #: takes the turn's new messages and its reply
    compacting: Compacting | None = None  #: compacts conversations that are too long; None: they raise
    max_tokens: int = 0  #: of the reply
    is_prefix: bool = False  #: True: computes the prompt except its last id, for later requests

    def check(self) -> Prompt:
        """Return the prompt as it is now, on the caller's thread. Raises PromptTooLongError if no compaction helps."""
        prompt, limit = self.planner.prompt(), self.limit
        is_too_long = limit is not None and len(prompt.ids) >= limit
        if limit is not None and is_too_long and not self._compacts(len(prompt.ids), limit, is_asked=True):
            raise PromptTooLongError(len(prompt.ids), limit)
        return prompt

    def prompt(self) -> Prompt:
        """Return the prompt, planned again if the log has changed or was compacted. Raises PromptTooLongError."""
        prompt, limit = self.planner.prompt(), self.limit
        if limit is not None and len(prompt.ids) >= limit - self._room:
            if self._compacts(len(prompt.ids), limit - self._room):
                prompt = self.planner.prompt()
            if len(prompt.ids) >= limit:
                raise PromptTooLongError(len(prompt.ids), limit)
        if self.is_prefix and len(prompt.ids) > 1:
            n_ids = len(prompt.ids) - 1
            prompt = attrs.evolve(prompt, ids=prompt.ids[:n_ids], known=min(prompt.known, n_ids))
        return prompt

    @property
    def _room(self) -> int:
        """Tokens that are left for the reply where conversations are compacted."""
        return min(self.max_tokens, (self.limit or 0) // _REPLY_SHARE) if self.compacting is not None else 0

    def _compacts(self, n_prompt: int, limit: int, *, is_asked: bool = False) -> bool:
        """Compact the conversation, or only check whether that would help; False if it does not."""
        if self.compacting is None or self.log is None or not self.planner.goes_on:
            return False
        if is_asked:
            return self.compacting.can_make_room(self.log, n_prompt, limit)
        if not self.planner.is_tight and self.compacting.make_room(self.log, n_prompt, limit):
            self.planner.follow()
            return True
        self.planner.is_tight = True  # not again at each attempt to start
        return False

    def parser(self, prompt: Sequence[int]) -> ToolParser:
        """Return a parser of the text that follows ``prompt``."""
        return self.calling.parser(self.tokenizer, prompt)

    def value(self, outcome: Outcome) -> Any:
        """Return the reply's JSON; None if it has none. Raises UnsupportedParameterError if it cannot be read."""
        return self.calling.value(outcome)

    def commit(self, outcome: Outcome, value: Any) -> Reply:
        """Write the turn to log and store, and return the reply."""
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
            agent=None if self.log is None or self.planner.is_branch else shown_name(self.log.name),
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
        """Append a turn to the store's queue and to the log."""
        planner = self.planner
        if planner.n_replaced:
            logger.warning(
                "a list replaced an agent's history request=%s agent=%r replaced_messages=%d kept_messages=%d: another "
                'agent= for another conversation, or on_diverge="branch" or "error", keeps it',
                self.id,
                shown_name(log.name),
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
            log.first_system = system  # a list created the agent
        facts = attrs.evolve(planner.facts, system=None if system == log.first_system else system)
        is_described = (system, facts) == (log.system, log.facts)
        self.versions.append(log, turns, None if is_described else facts)


class Requests:
    """Builds requests and hands them to the engine. Any thread."""

    def __init__(self, runner: ModelRunner, versions: Versions, engine: Engine, config: Config) -> None:
        self._runner, self._versions, self._engine = runner, versions, engine
        self._callable_timeout_s, self._progress = config.callable_timeout_s, config.progress

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's, once it is loaded."""
        return self._runner.tokenizer

    @cached_property
    def grammars(self) -> Grammars:
        """The grammars of the model's tokenizer, once the model is loaded."""
        return Grammars(self._runner.tokenizer)

    def take_model(self) -> None:
        """Drop the grammars of the model before."""
        self.__dict__.pop("grammars", None)

    def make(
        self,
        planner: Planner,
        log: Log | None,
        settings: Settings,
        calling: Calling,
        *,
        max_tokens: int | None = None,  # 0: prefill only
        remember: Callable[[Sequence[Message]], None] | None = None,
        is_temporary: bool = False,
        compacting: Compacting | None = None,
        is_prefix: bool = False,  # the prompt without its last id
    ) -> Request:
        """Return a request, not started yet, whose turn ``log`` gets. A wrong prompt raises here, before any work."""
        self._engine.ensure_places()
        created, tokenizer = time.perf_counter(), self._runner.tokenizer
        feed = Feed(self._progress if settings.progress is None else settings.progress)
        session = Session(
            id=feed.id,
            planner=planner,
            calling=calling,
            log=log,
            versions=self._versions,
            tokenizer=tokenizer,
            limit=self._runner.context_tokens,
            remember=remember,
            compacting=compacting,
            max_tokens=settings.max_tokens if max_tokens is None else max_tokens,
            is_prefix=is_prefix,
        )
        prompt, owner = session.check().ids, None if planner.is_branch else log  # the plan says whether it branches off
        return Request(
            feed=feed,
            asker=session,
            builder=self._builder(calling),
            constraint=calling.constraint(self.grammars, prompt),
            shows_marks=calling.shows_marks(tokenizer),
            owner=owner.name if owner else None,
            agent_id=owner.agent_id if owner else None,
            is_temporary=is_temporary,
            sampling=settings.sampling,
            max_tokens=session.max_tokens,
            stop=settings.stop,
            logits_processors=guarded(settings.logits_processors, self._callable_timeout_s),
            priority=settings.priority,
            is_exact=settings.exact,
            epoch=self._engine.epoch,
            created=created,
            deadline=_deadline(created, settings.timeout_s),
        )

    def start(self, request: Request) -> Generation:
        """Queue a request and return its handle."""
        try:
            request.begin()
            self._engine.submit(request)
        except BaseException as error:  # also Ctrl-C: whoever waits for the handle is told
            request.feed.fail(error)
            raise
        engine, running = self._engine, weakref.ref(request)  # a kept handle keeps no ended request

        def cancel() -> None:
            if (found := running()) is not None:
                engine.cancel(found)

        return Generation(request.feed, cancel)

    def _builder(self, calling: Calling) -> Guard | None:
        if calling.build is None:
            return None
        return Guard("the schema's class", calling.build, self._callable_timeout_s, self._engine.wake)


def _deadline(created: float, timeout_s: float | None) -> float | None:
    return None if timeout_s is None else created + min(timeout_s, threading.TIMEOUT_MAX)
