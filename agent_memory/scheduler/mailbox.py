"""How callers' threads reach the engine thread: messages in, a bell, and a pid that forked children do not have."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

from agent_memory.errors import ClosedError

Message = Callable[[], None]


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

    def take(self, has_work: Callable[[], bool], patience: Callable[[], float | None]) -> list[Message] | None:
        """All messages, after sleeping while there are none and no work; None once closed."""
        with self._bell:
            while not self._messages and not self._is_closed and not has_work():
                self._bell.wait(patience())
            return None if self._is_closed else self._all()

    def rest(self) -> list[Message]:
        """What was posted before ``close`` and never taken."""
        with self._bell:
            return self._all()

    def _all(self) -> list[Message]:
        messages = list(self._messages)
        self._messages.clear()
        return messages
