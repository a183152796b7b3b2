"""The store's folder and its budget: KV files, the manifest, and files of strangers.

Counted are the allocated bytes of every file, also of strangers: the manifest and its WAL each time, all others when
the folder is surveyed.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from agent_memory.log.files import (
    BLOCK,
    KEY_FILE,
    KV_FOLDER,
    LOCK,
    MANIFEST,
    RECALL,
    SEALED_MANIFEST,
    Size,
    entries,
    held_bytes,
    size_of,
)
from agent_memory.prefix.names import SUFFIX, TEMP_SUFFIX, is_kv_folder, is_kv_name

_MANIFESTS = (MANIFEST, SEALED_MANIFEST)
_OURS = (LOCK, KEY_FILE, *(f"{name}{end}" for name in _MANIFESTS for end in ("", "-wal", "-shm")))
_MAX_DEFAULT_BYTES = 32 << 30
_NEXT = r"\.(sealed|plain)(-wal|-shm|-journal)?"  #: written by ``rekey``
_MANIFEST_NAME = re.compile(
    rf"({'|'.join(map(re.escape, _MANIFESTS))})(-wal|-shm|-journal|\.(damaged-[0-9]+|repairing)(-wal)?|{_NEXT})?"
)
_RECALL_NAME = re.compile(rf"{re.escape(RECALL)}(-wal|-shm|-journal|\.v[0-9]+\.backup({_NEXT})?|{_NEXT})?")


def list_files(folder: Path) -> dict[str, Size]:
    """Return every file below ``folder`` that looks like a KV file, by its path below it: see ``names.is_kv_name``.

    Raises OSError if a folder cannot be read: then missing files are unknown.
    """
    found: dict[str, Size] = {}
    for sub in entries(folder):
        if sub.is_dir(follow_symlinks=False):
            for entry in entries(Path(sub.path)):
                if entry.name.endswith((SUFFIX, TEMP_SUFFIX)):
                    with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                        found[f"{sub.name}/{entry.name}"] = size_of(entry.stat(follow_symlinks=False))
    return found


def refuse_linked(folder: Path) -> None:
    """Raise OSError where the folder of an identity is a link: its files are not missing, and never written."""
    for sub in entries(folder):
        if is_kv_folder(sub.name) and sub.is_symlink():
            raise OSError(
                errno.ELOOP,
                f"{sub.path} is a symbolic link, behind which no KV is kept: move the folder back, or link {folder} "
                "as a whole. Remove the link, and its KV is computed again",
            )


def strangers(folder: Path, known: Collection[str], below: str = "") -> dict[str, int]:
    """Return the allocated bytes of every file below ``folder`` that is not among ``known``, by its path below it.

    One ``scandir`` a folder; known files are not looked at. Of links only ``kv`` itself is followed. Raises OSError.
    """
    found: dict[str, int] = {}
    for entry in entries(folder / below):
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir(follow_symlinks=name == KV_FOLDER):
            found |= strangers(folder, known, name)
        elif name not in known:
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                found[name] = entry.stat(follow_symlinks=False).st_blocks * BLOCK
    return found


def _is_own_name(name: str) -> bool:
    """True if the store itself makes files of this name in its folder."""
    return name in (LOCK, KEY_FILE, f"{KEY_FILE}.tmp", f"{MANIFEST}.tmp") or bool(
        _MANIFEST_NAME.fullmatch(name) or _RECALL_NAME.fullmatch(name)
    )


def default_budget(path: Path) -> int:
    """Return a quarter of the free space and the store's bytes, at least these: files of others evict nothing."""
    held = sum(strangers(path, ()).values())
    kv = path / KV_FOLDER  # may be a link to another disk
    free = shutil.disk_usage(kv if kv.exists() else path).free
    return min(_MAX_DEFAULT_BYTES, max(held, (free + held) // 4))


class Quota:
    """The budget, and the files that are no KV. I/O thread, except ``others``."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._root, self.budget_bytes = root, budget_bytes
        self._foreign_bytes = 0
        self.strangers: tuple[str, ...] = ()  #: files that the store did not make, as of the last survey

    def others(self) -> int:
        """Allocated bytes of all but KV files: manifest and lock now, strangers as of the last survey."""
        return self._foreign_bytes + sum(held_bytes(self._root / name) for name in _OURS)

    def survey(self, known: Collection[str]) -> list[str]:
        """Count every file but ``known`` KV files (paths below ``kv``); return unknown KV files of the store.

        Raises OSError if a folder cannot be read.
        """
        found = strangers(self._root, {*_OURS, *(f"{KV_FOLDER}/{name}" for name in known)})
        left = [name for name in found if _is_kv(name)]
        self._foreign_bytes = sum(n_bytes for name, n_bytes in found.items() if name not in set(left))
        self.strangers = tuple(sorted(name for name in found.keys() - {*left} if not _is_own_name(name)))
        return left


def _is_kv(name: str) -> bool:
    return name.startswith(f"{KV_FOLDER}/") and is_kv_name(name.removeprefix(f"{KV_FOLDER}/"))
