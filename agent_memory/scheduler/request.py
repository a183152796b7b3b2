"""What the engine is asked to do, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import define, field, frozen

from agent_memory.errors import RequestTimeoutError
from agent_memory.generation import Feed
from agent_memory.protocols import Constraint
from agent_memory.scheduler.callables import Guard
from agent_memory.toolcall import Parsed, ToolParser
from agent_memory.types import DivergedAt, Finish, MissCause, Reply, Sampling, Usage


@frozen
class Why:
    """Why a prompt leaves what was computed before it, and where."""

    cause: MissCause
    detail: str  #: one sentence, without any of the prompt's text
    at: DivergedAt | None = None


@frozen(kw_only=True)
class Prompt:
    """A request's ids, ready to be computed."""

    ids: tuple[int, ...] = field(repr=False)
    known: int = 0  #: how many of the leading ids had their KV computed in earlier turns
    foreign: bool = False  #: whether those turns ran under another model
    n_logged: int = 0  #: how many ids of the agent's log had their KV computed, whether or not the prompt begins so
    why: Why | None = None  #: why the prompt leaves the log before ``n_logged``
    #: for prompts without an agent: why they leave other ids at a position; both from that position on
    explain: Callable[[int, Sequence[int]], Why] | None = field(default=None, eq=False, repr=False)


@frozen(kw_only=True)
class Outcome:
    """A finished row, before it becomes a Reply: the text, and the ids that the log keeps."""

    prompt: Prompt
    text: str  #: all of it, calls and marks included
    parsed: Parsed  #: what is in the text
    kept: tuple[
        int, ...
    ]  #: output ids that the log keeps: generated ones, then the re-encoded rest before a stop string
    n_kv: int  #: how many of prompt ids + kept the KV covers
    finish: Finish
    stopped: str | None  #: the stop string that ended the text
    usage: Usage


@define(eq=False, kw_only=True)
class Request:
    """One request on its way. Built on the caller's thread; from then on the engine's."""

    feed: Feed
    prepare: Callable[[], Prompt]  #: renders and tokenizes, again only when the log has moved on
    commit: Callable[[Outcome, Any], Reply]  #: writes the log, makes the reply with this value; engine thread
    value: Callable[[Outcome], Any] = field(default=lambda outcome: None)  #: the reply's JSON; None: it has none
    builder: Guard | None = None  #: the caller's code, which makes the value of that JSON
    owner: str | None = None  #: the agent's key: its requests run one after another, its KV is moved, not copied
    agent_id: int | None = None
    parser: Callable[[Sequence[int]], ToolParser] = field(default=lambda prompt: ToolParser((), reasoning=None))
    constraint: Constraint | None = None
    shows_marks: bool = False  #: whether special tokens are text for the parser
    sampling: Sampling = field(factory=Sampling)
    max_tokens: int = 512  #: 0: prefill only
    stop: tuple[str, ...] = ()
    logits_processors: Sequence[Guard] = ()
    priority: int = 0
    created: float = field(factory=time.perf_counter)
    deadline: float | None = None  #: perf_counter time
    is_cancelled: bool = False
    is_prefetched: bool = False
    is_held: Callable[[], bool] | None = None  #: whether waiting for another row's KV still pays; asked each tick
    _ids: tuple[Prompt, np.ndarray[Any, Any]] | None = field(default=None, init=False)

    def begin(self) -> None:
        """Start the threads of the caller's code, which end with the request. Caller's thread."""
        guards = [*self.logits_processors, *([self.builder] if self.builder is not None else [])]
        self.feed.at_end(*(guard.close for guard in guards))
        for guard in guards:
            guard.start()

    def ids(self, prompt: Prompt) -> np.ndarray[Any, Any]:
        """The prompt's ids as u32; made once for each prompt."""
        if self._ids is None or self._ids[0] is not prompt:
            self._ids = (prompt, np.array(prompt.ids, np.uint32))
        return self._ids[1]

    def ends(self, now: float) -> bool:
        """Whether it is over without a reply: ended here and now if it was cancelled or its time is up."""
        if self.is_cancelled:
            self.feed.cancelled()
        elif self.deadline is not None and now > self.deadline:
            state, waited = self.feed.state, now - self.created
            self.feed.fail(RequestTimeoutError(f"no reply after {waited:.2f} s (timeout_s), while in {state!r}"))
        else:
            return False
        return True
