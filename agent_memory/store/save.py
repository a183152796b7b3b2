"""One save: new segments of a lineage, handed over tensor by tensor and committed as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from agent_memory.kvfile.segments import OpenSegment, SegmentWriter
from agent_memory.log.damage import WRITE_ERRORS
from agent_memory.log.health import is_disk_error
from agent_memory.log.logs import Logs
from agent_memory.prefix.index import n_tokens
from agent_memory.prefix.pieces import Ids, Segment
from agent_memory.prefix.provenance import Provenance
from agent_memory.prefix.resume import Held
from agent_memory.prefix.sharing import Stretch, stretches
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import Edit, apply, remove_hidden, settle
from agent_memory.store.holders import settle_held
from agent_memory.store.planning import Part, Plan, lineage_of, plan_save, stale_resume, superseded
from agent_memory.store.room import NoRoomError, announce, make_room

log = logging.getLogger("agent_memory.store")

SAVE_ERRORS = (*WRITE_ERRORS, NoRoomError)


class Save:
    """A plan being written; does nothing if ``catalog`` is None. Engine thread.

    - ``finish`` or ``abandon`` ends it.
    - A write that fails abandons the save: it is counted and logged, and raises nothing.
    """

    def __init__(self, catalog: Catalog | None, plan: Plan = Plan()) -> None:  # noqa: B008 - a frozen value
        self._catalog, self.plan = catalog, plan
        self.parts, self.sides = plan.rows, plan.resume
        self._is_given_up = False
        self.writers: dict[Part, SegmentWriter] = {}  # this and all below: I/O thread
        self.opened: dict[Part, list[tuple[OpenSegment, Stretch]]] = {}
        self.is_over = False

    def put(self, part: int, tensor: int, array: np.ndarray[Any, Any]) -> None:
        """Queue one layout tensor of one part: (heads, n_tokens, row_bytes) uint8, C-contiguous; not copied.

        If the write queue is full, the save is abandoned.
        """
        catalog, to = self._catalog, self.parts[part]
        if catalog is None or self._is_slow(catalog):
            return
        if to.stored:
            catalog.disk.io.submit(partial(_splice, catalog, self, to, tensor, array), array.nbytes)
            return
        data = memoryview(np.ascontiguousarray(array)).cast("B")  # type: ignore[arg-type]
        io = catalog.disk.io
        for at in range(0, len(data), io.item_bytes):
            piece = data[at : at + io.item_bytes]
            io.submit(partial(_write, catalog, self, to, tensor, piece), len(piece))

    def put_side(self, number: int, rows: Sequence[np.ndarray[Any, Any]], state: np.ndarray[Any, Any] | None) -> None:
        """Queue one of ``sides``: window tensors in layout order, (heads, n_rows, row_bytes) uint8 each, and the state.

        ``rows`` is empty if it has no window rows; ``state``: the bytes, None if it has none.
        """
        catalog = self._catalog
        if catalog is None or self._is_slow(catalog):
            return
        assert catalog.model is not None
        arrays = [*rows, *([state] if state is not None else [])]
        state_bytes = None if state is None else len(state)
        for tensor, array in enumerate(arrays, 0 if rows else len(catalog.model.layout.windows)):
            data = memoryview(np.ascontiguousarray(array)).cast("B")  # type: ignore[arg-type]
            work = partial(_write, catalog, self, self.sides[number], tensor, data, state_bytes)
            catalog.disk.io.submit(work, len(data))

    def finish(self) -> None:
        """Queue fsync, rename and commit, and the head of the agent's lineage."""
        catalog, plan = self._catalog, self.plan
        has_work = plan.rows or plan.resume or (plan.agent_id is not None and plan.is_turn)
        if catalog is not None and has_work and not self._is_given_up:
            catalog.disk.io.submit(lambda: _commit(catalog, self))

    def abandon(self) -> None:
        """Drop the tensors that were queued so far."""
        catalog = self._catalog
        if catalog is not None and (self.parts or self.sides):
            catalog.disk.io.submit(lambda: _abandon(catalog, self))

    def _is_slow(self, catalog: Catalog) -> bool:
        if not self._is_given_up and catalog.disk.io.is_full:
            self._is_given_up = True
            catalog.disk.counts.skipped["slow disk"] += 1
            _note_unwritten(catalog, self.plan)
            self.abandon()
        return self._is_given_up


