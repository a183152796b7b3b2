"""Store: one folder that holds agents' logs and their KV, used by one process at a time."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from agent_memory.config import Codec
from agent_memory.errors import AgentMemoryError, ClosedError, ConfigError, StoreError, WrongKeyError
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.sources import MeteredSource
from agent_memory.log.database import open_database
from agent_memory.log.files import KEY_FILE, Files
from agent_memory.log.health import Health, is_disk_error
from agent_memory.log.keyfile import open_keys, read_keys, write_keys
from agent_memory.log.lock import Lock
from agent_memory.log.logs import Described, Logs, Rewritten
from agent_memory.log.place import GoneError, Place
from agent_memory.log.refusals import as_store_error, opening_error, store_errors
from agent_memory.log.turns import Turn
from agent_memory.log.versions import AgentRecord, Change
from agent_memory.prefix.pieces import Ids
from agent_memory.prefix.provenance import Provenance
from agent_memory.prefix.resume import Held
from agent_memory.prefix.worth import Costs
from agent_memory.progress import Progress, silent
from agent_memory.prompt.messages import to_json
from agent_memory.sealing.keys import Keys
from agent_memory.store import reading
from agent_memory.store.catalog import Catalog, Pins, open_disk
from agent_memory.store.edit import check
from agent_memory.store.holders import delete_agents, delete_unowned, delete_with_versions, hold, release
from agent_memory.store.io import IOThread
from agent_memory.store.manifest import Manifest
from agent_memory.store.opening import Repair, open_manifest
from agent_memory.store.reading import NOTHING, Elsewhere, Match
from agent_memory.store.rewriting import Compactor
from agent_memory.store.room import figures, folder_bytes, keep, sweep
from agent_memory.store.save import Save, begin_save
from agent_memory.store.verify import verify_store
from agent_memory.types import AgentInfo, Exactness, VerifyReport

log = logging.getLogger("agent_memory.store")


@attrs.frozen(kw_only=True)
class Parts:
    """What a store consists of now, for who carries agents out of it, and in."""

    logs: Logs
    manifest: Manifest
    catalog: Catalog | None  #: None: a store in memory, which has no KV
    path: Path | None


class Store:
    """Logs and KV on disk. ``path`` None: logs in memory, no KV.

    - ``disk_bytes``: limit on allocated bytes of the folder. None: a quarter of free space, 32 GiB at most.
    - ``bytes_per_day``: limit on bytes of KV files written on one UTC day. None: no limit.
    - ``codec``: of new KV files; files of every codec are read. ``files``: the calls that change the disk.
    - ``key``: the host's, where the folder is encrypted; a new folder is, under it.

    Logs: any thread. KV: the engine thread. Raises StoreLockedError, IncompatibleStoreError, WrongKeyError, StoreError.
    """

    is_read_only = False  #: True in ``SharedStore``

    def __init__(
        self,
        path: Path | None,
        *,
        disk_bytes: int | None,
        chunk_tokens: int,
        codec: Codec = "exact",
        bytes_per_day: int | None = None,
        files: Files | None = None,
        report: Progress = silent,
        key: Keys | None = None,
    ) -> None:
        self._path, self.chunk_tokens, self._key = path, chunk_tokens, key
        self.costs, self._pins = Costs(), Pins()
        self.health = Health()
        self._io = IOThread(health=self.health)
        self._closing, self._is_closed = threading.RLock(), False
        self._lock: Lock | None = None
        self._catalog: Catalog | None = None
        self._repair: Repair | None = None
        self._place: Place | None = None
        self._log_damage = 0
        self.at_close: Callable[[], None] = _nothing  #: called once all is on disk, before the folder is released
        self.at_forget: Callable[[], None] = _nothing  #: called before KV of an agent or of forgotten text is deleted
        if path is None:
            self._database = open_database(None)
        else:
            self._open(path, disk_bytes, bytes_per_day, codec, files or Files(), report)
        self._logs, self._manifest = Logs(self._database), Manifest(self._database)

    def _open(
        self,
        path: Path,
        disk_bytes: int | None,
        bytes_per_day: int | None,
        codec: Codec,
        files: Files,
        report: Progress,
    ) -> None:
        try:
            read_keys(path, self._key)  # a wrong key changes nothing, the lock file included
            self._lock = Lock(path, files)
            keys = open_keys(path, self._key, files)
            closed, commits = self._lock.closed, self._lock.commits
            self._database, self._repair = open_manifest(path, files, closed, commits, report, keys=keys)
            self._log_damage += self._repair is not None
            try:
                self._place = Place.of(path)
                self._files, files.guard = files, self._ensure_ours
                disk = open_disk(
                    path, Manifest(self._database), self._io, files, self.health, self._place,
                    budget_bytes=disk_bytes, bytes_per_day=bytes_per_day, compute_s=self.costs.compute_s,
                )  # fmt: skip
                self._catalog = catalog = Catalog(disk, self._pins, codec=codec)
                self._compactor = Compactor(catalog)
                disk.on_commit = self._compactor.wake
                sweep(catalog, report)
                self._pins.load(Logs(self._database), Manifest(self._database))  # before the first eviction
                keep(catalog)
            except BaseException:  # also Ctrl-C: nobody else closes it
                self._database.close()
                raise
        except BaseException as error:  # also Ctrl-C: nobody else releases the lock
            if self._lock is not None:
                self._lock.release(is_whole=False)
            if isinstance(error, sqlite3.Error | OSError) and not isinstance(error, AgentMemoryError):
                raise opening_error(path, error) from error
            raise
        log.info("store open path=%s files=%d bytes=%d", path, len(catalog.segments), folder_bytes(catalog))

    def _ensure_ours(self) -> None:
        """Called before every change of the folder. Raises GoneError if the folder is not the one that was opened."""
        if self._place is not None and self._lock is not None:
            self._place.check()
            self._lock.mark()

    @property
    def parts(self) -> Parts:
        """What the store consists of now: a reader's catalog is another one after each commit of the writer."""
        return Parts(logs=self._logs, manifest=self._manifest, catalog=self._catalog, path=self._path)

    def recorded(self, model: str) -> Mapping[str, str]:
        """Return the ``facts`` that ``attach`` recorded for a model of this name; {} for a model that is new here."""
        with store_errors("read what is known of the model", self._path):
            return self._manifest.facts(model)

    def attach(
        self, identity: str, layout: Layout, host: str, facts: Mapping[str, str], report: Progress = silent
    ) -> None:
        """Load the index of one identity and record its facts; call it again for another model. ~2 us a chunk."""
        self._io.start()  # at opening: later an exception could strike the engine while it waits for the thread's start
        with store_errors("record the model", self._path):
            self._io.drain()
            facts = self._manifest.attach(identity, layout, facts)
            if self._catalog is not None:
                self._catalog.attach(identity, layout, host, self.chunk_tokens, report)
                self._catalog.choose(facts)
            self._pins.load(self._logs, self._manifest)

    def choose_codec(self, identity: str, setting: str, codec: Codec) -> None:
        """Record which codec a setting such as "auto:0.002" means for an identity; new KV follows it at once."""
        with store_errors("record the codec", self._path):
            self._manifest.choose(identity, setting, codec)
            if self._catalog is not None and (model := self._catalog.model) is not None and model.identity == identity:
                self._catalog.choose(self._manifest.all_facts()[identity])

    @property
    def codec(self) -> Codec:
        """The codec of new KV of the attached model."""
        model = None if self._catalog is None else self._catalog.model
        return "exact" if model is None else model.codec

    def lineage_identities(self, agent_id: int) -> frozenset[str]:
        """Return the identities of the models under which an agent has stored KV."""
        with store_errors("read the agent", self._path):
            return self._manifest.lineage_identities(agent_id)

    def load_agent(self, salt: str, name: str) -> AgentRecord | None:
        """Return an agent and its log, up to the first damaged turn. Waits for queued log writes.

        Raises OutOfSpaceError or StoreError if the disk refuses turns that were appended to this log.
        """
        error = self._io.drain(logs_only=True)
        with store_errors("read the agent", self._path):
            found = self._logs.load_agent(salt, name)
        if found is None:
            return None
        record, damage = found
        if error is not None and self._io.has_log_of(record.agent_id):
            raise as_store_error("write the agent's log", self._path, error) from error
        if damage is not None:
            self._log_damage += 1
            log.warning("store: damage in an agent's log at %s; %d turns before it are used", damage, len(record.turns))
        return record

    def create_agent(
        self, salt: str, name: str, *, system: str | None, tools: str, facts: str | None = None
    ) -> AgentRecord:
        """Create an agent; committed when this returns. Raises StoreError if it exists or the disk is full."""
        if not name:
            raise StoreError("an agent's name must not be empty")
        with store_errors("create the agent", self._path):
            return self._logs.create_agent(salt, name, system=system, tools=tools, facts=facts)

    def list_agents(self, salt: str) -> list[AgentInfo]:
        """Return all agents of a salt, by name; turns that the disk refuses are not counted."""
        self._io.drain(logs_only=True)
        with store_errors("list agents", self._path):
            return self._logs.list_agents(salt)

    def pin(self, agent_id: int, is_pinned: bool) -> None:
        """Pin or unpin an agent; committed when this returns. Pinned KV leaves memory last, and stays on disk."""
        with store_errors("pin the agent", self._path):
            self._logs.pin(agent_id, is_pinned)
            self._pins.load(self._logs, self._manifest)

    @property
    def pins(self) -> Set[int]:
        """The numbers of pinned agents."""
        return self._pins.agents

    def append_turn(self, agent_id: int, number: int, turn: Turn, described: Described | None = None) -> None:
        """Queue turn ``number`` in place of any turn from there on; durable after ``flush``.

        ``described``: the agent's new first system prompt and facts, committed with the turn; None: unchanged.
        Raises UnsupportedParameterError, and queues nothing, for messages that cannot be written as JSON.
        """
        messages = to_json(turn.messages)  # now: the caller may change its messages later
        self._io.submit_log(lambda: self._logs.append_turn(agent_id, number, turn, messages, described), agent_id)

    def describe(self, agent_id: int, described: Described) -> None:
        """Queue a new first system prompt and new facts of an agent."""
        self._io.submit_log(lambda: self._logs.describe(agent_id, described), agent_id)

    def new_number(self) -> int:
        """Return a number that no agent, branch or version has."""
        return self._logs.new_number()

    def fork(self, salt: str, record: AgentRecord, n_shared: int, held: Sequence[tuple[int, Ids]] = ()) -> None:
        """Queue a new agent whose log begins with ``n_shared`` turns of others. ``held``: as for ``change``."""
        turns = [(turn, to_json(turn.messages)) for turn in record.turns[n_shared:]]
        self._io.submit_log(lambda: self._logs.fork(salt, record, turns), record.agent_id)
        self._hold(held)

    def change(self, change: Change, held: Sequence[tuple[int, Ids]] = ()) -> None:
        """Queue a change of an agent's log; the KV that only dropped versions held is deleted behind it.

        ``held``: agents and versions by number, and the ids whose KV each holds from now on.
        """
        turns = [(turn, to_json(turn.messages)) for turn in change.turns]
        self._io.submit_log(partial(self._change, change, turns), change.agent_id)
        self._hold(held)

    def _change(self, change: Change, turns: Sequence[tuple[Turn, str]]) -> None:
        if (holders := self._logs.change(change, turns)) and self._catalog is not None:
            self._io.submit(partial(delete_agents, self._catalog, holders))

    def release(self, agent_id: int, ids: Ids) -> None:
        """Queue the end of KV that an agent's log no longer leads to, but what others hold. ``ids``: of its log."""
        if self._catalog is not None:
            self._io.submit(partial(release, self._catalog, agent_id, ids))

    def _hold(self, held: Sequence[tuple[int, Ids]]) -> None:
        if self._catalog is not None and held:
            self._io.submit(partial(hold, self._catalog, held))

    def behind(self, work: Callable[[], object]) -> None:
        """Queue work of another room on the I/O thread; ``flush`` waits for it. ``work`` handles its own errors."""
        self._io.submit(work)

    def delete_agent(self, agent_id: int) -> None:
        """Delete an agent: its log, and KV that no other agent uses, are gone from disk when this returns."""
        self.at_forget()
        error = self._io.drain(logs_only=True)
        if error is not None and is_disk_error(error):
            raise as_store_error("write an agent's log", self._path, error) from error
        self._io.drop_logs(agent_id)
        with store_errors("delete the agent", self._path):
            if self._catalog is None:
                self._manifest.commit(ended_agent=agent_id)
            else:
                self._io.call(partial(delete_with_versions, self._catalog, agent_id))
            if agent_id in self.pins:
                self._pins.load(self._logs, self._manifest)

    def forget(self, logs: Rewritten, kv_of: Collection[int], replaced: Callable[[], object]) -> None:
        """Replace turns of logs, call ``replaced``, then delete the KV of agents ``kv_of`` and KV of no agent.

        All of it is gone from disk when this returns.
        """
        self.at_forget()
        self.flush()  # queued turns are written before they are replaced, not after
        with store_errors("forget", self._path):
            self._io.call(partial(self._manifest.forget, logs, kv_of))
            replaced()
            self._io.call(partial(delete_unowned, self._catalog) if self._catalog is not None else self._database.fold)

    def match(self, ids: Ids) -> Match:
        """Return the longest prefix of ``ids`` that is on disk; O(len(ids)) hashing, in memory."""
        return NOTHING if self._catalog is None else reading.find(self._catalog, ids)

    def following(self, match: Match) -> Ids | None:
        """Return ids with which a stored lineage continues otherwise than the prompt; None where none does."""
        return None if self._catalog is None else reading.following(self._catalog, match)

    def elsewhere(self, ids: Ids) -> Elsewhere | None:
        """Where a prefix of ``ids`` is stored under another identity, for who asks why it is not found here."""
        return None if self._catalog is None else reading.elsewhere(self._catalog, ids)

    def source(self, match: Match, n_tokens: int, *, start: int = 0) -> MeteredSource:
        """Open the files of tokens ``[start, n_tokens)`` of a match for reading. Damage is noted there, never raised.

        Fewer than the whole match only where every layer of the model can be truncated at any token.
        """
        assert self._catalog is not None, "a store without a folder matches nothing"
        return reading.source(self._catalog, match, n_tokens, start)

    def prefetch(self, match: Match, *, start: int = 0, done: Callable[[], object] | None = None) -> None:
        """Read and check a match's files from ``start`` on, on the I/O thread, before any write; then call ``done``."""
        if self._catalog is not None and match.n_tokens:
            self._io.submit_read(reading.reading_ahead(self._catalog, match, start, done))

    def touch(self, match: Match) -> None:
        """Note that the files of a match, and those that they depend on, were used now."""
        if self._catalog is not None:
            self._catalog.touch({piece.segment.number: piece.segment for piece, _ in match.pieces}.values())

    def is_stored(self, piece: bytes) -> bool:
        """True if a piece is on disk, or on its way there."""
        model = None if self._catalog is None else self._catalog.model
        return model is not None and piece in model.index.pieces

    def begin_save(
        self,
        ids: Ids,
        n_tokens: int,
        made: np.ndarray[Any, Any],
        exactness: Exactness,
        *,
        agent_id: int | None,
        held: Held = Held(),  # noqa: B008 - a frozen value
        is_wanted: bool = False,
        is_turn: bool = True,
    ) -> Save:
        """Plan a save of ``ids[:n_tokens]``: tokens that are neither stored nor being saved, if they are worth a write.

        - KV of an agent's turns, and of prefixes from ``Memory.prefill`` (``is_wanted``), is always worth a write.
        - ``is_turn`` False: the request ended without a reply. Its KV is written if computing it again would be dearer,
          and the heads of its agent's lineages do not move.
        - ``Save.parts``: rows of full-attention layers. ``Save.sides``: the window rows and states that ``held`` has.
        """
        if self._catalog is None or self.is_read_only:
            return Save(None)
        tokens = np.ascontiguousarray(ids[:n_tokens], dtype=np.uint32)
        lineage = Provenance(np.asarray(made[:n_tokens], np.uint32), exactness)
        is_promised = is_wanted or (agent_id is not None and is_turn)
        return begin_save(self._catalog, tokens, lineage, agent_id, held, is_promised=is_promised, is_turn=is_turn)

    @property
    def has_disk(self) -> bool:
        """True if KV outlives the process."""
        return self._catalog is not None

    @property
    def is_ready(self) -> bool:
        """False while the write queue is above its high-water mark: queueing more would only use memory."""
        return self._io.is_ready

    def wait_ready(self) -> None:
        """Return when the disk has caught up. Any thread but the I/O thread's own."""
        self._io.wait_ready()

    def flush(self) -> None:
        """Return when everything queued before is durable and the folder is within its budget.

        - Raises OutOfSpaceError or StoreError if a log could not be written. It stays queued until the disk takes it.
        - Raises StoreError if the folder was deleted, moved or replaced.
        - KV that could not be written is no error: ``stats`` counts it, and one warning says so.
        """
        error = self._io.drain() or (None if self._place is None else self._place.lost)
        if self._catalog is not None and not isinstance(error, GoneError):
            self._io.call(partial(keep, self._catalog))
            if self.health.state == "ok":  # else a warning about the disk was logged
                self._catalog.disk.counts.unwritten.tell()
        if self._lock is not None:
            self._lock.acknowledge(self._database.commits)
        if error is not None:
            doing = "write to the folder" if isinstance(error, GoneError) else "write an agent's log"
            raise as_store_error(doing, self._path, error) from error

    def rewrap(self, host: Keys) -> None:
        """Put the open store under another host's key: its own key, wrapped anew, in one small file. Durable.

        Killed meanwhile, the former key opens the store, or this one. Raises WrongKeyError for a store that is not
        encrypted, ConfigError for one in memory, StoreError where its key file is gone, OutOfSpaceError.
        """
        with self._closing:
            keys = self._database.keys
            if self._is_closed:
                raise ClosedError("the store is closed")
            if self._path is None:
                raise ConfigError("':memory:' is no folder: there is nothing on disk to encrypt")
            if keys is None:
                raise WrongKeyError(
                    f"{self._path} is not encrypted, and its key cannot be changed while it is "
                    "open; nothing was changed. Close it, and encrypt it: agent_memory.rekey(path, None, key)"
                )
            with store_errors("change the key", self._path):
                if not (self._path / KEY_FILE).exists():
                    raise StoreError(
                        f"{self._path / KEY_FILE} is gone, and so is the store once it is closed; nothing was changed. "
                        "Put the file back from a copy, or save the agents: agent.export(file)"
                    )
                self._ensure_ours()
                write_keys(self._path, keys, host, self._files)

    def compact(self, rest_s: float = 0.0) -> None:
        """Join the small segments of lineages unused for ``rest_s``, now instead of in idle time."""
        if self._catalog is not None:
            self._io.call(lambda: [None for _ in self._compactor.steps(rest_s)])

    def verify(self, report: Progress = silent) -> VerifyReport:
        """Read and check every stored byte, at the disk's speed. Raises as ``flush`` does."""
        self.flush()
        catalog = self._catalog
        with store_errors("read it", self._path):
            out_of_step = [] if catalog is None else self._io.call(lambda: check(catalog))
            folder = None if catalog is None else catalog.disk.folder
            found = verify_store(self._manifest, self._logs, folder, report)
        repaired = () if self._repair is None else (str(self._repair),)
        others = () if catalog is None else catalog.disk.quota.strangers
        return attrs.evolve(found, damaged=(*repaired, *out_of_step, *found.damaged), strangers=others)

    def stats(self) -> dict[str, Any]:
        """Return counters since the store was opened, its size and the disk's state."""
        return figures(self._catalog, self.health, agents=self._logs.n_agents(), log_damage=self._log_damage)

    def close(self) -> None:
        """Flush, end the I/O thread, release the lock; later calls wait for it. Raises as ``flush``, once closed."""
        with self._closing:  # reentrant: a finalizer that runs meanwhile may close the store too
            if not self._is_closed:
                self._is_closed = True
                self._close()

    def _close(self) -> None:
        with contextlib.ExitStack() as last:
            last.callback(self._release)
            last.callback(self.at_close)
            if (catalog := self._catalog) is not None and (uses := catalog.take_uses()):
                with contextlib.suppress(AgentMemoryError):
                    self._io.submit(lambda: self._manifest.commit(used=uses))
            if self._io.is_started:
                self.flush()
        log.info("store closed path=%s", self._path)

    def _release(self) -> None:
        self._io.close()
        self._database.close()
        if self._lock is not None:
            is_here = self._place is not None and self._place.lost is None
            self._lock.release(is_whole=is_here and self._database.is_whole)
        if self._place is not None:
            self._files.guard = Files.guard  # other processes may change the folder again


def _nothing() -> None:
    """Do nothing."""
