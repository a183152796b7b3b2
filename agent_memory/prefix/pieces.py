"""Segment: one file of stored KV, of either kind; Piece: one chunk or tail delta of its rows. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from attrs import define, evolve, field, frozen

from agent_memory.config import Codec
from agent_memory.prefix.authors import Authors, Origins, of_segment, packed
from agent_memory.prefix.chunks import ID_BYTES, piece_id
from agent_memory.prefix.names import new_file
from agent_memory.types import Exactness, weakest

Ids = np.ndarray[Any, np.dtype[np.uint32]]
Kind = Literal["rows", "resume"]

HEAD_IDS = 16  #: leading ids of a piece that are kept in memory: siblings that share the first ids still differ
_HEAD_BYTES = 4 * HEAD_IDS
_PIECE = struct.Struct(f"{ID_BYTES}sB{_HEAD_BYTES}s")
PIECE_BYTES = _PIECE.size  #: bytes of a piece in ``Segment.packed``


@define(eq=False, kw_only=True)
class Segment:
    """One file of KV, or in the warm tier one piece of it in memory.

    - ``rows``: full-attention rows of tokens ``[start, start + n_tokens)`` of a lineage. They follow the piece
      ``parent`` and are divided into ``pieces``.
    - ``resume``: what the other layers need to resume at the end of the piece ``parent``: window rows of its last
      ``n_tokens`` tokens, and the state there if ``has_state``. It has no pieces and no ids.

    ``parent_number``: the segment that has the piece ``parent``; this one depends on it. Rows of the manifest, headers
    and figures are derived from these fields. Only the header of a loaded resume file says its codec.

    A segment that leaves another lineage inside a piece *shares* its first rows: its file has all of its ids, and rows
    from ``shared_stop`` on. Those before are in ``source_number``, at the same positions of the same tokens; what that
    one lacks of them is in its own source, or before it. It depends on both. See ``prefix/sharing.py``.
    """

    kind: Kind = "rows"
    identity: str
    file: str = ""
    parent: bytes
    start: int = 0
    n_tokens: int
    chunk_tokens: int
    exactness: Exactness
    codec: Codec
    host: str
    has_state: bool = False
    n_shared: int = 0  #: of its first piece, and never all of that
    # the fields above never change; those below do
    number: int = 0  #: of rows, the manifest's; of resume segments below 0, and of this process alone
    parent_number: int | None = None
    source_number: int | None = None  #: None: it shares no rows
    used_s: float = 0.0
    n_bytes: int = 0  #: of its file, once that is whole
    header_xxh3: str = ""
    held_bytes: int = 0  #: allocated
    is_ready: bool = False  #: its row is committed
    is_hidden: bool = False  #: not findable any more, and soon removed
    is_unreadable: bool = False  #: True while its file cannot be read
    ids: Ids | None = field(default=None, repr=False)  #: until it is committed
    packed: bytes = field(default=b"", repr=False)  #: its pieces as the manifest has them, until they are ``pieces``
    pieces: list[Piece] = field(factory=list, repr=False)

    @property
    def is_readable(self) -> bool:
        """True if it is committed, and its file can be read as far as is known."""
        return self.is_ready and not self.is_unreadable

    @property
    def stop(self) -> int:
        """Position after its last token."""
        return self.start + self.n_tokens

    @property
    def shared_stop(self) -> int:
        """Position of the first token whose rows are in its own file."""
        return self.start + self.n_shared

    @property
    def n_own(self) -> int:
        """Number of tokens whose rows are in its own file."""
        return self.n_tokens - self.n_shared

    @property
    def needs(self) -> tuple[int, ...]:
        """Numbers of the segments that it depends on."""
        return tuple({one for one in (self.parent_number, self.source_number) if one is not None})

    @property
    def n_chunks(self) -> int:
        """Number of pieces of its rows."""
        return -(-self.n_tokens // self.chunk_tokens)

    def pack(self) -> bytes:
        """Return its pieces as bytes of the manifest."""
        return self.packed or b"".join(_PIECE.pack(p.id, p.made, p.head) for p in self.pieces)

    def made(self) -> list[int]:
        """Return the provenance of its pieces, as far as they are in memory."""
        return [p.made for p in self.pieces] or [made for _, made, _ in _PIECE.iter_unpack(self.packed)]

    def piece_ids(self) -> list[bytes]:
        """Return the ids of its pieces, as far as they are in memory."""
        return [p.id for p in self.pieces] or [id for id, _, _ in _PIECE.iter_unpack(self.packed)]

    def unpack(self) -> list[Piece]:
        """Make its pieces from the bytes of the manifest."""
        parent, size, found = self.parent, self.chunk_tokens, []
        for i, (id, made, head) in enumerate(_PIECE.iter_unpack(self.packed)):
            found.append(Piece(id, parent, self, i, size, made, head))
            parent = id
        last = found[-1]
        last.n_tokens = self.n_tokens - (len(found) - 1) * size
        last.head = last.head[: 4 * last.n_tokens]
        self.pieces, self.packed = found, b""
        return found

    def divide(self, ids: Ids, made: Callable[[int, int], int], authors: Origins | None = None) -> list[Piece]:
        """Make its pieces from its ids; ``made``: returns the provenance of tokens ``[start, stop)`` of the segment.

        ``authors``: of each token; None: the segment stands for itself.
        """
        parent, self.pieces = self.parent, []
        for i, at in enumerate(range(0, len(ids), self.chunk_tokens)):
            own = ids[at : at + self.chunk_tokens]
            piece = Piece(
                piece_id(parent, own), parent, self, i, len(own), made(at, at + len(own)), sort_key(own[:HEAD_IDS])
            )
            if authors is not None:
                piece.seen_authors = packed(authors[at : at + len(own)])
            self.pieces.append(piece)
            parent = piece.id
        return self.pieces

    def successor(self, pieces: Sequence[Piece]) -> Segment:
        """Return a segment that will replace this one, in a new file that is not written yet."""
        new = evolve(
            self,
            file=new_file(self.identity),
            n_bytes=0,
            header_xxh3="",
            held_bytes=0,
            is_ready=False,
            ids=None,
            packed=b"",
            pieces=[],
        )
        new.pieces = [Piece(p.id, p.parent, new, i, p.n_tokens, p.made, p.head) for i, p in enumerate(pieces)]
        for piece, former in zip(new.pieces, pieces, strict=True):
            piece.seen_authors = former.authors
        return new


def resume_segment(
    piece: Piece,
    n_rows: int,
    has_state: bool,
    *,
    codec: Codec = "exact",
    file: str = "",
    exactness: Exactness = "exact",
) -> Segment:
    """Return a resume segment of a piece: window rows of its last ``n_rows`` tokens, maybe the state at its end.

    ``exactness``: what may be said of these beside the promise of the piece, which they never exceed.
    """
    of = piece.segment
    return Segment(
        kind="resume",
        identity=of.identity,
        file=file,
        parent=piece.id,
        parent_number=of.number,
        start=piece.stop - n_rows,
        n_tokens=n_rows,
        chunk_tokens=of.chunk_tokens,
        exactness=weakest(of.exactness, exactness),
        codec=codec,
        host=of.host,
        has_state=has_state,
        used_s=of.used_s,
    )


class Piece:
    """One chunk or tail delta inside a segment."""

    __slots__ = ("head", "id", "index", "made", "n_tokens", "parent", "seen_authors", "segment")

    def __init__(
        self, id: bytes, parent: bytes, segment: Segment, index: int, n_tokens: int, made: int, head: bytes
    ) -> None:
        self.id, self.parent, self.segment, self.index = id, parent, segment, index
        self.n_tokens, self.made, self.head = n_tokens, made, head
        self.seen_authors: Authors | None = None  #: None: not known in this process

    @property
    def authors(self) -> Authors:
        """Who computed the KV of its tokens; where that is not known, its segment stands for itself."""
        return of_segment(self.segment.number) if self.seen_authors is None else self.seen_authors

    @property
    def offset(self) -> int:
        """First token, counted from the segment's first."""
        return self.index * self.segment.chunk_tokens

    @property
    def start(self) -> int:
        """First token, counted from the lineage's first."""
        return self.segment.start + self.offset

    @property
    def stop(self) -> int:
        """The token after its last, counted from the lineage's first."""
        return self.start + self.n_tokens

    def __repr__(self) -> str:
        return f"Piece({self.id.hex()[:8]} [{self.start}, {self.start + self.n_tokens}) segment={self.segment.number})"


def sort_key(ids: Ids) -> bytes:
    """Return bytes that sort as the ids do."""
    return ids.astype(">u4").tobytes()


#: The number of no agent: lineages are given to it and deleted with it.
NOBODY = 2**40


@frozen
class HeadMove:
    """The new head of an agent's lineage, and the former heads that it replaces."""

    agent_id: int
    identity: str
    head: bytes | None  #: None: no head
    former: Sequence[bytes] = ()
