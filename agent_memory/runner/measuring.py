"""What a codec costs in quality: the model's next tokens on exact KV and on KV that was encoded and decoded.

Only storage is measured: attention runs on the decoded rows, as after a restore.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import define, field

from agent_memory.config import Codec
from agent_memory.kvcache.coding import coding
from agent_memory.kvcache.layout import TensorSpec
from agent_memory.mlxcache import codecs, kinds
from agent_memory.mlxcache.kinds import MLXKV
from agent_memory.protocols import Divergence

#: Changes the rows of one tensor, (heads, n, dim) -> the same shape and dtype.
Recode = Callable[[TensorSpec, mx.array], mx.array]

STEP = 256  #: tokens compared at a time; bounds the memory that logits of a large vocabulary take


class Coder:
    """Encodes rows as the store does, and decodes them; counts values, bytes and seconds."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.n_values = self.exact_bytes = self.coded_bytes = 0
        self.encode_s = self.decode_s = 0.0

    def __call__(self, spec: TensorSpec, rows: mx.array) -> mx.array:
        """Return ``rows`` as a restore would give them back."""
        form = coding(spec, self._codec)
        self.n_values += rows.size
        self.exact_bytes += rows.nbytes
        if form is None:
            self.coded_bytes += rows.nbytes
            return rows
        rows = mx.contiguous(rows)
        mx.eval(rows)
        start = time.perf_counter()
        encoded = codecs.encode(rows, form)
        mx.eval(encoded)
        host = np.array(encoded)
        middle = time.perf_counter()
        decoded = codecs.decode(host, form, spec.dtype)
        mx.eval(decoded)
        self.encode_s += middle - start
        self.decode_s += time.perf_counter() - middle
        self.coded_bytes += host.nbytes
        return decoded


def recoded(kv: MLXKV, recode: Recode) -> MLXKV:
    """Return a copy of ``kv`` with each tensor's rows replaced by ``recode`` of them."""
    twin = kv.copy(kv.n_tokens)
    assert twin is not None
    specs = {"full": iter(kv.layout.tensors), "window": iter(kv.layout.windows)}
    for cache, kind in zip(kinds.leaves(twin.caches), kv.layout.kinds, strict=True):
        if kind not in specs:
            continue
        n_rows = cache.offset - getattr(cache, "start", 0)
        for name in ("keys", "values"):
            array, spec = getattr(cache, name), next(specs[kind])
            if array.size:
                array[0, :, :n_rows] = recode(spec, array[0, :, :n_rows])
                mx.eval(array)
    return twin


@define
class Reference:
    """A text whose context is computed: its exact KV, and what the model predicts after each of the ids behind it."""

    context: tuple[int, ...]
    ids: tuple[int, ...]  #: behind the context; the last one is fed to nothing
    kv: MLXKV = field(repr=False)  #: exact KV of the context
    _kept: mx.array | None = field(default=None, repr=False)

    def predictions(self, model: Any) -> Iterator[mx.array]:
        """Yield log probabilities, (``STEP`` or fewer, vocabulary). Kept if one step is all: more are too large."""
        if self._kept is not None:
            yield self._kept
            return
        twin = self.kv.copy(self.kv.n_tokens)
        assert twin is not None
        for fed in _steps(self.ids):
            found = _log_probabilities(model, fed, twin.caches)
            if len(self.ids) - 1 <= STEP:
                mx.eval(found)
                self._kept = found
            yield found


class References:
    """The newest text that was measured, for the next codec on it. Engine thread."""

    def __init__(self) -> None:
        self._newest: Reference | None = None

    def of(
        self,
        ids: Sequence[int],
        n_context: int,
        empty: Callable[[], MLXKV],
        prefill: Callable[[MLXKV, Sequence[int]], object],
    ) -> Reference:
        """Return the reference of a text; computes the KV of its context where the newest is of another text."""
        context, rest = tuple(ids[:n_context]), tuple(ids[n_context:])
        found = self._newest
        if found is None or (found.context, found.ids) != (context, rest):
            found = self._newest = None  # its KV is freed before the next one's is computed
            kv = empty()
            for start in range(0, n_context, STEP):
                prefill(kv, context[start : start + STEP])
            found = self._newest = Reference(context, rest, kv)
        return found

    def drop(self) -> None:
        """Free the newest reference's KV."""
        self._newest = None


def _steps(ids: Sequence[int]) -> Iterator[mx.array]:
    for start in range(0, len(ids) - 1, STEP):
        yield mx.array([list(ids[start : min(start + STEP, len(ids) - 1)])])


def diverge(model: Any, reference: Reference, other: MLXKV, coder: Coder) -> Divergence:
    """Feed all ids but the last to ``other`` KV, and compare the predictions of each next token. Changes ``other``."""
    ids = reference.ids
    n = len(ids) - 1
    kl = np.zeros(n)
    agreed, nll = 0, np.zeros(2)
    for start, fed, p in zip(range(0, n, STEP), _steps(ids), reference.predictions(model), strict=True):
        wanted = mx.array(list(ids[start + 1 : min(start + STEP, n) + 1]))[:, None]
        q = _log_probabilities(model, fed, other.caches)
        divergence = mx.sum(mx.exp(p) * (p - q), axis=-1)
        same = mx.sum(mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1))
        losses = [-mx.sum(mx.take_along_axis(x, wanted, axis=-1)) for x in (p, q)]
        mx.eval(divergence, same, losses)
        kl[start : start + STEP] = np.array(divergence)
        agreed += int(same.item())
        nll += [float(loss.item()) for loss in losses]
    return Divergence(
        n_tokens=n,
        kl=float(kl.sum()),
        worst_kl=float(kl.max()),
        agreed=agreed,
        loss=float(nll[0]),
        coded_loss=float(nll[1]),
        n_values=coder.n_values,
        exact_bytes=coder.exact_bytes,
        coded_bytes=coder.coded_bytes,
        encode_s=coder.encode_s,
        decode_s=coder.decode_s,
    )


def _log_probabilities(model: Any, ids: mx.array, caches: list[Any]) -> mx.array:
    logits = model(ids, cache=caches)[0].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
