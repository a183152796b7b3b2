"""``Memory.best_of``: several replies to one message, of which the best becomes the agent's turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from agent_memory.errors import ConfigError, UnsupportedParameterError, repr_of
from agent_memory.log.log import Log
from agent_memory.requests.asking import Asking
from agent_memory.requests.batching import replies
from agent_memory.requests.options import Settings
from agent_memory.types import Reply, Usage, weakest

_MOST = 1_000  #: replies that one call may draw: each is a request, and a fork in memory


def best_of(
    asking: Asking, log: Log, message: object, n: object, key: Callable[[Reply], Any], settings: Settings
) -> Reply:
    """Return the reply with the largest ``key``, of ``n`` replies with different seeds; the first of equal ones.

    - The prompt, except its last id, is computed once; each reply starts from that id. The replies decode together.
    - Each reply is the turn of a temporary fork. The best one's turn becomes the agent's, its KV with it.
    - After any exception, also one of ``key``, the agent is unchanged.
    """
    asking.ensure_open()
    asking.ensure_writable(log, "add the best reply to an agent")
    seeded = _seeded(n, key, settings)
    version, forks = asking.versions.scratch(log, len(seeded))
    try:
        usage = asking.prepare(message, forks[0], settings)
        found = replies(asking.start_all([(message, *one) for one in zip(forks, seeded, strict=True)]))
        best = _largest([key(reply) for reply in found])
        added = asking.versions.adopt(log, forks[best], version)
    finally:
        asking.versions.discard(forks)
    asking.note(log, settings, added)
    return attrs.evolve(found[best], usage=_joined(usage, found[best].usage))


def _seeded(n: object, key: object, settings: Settings) -> Sequence[Settings]:
    """Return the settings of each request."""
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= _MOST:
        raise UnsupportedParameterError(f"n must be an int from 1 to {_MOST:,}, got {repr_of(n)}")
    if not callable(key):
        raise UnsupportedParameterError(f"key must be a function of a Reply, got {repr_of(key)}")
    sampling = settings.sampling
    if sampling.is_greedy and n > 1:
        raise ConfigError(f"best_of draws {n} replies, and greedy sampling makes {n} equal ones: give a temperature=")
    seeds = [None if sampling.seed is None else sampling.seed + i for i in range(n)]
    return [attrs.evolve(settings, sampling=attrs.evolve(sampling, seed=seed)) for seed in seeds]


def _largest(scores: Sequence[Any]) -> int:
    """Return the number of the largest score, of equal ones the first."""
    try:
        return max(range(len(scores)), key=scores.__getitem__)
    except TypeError as error:
        raise UnsupportedParameterError(f"key must give values that can be compared: {error}") from error


def _joined(prompt: Usage, reply: Usage) -> Usage:
    """Return the usage of a reply, with the prompt that was computed once for all replies."""
    return attrs.evolve(
        reply,
        cached_tokens=prompt.cached_tokens,
        computed_tokens=reply.prompt_tokens - prompt.cached_tokens,
        tier=prompt.tier,
        tier_tokens=prompt.tier_tokens,
        exactness=weakest(prompt.exactness, reply.exactness),
        miss=prompt.miss,
        miss_detail=prompt.miss_detail,
        diverged_at=prompt.diverged_at,
        ttft_s=prompt.ttft_s + reply.ttft_s,
        restore_s=prompt.restore_s,
        prefill_s=prompt.prefill_s + reply.prefill_s,
    )
