"""Adopting: KV that was fetched becomes segments of the store, as a save's would, with its author's host and promise.

- Pieces are entered before their bytes are queued: no save writes them again.
- Budget, the day's bytes and the disk's health are those of every save. What is refused stays in the bucket.
- It waits for nothing: files are written and committed by the I/O thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from attrs import define, evolve, field

from agent_memory.exchange.chunks import Bytes, Chunk, Fetched, Resume
from agent_memory.prefix.authors import of_tag, unpacked
from agent_memory.prefix.names import new_file
from agent_memory.prefix.pieces import Piece, Segment, resume_segment
from agent_memory.prefix.provenance import SEGMENT_CHUNKS
from agent_memory.store.catalog import Attached, Catalog
from agent_memory.store.planning import Part, Plan
from agent_memory.store.save import Save
from agent_memory.types import Exactness, weakest

log = logging.getLogger("agent_memory.remote")

_Run = Sequence[tuple[Chunk, Exactness]]


@define
class _Entered:
    """What of a fetch was entered, with what its files will hold."""

    runs: list[_Run] = field(factory=list)
    rows: list[Segment] = field(factory=list)  #: one of each run
    sides: list[tuple[Segment, Resume]] = field(factory=list)

    def plan(self) -> Plan:
        """Return the save that writes it."""
        head = self.rows[-1].pieces[-1].id if self.rows and self.rows[-1].pieces else None
        sides = [segment for segment, _ in self.sides]
        return Plan(rows=_parts(self.rows), resume=_parts(sides), head=head, is_turn=False)


def adopt(catalog: Catalog, identity: str, fetched: Fetched) -> int:
    """Queue what of a fetch is not stored; return how many tokens that is. Any thread but the I/O thread's."""
    entered = _Entered()
    save: Save | None = None
    try:
        with catalog.lock:
            model = catalog.model
            if model is None or model.identity != identity or catalog.disk.is_read_only:
                return 0
            _enter_all(catalog, model, fetched, entered)
            save = Save(catalog, entered.plan())
        for number, run in enumerate(entered.runs):
            for tensor in range(len(model.layout.tensors)):
                save.put(number, tensor, np.concatenate([one.tensors[tensor] for one, _ in run], axis=1))
        for number, (segment, resume) in enumerate(entered.sides):
            save.put_side(number, *_side(resume, segment))
    except BaseException:  # what was entered must not stay without its bytes
        (save or Save(catalog, entered.plan())).abandon()
        raise
    save.finish()
    return sum(segment.n_tokens for segment in entered.rows)


def _enter_all(catalog: Catalog, model: Attached, fetched: Fetched, entered: _Entered) -> None:
    """Enter what of a fetch is not stored; nothing if it is refused. Under the lock."""
    chunks = model.index.chunks(fetched.ids, ready=False)
    fetched = _as_stored(fetched, chunks)
    runs = list(_runs(model, fetched, len(chunks)))
    if _is_refused(catalog, fetched, runs):
        log.info("remote: %d fetched tokens are not stored: the disk or its budget has no room", len(fetched.ids))
        return
    before = chunks[-1] if chunks else None
    for run in runs:
        before = _enter(catalog, model, run, before, entered)
    _enter_resume(catalog, model, fetched, entered)


def _parts(segments: Sequence[Segment]) -> tuple[Part, ...]:
    return tuple(Part(segment, segment.start) for segment in segments)


def _as_stored(fetched: Fetched, chunks: Sequence[Piece]) -> Fetched:
    """Return a fetch with the promises that it keeps behind what is stored before it by now. Under the lock.

    Another run may have stored a chunk meanwhile that was fetched too, or one of those before the first fetched one.
    """
    stored = unpacked((piece.authors, piece.n_tokens) for piece in chunks)
    own = np.concatenate([fetched.before, fetched.authors])[: len(stored)]
    if np.array_equal(stored, own):
        return fetched
    return evolve(fetched, promises=[weakest(one, "recomputed") for one in fetched.promises])


def _runs(model: Attached, fetched: Fetched, n_stored: int) -> Iterator[_Run]:
    """Yield the chunks behind the first ``n_stored``, in runs of one segment each. Under the lock."""
    stored = n_stored * model.index.chunk_tokens
    pairs = [pair for pair in zip(fetched.chunks, fetched.promises, strict=True) if pair[0].start >= stored]
    if not pairs or pairs[0][0].start > stored:
        return  # nothing is new, or the pieces before them are gone
    for _, alike in groupby(pairs, lambda pair: (pair[1], pair[0].codec, pair[0].host)):
        found = list(alike)
        for at in range(0, len(found), SEGMENT_CHUNKS):
            yield found[at : at + SEGMENT_CHUNKS]


def _is_refused(catalog: Catalog, fetched: Fetched, runs: Sequence[_Run]) -> bool:
    disk = catalog.disk
    if not disk.health.may_save or fetched.n_bytes > disk.quota.budget_bytes:
        return True
    n_tokens = sum(len(one.ids) for run in runs for one, _ in run)
    return bool(runs) and disk.admission.refusal(b"", n_tokens, fetched.n_bytes, is_promised=True) is not None


def _enter(catalog: Catalog, model: Attached, run: _Run, before: Piece | None, entered: _Entered) -> Piece:
    """Enter the segment of some chunks, which follow the piece ``before``; return its last. Under the lock."""
    index, (first, exactness) = model.index, run[0]
    ids = np.concatenate([one.ids for one, _ in run])
    segment = Segment(
        identity=model.identity,
        file=new_file(model.identity),
        parent=before.id if before is not None else index.root,
        parent_number=before.segment.number if before is not None else None,
        start=first.start,
        n_tokens=len(ids),
        chunk_tokens=index.chunk_tokens,
        exactness=exactness,
        codec=first.codec,
        host=first.host,
        used_s=time.time(),
        ids=ids,
    )
    entered.runs.append(run)
    entered.rows.append(segment)
    catalog.enter(segment)
    authors = unpacked((of_tag(one.tag), len(one.ids)) for one, _ in run)
    for piece in segment.divide(ids, lambda start, stop: run[start // index.chunk_tokens][0].made, authors):
        index.add(piece, ids[piece.offset : piece.offset + piece.n_tokens])
        catalog.losses.forget(piece.parent, piece.id)
    return segment.pieces[-1]


def _enter_resume(catalog: Catalog, model: Attached, fetched: Fetched, entered: _Entered) -> None:
    """Enter the resume segments of a fetch, one for each chunk that its window rows reach into. Under the lock."""
    resume = fetched.resume
    if resume is None:
        return
    pieces = model.index.chunks(fetched.ids, ready=False)
    if not pieces or pieces[-1].stop != resume.stop:
        return
    for piece in pieces:
        n_rows = piece.stop - max(piece.start, resume.start)
        has_state = piece is pieces[-1] and resume.state is not None
        if (n_rows <= 0 and not has_state) or piece.id in catalog.resume:
            continue
        codec = resume.codec if n_rows > 0 else "exact"
        told, file = fetched.exactness, new_file(model.identity)
        segment = resume_segment(piece, max(0, n_rows), has_state, codec=codec, file=file, exactness=told)
        entered.sides.append((segment, resume))
        catalog.enter(segment)


def _side(resume: Resume, segment: Segment) -> tuple[list[Bytes], Bytes | None]:
    """Return a resume segment's window rows and state."""
    first = segment.start - resume.start
    rows = [np.ascontiguousarray(one[:, first : first + segment.n_tokens]) for one in resume.windows]
    return rows if segment.n_tokens else [], resume.state if segment.has_state else None
