"""Finding what a prompt can start from: the longest prefix in the hot tier or on disk, and why it is not longer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_memory.kvcache.layout import Layout
from agent_memory.protocols import Batch
from agent_memory.scheduler.request import Prompt
from agent_memory.scheduler.row import Base
from agent_memory.scheduler.saving import Saver
from agent_memory.store.tiers import HotTier
from agent_memory.types import weakest

if TYPE_CHECKING:
    from agent_memory.store.store import Match, Store


log = logging.getLogger("agent_memory.reuse")


class Reuse:
    """The longest prefix wins; hot before cold among equals. Engine thread only.

    At least one id is always left to compute: its logits give the first token.
    """

    def __init__(self, hot: HotTier, store: Store, saver: Saver, layout: Layout) -> None:
        self._hot, self._store, self._saver, self._layout = hot, store, saver, layout

    def find(self, batch: Batch, prompt: Prompt, owner: str | None) -> Base:
        """A base for ``prompt``; its KV is the caller's alone."""
        wanted = np.array(prompt.ids[:-1], np.uint32)
        cold = self._store.match(wanted)
        stopped = cold.stopped
        base = self._from_hot(wanted, owner, at_least=cold.n_tokens)
        try:
            while base is None and cold.n_tokens:
                base = self._from_store(batch, cold)
                if base is None:  # damaged: the store has forgotten those pieces by now and matches less
                    cold = self._store.match(wanted)
                    stopped = cold.stopped
        except Exception as error:  # noqa: BLE001 - whatever a restore dies of is a miss: the log has all it takes
            stopped = f"restore failed: {type(error).__name__}: {error}"
            log.warning("%d tokens are recomputed: %s", cold.n_tokens, stopped)
        base = base or Base(kv=batch.empty())
        if base.n_tokens < min(prompt.known, len(wanted)) or (prompt.foreign and not base.n_tokens):
            base.exactness = weakest(base.exactness, "recomputed")
            base.miss = self._reason(prompt, stopped)
        return base

    def _from_store(self, batch: Batch, cold: Match) -> Base | None:
        """A base read from disk; None, before anything was computed on it, where a checksum was wrong."""
        source = self._store.source(cold, cold.n_tokens)
        try:
            kv = batch.restore(source)
            if not source.check():
                return None
        finally:
            source.close()
        self._store.touch(cold)
        return Base(kv=kv, n_tokens=cold.n_tokens, made=cold.made, tier="cold", exactness=cold.exactness)

    def _from_hot(self, wanted: np.ndarray[Any, Any], owner: str | None, at_least: int) -> Base | None:
        lineage, n_tokens = self._hot.match(wanted, owner)
        if lineage is None or n_tokens < max(1, at_least):
            return None
        self._saver.settle(lineage)
        if self._hot.is_moved(lineage, n_tokens, owner):
            self._hot.take(lineage)
            if not lineage.trim(n_tokens):
                return None
            kv = lineage.kv
        else:
            self._hot.touch(lineage)
            twin = lineage.kv.copy(n_tokens)
            if twin is None:
                return None
            kv = twin
        return Base(kv=kv, n_tokens=n_tokens, made=lineage.made[:n_tokens], tier="hot", exactness=lineage.exactness)

    def _reason(self, prompt: Prompt, stopped: str | None) -> str:
        if prompt.foreign:
            return "other model"
        if not self._layout.is_storable:
            return f"not stored: {self._layout.unstored[0]}"
        return stopped or "not stored"
