"""Find the longest prefix of a prompt that is there already, live or stored, and why it is not longer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from attrs import define

from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.chunks import common_prefix
from agent_memory.protocols import KV, Batch
from agent_memory.scheduler.request import Prompt, Why
from agent_memory.scheduler.row import Base, Row
from agent_memory.scheduler.saving import Saver
from agent_memory.tiers.hot import HotTier, Lineage
from agent_memory.tiers.lookup import Match
from agent_memory.tiers.tiers import Tiers
from agent_memory.types import MissCause, weakest

log = logging.getLogger("agent_memory.reuse")
Ids = np.ndarray[Any, Any]

_AS_LONG = 3  #: restores that may fail without making what is stored shorter: a file may seem readable, and never be
_NOT_STORED: tuple[MissCause, str] = ("not_stored", "the KV was not kept: it was neither in memory nor written")
#: Why a stored lineage ends, as the store remembers it.
_STOPPED: dict[str, tuple[MissCause, str]] = {
    "damaged": ("damaged", "a stored file was damaged, and was dropped with all that depends on it"),
    "missing": ("damaged", "a stored file was missing or of another size, and all that depends on it was dropped"),
    "unreadable": ("not_stored", "a stored file cannot be read just now; it stays, and is tried again"),
    "evicted": ("evicted", "the KV was evicted to keep the disk within its budget"),
    "no snapshot": ("not_stored", "layers that cannot be truncated have no stored state at that position"),
}


@define(eq=False, kw_only=True)
class Plan:
    """The KV that a prompt could start from, before any is taken or read.

    ``lineage`` and ``row`` are never both set.
    """

    wanted: Ids
    stored: Match  #: in warm and cold
    lineage: Lineage | None = None  #: an idle lineage in hot
    row: Row | None = None  #: a running row, whose KV is copied
    n_live: int = 0  #: tokens of the lineage or the row
    is_moved: bool = False  #: True if the lineage itself is taken, not copied
    awaited: Row | None = None  #: a row that is computing more of the same prefix, and is worth waiting for
    n_awaited: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt whose KV is there."""
        return max(self.n_live, self.stored.n_tokens)


