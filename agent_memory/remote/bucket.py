"""`Bucket`: objects by name on a store that several hosts share, each call within a time limit.

- Nothing is listed, overwritten or deleted: objects are looked up, read and created.
- One thread for each bucket (an event loop) starts at the first call and ends in `close`; obstore adds threads of its
  own, which it shares between all buckets of a process and keeps.
- obstore reads the environment once, when a bucket of an object store is made: ``AWS_*``, ``GOOGLE_*``, ``AZURE_*``
  (credentials, region, endpoint) and ``HTTP_PROXY`` and its like. Without any credentials it asks the cloud's metadata
  address at each call. The URL's own options win over the environment. A folder reads nothing of it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import field, frozen

from agent_memory.errors import ClosedError, ConfigError
from agent_memory.remote.bodies import Body
from agent_memory.remote.failures import BucketError, Kind, ObjectDamagedError
from agent_memory.remote.places import Folder, ObjectStore, Place, TooLargeError

SCHEMES = ("s3", "gs", "az", "file")
#: What a URL may say behind "?": never a secret, since URLs are shown.
URL_OPTIONS = ("endpoint", "region", "skip_signature", "virtual_hosted_style_request")
PROBE = "v1/probe"
MAX_OBJECT_BYTES = 2 << 30
MAX_AT_ONCE = 64  #: look-ups of one round that are on their way together

_GRACE_S = 5.0  #: how long a caller waits for the loop itself: in a forked child it never turns

_T = TypeVar("_T")


@frozen
class Limits:
    """Time limits in seconds. A look-up's holds for a whole round; a transfer's grows with its bytes."""

    lookup_s: float = 0.22  #: less than a request waits for it: the next request finds it failed
    connect_s: float = 0.22
    stall_s: float = 2.0  #: within a transfer, without a byte
    transfer_s: float = 5.0  #: before any byte is counted
    bytes_per_s: float = 2e6  #: the slowest transfer that is waited for

    def transfer(self, n_bytes: int) -> float:
        """Return how long a transfer of so many bytes may take."""
        return self.transfer_s + n_bytes / self.bytes_per_s


@frozen
class Address:
    """A bucket's URL, taken apart: ``place`` is what may be shown, ``base`` what obstore is given."""

    place: str
    scheme: str
    base: str
    options: Mapping[str, str] = field(factory=dict)


def address_of(url: str) -> Address:
    """Take a URL apart. Raises ConfigError for another scheme, an option that is not known, or secrets in it."""
    if not isinstance(url, str):
        raise ConfigError(f"remote must be a URL: {type(url).__name__}")
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ConfigError(f"remote must begin with one of {known}; its scheme is {parts.scheme!r}")
    if "@" in parts.netloc:
        raise ConfigError("remote must not hold credentials: they come from the environment of the cloud's own tools")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - set(URL_OPTIONS)):
        raise ConfigError(
            f"remote has the option {unknown[0]!r} behind '?'; it may have {', '.join(URL_OPTIONS)}. "
            "Credentials come from the environment of the cloud's own tools"
        )
    if parts.fragment:
        raise ConfigError("remote must not have a '#'")
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/") or options:
            raise ConfigError("remote must name a folder by its whole path: file:///mnt/share")
    elif not parts.netloc:
        raise ConfigError(f"remote names no bucket: {parts.scheme}://BUCKET/PREFIX")
    return Address(place=base, scheme=parts.scheme, base=base, options=options)


