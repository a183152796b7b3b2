"""A read-only view of a store: no model, no lock, no write; another process may write meanwhile."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType

from attrs import field, frozen

from agent_memory.config import as_path
from agent_memory.errors import StoreError, UnknownAgentError
from agent_memory.log.carried import carried
from agent_memory.log.damage import READ_ERRORS, reason_of
from agent_memory.log.database import view_database
from agent_memory.log.files import KV_FOLDER, MANIFEST
from agent_memory.log.logs import Logs
from agent_memory.log.versions import AgentRecord
from agent_memory.prefix.pieces import Segment
from agent_memory.progress import Progress, bar, silent
from agent_memory.store.exporting import export_agent
from agent_memory.store.manifest import Manifest
from agent_memory.store.sources import checking
from agent_memory.types import AgentInfo, Message, VerifyReport

log = logging.getLogger("agent_memory.store")


@frozen(kw_only=True)
class DiskUse:
    """Bytes of the KV files of one agent."""

    name: str
    own_bytes: int  #: bytes of files that no other agent's KV depends on
    shared_bytes: int  #: bytes of files that other agents' KV depends on too
    n_files: int


@frozen(kw_only=True)
class DiskUses:
    """Bytes of a store on disk."""

    agents: tuple[DiskUse, ...]  #: largest first
    kv_bytes: int  #: bytes of all KV files that the manifest names
    anonymous_bytes: int  #: bytes of KV files that no agent's KV depends on: prompts without an agent
    log_bytes: int  #: bytes of the manifest and its write-ahead log


@frozen(kw_only=True)
class AgentLog:
    """An agent's log as it is stored."""

    info: AgentInfo
    messages: tuple[Message, ...] = field(repr=False)
    damage: str | None = None  #: the first damaged turn; turns before it are shown


class StoreView:
    """Agents, logs and sizes of a store, as the last commit left them.

    Opens in milliseconds, writes nothing, and holds no transaction between two calls. Any thread. A context manager.
    Raises StoreError where there is no store, IncompatibleStoreError for one that a newer release wrote.
    """

    def __init__(self, path: Path, salt: str) -> None:
        self.path, self._salt = as_path(path, "path"), salt
        self._database = view_database(self.path / MANIFEST)
        self._logs, self._manifest = Logs(self._database), Manifest(self._database)

    def __repr__(self) -> str:
        return f"StoreView({str(self.path)!r})"

    def agents(self) -> list[AgentInfo]:
        """Return every agent, newest use first."""
        with self._reading():
            found = self._logs.list_agents(self._salt)
        return sorted(found, key=lambda info: -info.used_s)

    def show(self, name: str) -> AgentLog:
        """Return an agent's messages. Raises UnknownAgentError."""
        record, damage = self._record(name)
        infos = {info.name: info for info in self.agents()}
        told = record.messages
        if record.system is not None and not (told and told[0].role == "system"):
            told = (Message("system", record.system), *told)
        return AgentLog(info=infos[name], messages=told, damage=damage)

    def du(self) -> DiskUses:
        """Return the bytes of each agent's KV files; files that agents share count as shared for each of them."""
        with self._reading():
            segments = self._manifest.segments()
            heads = self._manifest.heads()
            names, holders = self._logs.names(self._salt), self._logs.holders()
        rows = [segment for segment in segments if segment.kind == "rows"]
        sizes: dict[int, int] = {row.number: row.n_bytes for row in rows}
        files: dict[int, int] = {row.number: 1 for row in rows}
        for segment in segments:
            if segment.kind == "resume" and segment.parent_number in sizes:
                sizes[segment.parent_number] += segment.n_bytes
                files[segment.parent_number] += 1
        lines = Lines(rows)
        used: dict[int, set[int]] = defaultdict(set)
        for holder, identity, head in heads:
            used[holders.get(holder, holder)] |= lines.ancestry(identity, head)
        users: dict[int, int] = defaultdict(int)
        for number in (number for numbers in used.values() for number in numbers):
            users[number] += 1
        uses = [_use(name, used.get(agent, set()), users, sizes, files) for agent, name in names.items()]
        return DiskUses(
            agents=tuple(sorted(uses, key=lambda use: (-use.own_bytes - use.shared_bytes, use.name))),
            kv_bytes=sum(sizes.values()),
            anonymous_bytes=sum(n for segment, n in sizes.items() if segment not in users),
            log_bytes=sum(file.stat().st_size for file in self.path.glob(f"{MANIFEST}*") if file.is_file()),
        )

    def export(self, name: str, file: str | PathLike[str], *, log_only: bool = False) -> None:
        """Write an agent, as of the last commit, to a file that ``memory.import_agent`` reads; see ``Agent.export``.

        Raises UnknownAgentError, StoreError, OutOfSpaceError.
        """
        path, folder = as_path(file, "file"), self.path / KV_FOLDER
        record, damage = self._record(name)
        if damage is not None:
            log.warning("store: agent %r is exported without what follows %s, which is damaged", name, damage)
        with self._reading():
            found = carried(record, is_damaged=damage is not None)
            export_agent(path, found, self._manifest, None if log_only else folder)

    def verify(self, *, progress: bool | None = None) -> VerifyReport:
        """Read and check every stored byte, logs included. Reads the disk at its speed; ``progress`` as in Config."""
        with self._reading(), bar(progress, "verify", "files") as report:
            folder = self.path / KV_FOLDER
            return verify_store(self._manifest, self._logs, folder if folder.is_dir() else None, report)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._database.close()

    def __enter__(self) -> StoreView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _record(self, name: str) -> tuple[AgentRecord, str | None]:
        with self._reading():
            found = self._logs.load_agent(self._salt, name)
            if found is None:
                raise UnknownAgentError(name)
        return found

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the store {self.path}: {error}") from error


