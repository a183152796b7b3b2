"""What KV is stored, where: the index, the segment files and their rows in the manifest, kept in step.

Look-ups come from the engine thread and touch memory (at most a few KB of token ids are read from a file); everything
that changes files or rows runs on the I/O thread. One lock guards the index and is never held while the disk is
waited for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from agent_memory.errors import AgentMemoryError
from agent_memory.kvcache.chunks import ID_BYTES, piece_id
from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.store.format import MAX_DELTAS, SEGMENT_CHUNKS, SUFFIX, TEMP_SUFFIX, SegmentFacts
from agent_memory.store.io import IOThread
from agent_memory.store.manifest import Manifest, SegmentRow
from agent_memory.store.planner import HEAD_IDS, Ids, Index, Piece, Segment, sort_key
from agent_memory.store.policy import Candidate, victims
from agent_memory.store.saves import Save
from agent_memory.store.segments import DamageError, SegmentWriter, copy_prefix, sync_folder
from agent_memory.types import Exactness

log = logging.getLogger("agent_memory.store")

_REASONS = 8192  #: lost pieces whose reason is remembered
_HEAD_BYTES = 4 * HEAD_IDS
_PIECE_BYTES = ID_BYTES + 1 + _HEAD_BYTES
_WRITE_ERRORS = (OSError, sqlite3.Error, ValueError, DamageError, AgentMemoryError)


class Catalog:
    """Segments of all identities; pieces of the attached one. ``disk_bytes``: the budget of all KV files together."""

    def __init__(self, folder: Path, manifest: Manifest, io: IOThread, disk_bytes: int) -> None:
        self.folder, self.manifest, self.io, self.budget_bytes = folder, manifest, io, disk_bytes
        self.lock = RLock()
        self.segments: dict[int, Segment] = {}
        self.index: Index | None = None
        self.layout: Layout | None = None
        self.identity = self.host = ""
        self.damage = self.save_failures = self.bytes_written = self.n_bytes = 0
        self._lost: dict[bytes, str] = {}
        self._used: dict[int, float] = {}  # times of use not yet in the manifest
        self._numbers = 0

    # opening

    def sweep(self) -> None:
        """Read the manifest, forget segments whose file is gone, remove files that it does not know."""
        rows = self.manifest.segments()
        found = _files(self.folder)
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
                self._remember(row.parent, _unpack(row.pieces), "missing")
            else:
                self.segments[row.segment] = _segment(row)
                self.n_bytes += row.n_bytes
        if gone:
            self.manifest.commit_segments(drop=gone)
        known = {s.file for s in self.segments.values()}
        for name in found.keys() - known:
            _unlink(self.folder / name)
        self._numbers = max((r.segment for r in rows), default=0)

    def attach(self, identity: str, layout: Layout, host: str, chunk_tokens: int) -> None:
        """Index the pieces of one identity."""
        with self.lock:
            self.identity, self.layout, self.host = identity, layout, host
            for segment in self.segments.values():
                segment.pieces = []
            self.index = self._index(identity, chunk_tokens, self.segments)

    def _index(self, identity: str, chunk_tokens: int, segments: dict[int, Segment]) -> Index:
        index = Index(root_id(identity), chunk_tokens, self.read_ids)
        for row in self.manifest.segments(identity):
            segment = segments.get(row.segment)
            if segment is None or row.chunk_tokens != chunk_tokens:
                continue
            parent = row.parent
            for i, (id, made, head) in enumerate(_unpack(row.pieces)):
                n_tokens = min(chunk_tokens, row.n_tokens - i * chunk_tokens)
                piece = Piece(id, parent, segment, i, n_tokens, made, head[: 4 * n_tokens])
                segment.pieces.append(piece)
                index.add(piece)
                parent = id
        return index

    # looking up

    def path(self, segment: Segment) -> Path:
        """Where a segment's file is."""
        return self.folder / segment.file

    def read_ids(self, piece: Piece) -> Ids | None:
        """A piece's ids: the last bytes of its file; None where they cannot be read. Not verified."""
        segment = piece.segment
        if segment.ids is not None:
            return segment.ids[piece.offset : piece.offset + piece.n_tokens]
        try:
            fd = os.open(self.path(segment), os.O_RDONLY | os.O_CLOEXEC)
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
                    self._used[at.number] = now
                    at = self.segments.get(at.parent_number) if at.parent_number is not None else None

    # losing

    def void(self, segment: Segment, reason: str, text: str) -> None:
        """A segment was found damaged or missing: it and all that follows it are forgotten. Any thread; never raises."""
        with self.lock:
            if self.segments.get(segment.number) is not segment or self.index is None:
                return
            self.damage += 1
            gone = self._forget(segment, reason)
        log.warning("store: a segment is %s and will be computed again: %s", reason, text)
        with contextlib.suppress(AgentMemoryError):  # the store is closing: the next open finds the damage again
            self.io.submit(lambda: self._drop(gone))

    def _forget(self, segment: Segment, reason: str) -> list[Segment]:
        assert self.index is not None
        gone: dict[int, Segment] = {segment.number: segment}
        for piece in self.index.descendants(segment.pieces):
            gone[piece.segment.number] = piece.segment
        for one in gone.values():
            self._take_out(one, reason)
        return list(gone.values())

    def _take_out(self, segment: Segment, reason: str | None) -> None:
        """Remove a segment from memory; ``reason``: what a later look-up is told."""
        if reason is not None:
            self._remember(segment.parent, [(p.id, p.made, p.head) for p in segment.pieces], reason)
        if self.index is not None:
            for piece in reversed(segment.pieces):
                if self.index.pieces.get(piece.id) is piece:
                    self.index.remove(piece)
        del self.segments[segment.number]
        self._used.pop(segment.number, None)
        if segment.is_ready:
            self.n_bytes -= segment.n_bytes

    def _remember(self, parent: bytes, pieces: Sequence[tuple[bytes, int, bytes]], reason: str) -> None:
        for id, _, _ in pieces:
            self._lost[id] = self._lost[b"<" + parent] = reason
            parent = id
        while len(self._lost) > _REASONS:
            del self._lost[next(iter(self._lost))]

    def _drop(self, gone: Sequence[Segment]) -> None:
        """Rows first, then files. I/O thread."""
        ready = [s for s in gone if s.is_ready]
        if ready:
            self.manifest.commit_segments(drop=[s.number for s in ready])
        for segment in ready:
            _unlink(self.path(segment))

    # saving

    def begin_save(self, ids: Ids, made: np.ndarray[Any, Any], exactness: Exactness, agent_id: int | None) -> Save:
        """Plan a save and enter its pieces as not yet readable."""
        with self.lock:
            index, layout = self.index, self.layout
            if index is None or layout is None or not layout.is_storable or not layout.token_bytes or not len(ids):
                return Save(None)
            chunks = index.chunks(ids, ready=False)
            runs, head, kept = self._missing(index, ids, chunks)
            self.touch([kept.segment] if kept is not None else [])
            if sum(b - a for a, b, _ in runs) * layout.token_bytes > self.budget_bytes:
                log.debug("store: a save of %d tokens is larger than the whole disk budget", len(ids))
                return Save(None)
            segments = []
            for start, stop, parent in runs:
                segments.append(self._plan_segment(index, ids, made, exactness, start, stop, parent))
                head = segments[-1].pieces[-1].id
            return Save(self, tuple(segments), head=head, agent_id=agent_id)

    def _missing(
        self, index: Index, ids: Ids, chunks: list[Piece]
    ) -> tuple[list[tuple[int, int, Piece | None]], bytes, Piece | None]:
        """Token ranges to write with the piece before each (None: the one just planned), head so far, last stored
        piece.
        """
        size = index.chunk_tokens
        done, full = len(chunks) * size, len(ids) // size * size
        last = chunks[-1] if chunks else None
        step = SEGMENT_CHUNKS * size
        runs = [(a, min(a + step, full), last if a == done else None) for a in range(done, full, step)]
        if runs or full == len(ids):
            if full < len(ids):
                runs.append((full, len(ids), None))
            return runs, last.id if last else index.root, last
        plan = index.plan(ids, ready=False)
        if sum(take for _, take in plan) == len(ids):  # a longer piece of another lineage may cover the tail
            return [], plan[-1][0].id, plan[-1][0]
        chain = max(
            index.deltas(last.id if last else index.root, ids[full:], ready=False),
            key=lambda c: sum(p.n_tokens for p in c),
        )
        if len(chain) >= MAX_DELTAS:
            chain = []
        before = chain[-1] if chain else last
        return [(full + sum(p.n_tokens for p in chain), len(ids), before)], index.root, before

    def _plan_segment(
        self,
        index: Index,
        ids: Ids,
        made: np.ndarray[Any, Any],
        exactness: Exactness,
        start: int,
        stop: int,
        before: Piece | None,
    ) -> Segment:
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
            exactness=exactness,
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
                _made(made[at : at + len(own)]),
                sort_key(own[:HEAD_IDS]),
            )
            segment.pieces.append(piece)
            index.add(piece, own)
            self._lost.pop(piece.id, None)
            self._lost.pop(b"<" + parent, None)
            parent = piece.id
        return segment

    def _writer(self, segment: Segment) -> SegmentWriter:
        assert self.layout is not None and segment.ids is not None
        path = self.path(segment)
        _make_folder(path.parent)
        return SegmentWriter(path, path.with_suffix(TEMP_SUFFIX), self.layout, _facts(segment), segment.ids)

    def write(self, save: Save, part: int, tensor: int, data: memoryview) -> None:
        """Write some bytes of a save. I/O thread; a failure ends the save."""
        if save.is_over:
            return
        try:
            while len(save.writers) <= part:
                save.writers.append(self._writer(save.segments[len(save.writers)]))
            save.writers[part].write(tensor, data)
        except _WRITE_ERRORS as error:
            self._fail(save, error)

    def abandon(self, save: Save) -> None:
        """Forget a save and what was to follow it. I/O thread."""
        if save.is_over:
            return
        save.is_over = True
        for writer in save.writers:
            writer.abandon()
        gone: list[Segment] = []
        with self.lock:
            for segment in save.segments:
                if self.segments.get(segment.number) is segment:
                    gone += self._forget(segment, "not stored")
        self._drop(gone)  # what relied on it may be committed already
        for segment in save.segments:
            if not segment.is_ready:
                _unlink(self.path(segment))

    def _fail(self, save: Save, error: BaseException) -> None:
        self.save_failures += 1
        log.warning("store: KV could not be saved and will be computed again: %s", error)
        self.abandon(save)

    def _is_live(self, save: Save) -> bool:
        with self.lock:
            return all(self.segments.get(s.number) is s for s in save.segments)

    def commit(self, save: Save) -> None:
        """Make a save durable and readable, remove what it supersedes, keep the budget. I/O thread."""
        if save.is_over:
            return
        try:
            if not self._is_live(save) or (save.agent_id is not None and not self.manifest.has_agent(save.agent_id)):
                self.abandon(save)
                return
            if len(save.writers) != len(save.segments):
                raise ValueError("not all tensors of a save were put")
            for segment, writer in zip(save.segments, save.writers, strict=True):
                segment.header_xxh3, segment.n_bytes = writer.finish(), writer.n_bytes
                self.bytes_written += segment.n_bytes
            if save.segments:
                sync_folder(self.path(save.segments[0]).parent)
            if not self._is_live(save):  # something before it was found damaged meanwhile
                self.abandon(save)
                return
            superseded = self._commit_rows(save)
        except _WRITE_ERRORS as error:
            self._fail(save, error)
            return
        save.is_over = True
        for segment in superseded:
            _unlink(self.path(segment))
        self.enforce()

    def _commit_rows(self, save: Save) -> list[Segment]:
        with self.lock:
            moved = self._superseded(save)
            gone = {p.segment.number: p.segment for p in moved}
            used, self._used = self._used, {}
            lineage = None
            if (
                save.agent_id is not None
                and save.head is not None
                and save.head in (self.index.pieces if self.index else ())
            ):
                assert self.index is not None
                before = {p.id for p in self.index.ancestors(self.index.pieces[save.head])} - {save.head}
                former = self.manifest.heads_of(save.agent_id, self.identity)
                lineage = (
                    save.agent_id,
                    self.identity,
                    save.head,
                    [h for h in former if h in before or h not in self.index.pieces],
                )
        self.manifest.commit_segments(
            add=[_row(s) for s in save.segments],
            drop=gone,
            used=used,
            lineage=lineage,
            moved={p.id: new for p, new in moved.items()},
        )
        with self.lock:
            for segment in save.segments:
                segment.is_ready, segment.ids = True, None
                self.n_bytes += segment.n_bytes
            for segment in gone.values():
                if self.segments.get(segment.number) is segment:
                    self._take_out(segment, None)
            late = [s for s in save.segments if self.segments.get(s.number) is not s]
        if late:  # voided while the commit ran: take them back
            self.n_bytes -= sum(s.n_bytes for s in late)
            self._drop(late)
        return list(gone.values())

    def _superseded(self, save: Save) -> dict[Piece, bytes]:
        """Deltas whose tokens a new piece holds too, and which nothing else follows; with the id of that new piece."""
        index = self.index
        found: dict[Piece, bytes] = {}
        if index is None:
            return found
        for segment in save.segments:
            for piece in segment.pieces:
                ids = self.read_ids(piece)
                assert ids is not None
                chains = index.deltas(piece.parent, ids, ready=True)
                covered = {p for chain in chains for p in chain} - {piece}
                for delta in sorted(covered, key=lambda p: -p.start):
                    if all(child in found for child in index.children(delta.id)):
                        found[delta] = piece.id
        return found

    def enforce(self) -> None:
        """Evict until the files fit the budget. I/O thread."""
        with self.lock:
            excess = self.n_bytes - self.budget_bytes
            if excess <= 0:
                return
            table = [
                Candidate(s.number, s.parent_number, s.n_bytes, s.used_s, not s.is_ready)
                for s in self.segments.values()
            ]
            gone = [self.segments[n] for n in victims(table, excess)]
            for segment in gone:
                self._take_out(segment, "evicted")
        self._drop(gone)
        log.debug("store: evicted segments=%d", len(gone))

    def flush_used(self) -> None:
        """Write times of use. I/O thread."""
        with self.lock:
            used, self._used = self._used, {}
        if used:
            self.manifest.commit_segments(used=used)

    # deleting

    def delete_agent(self, agent_id: int) -> None:
        """End an agent: its log, and the pieces that only its lineages used. I/O thread; durable when it returns."""
        heads = self.manifest.heads()
        drop: list[Segment] = []
        cuts: list[tuple[Segment, int]] = []
        with self.lock:
            for identity in {identity for agent, identity, _ in heads if agent == agent_id}:
                mine = [h for a, i, h in heads if a == agent_id and i == identity]
                others = [h for a, i, h in heads if a != agent_id and i == identity]
                for index in self._indexes(identity):
                    whole, parts = _unshared(index, mine, others)
                    drop += whole
                    cuts += parts
        changes: list[tuple[Segment, Segment]] = []
        for segment, n_pieces in cuts:
            try:
                changes.append((segment, self._cut(segment, n_pieces)))
            except _WRITE_ERRORS as error:
                log.warning("store: a shared segment could not be rewritten and will be computed again: %s", error)
                drop += self._with_children(segment)
        dropped = {s.number: s for s in drop}
        self.manifest.delete_agent(agent_id, drop=dropped, change=[_row(new) for _, new in changes])
        old_files = [self.path(old) for old, _ in changes] + [self.path(s) for s in dropped.values()]
        with self.lock:
            for segment in dropped.values():
                if self.segments.get(segment.number) is not None:
                    self._take_out(self.segments[segment.number], None)
            for old, new in changes:
                self._shorten(old, new)
        for path in old_files:
            _unlink(path)

    def _indexes(self, identity: str) -> list[Index]:
        if identity == self.identity and self.index is not None:
            return [self.index]
        rows = self.manifest.segments(identity)
        return [
            self._index(identity, size, {r.segment: _segment(r) for r in rows if r.segment in self.segments})
            for size in {r.chunk_tokens for r in rows}
        ]

    def _with_children(self, segment: Segment) -> list[Segment]:
        found = {segment.number: segment}
        for other in sorted(self.segments.values(), key=lambda s: s.number):
            if other.parent_number in found:
                found[other.number] = other
        return list(found.values())

    def _cut(self, segment: Segment, n_pieces: int) -> Segment:
        """Write a segment's first pieces as a new file; what its row becomes."""
        layout = self.layout if segment.identity == self.identity else None
        if layout is None:
            layout = layout_of(self.manifest.layout(segment.identity) or "[]")
        n_tokens = n_pieces * segment.chunk_tokens
        ids = np.concatenate([i for p in segment.pieces[:n_pieces] if (i := self.read_ids(p)) is not None])
        new = Segment(
            number=segment.number,
            identity=segment.identity,
            file=f"{segment.identity[:16]}/{uuid.uuid4().hex}{SUFFIX}",
            parent=segment.parent,
            parent_number=segment.parent_number,
            start=segment.start,
            n_tokens=n_tokens,
            chunk_tokens=segment.chunk_tokens,
            exactness=segment.exactness,
            host=segment.host,
            used_s=segment.used_s,
            is_ready=True,
        )
        new.pieces = segment.pieces[:n_pieces]
        path = self.path(new)
        writer = SegmentWriter(path, path.with_suffix(TEMP_SUFFIX), layout, _facts(new), ids)
        try:
            new.header_xxh3 = copy_prefix(self.path(segment), segment, writer, layout, n_tokens)
        except BaseException:
            writer.abandon()
            raise
        sync_folder(path.parent)
        new.n_bytes = writer.n_bytes
        self.bytes_written += new.n_bytes
        return new

    def _shorten(self, old: Segment, new: Segment) -> None:
        live = self.segments.get(old.number)
        if live is None:
            return
        self.n_bytes += new.n_bytes - live.n_bytes
        if self.index is not None:
            for piece in reversed(live.pieces[len(new.pieces) :]):
                self.index.remove(piece)
        live.pieces = live.pieces[: len(new.pieces)]
        live.file, live.n_bytes, live.header_xxh3, live.n_tokens = new.file, new.n_bytes, new.header_xxh3, new.n_tokens


