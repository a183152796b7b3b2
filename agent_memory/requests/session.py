"""From what a caller asks to a request that runs, and from its outcome to the log and the reply."""

from __future__ import annotations

import threading
import time
import weakref
from functools import cached_property

from attrs import field, frozen

from agent_memory.errors import PromptTooLongError
from agent_memory.generation import Feed, Generation
from agent_memory.grammar.grammar import Grammars
from agent_memory.log.log import Log
from agent_memory.prompt.messages import as_written, copied
from agent_memory.protocols import LogitsProcessor, ModelRunner
from agent_memory.requests.calling import Calling
from agent_memory.requests.prompting import Planner
from agent_memory.scheduler.callables import Guard, guarded
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.request import Outcome, Prompt, Request
from agent_memory.store.store import Store
from agent_memory.types import Message, Reply, Sampling


@frozen
class Settings:
    """How a request is to be answered; checked."""

    sampling: Sampling = field(factory=Sampling)
    max_tokens: int = 512  #: 0: prefill only
    stop: tuple[str, ...] = ()
    logits_processors: tuple[LogitsProcessor, ...] = ()
    priority: int = 0
    timeout_s: float | None = None


class Requests:
    """Makes requests and hands them to the engine. Any thread; what it gives the engine to call runs there."""

    def __init__(self, runner: ModelRunner, store: Store, engine: Engine, callable_timeout_s: float) -> None:
        self._runner, self._store, self._engine = runner, store, engine
        self._callable_timeout_s = callable_timeout_s

    @cached_property
    def grammars(self) -> Grammars:
        """Of the model's tokenizer, which is there once the model is."""
        return Grammars(self._runner.tokenizer)

    def make(self, planner: Planner, log: Log | None, settings: Settings, calling: Calling) -> Request:
        """A request that is not yet under way. What is wrong with its prompt raises here, before any work.

        ``log``: the agent's, for the turn to be added to it. The prompt is planned now and, where the log has moved
        on by the time it starts, again.
        """
        created = time.perf_counter()
        limit, tokenizer = self._runner.context_tokens, self._runner.tokenizer

        def prepare() -> Prompt:
            prompt = planner.prompt()
            if limit is not None and len(prompt.ids) >= limit:
                raise PromptTooLongError(len(prompt.ids), limit)
            return prompt

        prompt = prepare()
        return Request(
            feed=Feed(),
            prepare=prepare,
            commit=lambda outcome, value: self._commit(planner, log, outcome, value),
            value=calling.value,
            builder=self._builder(calling),
            parser=lambda prompt: calling.parser(tokenizer, prompt),
            constraint=calling.constraint(self.grammars, prompt.ids),
            shows_marks=bool(calling.tools or tokenizer.reasoning) and not calling.is_raw,
            owner=log.name if log else None,
            agent_id=log.agent_id if log else None,
            sampling=settings.sampling,
            max_tokens=settings.max_tokens,
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

    def _commit(self, planner: Planner, log: Log | None, outcome: Outcome, value: object) -> Reply:
        """The turn into log and store, and the reply; engine thread."""
        parsed = outcome.parsed
        message = Message(
            "assistant",
            parsed.text,
            reasoning=parsed.reasoning,
            tool_calls=as_written(parsed.tool_calls),
            source=outcome.text if outcome.text != parsed.text else "",
        )
        if log is not None:
            turn = log.turn(
                planner.given,
                message,
                ids=(*outcome.prompt.ids, *outcome.kept),
                n_kv=outcome.n_kv,
                tokenizer=self._runner.tokenizer.digest,
                finish=outcome.finish,
            )
            self._store.append_turn(log.agent_id, len(log.turns), turn)
            log.append(turn)
        return Reply(
            text=parsed.text,
            reasoning=parsed.reasoning,
            tool_calls=parsed.tool_calls,
            rejected_calls=parsed.rejected_calls,
            parsed=value,
            finish=outcome.finish,
            stopped=outcome.stopped,
            usage=outcome.usage,
            message=copied([message])[0],
            token_ids=outcome.kept,
        )
