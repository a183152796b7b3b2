"""Starting requests: which waiting requests may start, with which KV and which reserved bytes."""

from __future__ import annotations

import time
from itertools import count
from typing import Literal

from attrs import frozen

from agent_memory.exchange.fetch import Fetch
from agent_memory.protocols import ModelRunner
from agent_memory.scheduler.admission import Admission, Place
from agent_memory.scheduler.ahead import Ahead
from agent_memory.scheduler.company import Company
from agent_memory.scheduler.eviction import Evictor
from agent_memory.scheduler.faults import stripped
from agent_memory.scheduler.observer import Observer
from agent_memory.scheduler.prefill import Prefill
from agent_memory.scheduler.request import Prompt, Request
from agent_memory.scheduler.reuse import Plan, Reuse
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.saving import Saver
from agent_memory.scheduler.waiting import AGE_S, Waiting
from agent_memory.tiers.hot import Lineage
from agent_memory.tiers.tiers import Tiers

#: How an attempt to start a request ended.
Start = Literal["started", "ended", "awaits", "no bytes", "no row"]

#: Number of waiting requests whose segments are read ahead.
_PREFETCHED = 2


@frozen(eq=False)
class _Prefix:
    """A row that is computing the first ``n_tokens`` of another request's prompt."""

    row: Row
    n_tokens: int
    is_elsewhere = False

    @property
    def is_coming(self) -> bool:
        """True until the row has computed them, or has ended."""
        return self.row.kv is not None and self.row.fed < self.n_tokens and not self.row.request.feed.ended


@frozen(eq=False)
class _Bytes:
    """Bytes of lineages that are evicted once they are copied to warm."""

    saver: Saver
    leaving: tuple[Lineage, ...]
    is_elsewhere = False

    @property
    def is_coming(self) -> bool:
        """True until all are copied."""
        return any(map(self.saver.is_copying, self.leaving))


