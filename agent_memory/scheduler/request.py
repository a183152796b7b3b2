"""What the engine is asked to do, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from attrs import define, field, frozen

from agent_memory.generation import Feed
from agent_memory.protocols import LogitsProcessor
from agent_memory.types import Finish, Reply, Sampling, Usage


@frozen(kw_only=True)
class Prompt:
    """A request's ids, ready to be computed."""

    ids: tuple[int, ...] = field(repr=False)
    known: int = 0  #: how many of the leading ids had their KV computed in earlier turns
    foreign: bool = False  #: whether those turns ran under another model


@frozen(kw_only=True)
class Outcome:
    """A finished row, before it becomes a Reply: the text, and the ids that the log keeps."""

    prompt: Prompt
    text: str
    kept: tuple[
        int, ...
    ]  #: output ids that the log keeps: generated ones, then the re-encoded rest before a stop string
    n_kv: int  #: how many of prompt ids + kept the KV covers
    finish: Finish
    usage: Usage


@define(eq=False, kw_only=True)
class Request:
    """One request on its way. Built on the caller's thread; from then on the engine's."""

    feed: Feed
    prepare: Callable[[], Prompt]  #: renders and tokenizes; called by the engine when ``prompt`` is None
    commit: Callable[[Outcome], Reply]  #: writes the log, makes the reply; engine thread
    owner: str | None = None  #: the agent's key: its requests run one after another, its KV is moved, not copied
    agent_id: int | None = None
    prompt: Prompt | None = None
    sampling: Sampling = field(factory=Sampling)
    max_tokens: int = 512  #: 0: prefill only
    stop: tuple[str, ...] = ()
    logits_processors: Sequence[LogitsProcessor] = ()
    priority: int = 0
    created: float = field(factory=time.perf_counter)
    deadline: float | None = None  #: perf_counter time
    is_cancelled: bool = False
