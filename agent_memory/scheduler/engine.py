"""The engine thread owns the model; all access to it goes through here."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from attrs import evolve, field, frozen

from agent_memory.config import Config
from agent_memory.errors import CancelledError, ClosedError
from agent_memory.prefix.pieces import Ids
from agent_memory.protocols import ModelRunner
from agent_memory.scheduler.ahead import Ahead
from agent_memory.scheduler.counters import Counters
from agent_memory.scheduler.faults import stripped
from agent_memory.scheduler.gathering import Gathering
from agent_memory.scheduler.idle import Idle
from agent_memory.scheduler.loop import Loop
from agent_memory.scheduler.mailbox import Call, Mailbox
from agent_memory.scheduler.observer import Observer
from agent_memory.scheduler.request import Prompt, Request
from agent_memory.scheduler.resident import Resident
from agent_memory.scheduler.reuse import Found
from agent_memory.scheduler.waiting import Places
from agent_memory.tiers.hot import Heir
from agent_memory.tiers.tiers import Tiers
from agent_memory.types import Stats, Tier

log = logging.getLogger("agent_memory.engine")
T = TypeVar("T")


@frozen
class Pulse:
    """The engine's state at one moment."""

    is_live: bool  #: True if its thread runs, in this process
    n_waiting: int
    n_running: int
    lacks_bytes: bool  #: True if a request waits because the bytes that it may need are not free
    remote: Mapping[str, str] = field(factory=dict)  #: what is known of the bucket that hosts share, in words


@frozen(eq=False)
class _Submission:
    """A message that puts a request in the line."""

    engine: Engine
    request: Request
    places: Places

    def run(self) -> None:
        if self.request.epoch != self.engine.epoch:
            self.fail(CancelledError("the model was swapped before this request, which is of its ids, could start"))
        else:
            self.engine.put_in_line(self.request)

    def fail(self, error: BaseException) -> None:
        self.places.leave(self.request)
        self.request.feed.fail(error)


@frozen(eq=False)
class _Drain:
    """A message that wakes a thread once every request has ended."""

    engine: Engine
    drained: threading.Event

    def run(self) -> None:
        self.engine.when_idle(self.drained.set)

    def fail(self, error: BaseException) -> None:
        self.drained.set()


