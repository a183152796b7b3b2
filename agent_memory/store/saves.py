"""One save: the tokens of a lineage that are not stored yet, handed over tensor by tensor and committed as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from attrs import frozen

from agent_memory.config import Codec
from agent_memory.log.health import is_disk_error
from agent_memory.log.logs import Logs
from agent_memory.prefix.index import Piece, Segment, n_tokens
from agent_memory.prefix.provenance import Run, Stored
from agent_memory.prefix.resume import Side
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, HeadMove, apply, remove_hidden
from agent_memory.store.format import extents
from agent_memory.store.holding import settle_held
from agent_memory.store.io import ITEM_BYTES
from agent_memory.store.renewal import Renewal, still_wanted
from agent_memory.store.room import NoRoomError, announce, make_room
from agent_memory.store.rows import facts_of
from agent_memory.store.segments import WRITE_ERRORS, SegmentWriter
from agent_memory.store.sides import SidePart, side_writer, stale_sides
from agent_memory.store.splices import Splice

log = logging.getLogger("agent_memory.store")

SAVE_ERRORS = (*WRITE_ERRORS, NoRoomError)


@frozen
class Part:
    """Tokens ``[start, stop)`` of the lineage, read from its live KV and encoded by ``codec``, of one segment.

    ``stored``: pieces whose stored rows come first in that segment.
    """

    start: int
    stop: int
    codec: Codec
    stored: Stored


class Save:
    """A save from its plan to its commit. Engine thread.

    - ``Store.begin_save`` makes it; ``finish`` or ``abandon`` ends it.
    - A write that fails abandons the save: it is counted and logged, and raises nothing.
    """

    def __init__(
        self,
        catalog: Catalog | None,
        segments: tuple[Segment, ...] = (),
        runs: Sequence[Run] = (),
        sides: tuple[SidePart, ...] = (),
        renewals: tuple[Renewal, ...] = (),
        *,
        head: bytes | None = None,
        former: int = 0,
        agent_id: int | None = None,
        is_turn: bool = True,
    ) -> None:
        #: tokens of the lineage that were stored before
        self.former = former
        self._catalog, self.segments, self.sides, self.head, self.agent_id = catalog, segments, sides, head, agent_id
        #: True if the agent's log ends where the lineage does
        self.is_turn = is_turn
        self.renewals = renewals
        #: the segments to be written, in the order of ``parts``
        self.files = (*segments, *(r.new for r in renewals))
        parts = [Part(r.start + n_tokens(r.stored), r.stop, r.codec, r.stored) for r in runs]
        parts += [Part(r.new.start, r.new.start + r.new.n_tokens, r.new.codec, ()) for r in renewals]
        self.parts = tuple(parts)
        self._is_given_up = False
        self.writers: list[SegmentWriter] = []  # this and all below: I/O thread
        self.side_writers: dict[int, SegmentWriter] = {}
        self.splices: dict[int, Splice] = {}
        self.is_over = False

    def put(self, part: int, tensor: int, array: np.ndarray[Any, Any]) -> None:
        """Queue one layout tensor of one part: (heads, n_tokens, row_bytes) uint8, C-contiguous; not copied.

        If the write queue is full, the save is abandoned.
        """
        catalog = self._catalog
        if catalog is None or self._is_slow(catalog):
            return
        if self.parts[part].stored:
            catalog.io.submit(partial(_splice, catalog, self, part, tensor, array), array.nbytes)
            return
        data = memoryview(np.ascontiguousarray(array)).cast("B")  # type: ignore[arg-type]
        for at in range(0, len(data), ITEM_BYTES):
            piece = data[at : at + ITEM_BYTES]
            catalog.io.submit(partial(_write, catalog, self, part, tensor, piece), len(piece))

    def put_side(self, number: int, rows: Sequence[np.ndarray[Any, Any]], state: np.ndarray[Any, Any] | None) -> None:
        """Queue one of ``sides``: window tensors in layout order, (heads, n_rows, row_bytes) uint8 each, and the state.

        ``rows`` is empty if it has no window rows; ``state``: the bytes, None if it has none.
        """
        catalog = self._catalog
        if catalog is None or self._is_slow(catalog):
            return
        assert catalog.layout is not None
        arrays = [*rows, *([state] if state is not None else [])]
        state_bytes = None if state is None else len(state)
        for tensor, array in enumerate(arrays, 0 if rows else len(catalog.layout.windows)):
            data = memoryview(np.ascontiguousarray(array)).cast("B")  # type: ignore[arg-type]
            work = partial(_write_side, catalog, self, number, tensor, data, state_bytes)
            catalog.io.submit(work, len(data))

    def finish(self) -> None:
        """Queue fsync, rename and commit, and the head of the agent's lineage."""
        catalog = self._catalog
        has_work = self.files or self.sides or (self.agent_id is not None and self.is_turn)
        if catalog is not None and has_work and not self._is_given_up:
            catalog.io.submit(lambda: _commit(catalog, self))

    def abandon(self) -> None:
        """Drop the tensors that were queued so far."""
        catalog = self._catalog
        if catalog is not None and (self.files or self.sides):
            catalog.io.submit(lambda: _abandon(catalog, self))

    def _is_slow(self, catalog: Catalog) -> bool:
        if not self._is_given_up and catalog.io.is_full:
            self._is_given_up = True
            catalog.counts.skipped["slow disk"] += 1
            _note_unwritten(catalog, self)
            self.abandon()
        return self._is_given_up


