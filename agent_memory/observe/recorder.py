"""``Config.recorder``: a file with one line of JSON for each step of each request, for when something went wrong."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent_memory import __version__
from agent_memory.errors import ConfigError
from agent_memory.sealing.keys import Keys

log = logging.getLogger("agent_memory.recorder")

FORMAT = 1  #: in the ``open`` line; raised when a field changes its meaning
_BLOCK_BYTES = 1 << 20
_NAME_DIGITS = 16
_OPEN = b'{"event":"open"'


class Recorder:
    """Appends lines to a file. Thread-safe. Holds no text of prompts or replies.

    - A line is one ``write`` of the system: whoever kills the process leaves whole lines up to the last. It is not
      fsynced: a machine that loses power may lose the last seconds.
    - One Memory writes a file. It is opened for appending, so that it may be truncated by others meanwhile.
    - Opening writes an ``end`` with the state "lost" for each request that a killed process has left without one.
    - ``keys``, of an encrypted store: agents are named by a digest that only its key makes, the same in every line.
    - A line that the disk refuses is dropped and counted, and warned of once; requests go on.

    Raises ConfigError where the file cannot be opened, is another Memory's, or is no recorder's.
    """

    def __init__(self, path: Path, keys: Keys | None = None) -> None:
        self._path, self._keys = path, keys
        self._lock = threading.Lock()
        self.n_failed = 0  #: lines that were dropped
        try:
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"recorder cannot be opened: {path}: {error.strerror}. Give a file in a folder."
            ) from error
        try:
            self._begin(self._fd)
        except BaseException:  # also Ctrl-C: nobody else closes it
            os.close(self._fd)
            raise

    def _begin(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"recorder {self._path} is written by another Memory. Give each its own file.") from error
        head = os.pread(fd, len(_OPEN), 0)
        if head and head != _OPEN[: len(head)]:
            raise ConfigError(f"recorder {self._path} holds something else than a recorder's lines. Give another file.")
        lost = _unended(fd)
        for id, agent in lost.items():  # named as in the earlier line
            self._write("end", {"id": id, "agent": agent, "state": "lost"})
        self.write("open", {"format": FORMAT, "version": __version__, "pid": os.getpid()})

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append a line: the event's name, the Unix time, and ``fields``. Microseconds; never raises."""
        agent = fields.get("agent")
        if self._keys is not None and agent is not None:
            fields = {**fields, "agent": f"#{self._keys.name('recorder', agent.encode()).hex()[:_NAME_DIGITS]}"}
        self._write(event, fields)

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        text = json.dumps({"event": event, "t": round(time.time(), 6), **fields}, separators=(",", ":"))
        line = text.encode() + b"\n"
        with self._lock:
            if self._fd is not None:
                self._append(self._fd, line)

    def close(self) -> None:
        """Write the last line and close the file; idempotent. Later lines are dropped in silence."""
        self.write("close", {})
        with self._lock:
            fd, self._fd = self._fd, None
            if fd is not None:
                fcntl.flock(fd, fcntl.LOCK_UN)  # a forked child may hold the same open file
                os.close(fd)

    def _append(self, fd: int, line: bytes) -> None:
        n_written = 0
        try:
            n_written = os.write(fd, line)
            if n_written == len(line):
                return
            why = "the disk is full"
        except OSError as error:
            why = str(error.strerror)
        self.n_failed += 1
        if self.n_failed == 1:
            log.warning("the recorder loses lines path=%s: %s", self._path, why)
        if n_written:  # half a line would spoil the next one
            os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_END) - n_written)


def _unended(fd: int) -> dict[str, str | None]:
    """Requests without an end, and whose each is, of the process that wrote last. Cuts off half a line at the end."""
    size = os.fstat(fd).st_size
    waiting: dict[str, str | None] = {}
    ended: set[str] = set()
    for start, line in _backwards(fd, size):
        if not line.endswith(b"\n"):
            os.ftruncate(fd, start)
            continue
        if line.startswith(_OPEN):
            break
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if found.get("event") == "end":
            ended.add(found["id"])
        elif found.get("event") == "queued" and found["id"] not in ended:
            waiting[found["id"]] = found["agent"]
    return dict(reversed(waiting.items()))


def _backwards(fd: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield (where it starts, line) of the lines before ``stop``, the last one first."""
    rest = b""
    while stop > 0:
        start = max(0, stop - _BLOCK_BYTES)
        rest = os.pread(fd, stop - start, start) + rest
        first = rest.find(b"\n") + 1 if start else 0  # before that, a line that begins in an earlier block
        if start and not first:
            stop = start
            continue
        lines = rest[first:].splitlines(keepends=True)
        at = start + len(rest)
        for line in reversed(lines):
            at -= len(line)
            yield at, line
        rest, stop = rest[:first], start
