"""From what a caller names to an open store: a file, memory, or a PostgreSQL database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from agent_memory.errors import INSTALL, MissingExtraError
from agent_memory.recall.database import Database
from agent_memory.recall.storage import Storage

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
def closed_on_error(storage: Storage, owns: bool) -> Iterator[None]:
    """Close a store that this opening opened, where the opening fails."""
    try:
        yield
    except BaseException:
        if owns:
            storage.close()
        raise
