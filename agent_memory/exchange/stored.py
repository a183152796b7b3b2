"""The store's own chunks as they are published: read from files, checked, with their tags. Any thread but I/O's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import numpy as np
from attrs import define, field, frozen

from agent_memory.exchange.chunks import ROOT_TAG, Bytes, Chunk, Resume, tag_of
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.segments import OpenSegment
from agent_memory.log.damage import READ_ERRORS, reason_of
from agent_memory.prefix.pieces import Ids, Piece, Segment
from agent_memory.prefix.resume import Needs
from agent_memory.prefix.sharing import Stretch, stretches
from agent_memory.store.catalog import Attached, Catalog
from agent_memory.store.edit import void
from agent_memory.types import weakest

_REMEMBERED = 1 << 16  #: tags in memory
_WHOLE_BYTES = 256 << 20  #: a segment up to this size is read once for all of its chunks


class GoneError(Exception):
    """Internal: a chunk of the store's is not there any more, or cannot be read."""


@frozen
class _Tag:
    """A chunk's tag, while it is in that segment and follows that parent."""

    segment: int
    parent: str
    tag: str


@define
class Whole:
    """The rows of one segment in memory, for who reads its chunks one after another."""

    _segment: Segment | None = None
    _tensors: list[Bytes] = field(factory=list)

    def of(self, segment: Segment, source: OpenSegment, layout: Layout) -> list[Bytes]:
        """Return the rows of a segment's own file, read and checked once."""
        if self._segment is not segment:
            self._segment, self._tensors = None, []
            n_tensors = len(layout.tensors)
            self._tensors = [source.rows(layout, tensor, 0, segment.n_own) for tensor in range(n_tensors)]
            self._segment = segment
        return self._tensors


