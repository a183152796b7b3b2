"""The stored KV of one model, in warm and on disk, as the scheduler sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from agent_memory.config import Codec
from agent_memory.exchange.chunks import Fetched
from agent_memory.exchange.source import FetchedSource
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.sources import MeteredSource
from agent_memory.prefix.foresight import Foresight
from agent_memory.prefix.pieces import Ids
from agent_memory.progress import Progress, silent
from agent_memory.store.store import Store
from agent_memory.tiers import lookup
from agent_memory.tiers.lookup import Match
from agent_memory.tiers.sources import WarmSource
from agent_memory.tiers.warm import Warm

if TYPE_CHECKING:  # else whoever has no bucket would load what speaks to one
    from agent_memory.exchange.exchange import Exchange


class Tiers:
    """A store and the warm tier in front of it. Engine thread only.

    - ``warm_bytes`` 0: no warm tier; everything is found on disk.
    - The longest prefix wins; of equal ones that in warm, which is not read from disk.
    - ``warm`` needs no store behind it: a store without a folder finds nothing.
    - What is deleted from the store is evicted from warm first; the caller does that.
    - ``foresight``: when turns are expected; every tier evicts by it.

    ``exchange``: with the bucket that hosts share; None: there is none. ``warm_ttl_s``: pieces unused for so long leave
    warm.
    """

    def __init__(
        self,
        store: Store,
        *,
        warm_bytes: int = 0,
        warm_codec: Codec = "exact",
        warm_ttl_s: float | None = None,
        exchange: Exchange | None = None,
        clock: Callable[[], float] = time.monotonic,
        foresight: Foresight | None = None,
    ) -> None:
        self.store, self.exchange = store, exchange
        self.foresight = foresight or Foresight(clock=clock)
        if (catalog := store.parts.catalog) is not None:
            catalog.waits = lambda: self.foresight.waits
        self.restored_bytes = self.ahead_bytes = 0  #: read for requests that started, and ahead of need
        self.warm = Warm(
            warm_bytes,
            codec=warm_codec,
            ttl_s=warm_ttl_s,
            costs=store.costs,
            pins=store.pins,
            is_stored=store.is_stored,
            wait_of=self.foresight.wait_of,
            clock=clock,
        )

    def attach(
        self, identity: str, layout: Layout, host: str, facts: Mapping[str, str], report: Progress = silent
    ) -> None:
        """Open the KV of one model: ``Store.attach``, and an empty warm tier."""
        self.store.attach(identity, layout, host, facts, report)
        self.warm.attach(identity, layout, host, self.store.chunk_tokens)
        self._layout = layout
        if self.exchange is not None:
            self.exchange.attach(identity, layout)

    def match(self, ids: Ids) -> Match:
        """Return the longest stored prefix of ``ids``; O(len(ids)) hashing, in memory."""
        return lookup.find(self.warm, self.store.match(ids), ids)

    def source(self, match: Match, n_tokens: int) -> MeteredSource:
        """Open the first ``n_tokens`` of a match for reading. Damage is noted by the source, never raised.

        Fewer than the whole match only where every layer of the model can be truncated at any token.
        """
        n_warm = match.n_warm
        rest = self.store.source(match, n_tokens, start=n_warm) if n_tokens > n_warm else None
        return rest if rest is not None and not n_warm else WarmSource(self.warm, match, n_tokens, rest)

    def fetched_source(self, fetched: Fetched, match: Match) -> MeteredSource:
        """Open KV that was fetched, behind the store's own first tokens by ``match``, for reading."""
        before = self.source(match, fetched.start) if fetched.start else None
        return FetchedSource(self._layout, fetched, before)

    def prefetch(self, match: Match, done: Callable[[], object] | None = None) -> None:
        """Read the files that a match needs, before they are needed; returns at once.

        ``done`` is called once they are read, on the I/O thread.
        """
        if match.tier == "cold":
            self.store.prefetch(match, start=match.n_warm, done=done)

    def count(self, n_bytes: int, *, is_ahead: bool) -> None:
        """Count bytes that a source has read."""
        if is_ahead:
            self.ahead_bytes += n_bytes
        else:
            self.restored_bytes += n_bytes

    @property
    def figures(self) -> Mapping[str, Any]:
        """Figures of warm, of what was restored, and of what is expected."""
        foresight = self.foresight
        return {
            "warm_bytes": self.warm.n_bytes,
            "warm_evictions": self.warm.n_evicted,
            "restored_bytes": self.restored_bytes,
            "ahead_bytes": self.ahead_bytes,
            "ahead": {"useful": foresight.n_useful, "wasted": foresight.n_wasted},
            "foresight": "learned" if foresight.is_followed else "last use",
        }

    def touch(self, match: Match) -> None:
        """Note that a match, and the pieces that it depends on, were used now."""
        self.warm.touch(held for held, _ in match.warm)
        self.store.touch(match)

    def following(self, match: Match) -> Ids | None:
        """Return ids with which a stored lineage continues otherwise than the prompt; None where none does."""
        return self.store.following(match)