def root_id(identity: str) -> bytes:
    """The first parent of every lineage: the identity's digest."""
    return bytes.fromhex(identity)


def layout_json(layout: Layout) -> str:
    """A layout as the manifest keeps it."""
    return json.dumps([[t.name, t.heads, t.dim, t.dtype] for t in layout.tensors])


def layout_of(text: str) -> Layout:
    """The tensors that ``layout_json`` wrote."""
    return Layout(tuple(TensorSpec(*row) for row in json.loads(text)))


def _unshared(index: Index, mine: list[bytes], others: list[bytes]) -> tuple[list[Segment], list[tuple[Segment, int]]]:
    """Segments that only ``mine`` reach, and (segment, pieces that stay) of those shared in part."""
    used = {p.id for head in others if head in index.pieces for p in index.ancestors(index.pieces[head])}
    removed: dict[bytes, Piece] = {}
    for head in mine:
        for piece in index.ancestors(index.pieces[head]) if head in index.pieces else ():
            is_last = all(c.id in removed for c in index.children(piece.id))
            if piece.id in used or not is_last or not piece.segment.is_ready:
                break
            removed[piece.id] = piece
    stay: dict[int, int] = {}
    segments = {p.segment.number: p.segment for p in removed.values()}
    for number, segment in segments.items():
        stay[number] = sum(p.id not in removed for p in segment.pieces)
    whole = [s for n, s in segments.items() if not stay[n]]
    return whole, [(s, stay[n]) for n, s in segments.items() if stay[n]]