def begin_save(
    catalog: Catalog,
    ids: Ids,
    lineage: Provenance,
    agent_id: int | None,
    held: Held,
    *,
    is_promised: bool,
    is_turn: bool = True,
) -> Save:
    """Plan a save and enter its segments, not findable yet; an empty save if it is not worth a write."""
    with catalog.lock:
        plan = plan_save(catalog, ids, lineage, agent_id, held, is_promised=is_promised, is_turn=is_turn)
        if plan is not None and is_turn:
            catalog.pins.note(agent_id, plan.head)
            catalog.ends.note(agent_id, plan.head)
    return Save(None) if plan is None else Save(catalog, plan)


def _write(
    catalog: Catalog, save: Save, part: Part, tensor: int, data: memoryview, state_bytes: int | None = None
) -> None:
    """Write some bytes of a save. I/O thread; a failure ends the save."""
    if save.is_over:
        return
    try:
        if part not in save.writers:
            save.writers[part] = _writer(catalog, part.segment, state_bytes)
        started = time.perf_counter()
        save.writers[part].write(tensor, data)
        if part.kind == "rows":
            catalog.disk.admission.note_write(len(data), time.perf_counter() - started)
    except SAVE_ERRORS as error:
        _fail(catalog, save, error)


def _writer(catalog: Catalog, segment: Segment, state_bytes: int | None = None) -> SegmentWriter:
    assert catalog.model is not None
    disk, layout = catalog.disk, catalog.model.layout
    writer = SegmentWriter(
        disk.files, disk.path(segment), segment, layout, ids=segment.ids, state_bytes=state_bytes, keys=disk.keys
    )
    announce(catalog, segment.file, writer.n_bytes)
    return writer


def _splice(catalog: Catalog, save: Save, part: Part, tensor: int, rows: np.ndarray[Any, Any]) -> None:
    """Write one tensor whose first rows are stored already, encoded: they are copied, never decoded."""
    if save.is_over:
        return
    try:
        assert catalog.model is not None
        layout = catalog.model.layout
        if part not in save.opened and not _open_stored(catalog, save, part):
            _give_up(catalog, save)
            return
        stored = [one.rows(layout, tensor, s.first_row, s.first_row + s.stop - s.start) for one, s in save.opened[part]]
        joined = np.concatenate([*stored, rows], axis=1)
    except WRITE_ERRORS as error:
        _fail(catalog, save, error)
        return
    _write(catalog, save, part, tensor, memoryview(joined).cast("B"))  # type: ignore[arg-type]


def _open_stored(catalog: Catalog, save: Save, part: Part) -> bool:
    """Open the files of the stored rows that a part begins with; False if they are encoded so in none any more.

    Another save may have taken them into a longer piece since this one was planned.
    """
    with catalog.lock:
        stored = part.stored
        if any(catalog.segments.get(one.segment.number) is not one.segment for one in stored):
            stored = _found_again(catalog, part)
    if not stored or any(one.segment.codec != part.codec for one in stored):
        return False
    opened = save.opened.setdefault(part, [])
    for one in stored:
        opened.append((OpenSegment(catalog.disk.path(one.segment), one.segment, catalog.disk.keys), one))
    return True


