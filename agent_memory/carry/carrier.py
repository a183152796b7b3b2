"""Carry an agent out of an open store, and into one: the store's side of ``exporting`` and ``importing``."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from agent_memory.carry.agent_file import AgentFileReader
from agent_memory.carry.exporting import Recoding, export_agent
from agent_memory.carry.importing import Importing
from agent_memory.carry.incoming import Found, Model, read_file, turns_of
from agent_memory.errors import ConfigError, StoreError, UnknownAgentError, repr_of
from agent_memory.log.carried import Arrival, Terms, carried
from agent_memory.log.refusals import store_errors
from agent_memory.log.turns import Turn
from agent_memory.log.versions import AgentRecord, Kept, Span, State
from agent_memory.prefix.pieces import Segment
from agent_memory.progress import Progress, silent
from agent_memory.sealing.keys import Keys
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, apply, void
from agent_memory.store.store import Store

log = logging.getLogger("agent_memory.store")


class Carrier:
    """Takes agents out of one store, and in. Any thread: what the I/O thread must do is given to it.

    A store in memory has no catalog, and no KV to carry.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()  # one import at a time: a second one may follow pieces of the first

    def export(
        self,
        salt: str,
        name: str,
        path: Path,
        *,
        recoding: Recoding | None,
        is_log_only: bool,
        report: Progress = silent,
        seal: Keys | None = None,
    ) -> int:
        """Write a flushed agent to a file; return how many files of KV were left out: damaged, or behind damaged ones.

        ``seal``: what the file is sealed under; None: it is plain.

        Raises UnknownAgentError, AgentFileError, StoreError, OutOfSpaceError.
        """
        parts = self._store.parts
        catalog = parts.catalog
        with store_errors("read the agent", parts.path):
            found = parts.logs.load_agent(salt, name)
            if found is None:
                raise UnknownAgentError(name)
            record, damage = found
            if damage is not None:
                log.warning("store: agent %r is exported without what follows %s, which is damaged", name, damage)
            folder = None if catalog is None or is_log_only else catalog.disk.folder
            on_damage = None if catalog is None or catalog.disk.is_read_only else partial(_void, catalog)
            out = carried(record, is_damaged=damage is not None)
            return export_agent(path, out, parts.manifest, folder, on_damage, recoding, report, seal=seal)

    def read(self, reader: AgentFileReader, terms: Terms, model: Model, report: Progress = silent) -> Found:
        """Read and check a whole file; changes nothing. Raises AgentFileError."""
        is_kept = self._store.parts.catalog is not None and model.layout.is_storable
        return read_file(reader, terms, model if is_kept else None, report)

    def take_log(self, told: Mapping[str, Any], turns: Sequence[Turn], salt: str) -> None:
        """Store an agent without KV, in one commit. ``told``: as `Intake.agent` returns it.

        Raises ConfigError if an agent of that name was created meanwhile, StoreError, OutOfSpaceError.
        """
        parts = self._store.parts
        number = parts.logs.new_number()
        record = AgentRecord(
            number,
            told["name"],
            told["system"],
            told["tools"],
            (),
            told["created_s"],
            told["used_s"],
            facts=told["facts"],
        )
        numbered = [(number, place, turn) for place, turn in enumerate(turns)]
        arrival = Arrival(salt=salt, record=record, branches=((number, None),), turns=lambda: numbered)
        catalog = parts.catalog
        try:
            with self._lock, store_errors("store the agent", parts.path):
                if catalog is None:
                    parts.manifest.commit(arrival=arrival)
                else:
                    catalog.disk.io.call(partial(apply, catalog, Edit(arrival=arrival)))
        except StoreError as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                raise ConfigError(f"agent {repr_of(told['name'])} was created meanwhile") from error
            raise

    def take_in(
        self, reader: AgentFileReader, found: Found, terms: Terms, salt: str, name: str, report: Progress = silent
    ) -> bool:
        """Store the agent of a file that was read, in one commit; True if it has its KV.

        Raises ConfigError if an agent of that name was created meanwhile, AgentFileError if the file has changed,
        StoreError, OutOfSpaceError; then nothing is stored.
        """
        parts = self._store.parts
        new = parts.logs.new_number
        agent_id = new()
        numbers = [agent_id if place == found.live else new() for place in range(len(found.branches))]
        holders = {0: agent_id} | {version: new() for version in sorted({v for v, _ in found.heads} - {0})}
        arrival = _arrival(reader, found, terms, salt, name, numbers, holders)
        catalog = parts.catalog
        try:
            with self._lock, store_errors("store the agent", parts.path):
                if catalog is None:
                    parts.manifest.commit(arrival=arrival)
                    return False
                if not found.n_tokens or found.has_secrets:
                    catalog.disk.io.call(partial(apply, catalog, Edit(arrival=arrival)))
                    return False
                return Importing(
                    catalog=catalog, reader=reader, found=found, arrival=arrival, holders=holders, report=report
                ).run()
        except StoreError as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                raise ConfigError(f"agent {repr_of(name)} was created meanwhile: give another name=") from error
            raise


def _arrival(
    reader: AgentFileReader,
    found: Found,
    terms: Terms,
    salt: str,
    name: str,
    numbers: Sequence[int],
    holders: Mapping[int, int],
) -> Arrival:
    """Return the agent as it is stored. ``numbers``: of its branches; ``holders``: of its versions, 0 is the agent."""

    def turns() -> Iterator[tuple[int, int, Turn]]:
        for place, number, turn in turns_of(reader, found, terms):
            yield numbers[place], number, turn

    kept = tuple(
        Kept(
            version,
            State(turns=(), spans=(Span(numbers[place], 0),), system=system, facts=facts),
            holders.get(version.number, 0),
        )
        for version, place, system, facts in found.versions
    )
    told = found.agent
    record = AgentRecord(
        holders[0],
        name,
        told["system"],
        told["tools"],
        (),
        told["created_s"],
        told["used_s"],
        facts=told["facts"],
        kept=kept,
    )
    bases = [None if base is None else Span(numbers[base], start) for base, start in found.branches]
    return Arrival(salt=salt, record=record, branches=tuple(zip(numbers, bases, strict=True)), turns=turns)


def _void(catalog: Catalog, segment: Segment, reason: str, text: str) -> None:
    """Hide a damaged segment, as a reader that restores does."""
    with catalog.lock:
        is_rows = segment.kind == "rows"
        known = catalog.segments.get(segment.number) if is_rows else catalog.resume.get(segment.parent)
    if known is not None and known.file == segment.file:
        void(catalog, known, reason, text)
