"""The catalog: the set of stored segments in memory, and which of their pieces can be found.

Look-ups come from the engine thread and read memory (and at most a few KB of token ids from a file). One lock guards
the set; no thread waits for the disk while it has the lock.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from threading import RLock

from attrs import define, field

from agent_memory.config import Codec, chosen_codec
from agent_memory.kvcache.coding import fitted, is_lossy
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.segments import stored_ids
from agent_memory.log.damage import WRITE_ERRORS
from agent_memory.log.files import KV_FOLDER, Files
from agent_memory.log.health import Health, is_disk_error
from agent_memory.log.logs import Logs
from agent_memory.log.place import Place
from agent_memory.prefix.chunks import root_id
from agent_memory.prefix.index import Index
from agent_memory.prefix.pieces import Ids, Kind, Piece, Segment
from agent_memory.prefix.resume import Needs, Plan, best_plan
from agent_memory.prefix.sharing import note_sharing
from agent_memory.progress import Progress, silent
from agent_memory.sealing.keys import Keys
from agent_memory.store.ends import Ends
from agent_memory.store.folder import Quota, default_budget
from agent_memory.store.io import IOThread
from agent_memory.store.losses import Losses
from agent_memory.store.manifest import Manifest
from agent_memory.store.writing import Unwritten, WriteAdmission, Written

_REPORT_EVERY = 1_000  #: segments that are indexed between two reports of progress


@define
class Counts:
    """Counts since the store was opened, for ``stats``."""

    damage: int = 0
    save_failures: int = 0
    bytes_written: int = 0
    skipped: Counter[str] = field(factory=Counter)  #: saves that were not begun, or were abandoned, by reason
    unwritten: Unwritten = field(factory=Unwritten)


@define
class Disk:
    """The folder of KV files, the manifest, and the one thread that changes them."""

    folder: Path
    manifest: Manifest
    io: IOThread
    files: Files
    health: Health
    place: Place
    quota: Quota
    admission: WriteAdmission
    counts: Counts = field(factory=Counts)
    clock: Callable[[], float] = time.time
    on_commit: Callable[[], None] = lambda: None  #: after each save, on the I/O thread
    on_stored: Callable[[bytes], None] = lambda head: None  #: after each save, with its last piece; on the I/O thread
    is_read_only: bool = False  #: True if another process may write the folder, and this one never does
    unfinished: dict[str, int] = field(factory=dict)  #: bytes of files that are being written; I/O thread

    def path(self, segment: Segment) -> Path:
        """Return the path of a segment's file."""
        return self.folder / segment.file

    @property
    def keys(self) -> Keys | None:
        """What the files are encrypted under; None: nothing."""
        return self.manifest.database.keys

    def note_written(self, segment: Segment) -> None:
        """Count a finished file. I/O thread."""
        self.counts.bytes_written += segment.n_bytes
        self.admission.spend(segment.n_bytes)

    def tidy(self, call: Callable[[], None]) -> None:
        """Run work that needs a writable disk; if the disk refuses, a later call does it."""
        try:
            call()
        except WRITE_ERRORS as error:
            if is_disk_error(error):
                self.health.failed("KV", error)


def open_disk(
    root: Path,
    manifest: Manifest,
    io: IOThread,
    files: Files,
    health: Health,
    place: Place,
    *,
    budget_bytes: int | None,
    bytes_per_day: int | None,
    compute_s: Callable[[int], float | None],
) -> Disk:
    """Return the disk of the store in the folder ``root``. ``compute_s``: seconds to compute a number of tokens."""
    written = Written.parse(manifest.database.meta("written"))
    return Disk(
        folder=root / KV_FOLDER,
        manifest=manifest,
        io=io,
        files=files,
        health=health,
        place=place,
        quota=Quota(root, budget_bytes if budget_bytes is not None else default_budget(root)),
        admission=WriteAdmission(bytes_per_day, written, compute_s),
    )


class Pins:
    """Numbers of pinned agents, and the heads of their lineages: their KV leaves memory last, and stays on disk."""

    def __init__(self) -> None:
        self.agents: set[int] = set()
        self._heads: set[bytes] = set()

    def load(self, logs: Logs, manifest: Manifest) -> None:
        """Read the pins of all salts; again after another model is attached or a pin has changed."""
        self.agents.clear()
        self.agents.update(logs.pinned())
        self._heads = {head for agent, _, head in manifest.heads() if agent in self.agents} if self.agents else set()

    def note(self, agent_id: int | None, head: bytes | None) -> None:
        """Record that an agent's lineage ends, or will end, at ``head``."""
        if agent_id in self.agents and head is not None:
            self._heads.add(head)

    def covers(self, segment: Segment) -> bool:
        """True if the lineage of a pinned agent ends in a segment; all that it depends on stays with it."""
        return bool(self._heads) and any(id in self._heads for id in segment.piece_ids())


@define
class Attached:
    """The model whose KV is looked up and saved, and the index of its pieces."""

    identity: str
    layout: Layout
    host: str
    codec: Codec  #: codec of new KV
    needs: Needs | None  #: None: every layer is full attention
    index: Index
    abandoned: set[bytes] = field(factory=set)  #: pieces reachable only through turns since rewound or replaced


