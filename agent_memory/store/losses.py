"""Losses: why pieces are no longer stored, and which files cannot be read now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from agent_memory.prefix.index import Index
from agent_memory.prefix.pieces import Segment

log = logging.getLogger("agent_memory.store")

REREAD_S = 5.0  #: seconds until an unreadable file is tried again
_REASONS = 8192  #: number of lost pieces whose reason is remembered


class Losses:
    """Reasons and postponed files of one catalog, under its lock. In memory only."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.time
        self._reasons: dict[bytes, str] = {}
        self._unreadable: list[tuple[float, Segment]] = []  # until when
        self._told: set[str] = set()  # files whose first failure was logged as a warning

    def remember(self, segment: Segment, reason: str) -> None:
        """Record why the pieces of a segment are no longer stored."""
        parent = segment.parent
        for id in segment.piece_ids():
            self._reasons[id] = self._reasons[b"<" + parent] = reason
            parent = id
        while len(self._reasons) > _REASONS:
            del self._reasons[next(iter(self._reasons))]

    def forget(self, parent: bytes, piece: bytes) -> None:
        """Drop the reason of a piece that is being saved again."""
        self._reasons.pop(piece, None)
        self._reasons.pop(b"<" + parent, None)

    def reason(self, index: Index, parent: bytes, next_chunk: bytes | None) -> str | None:
        """Return why nothing is stored after ``parent``; None if unknown."""
        if any(piece.segment.is_unreadable for piece in index.children(parent)):
            return "unreadable"
        found = self._reasons.get(next_chunk) if next_chunk is not None else None
        return found or self._reasons.get(b"<" + parent)

    def postpone(self, segment: Segment, text: str) -> None:
        """Serve nothing of a segment for a while: its file cannot be read now, which says nothing about its bytes."""
        segment.is_unreadable = True
        self._unreadable.append((self.clock() + REREAD_S, segment))
        tell = log.debug if segment.file in self._told else log.warning
        self._told.add(segment.file)
        tell("store: KV cannot be read now and is computed meanwhile; its file stays: %s", text)

    def retry(self) -> None:
        """Make postponed files readable again whose time is over."""
        if self._unreadable and self._unreadable[0][0] <= (now := self.clock()):
            for until, segment in self._unreadable:
                segment.is_unreadable = until > now
            self._unreadable = [one for one in self._unreadable if one[0] > now]

    @property
    def n_unreadable(self) -> int:
        """Number of files that cannot be read now."""
        return len({segment.file for _, segment in self._unreadable})
