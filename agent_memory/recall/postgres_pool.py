"""Connections to a PostgreSQL server, and its errors as this library's. No message has a password or a row's values."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumperUnknown, TextLoader

from agent_memory.errors import ClosedError, ConfigError, OutOfSpaceError, RemoteError, StoreError

BUSY_S = 10.0
MOST_CONNECTIONS = 16
_TRIES = 3  #: of the start of a transaction that collides with another
_CONNECT_S = 10
_SESSION = (
    "SET search_path = agent_memory; SET client_encoding = 'UTF8'; SET jit = off; "
    f"SET lock_timeout = '{int(BUSY_S)}s'; SET DateStyle = 'ISO'; SET standard_conforming_strings = on"
)
_ESCAPE, _NUL = "\x01", "\x01\x02"  #: PostgreSQL's texts have no NUL; what was told may
_ESCAPED = re.compile("\x01([\x01\x02])")
_COLLIDED = {"40001", "40P01"}
_LOCKED = {"55P03", "57014"}
_GONE = ("08", "57P")  #: classes of errors after which a connection is of no use


class _Text(StrDumperUnknown):
    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace(_ESCAPE, _ESCAPE * 2).replace("\0", _NUL))


class _TextBack(TextLoader):
    def load(self, data: Any) -> Any:
        text = super().load(data)
        return _ESCAPED.sub(lambda match: "\0" if match[1] == "\x02" else _ESCAPE, text) if _ESCAPE in text else text


class Pool:
    """Connections to one database, for every thread of a process; each is one thread's while it is borrowed.

    - At most ``MOST_CONNECTIONS``; a thread waits ``BUSY_S`` for one.
    - A connection that the server has dropped is made anew once, before a transaction's first statement. A transaction
      that loses its connection fails with RemoteError.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            parameters: dict[str, Any] = conninfo_to_dict(url)
            for number in str(parameters.get("port") or "0").split(","):
                int(number)
        except (psycopg.Error, ValueError):
            raise ConfigError(
                "this PostgreSQL URL cannot be read. Write postgresql://user:password@host:port/database, and @ : / ? "
                "# % in a name or a password as %40 %3A %2F %3F %23 %25"
            ) from None  # libpq's own message repeats parts of the URL
        self._password = str(parameters.get("password") or "")
        host, port = parameters.get("host") or "localhost", parameters.get("port")
        where = f"{host}:{port}" if port else str(host)
        self.name = f"postgresql://{where}/{parameters.get('dbname') or parameters.get('user') or ''}"
        self._more = {} if "connect_timeout" in parameters else {"connect_timeout": _CONNECT_S}
        self._pid = os.getpid()
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._is_closed = False

    @contextmanager
    def connection(self, start: str | None = None) -> Iterator[Any]:
        """Borrow a connection on which ``start`` (statements without values) was run. Rolls back what is left open."""
        self._alive()
        if not self._free.acquire(timeout=BUSY_S):
            raise StoreError(f"{self.name}: {MOST_CONNECTIONS} threads use it for {BUSY_S:.0f} s. Call again")
        try:
            with self.translated():
                db = self._started(start)
            try:
                with self.translated():
                    yield db
            finally:
                self._give_back(db)
        finally:
            self._free.release()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """PostgreSQL's errors as this library's."""
        try:
            yield
        except psycopg.Error as error:
            raise self._told(error) from None  # its own message may show a row

    def close(self) -> None:
        """Close what is idle now, and what is borrowed when it comes back; idempotent."""
        self._is_closed = True
        self._drop_idle()

    def _alive(self) -> None:
        if self._is_closed:
            raise ClosedError("the recall database is closed. Open it again with ContextMemory(url)")
        if os.getpid() != self._pid:
            raise ClosedError("the recall database was opened before a fork: open it again in the child process")

    def _started(self, start: str | None) -> Any:
        with self._lock:
            db = self._idle.pop() if self._idle else None
        if db is not None:
            try:
                return self._begun(db, start)
            except psycopg.OperationalError as error:
                _drop(db)
                if not _is_gone(error, db):
                    raise
                self._drop_idle()  # the server was restarted: none of them lives
        db = self._connect()
        try:
            return self._begun(db, start)
        except BaseException:  # also Ctrl-C: nobody else closes it
            _drop(db)
            raise

    def _begun(self, db: Any, start: str | None) -> Any:
        """The connection with its transaction begun; a collision with another is tried again."""
        for attempt in range(1, _TRIES + 1):
            try:
                if start is not None:
                    db.execute(start)
                return db
            except psycopg.OperationalError as error:
                if error.sqlstate not in _COLLIDED or attempt == _TRIES:
                    raise
                db.execute("ROLLBACK")
        raise AssertionError("unreachable")

    def _connect(self) -> Any:
        db = psycopg.connect(self._url, autocommit=True, **self._more)
        try:
            db.adapters.register_dumper(str, _Text)
            db.adapters.register_dumper(int, Int8Dumper)
            db.adapters.register_loader("text", _TextBack)
            db.execute(_SESSION)
            (encoding, commit) = db.execute(
                "SELECT current_setting('server_encoding'), current_setting('synchronous_commit')"
            ).fetchone()
            if encoding != "UTF8":
                raise ConfigError(f"{self.name} is encoded in {encoding}: create the database with ENCODING 'UTF8'")
            if commit == "off":
                db.execute("SET synchronous_commit = on")  # what remember returned is on the disk
        except BaseException:  # also Ctrl-C: nobody else closes it
            _drop(db)
            raise
        return db

    def _give_back(self, db: Any) -> None:
        with suppress(psycopg.Error):
            if not db.closed and db.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                db.execute("ROLLBACK")
        with self._lock:
            if not db.closed and not self._is_closed and os.getpid() == self._pid:
                self._idle.append(db)
                return
        _drop(db)

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        if os.getpid() == self._pid:
            for db in idle:
                _drop(db)

    def _told(self, error: Any) -> Exception:
        """An error of psycopg as one of this library's: its code and first line, without details, which show rows."""
        code = error.sqlstate or ""
        said = error.diag.message_primary or (str(error).strip() if not code else type(error).__name__)
        said = " ".join(str(said).split())
        if self._password:
            said = said.replace(self._password, "***")
        if isinstance(error, psycopg.InterfaceError) or not code or code.startswith(_GONE) or code == "53300":
            return RemoteError(
                f"{self.name}: {said}. Nothing that returned before is lost. Check that the server runs and that the "
                "URL's host, user and password are right, then call again"
            )
        if code.startswith("28"):
            return RemoteError(f"{self.name}: {said}. Check the URL's user and password, and pg_hba.conf")
        if code == "53100":
            return OutOfSpaceError(f"{self.name}: the server's disk refuses the write; nothing was changed")
        if code in _LOCKED:
            return StoreError(f"{self.name}: another process holds the rows for {BUSY_S:.0f} s ({said}). Call again")
        if code in _COLLIDED:
            return StoreError(
                f"{self.name}: a transaction of another program collided ({said}). Nothing was changed: call again"
            )
        if code == "42501":
            return StoreError(
                f"{self.name}: {said}. The owner of the schema agent_memory grants it: see docs/postgres.md"
            )
        return StoreError(f"{self.name}: {said} (SQLSTATE {code})")


def _is_gone(error: Any, db: Any) -> bool:
    return bool(db.closed or db.broken or not error.sqlstate or error.sqlstate.startswith(_GONE))


def _drop(db: Any) -> None:
    with suppress(psycopg.Error):
        db.close()
