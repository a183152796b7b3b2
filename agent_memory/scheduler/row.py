"""Row: one request in a batch. Where its KV came from, which ids were fed, what text came out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import define, field

from agent_memory.prefix.authors import GRID, Origins, of_row, origin
from agent_memory.prefix.worth import Costs
from agent_memory.prompt.tokens import TextStream
from agent_memory.protocols import KV, Tokenizer
from agent_memory.scheduler.draft import Draft
from agent_memory.scheduler.losses import Loss
from agent_memory.scheduler.request import Outcome, Prompt, Request
from agent_memory.tiers.hot import Lineage
from agent_memory.toolcall import ToolParser
from agent_memory.types import Delta, Exactness, Finish, Text, Tier, Usage

PREFILL, DECODE = 1, 2  #: provenance of an id's KV
#: So many prompt ids at most are fed in the pass that gives the first token. It computes the logits of each: of many,
#: they cost more than the pass that is saved (on a CPU some 100 ids of the starter model), and much memory.
_MOST_BEGUN = 64


@define(eq=False, kw_only=True)
class Base:
    """KV of the first ``n_tokens`` of a row's prompt, and the tier that it comes from."""

    kv: KV | None = field(repr=False)  #: owned by the row from its start on
    n_tokens: int = 0
    made: Origins = field(factory=lambda: np.zeros(0, np.uint32))  #: provenance of each id's KV
    tier: Tier = "none"  #: the slowest tier of its tokens
    tier_tokens: Mapping[str, int] = field(factory=dict)
    exactness: Exactness = "exact"
    loss: Loss = field(factory=Loss)
    n_grid: int = 0  #: as in ``Lineage``


