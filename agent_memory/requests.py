"""From what a caller asks to a request that runs, and from its outcome to the log and the reply."""

from __future__ import annotations

import time
from collections.abc import Sequence

from attrs import field, frozen

from agent_memory.agent import Log, Planner
from agent_memory.errors import PromptTooLongError, UnsupportedParameterError
from agent_memory.generation import Feed, Generation
from agent_memory.protocols import LogitsProcessor, ModelRunner, Tokenizer
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.request import Outcome, Prompt, Request
from agent_memory.store.store import Store
from agent_memory.toolcall import ToolParser
from agent_memory.tools import as_tools
from agent_memory.types import Message, Reply, Sampling, Tool


@frozen(kw_only=True)
class Settings:
    """How a request is to be answered; checked."""

    sampling: Sampling = field(factory=Sampling)
    max_tokens: int = 512  #: 0: prefill only
    stop: tuple[str, ...] = ()
    logits_processors: tuple[LogitsProcessor, ...] = ()
    priority: int = 0
    timeout_s: float | None = None


@frozen
class Calling:
    """What a request says of tools. ``max_calls``: generation ends after so many."""

    tools: tuple[Tool, ...] = ()
    max_calls: int | None = None
    is_raw: bool = False  #: no template, so neither tools nor marks of reasoning

    def parser(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> ToolParser:
        """A parser of the text that follows ``prompt``."""
        marks = None if self.is_raw else tokenizer.reasoning
        return ToolParser(
            self.tools,
            tokenizer.tool_format if self.tools and tokenizer.has_template and tokenizer.knows_tools else None,
            reasoning=marks,
            in_reasoning=marks is not None and _ends_inside(prompt, tokenizer, marks),
            max_calls=self.max_calls,
        )


def calling_of(
    tools: object,
    tool_choice: object,
    parallel_tool_calls: bool,
    schema: object,
    *,
    kept: tuple[Tool, ...] = (),
    raw: bool = False,
) -> Calling:
    """What the arguments mean, with the agent's own tools (``kept``) where none are given.

    Raises UnsupportedParameterError; ``schema`` and a forced choice need constrained decoding, which is not built yet.
    """
    given = as_tools(tools)
    if tool_choice not in ("auto", "none"):
        raise UnsupportedParameterError(
            f"tool_choice={tool_choice!r} is not supported in this version; known: 'auto', 'none'"
        )
    if schema is not None:
        raise UnsupportedParameterError("schema= is not supported in this version")
    if not isinstance(parallel_tool_calls, bool):
        raise UnsupportedParameterError(f"parallel_tool_calls must be a bool, got {parallel_tool_calls!r}")
    if raw and given:
        raise UnsupportedParameterError("raw=True takes no tools: they reach the model through the chat template")
    is_asked = tool_choice == "auto" and not raw
    return Calling(given or kept if is_asked else (), None if parallel_tool_calls else 1, raw)


class Requests:
    """Makes requests and hands them to the engine. Any thread; what it gives the engine to call runs there."""

    def __init__(self, runner: ModelRunner, store: Store, engine: Engine) -> None:
        self._runner, self._store, self._engine = runner, store, engine

    def submit(self, planner: Planner, log: Log | None, settings: Settings, calling: Calling) -> Generation:
        """Queue a request. What is wrong with its prompt raises here, before any work.

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

        prepare()
        request = Request(
            feed=Feed(),
            prepare=prepare,
            commit=lambda outcome: self._commit(planner, log, outcome),
            parser=lambda prompt: calling.parser(tokenizer, prompt),
            shows_marks=bool(calling.tools or tokenizer.reasoning) and not calling.is_raw,
            owner=log.name if log else None,
            agent_id=log.agent_id if log else None,
            sampling=settings.sampling,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            logits_processors=settings.logits_processors,
            priority=settings.priority,
            created=created,
            deadline=None if settings.timeout_s is None else created + settings.timeout_s,
        )
        self._engine.submit(request)
        return Generation(request.feed, lambda: self._engine.cancel(request))

    def _commit(self, planner: Planner, log: Log | None, outcome: Outcome) -> Reply:
        """The turn into log and store, and the reply; engine thread."""
        parsed = outcome.parsed
        message = Message(
            "assistant",
            parsed.text,
            reasoning=parsed.reasoning,
            tool_calls=parsed.tool_calls,
            source=outcome.text if outcome.text != parsed.text else "",
        )
        if log is not None:
            turn = log.turn(planner.given, outcome, message, self._runner.tokenizer.digest)
            self._store.append_turn(log.agent_id, len(log.turns), turn)
            log.append(turn)
        return Reply(
            text=parsed.text,
            reasoning=parsed.reasoning,
            tool_calls=parsed.tool_calls,
            rejected_calls=parsed.rejected_calls,
            finish=outcome.finish,
            stopped=outcome.stopped,
            usage=outcome.usage,
            message=message,
            token_ids=outcome.kept,
        )


def _ends_inside(prompt: Sequence[int], tokenizer: Tokenizer, marks: tuple[str, str]) -> bool:
    """Whether the template opened the reasoning itself: whether the prompt's end is the opening mark."""
    opening = tokenizer.key(tokenizer.encode(marks[0]))
    tail = tokenizer.key(prompt[-len(opening) - 8 :])
    blanks = tokenizer.key(tokenizer.encode("\n")) + " \n"
    return tail.rstrip(blanks).endswith(opening)
