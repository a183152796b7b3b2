"""Where a bucket's objects are: an object store reached by obstore, or a folder that several hosts mount.

Both answer three questions (size, read, create) as coroutines of one event loop, and both store an object whole or not
at all. What they raise is foreign; `bucket.py` names it.

Why a folder is not left to obstore: its local store links without an fsync, so that a power failure leaves an empty
object under a name that was acknowledged.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from agent_memory.errors import INSTALL, MissingExtraError
from agent_memory.remote.bodies import Body, FileBody, Held

_T = TypeVar("_T")

_LOOKS = 16  #: look-ups in a folder at once
_MOVES = 32  #: objects that are read and stored there at once

#: No hard links on that file system: nothing there creates a name only where it is free.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class TooLargeError(Exception):
    """The object is larger than its reader takes."""


class Place(Protocol):
    """Objects by name."""

    async def size(self, name: str) -> int | None:
        """Return an object's bytes; None if there is none."""

    async def read(self, name: str, max_bytes: int, take: Callable[[Body], _T]) -> _T | None:
        """Return what ``take`` makes of an object, on a thread of its own; None if there is none.

        Raises TooLargeError before it reads more than ``max_bytes``.
        """

    async def create(self, name: str, body: bytes) -> bool:
        """Store an object under a free name. Return False, and change nothing, if the name is taken."""

    def close(self) -> None:
        """End threads of its own; calls that run are not waited for. Idempotent."""


class Folder:
    """Objects as files. Permissions follow the process' umask: whoever shares the folder has to read them.

    A file is written beside its place, fsynced, linked to its name (which fails if the name is taken), and the folder
    is fsynced. Without hard links an existing name is looked for first: two writers at one moment both store, and
    `Bucket.probe` says so.

    Look-ups have threads of their own: behind transfers that take seconds they would be late, and the folder taken for
    dead.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.has_links = True  #: False as soon as the file system refused one
        self._looks: Executor = ThreadPoolExecutor(_LOOKS, "agent_memory look")
        self._moves: Executor = ThreadPoolExecutor(_MOVES, "agent_memory move")

    async def size(self, name: str) -> int | None:
        return await _on(self._looks, self._size, name)

    async def read(self, name: str, max_bytes: int, take: Callable[[Body], _T]) -> _T | None:
        return await _on(self._moves, self._read, name, max_bytes, take)

    async def create(self, name: str, body: bytes) -> bool:
        return await _on(self._moves, self._create, name, body)

    def close(self) -> None:
        self._looks.shutdown(wait=False, cancel_futures=True)
        self._moves.shutdown(wait=False, cancel_futures=True)

    def _size(self, name: str) -> int | None:
        try:
            return (self._root / name).stat().st_size
        except FileNotFoundError:
            return None

    def _read(self, name: str, max_bytes: int, take: Callable[[Body], _T]) -> _T | None:
        try:
            file = (self._root / name).open("rb", buffering=0)
        except FileNotFoundError:
            return None
        with file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes > max_bytes:
                raise TooLargeError(f"{n_bytes:,} bytes, and at most {max_bytes:,} are read")
            if hasattr(os, "posix_fadvise"):  # the system reads on while a part is opened
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            return take(FileBody(file, n_bytes))

    def _create(self, name: str, body: bytes) -> bool:
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.parent / f".{secrets.token_hex(12)}.part"
        try:
            with beside.open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            if not self._name(beside, target):
                return False
        finally:
            beside.unlink(missing_ok=True)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        return True

    def _name(self, beside: Path, target: Path) -> bool:
        if self.has_links:
            try:
                os.link(beside, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self.has_links = False
            else:
                return True
        if target.exists():
            return False
        beside.rename(target)
        return True


async def _on(threads: Executor, work: Callable[..., _T], *given: Any) -> _T:
    return await asyncio.get_running_loop().run_in_executor(threads, work, *given)


class ObjectStore:
    """Objects on S3, Google Cloud Storage, Azure or what speaks their protocols, through obstore.

    Made without a socket; the first call connects. Raises MissingExtraError, and obstore's errors for options it does
    not know.
    """

    def __init__(
        self, url: str, options: Mapping[str, str], *, connect_s: float, stall_s: float, longest_s: float
    ) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise MissingExtraError(f"remote={url!r} needs obstore. Install it: {INSTALL['remote']}") from error
        config: Any = dict(options)
        self._obstore = obstore
        self._taken = obstore.exceptions.AlreadyExistsError
        self._store: Any = from_url(
            url,
            config=config,
            client_options={
                "allow_http": True,  # where the host names an endpoint of plain http; the usual ones are https
                "connect_timeout": timedelta(seconds=connect_s),
                "read_timeout": timedelta(seconds=stall_s),
                "timeout": timedelta(seconds=longest_s),
            },
            retry_config={  # a few at once; obstore's own default is ten in three minutes
                "max_retries": 2,
                "retry_timeout": timedelta(seconds=longest_s),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=10),
                    "max_backoff": timedelta(milliseconds=100),
                    "base": 2,
                },
            },
        )

    async def size(self, name: str) -> int | None:
        try:
            return int((await self._obstore.head_async(self._store, name))["size"])
        except FileNotFoundError:
            return None

    async def read(self, name: str, max_bytes: int, take: Callable[[Body], _T]) -> _T | None:
        try:
            answer = await self._obstore.get_async(self._store, name)
        except FileNotFoundError:
            return None
        if answer.meta["size"] > max_bytes:
            raise TooLargeError(f"{answer.meta['size']:,} bytes, and at most {max_bytes:,} are read")
        return await asyncio.to_thread(take, Held(memoryview(await answer.bytes_async())))

    async def create(self, name: str, body: bytes) -> bool:
        try:  # not in parts: whether their conditions hold differs by server
            await self._obstore.put_async(self._store, name, body, mode="create", use_multipart=False)
        except self._taken:
            return False
        return True

    def close(self) -> None:
        """Nothing is its own."""
