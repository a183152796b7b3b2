"""Rows of the manifest that are sound by themselves and contradict others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent_memory.log.soundness import is_count
from agent_memory.prefix.pieces import Segment
from agent_memory.prefix.sharing import stretches


def is_sharing_sound(segment: Segment) -> bool:
    """True if a row shares nothing, or a part of its first piece."""
    source, n_shared = segment.source_number, segment.n_shared
    if source is None:
        return n_shared == 0 and type(n_shared) is int
    is_some = type(n_shared) is int and 0 < n_shared < min(segment.n_tokens, segment.chunk_tokens)
    return is_some and is_count(source) and source < segment.number


def _shares_nothing_there_is(row: Segment, rows: Mapping[int, Segment]) -> bool:
    """True if rows that a segment shares are in none of ``rows``."""
    try:
        return any(one.segment.identity != row.identity for one in stretches(rows, row, row.start, row.shared_stop))
    except LookupError:
        return True


def disorder(rows: Sequence[Segment], resume: Sequence[Segment]) -> int:
    """Count rows that contradict others: a missing parent, a piece or a file that occurs twice.

    ``rows``: each of them sound, parents before children.
    """
    ends: dict[tuple[str, bytes], tuple[int, int]] = {}  # identity and piece -> its segment and its end
    files: set[str] = set()
    n_bad = 0
    known: dict[int, Segment] = {}
    for row in rows:
        at = ends.get((row.identity, row.parent)) if row.parent_number is not None else (None, 0)
        is_rooted = row.parent_number is not None or row.parent.hex() == row.identity
        ids = row.piece_ids()
        is_new = row.file not in files and not any((row.identity, id) in ends for id in ids)
        is_placed = at == (row.parent_number, row.start) and not _shares_nothing_there_is(row, known)
        if not (is_placed and is_rooted and is_new):
            n_bad += 1
            continue
        known[row.number] = row
        files.add(row.file)
        for i, id in enumerate(ids, 1):
            ends[row.identity, id] = row.number, row.start + min(i * row.chunk_tokens, row.n_tokens)
    holders = {(id, segment) for (_, id), (segment, _) in ends.items()}
    for one in resume:
        n_bad += (one.parent, one.parent_number) not in holders or one.file in files
        files.add(one.file)
    return n_bad
