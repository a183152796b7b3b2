"""Folders that are built once: whole or absent, whatever kills the builder, however many processes start at once.

``NAME`` is the finished folder, ``.NAME.*.tmp`` one that is being built (or was, when its builder died), and
``.NAME.lock`` what its builder holds. A finished folder carries a marker with the size and checksum of each file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from agent_memory.errors import OutOfSpaceError

log = logging.getLogger("agent_memory.models")

MARKER = "agent_memory.json"
_FORMAT = 1
_READ_BYTES = 4 << 20


def build_once(folder: Path, build: Callable[[Path], None], *, source: str) -> Path:
    """``folder``, built by ``build(empty folder)`` unless it is there, whole, and made of ``source``.

    Blocks while another thread or process builds it. What killed builders left is removed. Raises OutOfSpaceError, and
    what ``build`` raises; then nothing stays.
    """
    if damage(folder, source=source) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(folder):
            _sweep(folder)
            if (why := damage(folder, source=source)) is not None:
                if folder.exists():
                    log.warning("rebuilding folder=%s reason=%s", folder.name, why)
                _build(folder, build, source)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, OutOfSpaceError):
            raise
        free = shutil.disk_usage(folder.parent).free
        raise OutOfSpaceError(
            f"no room for {folder}: {free:,} bytes are free. Free some, or choose a smaller weights_dtype."
        ) from error
    return folder


def damage(folder: Path, *, source: str | None = None, full: bool = False) -> str | None:
    """Why a built folder cannot be used, or None. Compares sizes only; with ``full`` every byte's checksum as well."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        files, made_of = marker["files"], marker["source"]
        if marker["format"] != _FORMAT:
            return f"its format is {marker['format']}, not {_FORMAT}"
        if source is not None and made_of != source:
            return f"it was made of {made_of}, not of {source}"
        for name, expected in files.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size:,} bytes, not {expected['bytes']:,}"
            if full and (found := _checksum(folder / name)) != expected["xxh3"]:
                return f"{name} has the checksum {found}, not {expected['xxh3']}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its marker cannot be read: {error!r}"
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder.parent / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what killed builders of this folder left; the lock is held, so none of it is in use."""
    for entry in folder.parent.iterdir():
        if entry.name.startswith(f".{folder.name}.") and entry.name.endswith(".tmp"):
            shutil.rmtree(entry, ignore_errors=True)


def _build(folder: Path, build: Callable[[Path], None], source: str) -> None:
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        build(made)
        _write_marker(made, source)
        for path in made.iterdir():
            _fsync(path)
        _fsync(made)
        if folder.exists():
            folder.rename(made.with_name(f"{made.name}.old.tmp"))
        made.rename(folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(made.with_name(f"{made.name}.old.tmp"), ignore_errors=True)


def _write_marker(made: Path, source: str) -> None:
    files: Mapping[str, Any] = {
        p.name: {"bytes": p.stat().st_size, "xxh3": _checksum(p)} for p in sorted(made.iterdir())
    }
    (made / MARKER).write_text(json.dumps({"format": _FORMAT, "source": source, "files": files}, indent=1), "utf-8")


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
