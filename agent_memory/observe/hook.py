"""``Config.on_reply``: a user's function that gets every reply, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from agent_memory.types import Reply

log = logging.getLogger("agent_memory.hooks")

#: Replies that may wait for a slow function; one more is dropped, and counted.
MOST_WAITING = 10_000


class Hook:
    """Calls a function with each reply, in order. Any thread; ``put`` never waits.

    - The thread starts with the first request and ends in ``close``.
    - What the function raises is logged and counted, and goes nowhere else.
    """

    def __init__(self, function: Callable[[Reply], object], close_s: float) -> None:
        self._function, self._close_s = function, close_s
        self._replies: SimpleQueue[Reply | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self.n_failed = 0  #: replies for which the function raised, or which were dropped

    def start(self) -> None:
        """Start the thread, if it does not run yet. Caller's thread: an exception may strike the engine meanwhile."""
        with self._lock:
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._serve, name="agent_memory-on-reply", daemon=True)
                self._thread.start()

    def put(self, reply: Reply) -> None:
        """Queue a reply. Engine thread."""
        if self._is_closed or self._replies.qsize() >= MOST_WAITING:
            self.n_failed += 1
            log.warning("on_reply is not called request=%s waiting=%d: it is too slow", reply.id, self._replies.qsize())
            return
        self._replies.put(reply)

    def close(self) -> None:
        """Let the function have the replies that wait, for ``close_s`` at most; the rest is dropped, and counted."""
        with self._lock:
            self._is_closed, thread = True, self._thread
        if thread is None or thread is threading.current_thread():
            return
        self._replies.put(None)
        thread.join(min(self._close_s, threading.TIMEOUT_MAX))
        if thread.is_alive():
            n_left = max(0, self._replies.qsize() - 1)
            self.n_failed += n_left
            log.warning("on_reply did not return within %s s; %d replies are dropped", self._close_s, n_left)

    def _serve(self) -> None:
        while (reply := self._replies.get()) is not None:
            try:
                self._function(reply)
            except Exception as error:  # thread boundary: a user's function harms nobody
                self.n_failed += 1
                log.warning("on_reply raised request=%s: %s", reply.id, type(error).__name__)
                log.debug("on_reply raised request=%s", reply.id, exc_info=error)  # what it says may quote the reply
