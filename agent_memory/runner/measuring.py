"""What a codec costs in quality: the model's next tokens on exact KV and on KV that was encoded and decoded.

Only storage is measured: attention runs on the decoded rows, as after a restore.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

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


def diverge(model: Any, exact: MLXKV, other: MLXKV, ids: Sequence[int], coder: Coder) -> Divergence:
    """Feed all ``ids`` but the last to both, and compare their predictions of the next token. Changes both."""
    n = len(ids) - 1
    kl = np.zeros(n)
    agreed, nll = 0, np.zeros(2)
    for start in range(0, n, STEP):
        fed = mx.array([list(ids[start : min(start + STEP, n)])])
        wanted = mx.array(list(ids[start + 1 : min(start + STEP, n) + 1]))[:, None]
        p, q = (_log_probabilities(model, fed, kv.caches) for kv in (exact, other))
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
