"""Edit: one change of the set of stored segments, and the only function that makes it.

Whatever changes what is stored (a save, an eviction, a join, a deletion, damage) builds an Edit. It is applied in one
order: the manifest's commit, memory, files. A crash after the commit leaves files that the next opening removes; one
before it leaves files that were never named.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence

from attrs import evolve, field, frozen

from agent_memory.errors import AgentMemoryError
from agent_memory.prefix.index import Segment
from agent_memory.prefix.resume import Side
from agent_memory.store.catalog import Catalog
from agent_memory.store.records import SegmentRow
from agent_memory.store.rows import row_of
from agent_memory.store.segments import WRITE_ERRORS

log = logging.getLogger("agent_memory.store")


@frozen
class HeadMove:
    """Where an agent's lineage ends now, and the former ends that it replaces."""

    agent_id: int
    identity: str
    head: bytes | None  #: None: nowhere
    former: Sequence[bytes] = ()


@frozen(kw_only=True)
class Edit:
    """One change of what is stored.

    - The files of ``add`` and ``add_sides`` are whole and synced.
    - A segment in ``add`` with the number of one in ``remove`` takes its place, and has its children and side files.
    - ``remove`` has no child that is neither in it nor in ``rehang``; the side files of what it has go too.
    """

    add: Sequence[Segment] = ()
    remove: Sequence[Segment] = ()
    rehang: Mapping[int, int] = field(factory=dict)  #: number of a removed segment -> of the one that took its place
    add_sides: Sequence[Side] = ()
    remove_sides: Sequence[Side] = ()
    lineage: HeadMove | None = None
    heads: Mapping[bytes, bytes] = field(factory=dict)  #: ends of lineages whose piece another took over
    ended_agent: int | None = None  #: its log and its record go in the same commit

    @property
    def replaced(self) -> frozenset[int]:
        """Numbers of removed segments whose place another takes."""
        return frozenset({s.number for s in self.remove} & {s.number for s in self.add} | self.rehang.keys())


def apply(catalog: Catalog, edit: Edit) -> bool:
    """Change what is stored: manifest, memory, files. False, and nothing changed, where the edit no longer fits.

    I/O thread. Raises what the manifest does, and nothing changed. What was hidden is removed first.
    """
    settle(catalog)
    return _apply(catalog, edit)


def settle(catalog: Catalog) -> None:
    """Remove what was hidden. I/O thread; raises what the manifest does, and it stays hidden, and counted."""
    while catalog.hidden:
        segments, sides = catalog.hidden[0]
        with catalog.lock:
            there = [s for s in segments if s.is_ready and catalog.segments.get(s.number) is s]
            beside = [side for side in sides if side in catalog.all_sides()]
        if there or beside:
            _apply(catalog, Edit(remove=there, remove_sides=beside))
        catalog.hidden.popleft()


def _apply(catalog: Catalog, edit: Edit) -> bool:
    with catalog.lock:
        if not _fits(catalog, edit):
            return False
        used = catalog.take_uses()
    replaced = edit.replaced
    catalog.manifest.commit(
        add=[row_of(segment) for segment in edit.add],
        remove=[s.number for s in edit.remove if s.number not in replaced],
        rehang=edit.rehang,
        add_sides=edit.add_sides,
        remove_sides=edit.remove_sides,
        lineage=None if edit.lineage is None else _row_of(edit.lineage),
        heads=edit.heads,
        ended_agent=edit.ended_agent,
        used=used,
        written=str(catalog.admission.written),
    )
    with catalog.lock:
        left = _follow(catalog, edit, replaced)
    for path in map(catalog.path, left):
        if not path.parent.is_symlink():  # what lies behind is not the store's
            catalog.files.unlink(path)
    catalog.edited()
    return True


def _row_of(lineage: HeadMove) -> tuple[int, str, bytes | None, Sequence[bytes]]:
    return lineage.agent_id, lineage.identity, lineage.head, lineage.former


def _fits(catalog: Catalog, edit: Edit) -> bool:
    """True if what is removed is stored, and what is added may be served. Under the lock."""
    is_there = all(catalog.segments.get(s.number) is s and s.is_ready for s in edit.remove)
    is_hidden = any(s.is_hidden for s in edit.add) or any(s.is_hidden for s in edit.remove if edit.add)
    return is_there and not is_hidden


def _follow(catalog: Catalog, edit: Edit, replaced: frozenset[int]) -> list[Segment | Side]:
    """Bring memory in step with the manifest; the files that nothing names any more. Under the lock.

    What was hidden while the commit ran, or hangs on it, is hidden still, and removed by the next Edit.
    """
    left: list[Segment | Side] = [*edit.remove, *edit.remove_sides]
    lost = [s.number for s in edit.remove if s.is_hidden and s.number in replaced]
    for segment in reversed(edit.remove):
        if segment.number not in replaced:
            for side in catalog.beside(segment):
                catalog.leave_side(side)
                left.append(side)
        catalog.leave(segment)
    for old, new in edit.rehang.items():
        catalog.rehang(old, new)
    for side in edit.remove_sides:
        catalog.leave_side(side)
    for segment in edit.add:
        _store(catalog, segment)
    for side in edit.add_sides:
        left += _store_side(catalog, side)
    if lost:
        numbers = {edit.rehang.get(number, number) for number in lost}
        catalog.hide([catalog.segments[number] for number in numbers], None)
    return left