class Catalog:
    """Segments of all identities; pieces of the attached one.

    - A segment is *entered* when a save plans it, *stored* once its row is committed (``is_ready``).
    - What is stored changes in ``edit.apply`` alone, on the I/O thread.
    - ``hide`` takes segments out of the index at once, on any thread. They stay stored until the Edit that removes them
      is applied.
    - ``held_bytes``: the sum of the ``held_bytes`` of all stored segments.
    - A segment depends on those that it ``needs``: it is removed with them, or before.
    """

    def __init__(self, disk: Disk, pins: Pins, *, codec: Codec = "exact") -> None:
        self.disk, self.pins, self.losses, self.ends = disk, pins, Losses(), Ends(disk.manifest.has_head)
        self.lock = RLock()
        self.segments: dict[int, Segment] = {}  # by number, both kinds
        self.resume: dict[bytes, Segment] = {}  # findable resume segments, by piece
        self.model: Attached | None = None
        self.awaited: dict[int, tuple[Ids, int]] = {}  # ids of holders whose pieces are not all found yet
        self.held_bytes = 0  # allocated bytes of all stored segments
        self.hidden: deque[Collection[Segment]] = deque()  # to be removed; see ``edit.settle``
        #: number of an agent -> seconds until its next turn, where one is expected soon
        self.waits: Callable[[], Mapping[int, float]] = dict
        self._codec = codec
        self._last_number, self._resume_numbers = 0, count(-1, -1)  # rows have numbers above 0
        self._dependents: dict[int, dict[int, Segment]] = {}  # number -> segments that depend on it
        self._uses: dict[int, float] = {}  # times of use not yet in the manifest

    # opening

    def attach(self, identity: str, layout: Layout, host: str, chunk_tokens: int, report: Progress = silent) -> None:
        """Index the pieces of one identity. ~3 us a piece."""
        with self.lock:
            mine = [s for s in self.segments.values() if s.kind == "rows" and s.identity == identity and s.is_ready]
            if not all(segment.packed for segment in mine):
                packed = self.disk.manifest.packed(identity)
                for segment in mine:
                    segment.packed = packed.get(segment.number, b"")
            for segment in self.segments.values():
                segment.pieces = []
            index = self.build_index(identity, chunk_tokens, [s for s in mine if not s.is_hidden], report)
            for segment in self.segments.values():
                segment.packed = b""
            self.model = Attached(
                identity,
                layout,
                host,
                "exact",
                None if layout.is_full else Needs.of(layout, chunk_tokens),
                index,
            )
            note_sharing(self.segments)
            self.ends.load(self.disk.manifest.heads(), identity)
            self.choose({})

    def choose(self, choices: Mapping[str, str]) -> None:
        """Encode new KV of the attached model as the setting says. ``choices``: codecs by "auto:0.002" and the like."""
        with self.lock:
            if self.model is not None:
                codec = fitted(self.model.layout, chosen_codec(self._codec, choices))
                self.model.codec = codec if is_lossy(self.model.layout, codec) else "exact"

    def build_index(
        self, identity: str, chunk_tokens: int, segments: Collection[Segment], report: Progress = silent
    ) -> Index:
        """Unpack segments, parents before children, and index their pieces."""
        n_segments = len(segments)

        def reported() -> Iterator[Segment]:
            for number, segment in enumerate(sorted(segments, key=lambda s: s.number)):
                if number % _REPORT_EVERY == 0:
                    report(number, n_segments, "indexing")
                yield segment

        index = Index(root_id(identity), chunk_tokens, self._read_ids)
        index.fill(
            piece
            for segment in reported()
            if segment.packed and segment.chunk_tokens == chunk_tokens
            for piece in segment.unpack()
        )
        return index

    # looking up

    def plan(self, ids: Ids) -> Plan:
        """Return the pieces of the longest prefix of ``ids`` that can be restored. Under the lock."""
        assert self.model is not None
        self.losses.retry()
        if self.model.needs is None:
            return Plan(self.model.index.plan(ids))
        return best_plan(self.model.index.paths(ids, every_end=True), self.resume, self.model.needs)

    def _read_ids(self, piece: Piece) -> Ids | None:
        """Return a piece's ids, from the end of its file; None if they cannot be read. Not verified."""
        segment = piece.segment
        if segment.ids is not None:
            return segment.ids[piece.offset : piece.offset + piece.n_tokens]
        stop = piece.offset + piece.n_tokens
        found = stored_ids(self.disk.path(segment), segment, self.disk.keys, piece.offset, stop)
        return found if len(found) else None

    def touch(self, segments: Iterable[Segment]) -> None:
        """Record that segments, and all that they depend on, were used now."""
        now = time.time()
        with self.lock:
            queue = list(segments)
            for at in queue:
                if at.used_s < now:
                    at.used_s = now
                    self._uses[at.number] = now
                    queue += [self.segments[number] for number in at.needs if number in self.segments]

    def take_uses(self) -> dict[int, float]:
        """Return the times of use that the manifest lacks; the caller writes them."""
        with self.lock:
            uses, self._uses = self._uses, {}
        return uses

    # hiding

    def hide(self, segments: Collection[Segment], reason: str | None) -> None:
        """Make segments, and all that depends on them, unfindable; the next Edit removes them.

        ``reason``: given to later look-ups. Memory only; under the lock, any thread.
        """
        gone = self.family(segments)
        for segment in gone:
            segment.is_hidden = True
            if reason is not None and segment.kind == "rows":
                self.losses.remember(segment, reason)
        for segment in reversed(gone):
            self._unfind(segment)
        self.hidden.append(gone)

    def family(self, segments: Collection[Segment]) -> list[Segment]:
        """Return segments with all that depends on them, parents before children. Under the lock."""
        found = {segment.number: segment for segment in segments}
        queue = list(found)
        for number in queue:
            fresh = {n: s for n, s in self._dependents.get(number, {}).items() if n not in found}
            found |= fresh
            queue += fresh
        return list(found.values())

    def dependents(self, number: int, kind: Kind) -> list[Segment]:
        """Return the segments of a kind that depend on one, entered and hidden ones too. Under the lock."""
        return [one for one in self._dependents.get(number, {}).values() if one.kind == kind]

    def borrowers(self, segment: Segment) -> list[Segment]:
        """Return the segments that share rows of a segment, entered and hidden ones too. Under the lock."""
        others = self._dependents.get(segment.number, {}).values()
        return [one for one in others if one.source_number == segment.number]

    # the set itself: ``enter`` is called by saves too, the others by ``edit.apply`` alone; under the lock

    def enter(self, segment: Segment) -> None:
        """Add a segment, and give it a number if it has none; rows get the highest number so far plus one.

        If it is stored, its bytes are counted and its pieces are findable.
        """
        if not segment.number:
            segment.number = self._last_number + 1 if segment.kind == "rows" else next(self._resume_numbers)
        self._last_number = max(self._last_number, segment.number)
        self.segments[segment.number] = segment
        for number in segment.needs:
            self._dependents.setdefault(number, {})[segment.number] = segment
        if segment.kind == "resume":
            self.resume[segment.parent] = segment
        if not segment.is_ready:
            return
        self.held_bytes += segment.held_bytes
        if self.model is not None and segment.identity == self.model.identity:
            for piece in segment.pieces:
                if self.model.index.pieces.get(piece.id) is not piece:
                    self.model.index.add(piece)

    def leave(self, segment: Segment) -> None:
        """Remove a segment; the caller removes or moves the segments that depend on it."""
        self._unfind(segment)
        self._uses.pop(segment.number, None)
        if self.segments.get(segment.number) is not segment:
            return
        del self.segments[segment.number]
        self.held_bytes -= segment.held_bytes if segment.is_ready else 0
        for number in segment.needs:
            others = self._dependents.get(number, {})
            others.pop(segment.number, None)
            if not others:
                self._dependents.pop(number, None)

    def change(self, add: Sequence[Segment], remove: Sequence[Segment], rehang: Mapping[int, int]) -> list[Segment]:
        """Change the set as an Edit says; return the segments whose files nothing names any more.

        ``remove``: parents first. A resume segment in ``add`` replaces the one of its piece. What a save has entered
        after pieces that are gone now is hidden: that save is abandoned.
        """
        left = list(remove)
        for segment in reversed(remove):
            self.leave(segment)
        for old, new in rehang.items():
            moved = self._dependents.pop(old, {})
            for other in moved.values():
                other.parent_number = new if other.parent_number == old else other.parent_number
                other.source_number = new if other.source_number == old else other.source_number
            self._dependents.setdefault(new, {}).update(moved)
        for segment in add:
            former = self.resume.get(segment.parent) if segment.kind == "resume" else None
            if former is not None and former is not segment:
                self.leave(former)
                left += [former] if former.is_ready else []
            segment.is_ready, segment.ids = True, None
            self.enter(segment)
        orphans = [
            one
            for number in {rehang.get(s.number, s.number) for s in remove if s.kind == "rows"}
            for one in self._dependents.get(number, {}).values()
            if not self._has_what_it_needs(one, number)
        ]
        if orphans:
            self.hide(orphans, None)
        return left

    def _has_what_it_needs(self, one: Segment, number: int) -> bool:
        """True if segment ``number`` is there, with the piece or the rows for which ``one`` depends on it."""
        of = self.segments.get(number)
        if of is None or (one.parent_number == number and one.parent not in of.piece_ids()):
            return False
        return one.source_number != number or one.shared_stop <= of.stop

    def edited(self) -> None:
        """Do nothing. Called after each Edit, on the I/O thread: tests replace it by ``check``."""

    def _unfind(self, segment: Segment) -> None:
        """Remove a segment's pieces from the index, or a resume segment from its piece."""
        if self.resume.get(segment.parent) is segment:
            del self.resume[segment.parent]
        for piece in reversed(segment.pieces) if self.model is not None else ():
            assert self.model is not None
            self.model.abandoned.discard(piece.id)
            if self.model.index.pieces.get(piece.id) is piece:
                self.model.index.remove(piece)
