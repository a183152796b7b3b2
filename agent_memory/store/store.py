"""Store: one folder that holds agents' logs and their KV, used by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from agent_memory.config import Codec
from agent_memory.errors import AgentMemoryError, OutOfSpaceError, StoreError, StoreLockedError
from agent_memory.kvcache.layout import Layout
from agent_memory.protocols import Source
from agent_memory.store import lookup
from agent_memory.store.catalog import Catalog
from agent_memory.store.deletion import delete_agent
from agent_memory.store.format import KV_FOLDER, LOCK, MANIFEST
from agent_memory.store.io import IOThread
from agent_memory.store.lookup import Match
from agent_memory.store.manifest import Manifest
from agent_memory.store.pins import Pins
from agent_memory.store.planner import Ids, Segment
from agent_memory.store.points import Held, Side
from agent_memory.store.provenance import Provenance
from agent_memory.store.records import AgentRecord, Turn
from agent_memory.store.retention import Costs
from agent_memory.store.rows import layout_json
from agent_memory.store.saves import Save
from agent_memory.store.segments import check_file, checking
from agent_memory.store.warm import Warm
from agent_memory.types import AgentInfo, Exactness, VerifyReport

log = logging.getLogger("agent_memory.store")

_MAX_DEFAULT_BYTES = 32 << 30


class Store:
    """Logs and KV, on disk and warm in memory. ``path`` None: logs in memory, no disk tier.

    ``disk_bytes`` None: min(32 GiB, a quarter of free space). ``codec``: of new KV on disk; any codec is read.
    ``warm_bytes`` 0: no warm tier.

    Logs: any thread. KV: the engine thread. Raises StoreLockedError, IncompatibleStoreError, StoreError.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        disk_bytes: int | None,
        chunk_tokens: int,
        codec: Codec = "exact",
        warm_bytes: int = 0,
        warm_codec: Codec = "exact",
        warm_ttl_s: float | None = None,
    ) -> None:
        self._path, self._chunk_tokens = path, chunk_tokens
        self.costs, self._pins = Costs(), Pins()
        self.warm = Warm(
            warm_bytes,
            codec=warm_codec,
            ttl_s=warm_ttl_s,
            costs=self.costs,
            pins=self._pins.agents,
            is_stored=self._is_on_disk,
        )
        self._io = IOThread()
        self._is_closed = False
        self._lock_fd = -1
        self._catalog: Catalog | None = None
        self._log_damage = 0
        if path is None:
            self._manifest = Manifest(None)
            return
        self._lock_fd = _lock(path)
        try:
            self._manifest = Manifest(path / MANIFEST)
            try:
                budget = disk_bytes if disk_bytes is not None else _default_budget(path)
                catalog = Catalog(path / KV_FOLDER, self._manifest, self._io, budget, codec)
                catalog.is_pinned = self._pins.covers
                catalog.sweep()
                catalog.enforce()
            except BaseException:
                self._manifest.close()
                raise
        except BaseException as error:
            os.close(self._lock_fd)
            if isinstance(error, sqlite3.Error | OSError) and not isinstance(error, AgentMemoryError):
                raise StoreError(f"cannot open the store {path}: {error}") from error
            raise
        self._catalog = catalog
        log.info("store open path=%s segments=%d bytes=%d", path, len(catalog.segments), catalog.n_bytes)

    def recorded(self, model: str) -> Mapping[str, str]:
        """What ``attach`` was told of a model of this name; {} for one that was never used here."""
        with _store_errors("read what is known of the model"):
            return self._manifest.facts(model)

    def attach(self, identity: str, layout: Layout, host: str, facts: Mapping[str, str]) -> None:
        """Load the index of one identity and record what is known of it; again for another model. ~2 us a chunk."""
        with _store_errors("record the model"):
            self._manifest.attach(identity, layout_json(layout), facts)
            self.warm.attach(identity, layout, host, self._chunk_tokens)
            if self._catalog is not None:
                self._io.drain()
                self._catalog.attach(identity, layout, host, self._chunk_tokens)
            self._pins.load(self._manifest)

    # logs

    def lineage_identities(self, agent_id: int) -> frozenset[str]:
        """Identities of the models under which this agent has stored KV."""
        with _store_errors("read the agent"):
            return self._manifest.lineage_identities(agent_id)

    def load_agent(self, salt: str, name: str) -> AgentRecord | None:
        """An agent and its log, up to the first damaged turn. Waits for queued log writes."""
        self._drain_logs()
        with _store_errors("read the agent"):
            found = self._manifest.load_agent(salt, name)
        if found is None:
            return None
        record, damage = found
        if damage is not None:
            self._log_damage += 1
            log.warning("store: damage in an agent's log at %s; %d turns before it are used", damage, len(record.turns))
        return attrs.evolve(record, is_pinned=record.agent_id in self.pins)

    def create_agent(self, salt: str, name: str, *, system: str | None, tools: str) -> AgentRecord:
        """A new agent, committed when this returns. Raises StoreError where it exists or the disk is full."""
        if not name:
            raise StoreError("an agent's name must not be empty")
        with _store_errors("create the agent"):
            return self._manifest.create_agent(salt, name, system=system, tools=tools)

    def list_agents(self, salt: str) -> list[AgentInfo]:
        """All agents of a salt, by name."""
        self._drain_logs()
        with _store_errors("list agents"):
            return self._manifest.list_agents(salt, self.pins)

    def pin(self, agent_id: int, is_pinned: bool) -> None:
        """Pin an agent, or no longer; committed when this returns. Its KV leaves memory last, the disk not at all."""
        with _store_errors("pin the agent"):
            self._pins.set(self._manifest, agent_id, is_pinned)

    @property
    def pins(self) -> Set[int]:
        """The agents that are pinned."""
        return self._pins.agents

    def append_turn(self, agent_id: int, number: int, turn: Turn) -> None:
        """Queue turn ``number`` in place of any turn from there on; durable after ``flush``."""
        self._io.submit_log(lambda: self._manifest.append_turn(agent_id, number, turn))

    def rewind(self, agent_id: int, n_turns: int) -> None:
        """Queue the removal of every turn after the first ``n_turns``."""
        self._io.submit_log(lambda: self._manifest.rewind(agent_id, n_turns))

    def delete_agent(self, agent_id: int) -> None:
        """End an agent: its log and the KV that nobody else uses are gone from disk when this returns."""
        self._drain_logs()
        self.warm.release(agent_id)
        if agent_id in self.pins:
            self.pin(agent_id, False)
        with _store_errors("delete the agent"):
            if self._catalog is None:
                self._manifest.delete_agent(agent_id, drop=(), change=())
            else:
                catalog = self._catalog
                self._io.call(lambda: delete_agent(catalog, agent_id))

    # KV

    def match(self, ids: Ids) -> Match:
        """The longest stored prefix of ``ids``, warm or cold; O(len(ids)) hashing, in memory."""
        return lookup.find(self._catalog, self.warm, ids)

    def source(self, match: Match, n_tokens: int) -> Source:
        """The first ``n_tokens`` of a match, ready to be read; opens its files. Damage is noted there, never raised.

        Less than the whole match only where the model's layers can be cut at any token.
        """
        return lookup.source(self._catalog, self.warm, match, n_tokens)

    def prefetch(self, match: Match) -> None:
        """Read a match's files on the I/O thread, before any write: checked, and in the page cache when needed.

        Those whose pieces are warm are not read.
        """
        catalog = self._catalog
        if catalog is None or match.tier != "cold":
            return
        segments = {p.segment.number: p.segment for p, _ in match.pieces if p.start >= match.n_warm}
        files: list[Segment | Side] = list(segments.values())
        with catalog.lock:
            files += [span.side for span in lookup.sides_to_read(catalog, match).spans]

        def steps() -> Iterator[None]:
            for file in files:
                try:
                    yield from checking(catalog.path(file), file.n_bytes, file.header_xxh3)
                except (OSError, ValueError, KeyError, StopIteration) as error:
                    catalog.void(file, "missing" if isinstance(error, FileNotFoundError) else "damaged", str(error))
                    return

        self._io.submit_read(steps())

    def touch(self, match: Match) -> None:
        """The match was used now, in both tiers; what it stands on counts as used too."""
        self.warm.touch(held for held, _ in match.warm)
        if self._catalog is not None:
            segments: dict[int, Segment] = {p.segment.number: p.segment for p, _ in match.pieces}
            self._catalog.touch(segments.values())

    def begin_save(
        self,
        ids: Ids,
        n_tokens: int,
        made: np.ndarray[Any, Any],
        exactness: Exactness,
        *,
        agent_id: int | None,
        held: Held = Held(),  # noqa: B008 - a frozen value
    ) -> Save:
        """Plan what of ``ids[:n_tokens]`` must be written: what is neither stored nor being saved.

        ``Save.parts``: rows of full-attention layers. ``Save.sides``: what the others need, as far as ``held`` has it.
        """
        if self._catalog is None:
            return Save(None)
        tokens = np.ascontiguousarray(ids[:n_tokens], dtype=np.uint32)
        lineage = Provenance(np.asarray(made[:n_tokens], np.uint8), exactness)
        save = self._catalog.begin_save(tokens, lineage, agent_id, held)
        self._pins.note(agent_id, save.head)
        return save

    def _is_on_disk(self, piece: bytes) -> bool:
        index = self._catalog.index if self._catalog is not None else None
        return index is not None and piece in index.pieces

    @property
    def has_disk(self) -> bool:
        """Whether KV outlives the process."""
        return self._catalog is not None

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return self._chunk_tokens

    @property
    def is_ready(self) -> bool:
        """Whether the disk keeps up with what is put; while not, more would only cost memory."""
        return self._io.is_ready

    # the house

    def flush(self) -> None:
        """Return when everything queued before is durable. Raises OutOfSpaceError or StoreError where a log write
        failed.
        """
        error = self._io.drain()
        if error is not None:
            raise _as_store_error("write an agent's log", error) from error

    def verify(self) -> VerifyReport:
        """Read and check every stored byte. Reads the disk at its speed; raises as ``flush`` does."""
        self.flush()
        damaged: list[str] = []
        n_bytes = n_pieces = n_segments = 0
        for row in self._manifest.segments() if self._catalog is not None else []:
            assert self._path is not None
            n_segments += 1
            n_pieces += -(-row.n_tokens // row.chunk_tokens)
            try:
                n_bytes += check_file(self._path / KV_FOLDER / row.file, row.n_bytes, row.header_xxh3)
            except (OSError, ValueError, KeyError, StopIteration) as error:
                if any(row == now for now in self._manifest.segments(row.identity)):  # else it was evicted meanwhile
                    damaged.append(f"segment {row.file}: {error}")
        for side in self._manifest.sides() if self._catalog is not None else []:
            assert self._path is not None
            try:
                n_bytes += check_file(self._path / KV_FOLDER / side.file, side.n_bytes, side.header_xxh3)
            except (OSError, ValueError, KeyError, StopIteration) as error:
                if any(side.file == now.file for now in self._manifest.sides()):  # else it was dropped meanwhile
                    damaged.append(f"side file {side.file}: {error}")
        turns, bad_logs = self._manifest.damaged_turns()
        return VerifyReport(
            segments=n_segments, chunks=n_pieces, bytes_read=n_bytes, turns=turns, damaged=(*damaged, *bad_logs)
        )

    def stats(self) -> dict[str, int]:
        """Counters since the store was opened, and its size now."""
        c = self._catalog
        figures = {
            "disk_bytes": 0,
            "bytes_written": 0,
            "segments": 0,
            "chunks": 0,
            "damage": self._log_damage,
            "save_failures": 0,
        }
        if c is not None:
            with c.lock:
                figures.update(
                    disk_bytes=c.n_bytes,
                    bytes_written=c.bytes_written,
                    segments=sum(s.is_ready for s in c.segments.values()),
                    chunks=sum(-(-s.n_tokens // s.chunk_tokens) for s in c.segments.values() if s.is_ready),
                    damage=c.damage + self._log_damage,
                    save_failures=c.save_failures,
                )
        return figures | {"agents": self._manifest.n_agents()}

    def close(self) -> None:
        """Flush, end the I/O thread, give the lock back; idempotent. Raises as ``flush`` does, after closing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._catalog is not None and self._catalog.has_unwritten_uses:
                with contextlib.suppress(AgentMemoryError):
                    self._io.submit(self._catalog.flush_uses)
            self.flush()
        finally:
            self._io.close()
            self._manifest.close()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
        log.info("store closed path=%s", self._path)

    def _drain_logs(self) -> None:
        error = self._io.drain(logs_only=True)
        if error is not None:
            raise _as_store_error("write an agent's log", error) from error


@contextlib.contextmanager
def _store_errors(doing: str) -> Any:
    try:
        yield
    except AgentMemoryError:
        raise
    except (sqlite3.Error, OSError) as error:
        raise _as_store_error(doing, error) from error


def _as_store_error(doing: str, error: BaseException) -> StoreError:
    text = str(error)
    is_full = (isinstance(error, OSError) and error.errno in (28, 122)) or "disk is full" in text  # ENOSPC, EDQUOT
    kind: Callable[[str], StoreError] = OutOfSpaceError if is_full else StoreError
    advice = ". Free some space and flush again" if is_full else ""
    return kind(f"could not {doing}: {text}{advice}")


def _default_budget(path: Path) -> int:
    held = sum(f.stat().st_size for f in (path / KV_FOLDER).glob("*/*") if f.is_file())
    return min(_MAX_DEFAULT_BYTES, (shutil.disk_usage(path).free + held) // 4)


def _lock(path: Path) -> int:
    """Make the folder ours alone, and lock it; the lock's file descriptor."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path, 0o700)
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"cannot use {path} as a store: {error.strerror}. Give another path, or ':memory:'") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        try:
            holder = json.loads(os.pread(fd, 4096, 0))
            who = f"process {holder['pid']} on {holder['host']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        os.close(fd)
        raise StoreLockedError(f"{path} is in use by {who}. Close it there, or give another path") from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    return fd
