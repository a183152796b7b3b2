"""Exchange: one store's traffic with the bucket that hosts share."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping

from attrs import evolve

from agent_memory.config import chosen_codec
from agent_memory.errors import ClosedError
from agent_memory.exchange.adopting import adopt
from agent_memory.exchange.chunks import Fetched
from agent_memory.exchange.fetch import PATIENCE_S, Fetch, Terms
from agent_memory.exchange.fetcher import Fetcher
from agent_memory.exchange.figures import Figures
from agent_memory.exchange.opening import Remote
from agent_memory.exchange.publisher import Publisher
from agent_memory.exchange.stored import Stored
from agent_memory.kvcache.coding import fitted, is_lossy, token_bytes
from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.chunks import chunk_chain, root_id
from agent_memory.prefix.pieces import Ids
from agent_memory.prefix.resume import Needs
from agent_memory.store.catalog import Catalog
from agent_memory.store.store import Store

log = logging.getLogger("agent_memory.remote")

NOT_THERE_S = 5.0  #: how long a missing chunk is not asked for again
_MOST_MISSING = 8192


class Exchange:
    """Publishes what the store commits, and fetches what it lacks.

    - The engine thread asks, and never waits: requests await a ``Fetch``, each for a while (``Awaited``).
    - Publishing has a thread of its own, fetches have theirs; the I/O thread never waits for the network.
    - KV that is fetched is in memory until a request has restored it (``held_bytes``), and is adopted by the store.
    """

    def __init__(self, remote: Remote, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.remote, self._store, self._clock = remote, store, clock
        self._figures, self._stored = Figures(), Stored()
        self._publisher = Publisher(remote, self._stored, self._figures, self._catalog, is_writing=self.publishes)
        self._fetcher: Fetcher | None = None
        self._terms: Terms | None = None
        self._lock = threading.Lock()
        self._asked: dict[bytes, Fetch] = {}  # first chunk -> the fetch that is on its way
        self._missing: dict[bytes, float] = {}  # chunk -> until when it is not asked for
        self._held: weakref.WeakSet[Fetched] = weakref.WeakSet()
        self._n_spared = 0  # questions that were not asked while another one hung
        self._is_closed = False
        self.wake: Callable[[], None] = _nothing  #: called on another thread when a fetch has ended
        self._adopting = threading.Lock()  # held from the entry of what is adopted until its writes are queued
        self._n_forgotten = 0
        store.at_close, store.at_forget = self.close, self.forget

    def _catalog(self) -> Catalog | None:
        return self._store.parts.catalog

    @property
    def publishes(self) -> bool:
        """True if what the store commits is published."""
        return self.remote.is_writing and self._store.has_disk and not self._store.is_read_only

    def attach(self, identity: str, layout: Layout) -> None:
        """Exchange the KV of one model from now on. Engine thread."""
        size, codec = self._store.chunk_tokens, fitted(layout, chosen_codec(self.remote.codec, {}))
        codec = codec if is_lossy(layout, codec) else "exact"
        needs = None if layout.is_full else Needs.of(layout, size)
        self._terms = None
        if layout.is_storable:
            self._terms = Terms(identity=identity, layout=layout, codec=codec, needs=needs, chunk_tokens=size)
        catalog = self._catalog()
        if self.publishes and catalog is not None:
            catalog.disk.on_stored = self._publisher.offer
        self._publisher.probe()

    def held_bytes(self) -> int:
        """Return the bytes of fetched KV that no request has restored yet. Any thread."""
        with self._lock:
            return sum(one.n_bytes for one in list(self._held))

    # engine thread

    def ask(self, ids: Ids, n_have: int, n_stored: int, token_s: float | None, most_bytes: int) -> Fetch | None:
        """Ask for KV of ``ids`` beyond the first ``n_have``; None if that cannot pay. Returns at once.

        ``n_stored``: of these, as many are in the store. ``token_s``: seconds to compute a token; None: not measured.
        ``most_bytes``: what may be held in memory for it.
        """
        terms = self._terms
        if terms is None or self._is_closed:
            return None
        if self._store.has_disk and not self._store.is_read_only:
            terms = evolve(terms, codec=self._store.codec)  # ``choose_codec`` may have changed it
        size = terms.chunk_tokens
        start = 0 if terms.needs is not None else n_stored // size
        per_chunk = max(1, token_bytes(terms.layout, terms.codec) * size)
        stop = min(len(ids) // size, start + most_bytes // per_chunk)
        n_gained = stop * size - n_have
        if n_gained < size or stop <= start:
            return None
        chain = chunk_chain(root_id(terms.identity), ids[: stop * size], size)
        first, last = chain[start], chain[-1]
        with self._lock:
            same = self._asked.get(first)
            if same is not None and same.is_coming:
                return same
            until = max(self._missing.get(chunk, 0.0) for chunk in (first, last))
            if self._clock() < until:
                return None
            if any(one.is_hanging for one in self._asked.values()):
                self._n_spared += 1
                return None
        expected_s = self.remote.rates.fetch_s((stop - start) * per_chunk)
        if token_s and expected_s is not None and expected_s > n_gained * token_s:
            self.remote.rates.is_worth((stop - start) * per_chunk, n_gained, 1 / token_s)  # counts the decision
            return None
        is_open = self.remote.breaker.figures().is_open
        if is_open and not self.remote.breaker.is_due():
            return None
        patience_s = 0.0 if is_open else PATIENCE_S  # no request waits to find out whether a dead remote is back
        fetch = Fetch(
            ids[: stop * size].copy(), start, n_have, token_s, self._clock, patience_s=patience_s, most_bytes=most_bytes
        )
        self._start(fetch, terms, first, last)
        return fetch

    def _start(self, fetch: Fetch, terms: Terms, first: bytes, last: bytes) -> None:
        with self._lock:
            self._asked[first] = fetch
        if self._fetcher is None:
            self._fetcher = Fetcher(self.remote, self._stored, self._figures, self._clock)
        catalog, n_forgotten = self._catalog(), self._n_forgotten

        def ended(found: Fetched | None) -> None:
            self._ended(fetch, first, last, found)
            if found is None:
                return
            try:
                self._adopt(terms, catalog, found, n_forgotten)
            except ClosedError:
                log.debug("remote: the store was closed before what was fetched was stored")
            except Exception:  # thread boundary: the requests have the KV already, and nobody reads the pool's future
                log.exception("remote: %d fetched tokens are not stored", found.stop - found.start)

        self._fetcher.start(fetch, terms, catalog, ended)

    # a fetch's thread

    def _ended(self, fetch: Fetch, first: bytes, last: bytes, found: Fetched | None) -> None:
        with self._lock:
            if self._asked.get(first) is fetch:
                del self._asked[first]
            if fetch.is_missing:
                self._missing[first if fetch.lacks_first else last] = self._clock() + NOT_THERE_S
                while len(self._missing) > _MOST_MISSING:
                    del self._missing[next(iter(self._missing))]
            if found is not None:
                self._held.add(found)
        fetch.end(found)
        self.wake()

    def _adopt(self, terms: Terms, catalog: Catalog | None, found: Fetched, n_forgotten: int) -> None:
        """Store what was fetched, unless something was forgotten since it was asked for: it may be of that."""
        if catalog is None or self._is_closed:
            return
        name, size = self.remote.names.chunk, terms.chunk_tokens
        chain = chunk_chain(root_id(terms.identity), found.ids, size)
        names = [name(one, "rows", terms.codec) for one in chain[found.start // size :]]
        if found.resume is not None:
            names.append(name(chain[-1], "resume", terms.codec))
        self._publisher.knows(names)
        with self._adopting:
            if n_forgotten == self._n_forgotten:
                adopt(catalog, terms.identity, found)

    # any thread

    def took(self, n_tokens: int) -> None:
        """Count tokens that a request has taken up."""
        self._figures.count("fetched_tokens", n_tokens)

    def forget(self) -> None:
        """Adopt nothing that was asked for before now: an agent, or a text, is about to be deleted."""
        with self._adopting:
            self._n_forgotten += 1
        if self.publishes:
            log.warning(
                "remote %s: what was published of a deleted agent or a forgotten text stays there until the bucket's "
                "age rule removes it, or the key is dropped",
                self.remote.bucket.place,
            )

    def settle(self, timeout_s: float) -> bool:
        """Wait until what was committed is published, True, or for a time, False."""
        return self._publisher.wait(timeout_s)

    def figures(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return what was counted so far: events, and bytes."""
        link, outages = self.remote.rates.figures(), self.remote.breaker.figures()
        events = {
            **self._figures.counts(),
            "fetches_chosen": link.n_fetched,
            "computing_chosen": link.n_computed,
            "skipped": outages.n_skipped + self._n_spared,
            "outages": outages.n_outages,
        }
        return events, self._figures.bytes()

    def facts(self) -> Mapping[str, str]:
        """Return what is known of the remote, in words, without secrets."""
        link, outages = self.remote.rates.figures(), self.remote.breaker.figures()
        rate = "not measured" if link.bytes_per_s is None else f"{link.bytes_per_s / 1e6:,.0f} MB/s"
        round_s = "not measured" if link.latency_s is None else f"{link.latency_s * 1e3:,.1f} ms a round"
        known = {True: "honoured", False: "ignored: a later writer overwrites", None: "not known yet"}
        return {
            "remote": self.remote.bucket.place,
            "remote_state": f"left alone for now: {outages.last_error}" if outages.is_open else "in use",
            "remote_link": f"{rate}, {round_s}",
            "remote_conditions": known[self._publisher.conditions],
            "remote_key": "none: whoever reads the bucket reads the KV" if self.remote.keys.is_public else "set",
            "remote_write": "on" if self.publishes else "off",
        }

    def close(self) -> None:
        """Publish what is queued, for some seconds at most, and end all threads. Idempotent."""
        self._publisher.close()
        self._is_closed = True
        if self._fetcher is not None:
            self._fetcher.close()
        self.remote.bucket.close()
        self._publisher.join(10.0)
        if self._fetcher is not None:
            self._fetcher.join()


def _nothing() -> None:
    """Do nothing."""
