"""Idle work of a workspace, in small steps while there is time: retention, index, vectors, extraction, the audit.

Each step is a short transaction of its own; no thread is started. What a step leaves undone is found again by the next
call, also in another process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from attrs import define, field

from agent_memory.recall import audit, extraction, forgetting, vectors
from agent_memory.recall.listening import Listener
from agent_memory.recall.protocols import Embedder, Extractor
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Storage
from agent_memory.recall.types import Maintained

log = logging.getLogger("agent_memory.recall")

_EMBEDDED_AT_ONCE = 16
_EXPIRED_AT_ONCE = 200


@define
class Maintenance:
    """One call's work. Goes on while there is time, by what the step before took."""

    listener: Listener
    embedder: Embedder | None
    extractor: Extractor | None
    now: float
    retain_s: float | None
    max_s: float
    _started: float = field(factory=time.perf_counter, init=False)
    _n_failures: int = field(default=0, init=False)
    _n_at_once: int = field(default=1, init=False)
    _is_merged: bool = field(default=False, init=False)

    @property
    def database(self) -> Storage:
        """The file."""
        return self.listener.database

    @property
    def scope(self) -> Scope:
        """The workspace."""
        return self.listener.scope

    def run(self) -> Maintained:
        """Do what is due, the most needed first; at least one step of each kind that has any."""
        n_expired = self._repeat(self._expire)
        if n_expired:
            self.database.scrub()
        else:
            self.database.finish_scrub()
        n_merged = self._repeat(self._merge)
        n_embedded = self._repeat(self._embed)
        n_extracted = self._repeat(self._extract)
        with self.database.write() as db:
            n_audit = audit.drop_old(db, self.scope)
            if self.embedder is not None:
                vectors.drop_others(db, self.scope, self.embedder.fingerprint)
        return Maintained(
            n_embedded=n_embedded,
            n_extracted=n_extracted,
            n_extraction_failures=self._n_failures,
            n_expired=n_expired,
            n_pages_merged=n_merged,
            n_audit_rows_dropped=n_audit,
            is_done=not self._is_over() or not self._has_work(),
            ms=(time.perf_counter() - self._started) * 1e3,
        )

    def _repeat(self, step: Callable[[], int | None]) -> int:
        """Run ``step`` while it finds something and there is time; None: nothing is due."""
        total = 0
        while (n := step()) is not None:
            total += n
            if self._is_over():
                break
        return total

    def _is_over(self) -> bool:
        return time.perf_counter() - self._started >= self.max_s

    def _has_work(self) -> bool:
        if not self._is_merged:
            return True
        with self.database.read() as db:
            is_unread = self.extractor is not None and extraction.first_unread(db, self.scope) is not None
            return is_unread or (self.embedder is not None and bool(vectors.pending(db, self.scope, self.embedder, 1)))

    def _expire(self) -> int | None:
        if self.retain_s is None:
            return None
        before = self.now - self.retain_s
        with self.database.read() as db:
            texts = forgetting.texts_before(db, self.scope, before, _EXPIRED_AT_ONCE)
        items = self.listener.items(texts)
        self.listener.tell(items)  # first: after a crash, the next call finds the texts again
        with self.database.write() as db:
            texts &= forgetting.texts_before(db, self.scope, before, _EXPIRED_AT_ONCE)  # some were told again
            if texts:
                self.listener.note(db, items)
                forgetting.delete_texts(db, self.scope, texts, self.now, "expire")
                self.database.owe_scrub(db)
        return len(texts) or None

    def _merge(self) -> int | None:
        n_pages = self.database.merge_words()
        self._is_merged = n_pages is None
        return n_pages

    def _embed(self) -> int | None:
        """The model runs outside of the transaction: writers do not wait for it. Begins with one text, to see how long
        it takes."""
        if self.embedder is None:
            return None
        with self.database.read() as db:
            due = vectors.pending(db, self.scope, self.embedder, self._n_at_once)
        if not due:
            return None
        started = time.perf_counter()
        found = vectors.unit(self.embedder, [text for _, text in due])
        took_s = (time.perf_counter() - started) / len(due)
        with self.database.write() as db:
            vectors.store(db, self.scope, self.embedder, [item for item, _ in due], found)
        left_s = self.max_s - (time.perf_counter() - self._started)
        self._n_at_once = max(1, min(_EMBEDDED_AT_ONCE, int(left_s / max(took_s, 1e-6))))
        return len(due)

    def _extract(self) -> int | None:
        """Read one piece. What the extractor raises is counted: the rules' items stand."""
        if self.extractor is None:
            return None
        with self.database.read() as db:
            unread = extraction.first_unread(db, self.scope)
        if unread is None:
            return None
        try:
            found = list(self.extractor.extract(unread.body))
            with self.database.write() as db:
                return len(extraction.file_found(db, self.scope, unread, found, self.extractor.name, self.now))
        except Exception as error:  # noqa: BLE001 - whatever an extractor raises, nothing of the text is lost
            log.warning("an extractor failed on a text of workspace %r: %s", self.scope.name, type(error).__name__)
            self._n_failures += 1
        with self.database.write() as db:
            extraction.note_failure(db, self.scope, unread, self.now)
        return 0
