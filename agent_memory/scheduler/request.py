"""Requests, and the callbacks by which the engine asks whoever made them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from attrs import define, field, frozen

from agent_memory.errors import RequestTimeoutError, repr_of
from agent_memory.exchange.fetch import Fetch
from agent_memory.generation import Feed
from agent_memory.protocols import Constraint
from agent_memory.scheduler.callables import Guard
from agent_memory.toolcall import Parsed, ToolParser
from agent_memory.types import DivergedAt, Finish, MissCause, Reply, Sampling, Usage


@frozen
class Texts:
    """Text around a difference of two prompts: the shared text before it, then this prompt's and the computed one's."""

    shared: str = field(default="", repr=False)
    here: str = field(default="", repr=False)
    there: str = field(default="", repr=False)


@frozen
class Why:
    """Why a prompt differs from ids computed before it, and where."""

    cause: MissCause
    detail: str  #: one sentence, without any of the prompt's text
    at: DivergedAt | None = None
    texts: Texts = field(default=Texts(), repr=False)  #: for reports only, never logged
    is_alike: bool = True  #: True if the two prompts look like versions of one text at the difference


@frozen(kw_only=True)
class Prompt:
    """A request's ids, ready to be computed."""

    ids: tuple[int, ...] = field(repr=False)
    known: int = 0  #: leading ids whose KV was computed in earlier turns
    foreign: bool = False  #: True if those turns ran under another model
    n_logged: int = 0  #: ids of the agent's log whose KV was computed, whether or not the prompt begins so
    why: Why | None = None  #: why the prompt differs from the log before ``n_logged``
    #: for prompts without an agent: explains why they differ from other ids, from a position on
    explain: Callable[[int, np.ndarray[Any, Any]], Why] | None = field(default=None, eq=False, repr=False)


@frozen(kw_only=True)
class Outcome:
    """A finished row, before it becomes a Reply: the text, and the ids that the log keeps."""

    prompt: Prompt
    text: str  #: the whole text, calls and special tokens included
    parsed: Parsed  #: the parser's events
    #: output ids that the log keeps: generated ones, then the re-encoded text between them and a stop string
    kept: tuple[int, ...]
    n_kv: int  #: number of ids, of the prompt's and ``kept``, that the KV covers
    finish: Finish
    stopped: str | None  #: the stop string that ended the text
    usage: Usage


class Asker(Protocol):
    """Who made a request: gives its prompt, reads its text, and writes its turn. Engine thread.

    In order: ``prompt`` at each attempt to start it, ``parser`` once it starts, then ``value`` and ``commit`` once its
    text is complete. What any of them raises ends the request with that error, and no other.
    """

    def prompt(self) -> Prompt:
        """Return the prompt, rendered and tokenized again only if the agent's log has changed."""

    def parser(self, prompt: Sequence[int]) -> ToolParser:
        """Return a parser of the text that follows ``prompt``."""

    def value(self, outcome: Outcome) -> Any:
        """Return the text's JSON; None if the request has no schema or was cut short."""

    def commit(self, outcome: Outcome, value: Any) -> Reply:
        """Write the turn to the log and return the reply, with ``value`` as ``Reply.parsed``."""


class Awaited(Protocol):
    """An event that a request waits for, beside its turn in the line."""

    @property
    def is_coming(self) -> bool:
        """True while waiting pays. Read each tick."""

    @property
    def is_elsewhere(self) -> bool:
        """True if no step of the engine brings it nearer: the engine may sleep."""


@define(eq=False, kw_only=True)
class Request:
    """One request. Built on the caller's thread; from ``Engine.submit`` on the engine's alone, but ``is_cancelled``."""

    feed: Feed
    asker: Asker
    builder: Guard | None = None  #: the caller's class, which makes ``Reply.parsed`` of the JSON
    owner: str | None = None  #: the agent's key: its requests run one after another, its KV is moved, not copied
    agent_id: int | None = None
    is_temporary: bool = False  #: True if its KV must never be written to disk
    constraint: Constraint | None = None
    shows_marks: bool = False  #: True if special tokens are text for the parser
    sampling: Sampling = field(factory=Sampling)
    max_tokens: int = 512  #: 0: prefill only
    stop: tuple[str, ...] = ()
    logits_processors: Sequence[Guard] = ()
    priority: int = 0
    epoch: int = 0  #: how many times the model had been swapped when the prompt was tokenized
    is_exact: bool = False  #: True: decodes alone, from KV made on the prefill grid alone
    created: float = field(factory=time.perf_counter)
    deadline: float | None = None  #: perf_counter time
    is_cancelled: bool = False  #: set on any thread
    is_prefetched: bool = False
    awaits: Awaited | None = None
    fetch: Fetch | None = None  #: what the bucket was asked for it, until it starts
    is_asked: bool = False  #: True once the bucket was asked, or need not be
    _ids: tuple[Prompt, np.ndarray[Any, Any]] | None = field(default=None, init=False)

    def begin(self) -> None:
        """Start the threads of the caller's code, which end with the request. Caller's thread."""
        guards = [*self.logits_processors, *([self.builder] if self.builder is not None else [])]
        self.feed.at_end(*(guard.close for guard in guards))
        for guard in guards:
            guard.start()

    def is_idle(self, now: float) -> bool:
        """True if no tick can do anything for it at ``now``: what it awaits is elsewhere, and it has not ended."""
        is_away = self.awaits is not None and self.awaits.is_elsewhere and self.awaits.is_coming
        is_over = self.is_cancelled or (self.deadline is not None and now > self.deadline)
        return is_away and not is_over

    def ids(self, prompt: Prompt) -> np.ndarray[Any, Any]:
        """The prompt's ids as u32; made once for each prompt."""
        if self._ids is None or self._ids[0] is not prompt:
            self._ids = (prompt, np.array(prompt.ids, np.uint32))
        return self._ids[1]

    def ends(self, now: float) -> bool:
        """True if the request is over without a reply: cancelled, or beyond its deadline. Ends its feed then."""
        if self.is_cancelled:
            self.feed.cancelled()
        elif self.deadline is not None and now > self.deadline:
            state, waited = self.feed.state, now - self.created
            self.feed.fail(RequestTimeoutError(f"no reply after {waited:.2f} s (timeout_s), while in {repr_of(state)}"))
        else:
            return False
        return True
