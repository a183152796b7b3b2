"""Segment: one file of stored KV, of either kind; Piece: one chunk or tail delta of its rows. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from attrs import define, evolve, field, frozen, setters

from agent_memory.config import Codec
from agent_memory.prefix.chunks import ID_BYTES, piece_id
from agent_memory.prefix.names import new_file
from agent_memory.types import Exactness

Ids = np.ndarray[Any, np.dtype[np.uint32]]
Kind = Literal["rows", "resume"]

HEAD_IDS = 16  #: leading ids of a piece that are kept in memory: siblings that share a template's opening still differ
_CHANGES = setters.NO_OP  #: of a field that changes while the segment is kept; every other one is frozen
_HEAD_BYTES = 4 * HEAD_IDS
_PIECE = struct.Struct(f"{ID_BYTES}sB{_HEAD_BYTES}s")
PIECE_BYTES = _PIECE.size  #: of a piece in ``Segment.packed``


@define(eq=False, kw_only=True, on_setattr=setters.frozen)
class Segment:
    """One file of KV, or in the warm tier one piece of it in memory.

    - ``rows``: full-attention rows of tokens ``[start, start + n_tokens)`` of a lineage. They follow the piece
      ``parent`` and are divided into ``pieces``.
    - ``resume``: what all other layers need to resume at the end of the piece ``parent``: window rows of its last
      ``n_tokens`` tokens, and the state there where ``has_state``. It has no pieces and no ids.

    ``parent_number``: the segment that holds ``parent``, which this one depends on. Rows of the manifest, headers of
    files and figures are derived from these fields. A loaded resume file's codec stands in its header alone.
    """

    kind: Kind = "rows"
    number: int = field(
        default=0, on_setattr=_CHANGES
    )  #: of rows, the manifest's; of resume segments below 0, and of this process alone
    identity: str
    file: str = ""
    parent: bytes
    parent_number: int | None = field(default=None, on_setattr=_CHANGES)
    start: int = 0
    n_tokens: int
    chunk_tokens: int
    exactness: Exactness
    codec: Codec
    host: str
    has_state: bool = field(default=False, converter=bool)
    used_s: float = field(default=0.0, on_setattr=_CHANGES)

    n_bytes: int = field(default=0, on_setattr=_CHANGES)  #: from here on: known once its file is whole
    header_xxh3: str = field(default="", on_setattr=_CHANGES)
    held_bytes: int = field(default=0, on_setattr=_CHANGES)  #: allocated

    is_ready: bool = field(default=False, on_setattr=_CHANGES)  #: its row is committed
    is_hidden: bool = field(default=False, on_setattr=_CHANGES)  #: it is to be removed, and found no more
    is_unreadable: bool = field(default=False, on_setattr=_CHANGES)  #: for a while: its file cannot be read now
    ids: Ids | None = field(default=None, repr=False, on_setattr=_CHANGES)  #: until it is committed
    packed: bytes = field(
        default=b"", repr=False, on_setattr=_CHANGES
    )  #: its pieces as the manifest has them, until they are ``pieces``
    pieces: list[Piece] = field(factory=list, repr=False, on_setattr=_CHANGES)

    @property
    def is_readable(self) -> bool:
        """True if it is committed, and its file can be read as far as is known."""
        return self.is_ready and not self.is_unreadable

    @property
    def stop(self) -> int:
        """The token after its last."""
        return self.start + self.n_tokens

    @property
    def n_chunks(self) -> int:
        """How many pieces its rows have."""
        return -(-self.n_tokens // self.chunk_tokens)

    def pack(self) -> bytes:
        """Return its pieces as the manifest has them."""
        return self.packed or b"".join(
            _PIECE.pack(p.id, p.made, p.head)
            for p in self.pieces  # ``pack`` pads the head
        )

    def made(self) -> list[int]:
        """Return the provenance of its pieces, as far as they are in memory."""
        return [p.made for p in self.pieces] or [made for _, made, _ in _PIECE.iter_unpack(self.packed)]

    def piece_ids(self) -> list[bytes]:
        """Return the ids of its pieces, as far as they are in memory."""
        return [p.id for p in self.pieces] or [id for id, _, _ in _PIECE.iter_unpack(self.packed)]

    def unpack(self, packed: bytes) -> list[Piece]:
        """Make its pieces out of what the manifest has of them."""
        parent, size, found = self.parent, self.chunk_tokens, []
        for i, (id, made, head) in enumerate(_PIECE.iter_unpack(packed)):
            found.append(Piece(id, parent, self, i, size, made, head))
            parent = id
        last = found[-1]
        last.n_tokens = self.n_tokens - (len(found) - 1) * size
        last.head = last.head[: 4 * last.n_tokens]
        self.pieces = found
        return found

    def divide(self, ids: Ids, made: Callable[[int, int], int]) -> list[Piece]:
        """Make its pieces out of its ids; ``made``: the provenance of tokens ``[start, stop)`` of the segment."""
        parent, self.pieces = self.parent, []
        for i, at in enumerate(range(0, len(ids), self.chunk_tokens)):
            own = ids[at : at + self.chunk_tokens]
            piece = Piece(
                piece_id(parent, own), parent, self, i, len(own), made(at, at + len(own)), sort_key(own[:HEAD_IDS])
            )
            self.pieces.append(piece)
            parent = piece.id
        return self.pieces

    def successor(self, pieces: Sequence[Piece], **changes: Any) -> Segment:
        """Return a segment that is to take the place of this one, in a file of its own that is not written yet."""
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
            **changes,
        )
        new.pieces = [Piece(p.id, p.parent, new, i, p.n_tokens, p.made, p.head) for i, p in enumerate(pieces)]
        return new


def resume_segment(piece: Piece, n_rows: int, has_state: bool, *, codec: Codec = "exact", file: str = "") -> Segment:
    """Return the resume segment of a piece: window rows of its last ``n_rows`` tokens, maybe the state at its end."""
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
        exactness=of.exactness,
        codec=codec,
        host=of.host,
        has_state=has_state,
        used_s=of.used_s,
    )


class Piece:
    """One chunk or tail delta inside a segment."""

    __slots__ = ("head", "id", "index", "made", "n_tokens", "parent", "segment")

    def __init__(
        self, id: bytes, parent: bytes, segment: Segment, index: int, n_tokens: int, made: int, head: bytes
    ) -> None:
        self.id, self.parent, self.segment, self.index = id, parent, segment, index
        self.n_tokens, self.made, self.head = n_tokens, made, head

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


#: The number of an agent that never is: lineages are given to it, and end with it.
NOBODY = 2**40


@frozen
class HeadMove:
    """Where an agent's lineage ends now, and the former ends that it replaces."""

    agent_id: int
    identity: str
    head: bytes | None  #: None: nowhere
    former: Sequence[bytes] = ()
