"""Sampling on MLX arrays: one sampler and one list of logits processors per row, with a random key of the row's own.

mlx's global random state is never read nor advanced: a seeded row draws the same tokens whatever shares its batch,
and the host's own random numbers stay as they were.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_repetition_penalty

from agent_memory.protocols import Constraint, LogitsProcessor
from agent_memory.runner.processed import returned
from agent_memory.types import Sampling

#: At a lower temperature the draw is the most probable token anyway, and the inverse overflows.
_COLDEST, _HOTTEST = 1e-5, 1e30
#: A smaller value vanishes in float32; no vocabulary's best token is this improbable.
_LEAST_TOP_P = 1e-30
#: The largest penalty, and the largest inverse: beyond it logits become infinite.
_MOST_PENALTY = 1e4
_LONGEST = 2**31 - 1  #: what mlx takes as an index


def greedy(logprobs: mx.array) -> mx.array:
    """Return the most probable token of each row; one function for all greedy rows, so that one call samples them."""
    return mx.argmax(logprobs, axis=-1)


class Drawn:
    """The sampler of one row that draws: ``(1, vocab)`` log-probabilities to a ``(1,)`` token.

    Each draw has a key of its own. Filters as mlx-lm applies them.
    """

    __slots__ = ("_keys", "_sampling", "_scale")

    def __init__(self, sampling: Sampling) -> None:
        seed = int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed
        self._sampling, self._scale = sampling, 1.0 / min(sampling.temperature, _HOTTEST)
        self._keys = [mx.random.key(seed % 2**64)]  # the next draw's; behind it, those after draws not yet kept

    def __call__(self, logprobs: mx.array) -> mx.array:
        token = self._draw(logprobs)
        self.keep(1)
        return token

    def several(self, logprobs: mx.array) -> mx.array:
        """Sample ``(n, vocab)``, one place after another, as n calls would; ``keep`` says how many of them count."""
        return mx.concatenate([self._draw(logprobs[place : place + 1]) for place in range(logprobs.shape[0])])

    def keep(self, n_draws: int) -> None:
        """Go on behind the first ``n_draws`` of the newest draws."""
        self._keys = [self._keys[n_draws]]

    def _draw(self, logprobs: mx.array) -> mx.array:
        sampling = self._sampling
        key, draw = mx.random.split(self._keys[-1])
        self._keys.append(key)
        if sampling.top_p < 1.0:
            logprobs = apply_top_p(logprobs, max(sampling.top_p, _LEAST_TOP_P))
        if sampling.min_p > 0.0:
            logprobs = apply_min_p(logprobs, sampling.min_p)
        if 0 < sampling.top_k < logprobs.shape[-1]:
            logprobs = apply_top_k(logprobs, sampling.top_k)
        return mx.random.categorical(logprobs.astype(mx.float32) * self._scale, key=draw)


Sampler = Drawn | Callable[[mx.array], mx.array]


def make_sampler(sampling: Sampling) -> Sampler:
    """Return the sampler of one row: ``(1, vocab)`` log-probabilities to a ``(1,)`` token."""
    return greedy if sampling.temperature < _COLDEST else Drawn(sampling)


class Processors:
    """The logits processors of one row. An error of theirs is kept in ``error``; it never reaches the batch.

    User callables get host arrays; how long they may take is the caller's business (scheduler/callables.py).
    ``reads_ids``: True if any of them reads ids before the newest.
    """

    __slots__ = ("_constraint", "_is_first", "_user", "chain", "error", "reads_ids")

    def __init__(
        self, sampling: Sampling, user: Sequence[LogitsProcessor] = (), constraint: Constraint | None = None
    ) -> None:
        self.error: BaseException | None = None
        self._user, self._constraint, self._is_first = tuple(user), constraint, True
        self.chain: list[Callable[[mx.array, mx.array], mx.array]] = []
        if sampling.repetition_penalty != 1.0:
            penalty = min(max(sampling.repetition_penalty, 1 / _MOST_PENALTY), _MOST_PENALTY)
            self.chain.append(make_repetition_penalty(penalty, min(sampling.repetition_context, _LONGEST)))
        if self._user:
            self.chain.append(self._process)
        self.reads_ids = bool(self.chain)
        if constraint is not None:
            self.chain.append(self._constrain)

    @property
    def can_look_ahead(self) -> bool:
        """True if logits of several places can be processed at once: only a constraint, or nothing, is to be asked."""
        return not self.reads_ids and self.error is None

    def several(self, token: int, draft: Sequence[int], logits: mx.array) -> mx.array:
        """Process logits of the places after ``token`` and after each of ``draft``: (1 + len(draft), vocab).

        Returns the first of them, at least one, as far as the constraint looks ahead. ``confirm`` follows.
        """
        if self._constraint is None or self.error is not None:
            return logits
        mx.async_eval(logits)
        try:
            self._constraint.accept(token)
            words = self._constraint.mask()
            masks = [None if words is None else words.copy(), *self._constraint.masks(draft)]
        except Exception as error:  # noqa: BLE001 - a reply that left its grammar: its row reports it
            self.error = error
            return logits[:1]
        rows = [
            logits[place] if one is None else mx.where(allowed(one, logits.shape[-1]), logits[place], -mx.inf)
            for place, one in enumerate(masks)
        ]
        return mx.stack(rows)

    def confirm(self, ids: Sequence[int]) -> None:
        """Record the ids of a draft that were right."""
        if self._constraint is None or self.error is not None:
            return
        try:
            for token in ids:
                self._constraint.accept(token)
        except Exception as error:  # noqa: BLE001 - as above
            self.error = error

    def _process(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self.error is not None:
            return logits
        ids: Any = tokens.tolist()
        values = np.array(logits[0].astype(mx.float32))
        try:
            for processor in self._user:
                values = returned(processor(ids, values), values.shape)
        except Exception as error:  # noqa: BLE001 - a user's code: its row reports it, the batch goes on
            self.error = error
            return logits
        return mx.array(values, dtype=logits.dtype)[None]

    def _constrain(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Set the logits of forbidden tokens to -inf. The mask is made while the forward pass runs."""
        assert self._constraint is not None
        if self.error is not None:
            return logits
        mx.async_eval(logits)
        try:
            if not self._is_first:  # the newest id is still the prompt's last
                self._constraint.accept(int(tokens[-1].item()))
            self._is_first = False
            words = self._constraint.mask()
        except Exception as error:  # noqa: BLE001 - a reply that left its grammar: its row reports it
            self.error = error
            return logits
        return logits if words is None else mx.where(allowed(words, logits.shape[-1]), logits, -mx.inf)


def n_right_of(draft: Sequence[int], sampled: Sequence[int]) -> int:
    """Return how many ids of a draft were sampled at their places; fewer where the last sample is needed."""
    n = 0
    while n < min(len(draft), len(sampled) - 1) and draft[n] == sampled[n]:
        n += 1
    return n


def allowed(words: np.ndarray[Any, Any], n_vocab: int) -> mx.array:
    """Return a mask's words as (n_vocab,) bool; padding ids of the vocabulary, beyond the words, are forbidden."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=min(n_vocab, 32 * len(words)))
    return mx.array(np.pad(bits, (0, n_vocab - len(bits))).view(np.bool_))
