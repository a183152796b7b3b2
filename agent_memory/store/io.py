"""The one thread that moves bytes to and from the disk, in small items: logs first, then reads ahead, then KV."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

from agent_memory.errors import AgentMemoryError, ClosedError

log = logging.getLogger("agent_memory.store")
T = TypeVar("T")

ITEM_BYTES = 8 << 20  #: an item of work moves at most this much
HIGH_WATER_BYTES = 64 << 20  #: above this, ``is_ready`` says no


class IOThread:
    """Runs work in order on one thread, started by the first item and ended by ``close``.

    A log item that fails stays first in its queue and is tried again at the next ``drain`` or log item, so that no
    later turn is written over a hole. Thread-safe.
    """

    def __init__(self, name: str = "agent_memory-io") -> None:
        self._name = name
        self._lock = threading.Condition()
        self._logs: deque[Callable[[], object]] = deque()
        self._work: deque[tuple[Callable[[], object], int]] = deque()
        self._reads: deque[Iterator[None]] = deque()
        self._thread: threading.Thread | None = None
        self._is_busy = False
        self._is_closing = False
        self._log_error: BaseException | None = None
        self.pending_bytes = 0

    @property
    def is_ready(self) -> bool:
        """Whether more KV may be queued without holding much memory."""
        return self.pending_bytes <= HIGH_WATER_BYTES

    def submit(self, work: Callable[[], object], nbytes: int = 0) -> None:
        """Queue KV work; what it raises is logged and dropped."""
        with self._lock:
            self._start()
            self._work.append((work, nbytes))
            self.pending_bytes += nbytes
            self._lock.notify_all()

    def submit_log(self, work: Callable[[], object]) -> None:
        """Queue a log write, ahead of KV work."""
        with self._lock:
            self._start()
            self._logs.append(work)
            self._log_error = None
            self._lock.notify_all()

    def submit_read(self, steps: Iterator[None]) -> None:
        """Queue reading ahead, a step at a time, before any KV is written; nobody waits for it, ``close`` drops it."""
        with self._lock:
            self._start()
            self._reads.append(steps)
            self._lock.notify_all()

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` after everything queued so far; give its result, or raise what it raised."""
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
        """Wait until everything queued so far is done; the error that stops the log, if one does."""
        with self._lock:
            if self._log_error is not None:
                self._log_error = None
                self._lock.notify_all()
            self._lock.wait_for(lambda: self._is_drained(logs_only))
            return self._log_error

    def close(self) -> None:
        """Do what is queued, then end the thread; idempotent."""
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
        logs_done = not self._logs or self._log_error is not None
        return logs_done and not self._is_busy if logs_only else logs_done and not self._work and not self._is_busy

    def _has_log(self) -> bool:
        return bool(self._logs) and self._log_error is None

    def _run(self) -> None:
        while True:
            with self._lock:
                self._is_busy = False
                self._lock.notify_all()
                self._lock.wait_for(lambda: self._has_log() or self._reads or self._work or self._is_closing)
                item: Callable[[], object]
                if self._has_log():
                    item, nbytes, is_log = self._logs[0], 0, True
                elif self._reads and not self._is_closing:
                    item, nbytes, is_log = self._read_on, 0, False
                elif self._work:
                    (item, nbytes), is_log = self._work.popleft(), False
                else:
                    return
                self._is_busy = True
            self._step(item, nbytes, is_log)
            del item  # it holds KV bytes

    def _read_on(self) -> None:
        """One step of the first read."""
        steps = self._reads.popleft()
        if next(steps, self) is not self:
            self._reads.appendleft(steps)

    def _step(self, item: Callable[[], object], nbytes: int, is_log: bool) -> None:
        failure: BaseException | None = None
        try:
            item()
        except (OSError, sqlite3.Error, AgentMemoryError) as error:
            failure = error
        except BaseException as error:  # thread boundary: the thread must outlive any item
            log.exception("store write failed")
            failure = error
        with self._lock:
            self.pending_bytes -= nbytes
            if not is_log:
                if failure is not None:
                    log.warning("store: a queued write failed: %s", failure)
            elif failure is None:
                self._logs.popleft()
            else:
                self._log_error = failure
                log.warning("store: a log write failed and waits to be tried again: %s", failure)