def _write(catalog: Catalog, save: Save, part: int, tensor: int, data: memoryview) -> None:
    """Write some bytes of a save. I/O thread; a failure ends the save."""
    if save.is_over:
        return
    try:
        while len(save.writers) <= part:
            save.writers.append(_writer(catalog, save.files[len(save.writers)]))
        started = time.perf_counter()
        save.writers[part].write(tensor, data)
        catalog.admission.note_write(len(data), time.perf_counter() - started)
    except SAVE_ERRORS as error:
        _fail(catalog, save, error)


def _splice(catalog: Catalog, save: Save, part: int, tensor: int, rows: np.ndarray[Any, Any]) -> None:
    """Write one tensor whose first rows are stored already. I/O thread; a failure ends the save."""
    if save.is_over:
        return
    try:
        if part not in save.splices:
            save.splices[part] = Splice(catalog, save.parts[part].stored)
        joined = save.splices[part].joined(tensor, rows)
    except WRITE_ERRORS as error:
        _fail(catalog, save, error)
        return
    _write(catalog, save, part, tensor, memoryview(joined).cast("B"))  # type: ignore[arg-type]


def _write_side(
    catalog: Catalog, save: Save, number: int, tensor: int, data: memoryview, state_bytes: int | None
) -> None:
    """Write one tensor of a side file. I/O thread; a failure ends the save."""
    if save.is_over:
        return
    try:
        if number not in save.side_writers:
            save.side_writers[number] = _announced(
                catalog, save.sides[number].side, side_writer(catalog, save.sides[number], state_bytes)
            )
        save.side_writers[number].write(tensor, data)
    except SAVE_ERRORS as error:
        _fail(catalog, save, error)


def _commit(catalog: Catalog, save: Save) -> None:
    """Make a save durable and readable, remove what it supersedes, keep the budget. I/O thread."""
    if save.is_over:
        return
    started = time.perf_counter()
    try:
        is_wanted = save.agent_id is None or Logs(catalog.manifest.database).has_agent(save.agent_id)
        if is_wanted and _is_live(catalog, save):
            _finish_files(catalog, save)
        if not is_wanted or not _store(catalog, save):  # an ancestor was found damaged, maybe meanwhile
            _abandon(catalog, save)
            return
    except SAVE_ERRORS as error:
        _fail(catalog, save, error)
        return
    save.is_over = True
    catalog.health.worked("KV")
    catalog.counts.unwritten.written(save.agent_id if save.is_turn else None, save.head)
    if save.segments:
        catalog.admission.note_commit(time.perf_counter() - started)
    make_room(catalog)
    catalog.on_commit()


def _finish_files(catalog: Catalog, save: Save) -> None:
    _close_splices(save)
    if catalog.layout is not None and not catalog.layout.tensors:  # then no tensor was put: the file has ids alone
        save.writers += [_writer(catalog, segment) for segment in save.files]
    if len(save.writers) != len(save.files) or len(save.side_writers) != len(save.sides):
        raise ValueError("not all tensors of a save were put")
    files: list[tuple[Segment | Side, SegmentWriter]] = [*zip(save.files, save.writers, strict=True)]
    files += [(part.side, save.side_writers[number]) for number, part in enumerate(save.sides)]
    for file, writer in files:
        file.header_xxh3, file.n_bytes, file.held_bytes = writer.finish(), writer.n_bytes, writer.held_bytes
        catalog.note_written(file.n_bytes)
    if files:
        catalog.files.sync_folder(catalog.path(files[0][0]).parent)


def _close_splices(save: Save) -> None:
    for splice in save.splices.values():
        splice.close()


def _abandon(catalog: Catalog, save: Save) -> None:
    """Forget the pieces of a save and their descendants. I/O thread."""
    if save.is_over:
        return
    save.is_over = True
    _close_splices(save)
    for writer in (*save.writers, *save.side_writers.values()):
        writer.abandon()
    with catalog.lock:
        entered = [s for s in save.segments if catalog.segments.get(s.number) is s]
        if entered:
            catalog.hide(entered, "not stored")
        for segment in reversed(entered):
            catalog.leave(segment)
        _leave_out(catalog, [part.side for part in save.sides])
    remove_hidden(catalog)
    for segment in save.files:
        _discard(catalog, segment)


def _leave_out(catalog: Catalog, sides: Sequence[Side]) -> None:
    """Forget side files that were planned and are not stored. I/O thread; under the lock."""
    for side in sides:
        if not side.is_ready:
            catalog.leave_side(side)
            _discard(catalog, side)


def _discard(catalog: Catalog, file: Segment | Side) -> None:
    """Remove a file that was not stored. I/O thread."""
    catalog.unfinished.pop(file.file, None)
    if not file.is_ready:
        catalog.files.unlink(catalog.path(file))


