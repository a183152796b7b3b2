"""A PostgreSQL server of the tests' own: in a temporary folder, on a socket there and a free port of the loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

INSTALL = "apt-get install -y postgresql"
OWNER, USER, PASSWORD = "keeper", "reader", "a:pass/word"  # the password has what a URL must escape
IN_URL = "a%3Apass%2Fword"


def binaries() -> Path | None:
    """Return the folder of ``initdb`` and ``pg_ctl``, of the newest version that is installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parent.name.split(".")[0]))
    return Path(there).parent if (there := shutil.which("initdb")) else None


class PostgresServer:
    """A running server with an owner of databases and a user without rights of its own; ``close`` removes it."""

    def __init__(
        self, *, settings: Sequence[str] = ("fsync=off", "full_page_writes=off"), programs: Path | None = None
    ) -> None:
        found = programs or binaries()
        assert found is not None, INSTALL
        self._bin, self._settings = found, settings
        self._home = Path(tempfile.mkdtemp(prefix="agent-memory-pg-"))
        self.data = self._home / "data"
        self._home.chmod(0o755)
        (self._home / "run").mkdir()
        (self._home / "run").chmod(0o777)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        (self._home / "password").write_text(PASSWORD)
        if os.getuid() == 0:
            shutil.chown(self._home, "postgres")
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8",
                  "--locale=C", f"--pwfile={self._home / 'password'}", "--no-sync")  # fmt: skip
        self._numbers = count()
        self.start()
        for role in (OWNER, USER):
            self.admin(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = [f"-p {self.port}", f"-k {self._home / 'run'}", "-c listen_addresses=127.0.0.1"]
        options += [f"-c {setting}" for setting in (*self._settings, "max_connections=200")]
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self._home / "log"), "-w", "-o", " ".join(options), "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; ``immediate`` as a crash does."""
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.stop("immediate")
        shutil.rmtree(self._home)

    def url(self, database: str, *, role: str = OWNER, password: str = IN_URL, on_socket: bool = False) -> str:
        """Return the URL of a database for a role."""
        if on_socket:
            return f"postgresql://{role}:{password}@/{database}?host={self._home / 'run'}&port={self.port}"
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Create an empty database of the owner's; return its name."""
        name = f"recall_{next(self._numbers)}"
        self.admin(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE template0 ENCODING 'UTF8'")
        return name

    def drop(self, database: str) -> None:
        """Drop a database, whoever is connected."""
        self.admin(f"DROP DATABASE {database} WITH (FORCE)")

    def admin(self, sql: str, *, database: str = "postgres") -> list[Any]:
        """Run a statement as the superuser; return its rows."""
        import psycopg

        with psycopg.connect(self.url(database, role="postgres"), autocommit=True) as db:
            answer = db.execute(sql)  # type: ignore[arg-type,unused-ignore]
            return answer.fetchall() if answer.description else []

    def bytes_of(self, database: str) -> bytes:
        """Return every byte of a database's tables and indexes as they lie on the disk: not the server's log."""
        self.admin("CHECKPOINT")
        [(oid,)] = self.admin(f"SELECT oid FROM pg_database WHERE datname = '{database}'")
        return b"".join(file.read_bytes() for file in (self.data / "base" / str(oid)).iterdir() if file.is_file())

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        if os.getuid() == 0:  # initdb refuses root
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=self._home)
