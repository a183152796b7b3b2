"""``rekey``: a store's folder under another key, encrypted for the first time, or not encrypted any more.

- From key to key: the store's own key is wrapped anew. One small file is replaced; at any moment one of the two keys
  opens the store.
- To or from no key, or ``anew`` under another key of the store's own: databases and files of KV are written anew beside
  the old ones, in the clear only where that is asked for; then the key file appears, or goes, or the next one appears,
  which is the one commit; then names are exchanged and what was before is removed. A process that dies in between
  leaves a store that opens as before the commit, or as after it: whoever opens it next finishes or cleans up
  (``keyfile.settle``, and the sweep of files that nothing names).
- Deleted files leave bytes on the disk until it uses them again: no program can promise otherwise on an SSD.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from os import PathLike
from pathlib import Path

from agent_memory.config import Config
from agent_memory.errors import ConfigError, StoreError
from agent_memory.kvfile.segments import OpenSegment, rewrite_under
from agent_memory.log.damage import READ_ERRORS, DamageError, reason_of
from agent_memory.log.database import manifest_key, open_database
from agent_memory.log.files import (
    KV_FOLDER,
    MANIFEST,
    SEALED_MANIFEST,
    Files,
    entries,
    holds_store,
    manifest_path,
)
from agent_memory.log.keyfile import (
    ANEW_END,
    NEXT_KEY_FILE,
    PLAIN_END,
    SEALED_END,
    drop_key,
    is_database,
    is_sign,
    new_keys,
    open_keys,
    read_keys,
    settle,
    write_keys,
)
from agent_memory.log.lock import Lock, manifest_sum
from agent_memory.log.refusals import store_errors
from agent_memory.prefix.names import new_file
from agent_memory.prefix.pieces import Segment
from agent_memory.progress import Progress, bar, silent
from agent_memory.reader.shared import ensure_writable
from agent_memory.requests.opening import store_path
from agent_memory.sealing import sqlite
from agent_memory.sealing.keys import Keys, Secret, keys_of
from agent_memory.sealing.sqlite import FileKey
from agent_memory.store.manifest import Manifest
from agent_memory.store.store import Store

log = logging.getLogger("agent_memory.store")


def rekey(
    path: str | PathLike[str] | None,
    key: Secret | None,
    new: Secret | None,
    *,
    anew: bool = False,
    progress: bool | None = None,
) -> None:
    """Put a store under another key: ``new`` opens it from then on, ``key`` does not.

    ``key`` None: the store is not encrypted yet, and is from then on. ``new`` None: it is not encrypted any more. From
    key to key one small file is replaced: the store's own key stays, which ``key`` and a copy of the former file still
    give. ``anew``: the store gets another one. Then, and to or from no key, all of it is read and written, and needs
    its size again on the disk. ``path`` None: the user's data folder. ``progress`` as in Config. Killed at any moment,
    the store opens with ``key`` or with ``new``, and has lost nothing. Raises ConfigError, WrongKeyError, StoreError,
    StoreLockedError while a process has it open, OutOfSpaceError.
    """
    folder = store_path(path)
    if folder is None:
        raise ConfigError("':memory:' is no folder: there is nothing on disk to encrypt")
    old, wanted = (None if one is None else keys_of(one, name) for one, name in ((key, "key"), (new, "new")))
    with bar(progress, "change the key", "files") as report:
        change_key(folder, old, wanted, report=report, is_anew=bool(anew))


def rekey_open(store: Store, new: Secret | None) -> None:
    """Put an open store under another key of the host's; see ``Memory.rekey``."""
    ensure_writable(store, "change the key")
    if new is None:
        raise ConfigError(
            "an open store cannot be decrypted: all of it is written anew. Close it, and call "
            "agent_memory.rekey(path, key, None)"
        )
    store.rewrap(keys_of(new, "new_key"))


def change_key(
    path: Path,
    old: Keys | None,
    new: Keys | None,
    files: Files | None = None,
    report: Progress = silent,
    *,
    is_anew: bool = False,
) -> None:
    """Put a store that nobody has open under another host's key; None: it is not encrypted.

    From key to key at once, unless ``is_anew``; else reads and writes all of it, and needs its size again on the disk.
    Raises WrongKeyError, StoreLockedError, StoreError, OutOfSpaceError; then ``old`` opens it as before, or ``new``
    where the disk refused after the commit.
    """
    files = files or Files()
    if not holds_store(path):
        raise StoreError(f"{path} holds no store: no file {MANIFEST} is in it")
    if old is None and new is None:
        raise ConfigError("rekey needs a key: the one that the store has, or the one that it is to have")
    read_keys(path, old)
    with store_errors("change the key", path):
        if old is not None and new is not None and not is_anew:
            _wrap_anew(path, old, new, files)
        else:
            _ensure_no_copies(path)
            _reopened(path, old, files)  # finishes what a killed process left, and folds the WAL
            _ensure_no_copies(path)  # a repair may have left one
            _write_anew(path, old, new, files, report)
            _reopened(path, new, files)  # removes the files that nothing names now


