"""Import: an agent from a file that was read and checked, stored in one commit.

- Pieces that are stored already are not written again; of a segment only what follows them is.
- Files are written under names that nothing refers to until the commit of log, lineages and segments: a crash before it
  leaves the store as it was, and the next opening removes the files.
- Pieces are entered before their bytes are written, as a save's are, so that no save writes them again.
- What follows a piece that was stored already is ``recomputed``: whether that one has the bits that the file's KV was
  computed on is not examined (docs/exactness.md).
- If the disk's budget has no space for the KV, the log alone is stored: KV is a cache of it.
"""

from __future__ import annotations

import logging
import time
from functools import partial

import numpy as np
from attrs import define, field, frozen

from agent_memory.carry.agent_file import AgentFileReader, Body
from agent_memory.carry.incoming import Found, Resume, Rows
from agent_memory.errors import AgentFileError
from agent_memory.kvfile.segments import SegmentWriter
from agent_memory.log.carried import Arrival
from agent_memory.prefix.names import new_file
from agent_memory.prefix.pieces import HeadMove, Piece, Segment, resume_segment
from agent_memory.progress import Progress, mib, silent
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, apply, remove_hidden
from agent_memory.store.room import NoRoomError, announce, make_room
from agent_memory.types import Exactness, is_weaker, weakest

log = logging.getLogger("agent_memory.store")

_TRIES = 3  #: an ancestor that is stored may be evicted, or found damaged, before the commit


@frozen
class _Wanted:
    """A segment to write, and the part of the file that has its bytes, from piece ``n_skipped`` on."""

    segment: Segment
    of: Rows | Resume
    n_skipped: int = 0

    @property
    def state_bytes(self) -> int | None:
        return self.of.state_bytes if isinstance(self.of, Resume) else None


