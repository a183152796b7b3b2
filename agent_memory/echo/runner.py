"""EchoRunner: a deterministic stand-in for a model, for tests of programs that use this library.

It needs no MLX and no weights, and answers with the last user message. It is stricter than a real model: it reads the
conversation back out of its KV arrays, whose rows form a hash chain, so one wrong byte of KV gives a visibly wrong
reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_memory.config import is_text
from agent_memory.echo.batch import Calls, EchoBatch, Replier
from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.errors import ConfigError
from agent_memory.kvcache.layout import ITEM_BYTES, Kind, Layout, TensorSpec


class EchoRunner:
    """A ModelRunner that answers with the last user message, or with ``reply``.

    ``reply`` is a text, or a callable asked once per request. ``delay_s`` is slept in every prefill call and every
    step. ``heads``, ``dim`` and ``dtype`` (U8, U16, U32) shape its rows: integers, which no lossy codec encodes.
    ``unstorable`` makes the KV of a kind that can be neither stored nor cut. ``weights_bytes`` is what it says of
    its weights, of which it has none. Raises ConfigError.
    """

    def __init__(
        self,
        reply: str | Replier | None = None,
        *,
        context_tokens: int = 32_768,
        layers: int = 2,
        heads: int = 2,
        dim: int = 8,
        dtype: str = "U32",
        bos: bool = False,
        identity: str = "echo",
        prefill_tokens: int = 256,
        delay_s: float = 0.0,
        unstorable: bool = False,
        weights_bytes: int = 1 << 30,
    ) -> None:
        sizes = {"layers": layers, "heads": heads, "dim": dim, "context_tokens": context_tokens,
                 "prefill_tokens": prefill_tokens}  # fmt: skip
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} must be an int, got {value!r:.80}")
        if dtype not in ("U8", "U16", "U32"):
            raise ConfigError(f"its rows are numbers of a hash chain: dtype must be U8, U16 or U32, not {dtype!r}")
        row_bytes = dim * ITEM_BYTES[dtype]
        if row_bytes < 16 or row_bytes % 8:
            raise ConfigError(f"a row of {dim} x {dtype} is {row_bytes} bytes; it must be 16 or more, in steps of 8")
        if not is_text(identity):
            raise ConfigError(f"identity must be a str of valid Unicode, got {identity!r}")
        if min(layers, heads, context_tokens, prefill_tokens) < 1:
            raise ConfigError("layers, heads, context_tokens and prefill_tokens must be 1 or more")
        self.reply = reply
        self.delay_s = delay_s
        self.calls = Calls()
        self._context_tokens, self._prefill_tokens, self._identity = context_tokens, prefill_tokens, identity
        self._weights_bytes = weights_bytes
        self._tokenizer = EchoTokenizer(bos=bos)
        names = [f"{layer:03d}.{part}" for layer in range(layers) for part in "kv"]
        kind: Kind = "unstored" if unstorable else "full"
        self._layout = Layout(
            tensors=tuple(TensorSpec(name, heads, dim, dtype) for name in names),
            kinds=(kind,) * layers,
            unstored=("EchoState",) if unstorable else (),
        )
        self._seed = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "little")

    def __repr__(self) -> str:
        return f"EchoRunner({self._identity!r})"

    @property
    def name(self) -> str:
        """``echo``, or the identity that was given."""
        return self._identity

    @property
    def tokenizer(self) -> EchoTokenizer:
        """Bytes, a few merges and role tokens."""
        return self._tokenizer

    @property
    def n_vocab(self) -> int:
        """How many ids there are."""
        return self._tokenizer.n_vocab

    @property
    def layout(self) -> Layout:
        """``layers`` pairs of tensors (heads, n, dim)."""
        return self._layout

    @property
    def context_tokens(self) -> int | None:
        """As given."""
        return self._context_tokens

    @property
    def prefill_tokens(self) -> int:
        """As given."""
        return self._prefill_tokens

    @property
    def weights_bytes(self) -> int:
        """As given."""
        return self._weights_bytes

    def early_states(self, rows: Sequence[Sequence[int]], depth: float) -> np.ndarray[Any, Any]:
        """Return the words of each row, counted in 64 places by their hashes: (len(rows), 64) float32."""
        out = np.zeros((len(rows), 64), np.float32)
        for place, ids in enumerate(rows):
            for word in self._tokenizer.decode(ids).lower().split():
                out[place, hashlib.sha256(word.strip(".,?!").encode()).digest()[0] % 64] += 1
        return out

    @property
    def host(self) -> str:
        """The same on every machine: integer arithmetic does not round."""
        return "echo"

    @property
    def identity(self) -> Mapping[str, str]:
        """Differs where ``identity``, ``bos``, the dtype or the shape of the KV differ."""
        return {
            "weights": hashlib.sha256(self._identity.encode()).hexdigest(),
            "adapter": "",
            "config": "echo-1",
            "tokenizer": self._tokenizer.digest,
            "layout": self._layout.digest,
            "dtype": self._layout.tensors[0].dtype,
        }

    @property
    def facts(self) -> Mapping[str, Any]:
        """What it is and what it has computed."""
        return {"backend": "echo", "model": self._identity, "computed_ids": self.calls.computed}

    @property
    def choices(self) -> Mapping[str, str]:
        """Nothing to decide."""
        return {}

    def open(self, recorded: Mapping[str, str] = {}) -> None:
        """Nothing to load."""

    def open_batch(self, chunk_tokens: int = 256) -> EchoBatch:
        """An empty batch; any number may be open."""
        return EchoBatch(self, self._seed)

    def close(self) -> None:
        """Nothing to drop."""