def _wrap_anew(path: Path, old: Keys, new: Keys, files: Files) -> None:
    lock = Lock(path, files)
    is_whole = False
    try:
        is_whole = _is_as_closed(path, lock)
        keys = open_keys(path, old, files)
        assert keys is not None
        write_keys(path, keys, new, files)
    finally:
        lock.release(is_whole=is_whole)


def _is_as_closed(path: Path, lock: Lock) -> bool:
    """True if the manifest is the one that was closed: else the next open examines it, as it would have before."""
    if lock.closed is None or (path / f"{SEALED_MANIFEST}-wal").exists():
        return False
    with contextlib.suppress(OSError):  # then the next open says why
        return manifest_sum(manifest_path(path)) == lock.closed
    return False


def _ensure_no_copies(path: Path) -> None:
    if found := [entry.name for entry in entries(path) if entry.name.startswith(f"{MANIFEST}.damaged-")]:
        raise StoreError(
            f"{path / found[0]} is a damaged manifest that was set aside, and would stay as it is: move it out of the "
            "folder, or delete it, and call again"
        )


def _reopened(path: Path, key: Keys | None, files: Files) -> None:
    Store(path, disk_bytes=sys.maxsize, chunk_tokens=Config().chunk_tokens, files=files, key=key).close()  # evicts none


def _write_anew(path: Path, old: Keys | None, new: Keys | None, files: Files, report: Progress) -> None:
    lock = Lock(path, files)
    try:
        keys = open_keys(path, old, files)
        target = None if new is None else new_keys()
        end = PLAIN_END if target is None else SEALED_END if keys is None else ANEW_END
        try:
            for entry in entries(path):
                if is_database(entry.name) and not is_sign(path / entry.name):
                    _copy(path, entry.name, keys, target, end)
            _copy_kv(path, keys, target, files, report, end)
            files.sync_folder(path)
            if target is not None and new is not None:
                write_keys(path, target, new, files, *([NEXT_KEY_FILE] if keys is not None else []))  # the commit
            else:
                drop_key(path, files)  # the commit
        finally:
            settle(path, files)
    finally:
        lock.release(is_whole=False)


def _copy(path: Path, name: str, keys: Keys | None, target: Keys | None, end: str) -> None:
    is_manifest = name in (MANIFEST, SEALED_MANIFEST)

    def key(of: Keys | None) -> FileKey | None:
        return manifest_key(of) if is_manifest else FileKey.of(of, "recall")

    to = _manifest(target, end) if is_manifest else f"{name}{end}"
    sqlite.copy(path / name, key(keys), path / to, key(target))


def _manifest(target: Keys | None, end: str) -> str:
    """Return the name under which the new manifest waits."""
    return f"{MANIFEST if target is None else SEALED_MANIFEST}{end}"


def _copy_kv(path: Path, keys: Keys | None, target: Keys | None, files: Files, report: Progress, end: str) -> None:
    """Write every segment and resume file anew, and their rows in the manifest that waits."""
    database = open_database(path / _manifest(target, end), files, target)
    try:
        segments = Manifest(database).segments()
        for number, segment in enumerate(segments):
            report(number, len(segments), "")
            try:
                row = _copied(path / KV_FOLDER, segment, keys, target, files)
            except READ_ERRORS as error:
                _ensure_damaged(path / KV_FOLDER / segment.file, error)
                # its file goes, and so its row and what depends on it, when the store is opened
                log.warning("store: %s cannot be read and is computed again: %s", segment.file, error)
                continue
            table = "segments" if segment.kind == "rows" else "sides"
            with database.transaction() as db:
                db.execute(f"UPDATE {table} SET file = ?, n_bytes = ?, header_xxh3 = ? WHERE file = ?", row)
        for folder in {Path(segment.file).parent for segment in segments}:
            files.sync_folder(path / KV_FOLDER / folder)
    finally:
        database.close()
    if not database.is_whole:
        raise StoreError(f"{path}: the new manifest cannot be made whole; nothing was changed")


def _ensure_damaged(file: Path, error: BaseException) -> None:
    """Raise if a file may be read, or its copy be written, later: such KV is not given up."""
    if reason_of(error) != "unreadable":
        return
    if isinstance(error, DamageError):
        raise StoreError(
            f"{file} cannot be read now: {error}; nothing was changed. Let it be read, or delete it: its KV is "
            "computed again then"
        ) from error
    raise error


def _copied(
    folder: Path, segment: Segment, keys: Keys | None, target: Keys | None, files: Files
) -> tuple[str, int, str, str]:
    name = new_file(segment.identity)
    with contextlib.closing(OpenSegment(folder / segment.file, segment, keys)) as source:
        return (name, *rewrite_under(source, files, folder / name, target), segment.file)
