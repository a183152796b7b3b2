"""What the store's folder holds: its KV files, and files that are nobody's."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from agent_memory.log.files import BLOCK, Size, entries, size_of
from agent_memory.store.format import KV_FOLDER, SUFFIX, TEMP_SUFFIX


def list_files(folder: Path) -> dict[str, Size]:
    """Return every file below ``folder`` that looks like a KV file, by its path below it: see ``format.is_kv_name``.

    Raises OSError where a folder cannot be read: then nobody knows what is missing.
    """
    found: dict[str, Size] = {}
    for sub in entries(folder):
        if sub.is_dir(follow_symlinks=False):
            for entry in entries(Path(sub.path)):
                if entry.name.endswith((SUFFIX, TEMP_SUFFIX)):
                    with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                        found[f"{sub.name}/{entry.name}"] = size_of(entry.stat(follow_symlinks=False))
    return found


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
