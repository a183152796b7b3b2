"""Idle work of a workspace, in small steps until the time is used: retention, vectors, the audit.

Each step is a short transaction of its own; no thread is started. What a step leaves undone is found again by the next
call, also in another process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import define, field

from agent_memory.recall import audit, forgetting, vectors
from agent_memory.recall.database import Database
from agent_memory.recall.protocols import Embedder
from agent_memory.recall.scope import Scope
from agent_memory.recall.types import Maintained

_EMBEDDED_AT_ONCE = 16
_EXPIRED_AT_ONCE = 200


@define
class Maintenance:
    """One call's work."""

    database: Database
    scope: Scope
    embedder: Embedder | None
    now: float
    retain_s: float | None
    max_s: float
    _started: float = field(factory=time.perf_counter, init=False)

    def run(self) -> Maintained:
        """Do what is due, the most needed first; at least one step."""
        n_expired = self._repeat(self._expire)
        if n_expired:
            self.database.scrub()
        n_embedded = self._repeat(self._embed)
        with self.database.write() as db:
            n_audit = audit.drop_old(db, self.scope)
            if self.embedder is not None:
                vectors.drop_others(db, self.scope, self.embedder.fingerprint)
        return Maintained(
            n_embedded=n_embedded,
            n_expired=n_expired,
            n_audit_rows_dropped=n_audit,
            is_done=not self._is_over() or not self._has_work(),
            ms=(time.perf_counter() - self._started) * 1e3,
        )

    def _repeat(self, step: Callable[[], int]) -> int:
        total = 0
        while n := step():
            total += n
            if self._is_over():
                break
        return total

    def _is_over(self) -> bool:
        return time.perf_counter() - self._started >= self.max_s

    def _has_work(self) -> bool:
        if self.embedder is None:
            return False
        with self.database.read() as db:
            return bool(vectors.pending(db, self.scope, self.embedder, 1))

    def _expire(self) -> int:
        if self.retain_s is None:
            return 0
        with self.database.write() as db:
            texts = forgetting.texts_before(db, self.scope, self.now - self.retain_s, _EXPIRED_AT_ONCE)
            if texts:
                forgetting.delete_texts(db, self.scope, texts, self.now, "expire")
                self.database.owe_scrub(db)
        return len(texts)

    def _embed(self) -> int:
        """The model runs outside of the transaction: writers do not wait for it."""
        if self.embedder is None:
            return 0
        with self.database.read() as db:
            due = vectors.pending(db, self.scope, self.embedder, _EMBEDDED_AT_ONCE)
        if not due:
            return 0
        found = vectors.unit(self.embedder, [text for _, text in due])
        with self.database.write() as db:
            vectors.store(db, self.scope, self.embedder, [item for item, _ in due], found)
        return len(due)
