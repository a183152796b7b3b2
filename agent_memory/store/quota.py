"""What the store's folder takes on disk beside KV files.

Counted are the allocated bytes of every file, whoever wrote it: the manifest and its WAL each time, anything else when
the folder is surveyed.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from agent_memory.log.files import LOCK, MANIFEST, held_bytes
from agent_memory.store.folder import strangers
from agent_memory.store.format import KV_FOLDER, is_kv_name, is_own_name

_OURS = (LOCK, MANIFEST, f"{MANIFEST}-wal", f"{MANIFEST}-shm")


_MAX_DEFAULT_BYTES = 32 << 30


def default_budget(path: Path) -> int:
    """Return a quarter of what is free and what the store has; at least the latter: others' files evict nothing."""
    held = sum(strangers(path, ()).values())
    kv = path / KV_FOLDER  # may be a link to another disk
    free = shutil.disk_usage(kv if kv.exists() else path).free
    return min(_MAX_DEFAULT_BYTES, max(held, (free + held) // 4))


class Quota:
    """The budget, and what in the folder is no KV file. I/O thread, apart from ``others``."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._root, self.budget_bytes = root, budget_bytes
        self._foreign_bytes = 0
        self.strangers: tuple[str, ...] = ()  #: files that the store did not make, as of the last survey

    def others(self) -> int:
        """Allocated bytes of all but KV files: manifest and lock now, strangers as of the last survey."""
        return self._foreign_bytes + sum(held_bytes(self._root / name) for name in _OURS)

    def survey(self, known: Collection[str]) -> list[str]:
        """Look at every file but ``known`` KV files (paths below ``kv``); those that the store made and left behind.

        Raises OSError where a folder cannot be read.
        """
        found = strangers(self._root, {*_OURS, *(f"{KV_FOLDER}/{name}" for name in known)})
        left = [name for name in found if _is_kv(name)]
        self._foreign_bytes = sum(n_bytes for name, n_bytes in found.items() if name not in set(left))
        self.strangers = tuple(sorted(name for name in found.keys() - {*left} if not is_own_name(name)))
        return left


def _is_kv(name: str) -> bool:
    return name.startswith(f"{KV_FOLDER}/") and is_kv_name(name.removeprefix(f"{KV_FOLDER}/"))
