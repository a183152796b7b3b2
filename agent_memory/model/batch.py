"""The one adapter of mlx-lm's batching: everything this library needs from ``GenerationBatch`` stands here.

mlx-lm's own way from prompt to batch copies a row's KV several times and gives its first token one step late. Here a
row is prefilled alone, its first token is read as soon as it is sampled, and its buffers are handed over: a batch of
one decodes on the row's own caches, a second row turns them into batch caches with their spare room
(benchmarks/handover.py has the figures). Private names of mlx-lm that are used: ``GenerationBatch.prompt_cache``,
``.tokens``, ``.uids``, ``BatchKVCache._idx``; tests/model/test_batch.py is their contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from attrs import define, field
from mlx_lm.generate import BatchGenerator, GenerationBatch, StopSequences
from mlx_lm.models.cache import make_prompt_cache

from agent_memory.kvcache import kinds
from agent_memory.kvcache.kinds import MLXKV
from agent_memory.kvcache.layout import Layout
from agent_memory.model.sampling import Processors, Sampler, greedy, make_sampler
from agent_memory.protocols import KV, LogitsProcessor, Source
from agent_memory.types import Sampling

_NO_LIMIT = 2**31 - 1
#: mlx keeps freed buffers; mlx-lm empties that cache every 512 steps, and so do we.
_CLEAR_STEPS = 512


@define
class _Row:
    """A row that has its first token and joins the batch at the next step."""

    number: int
    kv: MLXKV
    ids: list[int]
    token: int
    sampler: Sampler
    processors: Processors
    n_prompt: int = field(default=0)


class MLXBatch:
    """Rows of one MLX model that decode together. Built and used on the engine thread alone."""

    def __init__(self, model: Any, layout: Layout, *, clears: bool = False) -> None:
        self._model, self._layout, self._clears = model, layout, clears
        # Only for its stream and, on Metal, the wired limit while it lives; rows never pass through its queue.
        self._generator = BatchGenerator(model)
        self._waiting: dict[int, _Row] = {}
        self._rows: dict[int, _Row] = {}
        self._groups: list[GenerationBatch] = []
        self._steps = 0

    def empty(self) -> MLXKV:
        """Fresh caches of this model."""
        return MLXKV(make_prompt_cache(self._model), self._layout)

    def restore(self, source: Source) -> MLXKV:
        """Caches filled from ``source``; O(its bytes)."""
        return MLXKV(kinds.fill(self._layout, source), self._layout, source.n_tokens)

    def prefill(self, kv: KV, ids: Sequence[int]) -> None:
        """Feed ``ids`` to one row; logits are never computed (mlx is lazy)."""
        mine = _own(kv)
        with mx.stream(self._generator.stream):
            self._model(mx.array([list(ids)]), cache=mine.caches)
            mx.eval([c.state for c in mine.caches])
        mine.n_tokens += len(ids)
        if self._clears:
            mx.clear_cache()

    def insert(
        self,
        row: int,
        kv: KV,
        ids: Sequence[int],
        *,
        sampling: Sampling,
        logits_processors: Sequence[LogitsProcessor] = (),
    ) -> int:
        """Feed the last id alone, sample the first token, and keep the row for the next step."""
        mine, sampler = _own(kv), make_sampler(sampling)
        processors = Processors(sampling, logits_processors)
        with mx.stream(self._generator.stream):
            logits = self._model(mx.array([[ids[-1]]]), cache=mine.caches)[:, -1, :]
            if processors.chain:
                context = mx.array(list(ids))
                for processor in processors.chain:
                    logits = processor(context, logits)
            if sampler is not greedy:
                logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            token: Any = sampler(logits).item()
        mine.n_tokens += 1
        known = list(ids) if processors.chain else []
        self._waiting[row] = _Row(row, mine, known, token, sampler, processors, n_prompt=mine.n_tokens)
        return int(token)

    def step(self) -> list[tuple[int, int]]:
        """Join the waiting rows, then one decode step of every row."""
        out: list[tuple[int, int]] = []
        with mx.stream(self._generator.stream):
            for number in list(self._waiting):
                self._join(self._waiting.pop(number))
            for group in self._groups:
                out.extend((r.uid, r.token) for r in group.next())
        self._steps += 1
        if self._steps % _CLEAR_STEPS == 0:
            mx.clear_cache()
        return out

    def error(self, row: int) -> BaseException | None:
        """What a user's callable of this row raised."""
        found = self._rows.get(row) or self._waiting.get(row)
        return found.processors.error if found else None

    def remove(self, row: int) -> MLXKV:
        """Take a row out. Alone in its group: handed back as it is; else cut out of the batch arrays (one copy)."""
        if waiting := self._waiting.pop(row, None):
            return waiting.kv
        mine = self._rows.pop(row)
        for group in self._groups:
            if row not in group.uids:
                continue
            index = group.uids.index(row)
            n_tokens = mine.n_prompt + len(group.tokens[index]) - len(mine.ids)
            with mx.stream(self._generator.stream):
                if len(group.uids) == 1:
                    caches = list(group.prompt_cache)
                    self._groups.remove(group)
                else:
                    caches = [kinds.take(c, index) for c in group.prompt_cache]
                    mx.eval([c.state for c in caches])
                    group.filter([i for i in range(len(group.uids)) if i != index])
                    if len(group.uids) == 1:
                        group.prompt_cache = [kinds.from_batch(c) for c in group.prompt_cache]
            return MLXKV(caches, self._layout, n_tokens)
        raise KeyError(row)

    def close(self) -> None:
        """Drop all rows; gives the wired limit back on Metal."""
        self._waiting.clear()
        self._rows.clear()
        self._groups.clear()
        self._generator.close()

    def _join(self, row: _Row) -> None:
        group = GenerationBatch(
            self._model,
            [row.number],
            mx.array([row.token]),
            row.kv.caches,
            [list(row.ids)],
            [row.sampler],
            greedy,
            [row.processors.chain],
            [StopSequences()],
            [_NO_LIMIT],
        )
        self._rows[row.number] = row
        row.kv = MLXKV([], self._layout)  # the group owns the caches now
        host = next((g for g in self._groups if kinds.can_batch(g.prompt_cache)), None)
        if host is None or not kinds.can_batch(group.prompt_cache):
            self._groups.append(group)
            return
        for one in (host, group):
            if len(one.uids) == 1:
                one.prompt_cache = [kinds.to_batch(c) for c in one.prompt_cache]
        host.extend(group)


def _own(kv: KV) -> MLXKV:
    assert isinstance(kv, MLXKV), f"a KV of another runner: {type(kv).__name__}"
    return kv
