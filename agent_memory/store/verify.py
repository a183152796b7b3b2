"""Verification: every file that the manifest names and every turn, read and checked."""

from __future__ import annotations

from pathlib import Path

from agent_memory.kvfile.sources import checking
from agent_memory.log.damage import READ_ERRORS, reason_of
from agent_memory.log.logs import Logs
from agent_memory.progress import Progress, silent
from agent_memory.store.manifest import Manifest
from agent_memory.types import VerifyReport


def verify_store(manifest: Manifest, logs: Logs, folder: Path | None, report: Progress = silent) -> VerifyReport:
    """Check every file that the manifest names, every turn, and the manifest itself; ``folder`` None: no KV."""
    damaged: list[str] = []
    unread: list[str] = []
    n_bytes = 0
    segments = manifest.segments() if folder is not None else []
    for number, segment in enumerate(segments if folder is not None else ()):
        report(number, len(segments), "")
        assert folder is not None
        try:
            for _ in checking(folder / segment.file, segment, manifest.database.keys):
                pass
            n_bytes += segment.n_bytes
        except READ_ERRORS as error:
            if any(one.file == segment.file for one in manifest.segments()):  # else the file was removed meanwhile
                found = unread if reason_of(error) == "unreadable" else damaged
                found.append(f"{'segment' if segment.kind == 'rows' else 'resume file'} {segment.file}: {error}")
    turns, bad_logs = logs.damaged_turns()
    rows = [segment for segment in segments if segment.kind == "rows"]
    return VerifyReport(
        segments=len(rows),
        chunks=sum(segment.n_chunks for segment in rows),
        bytes_read=n_bytes,
        turns=turns,
        damaged=(*damaged, *bad_logs),
        unread=tuple(unread),
    )
