"""What KV is stored, where: the index, the segment files and their rows in the manifest, kept in step.

Look-ups come from the engine thread and touch memory (at most a few KB of token ids are read from a file); everything
that changes files or rows runs on the I/O thread. One lock guards the index and is never held while the disk is
waited for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import RLock

import numpy as np

from agent_memory.config import Codec
from agent_memory.errors import AgentMemoryError
from agent_memory.kvcache.chunks import piece_id
from agent_memory.kvcache.coding import is_lossy, token_bytes
from agent_memory.kvcache.layout import Layout
from agent_memory.store.files import list_files, unlink
from agent_memory.store.format import MAX_DELTAS, SEGMENT_CHUNKS, SUFFIX
from agent_memory.store.io import IOThread
from agent_memory.store.manifest import Manifest
from agent_memory.store.planner import HEAD_IDS, Ids, Index, Piece, Segment, n_tokens, sort_key
from agent_memory.store.points import Held, Needs, Plan, Side, best_plan
from agent_memory.store.policy import Candidate, victims
from agent_memory.store.provenance import Provenance, Run, coded_runs
from agent_memory.store.renewal import plan_renewals
from agent_memory.store.rows import root_id, segment_of, unpack
from agent_memory.store.saves import Save
from agent_memory.store.sides import plan_sides, void_side

log = logging.getLogger("agent_memory.store")

_REASONS = 8192  #: lost pieces whose reason is remembered


class Catalog:
    """Segments of all identities; pieces of the attached one. ``disk_bytes``: the budget of all KV files together."""

    def __init__(self, folder: Path, manifest: Manifest, io: IOThread, disk_bytes: int, codec: Codec = "exact") -> None:
        self.folder, self.manifest, self.io, self.budget_bytes = folder, manifest, io, disk_bytes
        self.lock = RLock()
        self.segments: dict[int, Segment] = {}
        self.sides: dict[bytes, Side] = {}  # by piece, of all identities
        self.is_pinned: Callable[[Segment], bool] = lambda segment: False  # whether a segment must not be evicted
        self.abandoned: set[bytes] = set()  # pieces that only turns since told otherwise have led to
        self.index: Index | None = None
        self.layout: Layout | None = None
        self.codec: Codec = "exact"  # in which new KV of the attached identity is stored
        self._codec = codec
        self.needs: Needs | None = None  # None: full-attention rows are all there is
        self.identity = self.host = ""
        self.damage = self.save_failures = self.bytes_written = self.n_bytes = 0
        self._lost: dict[bytes, str] = {}
        self._uses: dict[int, float] = {}  # times of use not yet in the manifest
        self._beside: dict[int, dict[bytes, Side]] = {}  # side files by segment
        self._orphans: list[str] = []  # side files of segments that were taken out
        self._numbers = 0

    # opening

    def sweep(self) -> None:
        """Read the manifest, forget segments whose file is gone, remove files that it does not know."""
        rows = self.manifest.segments()
        found = list_files(self.folder)
        gone = {r.segment for r in rows if found.get(r.file) != r.n_bytes}
        if gone:
            self.damage += len(gone)
            log.warning(
                "store: %d of %d segments are missing or have a wrong size; they will be computed again",
                len(gone),
                len(rows),
            )
        for row in rows:  # parents come first
            if row.segment in gone or (row.parent_segment is not None and row.parent_segment not in self.segments):
                gone.add(row.segment)
                self._remember(row.parent, unpack(row.pieces), "missing")
            else:
                self.segments[row.segment] = segment_of(row)
                self.n_bytes += row.n_bytes
        if gone:
            self.manifest.commit_segments(drop=gone)
        self._sweep_sides(found)
        known = {one.file for held in (self.segments, self.sides) for one in held.values()}
        for name in found.keys() - known:
            unlink(self.folder / name)
        self._numbers = max((r.segment for r in rows), default=0)

    def _sweep_sides(self, found: dict[str, int]) -> None:
        """As ``sweep``, for side files: a missing one costs a place to restore at."""
        sides = self.manifest.sides()
        for side in sides:
            if side.segment in self.segments and found.get(side.file) == side.n_bytes:
                self.enter_side(side)
        lost = [s for s in sides if s.piece not in self.sides]
        self.damage += sum(s.segment in self.segments for s in lost)
        if lost:
            log.warning("store: %d side files are missing or have a wrong size; KV will be computed again", len(lost))
            self.manifest.drop_sides([s.piece for s in lost])

    def attach(self, identity: str, layout: Layout, host: str, chunk_tokens: int) -> None:
        """Index the pieces of one identity."""
        with self.lock:
            self.identity, self.layout, self.host = identity, layout, host
            self.codec = self._codec if is_lossy(layout, self._codec) else "exact"
            self.needs = None if layout.is_full else Needs.of(layout, chunk_tokens)
            for segment in self.segments.values():
                segment.pieces = []
            self.index = self.build_index(identity, chunk_tokens, self.segments)

    def build_index(self, identity: str, chunk_tokens: int, segments: dict[int, Segment]) -> Index:
        """Index those of an identity's pieces that lie in ``segments``, which are given them."""
        index = Index(root_id(identity), chunk_tokens, self.read_ids)
        for row in self.manifest.segments(identity):
            segment = segments.get(row.segment)
            if segment is None or row.chunk_tokens != chunk_tokens:
                continue
            parent = row.parent
            for i, (id, made, head) in enumerate(unpack(row.pieces)):
                n_tokens = min(chunk_tokens, row.n_tokens - i * chunk_tokens)
                piece = Piece(id, parent, segment, i, n_tokens, made, head[: 4 * n_tokens])
                segment.pieces.append(piece)
                index.add(piece)
                parent = id
        return index

    # looking up

    def plan(self, ids: Ids) -> Plan:
        """What to restore the longest prefix of ``ids`` from that can be restored."""
        assert self.index is not None
        if self.needs is None:
            return Plan(self.index.plan(ids))
        return best_plan(self.index.paths(ids), self.sides, self.needs)

    def path(self, file: Segment | Side) -> Path:
        """Where a segment's or side file is."""
        return self.folder / file.file

    def read_ids(self, piece: Piece) -> Ids | None:
        """A piece's ids: the last bytes of its file; None where they cannot be read. Not verified."""
        segment = piece.segment
        if segment.ids is not None:
            return segment.ids[piece.offset : piece.offset + piece.n_tokens]
        try:
            fd = os.open(f"{self.folder}/{segment.file}", os.O_RDONLY | os.O_CLOEXEC)
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
        """A damaged or missing segment and all that follows it, or a side file, is forgotten. Any thread; no raise."""
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

    def enter_side(self, side: Side) -> None:
        """Enter a side file; its bytes count once it is ready."""
        self.sides[side.piece] = self._beside.setdefault(side.segment, {})[side.piece] = side
        self.n_bytes += side.n_bytes if side.is_ready else 0

    def take_side(self, side: Side) -> None:
        """Remove a side file from memory."""
        del self.sides[side.piece], self._beside[side.segment][side.piece]
        if not self._beside[side.segment]:
            del self._beside[side.segment]
        self.n_bytes -= side.n_bytes if side.is_ready else 0

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
            self._remember(segment.parent, [(p.id, p.made, p.head) for p in segment.pieces], reason)
        if self.index is not None:
            for piece in reversed(segment.pieces):
                self.abandoned.discard(piece.id)
                if self.index.pieces.get(piece.id) is piece:
                    self.index.remove(piece)
        for side in list(self._beside.get(segment.number, {}).values()):
            self.take_side(side)
            self._orphans.append(side.file)
        del self.segments[segment.number]
        self._uses.pop(segment.number, None)
        if segment.is_ready:
            self.n_bytes -= segment.n_bytes

    def _remember(self, parent: bytes, pieces: Sequence[tuple[bytes, int, bytes]], reason: str) -> None:
        for id, _, _ in pieces:
            self._lost[id] = self._lost[b"<" + parent] = reason
            parent = id
        while len(self._lost) > _REASONS:
            del self._lost[next(iter(self._lost))]

    def drop(self, gone: Sequence[Segment]) -> None:
        """Rows first, then files. I/O thread."""
        ready = [s for s in gone if s.is_ready]
        if ready:
            self.manifest.commit_segments(drop=[s.number for s in ready])
        for segment in ready:
            unlink(self.path(segment))
        self.clear_orphans()

    def clear_orphans(self) -> None:
        """Unlink side files whose segments have left the manifest. I/O thread."""
        with self.lock:
            orphans, self._orphans = self._orphans, []
        for file in orphans:
            unlink(self.folder / file)

    # saving

    def begin_save(self, ids: Ids, lineage: Provenance, agent_id: int | None, held: Held) -> Save:
        """Plan a save and enter its pieces as not yet readable."""
        with self.lock:
            index, layout = self.index, self.layout
            if index is None or layout is None or not layout.is_storable or not len(ids):
                return Save(None)
            former = n_tokens(index.plan(ids, ready=False)) if self.needs is not None else 0
            chunks = index.chunks(ids, ready=False)
            missing, head, kept = self._missing(index, ids, chunks)
            runs = list(coded_runs(missing, index, ids, lineage, self.codec))
            self.touch([kept.segment] if kept is not None else [])
            if sum((r.stop - r.start) * token_bytes(layout, r.codec) for r in runs) > self.budget_bytes:
                log.debug("store: a save of %d tokens is larger than the whole disk budget", len(ids))
                return Save(None)
            segments = []
            for run in runs:
                segments.append(self._plan_segment(index, ids, lineage, run))
                head = segments[-1].pieces[-1].id
            sides = plan_sides(self, head, lineage, held)
            renewals = plan_renewals(self, chunks, ids, lineage)
            return Save(self, tuple(segments), runs, sides, renewals, head=head, former=former, agent_id=agent_id)

    def _missing(self, index: Index, ids: Ids, chunks: list[Piece]) -> tuple[list[Run], bytes, Piece | None]:
        """What to write, head so far, last stored piece."""
        size = index.chunk_tokens
        done, full = len(chunks) * size, len(ids) // size * size
        last = chunks[-1] if chunks else None
        step = SEGMENT_CHUNKS * size
        runs = [Run(a, min(a + step, full), last if a == done else None) for a in range(done, full, step)]
        if runs or full == len(ids):
            if full < len(ids):
                runs.append(Run(full, len(ids), None))
            return runs, last.id if last else index.root, last
        plan = index.plan(ids, ready=False)
        if n_tokens(plan) == len(ids) and (self.needs is None or plan[-1][0].n_tokens == plan[-1][1]):
            return [], plan[-1][0].id, plan[-1][0]  # a longer piece of another lineage may cover the tail
        chain = max(
            index.deltas(last.id if last else index.root, ids[full:], ready=False),
            key=lambda c: sum(p.n_tokens for p in c),
        )
        if len(chain) >= MAX_DELTAS:
            chain = []
        before = chain[-1] if chain else last
        return [Run(full + sum(p.n_tokens for p in chain), len(ids), before)], index.root, before

    def _plan_segment(self, index: Index, ids: Ids, lineage: Provenance, run: Run) -> Segment:
        start, stop, before = run.start, run.stop, run.before
        if before is None and start:
            before = self.segments[self._numbers].pieces[-1]  # the part planned just before this one
        self._numbers += 1
        parent = before.id if before is not None else index.root
        segment = Segment(
            number=self._numbers,
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

    def enforce(self) -> None:
        """Evict until the files fit the budget. I/O thread."""
        with self.lock:
            excess = self.n_bytes - self.budget_bytes
            if excess <= 0:
                return
            table = [
                Candidate(s.number, s.parent_number, self._held_bytes(s), s.used_s, not s.is_ready or self.is_pinned(s))
                for s in self.segments.values()
            ]
            gone = [self.segments[n] for n in victims(table, excess)]
            for segment in gone:
                self.take_out(segment, "evicted")
        self.drop(gone)
        log.debug("store: evicted segments=%d", len(gone))

    def _held_bytes(self, segment: Segment) -> int:
        return segment.n_bytes + sum(side.n_bytes for side in self._beside.get(segment.number, {}).values())

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