class Lines:
    """The segments of a lineage, by its last piece."""

    def __init__(self, rows: Sequence[Segment]) -> None:
        self._needs = {row.number: row.needs for row in rows}
        self._homes = {(row.identity, piece): row.number for row in rows for piece in row.piece_ids()}

    def ancestry(self, identity: str, head: bytes) -> set[int]:
        """Return the segment of piece ``head`` and all that it depends on; empty if the piece is gone."""
        found: set[int] = set()
        home = self._homes.get((identity, head))
        queue = [] if home is None else [home]
        while queue:
            segment = queue.pop()
            if segment not in found:
                found.add(segment)
                queue += self._needs.get(segment, ())
        return found


def _use(
    name: str, segments: set[int], users: Mapping[int, int], sizes: Mapping[int, int], files: Mapping[int, int]
) -> DiskUse:
    own = sum(sizes[segment] for segment in segments if users[segment] == 1)
    return DiskUse(
        name=name,
        own_bytes=own,
        shared_bytes=sum(sizes[segment] for segment in segments) - own,
        n_files=sum(files[segment] for segment in segments),
    )


def verify_store(manifest: Manifest, logs: Logs, folder: Path | None, report: Progress = silent) -> VerifyReport:
    """Check every file that the manifest names, every turn, and the manifest itself; ``folder`` None: no KV."""
    damaged: list[str] = []
    unread: list[str] = []
    n_bytes = 0
    segments = manifest.segments() if folder is not None else []
    for number, segment in enumerate(segments if folder is not None else ()):
        report(number, len(segments), "")
        assert folder is not None
        try:
            for _ in checking(folder / segment.file, segment):
                pass
            n_bytes += segment.n_bytes
        except READ_ERRORS as error:
            if any(one.file == segment.file for one in manifest.segments()):  # else the file was removed meanwhile
                found = unread if reason_of(error) == "unreadable" else damaged
                found.append(f"{'segment' if segment.kind == 'rows' else 'resume file'} {segment.file}: {error}")
    turns, bad_logs = logs.damaged_turns()
    rows = [segment for segment in segments if segment.kind == "rows"]
    return VerifyReport(
        segments=len(rows),
        chunks=sum(segment.n_chunks for segment in rows),
        bytes_read=n_bytes,
        turns=turns,
        damaged=(*damaged, *bad_logs),
        unread=tuple(unread),
    )