class Stored:
    """Reads chunks of one store, and remembers their tags. Any thread."""

    def __init__(self) -> None:
        self._tags: dict[bytes, _Tag] = {}
        self._lock = threading.Lock()

    def chain(self, catalog: Catalog, head: bytes) -> tuple[list[Piece], bool]:
        """Return the full chunks of a lineage from its first token on, as far as they may be published.

        Also False if they end before one that is not committed yet.
        """
        with catalog.lock:
            model = catalog.model
            if model is None or head not in model.index.pieces:
                return [], True
            pieces = list(reversed(list(model.index.ancestors(model.index.pieces[head]))))
        found: list[Piece] = []
        for piece in pieces:
            segment = piece.segment
            is_full = piece.n_tokens == model.index.chunk_tokens and piece.start == len(found) * piece.n_tokens
            is_lossy = segment.exactness == "quantized"
            if is_full and not segment.is_ready:
                return found, False
            if not is_full or not segment.is_readable or segment.codec != model.codec:
                break
            if is_lossy and segment.codec == "exact":
                break  # under the exact name it would pose as exact
            found.append(piece)
        return found, True

    def tag(self, catalog: Catalog, pieces: Sequence[Piece]) -> str:
        """Return the tag of the last of a lineage's first chunks. Reads those whose tags are not known.

        Raises GoneError.
        """
        tag, whole = ROOT_TAG, Whole()
        for piece in pieces:
            tag = self.tag_after(catalog, piece, tag, whole)
        return tag

    def tag_after(self, catalog: Catalog, piece: Piece, parent_tag: str, whole: Whole) -> str:
        """Return the tag of one chunk, which is read if its tag is not known. Raises GoneError."""
        known = self._known(piece, parent_tag)
        return known if known is not None else self.read(catalog, piece, parent_tag, whole).tag

    def _known(self, piece: Piece, parent: str) -> str | None:
        with self._lock:
            known = self._tags.get(piece.id)
        is_same = known is not None and known.segment == piece.segment.number and known.parent == parent
        return known.tag if known is not None and is_same else None

    def read(self, catalog: Catalog, piece: Piece, parent_tag: str, whole: Whole) -> Chunk:
        """Return one chunk, checked. ``whole``: the caller's own, for the next chunk. Raises GoneError."""
        model = catalog.model
        assert model is not None
        segment, number = piece.segment, piece.segment.number
        tensors, ids = self._rows(catalog, model, piece, whole)
        chunk = Chunk(
            start=piece.start,
            ids=ids,
            made=piece.made,
            exactness=segment.exactness,
            codec=segment.codec,
            host=segment.host,
            parent_tag=parent_tag,
            tag=tag_of(parent_tag, tensors),
            tensors=tensors,
        )
        with self._lock:
            self._tags[piece.id] = _Tag(number, parent_tag, chunk.tag)
            while len(self._tags) > _REMEMBERED:
                del self._tags[next(iter(self._tags))]
        return chunk

    def _rows(self, catalog: Catalog, model: Attached, piece: Piece, whole: Whole) -> tuple[list[Bytes], Ids]:
        """Return a chunk's tensors and its ids."""
        with catalog.lock:
            try:
                parts = stretches(catalog.segments, piece.segment, piece.start, piece.stop)
            except LookupError as error:
                raise GoneError(str(error)) from error
        with contextlib.ExitStack() as stack:
            opened = [(self._open(catalog, stack, one.segment), one) for one in parts]
            if any(source.codec != piece.segment.codec for source, _ in opened):
                raise GoneError("its rows are in files of several codecs")
            reading = parts[-1].segment
            try:
                ids = opened[-1][0].ids()[piece.offset : piece.offset + piece.n_tokens]
                if len(parts) == 1 and reading.n_bytes <= _WHOLE_BYTES:
                    first = parts[0].first_row
                    rows = whole.of(reading, opened[0][0], model.layout)
                    tensors = [np.ascontiguousarray(one[:, first : first + piece.n_tokens]) for one in rows]
                    return tensors, ids.astype(np.uint32)
                tensors = []
                for tensor in range(len(model.layout.tensors)):
                    found = []
                    for source, one in opened:
                        reading, first = one.segment, one.first_row
                        found.append(source.rows(model.layout, tensor, first, first + one.stop - one.start))
                    tensors.append(np.ascontiguousarray(np.concatenate(found, axis=1)))
            except READ_ERRORS as error:
                raise _gone(catalog, reading, error) from error
        return tensors, ids.astype(np.uint32)

    def _open(self, catalog: Catalog, stack: contextlib.ExitStack, segment: Segment) -> OpenSegment:
        try:
            return stack.enter_context(
                contextlib.closing(OpenSegment(catalog.disk.path(segment), segment, catalog.disk.keys))
            )
        except READ_ERRORS as error:
            raise _gone(catalog, segment, error) from error

    def resume(self, catalog: Catalog, pieces: Sequence[Piece], tag: str) -> Resume | None:
        """Return what other layers need at the end of the last of a lineage's first chunks; None if it is not stored.

        ``tag``: of that chunk. Raises GoneError.
        """
        with catalog.lock:
            model = catalog.model
            needs = None if model is None else model.needs
            found = None if needs is None else _spans(catalog, pieces, needs)
        if model is None or needs is None or found is None:
            return None
        stop = pieces[-1].stop
        with contextlib.ExitStack() as stack:
            opened = [(self._open(catalog, stack, one.segment), one) for one in found]
            codecs = {source.codec for source, one in opened if one.start < one.stop} or {"exact"}
            reading = found[-1].segment
            if len(codecs) > 1 or not codecs <= {model.codec, "exact"}:
                return None
            try:
                windows = []
                for spec in model.layout.windows:
                    rows = []
                    for source, one in opened:
                        reading = one.segment
                        if one.start < one.stop:
                            raw = np.frombuffer(source.tensor(spec.name), np.uint8)
                            held = raw.reshape(spec.heads, one.segment.n_tokens, -1)
                            rows.append(held[:, one.start - one.segment.start : one.stop - one.segment.start])
                    windows.append(np.ascontiguousarray(np.concatenate(rows, axis=1)))
                state = None
                if needs.state:
                    source, one = opened[-1]
                    state = np.frombuffer(source.tensor("state"), np.uint8)
            except READ_ERRORS as error:
                raise _gone(catalog, reading, error) from error
        return Resume(
            start=needs.first_row(stop),
            stop=stop,
            codec=codecs.pop(),
            exactness=weakest(*(source.exactness for source, _ in opened), pieces[-1].segment.exactness),
            tag=tag,
            windows=windows,
            state=state,
        )


def _spans(catalog: Catalog, pieces: Sequence[Piece], needs: Needs) -> list[Stretch] | None:
    """Return where the window rows and the state at the end of a lineage are, the last piece last. Under the lock."""
    stop = pieces[-1].stop
    first = needs.first_row(stop)
    found: list[Stretch] = []
    for piece in reversed(pieces):
        if piece.stop <= first and piece is not pieces[-1]:
            break
        segment = catalog.resume.get(piece.id)
        start = max(piece.start, first)
        if segment is None or not segment.is_readable or segment.start > start:
            return None
        if piece is pieces[-1] and needs.state and not segment.has_state:
            return None
        found.append(Stretch(segment, start, piece.stop))
    return list(reversed(found))


def _gone(catalog: Catalog, segment: Segment, error: BaseException) -> GoneError:
    void(catalog, segment, reason_of(error), str(error))
    return GoneError(str(error))