def _note_unwritten(catalog: Catalog, save: Save) -> None:
    catalog.counts.unwritten.note(
        save.agent_id if save.is_turn else None, save.head, sum(segment.n_tokens for segment in save.segments)
    )


def _fail(catalog: Catalog, save: Save, error: BaseException) -> None:
    _note_unwritten(catalog, save)
    if isinstance(error, NoRoomError):
        catalog.counts.skipped["no room"] += 1
    else:
        catalog.counts.save_failures += 1
        if is_disk_error(error):
            catalog.health.failed("KV", error)
        else:
            log.warning("store: KV could not be saved and will be computed again: %s", error)
    _abandon(catalog, save)


def _is_live(catalog: Catalog, save: Save) -> bool:
    with catalog.lock:
        return all(catalog.segments.get(s.number) is s and not s.is_hidden for s in save.segments)


def _writer(catalog: Catalog, segment: Segment) -> SegmentWriter:
    assert catalog.layout is not None
    assert segment.ids is not None
    places = extents(catalog.layout, segment.n_tokens, segment.codec)
    facts = facts_of(segment).metadata
    return _announced(catalog, segment, SegmentWriter(catalog.files, catalog.path(segment), places, facts, segment.ids))


def _announced(catalog: Catalog, file: Segment | Side, writer: SegmentWriter) -> SegmentWriter:
    announce(catalog, file.file, writer.n_bytes)
    return writer


def _store(catalog: Catalog, save: Save) -> bool:
    """Apply the Edit of a save; False if one of its segments or ancestors was hidden."""
    while _is_live(catalog, save):  # again if a segment that it removes was hidden meanwhile
        with catalog.lock:
            edit = _edit(catalog, save)
        if apply(catalog, edit):
            with catalog.lock:
                _leave_out(catalog, [part.side for part in save.sides])
            for renewal in save.renewals:
                _discard(catalog, renewal.new)
            for name in (*(s.file for s in save.files), *(part.side.file for part in save.sides)):
                catalog.unfinished.pop(name, None)
            if save.is_turn and save.agent_id is not None:
                catalog.awaited.pop(save.agent_id, None)  # what it has saved itself is more
            settle_held(catalog)
            _drop_stale(catalog, save)
            return True
    return False


def _edit(catalog: Catalog, save: Save) -> Edit:
    """Return the Edit of a save, as the catalog is now. Under the lock."""
    superseded = _superseded(catalog, save)
    renewals = still_wanted(catalog, save.renewals)
    sides = [part.side for part in save.sides if catalog.index is not None and part.side.piece in catalog.index.pieces]
    gone = {piece.segment.number: piece.segment for piece in superseded}
    return Edit(
        add=[*save.segments, *(r.new for r in renewals)],
        remove=[*gone.values(), *(r.old for r in renewals)],
        add_sides=sides,
        lineage=_lineage(catalog, save),
        heads={piece.id: new for piece, new in superseded.items()},
    )


def _drop_stale(catalog: Catalog, save: Save) -> None:
    """Remove side files that the saved lineage no longer needs.

    An Edit of its own: a crash before it leaves too many files, and the next save of that lineage removes them.
    """
    if catalog.needs is not None and save.head is not None:
        with catalog.lock:
            gone = stale_sides(catalog, save.head, save.former, save.agent_id if save.is_turn else None)
        if gone:
            apply(catalog, Edit(remove_sides=gone))


def _lineage(catalog: Catalog, save: Save) -> HeadMove | None:
    """Return the agent's new head, and the former heads to drop: its ancestors (of a turn), and heads that are gone."""
    index, agent_id, head = catalog.index, save.agent_id, save.head
    if index is None or agent_id is None or head is None or head not in index.pieces:
        return None
    before = {p.id for p in index.ancestors(index.pieces[head])} - {head} if save.is_turn else set()
    former = catalog.manifest.heads_of(agent_id, catalog.identity)
    replaced = [one for one in former if one in before or one not in index.pieces]
    return HeadMove(agent_id, catalog.identity, head, replaced)


def _superseded(catalog: Catalog, save: Save) -> dict[Piece, bytes]:
    """Deltas whose tokens a new piece holds too, and which nothing else follows or ends with; with that piece's id.

    Empty if an agent's log may end in such a delta, and KV can be resumed only there.
    """
    index = catalog.index
    found: dict[Piece, bytes] = {}
    if index is None or (catalog.needs is not None and not save.is_turn):
        return found
    for segment in save.segments:
        for piece in segment.pieces:
            ids = catalog.read_ids(piece)
            assert ids is not None
            chains = index.deltas(piece.parent, ids, ready=True)
            covered = {p for chain in chains for p in chain} - {piece}
            held = catalog.manifest.held_by_others((p.id for p in covered), save.agent_id)
            for delta in sorted(covered, key=lambda p: -p.start):
                if delta.id not in held and all(child in found for child in index.children(delta.id)):
                    found[delta] = piece.id
    return found
