"""SharedStore: a store that another process may write, as the last commit left it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from agent_memory.config import Codec
from agent_memory.errors import ReadOnlyError, StoreError
from agent_memory.kvcache.layout import Layout
from agent_memory.log.database import view_database
from agent_memory.log.files import MANIFEST, Files, holds_store, manifest_path
from agent_memory.log.keyfile import read_keys
from agent_memory.log.place import Place
from agent_memory.log.refusals import store_errors
from agent_memory.prefix.pieces import Ids
from agent_memory.progress import Progress, silent
from agent_memory.sealing.keys import Keys
from agent_memory.store.catalog import Catalog, open_disk
from agent_memory.store.manifest import Manifest
from agent_memory.store.reading import Match
from agent_memory.store.store import Store
from agent_memory.store.verify import verify_store
from agent_memory.types import VerifyReport

log = logging.getLogger("agent_memory.store")


def ensure_writable(store: Store, doing: str) -> None:
    """Raise ReadOnlyError if the store was opened to be read only."""
    if store.is_read_only:
        raise ReadOnlyError(
            f"cannot {doing}: this Memory was opened with read_only=True. Open one that writes, where no other process "
            "has the store open, or go on in memory alone with agent.fork(name, temporary=True)"
        )


class _Refused:
    """A method of ``Store`` that a reader does not have: looking it up raises ReadOnlyError."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __get__(self, store: Store | None, owner: type[Store]) -> _Refused:
        if store is not None:
            ensure_writable(store, self._doing)
        return self


class SharedStore(Store):
    """The logs and the KV of a folder that another process may have open: reads alone.

    - Takes no lock, writes nothing, and has no transaction open between two calls: the writer's WAL can be folded.
    - Each look-up and each agent that is opened sees what is committed by then.
    - A file that is gone was removed by the writer: a miss, not damage.
    - What would write raises ReadOnlyError; new KV stays in memory alone.

    Raises StoreError where there is no store, ReadOnlyError where it cannot be read without writing,
    IncompatibleStoreError for one that a newer release wrote.
    """

    is_read_only = True

    def __init__(self, path: Path, *, chunk_tokens: int, key: Keys | None = None) -> None:
        if not holds_store(path):
            raise StoreError(f"{path} holds no store: no file {MANIFEST} is in it, and read_only=True makes none")
        self._attached: tuple[str, Layout, str] | None = None
        super().__init__(path, disk_bytes=0, chunk_tokens=chunk_tokens, key=key)
        self._seen = -1  #: the commit that the catalog shows

    def _open(
        self,
        path: Path,
        disk_bytes: int | None,
        bytes_per_day: int | None,
        codec: Codec,
        files: Files,
        report: Progress,
    ) -> None:
        self._database = view_database(manifest_path(path), read_keys(path, self._key))
        try:
            self._shared = open_disk(
                path, Manifest(self._database), self._io, files, self.health, Place.of(path),
                budget_bytes=disk_bytes, bytes_per_day=bytes_per_day, compute_s=self.costs.compute_s,
            )  # fmt: skip
        except OSError as error:
            self._database.close()
            raise StoreError(f"cannot read the store {path}: {error}") from error
        self._shared.is_read_only = True
        self._catalog = Catalog(self._shared, self._pins, codec=codec)
        log.info("store open path=%s read-only", path)

    def attach(
        self, identity: str, layout: Layout, host: str, facts: Mapping[str, str], report: Progress = silent
    ) -> None:
        """Index the committed KV of one identity."""
        self._io.start()
        self._attached, self._seen = (identity, layout, host), -1
        self._follow(report)

    def _follow(self, report: Progress = silent) -> None:
        """Read the manifest again if it has changed. Engine thread."""
        with store_errors("read it", self._path):
            with self._database.reading() as db:
                seen = int(db.execute("PRAGMA data_version").fetchone()[0])
            if self._attached is None or seen == self._seen:
                return
            catalog = Catalog(self._shared, self._pins)
            for segment in self._manifest.segments(report=report):
                segment.held_bytes = segment.n_bytes
                if all(number in catalog.segments for number in segment.needs):
                    catalog.enter(segment)
            catalog.attach(*self._attached, self.chunk_tokens, report)
            self._pins.load(self._logs, self._manifest)
        self._catalog, self._seen = catalog, seen

    def match(self, ids: Ids) -> Match:
        """Return the longest prefix of ``ids`` that is on disk now."""
        self._follow()
        return super().match(ids)

    def touch(self, match: Match) -> None:
        """Do nothing: times of use are the writer's."""

    def flush(self) -> None:
        """Do nothing: nothing was written."""

    def compact(self, rest_s: float = 0.0) -> None:
        """Do nothing."""

    def release(self, agent_id: int, ids: Ids) -> None:
        """Do nothing: the KV is the writer's."""

    def verify(self, report: Progress = silent) -> VerifyReport:
        """Read and check every stored byte, at the disk's speed."""
        with store_errors("read it", self._path):
            found = verify_store(self._manifest, self._logs, self._shared.folder, report)
        return attrs.evolve(found, strangers=())

    create_agent: Any = _Refused("create an agent")
    pin: Any = _Refused("pin an agent")
    append_turn: Any = _Refused("write a turn")
    describe: Any = _Refused("change an agent")
    fork: Any = _Refused("fork an agent that is kept")
    change: Any = _Refused("change an agent's log")
    rewrap: Any = _Refused("change the key")
    delete_agent: Any = _Refused("delete an agent")
    forget: Any = _Refused("forget what was remembered")