class Reuse:
    """Plans and takes the KV that a row starts from. Engine thread only.

    - The longest prefix wins; among equals live before warm before cold.
    - At least one id is always left to compute: its logits give the first token.
    - A row that computes more of the same prefix is awaited where it saves more than one prefill step.
    """

    # Who owns the KV of ``[0, n_tokens)`` before the row that takes it, and after:
    #
    #   idle lineage, moved         hot tier         the row's alone; saved first, then truncated
    #   idle lineage, copied        hot tier         hot tier; the row has a copy
    #   running row                 row or batch     row or batch; the new row has a copy
    #   warm, cold                  store            store; the row has a restored copy

    def __init__(self, hot: HotTier, tiers: Tiers, saver: Saver, layout: Layout, prefill_tokens: int) -> None:
        self._hot, self._tiers, self._saver, self._layout = hot, tiers, saver, layout
        self._prefill_tokens = prefill_tokens

    def plan(self, wanted: Ids, owner: str | None, rows: Iterable[Row]) -> Plan:
        """Find ``wanted`` in memory and in the store. O(its ids) for every lineage and row."""
        plan = Plan(wanted=wanted, stored=self._tiers.match(wanted))
        lineage, n_tokens = self._hot.match(wanted, owner)
        if lineage is not None and n_tokens >= max(1, plan.stored.n_tokens):
            plan.lineage, plan.n_live = lineage, n_tokens
            plan.is_moved = self._hot.is_moved(lineage, n_tokens, owner)
        if not self._layout.is_storable:
            return plan  # the KV of such a row cannot be truncated
        for row in rows:
            shared = common_prefix(row.ids[: row.n_prefill], wanted)
            there = self._reach(row, min(shared, row.fed))
            if there > plan.n_tokens:
                plan.lineage, plan.row, plan.n_live, plan.is_moved = None, row, there, False
            if shared > max(there, plan.n_awaited):
                plan.awaited, plan.n_awaited = row, shared
        if plan.n_awaited < plan.n_tokens + self._prefill_tokens:  # a step of its own costs less than waiting
            plan.awaited = None
        return plan

    def _reach(self, row: Row, n_tokens: int) -> int:
        """Longest prefix, of at most ``n_tokens``, that can be copied from a running row.

        From one that decodes only where every layer can be truncated at any token.
        """
        if self._layout.is_full:
            return n_tokens
        return row.kv.reach(n_tokens) if row.kv is not None else 0

    def take(self, batch: Batch, plan: Plan, prompt: Prompt) -> Base:
        """Take or restore the KV of a plan; it is the caller's alone then. A restore that fails is a miss."""
        other = self._other(plan) if prompt.explain is not None else None  # first: a lineage that is taken is cut
        base, stopped = self._live(batch, plan), plan.stored.stopped
        stored = plan.stored
        n_as_long = 0
        try:
            while base is None and stored.n_tokens and n_as_long < _AS_LONG:
                base = self._from_store(batch, stored)
                if base is None:  # damaged: the store has forgotten those pieces by now and matches less
                    failed, stored = stored, self._tiers.match(plan.wanted)
                    n_as_long += stored.n_tokens >= failed.n_tokens
                    stopped = stored.stopped if n_as_long < _AS_LONG else "unreadable"
        except Exception as error:  # noqa: BLE001 - a restore that raises is a miss: the log has all it takes
            stopped = f"restore failed: {type(error).__name__}: {error}"
            log.warning("%d tokens are recomputed: %s", stored.n_tokens, stopped)
        base = base or Base(kv=batch.empty())
        if base.n_tokens < min(prompt.known, len(plan.wanted)) or (prompt.foreign and not base.n_tokens):
            base.exactness = weakest(base.exactness, "recomputed")
            base.miss, base.miss_detail = self._reason(prompt, stopped)
        elif (why := _why(prompt, base.n_tokens, other)) is not None:
            base.miss, base.miss_detail, base.diverged_at = why.cause, why.detail, why.at
        return base

    def _other(self, plan: Plan) -> tuple[int, Sequence[int]] | None:
        """Where the prompt leaves KV that is there and goes on otherwise, and the ids with which that goes on."""
        at, other = max(plan.n_tokens, self._tiers.store.chunk_tokens), None
        for lineage in self._hot:
            shared = common_prefix(lineage.ids, plan.wanted)
            if at <= shared < min(len(lineage.ids), len(plan.wanted)):
                at, other = shared, lineage.ids[shared:]
        if other is None and at == plan.stored.n_tokens < len(plan.wanted):
            other = self._tiers.following(plan.stored)
        return None if other is None else (at, other.tolist())

    def _live(self, batch: Batch, plan: Plan) -> Base | None:
        source, n_tokens = plan.lineage or plan.row, plan.n_live
        if source is None:
            return None
        made, exactness = source.made[:n_tokens], source.exactness
        if plan.row is not None:
            row = plan.row
            kv = row.kv.copy(n_tokens) if row.kv is not None else batch.copy(row.number, n_tokens)
        else:
            assert plan.lineage is not None
            kv = self._from_hot(plan.lineage, n_tokens, is_moved=plan.is_moved)
        if kv is None:
            return None
        return Base(kv=kv, n_tokens=n_tokens, made=made, tier="hot", tier_tokens={"hot": n_tokens}, exactness=exactness)

    def _from_hot(self, lineage: Lineage, n_tokens: int, *, is_moved: bool) -> KV | None:
        if is_moved:
            self._saver.settle(lineage)
            self._hot.take(lineage)
            return lineage.kv if lineage.trim(n_tokens) else None
        self._hot.touch(lineage)
        return lineage.kv.copy(n_tokens)

    def _from_store(self, batch: Batch, match: Match) -> Base | None:
        """Restore a match from the store; None where a checksum was wrong, before anything was computed on it."""
        source = self._tiers.source(match, match.n_tokens)
        try:
            kv = batch.restore(source)
            if not source.check():
                return None
        finally:
            source.close()
        self._tiers.touch(match)
        return Base(
            kv=kv,
            n_tokens=match.n_tokens,
            made=match.made,
            tier=match.tier,
            tier_tokens=match.tier_tokens,
            exactness=match.exactness,
        )

    def _reason(self, prompt: Prompt, stopped: str | None) -> tuple[MissCause, str]:
        if prompt.why is not None and prompt.why.cause == "forgotten":  # the KV before the card went with it
            return prompt.why.cause, prompt.why.detail
        if prompt.foreign:
            return "other_model", "the agent's turns so far ran under another model, whose KV is no use to this one"
        if not self._layout.is_storable:
            return "not_stored", f"KV of the kind {self._layout.unstored[0]} can be neither stored nor truncated"
        return _STOPPED.get(stopped or "", ("damaged", stopped or "") if stopped else _NOT_STORED)


def _why(prompt: Prompt, n_tokens: int, other: tuple[int, Sequence[int]] | None) -> Why | None:
    """Why the prompt leaves its agent's log or, without an agent, what is stored; None where it leaves neither."""
    if prompt.explain is None:
        return prompt.why if n_tokens < prompt.n_logged else None
    return prompt.explain(*other) if other is not None and n_tokens <= other[0] else None
