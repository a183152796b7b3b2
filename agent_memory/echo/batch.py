"""The batch of an EchoRunner: rows that read their conversation back out of their KV, and answer it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from attrs import define

from agent_memory.echo.drawing import constrained, sample
from agent_memory.echo.kv import EchoKV, room
from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.kvcache.layout import Layout
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

    prefill_ids: int = 0  #: ids fed by prefill(), and by insert() where it feeds several
    insert_ids: int = 0  #: last ids, fed by the first step of their row
    generated_ids: int = 0  #: sampled ids fed back
    prefills: int = 0
    inserts: int = 0
    steps: int = 0
    restores: int = 0
    restored_tokens: int = 0
    together: int = 0  #: restores that were asked for together with others

    @property
    def computed(self) -> int:
        """Prompt ids fed to the model."""
        return self.prefill_ids + self.insert_ids


class Speaker(Protocol):
    """What a batch asks of its runner, whenever it is asked: a test may change it meanwhile."""

    reply: str | Replier | None
    delay_s: float
    calls: Calls

    @property
    def tokenizer(self) -> EchoTokenizer:
        """Of the conversation and of the reply."""

    @property
    def layout(self) -> Layout:
        """Of the rows' KV."""


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

    def __init__(self, runner: Speaker, seed: int) -> None:
        self._runner, self._seed = runner, seed
        self._rows: dict[int, _Row] = {}

    def empty(self) -> EchoKV:
        """Return a KV of no tokens and no capacity."""
        return EchoKV(self._runner.layout, self._seed)

    def restore(self, source: Source) -> EchoKV:
        """Return a KV filled from ``source``."""
        *_, kv = EchoBatch.restoring(self, source)
        assert kv is not None
        return kv

    def restore_together(self, sources: Sequence[Source]) -> list[EchoKV]:
        """``restore`` of several rows."""
        self._runner.calls.together += len(sources)
        return [EchoBatch.restore(self, source) for source in sources]

    def restoring(self, source: Source) -> Iterator[EchoKV | None]:
        """``restore``, a tensor at a time."""
        kv = EchoKV(self._runner.layout, self._seed, room(source.n_tokens))
        yield from kv.filling(source)
        self._runner.calls.restores += 1
        self._runner.calls.restored_tokens += source.n_tokens
        yield kv

    def prefill(self, kv: KV, ids: Sequence[int]) -> None:
        """Append ``ids`` to ``kv``."""
        calls = self._runner.calls
        calls.prefills += 1
        calls.prefill_ids += len(ids)
        _echo(kv).feed(ids)
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
    ) -> int | None:
        """Insert the row. Its last id is fed by the group's next step; if there are more, all are fed now."""
        n_left = len(ids) - kv.n_tokens
        if n_left < 1:
            raise ValueError(f"the KV covers {kv.n_tokens} tokens: of {len(ids)} ids none is left to feed")
        if row in self._rows:
            raise ValueError(f"row {row} is decoding already")
        processors = tuple(logits_processors)
        made = _Row(_echo(kv), (), list(ids), sampling, processors, constraint, len(ids), group)
        self._rows[row] = made
        if n_left == 1:
            return None
        self._runner.calls.prefills += 1
        self._runner.calls.prefill_ids += n_left
        self._begin(made)
        made.is_ahead = True
        self._wait()
        return made.next

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
                self._runner.calls.insert_ids += 1
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

    @property
    def spare_nbytes(self) -> int:
        """0: rows share no buffers."""
        return 0

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
        """Feed the prompt ids that are left and draw the first token."""
        self._runner.calls.inserts += 1
        row.kv.feed(row.history[row.kv.n_tokens :])
        try:
            row.plan = self._plan(row.kv, row.constraint is not None)
        except Exception as error:  # noqa: BLE001 - a caller's function: its row ends with it, and no other
            row.error = error
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


def _echo(kv: KV) -> EchoKV:
    if not isinstance(kv, EchoKV):
        raise TypeError(f"an EchoRunner was given a {type(kv).__name__}")
    return kv