@define(eq=False, kw_only=True)
class Row:
    """A running request. Engine thread only.

    - ``0 <= base.n_tokens <= fed <= n_prefill <= n_prompt``, until the last prompt id was fed; from then on
      ``fed == n_prompt``. ``fed`` never decreases.
    - Cached tokens are ``base.n_tokens``, computed ones ``fed - base.n_tokens``: ``n_prompt`` together in every reply.
    - While it prefills, ``kv.n_tokens == fed``; then the batch owns the KV, and ``kv`` is None.
    """

    # Whose work the KV of each token is, and how it is counted:
    #
    #   [0, base.n_tokens)                    restored, copied or moved           cached
    #   [base.n_tokens, min(fed, n_prefill))  this row's prefill steps            computed
    #   [min(fed, n_prefill), n_prefill)      nobody's yet
    #   [n_prefill, n_prompt)                 the pass that gives its first token computed; empty where max_tokens is 0
    #   [n_prompt, n_prompt + len(output))    later decode steps                  output; the newest may not be fed yet

    number: int
    request: Request
    prompt: Prompt
    base: Base
    tokenizer: Tokenizer
    max_tokens: int
    group: int
    ids: np.ndarray[Any, Any] = field(repr=False)  #: the prompt's, u32
    parser: ToolParser = field(repr=False)
    kv: KV | None = field(init=False, repr=False)  #: None once the batch owns it
    fed: int = 0
    has_stepped: bool = False  #: True once it has taken part in a decode step
    n_grid: int = field(init=False)  #: as in ``Lineage``
    output: list[int] = field(factory=list)
    draft: Draft = field(init=False, repr=False)
    finish: Finish | None = None
    started: float = field(factory=time.perf_counter)
    restored_s: float = 0.0
    costs: Costs = field(factory=Costs, repr=False)  #: as measured on this machine
    prefilled: float = 0.0  #: when its prefill began
    first_token: float = 0.0
    stream: TextStream = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.stream = TextStream(self.tokenizer, self.request.stop, marks=self.request.shows_marks)
        self.draft = Draft(self.ids)
        self.fed, self.n_grid = self.base.n_tokens, self.base.n_grid
        self.kv, self.base.kv = self.base.kv, None
        self.check()

    def check(self) -> None:
        """Assert the order of the positions."""
        most = self.n_prefill if self.kv is not None else self.n_prompt
        order = (0, self.base.n_tokens, self.fed, most, self.n_prompt)
        assert sorted(order) == list(order), order
        assert self.kv is None or self.kv.n_tokens == self.fed, (self.kv.n_tokens, self.fed)

    @property
    def n_prompt(self) -> int:
        """Prompt length in tokens."""
        return len(self.prompt.ids)

    @property
    def exactness(self) -> Exactness:
        """The weakest promise of its KV so far."""
        return self.base.exactness

    @property
    def made(self) -> Origins:
        """Provenance of each prompt id's KV: as it was, or will be, computed."""
        made = np.full(self.n_prompt, origin(of_row(self.number), PREFILL), np.uint32)
        made[: self.n_grid] = origin(GRID, PREFILL)
        made[: self.base.n_tokens] = self.base.made
        return made

    @property
    def is_ready(self) -> bool:
        """True if nothing is left to prefill."""
        return self.fed >= self.n_prefill

    @property
    def n_prefill(self) -> int:
        """Ids that prefill steps may feed: the last prompt id belongs to the pass that gives the first token."""
        return self.n_prompt - (1 if self.max_tokens else 0)

    def next_step(self, chunk_tokens: int, *, is_full: bool) -> int:
        """Return where the next prefill step ends: at a multiple of ``chunk_tokens`` from the prompt's start.

        ``is_full``: every layer can be truncated at any token. A rest of at most ``chunk_tokens`` is one step then,
        wherever it begins: a few ids across a multiple are not worth two forward passes. Nor is the last id of a short
        rest: where the step ends at ``n_prompt``, it gives the first token too. All of it follows from the ids left.
        """
        stop = (self.fed // chunk_tokens + 1) * chunk_tokens
        if is_full and self.n_prefill - self.fed <= chunk_tokens:
            stop = self.fed + chunk_tokens
        if self.max_tokens and 1 < self.n_prompt - self.fed <= _MOST_BEGUN and stop >= self.n_prompt:
            return self.n_prompt
        return min(stop, self.n_prefill)

    def advance(self, stop: int) -> None:
        """Record that the prompt ids ``[fed, stop)`` were fed."""
        assert self.fed <= stop <= self.n_prompt, (self.fed, stop, self.n_prompt)
        self.fed = stop

    def note_step(self, start: int, stop: int, chunk_tokens: int) -> None:
        """Record that one prefill step has computed the tokens ``[start, stop)``."""
        if start == self.n_grid and stop == start + chunk_tokens:
            self.n_grid = stop

    def accept(self, token: int) -> None:
        """Take one sampled token: text, stop strings, limits. Sets ``finish`` if it is the last."""
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
        """Return the finished row. Truncates ``kv`` to the last id that the log keeps, if it can be truncated."""
        kept, n_ids = tuple(self.output), len(self.output)
        self.cut_to_output(kv)
        if self.stream.stopped is not None:
            n_ids, tail = self.stream.kept()
            kept = (*self.output[:n_ids], *self.tokenizer.encode(tail))
            kv.trim(min(kv.n_tokens, self.n_prompt + n_ids))  # else the KV covers ids that the log does not keep
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
        """Return ``Reply.finish``: "length" if a call was cut short, even after complete ones."""
        parsed = self.parser.parsed
        if parsed.is_truncated:
            return "length"
        return "tool_calls" if parsed.tool_calls else self.finish or "length"

    def usage(self) -> Usage:
        """Return the figures so far, and the cause of a miss."""
        why = self.base.loss.why()
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
            miss=None if why is None else why.cause,
            miss_detail="" if why is None else why.detail,
            diverged_at=None if why is None else why.at,
            ttft_s=first - self.request.created,
            queue_s=self.started - self.request.created,
            restore_s=self.restored_s,
            prefill_s=first - self.prefilled if self.prefilled else 0.0,
            proposed=self.draft.n_proposed,
            accepted=self.draft.n_accepted,
            decode_tps=n_later / (now - first) if n_later and now > first else 0.0,
            saved_s=self._saved_s(),
        )

    def _saved_s(self) -> float | None:
        """Return what the reused tokens would have cost, less their restore; None: no long prefill was measured."""
        cost_s = self.costs.long_compute_s(self.base.n_tokens) if self.base.n_tokens else 0.0
        return None if cost_s is None else max(0.0, cost_s - self.restored_s)

    def cut_to_sound(self, kv: KV) -> bool:
        """Truncate the KV of a row that failed while it decoded to tokens fed before the failed step; False: none are.

        That step fed the newest token of ``output``, or the one after it. The KV may be why it failed: NaN or infinity
        anywhere makes all of it unsound.
        """
        n_tokens = kv.reach(min(kv.n_tokens, self.n_prompt + len(self.output) - 1))
        return n_tokens > 0 and kv.trim(n_tokens) and kv.is_finite

    def cut_to_output(self, kv: KV) -> None:
        """Truncate the KV to the output: a verified draft may go on behind its last token. Such KV can be truncated."""
        kv.trim(min(kv.n_tokens, self.n_prompt + len(self.output)))

    def lineage(self, kv: KV, *, is_turn: bool = True) -> Lineage:
        """Return the KV with the ids that it covers, for the hot tier. ``is_turn``: the row ended with a reply."""
        self.cut_to_output(kv)
        n = kv.n_tokens
        ids = np.concatenate([self.ids, np.array(self.output, np.uint32)])
        made = np.concatenate([self.made, np.full(len(self.output), origin(of_row(self.number), DECODE), np.uint32)])
        return Lineage(
            owner=self.request.owner,
            ids=ids[:n],
            made=made[:n],
            kv=kv,
            exactness=self.base.exactness,
            agent_id=self.request.agent_id,
            is_wanted=is_turn and not self.max_tokens,
            is_turn=is_turn,
            is_temporary=self.request.is_temporary,
            n_grid=min(self.n_grid, n),
        )
