"""Find the longest prefix of a prompt whose KV exists, live or stored, and why it is not longer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import define, frozen

from agent_memory.exchange.chunks import Fetched
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.sources import MeteredSource
from agent_memory.prefix.authors import authors_in
from agent_memory.prefix.chunks import common_prefix
from agent_memory.protocols import KV, Batch
from agent_memory.scheduler.losses import Loss, Losses, Other, is_lost
from agent_memory.scheduler.request import Prompt
from agent_memory.scheduler.row import Base, Row
from agent_memory.scheduler.saving import Saver
from agent_memory.scheduler.unkept import Unkept
from agent_memory.tiers.hot import HotTier, Lineage
from agent_memory.tiers.lookup import Match
from agent_memory.tiers.tiers import Tiers
from agent_memory.types import TIERS, Tier, weakest

log = logging.getLogger("agent_memory.reuse")
Ids = np.ndarray[Any, Any]

_AS_LONG = 3  #: failed restores after which the same tokens matched again, before giving up
_FRAME = 16  #: ids at the end of a turn that the next prompt may render otherwise


@define(eq=False, kw_only=True)
class Plan:
    """The KV that a prompt could start from, before any of it is taken or read.

    ``lineage`` and ``row`` are never both set.
    """

    wanted: Ids
    stored: Match  #: in warm and on disk
    lineage: Lineage | None = None  #: an idle lineage in hot
    row: Row | None = None  #: a running row, whose KV is copied
    n_live: int = 0  #: tokens of the lineage or the row
    is_moved: bool = False  #: True if the lineage itself is taken, not copied
    awaited: Row | None = None  #: a row that is computing more of the same prefix, and is worth waiting for
    n_awaited: int = 0
    is_exact: bool = False  #: True if only KV that was made on the prefill grid may be taken
    fetched: Fetched | None = None  #: longer KV that came from the bucket, behind the first of ``stored``
    restored: KV | None = None  #: that of ``stored``, where it was restored together with others
    restored_s: float = 0.0  #: its share of the seconds that took

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt whose KV exists."""
        return max(self.n_live, self.stored.n_tokens)

    def take_fetched(self, fetched: Fetched | None) -> None:
        """Start from fetched KV, which is longer than any other; None: there is none."""
        if fetched is not None:
            self.fetched, self.lineage, self.row, self.n_live, self.is_moved = fetched, None, None, 0, False


@frozen
class Found:
    """The KV that exists of a prompt, and why there is no more."""

    n_tokens: int
    tier_tokens: Mapping[str, int]
    loss: Loss
    may_be_new: bool  #: True if, without a cause in ``loss``, no similar prompt was computed before
    restore_s: Mapping[Tier, float | None]  #: seconds by tier, as measured; None: not measured yet
    prefill_s: float | None  #: seconds for the remaining tokens; None: not measured yet


