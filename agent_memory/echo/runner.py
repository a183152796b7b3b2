"""EchoRunner: a deterministic stand-in for a model, for tests of programs that use this library.

It needs no MLX and no weights, and answers with the last user message. It is stricter than a real model: it reads the
conversation back out of its KV arrays, whose rows form a hash chain, so one wrong byte of KV gives a visibly wrong
reply.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define

from agent_memory.config import is_text
from agent_memory.echo.drawing import constrained, sample
from agent_memory.echo.kv import EchoKV, echo_of, room
from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.errors import ConfigError
from agent_memory.kvcache.layout import ITEM_BYTES, Kind, Layout, TensorSpec
from agent_memory.runner.processed import returned
from agent_memory.types import Sampling

if TYPE_CHECKING:
    from agent_memory.config import Codec
    from agent_memory.protocols import KV, Constraint, Divergence, LogitsProcessor, Source

_SPOKEN = 5  #: replies are tokenized in pieces of this many characters: other ids than the whole text has
_RIVALS = b"etaoin"  #: tokens drawn instead of the reply's own when the temperature is above 0
_DAMAGED = "\ufffd" * 8

#: ``(text of the last user message, all prompt ids) -> text or ids``; an end-of-turn id is added where there is none.
Replier = Callable[[str, tuple[int, ...]], str | Sequence[int]]


@define
class Calls:
    """Counts of what an EchoRunner has computed."""

    prefill_ids: int = 0  #: ids fed by prefill()
    insert_ids: int = 0  #: ids fed by insert(): one each
    generated_ids: int = 0  #: sampled ids fed back
    prefills: int = 0
    inserts: int = 0
    steps: int = 0
    restores: int = 0
    restored_tokens: int = 0

    @property
    def computed(self) -> int:
        """Prompt ids fed to the model."""
        return self.prefill_ids + self.insert_ids


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


@define
class _Row:
    kv: EchoKV
    plan: Sequence[int]  #: the ids this reply is meant to have
    history: list[int]  #: prompt and sampled ids, the next one included
    sampling: Sampling
    processors: Sequence[LogitsProcessor]
    constraint: Constraint | None
    n_prompt: int
    group: int
    next: int = 0  #: sampled, not yet fed
    is_fed: bool = False  #: True once its last prompt id was fed
    is_ahead: bool = False  #: True if its first token was returned before it was fed
    error: BaseException | None = None


class EchoBatch:
    """The Batch of an EchoRunner. Rows do not influence one another."""

    def __init__(self, runner: EchoRunner, seed: int) -> None:
        self._runner, self._seed = runner, seed
        self._rows: dict[int, _Row] = {}

    def empty(self) -> EchoKV:
        """Return a KV of no tokens and no capacity."""
        return EchoKV(self._runner.layout, self._seed)

    def restore(self, source: Source) -> EchoKV:
        """Return a KV filled from ``source``."""
        kv = EchoKV(self._runner.layout, self._seed, room(source.n_tokens))
        kv.fill(source)
        self._runner.calls.restores += 1
        self._runner.calls.restored_tokens += source.n_tokens
        return kv

    def prefill(self, kv: KV, ids: Sequence[int]) -> None:
        """Append ``ids`` to ``kv``."""
        calls = self._runner.calls
        calls.prefills += 1
        calls.prefill_ids += len(ids)
        echo_of(kv).feed(ids)
        self._wait()

    def insert(
        self,
        row: int,
        kv: KV,
        ids: Sequence[int],
        *,
        group: int,
        sampling: Sampling,
        logits_processors: Sequence[LogitsProcessor] = (),
        constraint: Constraint | None = None,
    ) -> None:
        """Insert the row; the group's next step feeds its last id."""
        if row in self._rows:
            raise ValueError(f"row {row} is decoding already")
        if not ids or kv.n_tokens != len(ids) - 1:
            raise ValueError(f"the KV covers {kv.n_tokens} tokens; {len(ids)} ids need one of {len(ids) - 1}")
        processors = tuple(logits_processors)
        self._rows[row] = _Row(echo_of(kv), (), list(ids), sampling, processors, constraint, len(ids), group)

    def step(self, group: int) -> list[tuple[int, int]]:
        """Feed each row's pending token, draw the next, and return the fed ones."""
        rows = {number: row for number, row in self._rows.items() if row.group == group}
        if not rows:
            return []
        self._runner.calls.steps += 1
        joins_others = any(row.is_fed for row in rows.values())
        out = []
        for number, row in rows.items():
            if not row.is_fed:
                self._begin(row)
                row.is_ahead = not joins_others
                if row.is_ahead:
                    out.append((number, row.next))
                continue
            if row.is_ahead:
                row.is_ahead = False
                self._advance(row)
            out.append((number, self._advance(row)))
        self._wait()
        return out

    def can_verify(self, group: int) -> bool:
        """True if all rows have been fed their prompts, none has logits processors, and KV can be truncated."""
        rows = [row for row in self._rows.values() if row.group == group]
        can = bool(rows) and not self._runner.layout.unstored
        return can and all(row.is_fed and not row.processors and row.error is None for row in rows)

    def ahead(self, group: int) -> dict[int, tuple[int, bool]]:
        """Return the ids that the next step will feed."""
        return {number: (row.next, row.is_ahead) for number, row in self._rows.items() if row.group == group}

    def verify(self, group: int, drafts: Mapping[int, Sequence[int]]) -> list[tuple[int, int]]:
        """Feed each row its draft, and truncate it behind the first id that it would not have said itself."""
        self._runner.calls.steps += 1
        out: list[tuple[int, int]] = []
        for number, row in self._rows.items():
            if row.group == group:
                said = self._verify(row, drafts[number])
                out += [(number, token) for token in (said[1:] if row.is_ahead else said)]
                row.is_ahead = False
        self._wait()
        return out

    def _verify(self, row: _Row, draft: Sequence[int]) -> list[int]:
        start, said = row.kv.n_tokens, [row.next]
        row.kv.feed([row.next, *draft])
        self._draw(row)
        for token in takewhile(lambda token: token == row.next and row.error is None, draft):
            said.append(token)
            self._draw(row)
        row.kv.trim(start + len(said))
        self._runner.calls.generated_ids += len(said)
        return said

    def error(self, row: int) -> BaseException | None:
        """Return what a logits processor or the constraint of this row raised first."""
        return self._rows[row].error if row in self._rows else None

    def copy(self, row: int, n_tokens: int) -> EchoKV | None:
        """Copy the first tokens of a row, with spare capacity; None if this kind cannot be truncated there."""
        return self._rows[row].kv.copy(n_tokens)

    def remove(self, rows: Sequence[int]) -> list[KV]:
        """Take rows out and return their KV."""
        return [self._rows.pop(row).kv for row in rows]

    def drop(self, group: int) -> None:
        """Drop a group."""
        self._rows = {number: row for number, row in self._rows.items() if row.group != group}

    def measure(self, ids: Sequence[int], n_context: int, codec: Codec) -> Divergence:
        """Never asked for: no codec encodes integers."""
        raise NotImplementedError(f"{codec} leaves integers exact")

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' KV; nothing is padded here."""
        return sum(row.kv.nbytes for row in self._rows.values())

    spare_nbytes = 0  #: rows share no buffers

    def tidy(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Drop all rows."""
        self._rows.clear()

    def _wait(self) -> None:
        if self._runner.delay_s:
            time.sleep(self._runner.delay_s)

    def _plan(self, kv: EchoKV, is_constrained: bool) -> Sequence[int]:
        tokenizer, reply = self._runner.tokenizer, self._runner.reply
        prompt = kv.conversation()
        if prompt is None:
            return [*tokenizer.encode(_DAMAGED), tokenizer.end_id]
        asked = tokenizer.last_user_text(prompt)
        said = reply(asked, prompt) if callable(reply) else asked if reply is None else reply
        if isinstance(said, str):
            # A grammar spells forced text with the tokenizer's own ids.
            size = len(said) + 1 if is_constrained else _SPOKEN
            said = [i for cut in range(0, len(said), size) for i in tokenizer.encode_plain(said[cut : cut + size])]
        return said if said and said[-1] in tokenizer.eos_ids else [*said, tokenizer.end_id]

    def _begin(self, row: _Row) -> None:
        """Feed the last prompt id and draw the first token."""
        calls = self._runner.calls
        calls.inserts += 1
        calls.insert_ids += 1
        row.kv.feed(row.history[-1:])
        row.plan = self._plan(row.kv, row.constraint is not None)
        row.is_fed = True
        self._draw(row)

    def _advance(self, row: _Row) -> int:
        token = row.next
        row.kv.feed([token])
        self._runner.calls.generated_ids += 1
        self._draw(row)
        return token

    def _draw(self, row: _Row) -> None:
        """Sample the next token: it joins the history, not the KV."""
        place = len(row.history) - row.n_prompt
        is_end = place >= len(row.plan) - 1
        logits = np.full(self._runner.tokenizer.n_vocab, -30.0, np.float32)
        logits[list(_RIVALS)] = np.linspace(8.0, 7.0, len(_RIVALS)) if not is_end else -20.0
        logits[self._runner.tokenizer.end_id if place >= len(row.plan) else row.plan[place]] = 10.0
        if row.error is None:
            logits = self._processed(row, logits)
        row.next = sample(logits, row.sampling, len(row.history))
        row.history.append(row.next)

    def _processed(self, row: _Row, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        made = logits
        try:
            for process in row.processors:
                made = returned(process(tuple(row.history), made.copy()), logits.shape)
            if row.constraint is not None:
                made = constrained(made, row.constraint, row.history[row.n_prompt :])
        except Exception as error:  # noqa: BLE001 - of a user's callable, or a reply off its grammar: the row fails alone
            row.error = error
            return logits
        return made
