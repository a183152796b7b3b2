"""From ``Memory``'s arguments to its runner, its store and its tiers; opening without blocking an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from agent_memory.config import Config, as_path
from agent_memory.errors import ConfigError, StoreError, UnsupportedParameterError, repr_of
from agent_memory.log.files import MANIFEST, holds_store
from agent_memory.progress import bar
from agent_memory.reader.view import StoreView
from agent_memory.sealing.keys import Secret, keys_of

if TYPE_CHECKING:
    import asyncio

    from agent_memory.protocols import ModelRunner
    from agent_memory.tiers.tiers import Tiers


class _Closing(Protocol):
    """An object with ``close()`` that is an async context manager."""

    def close(self) -> None: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


M = TypeVar("M", bound=_Closing)


class Opening(Generic[M]):
    """A Memory that opens on a thread of its own: await it, or use it with ``async with``. It opens once.

    A Memory whose opening is cancelled is closed as soon as it is open.
    """

    def __init__(self, opens: Callable[[], M]) -> None:
        self._opens = opens
        self._future: asyncio.Future[M] | None = None
        self._lock = threading.Lock()
        self._memory: M | None = None
        self._is_wanted = True

    def __await__(self) -> Generator[Any, None, M]:
        return self._open().__await__()

    async def __aenter__(self) -> M:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._memory is not None
        await self._memory.__aexit__(kind, error, trace)

    async def _open(self) -> M:
        import asyncio  # here: open_store needs no event loop

        if self._future is None:
            self._future = asyncio.get_running_loop().run_in_executor(None, self._on_thread)
        try:
            return await asyncio.shield(self._future)
        except asyncio.CancelledError:
            with self._lock:
                self._is_wanted = False
                memory = self._memory
            if memory is not None:
                threading.Thread(target=memory.close).start()
            raise

    def _on_thread(self) -> M:
        memory = self._opens()
        with self._lock:
            self._memory = memory
            is_wanted = self._is_wanted
        if not is_wanted:
            memory.close()
        return memory


def runner_for(model: Any, config: Config, adapter: Any) -> ModelRunner:
    """Return the runner that ``Memory(model)`` means. Raises ConfigError or ModelError; loads nothing."""
    if hasattr(type(model), "open_batch"):  # a ModelRunner; isinstance would read properties that need it opened
        if adapter is not None:
            raise ConfigError(
                "adapter= goes with a model that this library loads; load it into the model you pass instead"
            )
        return cast("ModelRunner", model)
    if model is not None and not isinstance(model, (str, PathLike)):
        raise ConfigError(f"model must be a name, a path, a runner or None, got {type(model).__name__}")
    from agent_memory.runner.mlx import MLXRunner

    return MLXRunner.named(model, config=config, adapter=adapter)


def tiers_for(path: Path | None, config: Config, warm_bytes: int, *, is_read_only: object) -> Tiers:
    """Open the store of a folder, with the warm tier. Raises ConfigError and what ``Store`` does."""
    from agent_memory.exchange.opening import open_remote
    from agent_memory.prefix.foresight import Foresight
    from agent_memory.reader.shared import SharedStore  # here: who only looks at a store (open_store) waits for none
    from agent_memory.store.store import Store
    from agent_memory.tiers.tiers import Tiers

    store: Store
    if not isinstance(is_read_only, bool):
        raise ConfigError(f"read_only must be a bool, got {repr_of(is_read_only)}")
    if is_read_only and path is None:
        raise ConfigError("read_only=True needs a store: ':memory:' is no folder, so nothing is there to be read")
    key = None if config.key is None or path is None else keys_of(config.key, "key")
    remote = open_remote(config)
    if is_read_only and path is not None:
        store = SharedStore(path, chunk_tokens=config.chunk_tokens, key=key)
    else:
        with bar(config.progress, "open the store", "files") as report:
            store = Store(
                path,
                disk_bytes=config.disk_bytes,
                chunk_tokens=config.chunk_tokens,
                bytes_per_day=config.disk_bytes_per_day,
                codec=config.cold_codec,
                report=report,
                key=key,
            )
    try:
        exchange = None
        if remote is not None:
            from agent_memory.exchange.exchange import Exchange

            exchange = Exchange(remote, store)
        return Tiers(
            store,
            warm_bytes=warm_bytes,
            warm_codec=config.warm_codec,
            warm_ttl_s=config.warm_ttl_s,
            exchange=exchange,
            foresight=Foresight(is_on=config.foresight == "auto"),
        )
    except BaseException:  # also Ctrl-C: nobody else closes it
        store.close()
        raise


def store_path(path: str | PathLike[str] | None) -> Path | None:
    """Return the folder that ``Memory(path=)`` means; None: no disk tier. Raises ConfigError."""
    if path is None:
        import platformdirs

        return as_path(platformdirs.user_data_dir("agent_memory"), "the user's data folder") / "store"
    if isinstance(path, (str, PathLike)) and fspath(path) == ":memory:":
        return None
    return as_path(path, "path")


def open_store(path: str | PathLike[str] | None = None, *, salt: str = "", key: Secret | None = None) -> StoreView:
    """Open a store for reading: no model, no lock, nothing written; another process may have it open.

    ``path`` None: the user's data folder, as ``Memory`` has it. ``salt``: whose agents are shown. ``key``: as
    ``Config.key``, of an encrypted store. Raises ConfigError, StoreError where there is no store,
    IncompatibleStoreError for one that a newer release wrote, WrongKeyError.
    """
    folder = store_path(path)
    if folder is None:
        raise StoreError("':memory:' is no folder: there is nothing on disk to look at")
    if not holds_store(folder):
        else_do = "Give the folder that Memory was given"
        if path is None:
            else_do = (
                "Agents that are opened without a path are stored there: none was yet. Else give the store's folder"
            )
        raise StoreError(f"{folder} holds no store: no file {MANIFEST} is in it. {else_do}")
    return StoreView(folder, salt, None if key is None else keys_of(key, "key"))


def check_config(config: object) -> None:
    """Raises ConfigError for what is no Config."""
    if not isinstance(config, Config):
        raise ConfigError(f"config must be a Config, got {type(config).__name__}")


def check_drain(drain_s: Any) -> None:
    """Raise UnsupportedParameterError if ``drain_s`` is not a number of seconds, 0 or more."""
    if not isinstance(drain_s, (int, float)) or isinstance(drain_s, bool) or not drain_s >= 0:
        raise UnsupportedParameterError(f"drain_s must be a number of seconds, 0 or more, got {repr_of(drain_s)}")