class Reuse:
    """Plans and takes the KV that a row starts from. Engine thread only.

    - The longest prefix wins; among equals live before warm before cold.
    - At least one id is always left to compute: its logits give the first token.
    - A row that computes more of the same prefix is awaited where it saves more than one prefill step.
    - An exact request starts from live KV whose every token was computed on the prefill grid, or from nothing: its KV
      is a function of its ids. Stored KV does not say how it was computed.
    """

    # Who owns the KV of ``[0, n_tokens)`` before the row that takes it, and after:
    #
    #   idle lineage, moved         hot tier         the row's alone; saved first, then truncated
    #   idle lineage, copied        hot tier         hot tier; the row has a copy
    #   running row                 row or batch     row or batch; the new row has a copy
    #   warm, cold                  warm, disk       warm, disk; the row has a restored copy
    #   fetched                     the fetch        the row has a restored copy; the store adopts another

    def __init__(
        self, hot: HotTier, tiers: Tiers, saver: Saver, layout: Layout, prefill_tokens: int, unkept: Unkept
    ) -> None:
        self._hot, self._tiers, self._saver, self._layout = hot, tiers, saver, layout
        self._losses = Losses(unkept, tiers.store, layout)
        self._prefill_tokens = prefill_tokens

    def plan(self, wanted: Ids, owner: str | None, rows: Iterable[Row], *, is_exact: bool = False) -> Plan:
        """Find ``wanted`` in memory and in the store. O(its ids) for every lineage and row."""
        if is_exact:
            return self._exact_plan(wanted, rows)
        plan = Plan(wanted=wanted, stored=self._tiers.match(wanted))
        lineage, n_tokens = self._hot.match(wanted, owner)
        if lineage is not None and n_tokens >= max(1, plan.stored.n_tokens):
            plan.lineage, plan.n_live = lineage, n_tokens
            plan.is_moved = self._hot.is_moved(lineage, n_tokens, owner) and self._may_move(lineage, n_tokens)
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

    def _exact_plan(self, wanted: Ids, rows: Iterable[Row]) -> Plan:
        """Find ``wanted`` in live KV that was computed on the prefill grid, from token 0 on."""
        plan = Plan(wanted=wanted, stored=self._tiers.match(wanted[:0]), is_exact=True)
        if not self._layout.is_storable:
            return plan
        for lineage in self._hot:
            n_tokens = self._on_grid(lineage.kv.reach, min(common_prefix(lineage.ids, wanted), lineage.n_grid))
            if n_tokens > plan.n_live:
                plan.lineage, plan.n_live = lineage, n_tokens
        for row in rows:
            shared = min(common_prefix(row.ids[: row.n_prefill], wanted), row.n_grid)
            n_tokens = self._on_grid(lambda n, row=row: self._reach(row, n), shared)  # type: ignore[misc]
            if n_tokens > plan.n_live:
                plan.lineage, plan.row, plan.n_live = None, row, n_tokens
        return plan

    def _on_grid(self, reach: Callable[[int], int], n_tokens: int) -> int:
        """Return the longest prefix of at most ``n_tokens``, in whole prefill chunks, that KV can be truncated to."""
        n_tokens -= n_tokens % self._prefill_tokens
        while n_tokens and (found := reach(n_tokens)) != n_tokens:
            n_tokens = found - found % self._prefill_tokens
        return n_tokens

    def _may_move(self, lineage: Lineage, n_tokens: int) -> bool:
        """True if forks that share a lineage can still copy their prefix once its owner continues it."""
        return not self._hot.is_shared(lineage) or (self._layout.is_full and n_tokens >= len(lineage.ids) - _FRAME)

    def _reach(self, row: Row, n_tokens: int) -> int:
        """Return the longest prefix, of at most ``n_tokens``, that can be copied from a running row.

        From a decoding row only if every layer can be truncated at any token.
        """
        if self._layout.is_full:
            return n_tokens
        return row.kv.reach(n_tokens) if row.kv is not None else 0

    def take(self, batch: Batch, plan: Plan, prompt: Prompt) -> Base:
        """Take or restore the KV of a plan, and give it to the caller alone. A restore that fails is a miss."""
        other = self._other(plan) if prompt.explain is not None else None  # first: a lineage that is taken is truncated
        base, stopped = self._live(batch, plan), plan.stored.stopped
        stored, fetched = plan.stored, plan.fetched
        n_as_long = 0
        try:
            if fetched is not None:
                base = self._from_bucket(batch, stored, fetched)
                stored = stored if base is not None else self._tiers.match(plan.wanted)
            while base is None and stored.n_tokens and n_as_long < _AS_LONG:
                base = self._from_store(batch, stored, plan)
                if base is None:  # damaged: the store has hidden those pieces by now and matches fewer tokens
                    failed, stored = stored, self._tiers.match(plan.wanted)
                    n_as_long += stored.n_tokens >= failed.n_tokens
                    stopped = stored.stopped if n_as_long < _AS_LONG else "unreadable"
        except Exception as error:  # noqa: BLE001 - a restore that raises is a miss: the log has all it takes
            stopped = f"restore failed: {type(error).__name__}: {error}"
            log.warning("%d tokens are recomputed: %s", stored.n_tokens, stopped)
        base = base or Base(kv=batch.empty())
        base.n_grid -= base.n_grid % self._prefill_tokens
        if plan.is_exact:
            return base  # it computes again what was not computed on the grid: nothing was lost
        if is_lost(prompt, len(plan.wanted), base.n_tokens):
            base.exactness = weakest(base.exactness, "recomputed")
        base.loss = self._losses.of(prompt, plan.wanted, base.n_tokens, stopped, other)
        return base

    def look(self, prompt: Prompt, owner: str | None, rows: Iterable[Row], *, is_exact: bool = False) -> Found:
        """Return the KV that a request with this prompt would find, and why no more. Reads no KV, changes nothing."""
        plan = self.plan(np.array(prompt.ids, np.uint32)[:-1], owner, rows, is_exact=is_exact)
        n_tokens, costs = plan.n_tokens, self._tiers.store.costs
        tiers: Mapping[str, int] = {"hot": plan.n_live} if plan.n_live else plan.stored.tier_tokens
        other = self._other(plan) if prompt.explain is not None else None
        token_bytes = self._layout.token_bytes
        return Found(
            n_tokens,
            tiers,
            Loss() if is_exact else self._losses.of(prompt, plan.wanted, n_tokens, plan.stored.stopped, other),
            not is_exact and not prompt.n_logged and (not n_tokens or other is not None),
            {tier: costs.load_s(tier, tiers[tier] * token_bytes) for tier in TIERS if tier in tiers},
            costs.compute_s(len(prompt.ids) - n_tokens),
        )

    def _other(self, plan: Plan) -> Other | None:
        """Return where the prompt differs from existing KV, and the ids that this KV has from there on."""
        at, other = max(plan.n_tokens, 1), None
        for lineage in self._hot:
            if len(lineage.ids) <= at:
                continue
            shared = common_prefix(lineage.ids, plan.wanted)
            if at <= shared < min(len(lineage.ids), len(plan.wanted)):
                at, other = shared, lineage.ids[shared:]
        if other is None and at == plan.stored.n_tokens < len(plan.wanted):
            other = self._tiers.following(plan.stored)
        return None if other is None else (at, other)

    def _live(self, batch: Batch, plan: Plan) -> Base | None:
        source, n_tokens = plan.lineage or plan.row, plan.n_live
        if source is None:
            return None
        made, exactness = source.made[:n_tokens], "exact" if plan.is_exact else source.exactness
        if plan.row is not None:
            row = plan.row
            kv = row.kv.copy(n_tokens) if row.kv is not None else batch.copy(row.number, n_tokens)
        else:
            assert plan.lineage is not None
            kv = self._from_hot(plan.lineage, n_tokens, is_moved=plan.is_moved)
        if kv is None:
            return None
        return Base(
            kv=kv,
            n_tokens=n_tokens,
            made=made,
            tier="hot",
            tier_tokens={"hot": n_tokens},
            exactness=exactness,
            n_grid=min(source.n_grid, n_tokens),
        )

    def _from_hot(self, lineage: Lineage, n_tokens: int, *, is_moved: bool) -> KV | None:
        if lineage.is_ahead:
            lineage.is_ahead = False
            self._tiers.foresight.restored(is_useful=True)
        if is_moved:
            self._saver.settle(lineage)
            self._hot.take(lineage)
            return lineage.kv if lineage.trim(n_tokens) else None
        self._hot.touch(lineage)
        return lineage.kv.copy(n_tokens)

    def _from_bucket(self, batch: Batch, match: Match, fetched: Fetched) -> Base | None:
        """Restore fetched KV, verified already, behind the store's own; None if the store's own is damaged."""
        kv = self._restored(batch, match, self._tiers.fetched_source(fetched, match))
        if kv is None:
            return None
        if self._tiers.exchange is not None:
            self._tiers.exchange.took(fetched.stop - fetched.start)
        own, n_warm = fetched.start, min(match.n_warm, fetched.start)
        is_one_run = np.array_equal(authors_in(match.made[:own]), fetched.before)
        tiers = {"warm": n_warm, "cold": own - n_warm, "remote": fetched.stop - own}
        return Base(
            kv=kv,
            n_tokens=fetched.stop,
            made=np.concatenate([match.made[:own], fetched.made]),
            tier="remote",
            tier_tokens={tier: n for tier, n in tiers.items() if n},
            exactness=weakest(
                fetched.exactness, match.exactness if own else "exact", "moved" if is_one_run else "recomputed"
            ),
        )

    def restore_together(self, batch: Batch, plans: Sequence[Plan]) -> None:
        """Restore what plans found in the store into shared buffers. What is damaged, they restore by themselves."""
        began = time.perf_counter()
        sources: list[MeteredSource] = []
        try:
            for plan in plans:
                sources.append(self._tiers.source(plan.stored, plan.stored.n_tokens))
            kvs = batch.restore_together(sources)  # type: ignore[attr-defined]  # asked for by ``Company``
            for plan, source, kv in zip(plans, sources, kvs, strict=True):
                if source.check():
                    plan.restored = kv
                    self._tiers.touch(plan.stored)
        except Exception as error:  # noqa: BLE001 - each then restores alone, and notes what that raises
            log.warning("%d restores failed together: %s: %s", len(plans), type(error).__name__, error)
        finally:
            for source in sources:
                self._tiers.count(source.n_read, is_ahead=False)
                source.close()
        n_tokens, seconds = sum(plan.stored.n_tokens for plan in plans), time.perf_counter() - began
        for plan in plans:
            plan.restored_s = seconds * plan.stored.n_tokens / n_tokens

    def _from_store(self, batch: Batch, match: Match, plan: Plan) -> Base | None:
        """Restore a match; None if a checksum is wrong: then nothing was computed on it."""
        kv, plan.restored = plan.restored if match is plan.stored else None, None
        exactness = match.exactness  # what was restored together has neither windows nor states
        if kv is None:
            source = self._tiers.source(match, match.n_tokens)
            kv = self._restored(batch, match, source)
            exactness = weakest(exactness, source.exactness)
        if kv is None:
            return None
        return Base(
            kv=kv,
            n_tokens=match.n_tokens,
            made=match.made,
            tier=match.tier,
            tier_tokens=match.tier_tokens,
            exactness=exactness,
        )

    def _restored(self, batch: Batch, match: Match, source: MeteredSource) -> KV | None:
        """Restore KV from ``source``, which is closed after it; None if a checksum is wrong."""
        try:
            kv = batch.restore(source)
            if not source.check():
                return None
        finally:
            self._tiers.count(source.n_read, is_ahead=False)
            source.close()
        self._tiers.touch(match)
        return kv