def _found_again(catalog: Catalog, part: Part) -> tuple[Stretch, ...]:
    """Return where the stored rows of a part are now; none if some are nowhere. Under the lock."""
    own, model = part.segment, catalog.model
    assert own.ids is not None
    n_stored = part.start - own.start
    path = model.index.tail(own.parent, own.ids[:n_stored]) if model is not None else []
    if n_tokens(path) != n_stored:
        return ()
    found: list[Stretch] = []
    try:
        for piece, take in path:
            found += stretches(catalog.segments, piece.segment, max(piece.start, own.shared_stop), piece.start + take)
    except LookupError:
        return ()
    return tuple(found)


def _commit(catalog: Catalog, save: Save) -> None:
    """Make a save durable and readable, then remove what it supersedes and keep the budget. I/O thread."""
    if save.is_over:
        return
    plan, started = save.plan, time.perf_counter()
    try:
        is_wanted = plan.agent_id is None or Logs(catalog.disk.manifest.database).has_agent(plan.agent_id)
        if is_wanted and _is_live(catalog, plan):
            _finish_files(catalog, save)
        if not is_wanted:
            _abandon(catalog, save)
            return
        if not _store(catalog, plan):  # an ancestor was found damaged or was taken over, maybe meanwhile
            _give_up(catalog, save)
            return
    except SAVE_ERRORS as error:
        _fail(catalog, save, error)
        return
    save.is_over = True
    catalog.disk.health.worked("KV")
    catalog.disk.counts.unwritten.written(plan.agent_id if plan.is_turn else None, plan.head)
    if plan.fresh:
        catalog.disk.admission.note_commit(time.perf_counter() - started)
    catalog.disk.tidy(partial(_follow_up, catalog, plan))
    make_room(catalog)
    catalog.disk.on_commit()
    if plan.head is not None:
        catalog.disk.on_stored(plan.head)


def _finish_files(catalog: Catalog, save: Save) -> None:
    _close(save)
    parts = (*save.parts, *save.sides)
    if catalog.model is not None and not catalog.model.layout.tensors:  # no tensor was queued: the file has ids alone
        save.writers |= {part: _writer(catalog, part.segment) for part in save.parts}
    if len(save.writers) != len(parts):
        raise ValueError("not all tensors of a save were put")
    for part in parts:
        save.writers[part].finish()
        catalog.disk.note_written(part.segment)
    if parts:
        catalog.disk.files.sync_folder(catalog.disk.path(parts[0].segment).parent)


def _close(save: Save) -> None:
    for source, _ in (one for sources in save.opened.values() for one in sources):
        source.close()


def _abandon(catalog: Catalog, save: Save) -> None:
    """Forget the pieces of a save and their descendants. I/O thread."""
    if save.is_over:
        return
    save.is_over = True
    _close(save)
    for writer in save.writers.values():
        writer.abandon()
    plan = save.plan
    with catalog.lock:
        entered = [s for s in plan.fresh if catalog.segments.get(s.number) is s]
        if entered:
            catalog.hide(entered, "not stored")
        for segment in reversed(entered):
            catalog.leave(segment)
        _leave_out(catalog, plan)
    remove_hidden(catalog)
    for part in plan.rows:
        _discard(catalog, part.segment)


def _leave_out(catalog: Catalog, plan: Plan) -> None:
    """Forget resume segments that were planned and are not stored. I/O thread; under the lock."""
    for segment in (part.segment for part in plan.resume):
        if not segment.is_ready:
            catalog.leave(segment)
            _discard(catalog, segment)


def _discard(catalog: Catalog, segment: Segment) -> None:
    """Remove a file that was not stored. I/O thread."""
    catalog.disk.unfinished.pop(segment.file, None)
    if not segment.is_ready:
        catalog.disk.files.unlink(catalog.disk.path(segment))


def _note_unwritten(catalog: Catalog, plan: Plan) -> None:
    n_unwritten = sum(segment.n_tokens for segment in plan.fresh)
    catalog.disk.counts.unwritten.note(plan.agent_id if plan.is_turn else None, plan.head, n_unwritten)


