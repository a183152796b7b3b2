"""Publishes the store's chunks to the bucket, behind the replies and after their commit."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from agent_memory.errors import ClosedError
from agent_memory.exchange.chunks import ROOT_TAG, Chunk, Resume
from agent_memory.exchange.figures import Figures
from agent_memory.exchange.opening import Remote
from agent_memory.exchange.stored import GoneError, Stored, Whole
from agent_memory.remote.breaker import Breaker
from agent_memory.remote.bucket import PROBE
from agent_memory.remote.failures import BucketError
from agent_memory.remote.objects import write_object
from agent_memory.store.catalog import Catalog

log = logging.getLogger("agent_memory.remote")

_T = TypeVar("_T")

_UNWATCHED_S = 5.0  #: how long an answer may take that nobody waits for
_REMEMBERED = 1 << 16  #: names that are known to be there
_MOST_HEADS = 256  #: lineages that wait to be published; the oldest are dropped, and come again with their next turn


class Publisher:
    """One thread, started by the first commit, that publishes lineages one after another.

    - Of a lineage: its full chunks, the first one first, and what other layers need to resume where it ends and where
      lineages fork. Tails are not published.
    - What is there is not sent. What others put there meanwhile stays.
    - A failure ends the lineage's turn; what is missing is sent with its next commit.
    - A lineage that follows chunks which are not committed yet, as those that a fetch adopts, comes again with the next
      commit of any.
    - Nobody waits for it but ``close``, for ``close_s`` at most.
    """

    close_s = 10.0

    def __init__(
        self,
        remote: Remote,
        stored: Stored,
        figures: Figures,
        catalog: Callable[[], Catalog | None],
        *,
        is_writing: bool,
    ) -> None:
        self._remote, self._stored, self._figures, self._catalog = remote, stored, figures, catalog
        self._is_writing = is_writing
        self._puts = Breaker(f"{remote.bucket.place} (publishing)")  # who may not write may go on reading
        self._changed = threading.Condition()
        self._heads: OrderedDict[bytes, None] = OrderedDict()
        self._cut: OrderedDict[bytes, None] = OrderedDict()  # heads that follow what is not committed yet
        self._n_offers = 0
        self._is_busy = self._is_opening = self._is_closing = False
        self._thread: threading.Thread | None = None
        self._present: OrderedDict[str, None] = OrderedDict()
        self.conditions: bool | None = None  #: False: the server overwrites; None: not known yet

    def offer(self, head: bytes) -> None:
        """Queue the lineage that ends at a piece. Any thread; returns at once."""
        with self._changed:
            if self._is_closing:
                return
            self._n_offers += 1
            for one in (*self._cut, head):
                self._heads[one] = None
                self._heads.move_to_end(one)
            self._cut.clear()
            while len(self._heads) > _MOST_HEADS:
                self._heads.popitem(last=False)
                log.info("remote: %d lineages wait; the oldest is published after its next commit", _MOST_HEADS)
            self._start()
            self._changed.notify_all()

    def probe(self) -> None:
        """Let the thread connect, and ask whether the server honours conditions. Returns at once."""
        with self._changed:
            if not self._is_closing:
                self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._is_opening = True
            self._thread = threading.Thread(target=self._run, name="agent_memory-publish", daemon=True)
            self._thread.start()

    def knows(self, names: Sequence[str]) -> None:
        """Record that objects are there: they were fetched. Any thread."""
        with self._changed:
            for name in names:
                self._present[name] = None
            while len(self._present) > _REMEMBERED:
                self._present.popitem(last=False)

    def wait(self, timeout_s: float) -> bool:
        """Return once the bucket was asked for the first time and nothing is queued, True, or after a time, False."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._heads or self._cut or self._is_busy or self._is_opening), timeout_s
            )

    def close(self) -> None:
        """Publish what is queued, for ``close_s`` at most, and end the thread. Idempotent."""
        with self._changed:
            thread = self._thread
            is_needed = thread is not None and not self._is_closing and not self._remote.breaker.figures().is_open
            if is_needed:
                self._changed.wait_for(lambda: not (self._heads or self._is_busy), self.close_s)
            self._is_closing = True
            n_left = len(self._heads)
            self._heads.clear()
            self._changed.notify_all()
        if n_left:
            log.info("remote: %d lineages were not published before the Memory was closed", n_left)

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread, after ``close``."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        work: Callable[[], None] | None = self._probe
        while work is not None:
            try:
                work()
            except ClosedError:
                log.debug("remote %s was closed before all was published", self._remote.bucket.place)
            except Exception:  # thread boundary: one failure ends its own turn
                log.exception("remote: a lineage was not published, or what the bucket honours was not asked")
            work = self._next()

    def _next(self) -> Callable[[], None] | None:
        """Wait for a lineage, and return how to publish it; None at the end."""
        with self._changed:
            self._is_busy = self._is_opening = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: bool(self._heads) or self._is_closing)
            if not self._heads:
                return None
            head, _ = self._heads.popitem(last=False)
            self._is_busy = True
        return partial(self._publish, head)

    def _probe(self) -> None:
        """Connect, so that no request waits for that; ask whether a second writer is refused, and say so where not."""
        bucket = self._remote.bucket
        there = self._asked(self._remote.breaker, lambda: bucket.sizes([PROBE], timeout_s=_UNWATCHED_S))
        if there is None or not self._is_writing:
            return
        self.conditions = self._asked(self._puts, bucket.probe)
        if self.conditions is False:
            log.warning(
                "remote %s ignores conditions: of two hosts that publish one chunk the later one overwrites. KV stays "
                "right, and what relies on a refusal (moving agents by the bucket) does not",
                bucket.place,
            )

    def _asked(self, breaker: Breaker, call: Callable[[], _T]) -> _T | None:
        """Return what the bucket answers; None if the breaker is open, or the call fails."""
        try:
            return breaker.call(call)
        except BucketError:  # the breaker has said it
            self._figures.count("failed")
            return None

    def _publish(self, head: bytes) -> None:
        catalog = self._catalog()
        if catalog is None:
            return
        with self._changed:
            n_offers = self._n_offers
        pieces, is_whole = self._stored.chain(catalog, head)
        if not is_whole:
            self._put_off(head, n_offers)
        model = catalog.model
        if model is None or not pieces:
            return
        codec, names = model.codec, self._remote.names
        rows = [names.chunk(piece.id, "rows", codec) for piece in pieces]
        resumes = {}
        if model.needs is not None:
            with catalog.lock:
                forks = [n for n, piece in enumerate(pieces) if len(model.index.children(piece.id)) > 1]
                kept = [n for n, piece in enumerate(pieces) if piece.id in catalog.resume]
            wanted = {n for n in forks if n in kept} | set(kept[-1:])
            resumes = {n: names.chunk(pieces[n].id, "resume", codec) for n in sorted(wanted)}
        missing = self._missing([*rows, *resumes.values()])
        if not missing:
            return
        tag, whole = ROOT_TAG, Whole()
        try:
            for number, piece in enumerate(pieces):
                if rows[number] in missing:
                    chunk = self._stored.read(catalog, piece, tag, whole)
                    tag = chunk.tag
                    if not self._put(rows[number], chunk):
                        return
                else:
                    tag = self._stored.tag_after(catalog, piece, tag, whole)
                if (name := resumes.get(number)) is not None and name in missing:
                    found = self._stored.resume(catalog, pieces[: number + 1], tag)
                    if found is not None and not self._put(name, found):
                        return
        except GoneError as error:
            log.debug("remote: a lineage is published in part: %s", error)

    def _put_off(self, head: bytes, n_offers: int) -> None:
        """Let a lineage come again with the next commit; now, if there was one since ``n_offers``."""
        with self._changed:
            later = self._cut if n_offers == self._n_offers else self._heads
            later[head] = None
            while len(later) > _MOST_HEADS:
                later.popitem(last=False)

    def _missing(self, names: Sequence[str]) -> set[str]:
        """Return the names that are not there; none if the bucket does not say."""
        bucket = self._remote.bucket
        unknown = [name for name in names if name not in self._present]
        if not unknown:
            return set()
        sizes = self._asked(self._remote.breaker, lambda: bucket.sizes(unknown, timeout_s=_UNWATCHED_S))
        if sizes is None:
            return set()
        there = [name for name, size in zip(unknown, sizes, strict=True) if size is not None]
        self.knows(there)
        self._figures.count("present_chunks", len(there))
        return set(unknown) - set(there)

    def _put(self, name: str, one: Chunk | Resume) -> bool:
        """Store one object; False if the bucket does not take it."""
        with self._changed:
            if self._is_closing:
                return False
        body = write_object(name, self._remote.keys, one.header(), one.parts())
        is_new = self._asked(self._puts, lambda: self._remote.bucket.put_new(name, body))
        if is_new is None:
            return False
        self.knows([name])
        if is_new:
            self._figures.count("published_chunks", int(isinstance(one, Chunk)))
            self._figures.count("bytes published", len(body))
        return True
