"""Free disk of a store that nobody has open: files that nothing names, then the KV of lowest worth down to a size."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from agent_memory.config import Config
from agent_memory.errors import StoreError
from agent_memory.log.database import view_database
from agent_memory.log.files import KV_FOLDER, MANIFEST, Size, holds_store, manifest_path
from agent_memory.log.keyfile import read_keys
from agent_memory.log.logs import Logs
from agent_memory.prefix.names import is_kv_name
from agent_memory.prefix.pieces import Segment
from agent_memory.prefix.worth import victims
from agent_memory.sealing.keys import Keys
from agent_memory.store.catalog import Pins
from agent_memory.store.folder import list_files, strangers
from agent_memory.store.manifest import Manifest
from agent_memory.store.room import SLACK
from agent_memory.store.store import Store
from agent_memory.store.uses import Lines


@frozen(kw_only=True)
class Collected:
    """What a collection freed, or would free."""

    before_bytes: int  #: allocated bytes of the folder
    after_bytes: int
    n_segments: int  #: segments that went
    agents: Mapping[str, int] = field(factory=dict)  #: bytes of KV that each agent loses


@frozen
class _Stored:
    """A store's segments of rows, who uses them, and what they take."""

    rows: tuple[Segment, ...]
    sizes: Mapping[int, int]  #: allocated bytes, resume segments included, by number
    users: Mapping[str, frozenset[int]]  #: numbers of an agent's segments, by its name
    pinned: frozenset[int]
    unnamed_bytes: int  #: allocated bytes of KV files that the manifest does not name


def collect(
    path: Path | None,
    *,
    salt: str = "",
    to_bytes: int | None = None,
    free_bytes: int | None = None,
    is_dry_run: bool = False,
    key: Keys | None = None,
) -> Collected:
    """Remove files that nothing names; evict KV until the folder takes ``to_bytes``, or ``free_bytes`` less than now.

    Logs stay, and the KV of pinned agents. ``salt``: whose agents are named; KV of all goes. ``key``: of an encrypted
    store. A dry run takes no lock and changes nothing. Raises StoreLockedError while a process has the store open,
    StoreError where there is none, WrongKeyError.
    """
    if path is None or not holds_store(path):
        raise StoreError(f"{path or ':memory:'} holds no store: no file {MANIFEST} is in it")
    stored, before = _read(path, salt, key), _folder_bytes(path)
    budget = before if to_bytes is None else to_bytes
    if free_bytes is not None:
        budget = max(0, before - free_bytes)
    if is_dry_run:
        excess = before - stored.unnamed_bytes - budget
        excess += budget // SLACK if excess > 0 else 0
        gone = {s.number for s in victims(stored.rows, stored.sizes, stored.pinned, excess, time.time())}
        after = before - stored.unnamed_bytes - sum(stored.sizes[number] for number in gone)
    else:
        Store(path, disk_bytes=budget, chunk_tokens=Config().chunk_tokens, key=key).close()
        held = (s for s in stored.rows if stored.sizes[s.number])  # what was missing before frees nothing
        gone = {s.number for s in held if not (path / KV_FOLDER / s.file).exists()}
        after = _folder_bytes(path)
    lost = {name: sum(stored.sizes[number] for number in used & gone) for name, used in stored.users.items()}
    agents = dict(sorted(((name, n) for name, n in lost.items() if n), key=lambda one: -one[1]))
    return Collected(before_bytes=before, after_bytes=after, n_segments=len(gone), agents=agents)


def _folder_bytes(path: Path) -> int:
    return sum(strangers(path, ()).values())


def _read(path: Path, salt: str, key: Keys | None) -> _Stored:
    database, found = view_database(manifest_path(path), read_keys(path, key)), list_files(path / KV_FOLDER)
    try:
        logs, manifest = Logs(database), Manifest(database)
        segments, heads = manifest.segments(), manifest.heads()
        names, holders, pins = logs.names(salt), logs.holders(), Pins()
        pins.load(logs, manifest)
    finally:
        database.close()
    rows = tuple(segment for segment in segments if segment.kind == "rows")
    sizes: dict[int, int] = dict.fromkeys((row.number for row in rows), 0)
    for segment in segments:
        number = segment.number if segment.kind == "rows" else segment.parent_number
        if number in sizes:
            sizes[number] += found.get(segment.file, Size(0, 0)).held_bytes
    lines, users = Lines(rows), defaultdict[str, set[int]](set)
    for holder, identity, head in heads:
        if (name := names.get(holders.get(holder, holder))) is not None:
            users[name] |= lines.ancestry(identity, head)
    named = {segment.file for segment in segments}
    return _Stored(
        rows,
        sizes,
        {name: frozenset(numbers) for name, numbers in users.items()},
        frozenset(row.number for row in rows if pins.covers(row)),
        sum(size.held_bytes for name, size in found.items() if is_kv_name(name) and name not in named),
    )
