"""Finding what a prompt can start from: the longest prefix, live or stored, and why it is not longer."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define

from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.chunks import common_prefix
from agent_memory.protocols import KV, Batch
from agent_memory.scheduler.request import Prompt
from agent_memory.scheduler.row import Base, Row
from agent_memory.scheduler.saving import Saver
from agent_memory.store.tiers import HotTier, Lineage
from agent_memory.types import weakest

if TYPE_CHECKING:
    from agent_memory.store.lookup import Match
    from agent_memory.store.store import Store

log = logging.getLogger("agent_memory.reuse")
Ids = np.ndarray[Any, Any]


@define(eq=False, kw_only=True)
class Plan:
    """What a prompt could start from, before anything is taken or read."""

    wanted: Ids
    stored: Match  #: in warm and cold
    lineage: Lineage | None = None  #: an idle one
    row: Row | None = None  #: a running one, whose KV is copied
    n_live: int = 0  #: tokens that the lineage or the row gives
    is_moved: bool = False  #: the lineage itself is taken, not copied
    awaited: Row | None = None  #: a row that is computing more of the same prefix: its KV is worth waiting for
    n_awaited: int = 0

    @property
    def n_tokens(self) -> int:
        """How much of the prompt is there."""
        return max(self.n_live, self.stored.n_tokens)


class Reuse:
    """The longest prefix wins; live before warm before cold among equals. Engine thread only.

    At least one id is always left to compute: its logits give the first token.
    """

    def __init__(self, hot: HotTier, store: Store, saver: Saver, layout: Layout, grid: int) -> None:
        self._hot, self._store, self._saver, self._layout, self._grid = hot, store, saver, layout, grid

    def plan(self, wanted: Ids, owner: str | None, rows: Iterable[Row]) -> Plan:
        """Where ``wanted`` is found now. O(its ids) for every lineage and row."""
        plan = Plan(wanted=wanted, stored=self._store.match(wanted))
        lineage, n_tokens = self._hot.match(wanted, owner)
        if lineage is not None and n_tokens >= max(1, plan.stored.n_tokens):
            plan.lineage, plan.n_live = lineage, n_tokens
            plan.is_moved = self._hot.is_moved(lineage, n_tokens, owner)
        if not self._layout.is_storable:
            return plan  # the KV of such a row cannot be cut
        for row in rows:
            shared = common_prefix(row.ids[: row.n_prefill], wanted)
            there = self._reach(row, min(shared, row.fed))
            if there > plan.n_tokens:
                plan.lineage, plan.row, plan.n_live, plan.is_moved = None, row, there, False
            if shared > max(there, plan.n_awaited):
                plan.awaited, plan.n_awaited = row, shared
        if plan.n_awaited < plan.n_tokens + self._grid:  # a step of its own costs less than waiting
            plan.awaited = None
        return plan

    def _reach(self, row: Row, n_tokens: int) -> int:
        """What of ``n_tokens`` a running row can give. One that decodes is cut only where that is possible anywhere."""
        if self._layout.is_full:
            return n_tokens
        return row.kv.reach(n_tokens) if row.kv is not None else 0

    def take(self, batch: Batch, plan: Plan, prompt: Prompt) -> Base:
        """A base for ``prompt``; its KV is the caller's alone."""
        base, stopped = self._live(batch, plan), plan.stored.stopped
        stored = plan.stored
        try:
            while base is None and stored.n_tokens:
                base = self._from_store(batch, stored)
                if base is None:  # damaged: the store has forgotten those pieces by now and matches less
                    stored = self._store.match(plan.wanted)
                    stopped = stored.stopped
        except Exception as error:  # noqa: BLE001 - whatever a restore dies of is a miss: the log has all it takes
            stopped = f"restore failed: {type(error).__name__}: {error}"
            log.warning("%d tokens are recomputed: %s", stored.n_tokens, stopped)
        base = base or Base(kv=batch.empty())
        if base.n_tokens < min(prompt.known, len(plan.wanted)) or (prompt.foreign and not base.n_tokens):
            base.exactness = weakest(base.exactness, "recomputed")
            base.miss = self._reason(prompt, stopped)
        return base

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
        """A base read from the store; None, before anything was computed on it, where a checksum was wrong."""
        source = self._store.source(match, match.n_tokens)
        try:
            kv = batch.restore(source)
            if not source.check():
                return None
        finally:
            source.close()
        self._store.touch(match)
        return Base(
            kv=kv,
            n_tokens=match.n_tokens,
            made=match.made,
            tier=match.tier,
            tier_tokens=match.tier_tokens,
            exactness=match.exactness,
        )

    def _reason(self, prompt: Prompt, stopped: str | None) -> str:
        if prompt.foreign:
            return "other model"
        if not self._layout.is_storable:
            return f"not stored: {self._layout.unstored[0]}"
        return stopped or "not stored"
