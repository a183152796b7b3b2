"""A request that is running: where its KV came from, which ids were fed, what text came out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import define, field

from agent_memory.prompt.tokens import TextStream
from agent_memory.protocols import KV, Tokenizer
from agent_memory.scheduler.request import Outcome, Prompt, Request
from agent_memory.store.tiers import Lineage
from agent_memory.toolcall import ToolParser
from agent_memory.types import Delta, DivergedAt, Exactness, Finish, MissCause, Text, Tier, Usage

PREFILL, DECODE = 1, 2  #: how the KV of an id was made


@define(eq=False, kw_only=True)
class Base:
    """What a row starts from: KV of the first ``n_tokens`` of its prompt, and how it came here."""

    kv: KV | None = field(repr=False)  #: taken over by the row
    n_tokens: int = 0
    made: np.ndarray[Any, Any] = field(factory=lambda: np.zeros(0, np.uint8))
    tier: Tier = "none"  #: the slowest that it comes from
    tier_tokens: Mapping[str, int] = field(factory=dict)
    exactness: Exactness = "exact"
    miss: MissCause | None = None
    miss_detail: str = ""
    diverged_at: DivergedAt | None = None


@define(eq=False, kw_only=True)
class Row:
    """A running request. Engine thread only.

    Positions: ``[0, base.n_tokens)`` reused, ``[base.n_tokens, fed)`` computed, ``[fed, len(prompt.ids))`` to come.
    """

    number: int
    request: Request
    prompt: Prompt
    base: Base
    tokenizer: Tokenizer
    max_tokens: int
    group: int
    ids: np.ndarray[Any, Any] = field(repr=False)  #: of the prompt, u32
    kv: KV | None = field(init=False, repr=False)  #: its own while it prefills; then the batch's
    fed: int = 0
    output: list[int] = field(factory=list)
    finish: Finish | None = None
    started: float = field(factory=time.perf_counter)
    restored_s: float = 0.0
    prefilled: float = 0.0  #: when prefill began
    first_token: float = 0.0
    stream: TextStream = field(init=False)
    parser: ToolParser = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.stream = TextStream(self.tokenizer, self.request.stop, marks=self.request.shows_marks)
        self.parser = self.request.parser(self.prompt.ids)
        self.fed = self.base.n_tokens
        self.kv, self.base.kv = self.base.kv, None

    @property
    def n_prompt(self) -> int:
        """Prompt length in tokens."""
        return len(self.prompt.ids)

    @property
    def exactness(self) -> Exactness:
        """Of the KV it has so far."""
        return self.base.exactness

    @property
    def made(self) -> np.ndarray[Any, Any]:
        """How the KV of each prompt id was, or will be, made."""
        made = np.full(self.n_prompt, PREFILL, np.uint8)
        made[: self.base.n_tokens] = self.base.made
        return made

    @property
    def is_ready(self) -> bool:
        """Whether nothing is left to prefill."""
        return self.fed == self.n_prefill

    @property
    def n_prefill(self) -> int:
        """Ids to be fed before the first token is sampled; the last prompt id is a step of its own."""
        return self.n_prompt - (1 if self.max_tokens else 0)

    def next_step(self, grid: int) -> int:
        """Where the next prefill step ends: at the grid's next line, counted from the prompt's start."""
        return min((self.fed // grid + 1) * grid, self.n_prefill)

    def accept(self, token: int) -> None:
        """Take one sampled token: text, stop strings, limits; sets ``finish`` when it was the last."""
        if not self.output:
            self.first_token = time.perf_counter()
        self.output.append(token)
        text = ""
        if token in self.tokenizer.eos_ids:
            self.finish = "stop"
        else:
            text = self.stream.add(token)
            if self.stream.stopped is not None:
                self.finish = "stop"
            elif len(self.output) >= self.max_tokens:
                self.finish = "length"
        events = self.parser.feed(text)
        if self.parser.is_done:
            self.finish = self.finish or "stop"
        if self.finish is not None:
            events += self.parser.feed(self.stream.end()) + self.parser.end()
        visible = "".join(event.text for event in events if isinstance(event, Text))
        self.request.feed.emit(Delta(visible, (token,), tuple(events)), (len(self.output), self.max_tokens))

    def outcome(self, kv: KV) -> Outcome:
        """The finished row; cuts ``kv`` at the last id that the log keeps."""
        kept, n_ids = tuple(self.output), len(self.output)
        if self.stream.stopped is not None:
            n_ids, rest = self.stream.kept()
            kept = (*self.output[:n_ids], *self.tokenizer.encode(rest))
            kv.trim(min(kv.n_tokens, self.n_prompt + n_ids))  # where it cannot be cut, it covers what is not kept
        n_kv = min(kv.n_tokens, self.n_prompt + n_ids)
        return Outcome(
            prompt=self.prompt,
            text=self.stream.text,
            parsed=self.parser.parsed,
            kept=kept,
            n_kv=n_kv,
            finish=self._outcome_finish(),
            stopped=self.stream.stopped,
            usage=self.usage(),
        )

    def _outcome_finish(self) -> Finish:
        """Why it ended, as callers see it: a call that is cut short counts more than any that is complete."""
        parsed = self.parser.parsed
        if parsed.is_truncated:
            return "length"
        return "tool_calls" if parsed.tool_calls else self.finish or "length"

    def usage(self) -> Usage:
        """Figures so far."""
        now, base = time.perf_counter(), self.base
        first = self.first_token or now
        n_later = max(0, len(self.output) - 1)
        return Usage(
            prompt_tokens=self.n_prompt,
            cached_tokens=base.n_tokens,
            computed_tokens=self.fed - base.n_tokens,
            output_tokens=len(self.output),
            tier=base.tier,
            tier_tokens=base.tier_tokens,
            exactness=base.exactness,
            miss=base.miss,
            miss_detail=base.miss_detail,
            diverged_at=base.diverged_at,
            ttft_s=first - self.request.created,
            queue_s=self.started - self.request.created,
            restore_s=self.restored_s,
            prefill_s=first - self.prefilled if self.prefilled else 0.0,
            decode_tps=n_later / (now - first) if n_later and now > first else 0.0,
        )

    def sound(self, kv: KV) -> bool:
        """Cut the KV of a row that failed while it decoded to what was computed before that; False: to nothing.

        The step that failed fed the newest token, or the one after it. Bad numbers may be what it failed of.
        """
        n_tokens = kv.reach(min(kv.n_tokens, self.n_prompt + len(self.output) - 1))
        return n_tokens > 0 and kv.trim(n_tokens) and kv.is_finite

    def lineage(self, kv: KV, *, is_turn: bool = True) -> Lineage:
        """The row's KV with the ids that it covers, to be kept hot. ``is_turn``: it ended with a reply."""
        n = kv.n_tokens
        ids = np.concatenate([self.ids, np.array(self.output, np.uint32)])
        made = np.concatenate([self.made, np.full(len(self.output), DECODE, np.uint8)])
        return Lineage(
            owner=self.request.owner,
            ids=ids[:n],
            made=made[:n],
            kv=kv,
            exactness=self.base.exactness,
            agent_id=self.request.agent_id,
            is_wanted=is_turn and not self.max_tokens,
            is_turn=is_turn,
        )