@define(kw_only=True)
class Importing:
    """One agent being stored. The caller's thread reads the file; the I/O thread writes, at most a few MB at a time."""

    catalog: Catalog
    reader: AgentFileReader
    found: Found
    arrival: Arrival
    holders: dict[int, int]  #: number of a version, 0: the agent -> number under which its KV is held
    report: Progress = silent  #: told the MiB that were written
    _wanted: list[_Wanted] = field(factory=list)
    _writers: list[SegmentWriter] = field(factory=list)

    def run(self) -> bool:
        """Store the agent with its KV; without KV, and False, if there is no space for it.

        Raises AgentFileError if the file is another one by now, and what the disk raises; then nothing is stored.
        """
        io = self.catalog.disk.io
        for _ in range(_TRIES):
            try:
                with self.catalog.lock:
                    self._plan()
                self._write()
                if io.call(self._commit):
                    return True
            except NoRoomError as error:
                log.warning("store: an agent comes without its KV, which is computed again: %s", error)
                self._abandon()
                break
            except BaseException:  # also Ctrl-C: what was planned is forgotten
                self._abandon()
                raise
            self._abandon()
        io.call(partial(apply, self.catalog, Edit(arrival=self.arrival)))
        return False

    def _plan(self) -> None:
        """Enter the segments of pieces that are not stored. Under the lock."""
        catalog, model = self.catalog, self.catalog.model
        assert model is not None
        if reason := self._refusal():
            raise NoRoomError(reason)
        for rows in (one for one in self.found.rows if one is not None):
            n_skipped = next((i for i, piece in enumerate(rows.pieces) if piece not in model.index.pieces), None)
            if n_skipped is None:
                continue
            start = n_skipped * model.index.chunk_tokens
            before = model.index.pieces.get(rows.pieces[n_skipped - 1] if n_skipped else rows.parent_piece)
            own = rows.ids[start:].copy()
            segment = Segment(
                identity=model.identity,
                file=new_file(model.identity),
                parent=before.id if before is not None else model.index.root,
                parent_number=before.segment.number if before is not None else None,
                start=rows.start + start,
                n_tokens=len(own),
                chunk_tokens=model.index.chunk_tokens,
                exactness=self._promise(rows.exactness, before),
                codec=rows.codec,
                host=rows.host,
                used_s=time.time(),
                ids=own,
            )
            catalog.enter(segment)
            self._wanted.append(_Wanted(segment, rows, n_skipped))
            made = iter(rows.made[n_skipped:])
            for new in segment.divide(own, lambda start, stop, made=made: next(made)):  # type: ignore[misc]
                model.index.add(new, own[new.offset : new.offset + new.n_tokens])
                catalog.losses.forget(new.parent, new.id)
        for resume in self.found.resume:
            if (piece := model.index.pieces.get(resume.piece)) is not None and self._lacks(piece, resume):
                has_state = resume.state_bytes is not None
                segment = resume_segment(
                    piece,
                    resume.n_rows,
                    has_state,
                    codec=resume.codec,
                    file=new_file(model.identity),
                    exactness=self._promise(resume.exactness, piece),
                )
                if piece.id not in catalog.resume:
                    catalog.enter(segment)
                self._wanted.append(_Wanted(segment, resume))

    def _promise(self, told: Exactness, before: Piece | None) -> Exactness:
        """Return what may be said of KV of the file that is stored behind a piece."""
        is_own = before is None or any(wanted.segment is before.segment for wanted in self._wanted)
        return told if is_own else weakest(told, "recomputed")

    def _refusal(self) -> str | None:
        """Return why no KV is written; None if it is."""
        disk, model = self.catalog.disk, self.catalog.model
        if model is None or model.identity != self.found.identity:
            return "another model was loaded meanwhile"
        first = next((rows for rows in self.found.rows if rows is not None), None)
        if first is None:
            return None
        n_bytes = sum(rows.part.n_bytes for rows in self.found.rows if rows is not None)
        n_bytes += sum(resume.part.n_bytes for resume in self.found.resume)
        if n_bytes > disk.quota.budget_bytes:
            return f"its {n_bytes:,} bytes are more than the disk budget of {disk.quota.budget_bytes:,}"
        return disk.admission.refusal(first.pieces[0], self.found.n_tokens, n_bytes, is_promised=True)

    def _lacks(self, piece: Piece, resume: Resume) -> bool:
        """True if a piece has no resume segment that gives as much; an exact piece gets no quantized one."""
        former = self.catalog.resume.get(piece.id)
        wanted = (resume.n_rows, resume.state_bytes is not None)
        if former is not None:
            held = (former.n_tokens, former.has_state)
            if held == wanted or wanted[0] < held[0] or wanted[1] < held[1]:
                return False
            if is_weaker(self._promise(resume.exactness, piece), former.exactness):
                return False
        return resume.codec == "exact" or piece.segment.exactness == "quantized"

    def _write(self) -> None:
        """Write every planned file. The caller's thread."""
        io = self.catalog.disk.io
        assert self.catalog.model is not None
        layout = self.catalog.model.layout
        done, total = 0, sum(wanted.of.part.n_bytes for wanted in self._wanted)
        for wanted in self._wanted:
            self.report(done >> 20, mib(total), "writing")
            done += wanted.of.part.n_bytes
            body = self.reader.again(wanted.of.part)
            writer = io.call(partial(self._open, wanted))
            if isinstance(wanted.of, Rows):
                tensors = [(i, spec.heads) for i, spec in enumerate(layout.tensors)]
            else:
                tensors = [(i, spec.heads) for i, spec in enumerate(layout.windows)] if wanted.of.n_rows else []
            for tensor, n_heads in tensors:
                self._copy(body, writer, wanted, tensor, n_heads)
            if wanted.state_bytes is not None:
                number = len(layout.windows)
                for raw in body.blocks(wanted.state_bytes, io.item_bytes):
                    io.call(partial(writer.write, number, memoryview(raw)))
            if isinstance(wanted.of, Rows) and body.read(4 * len(wanted.of.ids)) != wanted.of.ids.tobytes():
                raise AgentFileError(f"{self.reader.path} was changed while it was read")
            body.close()
            io.call(partial(self._finish, wanted, writer))
        if self._wanted:
            folder = self.catalog.disk.path(self._wanted[0].segment).parent
            io.call(partial(self.catalog.disk.files.sync_folder, folder))

    def _copy(self, body: Body, writer: SegmentWriter, wanted: _Wanted, tensor: int, n_heads: int) -> None:
        """Copy one tensor, without the rows of pieces that are stored already."""
        io, of = self.catalog.disk.io, wanted.of
        n_bytes = writer.tensor_bytes(tensor)
        if not wanted.n_skipped:
            for raw in body.blocks(n_bytes, io.item_bytes):
                io.call(partial(writer.write, tensor, memoryview(raw)))
            return
        assert isinstance(of, Rows)
        n_all, n_own = len(of.ids), wanted.segment.n_tokens
        whole = np.frombuffer(body.read(n_bytes // n_own * n_all), np.uint8).reshape(n_heads, n_all, -1)
        data = memoryview(np.ascontiguousarray(whole[:, n_all - n_own :])).cast("B")  # type: ignore[arg-type]
        for at in range(0, len(data), io.item_bytes):
            io.call(partial(writer.write, tensor, data[at : at + io.item_bytes]))

    # I/O thread

    def _open(self, wanted: _Wanted) -> SegmentWriter:
        catalog, segment = self.catalog, wanted.segment
        assert catalog.model is not None
        path = catalog.disk.path(segment)
        writer = SegmentWriter(
            catalog.disk.files,
            path,
            segment,
            catalog.model.layout,
            ids=segment.ids,
            state_bytes=wanted.state_bytes,
            keys=catalog.disk.keys,
        )
        self._writers.append(writer)
        announce(catalog, segment.file, writer.n_bytes)
        return writer

    def _finish(self, wanted: _Wanted, writer: SegmentWriter) -> None:
        writer.finish()
        self.catalog.disk.note_written(wanted.segment)

    def _commit(self) -> bool:
        """Commit everything; False, and nothing stored, if an ancestor is gone."""
        catalog, model = self.catalog, self.catalog.model
        assert model is not None
        with catalog.lock:
            index = model.index
            moves = [
                HeadMove(self.holders[version], model.identity, piece)
                for version, piece in self.found.heads
                if piece in index.pieces
            ]
            add = [w.segment for w in self._wanted if w.segment.kind == "rows" or w.segment.parent in index.pieces]
        if not apply(catalog, Edit(add=add, arrival=self.arrival, arrived=moves)):
            return False
        for wanted in self._wanted:
            catalog.disk.unfinished.pop(wanted.segment.file, None)
            if not wanted.segment.is_ready:
                catalog.disk.files.unlink(catalog.disk.path(wanted.segment))
        self._wanted, self._writers = [], []
        make_room(catalog)
        catalog.disk.on_commit()
        return True

    def _abandon(self) -> None:
        """Forget what was planned, and remove its files."""
        self.catalog.disk.io.call(self._forget)

    def _forget(self) -> None:
        catalog = self.catalog
        for writer in self._writers:
            writer.abandon()
        with catalog.lock:
            entered = [w.segment for w in self._wanted if catalog.segments.get(w.segment.number) is w.segment]
            if entered:
                catalog.hide(entered, None)
            for segment in reversed(entered):
                catalog.leave(segment)
        remove_hidden(catalog)
        for wanted in self._wanted:
            catalog.disk.unfinished.pop(wanted.segment.file, None)
            catalog.disk.files.unlink(catalog.disk.path(wanted.segment))
        self._wanted, self._writers = [], []
