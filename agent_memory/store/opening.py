"""Opening a manifest that may be damaged or lost; if it is, a new one is made from everything that can be verified.

- A closed manifest has its checksum in the lock file. One that was not closed is examined by SQLite, and row by row.
- A damaged manifest is set aside, never changed. A repair that was cut short is undone, and begins anew.
- The new one gets the logs whose checksums hold, and the list of segments from their files' verified headers and ids.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from attrs import evolve, frozen

from agent_memory.kvcache.coding import named
from agent_memory.kvfile.format import FORMAT, RESUME_FORMAT, SHARED_FORMAT
from agent_memory.kvfile.segments import body_of
from agent_memory.log.damage import READ_ERRORS, is_damage
from agent_memory.log.database import Database, manifest_key, open_database
from agent_memory.log.files import KV_FOLDER, MANIFEST, REPAIRING, Files, manifest_path, refuse_dangling
from agent_memory.log.lock import manifest_sum
from agent_memory.log.logs import Logs
from agent_memory.log.place import is_passing
from agent_memory.log.salvage import Salvaged, readable_rows, salvage
from agent_memory.log.schema import check_versions
from agent_memory.log.soundness import BAD_JSON
from agent_memory.prefix.index import Index, n_tokens
from agent_memory.prefix.names import is_kv_name
from agent_memory.prefix.pieces import Ids, Piece, Segment
from agent_memory.prefix.provenance import MADE, Made
from agent_memory.prefix.sharing import stretches
from agent_memory.progress import Progress, silent
from agent_memory.sealing.keys import Keys
from agent_memory.store.folder import list_files, refuse_linked
from agent_memory.store.manifest import SALVAGED, Manifest
from agent_memory.types import EXACTNESS, weakest

log = logging.getLogger("agent_memory.store")

_MADE: Mapping[str, Made] = {name: number for number in get_args(Made) for name in [MADE[number]]}


@frozen
class Repair:
    """What was wrong with a manifest, and what the new one has."""

    what: str  #: "is missing", "is damaged (...)"
    aside: str | None  #: name under which the damaged manifest is kept
    logs: Salvaged
    n_segments: int  #: segments that their headers prove
    n_files: int  #: number of KV files

    def __str__(self) -> str:
        kept = f"; it is kept as {self.aside}" if self.aside else ""
        return (
            f"the manifest {self.what}{kept}. Found again: {self.logs}, {self.n_segments} of {self.n_files} KV files; "
            "what is missing of the logs is lost, KV is computed again"
        )


def open_manifest(
    root: Path,
    files: Files,
    closed: str | None,
    commits: int = 0,
    report: Progress = silent,
    *,
    keys: Keys | None = None,
) -> tuple[Database, Repair | None]:
    """Return the manifest of a store, repaired if necessary.

    ``closed``: its checksum when the store was closed; ``commits``: its acknowledged transactions; ``keys``: what it is
    encrypted under, known to be right.

    Raises IncompatibleStoreError; OSError and sqlite3.Error where the disk refuses.
    """
    path = manifest_path(root)
    refuse_dangling(root / KV_FOLDER)
    refuse_linked(root / KV_FOLDER)
    _put_back(root, files)
    if not path.exists() or not path.stat().st_size:
        if not list_files(root / KV_FOLDER) and not closed:
            return open_database(path, files, keys), None
        return _repair(root, files, keys, commits, "is missing", report)
    if path.with_name(f"{path.name}-wal").exists():
        closed = None  # another program wrote to it since
    try:
        check_versions(path, manifest_key(keys))
        if closed is not None and manifest_sum(path) != closed:
            return _repair(root, files, keys, commits, "is damaged (its checksum is wrong)", report)
        database = open_database(path, files, keys)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return _repair(root, files, keys, commits, f"is damaged ({error})", report)
    if closed is None and (found := _examine(database, commits, report)) is not None:
        database.close()
        return _repair(root, files, keys, commits, f"is damaged ({found})", report)
    return database, None


def _examine(database: Database, commits: int, report: Progress) -> str | None:
    tick = None if report is silent else partial(report, 0, 0, "checking the manifest, which was not closed")
    try:
        if lost := max(0, commits - database.commits):
            return f"{lost} of {commits} acknowledged changes are lost"
        return database.examine(tick) or Logs(database).examine() or Manifest(database).examine()
    except (*BAD_JSON, sqlite3.DatabaseError) as error:
        if isinstance(error, sqlite3.Error) and not is_damage(error):
            database.close()
            raise
        return str(error)


def _repair(
    root: Path, files: Files, keys: Keys | None, commits: int, what: str, report: Progress
) -> tuple[Database, Repair]:
    # first: if the disk cannot be read now, or has no room for the copy that is read, nothing is changed
    found, n_files = read_files(root / KV_FOLDER, keys, report)
    path = manifest_path(root)
    rows = readable_rows(path, keys, SALVAGED) if path.exists() else None
    try:
        _set_aside(root, files)
        database = open_database(path, files, keys)
        try:
            database.count_from(commits)
            logs = salvage(rows, database, SALVAGED) if rows is not None else Salvaged()
            Manifest(database).commit(add=found)
            aside = _keep(root, files)
        except BaseException:  # also Ctrl-C: nobody else closes it
            database.close()
            raise
    except BaseException:  # the next opening is to find the damaged one, not one without logs
        _put_back(root, files)
        raise
    repair = Repair(what, aside, logs, len(found), n_files)
    log.warning("store: %s", repair)
    return database, repair


# A process may die between any two calls below. What is there then, and what ``_put_back`` does:
#
#   manifest  its WAL   .repairing  its WAL
#   damaged   damaged   no          no        nothing
#   no        damaged   damaged     no        puts the manifest back: its WAL has not been moved
#   new, no   new, no   damaged     damaged   removes the new one, and puts both back, the WAL first
#   new       new, no   damaged     no        the same: it had no WAL
#   new       new       no          damaged   the repair is complete: gives the WAL its name


def _set_aside(root: Path, files: Files) -> None:
    """Move the manifest and its WAL out of the way; an empty file stands for one that is missing."""
    path = manifest_path(root)
    wal = _wal(path)
    files.unlink(path.with_name(f"{path.name}-shm"))
    if wal.exists() and not wal.stat().st_size:  # made by whoever read the manifest last
        files.unlink(wal)
    if path.exists():
        files.rename(path, root / REPAIRING)
    else:
        os.close(files.create(root / REPAIRING))
    if wal.exists():
        files.rename(wal, _wal(root / REPAIRING))
    files.sync_folder(root)


def _put_back(root: Path, files: Files) -> None:
    """Undo a repair that did not end, as far as it came. Raises OSError."""
    path, kept = manifest_path(root), root / REPAIRING
    if kept.exists():
        if path.exists() or _wal(kept).exists():
            for end in ("-wal", "-shm", ""):
                files.remove(path.with_name(f"{path.name}{end}"))
        if _wal(kept).exists():
            files.rename(_wal(kept), _wal(path))
        files.rename(kept, path)
        files.sync_folder(root)
    elif _wal(kept).exists():
        files.rename(_wal(kept), _wal(root / f"{MANIFEST}.damaged-{_free_number(root) - 1}"))


def _keep(root: Path, files: Files) -> str | None:
    """Give what was set aside its name; None if it is empty, and removed. With that the repair is complete."""
    kept = root / REPAIRING
    if not kept.stat().st_size and not _wal(kept).exists():
        files.remove(kept)
        return None
    name = f"{MANIFEST}.damaged-{_free_number(root)}"
    files.rename(kept, root / name)
    if _wal(kept).exists():
        files.rename(_wal(kept), _wal(root / name))
    files.sync_folder(root)
    return name


def _free_number(root: Path) -> int:
    """Return the number under which the next damaged manifest is kept."""
    number = 1
    while (root / f"{MANIFEST}.damaged-{number}").exists():
        number += 1
    return number


def _wal(database: Path) -> Path:
    return database.with_name(f"{database.name}-wal")


def read_files(folder: Path, keys: Keys | None, report: Progress = silent) -> tuple[list[Segment], int]:
    """Return every segment that its own file proves and that a root reaches, and the number of files.

    Times of use are those of the files. A segment and one that superseded it may both be entered, which costs space
    until an eviction. Raises OSError if a file cannot be read now: then its contents are unknown.
    """
    found: list[Segment] = []
    names = sorted(filter(is_kv_name, list_files(folder)))
    for number, name in enumerate(names):
        report(number, len(names), "repairing the manifest")
        if is_kv_name(name, finished=True):
            try:
                found.append(_read(folder, name, keys))
            except READ_ERRORS as error:
                if is_passing(error):
                    raise
    rows = _in_order([segment for segment in found if segment.kind == "rows"])
    holders = {piece.id: segment.number for segment in rows for piece in segment.pieces}
    resume = {s.parent: evolve(s, parent_number=holders.get(s.parent)) for s in found if s.kind == "resume"}
    return [*rows, *(segment for segment in resume.values() if segment.parent_number is not None)], len(names)


def _read(folder: Path, name: str, keys: Keys | None) -> Segment:
    fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        body = body_of(fd, status.st_size, Path(name).name, keys)
        facts, written = body.metadata, _written(body.header_sum, status)
        if facts["format"] == RESUME_FORMAT:
            return _resume(name, facts, written, has_state="state" in body.table)
        if facts["format"] not in (FORMAT, SHARED_FORMAT):
            raise ValueError(f"its format is {facts['format']}")
        return _rows(name, facts, np.frombuffer(body.tensor("ids"), "<u4"), written)
    finally:
        os.close(fd)


def _resume(name: str, facts: Mapping[str, str], written: Mapping[str, Any], *, has_state: bool) -> Segment:
    start, stop = int(facts["start"]), int(facts["stop"])
    return Segment(
        kind="resume",
        identity=facts["identity"],
        file=name,
        parent=bytes.fromhex(facts["piece"]),
        start=start,
        n_tokens=stop - start,
        chunk_tokens=1,
        exactness=EXACTNESS[EXACTNESS.index(facts.get("exactness", "exact"))],  # told where it is weaker than that
        codec=named(facts["codec"]),
        host=facts["host"],
        has_state=has_state,
        **written,
    )


def _rows(name: str, facts: Mapping[str, str], ids: Ids, written: Mapping[str, Any]) -> Segment:
    segment = Segment(
        identity=facts["identity"],
        file=name,
        parent=bytes.fromhex(facts["parent"]),
        start=int(facts["start"]),
        n_tokens=int(facts["n_tokens"]),
        chunk_tokens=int(facts["chunk_tokens"]),
        exactness=EXACTNESS[EXACTNESS.index(facts["exactness"])],
        codec=named(facts["codec"]),
        host=facts["host"],
        n_shared=int(facts.get("shared", "0")),
        ids=ids,
        **written,
    )
    if len(ids) != segment.n_tokens:
        raise ValueError(f"{len(ids)} ids of {segment.n_tokens}")
    if not 0 <= segment.n_shared < min(segment.n_tokens, segment.chunk_tokens):
        raise ValueError(f"it shares {segment.n_shared} rows of {segment.n_tokens}")
    kinds = iter(facts["made"].split(","))
    segment.divide(ids, lambda start, stop: _MADE[next(kinds)])
    return segment


def _written(header_sum: str, status: os.stat_result) -> dict[str, Any]:
    return {"used_s": status.st_mtime, "n_bytes": status.st_size, "header_xxh3": header_sum, "is_ready": True}


def _in_order(segments: list[Segment]) -> list[Segment]:
    """Return the segments that a root reaches, and whose shared rows are there; what others need comes before them.

    They are numbered in that order.
    """
    waiting: dict[bytes, list[Segment]] = {}
    for segment in segments:
        waiting.setdefault(segment.parent, []).append(segment)
    indexes = {
        (s.identity, s.chunk_tokens): Index(bytes.fromhex(s.identity), s.chunk_tokens, _own_ids) for s in segments
    }
    kept: dict[int, Segment] = {}
    reached: list[tuple[bytes, int | None]] = [(bytes.fromhex(i), None) for i in sorted({s.identity for s in segments})]
    sharing: list[Segment] = []  # wait for what they share
    while reached or sharing:
        n_kept = len(kept)
        for parent, number in reached:
            for segment in waiting.pop(parent, []):
                segment.parent_number = number
                if segment.n_shared:
                    sharing.append(segment)
                else:
                    reached += _kept(segment, kept, indexes)
        reached = []
        for segment in sharing:
            segment.source_number = _source(segment, kept, indexes[segment.identity, segment.chunk_tokens])
            if segment.source_number is not None:
                reached += _kept(segment, kept, indexes)
        sharing = [segment for segment in sharing if segment.source_number is None]
        if len(kept) == n_kept:
            break
    for segment in kept.values():
        segment.ids = None
    return list(kept.values())


def _kept(
    segment: Segment, kept: dict[int, Segment], indexes: Mapping[tuple[str, int], Index]
) -> list[tuple[bytes, int | None]]:
    """Number a segment and enter it; return what others may follow. Nothing if another file has the same piece."""
    index = indexes[segment.identity, segment.chunk_tokens]
    if any(piece.id in index.pieces for piece in segment.pieces):
        return []
    segment.number = len(kept) + 1
    kept[segment.number] = segment
    for piece in segment.pieces:
        index.add(piece)
    return [(piece.id, segment.number) for piece in segment.pieces]


def _own_ids(piece: Piece) -> Ids:
    ids = piece.segment.ids
    assert ids is not None
    return ids[piece.offset : piece.offset + piece.n_tokens]


def _source(segment: Segment, kept: Mapping[int, Segment], index: Index) -> int | None:
    """Return the segment that has the last of the rows that another shares, found by their ids; None: nothing has."""
    assert segment.ids is not None
    for path in index.covers(segment.parent, segment.ids[: segment.n_shared], ready=True):
        if n_tokens(path) == segment.n_shared:
            try:
                found = stretches(kept, path[-1][0].segment, segment.start, segment.shared_stop)
            except LookupError:  # positions that contradict each other
                continue
            if all(weakest(one.segment.exactness, segment.exactness) == segment.exactness for one in found):
                return found[-1].segment.number
    return None
