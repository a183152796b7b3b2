"""Verification: read and check every stored byte, while other work goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from agent_memory.log.logs import Logs
from agent_memory.prefix.resume import Side
from agent_memory.store.format import split_sums
from agent_memory.store.manifest import Manifest
from agent_memory.store.records import SegmentRow
from agent_memory.store.segments import READ_ERRORS, read_header, reason_of
from agent_memory.types import VerifyReport


def verify_store(manifest: Manifest, logs: Logs, folder: Path | None) -> VerifyReport:
    """Check every file that the manifest names, every turn, and the manifest itself; ``folder`` None: no KV."""
    damaged: list[str] = []
    unread: list[str] = []
    n_bytes = 0
    segments = manifest.segments() if folder is not None else []
    files: list[tuple[str, SegmentRow | Side]] = [("segment", row) for row in segments]
    files += [("side file", side) for side in manifest.sides()]
    for kind, file in files if folder is not None else ():
        assert folder is not None
        try:
            n_bytes += check_file(folder / file.file, file.n_bytes, file.header_xxh3)
        except READ_ERRORS as error:
            if _is_named(manifest, file):  # else it was evicted or joined meanwhile
                found = unread if reason_of(error) == "unreadable" else damaged
                found.append(f"{kind} {file.file}: {error}")
    turns, bad_logs = logs.damaged_turns()
    return VerifyReport(
        segments=len(segments),
        chunks=sum(-(-row.n_tokens // row.chunk_tokens) for row in segments),
        bytes_read=n_bytes,
        turns=turns,
        damaged=(*damaged, *bad_logs),
        unread=tuple(unread),
    )


def _is_named(manifest: Manifest, file: SegmentRow | Side) -> bool:
    if isinstance(file, Side):
        return any(side.file == file.file for side in manifest.sides())
    return any(row.file == file.file for row in manifest.segments(file.identity))


def check_file(path: Path, n_bytes: int, header_xxh3: str) -> int:
    """Check every byte of one file; return the bytes read. Raises OSError or ValueError that says what is wrong."""
    for _ in checking(path, n_bytes, header_xxh3):
        pass
    return n_bytes


def checking(path: Path, n_bytes: int, header_xxh3: str) -> Iterator[None]:
    """``check_file`` in steps of at most 8 MB."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        metadata, table, data_start = read_header(fd, n_bytes)
        if metadata["header_xxh3"] != header_xxh3:
            raise ValueError("the header is not the one that was written")
        sums = iter(split_sums(metadata))
        for name, entry in table.items():
            start, stop = entry["data_offsets"]
            digest = xxhash.xxh3_64()
            is_zero = True
            for raw in _blocks(fd, data_start + start, stop - start):
                digest.update(raw)
                yield
                is_zero = is_zero and name.startswith("pad.") and not any(raw)
            if not is_zero and name.startswith("pad."):
                raise ValueError(f"{name} is not zero")
            if not name.startswith("pad.") and digest.hexdigest() != next(sums, None):
                raise ValueError(f"the checksum of {name} is wrong")
    finally:
        os.close(fd)


def _blocks(fd: int, at: int, nbytes: int) -> Iterator[bytes]:
    while nbytes > 0:
        raw = os.pread(fd, min(nbytes, 8 << 20), at)
        if not raw:
            raise ValueError("the file ends too early")
        yield raw
        at, nbytes = at + len(raw), nbytes - len(raw)
