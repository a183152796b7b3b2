"""What KV is stored, where: the index, the segment files and their rows in the manifest, kept in step.

Look-ups come from the engine thread and touch memory (at most a few KB of token ids are read from a file); everything
that changes files or rows runs on the I/O thread. One lock guards the index and is never held while the disk is
waited for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from threading import RLock

import numpy as np

from agent_memory.config import Codec
from agent_memory.errors import AgentMemoryError
from agent_memory.kvcache.coding import is_lossy, token_bytes
from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.chunks import piece_id
from agent_memory.store.files import Files
from agent_memory.store.format import KV_FOLDER, SUFFIX
from agent_memory.store.health import Health
from agent_memory.store.io import IOThread
from agent_memory.store.manifest import Manifest
from agent_memory.store.planner import HEAD_IDS, Ids, Index, Piece, Segment, n_tokens, sort_key
from agent_memory.store.points import Held, Needs, Plan, Side, best_plan
from agent_memory.store.provenance import Provenance, Run, coded_runs, missing
from agent_memory.store.quota import Quota
from agent_memory.store.records import SegmentRow
from agent_memory.store.renewal import plan_renewals
from agent_memory.store.rows import root_id, unpack
from agent_memory.store.saves import Save
from agent_memory.store.sides import plan_sides, void_side
from agent_memory.store.writing import WriteAdmission

log = logging.getLogger("agent_memory.store")

REREAD_S = 5.0  #: a file that could not be read is tried again after so long
_REASONS = 8192  #: lost pieces whose reason is remembered


class Catalog:
    """Segments of all identities; pieces of the attached one. ``root``: the store's folder."""

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
        is_here: Callable[[], bool] = lambda: True,
    ) -> None:
        self._is_here = is_here  # whether the folder is still the one that was opened
        self.folder, self.manifest, self.io = root / KV_FOLDER, manifest, io
        self.quota, self.admission, self.files, self.health = quota, admission, files, health
        self.lock = RLock()
        self.clock: Callable[[], float] = time.time
        self.on_commit: Callable[[], None] = lambda: None  # after each save, on the I/O thread
        self.is_pinned: Callable[[Segment], bool] = lambda segment: False  # whether a segment must not be evicted
        self.segments: dict[int, Segment] = {}
        self.sides: dict[bytes, Side] = {}  # by piece, of all identities
        self.abandoned: set[bytes] = set()  # pieces that only turns since told otherwise have led to
        self.unfinished: dict[str, int] = {}  # bytes of files that are being written; I/O thread
        self.skipped: Counter[str] = Counter()  # saves that were not begun or given up, by reason
        self.index: Index | None = None
        self.layout: Layout | None = None
        self.codec: Codec = "exact"  # in which new KV of the attached identity is stored
        self._codec = codec
        self.needs: Needs | None = None  # None: full-attention rows are all there is
        self.identity = self.host = ""
        self.damage = self.save_failures = self.bytes_written = self.last_number = 0
        self.held_bytes = 0  # allocated, of all KV files that can be read
        self._lost: dict[bytes, str] = {}
        self._uses: dict[int, float] = {}  # times of use not yet in the manifest
        self._beside: dict[int, dict[bytes, Side]] = {}  # side files by segment
        self.orphans: list[str] = []  # side files of segments that were taken out
        self.opened: tuple[int, list[SegmentRow]] | None = None  # the manifest's rows, after so many commits
        self._unreadable: list[tuple[float, Segment | Side]] = []  # until when
        self._told: set[str] = set()  # files of which that was told
        self.unwritten: dict[int | bytes, int] = {}  # tokens not on disk, by agent or head: see ``note_unwritten``
        self._is_told = False  # that some is not
        self.undropped: list[Segment] = []  # taken out, but the disk refused to drop their rows

    def note_written(self, n_bytes: int) -> None:
        """A KV file of so many bytes was written. I/O thread."""
        self.bytes_written += n_bytes
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
            if row.segment in segments and row.chunk_tokens == chunk_tokens
            for piece in _pieces(segments[row.segment], row)
        )
        return index

    # looking up

    def plan(self, ids: Ids) -> Plan:
        """What to restore the longest prefix of ``ids`` from that can be restored."""
        assert self.index is not None
        self._show()
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

    # losing

    def void(self, segment: Segment | Side, reason: str, text: str) -> None:
        """A damaged or missing segment and all that follows it, or a side file, is forgotten; one that is "unreadable"
        is kept, and hidden for a while. Any thread; no raise.
        """
        if reason == "unreadable" or not self._is_here():
            self.hide(segment, text)
            return
        if isinstance(segment, Side):
            void_side(self, segment, reason, text)
            return
        with self.lock:
            if self.segments.get(segment.number) is not segment or self.index is None:
                return
            self.damage += 1
            gone = self.forget(segment, reason)
        log.warning("store: a segment is %s and will be computed again: %s", reason, text)
        with contextlib.suppress(AgentMemoryError):  # the store is closing: the next open finds the damage again
            self.io.submit(lambda: self.drop(gone))

    def hide(self, file: Segment | Side, text: str) -> None:
        """Serve nothing of a file for a while: that it cannot be read now says nothing of its bytes. Any thread."""
        with self.lock:
            file.is_unreadable = True
            self._unreadable.append((self.clock() + REREAD_S, file))
            is_new = file.file not in self._told
            self._told.add(file.file)
        tell = log.warning if is_new else log.debug
        tell("store: KV cannot be read now and is computed meanwhile; its file stays: %s", text)

    def _show(self) -> None:
        """Try again what was hidden long enough. Under the lock."""
        if self._unreadable and self._unreadable[0][0] <= (now := self.clock()):
            for until, file in self._unreadable:
                file.is_unreadable = until > now
            self._unreadable = [one for one in self._unreadable if one[0] > now]

    @property
    def n_unreadable(self) -> int:
        """How many files cannot be read now."""
        return len({file.file for _, file in self._unreadable})

    def note_unwritten(self, agent_id: int | None, head: bytes | None, n_tokens: int) -> None:
        """KV that was to be written is not on disk; until the agent's, or one that ends with ``head``, is."""
        key = agent_id if agent_id is not None else head
        if key is not None and n_tokens:
            self.unwritten[key] = n_tokens
            while len(self.unwritten) > _REASONS:
                del self.unwritten[next(iter(self.unwritten))]

    def note_saved(self, agent_id: int | None, head: bytes | None) -> None:
        """All KV of a lineage is on disk."""
        for key in (agent_id, head):
            if key is not None:
                self.unwritten.pop(key, None)

    def tell_unwritten(self) -> None:
        """Say once, until all of it is written, that KV is not on disk though it was to be; a failing disk says so."""
        unwritten = dict(self.unwritten)
        if unwritten and not self._is_told and self.health.state == "ok":
            log.warning(
                "store: the logs are on disk, KV of %d tokens of %d conversations is not: it stays in memory, and is "
                "written with their next turn that the disk takes, or computed again after a restart",
                sum(unwritten.values()),
                len(unwritten),
            )
        self._is_told = bool(unwritten)

    def enter_side(self, side: Side) -> None:
        """Enter a side file; its bytes count once it is ready."""
        self.sides[side.piece] = self._beside.setdefault(side.segment, {})[side.piece] = side
        self.held_bytes += side.held_bytes if side.is_ready else 0

    def take_side(self, side: Side) -> None:
        """Remove a side file from memory."""
        del self.sides[side.piece], self._beside[side.segment][side.piece]
        if not self._beside[side.segment]:
            del self._beside[side.segment]
        self.held_bytes -= side.held_bytes if side.is_ready else 0

    def move_sides(self, numbers: Collection[int], into: int) -> None:
        """Side files of some segments are another's, which has taken over their pieces. Under the lock."""
        for number in numbers:
            for side in self._beside.pop(number, {}).values():
                side.segment = into
                self._beside.setdefault(into, {})[side.piece] = side

    def forget(self, segment: Segment, reason: str) -> list[Segment]:
        """Remove a segment and all that follows it from memory; what was removed."""
        assert self.index is not None
        gone: dict[int, Segment] = {segment.number: segment}
        for piece in self.index.descendants(segment.pieces):
            gone[piece.segment.number] = piece.segment
        for one in gone.values():
            self.take_out(one, reason)
        return list(gone.values())

    def take_out(self, segment: Segment, reason: str | None) -> None:
        """Remove a segment from memory; ``reason``: what a later look-up is told."""
        if reason is not None:
            self.remember(segment.parent, [(p.id, p.made, p.head) for p in segment.pieces], reason)
        if self.index is not None:
            for piece in reversed(segment.pieces):
                self.abandoned.discard(piece.id)
                if self.index.pieces.get(piece.id) is piece:
                    self.index.remove(piece)
        for side in self.beside(segment):
            self.take_side(side)
            self.orphans.append(side.file)
        del self.segments[segment.number]
        self._uses.pop(segment.number, None)
        if segment.is_ready:
            self.held_bytes -= segment.held_bytes

    def remember(self, parent: bytes, pieces: Sequence[tuple[bytes, int, bytes]], reason: str) -> None:
        """Note why some pieces, the first of which follows ``parent``, are no longer stored."""
        for id, _, _ in pieces:
            self._lost[id] = self._lost[b"<" + parent] = reason
            parent = id
        while len(self._lost) > _REASONS:
            del self._lost[next(iter(self._lost))]

    def drop(self, gone: Sequence[Segment]) -> None:
        """Rows first, then files. I/O thread. What the disk refuses to drop stays counted, and is tried again."""
        with self.lock:
            todo, self.undropped = self.undropped + [s for s in gone if s.is_ready], []
        if todo:
            try:
                self.manifest.commit_segments(drop=[s.number for s in todo])
            except sqlite3.OperationalError as error:
                self.health.failed("KV", error)
                self.undropped = todo
                return
        for segment in todo:
            self.files.unlink(self.path(segment))
        self.clear_orphans()

    def clear_orphans(self) -> None:
        """Unlink side files whose segments have left the manifest. I/O thread."""
        with self.lock:
            if self.undropped:  # their rows, and those of their side files, are still there
                return
            orphans, self.orphans = self.orphans, []
        for file in orphans:
            self.files.unlink(self.folder / file)

    # saving

    def begin_save(
        self,
        ids: Ids,
        lineage: Provenance,
        agent_id: int | None,
        held: Held,
        *,
        is_promised: bool,
        is_turn: bool = True,
    ) -> Save:
        """Plan a save and enter its pieces as not yet readable; an empty one where it is not worth a write."""
        with self.lock:
            index, layout = self.index, self.layout
            if index is None or layout is None or not layout.is_storable or not len(ids):
                return Save(None)
            former = n_tokens(index.plan(ids, ready=False)) if self.needs is not None else 0
            missed, head, kept = missing(index, ids, is_cuttable=self.needs is None)
            runs = list(coded_runs(missed, index, ids, lineage, self.codec))
            self.touch([kept.segment] if kept is not None else [])
            if reason := self._refusal(index, layout, ids, runs, is_promised):
                self.skipped[reason] += 1
                if reason == "disk":
                    self.note_unwritten(agent_id, None, sum(r.stop - r.start for r in runs))
                log.debug("store: a save of %d tokens is not written: %s", len(ids), reason)
                return Save(None)
            segments = []
            for run in runs:
                segments.append(self._plan_segment(index, ids, lineage, run))
                head = segments[-1].pieces[-1].id
            sides = plan_sides(self, head, lineage, held)
            renewals = plan_renewals(self, index.chunks(ids, ready=True), ids, lineage)
            return Save(
                self,
                tuple(segments),
                runs,
                sides,
                renewals,
                head=head,
                former=former,
                agent_id=agent_id,
                is_turn=is_turn,
            )

    def _refusal(self, index: Index, layout: Layout, ids: Ids, runs: Sequence[Run], is_promised: bool) -> str | None:
        """Why a save is not begun."""
        if not self.health.may_save:
            return "disk"
        if not runs:
            return None
        own = ids[runs[0].start : min(runs[0].start + index.chunk_tokens, runs[0].stop)]
        first = piece_id(runs[0].before.id if runs[0].before is not None else index.root, own)
        n_tokens = sum(r.stop - r.start for r in runs)
        n_bytes = sum((r.stop - r.start) * token_bytes(layout, r.codec) for r in runs)
        if n_bytes > self.quota.budget_bytes:
            return "larger than the disk budget"
        return self.admission.refusal(first, n_tokens, n_bytes, is_promised=is_promised)

    def _plan_segment(self, index: Index, ids: Ids, lineage: Provenance, run: Run) -> Segment:
        start, stop, before = run.start, run.stop, run.before
        if before is None and start:
            before = self.segments[self.last_number].pieces[-1]  # the part planned just before this one
        self.last_number += 1
        parent = before.id if before is not None else index.root
        segment = Segment(
            number=self.last_number,
            identity=self.identity,
            file=f"{self.identity[:16]}/{uuid.uuid4().hex}{SUFFIX}",
            parent=parent,
            parent_number=before.segment.number if before is not None else None,
            start=start,
            n_tokens=stop - start,
            chunk_tokens=index.chunk_tokens,
            exactness=lineage.exactness if run.codec == "exact" else "quantized",
            codec=run.codec,
            host=self.host,
            used_s=time.time(),
            ids=ids[start:stop].copy(),
        )
        self.segments[segment.number] = segment
        for i, at in enumerate(range(start, stop, index.chunk_tokens)):
            own = ids[at : min(at + index.chunk_tokens, stop)]
            piece = Piece(
                piece_id(parent, own),
                parent,
                segment,
                i,
                len(own),
                lineage.made_by(at, at + len(own)),
                sort_key(own[:HEAD_IDS]),
            )
            segment.pieces.append(piece)
            index.add(piece, own)
            self._lost.pop(piece.id, None)
            self._lost.pop(b"<" + parent, None)
            parent = piece.id
        return segment

    def beside(self, segment: Segment) -> list[Side]:
        """The side files of a segment's pieces. Under the lock."""
        return list(self._beside.get(segment.number, {}).values())

    @property
    def has_unwritten_uses(self) -> bool:
        """Whether ``flush_uses`` has something to write."""
        return bool(self._uses)

    def take_uses(self) -> dict[int, float]:
        """Times of use that the manifest has not got yet, handed over to be written."""
        with self.lock:
            uses, self._uses = self._uses, {}
        return uses

    def flush_uses(self) -> None:
        """Write times of use. I/O thread."""
        used = self.take_uses()
        if used:
            self.manifest.commit_segments(used=used)


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