class Engine:
    """The thread that owns the model of one Memory. Any thread may call its methods, but for those that say otherwise.

    - ``open`` loads the model on the thread, and raises the error of loading.
    - After ``close``, and in a forked child, every call raises ClosedError.
    - An exception on the thread, even from outside, ends every request with that error; the next one finds a new batch.
    - Every request ends: with a reply, an error or a cancellation.
    """

    def __init__(
        self,
        resident: Resident,
        tiers: Tiers,
        *,
        hot_bytes: int,
        config: Config,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer or Observer()
        self._resident, self._tiers, self._hot_bytes, self._config = resident, tiers, hot_bytes, config
        self.epoch = 0  #: how many times the model was swapped
        self._mail = Mailbox()
        self._thread: threading.Thread | None = None
        self._counters = Counters()
        self._places = Places(config.max_waiting)
        self._drained = threading.Event()
        if tiers.exchange is not None:
            tiers.exchange.wake = self.wake
        self.gathering = Gathering(config.target_gap_s)
        self.idle = Idle(None if config.upkeep_ms is None else config.upkeep_ms / 1e3, self.wake)
        self._loop: Loop  # the engine thread's

    def open(self, recorded: Mapping[str, str], attach: Callable[[], None]) -> None:
        """Start the thread, load the model, then run ``attach`` (still on the thread) before the first request.

        ``recorded``: the model's ``choices`` from this store's first use of it.
        """
        ready: Future[None] = Future()
        boot = [attach]  # emptied by the thread, which must not keep the Memory behind ``attach`` alive
        self._thread = threading.Thread(
            target=self._main, args=(ready, recorded, boot), name="agent_memory-engine", daemon=True
        )
        self._thread.start()
        ready.result()

    @property
    def is_ours(self) -> bool:
        """True in the process that opened it, False in a forked child."""
        return self._mail.is_ours

    def ensure_ours(self) -> None:
        """Raise ClosedError in a forked child."""
        self._mail.ensure_ours()

    @property
    def pulse(self) -> Pulse:
        """The engine's state now. Any thread; never waits."""
        thread, loop = self._thread, self._loop
        is_live = self.is_ours and thread is not None and thread.is_alive()
        exchange = self._tiers.exchange
        remote = {} if exchange is None else exchange.facts()
        return Pulse(is_live, len(loop.waiting), len(loop.running), loop.lacks_bytes, remote)

    def stats(self, stored: Callable[[], Mapping[str, Any]]) -> Stats:
        """Return the sums over requests and the bytes in memory now, with the store's figures (``stored``)."""
        found = self._counters.stats(self.call(self._memory_figures), stored())
        if (exchange := self._tiers.exchange) is None:
            return found
        events, n_bytes = exchange.figures()
        return evolve(found, remote=events, remote_bytes=n_bytes)

    def _memory_figures(self) -> dict[str, Any]:
        """Return bytes of live and warm KV, and counts of evicted lineages and pieces. Engine thread (in ``call``)."""
        return {
            **self._tiers.figures,
            "hot_bytes": self._loop.nbytes,
            "hot_evictions": self._loop.evictor.n_evicted,
            "waiting": len(self._loop.waiting),
            "running": len(self._loop.running),
        }

    def memory_uses(self, logs: Mapping[str, Ids]) -> dict[str, dict[Tier, tuple[int, int]]]:
        """Return (tokens, bytes) of each agent's idle KV, by name and tier. Engine thread (in ``call``).

        ``logs``: name -> ids of its log.
        """
        hot, warm = self._loop.hot.uses(logs), self._tiers.warm
        found: dict[str, dict[Tier, tuple[int, int]]] = {name: {"hot": use} for name, use in hot.items()}
        for name, ids in logs.items() if len(warm) else ():
            found.setdefault(name, {})["warm"] = warm.use(ids)
        return found

    def ensure_places(self, n_asked: int = 1) -> None:
        """Raise QueueFullError if fewer than ``n_asked`` more requests may wait."""
        self._places.check(n_asked)

    def submit(self, request: Request) -> None:
        """Queue a request, whose feed gets deltas and the end. Raises QueueFullError or ClosedError."""
        self._observer.queued(request)
        request.feed.at_end(partial(self._observer.ended, request))
        request.feed.at_wait(self.wake)
        self._places.take(request)
        try:
            self._mail.post(_Submission(self, request, self._places))
        except BaseException:  # also Ctrl-C: no request has the place
            self._places.leave(request)
            raise

    def cancel(self, request: Request) -> None:
        """End a request at the next tick; its place in the line is free at once. Never raises."""
        request.is_cancelled = True
        self._places.leave(request)
        self.wake()

    def wake(self) -> None:
        """Wake the engine: an event that it waits for has happened."""
        self._mail.wake()

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the engine thread between two ticks; return its result, or raise its exception.

        On the engine thread itself it runs at once.
        """
        if threading.current_thread() is self._thread:
            return work()
        call = Call(work)
        self._mail.post(call)
        result: T = call.done.result()
        return result

    def call_idle(self, work: Callable[[], T]) -> T:
        """Run ``work`` like ``call``, once no request waits or runs."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - thread boundary: raised again in the caller's thread
                done.set_exception(error)

        self.call(lambda: self.when_idle(run))
        return done.result()

    def when_idle(self, call: Callable[[], None]) -> None:
        """Run ``call`` once no request waits or runs. Engine thread (in ``call``)."""
        self._loop.when_idle(call)

    def put_in_line(self, request: Request) -> None:
        """Let a request wait for its start. Engine thread."""
        self._loop.waiting.add(request)

    def is_busy(self, owner: str) -> bool:
        """True if an agent has a request that waits or runs. Engine thread (in ``call``)."""
        return self._loop.is_busy(owner)

    def look(self, prompt: Prompt, owner: str | None, *, is_exact: bool = False) -> Found:
        """Return the KV that a request with ``prompt`` would find now, and why no more. Engine thread (in ``call``)."""
        return self._loop.look(prompt, owner, is_exact=is_exact)

    def forget(self, owner: str | None) -> None:
        """Forget an agent's prompts whose KV is gone, or all such prompts. Engine thread (in ``call``)."""
        self._loop.forget(owner)

    @property
    def ahead(self) -> Ahead:
        """What is expected, and restored ahead of need. Engine thread (in ``call``)."""
        return self._loop.ahead

    def cancel_all_of(self, owner: str) -> bool:
        """Cancel an agent's requests; True if one of them has not ended yet. Engine thread (in ``call``)."""
        return self._loop.cancel_all_of(owner)

    def hand_over(self) -> bool:
        """Hand finished KV to the store, as far as the disk keeps up; True if that was all.

        Engine thread (in ``call``).
        """
        return self._loop.saver.hand_over()

    def evict(self, owner: str | None, agent_id: int | None, *, to: Tier) -> None:
        """Evict the idle KV of one agent, or of all, from the hot tier, saved first; ``to`` "cold": from warm too.

        Engine thread (in ``call``).
        """
        self._loop.evictor.evict_idle(owner, to)
        if to == "cold" and owner is None:
            self._tiers.warm.clear()
        elif to == "cold" and agent_id is not None:
            self._tiers.warm.release(agent_id)

    def share(self, owner: str, heir: Heir) -> None:
        """Let a fork share its parent's live KV until its own first turn. Engine thread (in ``call``)."""
        self._loop.hot.share(owner, heir)

    def cancel_all(self) -> None:
        """Cancel every request. Engine thread (in ``call``)."""
        self._loop.cancel_all()

    def swap(self, runner: ModelRunner, recorded: Mapping[str, str], attach: Callable[[], None]) -> None:
        """Save and free all live KV and the model, then load another one. Engine thread, while no request is there.

        Requests whose prompts were tokenized before are cancelled. Raises what loading or ``attach`` raises: then no
        model is loaded, and ``reload`` must follow.
        """
        self._loop.saver.finish_all()
        self._loop.close()
        self._resident.close()
        self._load(runner, recorded, attach)
        self.epoch += 1

    def reload(self, runner: ModelRunner, recorded: Mapping[str, str], attach: Callable[[], None]) -> None:
        """Load the model that ``swap`` has freed. If that fails too, every later call raises ClosedError."""
        try:
            self._load(runner, recorded, attach)
        except BaseException:  # whatever a runner raises: no model is loaded, and no request may wait for one
            self._mail.close()
            raise

    def _load(self, runner: ModelRunner, recorded: Mapping[str, str], attach: Callable[[], None]) -> None:
        self._resident.current = runner
        try:
            runner.open(recorded)
            attach()
            self._loop = self._new_loop()
        except BaseException:  # whatever a runner raises: what it has loaded is freed
            runner.close()
            raise

    def adopt(self, owner: str, heir: Heir) -> None:
        """Give the idle live KV of one agent to another. Engine thread (in ``call``)."""
        self._loop.adopt(owner, heir)

    def discard(self, owner: str, agent_id: int) -> None:
        """Drop the idle KV of an agent that is gone from memory, unsaved. Engine thread (in ``call``)."""
        self._loop.discard(owner)
        self._tiers.warm.release(agent_id)

    def drain(self, seconds: float) -> None:
        """Return when no request waits or runs, or after ``seconds``, or at ``end_drain`` or ``close``. Any thread but
        the library's own.
        """
        with contextlib.suppress(ClosedError):
            self._mail.post(_Drain(self, self._drained))
            self._drained.wait(min(seconds, threading.TIMEOUT_MAX))

    def end_drain(self) -> None:
        """Let ``drain`` return, on whatever thread it waits, now or later."""
        self._drained.set()

    def close(self) -> None:
        """Fail every request, save the KV, end the thread. Idempotent; does nothing in a forked child."""
        if not self.is_ours:
            return
        self._mail.close()
        if self._thread is not None:
            self._thread.join()

    def _main(self, ready: Future[None], recorded: Mapping[str, str], boot: list[Callable[[], None]]) -> None:
        try:
            self._resident.open(recorded)
            boot.pop()()
            self._loop = self._new_loop()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that opens
            self._resident.close()
            self._observer.closed()
            ready.set_exception(error)
            return
        ready.set_result(None)
        while not self._ends_well(self._serve):
            pass
        closed = ClosedError("the Memory was closed before this request finished")
        self._ends_well(self._mail.drain)
        self._ends_well(lambda: self._loop.end_all(closed))  # with the last request's end a swap may begin that waited
        self._ends_well(lambda: self._loop.saver.finish_all())
        self._ends_well(lambda: self._loop.close())
        self._mail.fail(closed)
        self._observer.closed()
        self._resident.close()

    def _new_loop(self) -> Loop:
        return Loop(
            self._resident,
            self._tiers,
            hot_bytes=self._hot_bytes,
            hot_ttl_s=self._config.hot_ttl_s,
            max_batch=self._config.max_batch,
            prefill_tokens=self._config.prefill_tokens or self._resident.prefill_tokens,
            target_gap_s=self._config.target_gap_s,
            counters=self._counters,
            places=self._places,
            idle=self.idle,
            gathering=self.gathering,
            observer=self._observer,
            wake=self.wake,
            looks_up=self._config.lookup == "auto",
        )

    def _serve(self) -> None:
        """Run messages and ticks until the mailbox is closed."""
        while self._mail.receive(lambda: self._loop.has_work, lambda: self._loop.sleep_s):
            self._loop.tick()

    def _ends_well(self, work: Callable[[], None]) -> bool:
        """Run ``work``. False, and every request ended, if it raises or an exception is thrown into the thread."""
        try:
            work()
            return True
        except BaseException as error:  # noqa: BLE001 - SystemExit and what comes from outside included
            failure = error
        while True:
            try:
                log.error("the engine was interrupted and every request ends: %r", failure, exc_info=failure)
                self._observer.faulted(failure)
                self._loop.fail_all(stripped(failure))
                self._mail.fail(failure)
                return False
            except BaseException as error:  # noqa: BLE001 - thrown in meanwhile: once more
                failure = error