def _store(catalog: Catalog, segment: Segment) -> None:
    """A segment is stored: one that was entered when it was planned, or that takes another's place."""
    segment.is_ready, segment.ids = True, None
    catalog.enter(segment)


def _store_side(catalog: Catalog, side: Side) -> list[Side]:
    """A side file is stored; the one that it takes the place of."""
    former = catalog.sides.get(side.piece)
    for one in (former, side):
        if one is not None:
            catalog.leave_side(one)
    side.is_ready = True
    catalog.enter_side(side)
    return [former] if former is not None and former is not side and former.is_ready else []


def void(catalog: Catalog, file: Segment | Side, reason: str, text: str) -> None:
    """What a reader does with a file that is "damaged" or "missing": it, and what follows a segment, is found no more.

    One that is "unreadable" is kept, and left alone for a while. Any thread; never raises.
    """
    if reason == "unreadable" or catalog.place.lost is not None:
        catalog.postpone(file, text)
        return
    with catalog.lock:
        if isinstance(file, Side):
            is_known = catalog.sides.get(file.piece) is file
        else:
            is_known = catalog.segments.get(file.number) is file and not file.is_hidden
        if not is_known:
            return
        catalog.counts.damage += 1
        if isinstance(file, Side):
            catalog.hide((), None, [file])
        else:
            catalog.hide([file], reason)
    what = "side file" if isinstance(file, Side) else "segment"
    log.warning("store: a %s is %s and KV will be computed again: %s", what, reason, text)
    with contextlib.suppress(AgentMemoryError):  # the store is closing: the next open finds the damage again
        catalog.io.submit(lambda: remove_hidden(catalog))


def remove_hidden(catalog: Catalog) -> bool:
    """Remove what was hidden; False where the disk refuses, and the next Edit does it. I/O thread."""
    try:
        settle(catalog)
    except WRITE_ERRORS as error:
        catalog.health.failed("KV", error)
        return False
    return True


def check(catalog: Catalog) -> list[str]:
    """Return what is out of step between manifest and memory, one line each. I/O thread; reads all rows.

    Rows == what is stored in memory; ``held_bytes`` == its sum; every child has its parent, stored or being saved.
    """
    with catalog.lock:
        stored = {s.number: s for s in catalog.segments.values() if s.is_ready}
        sides = {side.file: side for side in catalog.all_sides() if side.is_ready}
        rows = {row.segment: row for row in catalog.manifest.segments()}
        side_rows = {side.file: side for side in catalog.manifest.sides()}
        known = {None, *catalog.segments}  # a parent may be in a save that is still being written
        return [
            *_differences("segment", rows.keys(), stored.keys()),
            *_differences("side file", side_rows.keys(), sides.keys()),
            *(
                f"segment {n}: its row is another"
                for n in rows.keys() & stored.keys()
                if not _is_same(rows[n], stored[n])
            ),
            *(
                f"side file {file}: its row is another"
                for file in side_rows.keys() & sides.keys()
                if _facts_of(side_rows[file]) != _facts_of(sides[file])
            ),
            *(f"segment {s.number} has no parent" for s in stored.values() if s.parent_number not in known),
            *(f"side file {s.file} has no segment" for s in sides.values() if s.segment not in stored),
            *_wrong_sum(catalog, [*stored.values(), *sides.values()]),
        ]


def _differences(what: str, rows: Collection[object], memory: Collection[object]) -> Iterator[str]:
    yield from (f"{what} {one} is in the manifest and not in memory" for one in set(rows) - set(memory))
    yield from (f"{what} {one} is in memory and not in the manifest" for one in set(memory) - set(rows))


def _is_same(row: SegmentRow, segment: Segment) -> bool:
    told = row_of(segment)  # pieces are in memory for the attached identity alone; times of use are written later
    return evolve(told, used_s=row.used_s, pieces=told.pieces or row.pieces) == row


def _facts_of(side: Side) -> tuple[object, ...]:
    return side.piece, side.segment, side.file, side.n_rows, side.has_state, side.n_bytes, side.header_xxh3


def _wrong_sum(catalog: Catalog, stored: Sequence[Segment | Side]) -> Iterator[str]:
    n_bytes = sum(file.held_bytes for file in stored)
    if n_bytes != catalog.held_bytes:
        yield f"{n_bytes:,} bytes are stored, {catalog.held_bytes:,} counted"
