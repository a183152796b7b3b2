"""A read-only view of a store: no model, no lock, no write; another process may write meanwhile."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from attrs import field, frozen

from agent_memory.config import as_path, is_text
from agent_memory.errors import ConfigError, StoreError, UnknownAgentError, UnsupportedParameterError, repr_of
from agent_memory.log.database import view_database
from agent_memory.log.files import KV_FOLDER, manifest_path
from agent_memory.log.keyfile import read_keys
from agent_memory.log.listing import AgentRows
from agent_memory.progress import bar
from agent_memory.sealing.keys import Secret, keys_of
from agent_memory.store.uses import Lines, TierUse, Use, with_uses
from agent_memory.types import AgentInfo, Message, VerifyReport

if TYPE_CHECKING:  # what reads logs and KV is imported where it is first needed: a list of agents waits for none
    from agent_memory.log.logs import Logs
    from agent_memory.log.versions import AgentRecord
    from agent_memory.sealing.keys import Keys
    from agent_memory.store.manifest import Manifest

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
    Raises StoreError where there is no store, IncompatibleStoreError for one that a newer release wrote, WrongKeyError.
    """

    def __init__(self, path: Path, salt: str, key: Keys | None = None) -> None:
        self.path, self._salt = as_path(path, "path"), salt
        self._database = view_database(manifest_path(self.path), read_keys(self.path, key))
        self._agents = AgentRows(self._database)

    def __repr__(self) -> str:
        return f"StoreView({str(self.path)!r})"

    def agents(self) -> list[AgentInfo]:
        """Return every agent, newest use first. Figures by tier are those of ``cold``; reading one reads all."""
        with self._reading():
            found = self._agents.infos(self._salt)
        sizes = {info.name: info.n_tokens for info in found}
        return with_uses(
            sorted(found, key=lambda info: -info.used_s),
            lambda: {name: TierUse.of({"cold": use}) for name, use in self.uses(sizes).items()},
        )

    def uses(self, n_tokens: Mapping[str, int]) -> dict[str, Use]:
        """Return the tokens and bytes on disk of each agent's log. ``n_tokens``: name -> tokens of the log."""
        if not isinstance(n_tokens, Mapping) or not all(isinstance(n, int) for n in n_tokens.values()):
            raise UnsupportedParameterError(f"n_tokens must be a mapping of names to ints, got {repr_of(n_tokens)}")
        with self._reading():
            lines, heads, names = Lines(self._manifest.segments()), self._manifest.heads(), self._logs.names(self._salt)
        uses = lines.uses(head for head in heads if head[0] in names)
        return {names[agent]: (min(n, n_tokens.get(names[agent], n)), size) for agent, (n, size) in uses.items()}

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
        lines, logs = Lines(segments), manifest_path(self.path)
        used: dict[int, set[int]] = defaultdict(set)
        for holder, identity, head in heads:
            used[holders.get(holder, holder)] |= lines.ancestry(identity, head)
        users: dict[int, int] = defaultdict(int)
        for number in (number for numbers in used.values() for number in numbers):
            users[number] += 1
        uses = [_use(name, used.get(agent, set()), users, lines) for agent, name in names.items()]
        return DiskUses(
            agents=tuple(sorted(uses, key=lambda use: (-use.own_bytes - use.shared_bytes, use.name))),
            kv_bytes=sum(lines.sizes.values()),
            anonymous_bytes=sum(n for segment, n in lines.sizes.items() if segment not in users),
            log_bytes=sum(file.stat().st_size for file in self.path.glob(f"{logs.name}*") if file.is_file()),
        )

    def export(
        self,
        name: str,
        file: str | PathLike[str],
        *,
        log_only: bool = False,
        key: Secret | None = None,
        progress: bool | None = None,
    ) -> None:
        """Write an agent, as of the last commit, to a file that ``memory.import_agent`` reads; see ``Agent.export``.

        ``key``: seal the file; None: it is not encrypted, though the store may be. ``progress`` as in Config. Raises
        UnknownAgentError, StoreError, OutOfSpaceError, ConfigError.
        """
        from agent_memory.carry.exporting import export_agent
        from agent_memory.log.carried import carried

        path, folder = as_path(file, "file"), self.path / KV_FOLDER
        seal = None if key is None else keys_of(key, "key")
        record, damage = self._record(name)
        if damage is not None:
            log.warning("store: agent %r is exported without what follows %s, which is damaged", name, damage)
        with self._reading(), bar(progress, "export", "MiB") as report:
            found = carried(record, is_damaged=damage is not None)
            export_agent(path, found, self._manifest, None if log_only else folder, report=report, seal=seal)

    def verify(self, *, progress: bool | None = None) -> VerifyReport:
        """Read and check every stored byte, logs included. Reads the disk at its speed; ``progress`` as in Config."""
        from agent_memory.store.verify import verify_store

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

    @cached_property
    def _logs(self) -> Logs:
        from agent_memory.log.logs import Logs

        return Logs(self._database)

    @cached_property
    def _manifest(self) -> Manifest:
        from agent_memory.store.manifest import Manifest

        return Manifest(self._database)

    def _record(self, name: str) -> tuple[AgentRecord, str | None]:
        if not is_text(name):
            raise ConfigError(f"an agent's name must be a str of valid Unicode, got {repr_of(name)}")
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


def _use(name: str, segments: set[int], users: Mapping[int, int], lines: Lines) -> DiskUse:
    own = sum(lines.sizes[segment] for segment in segments if users[segment] == 1)
    return DiskUse(
        name=name,
        own_bytes=own,
        shared_bytes=sum(lines.sizes[segment] for segment in segments) - own,
        n_files=sum(lines.files[segment] for segment in segments),
    )