def _give_up(catalog: Catalog, save: Save) -> None:
    """End a save whose ancestors or stored rows are not there any more: it is counted, and no disk is blamed."""
    _note_unwritten(catalog, save.plan)
    catalog.disk.counts.skipped["replaced"] += 1
    _abandon(catalog, save)


def _fail(catalog: Catalog, save: Save, error: BaseException) -> None:
    _note_unwritten(catalog, save.plan)
    if isinstance(error, NoRoomError):
        catalog.disk.counts.skipped["no room"] += 1
    else:
        catalog.disk.counts.save_failures += 1
        if is_disk_error(error):
            catalog.disk.health.failed("KV", error)
        else:
            log.warning("store: KV could not be saved and will be computed again: %s", error)
    _abandon(catalog, save)


def _is_live(catalog: Catalog, plan: Plan) -> bool:
    with catalog.lock:
        return all(catalog.segments.get(s.number) is s and not s.is_hidden for s in plan.fresh)


def _store(catalog: Catalog, plan: Plan) -> bool:
    """Apply the Edit of a save; False if one of its segments or ancestors was hidden."""
    while _is_live(catalog, plan):  # again if a segment that it replaces was hidden meanwhile
        with catalog.lock:
            if _is_overtaken(catalog, plan):
                return False
            edit = _edit(catalog, plan)
        if apply(catalog, edit):
            with catalog.lock:
                _leave_out(catalog, plan)
            for part in (*plan.rows, *plan.resume):
                _discard(catalog, part.segment)
            if plan.is_turn and plan.agent_id is not None:
                catalog.awaited.pop(plan.agent_id, None)  # what it has saved itself is more
            return True
    return False


def _is_overtaken(catalog: Catalog, plan: Plan) -> bool:
    """True if another save has made exact what this one would, and has new rows after: those follow other bits now."""
    olds = [part.replaces for part in plan.rows if part.replaces is not None] if plan.fresh else []
    pairs = [(old, catalog.segments.get(old.number)) for old in olds]
    return any(one is not None and one is not old and one.codec == "exact" for old, one in pairs)


def _edit(catalog: Catalog, plan: Plan) -> Edit:
    """Return the Edit of a save, as the catalog is now. Under the lock.

    A replacement that was not entered yet depends on what its piece depends on now: joins may have moved that.
    """
    model = catalog.model
    renewed = [
        (old, part.segment)
        for part in plan.rows
        if (old := part.replaces) is not None and catalog.segments.get(old.number) is old and not old.is_hidden
    ]
    for old, new in renewed:
        new.parent_number = old.parent_number
    planned = [part.segment for part in plan.resume if not part.segment.is_hidden]
    resume = [one for one in planned if model is not None and one.parent in model.index.pieces]
    for one in resume:
        if model is not None and catalog.segments.get(one.number) is not one:
            one.parent_number = model.index.pieces[one.parent].segment.number
    return Edit(
        add=[*plan.fresh, *(new for _, new in renewed), *resume],
        remove=[old for old, _ in renewed],
        lineage=lineage_of(catalog, plan),
        heads={piece.id: new for piece, new in superseded(catalog, plan).items()},
    )


def _follow_up(catalog: Catalog, plan: Plan) -> None:
    """Remove the deltas and resume segments that a stored save has made superfluous, and settle who holds its KV.

    Edits of their own: a crash before them leaves too many segments, and never too few. Deltas are hidden in the moment
    in which nothing depends on them: from then on no other save can be planned after them.
    """
    with catalog.lock:
        gone = {piece.segment.number: piece.segment for piece in superseded(catalog, plan)}
        if gone:
            catalog.hide([*gone.values()], None)
    settle(catalog)
    settle_held(catalog)
    with catalog.lock:
        stale = stale_resume(catalog, plan)
    if stale:
        apply(catalog, Edit(remove=stale))
