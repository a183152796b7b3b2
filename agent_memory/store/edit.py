"""Edit: one change of the set of stored segments, and the only function that applies it.

- Saves, evictions, joins, deletions and damage each build an Edit.
- Order: the manifest's commit, memory, files.
- A crash before the commit leaves files that nothing names, a crash after it leaves files that nothing names any more;
  the next opening removes both.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence

from attrs import field, frozen

from agent_memory.errors import AgentMemoryError
from agent_memory.log.carried import Arrival
from agent_memory.log.damage import WRITE_ERRORS
from agent_memory.prefix.chunks import root_id
from agent_memory.prefix.pieces import HeadMove, Segment
from agent_memory.prefix.sharing import stretches
from agent_memory.store.catalog import Catalog

log = logging.getLogger("agent_memory.store")


@frozen(kw_only=True)
class Edit:
    """One change of the set of stored segments.

    - The files of ``add`` are whole and synced.
    - A segment in ``add`` with the number of one in ``remove`` replaces it; dependent segments stay with that number.
    - A segment that depends on one in ``remove`` is in ``remove`` too, or ``rehang`` moves it. Resume segments are
      always removed with the segment they depend on. A resume segment in ``add`` replaces the one of its piece.
    """

    add: Sequence[Segment] = ()
    remove: Sequence[Segment] = ()
    rehang: Mapping[int, int] = field(factory=dict)  #: number of a removed segment -> number of its replacement
    lineage: HeadMove | None = None
    heads: Mapping[bytes, bytes] = field(factory=dict)  #: head of a lineage -> the piece that replaces it
    ended_agent: int | None = None  #: the same commit deletes its log and its record
    arrival: Arrival | None = None  #: an agent whose log the same commit stores
    arrived: Sequence[HeadMove] = ()  #: the lineages of that agent and of its versions

    @property
    def replaced(self) -> frozenset[int]:
        """Numbers of removed segments that have a replacement."""
        return frozenset({s.number for s in self.remove} & {s.number for s in self.add} | self.rehang.keys())


def apply(catalog: Catalog, edit: Edit) -> bool:
    """Apply an Edit to manifest, memory and files. False, and nothing changed, if it no longer fits.

    I/O thread. Raises what the manifest raises; then nothing changed. Hidden segments are removed first.
    """
    settle(catalog)
    return _apply(catalog, edit)


def settle(catalog: Catalog) -> None:
    """Remove hidden segments. I/O thread; raises what the manifest raises: then they stay hidden, and counted."""
    while n_hidden := len(catalog.hidden):
        with catalog.lock:
            gone = {s.number: s for hidden in list(catalog.hidden)[:n_hidden] for s in hidden}
            there = [s for s in gone.values() if s.is_ready and catalog.segments.get(s.number) is s]
        if there:
            _apply(catalog, Edit(remove=there))
        for _ in range(n_hidden):
            catalog.hidden.popleft()


def _apply(catalog: Catalog, edit: Edit) -> bool:
    disk = catalog.disk
    with catalog.lock:
        if not _fits(catalog, edit):
            return False
        removed, used = _removed(catalog, edit), catalog.take_uses()
        lost = _lost(catalog, edit, removed)
        dependents = {old: [one.number for one in catalog.dependents(old, "rows")] for old in edit.rehang}
    moved, fallen = _moved(catalog, edit), _fallen(catalog, lost, edit.ended_agent)
    kept = {segment.number for segment in edit.add}
    disk.manifest.commit(
        add=edit.add,
        remove=[s for s in removed if s.number not in kept],
        rehang=edit.rehang,
        dependents=dependents,
        heads=moved,
        lineage=edit.lineage,
        ended_agent=edit.ended_agent,
        arrival=edit.arrival,
        moves=[*edit.arrived, *fallen],
        used=used,
        written=str(disk.admission.written),
    )
    with catalog.lock:
        left = _follow(catalog, edit, removed)
        moves = [edit.lineage] if edit.lineage is not None else []
        catalog.ends.move([*moves, *edit.arrived, *fallen], edit.heads, edit.ended_agent)
        for move in fallen:
            catalog.pins.note(move.agent_id, move.head)
    for path in map(disk.path, left):
        if not path.parent.is_symlink():  # files behind a link are not the store's
            disk.files.unlink(path)
    catalog.edited()
    return True


def _fits(catalog: Catalog, edit: Edit) -> bool:
    """True if all segments to remove are stored, and those to add may be served. Under the lock."""
    is_there = all(catalog.segments.get(s.number) is s and s.is_ready for s in edit.remove if s.kind == "rows")
    is_hidden = any(s.is_hidden for s in edit.add) or any(s.is_hidden for s in edit.remove if edit.add)
    return is_there and not is_hidden


def _removed(catalog: Catalog, edit: Edit) -> list[Segment]:
    """Return the segments to remove, parents first, with the resume segments of those not replaced. Under the lock."""
    replaced, found = edit.replaced, dict[int, Segment]()
    for segment in edit.remove:
        if catalog.segments.get(segment.number) is segment:
            found[segment.number] = segment
            if segment.number not in replaced:
                found |= {one.number: one for one in catalog.dependents(segment.number, "resume") if one.is_ready}
    return list(found.values())


def _lost(catalog: Catalog, edit: Edit, removed: Sequence[Segment]) -> list[Segment]:
    """Return the removed rows that nothing replaces, with their pieces. Under the lock."""
    return [s for s in removed if s.kind == "rows" and s.number not in edit.replaced]


def _fallen(catalog: Catalog, lost: Sequence[Segment], ended: int | None) -> list[HeadMove]:
    """Return the moves of lineages that end in removed pieces: each to the last piece before them that stays.

    A lineage whose end was evicted or damaged so still leads to the rest of its KV: else nobody would delete that.
    I/O thread; reads all lineages if segments of a model that is not attached are removed.
    """
    before: dict[bytes, bytes] = {}
    for segment, ids in catalog.disk.manifest.pieces_of(lost):
        before |= dict(zip(ids, (segment.parent, *ids), strict=False))
    found: list[HeadMove] = []
    for holder, identity, head in _ends(catalog, before, lost):
        if holder == ended:
            continue
        last = head
        while last in before:
            last = before[last]
        found.append(HeadMove(holder, identity, None if last == root_id(identity) else last, [head]))
    return found


def _moved(catalog: Catalog, edit: Edit) -> list[HeadMove]:
    """Return the moves of lineages that end in pieces which an Edit replaces. I/O thread."""
    ends = _ends(catalog, edit.heads, edit.add)
    return [HeadMove(holder, identity, edit.heads[head], [head]) for holder, identity, head in ends]


def _ends(catalog: Catalog, pieces: Collection[bytes], segments: Sequence[Segment]) -> list[tuple[int, str, bytes]]:
    """Return (holder, identity, piece) of the lineages that end in some pieces of ``segments``.

    Of the attached model nothing is read but one row each; else all lineages are.
    """
    if not pieces:
        return []
    manifest, attached = catalog.disk.manifest, catalog.model.identity if catalog.model is not None else None
    if attached is None or any(segment.identity != attached for segment in segments):
        return [end for end in manifest.heads() if end[2] in pieces]
    with catalog.lock:
        noted = [(one, piece) for piece in pieces for one in catalog.ends.others(piece, None)]
    return [(one, attached, piece) for one, piece in noted if manifest.has_head([one], attached, piece)]


def _follow(catalog: Catalog, edit: Edit, removed: Sequence[Segment]) -> list[Segment]:
    """Change memory as the manifest was changed; return the files that nothing names any more. Under the lock.

    Segments hidden during the commit, and those that depend on them, stay hidden; the next Edit removes them.
    """
    lost = [s.number for s in edit.remove if s.is_hidden and s.number in edit.replaced]
    left = catalog.change(edit.add, removed, edit.rehang)
    if lost:
        numbers = {edit.rehang.get(number, number) for number in lost}
        catalog.hide([catalog.segments[number] for number in numbers], None)
    return left


def void(catalog: Catalog, segment: Segment, reason: str, text: str) -> None:
    """Hide a file that a reader found "damaged" or "missing", and all that depends on it.

    An "unreadable" file is kept, and not read for a while. Any thread; never raises.
    """
    is_kept = reason == "unreadable" or catalog.disk.place.lost is not None
    with catalog.lock:
        if is_kept:
            for one in [segment, *_sharing(catalog, segment)]:
                catalog.losses.postpone(one, text)
            return
        if catalog.segments.get(segment.number) is not segment or segment.is_hidden:
            return
        if catalog.disk.is_read_only and reason == "missing":  # whoever writes the store has removed it
            catalog.hide([segment], "evicted")
            return
        catalog.disk.counts.damage += 1
        catalog.hide([segment], reason)
    what = "resume file" if segment.kind == "resume" else "segment"
    log.warning("store: a %s is %s and KV will be computed again: %s", what, reason, text)
    if catalog.disk.is_read_only:
        return
    with contextlib.suppress(AgentMemoryError):  # the store is closing: the next open finds the damage again
        catalog.disk.io.submit(lambda: remove_hidden(catalog))


def _sharing(catalog: Catalog, segment: Segment) -> list[Segment]:
    """Return all whose rows are in a segment, or in one that shares its rows."""
    found = catalog.borrowers(segment)
    for one in found:
        found += catalog.borrowers(one)
    return found


def remove_hidden(catalog: Catalog) -> bool:
    """Remove hidden segments; False if the disk refuses: then the next Edit does it. I/O thread."""
    try:
        settle(catalog)
    except WRITE_ERRORS as error:
        catalog.disk.health.failed("KV", error)
        return False
    return True


def check(catalog: Catalog) -> list[str]:
    """Return the differences between manifest and memory, one line each. I/O thread; reads all rows.

    - Rows == stored segments in memory.
    - ``held_bytes`` == the sum over stored segments.
    - Every segment that another one depends on is stored or being saved, and has the rows that it shares.
    """
    with catalog.lock:
        stored = {_name(s): s for s in catalog.segments.values() if s.is_ready}
        rows = {_name(s): s for s in catalog.disk.manifest.segments()}
        differ = catalog.disk.manifest.differ
        known = {None, *catalog.segments}  # a parent may be in a save that is still being written
        n_bytes = sum(segment.held_bytes for segment in stored.values())
        found = [
            *(f"{name} is in the manifest and not in memory" for name in rows.keys() - stored.keys()),
            *(f"{name} is in memory and not in the manifest" for name in stored.keys() - rows.keys()),
            *(f"{n}: its row is another" for n in rows.keys() & stored.keys() if differ(rows[n], stored[n])),
            *(f"{name} has no parent" for name, s in stored.items() if s.parent_number not in known),
            *(f"{name}: {text}" for name, s in stored.items() if (text := _lacks(catalog, s)) is not None),
        ]
        if n_bytes != catalog.held_bytes:
            found.append(f"{n_bytes:,} bytes are stored, {catalog.held_bytes:,} counted")
        return found


def _lacks(catalog: Catalog, segment: Segment) -> str | None:
    """Return which shared rows of a segment are nowhere; None: it has them all."""
    try:
        stretches(catalog.segments, segment, segment.start, segment.shared_stop)
    except LookupError as error:
        return str(error)
    return None


def _name(segment: Segment) -> str:
    return f"segment {segment.number}" if segment.kind == "rows" else f"resume file {segment.file}"
