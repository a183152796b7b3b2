"""The folder of segment files: listed, made, cleared."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from agent_memory.store.format import SUFFIX, TEMP_SUFFIX
from agent_memory.store.segments import sync_folder


def list_files(folder: Path) -> dict[str, int]:
    """Size of every segment or temp file, by its path below the folder."""
    found: dict[str, int] = {}
    if not folder.is_dir():
        return found
    for sub in os.scandir(folder):
        if sub.is_dir(follow_symlinks=False):
            for entry in os.scandir(sub.path):
                if entry.name.endswith((SUFFIX, TEMP_SUFFIX)):
                    found[f"{sub.name}/{entry.name}"] = entry.stat(follow_symlinks=False).st_size
    return found


def make_folder(path: Path) -> None:
    """Make a folder of one identity, durably."""
    if not path.is_dir():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)
        sync_folder(path.parent.parent)


def unlink(path: Path) -> None:
    """Remove a file; never raises."""
    with contextlib.suppress(OSError):  # the next open sweeps it
        path.unlink()
