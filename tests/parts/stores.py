"""Where a test of recall keeps its rows: in SQLite files, or in databases of a PostgreSQL server."""

from __future__ import annotations

from pathlib import Path

from tests.parts.postgres import PostgresServer


class Stores:
    """``stores(name)`` is what ``ContextMemory`` is given: the same store for the same name, a new one for none."""

    def __init__(self, folder: Path, server: PostgresServer | None) -> None:
        self._folder, self._server = folder, server
        self._named: dict[str, str] = {}
        self._made: list[str] = []

    def __call__(self, name: str | None = None) -> str:
        """Return a path, a URL, or ":memory:"."""
        if self._server is None:
            return ":memory:" if name is None else str(self._folder / name)
        if name is None:
            return self._server.url(self._new())
        if name not in self._named:
            self._named[name] = self._new()
        return self._server.url(self._named[name])

    def bytes(self, name: str | None = None) -> bytes:
        """Return every byte that one of these stores, or all of them, have on the disk, the server's log aside."""
        if self._server is None:
            files = sorted(self._folder.rglob("*" if name is None else f"{name}*"))
            return b"".join(file.read_bytes() for file in files if file.is_file())
        return b"".join(map(self._server.bytes_of, self._made if name is None else [self._named[name]]))

    def close(self) -> None:
        """Drop the databases."""
        for database in self._made:
            assert self._server is not None
            self._server.drop(database)

    def _new(self) -> str:
        assert self._server is not None
        self._made.append(self._server.new_database())
        return self._made[-1]
