"""One row of an MLX batch: its caches until it joins a lane, and how its tokens are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from attrs import define

from agent_memory.runner.sampling import Drawn, Processors, Sampler, greedy


@define
class BatchRow:
    """One row. It waits to join a lane as long as it has ``caches``."""

    number: int
    group: int
    caches: list[Any]
    n_kv: int  #: tokens in the caches when the row was inserted
    ids: list[int]  #: the ids so far that logits processors read, the pending one left out; empty where none reads them
    pending: int  #: its last prompt id, or its first token
    sampler: Sampler
    processors: Processors
    marks: dict[int, list[Any]]  #: snapshots by number of tokens, as in MLXKV
    is_begun: bool = False  #: True if it joins with its first token
    n_skip: int = 1  #: ids that the lane returns although the caller has them: the prompt's last id, or a first token

    def first(self, ids: Sequence[int], logits: mx.array) -> mx.array:
        """Return what it samples after its prompt ``ids``, of (1, vocab) logits; lazy."""
        context = mx.array(list(ids if self.processors.reads_ids else ids[-1:]), mx.uint32)
        for process in self.processors.chain:
            logits = process(context, logits)
        sampled: mx.array = self.sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        return sampled

    def sampled(self, ids: list[int], logits: mx.array) -> mx.array:
        """Return what it samples after each of ``ids``, as far as its constraint looks ahead; lazy."""
        own = self.processors.several(ids[0], ids[1:], logits[: len(ids)])
        logprobs = own - mx.logsumexp(own, axis=-1, keepdims=True)
        return self.sampler.several(logprobs) if isinstance(self.sampler, Drawn) else greedy(logprobs)
