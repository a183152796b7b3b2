"""The key of an encrypted store: a random one, kept in its folder wrapped by the host's (``Config.key``).

- The folder is encrypted under the store's key alone. The host's key is never in it: only who has both the folder and
  the host's key reads anything. Without the file ``wrapped.key`` nobody does.
- Another host's key (``rekey``) wraps the same store's key again: one small file is replaced, whatever the store holds.
- Releases that know no key find a database of a version that they refuse where the manifest would be.
- The file has the wrapped key twice, each in a line with its digest: one damaged line is written anew from the other,
  and a wrong key is told from damage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from attrs import field, frozen

from agent_memory.errors import IncompatibleStoreError, StoreError, WrongKeyError
from agent_memory.log.files import (
    KEY_FILE,
    KV_FOLDER,
    MANIFEST,
    RECALL,
    REPAIRING,
    SEALED_MANIFEST,
    Files,
    entries,
    refuse_links,
)
from agent_memory.sealing.box import Box, SealBrokenError
from agent_memory.sealing.keys import KEY_BYTES, Keys

log = logging.getLogger("agent_memory.store")

FORMAT = "agent_memory.key/1"
_COPIES = 2
_MARK, _NEWER, _SIGN_BYTES = "encrypted", 1000, 16 << 10  #: of the file in place of a plain manifest
#: ends of names: databases that ``rekey`` has written anew, under the first key, none, or another one of the store
SEALED_END, PLAIN_END, ANEW_END = ".sealed", ".plain", ".anew"
NEXT_KEY_FILE = f"{KEY_FILE}{ANEW_END}"  #: is there while a store goes over to another key of its own
_SIDES = ("-wal", "-shm", "-journal")  #: ends of names of SQLite's own files beside a database
_BACKUP = re.compile(re.escape(RECALL) + r"\.v[0-9]+\.backup")


@frozen
class _Wrapped:
    """One line of the file."""

    salt: bytes
    sealed: bytes = field(repr=False)

    def line(self) -> bytes:
        told = {"format": FORMAT, "salt": self.salt.hex(), "sealed": self.sealed.hex()}
        return json.dumps({**told, "sha256": _digest(told)}).encode() + b"\n"

    def opened(self, host: Keys) -> Keys:
        """Return the store's keys. Raises SealBrokenError."""
        return Keys(Box(host.key("wrap"), FORMAT.encode(), self.salt).open(0, self.sealed))


def new_keys() -> Keys:
    """Return the keys of a new store."""
    return Keys(secrets.token_bytes(KEY_BYTES))


def read_keys(root: Path, host: Keys | None) -> Keys | None:
    """Return the keys that a folder is encrypted under; None: it is not encrypted. Changes nothing.

    ``host``: what ``Config.key`` gives. Raises WrongKeyError for another key than the store's, none for an encrypted
    store, or one for a store that is not encrypted; StoreError for a damaged or missing file.
    """
    path = root / (NEXT_KEY_FILE if (root / NEXT_KEY_FILE).exists() else KEY_FILE)
    try:
        refuse_links(path)
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # what is no folder is refused by whoever opens it
        if is_sign(root / MANIFEST) and not (root / f"{MANIFEST}{PLAIN_END}").exists():
            raise StoreError(
                f"{path} is missing, and {root} is encrypted. Put the file back from a copy; without it no key opens "
                "this store"
            ) from None
        if host is not None and is_used(root):
            raise WrongKeyError(
                f"{root} is not encrypted, and a key was given; nothing was changed. Leave the key out, or encrypt the "
                "store while nobody has it open: agent_memory.rekey(path, None, key)"
            ) from None
        return None
    if host is None:
        raise WrongKeyError(
            f"{root} is encrypted, and no key was given. Give the key that it was made with: Config(key=...), "
            "or --key-file"
        )
    found = list(_sound(path, raw))
    for wrapped in found:
        try:
            return wrapped.opened(host)
        except SealBrokenError:
            continue
    if found:
        raise WrongKeyError(
            f"{root} is encrypted under another key than the one given; nothing was changed. Give the key that it was "
            "made with, or that it was given last (agent_memory.rekey)"
        )
    raise StoreError(
        f"{path} is damaged: both copies of the store's key in it are. Put the file back from a copy; without it no "
        "key opens this store"
    )


def open_keys(root: Path, host: Keys | None, files: Files) -> Keys | None:
    """Return the keys of a folder that this process has locked, as ``read_keys`` does; a new folder gets some.

    A damaged copy is written anew. Raises OSError too.
    """
    settle(root, files)
    keys = read_keys(root, host)
    if host is None:
        return None
    if keys is None:
        write_keys(root, keys := new_keys(), host, files)
        _put_sign(root, files)
    elif len(list(_sound(root / KEY_FILE, (root / KEY_FILE).read_bytes()))) < _COPIES:
        log.warning("store: a copy of the store's key in %s was damaged; it is written anew", root / KEY_FILE)
        write_keys(root, keys, host, files)
    return keys


def write_keys(root: Path, keys: Keys, host: Keys, files: Files, name: str = KEY_FILE) -> None:
    """Wrap the store's keys by the host's, in place of what was there: wholly or not at all. Raises OSError.

    ``name``: ``NEXT_KEY_FILE`` for keys under which all has been written anew.
    """
    box = Box(host.key("wrap"), FORMAT.encode(), salt := secrets.token_bytes(KEY_BYTES))
    line = _Wrapped(salt, box.seal(0, keys.secret)).line()
    _replace(root / name, line * _COPIES, files)


