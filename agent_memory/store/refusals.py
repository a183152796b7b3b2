"""What a caller is told of a store that could not do something: what, where, why, and what helps."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from agent_memory.errors import AgentMemoryError, OutOfSpaceError, StoreError
from agent_memory.store.health import DiskState, is_disk_error, state_of

_ADVICE: dict[DiskState, str] = {
    "ok": "",
    "full": "Free some space and flush again",
    "read-only": "Make the folder and the files in it writable, and flush again",
    "failing": "Look at the system's log, and flush again when the disk is well",
}
_NOT_THE_DISK = "The disk did not refuse it: no other agent is touched, and Memory.verify() says what is damaged"


@contextlib.contextmanager
def store_errors(doing: str, path: Path | None) -> Iterator[None]:
    """Raises what the disk or SQLite raises inside as a StoreError. ``path``: the store's folder, None in memory."""
    try:
        yield
    except AgentMemoryError:
        raise
    except (sqlite3.Error, OSError) as error:
        raise as_store_error(doing, path, error) from error


def as_store_error(doing: str, path: Path | None, error: BaseException) -> StoreError:
    """The StoreError, or OutOfSpaceError, of an error."""
    state = state_of(error)
    kind = OutOfSpaceError if state == "full" else StoreError
    advice = _ADVICE[state] if is_disk_error(error) or state == "full" else _NOT_THE_DISK
    where = "a store in memory" if path is None else f"the store {path}"
    return kind(f"could not {doing} in {where}: {error}. {advice}")
