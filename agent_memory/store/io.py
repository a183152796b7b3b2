"""The I/O thread: moves bytes to and from the disk in small items.

Logs come first, then reads ahead of need, then KV, then idle work (joining segments).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

from agent_memory.errors import AgentMemoryError, ClosedError
from agent_memory.log.health import Health, is_disk_error

log = logging.getLogger("agent_memory.store")
T = TypeVar("T")
LogItem = tuple[Callable[[], object], int]  #: a write to a log, and its agent

HIGH_WATER_BYTES = 64 << 20  #: queued bytes above which ``is_ready`` is False
LIMIT_BYTES = 512 << 20  #: queued bytes above which no KV is queued
RETRY_S = 1.0  #: seconds between two attempts to write a log


class IOThread:
    """Runs work in order on one thread, which ``start`` or the first item starts and ``close`` ends. Thread-safe.

    - A log item that the disk refuses stays first in its queue: no later turn is written before it. It is tried again
      every second, and at the next ``drain`` or log item.
    - A log item that fails for another reason stops only its own agent's items, until the next ``drain`` or item of
      that agent.
    """

    item_bytes = 8 << 20  #: most bytes of one item of KV work

    def __init__(self, name: str = "agent_memory-io", health: Health | None = None) -> None:
        self._name, self._health = name, health or Health()
        self._lock = threading.Condition()
        self._logs: deque[LogItem] = deque()
        self._stuck: dict[int, BaseException] = {}  # agent -> why its first item cannot be written
        self._work: deque[tuple[Callable[[], object], int]] = deque()
        self._reads: deque[Iterator[None]] = deque()
        self._idle: Iterator[None] | None = None
        self._thread: threading.Thread | None = None
        self._is_busy = False
        self._is_closing = False
        self._log_error: BaseException | None = None
        self.pending_bytes = 0

    @property
    def is_ready(self) -> bool:
        """True if KV may be queued without using much memory."""
        return self.pending_bytes <= HIGH_WATER_BYTES

    @property
    def is_full(self) -> bool:
        """True if no more KV may be queued."""
        return self.pending_bytes > LIMIT_BYTES

    @property
    def is_started(self) -> bool:
        """True if the thread was started."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread, if it is not running."""
        with self._lock:
            self._start()

    def submit(self, work: Callable[[], object], nbytes: int = 0) -> None:
        """Queue KV work; an exception in it is logged and dropped."""
        with self._lock:
            self._start()
            self._work.append((work, nbytes))
            self.pending_bytes += nbytes
            self._lock.notify_all()

    def submit_log(self, work: Callable[[], object], agent_id: int) -> None:
        """Queue a write to an agent's log, ahead of KV work."""
        with self._lock:
            self._start()
            self._logs.append((work, agent_id))
            self._log_error = None
            self._stuck.pop(agent_id, None)
            self._lock.notify_all()

    def has_log_of(self, agent_id: int) -> bool:
        """True if a write to an agent's log is still queued."""
        with self._lock:
            return any(owner == agent_id for _, owner in self._logs)

    def drop_logs(self, agent_id: int) -> None:
        """Drop queued writes to the log of a deleted agent; after ``drain``, only failed ones are queued."""
        with self._lock:
            self._logs = deque(item for item in self._logs if item[1] != agent_id)
            self._stuck.pop(agent_id, None)
            self._lock.notify_all()

    def submit_read(self, steps: Iterator[None]) -> None:
        """Queue a read ahead of need, a step at a time, before KV writes; ``drain`` ignores it, ``close`` drops it."""
        with self._lock:
            self._start()
            self._reads.append(steps)
            self._lock.notify_all()

    def submit_idle(self, steps: Iterator[None]) -> None:
        """Set the idle work, a step at a time, in place of the former one; ``close`` drops it."""
        with self._lock:
            self._start()
            self._idle = steps
            self._lock.notify_all()

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` after everything queued so far; return its result, or raise its exception."""
        if threading.current_thread() is self._thread:
            return work()
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - thread boundary: raised again in the caller's thread
                errors.append(error)
            finally:
                done.set()

        self.submit(run)
        done.wait()
        if errors:
            raise errors[0]
        return results[0]

    def drain(self, *, logs_only: bool = False) -> BaseException | None:
        """Wait until everything queued so far is done; return the error that stops one or all logs, if any."""
        with self._lock:
            if self._log_error is not None or self._stuck:
                self._log_error = None
                self._stuck.clear()
                self._lock.notify_all()
            self._lock.wait_for(lambda: self._is_drained(logs_only))
            return self._log_error or next(iter(self._stuck.values()), None)

    def wait_ready(self) -> None:
        """Wait until ``is_ready``."""
        with self._lock:
            self._lock.wait_for(lambda: self.is_ready)

    def close(self) -> None:
        """Run queued work, then end the thread; idempotent."""
        with self._lock:
            self._is_closing = True
            self._lock.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        if self._is_closing:
            raise ClosedError("the store is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _is_drained(self, logs_only: bool) -> bool:
        logs_done = self._next_log() is None
        return logs_done and not self._is_busy if logs_only else logs_done and not self._work and not self._is_busy

    def _next_log(self) -> LogItem | None:
        """Return the oldest log item that is not stopped by an error."""
        if self._log_error is not None:
            return None
        return next((item for item in self._logs if item[1] not in self._stuck), None)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._is_busy = False
                self._lock.notify_all()
                found = self._next()
                if found is None:
                    return
                self._is_busy = True
            self._step(*found)
            del found  # the item references KV bytes

    def _next(self) -> tuple[Callable[[], object], int, LogItem | None] | None:
        """Wait for work: return it, its bytes and its log item, if it is one; None at the end. Locked."""
        while not self._lock.wait_for(self._has_work, RETRY_S if self._log_error is not None else None):
            self._log_error = None  # try the log again
        if (item := self._next_log()) is not None:
            return item[0], 0, item
        if self._reads and not self._is_closing:
            return self._read_on, 0, None
        if self._work:
            return (*self._work.popleft(), None)
        return None if self._is_closing else (self._idle_on, 0, None)

    def _has_work(self) -> bool:
        return bool(self._next_log() or self._reads or self._work or self._is_closing or self._idle)

    def _read_on(self) -> None:
        """Run one step of the first read."""
        steps = self._reads.popleft()
        if next(steps, self) is not self:
            self._reads.appendleft(steps)

    def _idle_on(self) -> None:
        """Run one step of the idle work; an exception ends that work."""
        steps, self._idle = self._idle, None
        if steps is not None and next(steps, self) is not self and self._idle is None:
            self._idle = steps

    def _step(self, work: Callable[[], object], nbytes: int, item: LogItem | None) -> None:
        failure: BaseException | None = None
        try:
            work()
        except (OSError, sqlite3.Error, AgentMemoryError) as error:
            failure = error
        except BaseException as error:  # thread boundary: the thread must outlive any item
            log.exception("store write failed")
            failure = error
        with self._lock:
            self.pending_bytes -= nbytes
            if item is not None:
                self._settle(item, failure)
        if item is None and failure is not None:
            log.warning("store: a queued write failed: %s", failure)
        elif item is not None and failure is None:
            self._health.worked("logs")
        elif failure is not None and is_disk_error(failure):
            self._health.failed("logs", failure)
        elif failure is not None:
            log.error("store: the log of one agent cannot be written and waits: %s", failure)

    def _settle(self, item: LogItem, failure: BaseException | None) -> None:
        """Remove a log item that was written; else record the error that stops it. Under the lock."""
        if failure is None:
            self._logs.remove(item)
        elif is_disk_error(failure):
            self._log_error = failure
        else:
            self._stuck[item[1]] = failure
