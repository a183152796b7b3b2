"""A message queue with a condition variable, from callers' threads to the engine's. Refuses use in forked children."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from attrs import define, field

from agent_memory.errors import ClosedError


class Message(Protocol):
    """Work for the owner thread; either ``run`` or ``fail`` ends it."""

    def run(self) -> None:
        """Do the work. Owner thread."""

    def fail(self, error: BaseException) -> None:
        """End the message with an error, if it has not ended. Any thread."""


@define(eq=False)
class Call:
    """A call whose result another thread waits for."""

    work: Callable[[], Any]
    done: Future[Any] = field(factory=Future)

    def run(self) -> None:
        """Run ``work``; hand its result or its exception to the waiting thread."""
        try:
            result = self.work()
        except Exception as error:  # noqa: BLE001 - handed to the thread that asked
            self.fail(error)
        else:
            self.done.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Raise ``error`` in the waiting thread."""
        if not self.done.done():
            self.done.set_exception(error)


class Mailbox:
    """Messages from any thread to an owner thread, which sleeps while there are none.

    - Messages run in the order in which they were posted.
    - A message leaves the box only after it has run; if the owner ends, it is failed.
    """

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._pid = os.getpid()

    @property
    def is_ours(self) -> bool:
        """True in the process that opened it, False in a forked child."""
        return os.getpid() == self._pid

    def ensure_ours(self) -> None:
        """Raise ClosedError in a forked child, where the owner thread does not run."""
        if not self.is_ours:
            raise ClosedError("this Memory belongs to the parent process; open another one after the fork")

    def post(self, message: Message) -> None:
        """Add a message. Raises ClosedError after ``close`` and in a forked child."""
        self.ensure_ours()
        with self._changed:
            if self._is_closed:
                raise ClosedError("this Memory is closed; open it again")
            self._messages.append(message)
            self._changed.notify()

    def wake(self) -> None:
        """Wake the owner without a message. Does nothing in a forked child, where the lock may be taken for ever."""
        if not self.is_ours:
            return
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Refuse further messages, and wake the owner."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def receive(self, has_work: Callable[[], bool], sleep_s: Callable[[], float | None]) -> bool:
        """Sleep while there is neither a message nor work, for ``sleep_s`` at most, then run all messages. False once
        closed.
        """
        with self._changed:
            while not self._messages and not self._is_closed and not has_work():
                seconds = sleep_s()
                self._changed.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
        while self._messages and not self._is_closed:
            self._messages[0].run()
            self._messages.popleft()
        return not self._is_closed

    def fail(self, error: BaseException) -> None:
        """End every message that has not run with ``error``."""
        while self._messages:
            self._messages[0].fail(error)
            self._messages.popleft()

    def drain(self) -> None:
        """Run the messages that were posted before ``close`` and never received."""
        while self._messages:
            self._messages[0].run()
            self._messages.popleft()