def _facts(segment: Segment) -> SegmentFacts:
    return SegmentFacts(
        identity=segment.identity,
        parent=segment.parent,
        start=segment.start,
        n_tokens=segment.n_tokens,
        chunk_tokens=segment.chunk_tokens,
        made=tuple(p.made for p in segment.pieces),
        exactness=segment.exactness,
        host=segment.host,
    )


def _row(segment: Segment) -> SegmentRow:
    pieces = b"".join(p.id + bytes([p.made]) + p.head.ljust(_HEAD_BYTES, b"\0") for p in segment.pieces)
    return SegmentRow(
        segment=segment.number,
        identity=segment.identity,
        file=segment.file,
        n_bytes=segment.n_bytes,
        header_xxh3=segment.header_xxh3,
        parent=segment.parent,
        parent_segment=segment.parent_number,
        start=segment.start,
        n_tokens=segment.n_tokens,
        chunk_tokens=segment.chunk_tokens,
        exactness=segment.exactness,
        host=segment.host,
        used_s=segment.used_s,
        pieces=pieces,
    )


def _segment(row: SegmentRow) -> Segment:
    return Segment(
        number=row.segment,
        identity=row.identity,
        file=row.file,
        parent=row.parent,
        parent_number=row.parent_segment,
        start=row.start,
        n_tokens=row.n_tokens,
        chunk_tokens=row.chunk_tokens,
        exactness=row.exactness,
        host=row.host,
        used_s=row.used_s,
        n_bytes=row.n_bytes,
        header_xxh3=row.header_xxh3,
        is_ready=True,
    )


def _unpack(blob: bytes) -> list[tuple[bytes, int, bytes]]:
    """(id, made, head) of each piece."""
    at = range(0, len(blob), _PIECE_BYTES)
    return [(blob[a : a + ID_BYTES], blob[a + ID_BYTES], blob[a + ID_BYTES + 1 : a + _PIECE_BYTES]) for a in at]


def _made(made: np.ndarray[Any, Any]) -> int:
    kinds = {int(m) for m in np.unique(made)}
    return kinds.pop() if len(kinds) == 1 else 3


def _files(folder: Path) -> dict[str, int]:
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


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)
        sync_folder(path.parent.parent)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # the next open sweeps it
        path.unlink()