def drop_key(root: Path, files: Files) -> None:
    """Remove the store's key: what was encrypted under it is nobody's to read any more. Raises OSError."""
    files.remove(root / KEY_FILE)
    files.sync_folder(root)


def settle(root: Path, files: Files) -> None:
    """Finish what ``rekey`` has committed, and remove what it has not: it commits as a key file appears, or goes.

    By whoever has locked the folder. Raises OSError; StoreError where the folder is neither encrypted nor plain.
    """
    _settle_anew(root, files)
    names = {entry.name for entry in entries(root)}
    done, undone = (SEALED_END, PLAIN_END) if KEY_FILE in names else (PLAIN_END, SEALED_END)
    waiting = [name for name in names if name.endswith(done) and is_database(name.removesuffix(done))]
    for name in names:
        for end in (undone, *(f"{undone}{side}" for side in _SIDES)):
            if name.endswith(end) and is_database(name.removesuffix(end)):
                files.unlink(root / name)
    for name in waiting:
        database = name.removesuffix(done)
        _remove_sides(root / database, files)  # of the one that goes
        files.rename(root / name, root / database)
    if waiting:
        files.sync_folder(root)
        log.info("store: the change of the key of %s is complete", root)
    if KEY_FILE in names:
        if MANIFEST in names and SEALED_MANIFEST not in names and not waiting and not is_sign(root / MANIFEST):
            raise StoreError(f"{root} has a plain manifest and {KEY_FILE}: take out the one that does not belong there")
        if not is_sign(root / MANIFEST):
            _remove_sides(root / MANIFEST, files)
            _put_sign(root, files)
    elif SEALED_MANIFEST in names and not is_sign(root / MANIFEST) and (root / MANIFEST).exists():
        _remove_sides(root / SEALED_MANIFEST, files)
        files.unlink(root / SEALED_MANIFEST)


def _settle_anew(root: Path, files: Files) -> None:
    """Finish or undo the change to another key of the store: the next key file is there from the commit to the end."""
    names = {entry.name for entry in entries(root)}
    waiting = [name for name in names if name.endswith(ANEW_END) and is_database(name.removesuffix(ANEW_END))]
    is_done = NEXT_KEY_FILE in names
    if (begun := f"{NEXT_KEY_FILE}.tmp") in names:  # killed as it was written: nothing refers to it
        files.unlink(root / begun)
    for name in waiting:
        _remove_sides(root / (name.removesuffix(ANEW_END) if is_done else name), files)
        if is_done:
            files.rename(root / name, root / name.removesuffix(ANEW_END))
        else:
            files.unlink(root / name)
    if is_done:
        files.sync_folder(root)
        files.rename(root / NEXT_KEY_FILE, root / KEY_FILE)  # last: until then the others are known to be its own
        files.sync_folder(root)
        log.info("store: %s is under another key of its own", root)


def _remove_sides(database: Path, files: Files) -> None:
    for side in _SIDES:
        files.unlink(database.with_name(f"{database.name}{side}"))


def is_database(name: str) -> bool:
    """True if a file of the folder is a database of this library, or a copy that a migration of recall has kept."""
    return name in (MANIFEST, SEALED_MANIFEST, RECALL) or bool(_BACKUP.fullmatch(name))


def is_used(root: Path) -> bool:
    """True if a folder holds a store, or what is left of one."""
    databases = [root / name for name in (MANIFEST, REPAIRING, SEALED_MANIFEST, RECALL)]
    return any(one.exists() and one.stat().st_size for one in databases) or any(
        entry.is_dir() and entries(Path(entry.path)) for entry in entries(root / KV_FOLDER)
    )


def is_sign(path: Path) -> bool:
    """True if a file is the one that says, in place of a manifest, that a store is encrypted."""
    try:
        return path.stat().st_size < _SIGN_BYTES and _MARK.encode() in path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False


def _put_sign(root: Path, files: Files) -> None:
    """Put a database of a newer version where releases that know no key look for the manifest: they refuse it."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("PRAGMA page_size=512")
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        versions = [(name, str(_NEWER)) for name in ("read_version", "write_version")]
        db.executemany("INSERT INTO meta VALUES (?, ?)", [*versions, (_MARK, SEALED_MANIFEST)])
        db.commit()
        _replace(root / MANIFEST, db.serialize(), files)


def _replace(path: Path, data: bytes, files: Files) -> None:
    """Write a file in place of what was there: wholly or not at all."""
    temp = path.with_name(f"{path.name}.tmp")
    files.unlink(temp)
    fd = files.create(temp)
    try:
        files.write(fd, memoryview(data), 0)
        files.sync(fd)
    finally:
        os.close(fd)
    files.rename(temp, path)
    files.sync_folder(path.parent)


def _sound(path: Path, raw: bytes) -> Iterator[_Wrapped]:
    """Yield the lines whose digest is right. Raises IncompatibleStoreError for those of a newer release."""
    for line in raw.splitlines():
        try:
            told = json.loads(line)
            digest = told.pop("sha256")
            if digest != _digest(told):
                continue
            is_known = told["format"] == FORMAT
            wrapped = _Wrapped(bytes.fromhex(told["salt"]), bytes.fromhex(told["sealed"])) if is_known else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if wrapped is None:
            raise IncompatibleStoreError(f"{path} has the format {told['format']!r}. Use a newer agent_memory")
        yield wrapped


def _digest(told: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
