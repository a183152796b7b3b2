"""The set of stored segments in memory: what is there, which pieces can be found, and what must not be served.

Look-ups come from the engine thread and touch memory (at most a few KB of token ids are read from a file). One lock
guards the index and is never held while the disk is waited for.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from threading import RLock

import numpy as np
from attrs import define, field

from agent_memory.config import Codec
from agent_memory.kvcache.coding import is_lossy
from agent_memory.kvcache.layout import Layout
from agent_memory.log.files import Files
from agent_memory.log.health import Health
from agent_memory.log.place import Place
from agent_memory.prefix.index import Ids, Index, Piece, Segment
from agent_memory.prefix.resume import Needs, Plan, Side, best_plan
from agent_memory.store.format import KV_FOLDER
from agent_memory.store.io import IOThread
from agent_memory.store.manifest import Manifest
from agent_memory.store.quota import Quota
from agent_memory.store.records import SegmentRow
from agent_memory.store.rows import root_id, unpack
from agent_memory.store.writing import Unwritten, WriteAdmission

log = logging.getLogger("agent_memory.store")

REREAD_S = 5.0  #: a file that could not be read is tried again after so long
_REASONS = 8192  #: lost pieces whose reason is remembered


@define
class Counts:
    """What happened since the store was opened, for ``stats``."""

    damage: int = 0
    save_failures: int = 0
    bytes_written: int = 0
    skipped: Counter[str] = field(factory=Counter)  #: saves that were not begun or given up, by reason
    unwritten: Unwritten = field(factory=Unwritten)


class Catalog:
    """Segments of all identities; pieces of the attached one. ``root``: the store's folder.

    - A segment or side file is *entered* when a save plans it, *stored* once its row is committed (``is_ready``).
    - What is stored changes in ``edit.apply`` alone, on the I/O thread.
    - ``hide`` takes pieces out of the index at once, on any thread: they are found no more, and stay stored until the
      Edit that removes them is applied.
    - ``held_bytes`` is the sum of ``held_bytes`` of all that is stored.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        io: IOThread,
        *,
        quota: Quota,
        admission: WriteAdmission,
        files: Files,
        health: Health,
        codec: Codec = "exact",
        place: Place,
    ) -> None:
        self.folder, self.manifest, self.io = root / KV_FOLDER, manifest, io
        self.quota, self.admission, self.files, self.health = quota, admission, files, health
        self.place = place
        self.lock = RLock()
        self.clock: Callable[[], float] = time.time
        self.on_commit: Callable[[], None] = lambda: None  # after each save, on the I/O thread
        self.is_pinned: Callable[[Segment], bool] = lambda segment: False  # whether a segment must not be evicted
        self.segments: dict[int, Segment] = {}
        self.sides: dict[bytes, Side] = {}  # those that can be found, by piece
        self.abandoned: set[bytes] = set()  # pieces that only turns since told otherwise have led to
        self.awaited: dict[int, tuple[Ids, int]] = {}  # ids of holders whose KV is not all found; ``holding.py``
        self.unfinished: dict[str, int] = {}  # bytes of files that are being written; I/O thread
        self.counts = Counts()
        self.index: Index | None = None
        self.layout: Layout | None = None
        self.codec: Codec = "exact"  # in which new KV of the attached identity is stored
        self._codec = codec
        self.needs: Needs | None = None  # None: full-attention rows are all there is
        self.identity = self.host = ""
        self.last_number = 0
        self.held_bytes = 0  # allocated, of all that is stored
        self.hidden: deque[tuple[tuple[Segment, ...], tuple[Side, ...]]] = deque()  # to be removed; see ``edit.settle``
        self._lost: dict[bytes, str] = {}
        self._uses: dict[int, float] = {}  # times of use not yet in the manifest
        self._beside: dict[int, dict[str, Side]] = {}  # side files by segment and file, those that are hidden too
        self._unreadable: list[tuple[float, Segment | Side]] = []  # until when
        self._told: set[str] = set()  # files of which that was told
        self.opened: tuple[int, list[SegmentRow]] | None = None  # the manifest's rows, after so many commits

    def note_written(self, n_bytes: int) -> None:
        """A KV file of so many bytes was written. I/O thread."""
        self.counts.bytes_written += n_bytes
        self.admission.spend(n_bytes)

    # opening

    def attach(
        self, identity: str, layout: Layout, host: str, chunk_tokens: int, rows: Sequence[SegmentRow] | None
    ) -> None:
        """Index the pieces of one identity; ``rows``: what the manifest has, where that was read already."""
        with self.lock:
            self.identity, self.layout, self.host = identity, layout, host
            self.codec = self._codec if is_lossy(layout, self._codec) else "exact"
            self.needs = None if layout.is_full else Needs.of(layout, chunk_tokens)
            for segment in self.segments.values():
                segment.pieces = []
            self.index = self.build_index(identity, chunk_tokens, self.segments, rows)

    def build_index(
        self,
        identity: str,
        chunk_tokens: int,
        segments: dict[int, Segment],
        rows: Sequence[SegmentRow] | None = None,
    ) -> Index:
        """Index those of an identity's pieces that lie in ``segments``, which are given them. ~3 us a piece."""
        index = Index(root_id(identity), chunk_tokens, self.read_ids)
        mine = self.manifest.segments(identity) if rows is None else [r for r in rows if r.identity == identity]
        index.fill(
            piece
            for row in mine
            if row.segment in segments and row.chunk_tokens == chunk_tokens and not segments[row.segment].is_hidden
            for piece in _pieces(segments[row.segment], row)
        )
        return index

    # looking up

    def plan(self, ids: Ids) -> Plan:
        """What to restore the longest prefix of ``ids`` from that can be restored."""
        assert self.index is not None
        self._read_again()
        if self.needs is None:
            return Plan(self.index.plan(ids))
        return best_plan(self.index.paths(ids, every_end=True), self.sides, self.needs)

    def path(self, file: Segment | Side) -> Path:
        """Where a segment's or side file is."""
        return self.folder / file.file

    def read_ids(self, piece: Piece) -> Ids | None:
        """A piece's ids: the last bytes of its file; None where they cannot be read. Not verified."""
        segment = piece.segment
        if segment.ids is not None:
            return segment.ids[piece.offset : piece.offset + piece.n_tokens]
        try:
            fd = os.open(f"{self.folder}/{segment.file}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            raw = os.pread(fd, 4 * piece.n_tokens, segment.n_bytes - 4 * (segment.n_tokens - piece.offset))
        except OSError:
            return None
        finally:
            os.close(fd)
        return np.frombuffer(raw[: len(raw) // 4 * 4], "<u4")

    def reason(self, parent: bytes, next_chunk: bytes | None) -> str | None:
        """Why nothing is stored after ``parent``, where that is remembered."""
        if self.index is not None and any(p.segment.is_unreadable for p in self.index.children(parent)):
            return "unreadable"
        found = self._lost.get(next_chunk) if next_chunk is not None else None
        return found or self._lost.get(b"<" + parent)

    def touch(self, segments: Iterable[Segment]) -> None:
        """Used now, and so is everything before them."""
        now = time.time()
        with self.lock:
            for segment in segments:
                at: Segment | None = segment
                while at is not None and at.used_s < now:
                    at.used_s = now
                    self._uses[at.number] = now
                    at = self.segments.get(at.parent_number) if at.parent_number is not None else None

    def take_uses(self) -> dict[int, float]:
        """Times of use that the manifest has not got yet, handed over to be written."""
        with self.lock:
            uses, self._uses = self._uses, {}
        return uses

    @property
    def has_unwritten_uses(self) -> bool:
        """Whether ``take_uses`` has something to give."""
        return bool(self._uses)

    # losing

    def postpone(self, file: Segment | Side, text: str) -> None:
        """Serve nothing of a file for a while: that it cannot be read now says nothing of its bytes. Any thread."""
        with self.lock:
            file.is_unreadable = True
            self._unreadable.append((self.clock() + REREAD_S, file))
            is_new = file.file not in self._told
            self._told.add(file.file)
        tell = log.warning if is_new else log.debug
        tell("store: KV cannot be read now and is computed meanwhile; its file stays: %s", text)

    def _read_again(self) -> None:
        """Try again what was postponed long enough. Under the lock."""
        if self._unreadable and self._unreadable[0][0] <= (now := self.clock()):
            for until, file in self._unreadable:
                file.is_unreadable = until > now
            self._unreadable = [one for one in self._unreadable if one[0] > now]

    @property
    def n_unreadable(self) -> int:
        """How many files cannot be read now."""
        return len({file.file for _, file in self._unreadable})

    def hide(self, segments: Collection[Segment], reason: str | None, sides: Collection[Side] = ()) -> None:
        """Let segments with all that follows them, and side files, be found no more, and be removed by the next Edit.

        ``reason``: what a later look-up is told. Memory only; under the lock, any thread.
        """
        gone = self.family(segments)
        for segment in gone:
            segment.is_hidden = True
            if reason is not None:
                self.remember(segment.parent, [(p.id, p.made, p.head) for p in segment.pieces], reason)
        for segment in reversed(gone):
            self.unindex(segment)
            for side in self.beside(segment):
                self._unfind(side)
        for side in sides:
            self._unfind(side)
        self.hidden.append((tuple(gone), tuple(sides)))

    def family(self, segments: Collection[Segment]) -> list[Segment]:
        """Segments with all that follows them, parents before children. Under the lock."""
        found = {segment.number: segment for segment in segments}
        for number in sorted(self.segments):  # a parent has the smaller number
            other = self.segments[number]
            if other.parent_number in found:
                found.setdefault(number, other)
        return [found[number] for number in sorted(found)]

    def remember(self, parent: bytes, pieces: Sequence[tuple[bytes, int, bytes]], reason: str) -> None:
        """Note why some pieces, the first of which follows ``parent``, are no longer stored."""
        for id, _, _ in pieces:
            self._lost[id] = self._lost[b"<" + parent] = reason
            parent = id
        while len(self._lost) > _REASONS:
            del self._lost[next(iter(self._lost))]

    def forget_reason(self, parent: bytes, piece: bytes) -> None:
        """A piece is being saved again."""
        self._lost.pop(piece, None)
        self._lost.pop(b"<" + parent, None)

    # the set itself: what is entered by a save, and what ``edit.apply`` alone changes; under the lock

    def enter(self, segment: Segment) -> None:
        """Enter a segment; where it is stored, its bytes count, and the index gets the pieces that it has not got."""
        self.segments[segment.number] = segment
        if not segment.is_ready:
            return
        self.held_bytes += segment.held_bytes
        if self.index is not None and segment.identity == self.identity:
            for piece in segment.pieces:
                if self.index.pieces.get(piece.id) is not piece:
                    self.index.add(piece)

    def leave(self, segment: Segment) -> None:
        """Take a segment out, and its pieces; its side files are the caller's to take or to move."""
        self.unindex(segment)
        self._uses.pop(segment.number, None)
        if self.segments.get(segment.number) is segment:
            del self.segments[segment.number]
            self.held_bytes -= segment.held_bytes if segment.is_ready else 0

    def enter_side(self, side: Side) -> None:
        """Enter a side file; where it is stored, its bytes count."""
        self.sides[side.piece] = self._beside.setdefault(side.segment, {})[side.file] = side
        self.held_bytes += side.held_bytes if side.is_ready else 0

    def leave_side(self, side: Side) -> None:
        """Take a side file out."""
        self._unfind(side)
        held = self._beside.get(side.segment, {})
        if held.pop(side.file, None) is not None:
            self.held_bytes -= side.held_bytes if side.is_ready else 0
            if not held:
                del self._beside[side.segment]

    def edited(self) -> None:
        """Nothing: called after each Edit, on the I/O thread, for tests to check what is stored."""

    def rehang(self, old: int, new: int) -> None:
        """What hung on a segment hangs on the one that takes its place, its side files too."""
        for other in self.segments.values():
            if other.parent_number == old:
                other.parent_number = new
        moved = self._beside.pop(old, {})
        for side in moved.values():
            side.segment = new
        if moved:
            self._beside.setdefault(new, {}).update(moved)

    def beside(self, segment: Segment) -> list[Side]:
        """The side files of a segment's pieces, hidden ones too."""
        return list(self._beside.get(segment.number, {}).values())

    def all_sides(self) -> list[Side]:
        """Every side file, hidden ones too."""
        return [side for held in self._beside.values() for side in held.values()]

    def unindex(self, segment: Segment) -> None:
        """Take a segment's pieces out of the index."""
        for piece in reversed(segment.pieces):
            self.abandoned.discard(piece.id)
            if self.index is not None and self.index.pieces.get(piece.id) is piece:
                self.index.remove(piece)

    def _unfind(self, side: Side) -> None:
        if self.sides.get(side.piece) is side:
            del self.sides[side.piece]


def _pieces(segment: Segment, row: SegmentRow) -> list[Piece]:
    """The pieces of a row, which become those of its segment."""
    parent, size, found = row.parent, row.chunk_tokens, []
    for i, (id, made, head) in enumerate(unpack(row.pieces)):
        found.append(Piece(id, parent, segment, i, size, made, head))
        parent = id
    last = found[-1]
    last.n_tokens = row.n_tokens - (len(found) - 1) * size
    last.head = last.head[: 4 * last.n_tokens]
    segment.pieces = found
    return found
