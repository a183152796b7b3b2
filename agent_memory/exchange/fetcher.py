"""Fetches chunks from the bucket: one round of look-ups, a decision, parallel transfers, verification."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from attrs import frozen

from agent_memory.errors import ClosedError, repr_of
from agent_memory.exchange.chunks import (
    ROOT_TAG,
    Asked,
    Chunk,
    Fetched,
    Resume,
    promises,
    read_chunk,
    read_resume,
)
from agent_memory.exchange.fetch import Fetch, Terms
from agent_memory.exchange.figures import Figures
from agent_memory.exchange.opening import Remote
from agent_memory.exchange.stored import GoneError, Stored
from agent_memory.kvcache.coding import coded, token_bytes
from agent_memory.log.soundness import BAD_JSON
from agent_memory.prefix.authors import Origins, unpacked
from agent_memory.prefix.chunks import chunk_chain, root_id
from agent_memory.remote.bodies import Body
from agent_memory.remote.failures import BucketError, ObjectDamagedError
from agent_memory.remote.objects import RemoteObject, open_object
from agent_memory.store.catalog import Catalog
from agent_memory.types import Exactness, weakest

log = logging.getLogger("agent_memory.remote")

_T = TypeVar("_T")

_TRANSFERS = 8  #: at once
_SLACK_BYTES = 1 << 20  #: an object may be so much larger than its rows: header and seals
_ID_BYTES = 4


@frozen(kw_only=True)
class _Plan:
    """The objects of a fetch: of chunks ``[start, stop)``, and what other layers need at the end, if they need any."""

    start: int  #: chunks, counted from the lineage's first
    rows: Sequence[tuple[str, int]]  #: name and bytes
    resume: tuple[str, int] | None

    @property
    def n_bytes(self) -> int:
        return sum(size for _, size in self.rows) + (0 if self.resume is None else self.resume[1])


class Fetcher:
    """Runs fetches on threads of its own, started by the first. Any thread.

    - A chunk that is missing ends the lineage. ``is_missing`` remembers that for some seconds.
    - An object that is larger than what was asked for can be is damaged: none of its bytes is read.
    - Each object is verified, and compared with the ids, before anyone sees it. A damaged one ends the fetch before it.
    - A call that fails opens the breaker, and ends the fetch likewise.
    - In memory at once: what is decrypted, and of each of ``_TRANSFERS`` transfers the part that is read (of a folder)
      or the object (of a bucket). Once a fetch is late no further transfer begins.
    """

    def __init__(self, remote: Remote, stored: Stored, figures: Figures, clock: Callable[[], float]) -> None:
        self._remote, self._stored, self._figures, self._clock = remote, stored, figures, clock
        self._looks = ThreadPoolExecutor(4, thread_name_prefix="agent_memory-fetch")
        self._gets = ThreadPoolExecutor(_TRANSFERS, thread_name_prefix="agent_memory-transfer")
        self._is_closed = False

    def start(
        self, fetch: Fetch, terms: Terms, catalog: Catalog | None, ended: Callable[[Fetched | None], None]
    ) -> None:
        """Run a fetch; ``ended`` is called on its thread with what came of it."""
        try:
            self._submit(self._looks, partial(self._run, fetch, terms, catalog, ended))
        except ClosedError:
            ended(None)

    def close(self) -> None:
        """End the threads; transfers that run end by their time limits. Idempotent."""
        self._is_closed = True
        self._looks.shutdown(wait=False, cancel_futures=True)
        self._gets.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait for the threads, after ``close`` and the bucket's."""
        self._looks.shutdown(wait=True)
        self._gets.shutdown(wait=True)

    def _run(
        self, fetch: Fetch, terms: Terms, catalog: Catalog | None, ended: Callable[[Fetched | None], None]
    ) -> None:
        found = None
        try:
            plan = self._look(fetch, terms)
            if plan is not None and not fetch.is_late:
                found = self._transfer(fetch, terms, catalog, plan)
        except (ClosedError, CancelledError):
            log.debug("remote: a fetch was cut off: the store is closed")
        except Exception:  # thread boundary: whatever went wrong, the requests that wait go on
            log.exception("remote: a fetch failed")
            self._figures.count("failed")
        finally:
            if fetch.is_late:
                self._figures.count("late")
            ended(found)

    def _look(self, fetch: Fetch, terms: Terms) -> _Plan | None:
        """Return the objects to fetch; None if nothing is there, computing is faster, or the bucket does not say."""
        size, names, bucket = terms.chunk_tokens, self._remote.names, self._remote.bucket
        chain = chunk_chain(root_id(terms.identity), fetch.ids, size)
        rows = [names.chunk(one, "rows", terms.codec) for one in chain[fetch.start :]]
        resumes = [names.chunk(one, "resume", terms.codec) for one in chain] if terms.needs is not None else []
        began = time.perf_counter()
        try:
            sizes = self._asked(lambda: bucket.sizes([*rows, *resumes]))
        except BucketError:
            return None
        if sizes is None:
            return None
        fetch.is_answered = True
        self._remote.rates.answered(time.perf_counter() - began)
        self._figures.count("asked")
        row_bytes, resume_bytes = _most_bytes(fetch, terms)
        sizes = self._believed([*rows, *resumes], sizes, [row_bytes] * len(rows) + [resume_bytes] * len(resumes))
        there = _leading(rows, sizes)
        resume: tuple[str, int] | None = None
        if terms.needs is not None:
            ends = dict(enumerate(sizes[len(rows) :], 1))
            n = next((n for n in range(len(there), 0, -1) if ends.get(n) is not None), 0)
            there, resume = there[:n], (resumes[n - 1], ends[n] or 0) if n else None
        plan = _Plan(start=fetch.start, rows=there, resume=resume)
        n_gained = (fetch.start + len(there)) * size - fetch.n_have
        if n_gained <= 0:
            self._figures.count("not_there")
            fetch.is_missing, fetch.lacks_first = True, sizes[0] is None
            return None
        rate = None if not fetch.token_s else 1 / fetch.token_s
        if not self._remote.rates.is_worth(plan.n_bytes, n_gained, rate):
            return None
        fetch.expect(self._remote.rates.fetch_s(plan.n_bytes))
        return plan

    def _believed(self, names: Sequence[str], sizes: Sequence[int | None], most: Sequence[int]) -> list[int | None]:
        """Return the sizes, None for an object of more than ``_SLACK_BYTES`` above its limit; warn of the first."""
        found: list[int | None] = []
        is_told = False
        for name, n_bytes, limit in zip(names, sizes, most, strict=True):
            is_wrong = n_bytes is not None and n_bytes > limit + _SLACK_BYTES
            found.append(None if is_wrong else n_bytes)
            if is_wrong and not is_told:
                is_told = True
                self._damaged(name, ObjectDamagedError(f"it has {n_bytes:,} bytes, of which at most {limit:,} are KV"))
        return found

    def _asked(self, call: Callable[[], _T]) -> _T | None:
        """Return what the bucket answers; None if the breaker is open. Raises BucketError, counted."""
        try:
            return self._remote.breaker.call(call)
        except BucketError:
            self._figures.count("failed")
            raise

    def _transfer(self, fetch: Fetch, terms: Terms, catalog: Catalog | None, plan: _Plan) -> Fetched | None:
        """Return what came of a plan's objects, verified: all of them, or where that is of use the first ones."""
        began, size = time.perf_counter(), terms.chunk_tokens
        asked = [
            Asked(start=n * size, ids=fetch.ids[n * size : (n + 1) * size], codec=terms.codec)
            for n in range(plan.start, plan.start + len(plan.rows))
        ]
        coming = [
            self._submit(self._gets, partial(self._chunk, fetch, name, n_bytes, one, terms))
            for (name, n_bytes), one in zip(plan.rows, asked, strict=True)
        ]
        resuming = None
        if plan.resume is not None:
            resuming = self._submit(self._gets, partial(self._resume, fetch, *plan.resume, asked[-1].stop, terms))
        chunks = list(self._arrived(fetch, coming))
        resume = None if resuming is None else next(self._arrived(fetch, [resuming]), None)
        if chunks:
            n_bytes = sum(one.n_bytes for one in chunks) + (0 if resume is None else resume.n_bytes)
            self._remote.rates.moved(n_bytes, time.perf_counter() - began)
            self._figures.count("bytes fetched", n_bytes)
        if not chunks or (resuming is not None and (resume is None or len(chunks) < len(plan.rows))):
            return None
        tag, before = self._before(fetch, terms, catalog)
        said = promises(chunks, tag)
        if resume is not None:
            is_one_run = resume.tag == chunks[-1].tag
            last: Exactness = weakest(said[-1], resume.exactness, "moved" if is_one_run else "recomputed")
            said = [*said[:-1], last]
        self._figures.count("fetched_chunks", len(chunks))
        return Fetched(
            ids=fetch.ids[: chunks[-1].stop],
            start=plan.start * size,
            chunks=chunks,
            promises=said,
            resume=resume,
            before=before,
        )

    def _submit(self, pool: ThreadPoolExecutor, call: Callable[[], _T]) -> Future[_T]:
        """Run a call on one of a pool's threads. Raises ClosedError after ``close``."""
        try:
            return pool.submit(call)
        except RuntimeError:
            if not self._is_closed:
                raise
            raise ClosedError from None

    def _arrived(self, fetch: Fetch, coming: Sequence[Future[_T | None]]) -> Iterator[_T]:
        """Yield what came, in order, up to the first that did not come or is not genuine, or to the fetch's limit."""
        is_open = True
        for one in coming:
            if is_open and not fetch.is_late:
                try:
                    if (found := one.result()) is not None:
                        yield found
                        continue
                except (BucketError, ObjectDamagedError):
                    pass  # counted where it was raised
            is_open = False
            one.cancel()

    def _before(self, fetch: Fetch, terms: Terms, catalog: Catalog | None) -> tuple[str | None, Origins]:
        """Return the tag of the store's own chunks before the first fetched one, and the authors of their tokens.

        No tag if they cannot be read.
        """
        nothing = unpacked(())
        if not fetch.start:
            return ROOT_TAG, nothing
        if catalog is None:
            return None, nothing
        with catalog.lock:
            model = catalog.model
            if model is None or model.identity != terms.identity:
                return None, nothing
            pieces = model.index.chunks(fetch.ids[: fetch.start * terms.chunk_tokens], ready=True)
            authors = unpacked((piece.authors, piece.n_tokens) for piece in pieces)
        if len(pieces) < fetch.start:
            return None, nothing
        try:
            return self._stored.tag(catalog, pieces), authors
        except GoneError:
            return None, nothing

    def _chunk(self, fetch: Fetch, name: str, n_bytes: int, asked: Asked, terms: Terms) -> Chunk | None:
        return self._get(fetch, name, n_bytes, lambda found: read_chunk(found, asked, terms.layout))

    def _resume(self, fetch: Fetch, name: str, n_bytes: int, stop: int, terms: Terms) -> Resume | None:
        needs = terms.needs
        assert needs is not None
        return self._get(fetch, name, n_bytes, lambda found: read_resume(found, stop, terms.codec, terms.layout, needs))

    def _get(self, fetch: Fetch, name: str, n_bytes: int, read: Callable[[RemoteObject], _T]) -> _T | None:
        """Return what ``read`` makes of an object; None if it is gone since, the breaker is open, or nobody waits.

        A part is decrypted as it is read, and the next one comes meanwhile. Raises ObjectDamagedError, counted.
        """
        if fetch.is_late:
            return None
        bucket, keys = self._remote.bucket, self._remote.keys

        def take(body: Body) -> _T:
            try:
                return read(open_object(name, keys, body))
            except ObjectDamagedError:
                raise
            except BAD_JSON as error:  # a header may say anything: the bucket did not fail
                raise ObjectDamagedError(f"object {name}: {repr_of(error)}") from error

        try:
            return self._asked(lambda: bucket.read(name, take, max_bytes=n_bytes + _SLACK_BYTES))
        except ObjectDamagedError as error:
            self._damaged(name, error)
            raise

    def _damaged(self, name: str, error: ObjectDamagedError) -> None:
        self._figures.count("damaged")
        log.warning("remote: object %s is not used, and its KV is computed: %s", name[:20], error)


def _most_bytes(fetch: Fetch, terms: Terms) -> tuple[int, int]:
    """Return the most bytes of a chunk's rows, and of what other layers need at one's end, without header and seals.

    The second is the request's own budget where that is more: states of a class that is not known grow as they like.
    """
    layout, needs, n = terms.layout, terms.needs, len(fetch.ids)
    rows = (token_bytes(layout, terms.codec) + _ID_BYTES) * terms.chunk_tokens
    if needs is None:
        return rows, 0
    encoded = sum(coded(spec, terms.codec).token_bytes for spec in layout.windows)
    windows = needs.window * max(layout.window_token_bytes, encoded)
    return rows, max(fetch.most_bytes, windows + 2 * layout.state_bytes_at(n, n))


def _leading(names: Sequence[str], sizes: Sequence[int | None]) -> list[tuple[str, int]]:
    """Return the names before the first missing one, with their sizes."""
    found: list[tuple[str, int]] = []
    for name, n_bytes in zip(names, sizes, strict=False):
        if n_bytes is None:
            break
        found.append((name, n_bytes))
    return found
