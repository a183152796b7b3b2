"""The disk's health: does it take writes, which warning the user gets, and when to try again. Pure."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Literal

from agent_memory.log.place import GoneError

log = logging.getLogger("agent_memory.store")

DiskState = Literal["ok", "full", "read-only", "failing", "gone"]
What = Literal["logs", "KV"]

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0  #: seconds between two attempts to write KV to a disk that refused it
_FULL = {errno.ENOSPC, errno.EDQUOT}
_BY_CODE: dict[int, DiskState] = {sqlite3.SQLITE_FULL: "full", sqlite3.SQLITE_READONLY: "read-only"}
_ADVICE: dict[DiskState, str] = {
    "ok": "",
    "full": "Free some space{again}",
    "read-only": "Make the folder and the files in it writable{again}",
    "failing": "Look at the system's log{again}",
    "gone": "Move the folder back{again}, or close this Memory and open the store where it is now",
}


def is_disk_error(error: BaseException) -> bool:
    """True if an error is the disk's refusal, and not a fault of what was written."""
    return isinstance(error, OSError | sqlite3.OperationalError)


def state_of(error: BaseException) -> DiskState:
    """Return the state of the disk that an error tells."""
    if isinstance(error, GoneError):
        return "gone"
    if isinstance(error, OSError):
        return "full" if error.errno in _FULL else "read-only" if error.errno == errno.EROFS else "failing"
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return _BY_CODE.get(code & 0xFF, "failing")
    return "full" if "disk is full" in str(error) else "failing"


def advice(state: DiskState, *, again: str = "") -> str:
    """Return what the user can do about a disk in this state; ``again``: the words that tell to repeat the call."""
    return _ADVICE[state].format(again=again)


class Health:
    """Logs one warning when the disk begins to refuse, one line when it recovers. Thread-safe.

    Logs and KV fail and recover apart: a full disk may have room for a log's few bytes and none for a segment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: dict[What, DiskState] = {}
        self._wait_s, self._retry_at = FIRST_WAIT_S, 0.0
        self.failures = 0  #: number of refused writes

    @property
    def state(self) -> DiskState:
        """The state of the disk at its last write; that of logs goes before that of KV."""
        with self._lock:
            return self._failing.get("logs") or self._failing.get("KV") or "ok"

    @property
    def may_save(self) -> bool:
        """True if a save may be tried: the disk took the last one, or it is time to try again."""
        with self._lock:
            return "KV" not in self._failing or self._clock() >= self._retry_at

    def failed(self, what: What, error: BaseException) -> None:
        """Record a refused write."""
        state = state_of(error)
        with self._lock:
            self.failures += 1
            is_first = not self._failing
            self._failing[what] = state
            if what == "KV":
                self._retry_at = self._clock() + self._wait_s
                self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
        if is_first:
            log.warning(
                "store: the %s is %s (%s). Replies go on; new KV stays in memory, and logs wait to be written. %s",
                "folder" if state == "gone" else "disk",
                state,
                error,
                advice(state),
            )
        else:
            log.debug("store: %s could not be written: %s", what, error)

    def worked(self, what: What) -> None:
        """Record that a write of this kind succeeded."""
        with self._lock:
            was = self._failing.pop(what, None)
            is_well = was is not None and not self._failing
            if what == "KV":
                self._wait_s = FIRST_WAIT_S
        if is_well:
            log.info("store: the disk takes writes again")
