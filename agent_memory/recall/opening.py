"""From what a caller names to an open store: a file, memory, or a PostgreSQL database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from agent_memory.errors import INSTALL, MissingExtraError
from agent_memory.recall.database import Database
from agent_memory.recall.scope import Scope, find_scope, open_scope
from agent_memory.recall.storage import Rows, Storage

_POSTGRES = ("postgresql://", "postgres://")


def open_storage(where: str | os.PathLike[str] | Storage) -> tuple[Storage, bool]:
    """Return the store and whether the caller owns it: one that was open already is its opener's to close.

    Raises ConfigError, StoreError; MissingExtraError for a PostgreSQL URL without the extra ``postgres``.
    """
    if isinstance(where, str) and where.startswith(_POSTGRES):
        try:
            from agent_memory.recall.postgres import PostgresDatabase
        except ImportError as error:
            raise MissingExtraError(f"recall on PostgreSQL needs psycopg: {INSTALL['postgres']}") from error
        return PostgresDatabase(where), True
    of = getattr(where, "of", None)
    if isinstance(where, (str, os.PathLike)) or of is None:
        return Database(cast("str", where)), True  # which refuses what is no path
    return of(None), False


@contextmanager
def opened(storage: Storage, *, owns: bool, salt: str, workspace: str, now: float) -> Iterator[tuple[Rows, Scope]]:
    """Open a transaction in a workspace, which is made where it is new; one that reads, where the store is read only.

    Closes a store that this opening opened, where the opening fails.
    """
    is_read_only = storage.is_read_only
    try:
        with storage.read() if is_read_only else storage.write() as db:
            yield db, find_scope(db, salt, workspace) if is_read_only else open_scope(db, salt, workspace, now)
    except BaseException:  # also Ctrl-C: nobody else closes it
        if owns:
            storage.close()
        raise