class Bucket:
    """Objects by name. Any thread; calls of several threads run together.

    ``url``: ``s3://bucket/prefix``, ``gs://``, ``az://`` or ``file:///folder``; ``?endpoint=`` and ``region=`` for a
    server of one's own. ``options``: what obstore's store takes beyond that, for example credentials of the host's own.
    Opens no socket. Raises ConfigError, MissingExtraError.

    Every call raises BucketError within its time limit, and ClosedError after `close`.
    """

    def __init__(self, url: str, *, options: Mapping[str, str] | None = None, limits: Limits | None = None) -> None:
        address = address_of(url)
        self.place = address.place  #: the URL without its options, for messages
        self._limits = limits or Limits()
        self._store: Place = _place_of(address, dict(options or {}), self._limits)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def probe(self) -> bool:
        """Return True if the store creates a name only where it is free, False if it overwrites.

        Creates one tiny object if nobody has yet, and the same once more. One round trip, two the first time. With
        False, two writers of one name both believe that they were first: nothing may rely on `put_new`'s answer.
        """
        body = b"agent_memory asks whether a second writer is refused\n"
        limit_s = self._limits.transfer(len(body))
        is_free = self._run("probing", lambda: self._store.create(PROBE, body), limit_s)
        is_refused = not is_free or not self._run("probing", lambda: self._store.create(PROBE, body), limit_s)
        return is_refused and not (isinstance(self._store, Folder) and not self._store.has_links)

    def sizes(self, names: Sequence[str], *, timeout_s: float | None = None) -> list[int | None]:
        """Return each object's bytes, None for one that is missing: one parallel round of look-ups.

        Takes at most ``Limits.lookup_s`` for all of them together; what has not answered then fails the round.
        """
        if not names:
            return []
        return self._run(
            "looking up", lambda: self._sizes(names), self._limits.lookup_s if timeout_s is None else timeout_s
        )

    def get(self, name: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> memoryview | None:
        """Return an object whole; None if it is missing. Never holds more than ``max_bytes``.

        The time limit grows with ``max_bytes``: give the size that `sizes` told.
        """
        return self.read(name, lambda body: body.take(body.n_bytes), max_bytes=max_bytes)

    def read(self, name: str, take: Callable[[Body], _T], *, max_bytes: int = MAX_OBJECT_BYTES) -> _T | None:
        """Return what ``take`` makes of an object while it is read, within `get`'s time limit; None if it is missing.

        ``take`` runs on another thread, which it may keep beyond the limit: nobody waits for it then. What it raises
        as ObjectDamagedError goes through.
        """
        limit_s = self._limits.transfer(max_bytes)
        return self._run("reading", lambda: self._store.read(name, max_bytes, take), limit_s)

    def put_new(self, name: str, body: bytes, *, timeout_s: float | None = None) -> bool:
        """Store an object under a free name, whole or not at all; False if the name is taken.

        After an error the object may be there: an answer can be lost on its way. The same holds for False where
        obstore asked again after a lost answer; who must know reads the object.
        """
        limit_s = self._limits.transfer(len(body)) if timeout_s is None else timeout_s
        return self._run("storing", lambda: self._store.create(name, body), limit_s)

    def close(self) -> None:
        """End the thread; calls that run end with an error. Idempotent."""
        with self._lock:
            self._is_closed = True
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=5)
        self._store.close()

    async def _sizes(self, names: Sequence[str]) -> list[int | None]:
        gate = asyncio.Semaphore(MAX_AT_ONCE)

        async def one(name: str) -> int | None:
            async with gate:
                return await self._store.size(name)

        return await asyncio.gather(*(one(name) for name in names))

    def _run(self, doing: str, call: Callable[[], Coroutine[Any, Any, _T]], limit_s: float) -> _T:
        try:
            loop = self._running()
            return asyncio.run_coroutine_threadsafe(_limited(call, limit_s), loop).result(limit_s + _GRACE_S)
        except (ClosedError, ObjectDamagedError):
            raise
        except TimeoutError as error:
            raise BucketError("timeout", self.place, doing, f"no answer within {limit_s:.3g} s") from error
        except (asyncio.CancelledError, CancelledError) as error:
            raise ClosedError(f"remote {self.place}: closed while {doing}") from error
        except TooLargeError as error:
            raise BucketError("too_large", self.place, doing, str(error)) from error
        except Exception as error:  # whatever obstore, the file system or a full system raises: typed, no debug text
            if self._is_closed:
                raise ClosedError(f"remote {self.place}: closed while {doing}") from error
            raise BucketError(_kind_of(error), self.place, doing, _first_line(error)) from error

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._is_closed:
                raise ClosedError(f"remote {self.place} was closed")
            if self._loop is None:
                self._loop, self._thread = _started()
            return self._loop


async def _limited(call: Callable[[], Coroutine[Any, Any, _T]], limit_s: float) -> _T:
    return await asyncio.wait_for(call(), limit_s)


def _started() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """Return an event loop and the thread that turns it. Raises OSError and RuntimeError where the system has none."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_turn, args=(loop,), name="agent_memory remote", daemon=True)
    try:
        thread.start()
    except BaseException:  # its files would stay open
        loop.close()
        raise
    return loop, thread


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    while tasks := asyncio.all_tasks(loop):  # calls that were made just now come late
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def _place_of(address: Address, options: dict[str, str], limits: Limits) -> Place:
    if address.scheme == "file":
        if options:
            raise ConfigError("a folder takes no options")
        return Folder(Path(unquote(urlsplit(address.base).path)))
    try:
        return ObjectStore(
            address.base,
            {**options, **address.options},
            connect_s=limits.connect_s,
            stall_s=limits.stall_s,
            longest_s=limits.transfer(MAX_OBJECT_BYTES),
        )
    except ImportError:
        raise
    except Exception as error:  # obstore's errors of unknown options and of credentials that do not parse
        raise ConfigError(f"remote {address.place}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """Return what an error says, without obstore's debug text and without the requested URL's query."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].split("?")[0][:300]


def _kind_of(error: Exception) -> Kind:
    name, text = type(error).__name__, str(error)
    if name in ("PermissionDeniedError", "UnauthenticatedError") or isinstance(error, PermissionError):
        return "denied"
    if name == "NotFoundError" or isinstance(error, FileNotFoundError):
        return "missing_bucket"
    if "kind: Timeout" in text:
        return "timeout"
    if "kind: Connect" in text or "kind: Request" in text or "error sending request" in text:
        return "unreachable"
    return "failed"
