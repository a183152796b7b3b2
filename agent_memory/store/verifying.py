"""Reading and checking every stored byte, beside whatever else goes on."""

from __future__ import annotations

from pathlib import Path

from agent_memory.store.manifest import Manifest
from agent_memory.store.points import Side
from agent_memory.store.records import SegmentRow
from agent_memory.store.segments import READ_ERRORS, check_file, reason_of
from agent_memory.types import VerifyReport


def verify_store(manifest: Manifest, folder: Path | None) -> VerifyReport:
    """Every file that the manifest names, every turn, and the manifest itself; ``folder`` None: there is no KV."""
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
            if _is_named(manifest, file):  # else it was evicted, or joined to another, meanwhile
                found = unread if reason_of(error) == "unreadable" else damaged
                found.append(f"{kind} {file.file}: {error}")
    turns, bad_logs = manifest.damaged_turns()
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