class Starting:
    """Starts requests from the line. Engine thread only.

    A request starts when
    - no other request of its agent runs or is being replied to;
    - fewer than ``max_batch`` rows run, and starting others has not taken ``target_gap_s / 2`` of this tick already;
      one whose KV has been restored together with theirs starts nevertheless;
    - the bytes that it may need at worst fit beside the running rows; idle lineages are evicted for it;
    - no row is about to have computed a long part of its prompt;
    - no more of its KV is on its way from the bucket that hosts share, or that took too long;
    - no request is being made that could be restored together with it.

    One that waits for bytes lets smaller ones pass until it has waited for ``AGE_S``. One that cannot ever start fails
    alone.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tiers: Tiers,
        admission: Admission,
        running: Running,
        waiting: Waiting,
        reuse: Reuse,
        evictor: Evictor,
        saver: Saver,
        prefill: Prefill,
        observer: Observer,
        ahead: Ahead,
        company: Company,
        *,
        max_batch: int,
        target_gap_s: float,
    ) -> None:
        self._runner, self._tiers, self._admission = runner, tiers, admission
        self._running, self._waiting = running, waiting
        self._reuse, self._evictor, self._saver, self._prefill = reuse, evictor, saver, prefill
        self._observer, self._ahead, self._company = observer, ahead, company
        self._max_batch, self._target_gap_s = max_batch, target_gap_s
        self._numbers = count()
        self.lacks_bytes = False  #: True if a request could not start in the last step because its bytes were not free

    def step(self, busy: set[str | None]) -> bool:
        """Start requests; True if any was started. ``busy``: agents whose next request must wait."""
        now, n_ahead, has_started, lacks_bytes = time.perf_counter(), 0, False, False
        self._company.begin()
        for request in self._waiting.in_order(now):
            if request.owner is not None and request.owner in busy:
                continue
            start: Start
            try:
                start = self._start(request, busy) if self._has_row(request, now) else "no row"
                if start in ("no row", "no bytes") and n_ahead < _PREFETCHED:
                    n_ahead += 1
                    self._prefetch(request)
            except Exception as error:  # noqa: BLE001 - a request that cannot start fails alone, and is not tried for ever
                request.feed.fail(stripped(error))
                start = "ended"
            if start in ("started", "ended"):
                self._waiting.remove(request)
            has_started |= start == "started"
            lacks_bytes |= start == "no bytes"
            if start == "no row" or (start == "no bytes" and now - request.created > AGE_S):
                break
        self._company.clear()
        self.lacks_bytes = lacks_bytes
        return has_started

    def _has_row(self, request: Request, now: float) -> bool:
        """True if a request may start in this tick, which began at ``now``."""
        is_late = self._running.decoding and time.perf_counter() - now > self._target_gap_s / 2
        return len(self._running) < self._max_batch and (not is_late or self._company.has_restored(request))

    def _start(self, request: Request, busy: set[str | None]) -> Start:
        """Start a request, or say what it waits for. Raises the reason why it cannot ever start."""
        if request.awaits is not None and request.awaits.is_coming:
            return "awaits"
        prompt, admission = request.asker.prompt(), self._admission
        n_prompt, limit = len(prompt.ids), self._runner.context_tokens
        max_tokens = min(request.max_tokens, limit - n_prompt) if limit else request.max_tokens
        place = admission.place(admission.worst_tokens(n_prompt, max_tokens), is_alone=request.is_exact)
        if self._running and not admission.has_room(place.n_bytes):
            return "no bytes"
        self._ahead.meet(request.owner)
        plan = self._reuse.plan(request.ids(prompt)[:-1], request.owner, self._running, is_exact=request.is_exact)
        if plan.awaited is not None:
            request.awaits = _Prefix(plan.awaited, plan.n_awaited)
            return "awaits"
        if self._tiers.exchange is not None:
            request.awaits = self._fetching(request, plan, place.n_bytes)
        else:
            request.awaits = self._company.others(request, plan)
        if request.awaits is not None:
            return "awaits"
        self._company.take(request, plan)
        if leaving := self._evictor.make_room(place.n_bytes, plan, hurry=bool(self._running.decoding)):
            request.awaits = _Bytes(self._saver, tuple(leaving))
            return "no bytes"
        self._company.restore(request, plan, place, busy)
        row = self._row(request, prompt, plan, place, max_tokens)
        self._running.add(row, place)
        self._ahead.began(row)
        if request.fetch is not None:
            n_bytes = 0 if plan.fetched is None else plan.fetched.n_bytes
            self._observer.fetched(request, row.base.tier_tokens.get("remote", 0), n_bytes, request.fetch.began)
            request.fetch = plan.fetched = None  # its bytes are free before idle lineages have to leave for them
        self._observer.started(request, row.usage)
        self._evictor.free()
        request.feed.move("prefill", (row.fed, row.n_prompt))
        if row.is_ready and row.max_tokens:
            self._prefill.step(row)  # nothing to feed: it joins the batch at once
        return "started"

    def _fetching(self, request: Request, plan: Plan, n_bytes: int) -> Fetch | None:
        """Return the fetch that a request should wait for, asking once; else give the plan what came of it.

        ``n_bytes``: what the request itself may need; a fetch may hold what it and the running rows leave free.
        """
        exchange, admission = self._tiers.exchange, self._admission
        if exchange is None or request.is_exact:
            return None
        if not request.is_asked:
            request.is_asked = True
            free = admission.limit_bytes - admission.reserved_bytes - n_bytes
            costs, n_stored = self._tiers.store.costs, plan.stored.n_tokens
            request.fetch = exchange.ask(
                plan.wanted, plan.n_tokens, n_stored, costs.long_compute_s(1) or costs.compute_s(1), free
            )
        fetch = request.fetch
        if fetch is None or fetch.is_coming:
            return fetch
        plan.take_fetched(fetch.found(plan.wanted, plan.n_live, plan.stored.n_tokens))
        return None

    def _row(self, request: Request, prompt: Prompt, plan: Plan, place: Place, max_tokens: int) -> Row:
        """Return a row with the KV of the plan, taken or restored."""
        parser = request.asker.parser(prompt.ids)  # first: what it raises costs nobody the KV that is taken next
        started = time.perf_counter()
        base = self._reuse.take(self._running.batch, plan, prompt)
        now = time.perf_counter()
        seconds = plan.restored_s + now - started
        self._tiers.store.costs.loaded(base.tier, base.kv.nbytes if base.kv is not None else 0, seconds)
        return Row(
            number=next(self._numbers),
            request=request,
            prompt=prompt,
            ids=request.ids(prompt),
            parser=parser,
            base=base,
            tokenizer=self._runner.tokenizer,
            max_tokens=max_tokens,
            group=place.group,
            started=started,
            restored_s=seconds,
            costs=self._tiers.store.costs,
            prefilled=now,
        )

    def _prefetch(self, request: Request) -> None:
        if not request.is_prefetched and not request.is_exact:
            request.is_prefetched = True
            self._tiers.prefetch(self._tiers.match(request.ids(request.asker.prompt())[:-1]))
