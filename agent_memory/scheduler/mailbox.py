"""How callers' threads reach the engine thread: messages in, a bell, and a pid that forked children do not have."""

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
    """Something for the owner thread to do, which ends in any case."""

    def run(self) -> None:
        """Do it; owner thread."""

    def fail(self, error: BaseException) -> None:
        """End it with an error where it has not ended; any thread."""


@define(eq=False)
class Call:
    """A call that somebody waits for."""

    work: Callable[[], Any]
    done: Future[Any] = field(factory=Future)

    def run(self) -> None:
        """Give what ``work`` gives or raises."""
        try:
            result = self.work()
        except Exception as error:  # noqa: BLE001 - handed to the thread that asked
            self.fail(error)
        else:
            self.done.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Raise ``error`` in the thread that waits."""
        if not self.done.done():
            self.done.set_exception(error)


class Mailbox:
    """Messages from any thread to one thread that sleeps while there is nothing to do."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._bell = threading.Condition()
        self._is_closed = False
        self._pid = os.getpid()

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that opened it, not a forked child."""
        return os.getpid() == self._pid

    def ensure_ours(self) -> None:
        """Raises ClosedError in a forked child, where the owner thread does not run."""
        if not self.is_ours:
            raise ClosedError("this Memory belongs to the parent process; open another one after the fork")

    def post(self, message: Message) -> None:
        """Add a message. Raises ClosedError after ``close`` and in a forked child."""
        self.ensure_ours()
        with self._bell:
            if self._is_closed:
                raise ClosedError("this Memory is closed; open it again")
            self._messages.append(message)
            self._bell.notify()

    def wake(self) -> None:
        """Ring without a message; nothing in a forked child, where the bell may be held forever."""
        if not self.is_ours:
            return
        with self._bell:
            self._bell.notify()

    def close(self) -> None:
        """No more messages; the owner wakes."""
        with self._bell:
            self._is_closed = True
            self._bell.notify()

    def receive(self, has_work: Callable[[], bool], patience: Callable[[], float | None]) -> bool:
        """Run all messages, after sleeping while there are none and no work; False once closed.

        A message leaves the box only when it has run, so that whatever ends the owner finds it there.
        """
        with self._bell:
            while not self._messages and not self._is_closed and not has_work():
                rest_s = patience()
                self._bell.wait(None if rest_s is None else min(rest_s, threading.TIMEOUT_MAX))
        while self._messages and not self._is_closed:
            self._messages[0].run()
            self._messages.popleft()
        return not self._is_closed

    def fail(self, error: BaseException) -> None:
        """End every message that is still here with ``error``."""
        while self._messages:
            self._messages[0].fail(error)
            self._messages.popleft()

    def drain(self) -> None:
        """Run what was posted before ``close`` and never received."""
        while self._messages:
            self._messages[0].run()
            self._messages.popleft()
