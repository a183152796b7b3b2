"""The workspace that a handle is bound to. Every statement on rows of a workspace takes its number from here."""

from __future__ import annotations

from attrs import frozen

from agent_memory.errors import ConfigError, repr_of
from agent_memory.recall.storage import Rows

_LONGEST_NAME = 200


@frozen
class Scope:
    """A workspace's number in the file, and the name that callers know it by."""

    workspace: int  #: 0: the file has none of that name; nothing is in it
    name: str

    @property
    def exists(self) -> bool:
        """True if the workspace is in the file."""
        return self.workspace > 0


def checked_name(name: object, what: str = "workspace") -> str:
    """Return ``name``, or raise ConfigError where it is no text of 1 to 200 characters."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"{what} must be a text of 1 to {_LONGEST_NAME} printable characters, got {repr_of(name)}")
    return name


def open_scope(db: Rows, salt: str, name: str, now: float) -> Scope:
    """Return the workspace (salt, name), created where it is new. Inside a write transaction, from now on its own."""
    return Scope(db.workspace(salt, name, now), name)


def find_scope(db: Rows, salt: str, name: str) -> Scope:
    """Return the workspace (salt, name), or one that nothing is in. Inside a read transaction."""
    row = db.execute("SELECT workspace FROM workspaces WHERE salt = ? AND name = ?", (salt, name)).fetchone()
    return Scope(int(row[0]) if row else 0, name)
