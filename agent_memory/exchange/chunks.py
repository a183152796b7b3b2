"""What an object of KV holds: the rows of one chunk, or what the other layers need to resume at its end. Pure.

- ``rows``: the full-attention tensors of a chunk in layout order, (heads, chunk_tokens, row_bytes) each, then its ids.
- ``resume``: the window rows of one window before the end of a chunk, and the state there. One object from one run.
- Each has the tag of the lineage that its author had (docs/exactness.md).
- A reader believes nothing: sizes, ids and tags are compared with what it asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xxhash
from attrs import evolve, field, frozen

from agent_memory.config import Codec
from agent_memory.kvcache.coding import coded, named
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.state_shapes import check_packed
from agent_memory.log.soundness import BAD_JSON, is_line
from agent_memory.prefix.authors import Origins, of_tag, origins, unpacked
from agent_memory.prefix.chunks import common_prefix
from agent_memory.prefix.pieces import Ids
from agent_memory.prefix.provenance import DECODED, MADE
from agent_memory.prefix.resume import Needs
from agent_memory.remote.failures import ObjectDamagedError
from agent_memory.remote.objects import RemoteObject
from agent_memory.types import EXACTNESS, Exactness, weakest

FORMAT = 1
Kind = Literal["rows", "resume"]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
ROOT_TAG = ""  #: the tag before the first chunk


def tag_of(parent: str, tensors: Iterable[bytes | memoryview | Bytes]) -> str:
    """Return the tag of a chunk: a hash of its parent's tag and its bytes. Some 9 GB/s."""
    digest = xxhash.xxh3_128(parent.encode())
    for one in tensors:
        digest.update(one if isinstance(one, bytes | memoryview) else _flat(one))
    return digest.hexdigest()


@frozen(kw_only=True)
class Asked:
    """The chunk that an object is expected to be, as the asking host derives it from the tokens."""

    start: int  #: its first token
    ids: Ids = field(eq=False, repr=False)
    codec: Codec

    @property
    def stop(self) -> int:
        """Position after its last token."""
        return self.start + len(self.ids)


@frozen(kw_only=True)
class Chunk:
    """The rows of one chunk, verified. ``tensors``: (heads, n_tokens, row_bytes) uint8 each, as the codec has them."""

    start: int
    ids: Ids = field(eq=False, repr=False)
    made: int  #: a key of ``MADE``
    exactness: Exactness  #: the author's promise
    codec: Codec
    host: str
    parent_tag: str
    tag: str
    tensors: Sequence[Bytes] = field(eq=False, repr=False)

    @property
    def stop(self) -> int:
        """Position after its last token."""
        return self.start + len(self.ids)

    @property
    def n_bytes(self) -> int:
        """Bytes of its rows."""
        return sum(one.nbytes for one in self.tensors)

    def header(self) -> Mapping[str, Any]:
        """Return what its object's header says."""
        return {
            "format": FORMAT,
            "start": self.start,
            "n_tokens": len(self.ids),
            "made": self.made,
            "exactness": self.exactness,
            "codec": self.codec,
            "host": self.host,
            "parent_tag": self.parent_tag,
            "tag": self.tag,
        }

    def parts(self) -> list[memoryview]:
        """Return what its object holds."""
        return [_flat(one) for one in self.tensors] + [_flat(self.ids.astype("<u4"))]


@frozen(kw_only=True)
class Resume:
    """What the other layers need at ``stop``: window rows ``[start, stop)`` and maybe the state, verified."""

    start: int
    stop: int
    codec: Codec  #: of the window rows
    exactness: Exactness
    tag: str  #: of the chunk that ends at ``stop``, in the lineage that it is of
    windows: Sequence[Bytes] = field(eq=False, repr=False)  #: (heads, stop - start, row_bytes) each; () without windows
    state: Bytes | None = field(default=None, eq=False, repr=False)

    @property
    def n_bytes(self) -> int:
        """Its bytes."""
        return sum(one.nbytes for one in self.windows) + (0 if self.state is None else self.state.nbytes)

    def header(self) -> Mapping[str, Any]:
        """Return what its object's header says."""
        return {
            "format": FORMAT,
            "start": self.start,
            "stop": self.stop,
            "codec": self.codec,
            "exactness": self.exactness,
            "tag": self.tag,
            "has_state": self.state is not None,
        }

    def parts(self) -> list[memoryview]:
        """Return what its object holds."""
        return [_flat(one) for one in self.windows] + ([] if self.state is None else [_flat(self.state)])


@frozen(eq=False, kw_only=True)
class Fetched:
    """KV of tokens ``[start, stop)`` that was fetched, in memory; before ``start`` comes the store's own.

    ``promises``: of each chunk, the weakest of all up to there. A ``Resume`` is there where the model needs one.
    ``before``: authors of the store's own tokens, as they were when ``promises`` were found.
    """

    ids: Ids = field(repr=False)  #: of ``[0, stop)``
    start: int
    chunks: Sequence[Chunk] = field(repr=False)
    promises: Sequence[Exactness]
    resume: Resume | None = None
    before: Origins = field(factory=lambda: np.zeros(0, np.uint32), repr=False)

    @property
    def stop(self) -> int:
        """Position after its last token."""
        return self.chunks[-1].stop

    @property
    def n_bytes(self) -> int:
        """Bytes that it holds in memory."""
        return sum(one.n_bytes for one in self.chunks) + (0 if self.resume is None else self.resume.n_bytes)

    @property
    def exactness(self) -> Exactness:
        """The weakest promise of its KV and of that before it."""
        return self.promises[-1]

    @property
    def made(self) -> Origins:
        """Provenance of each of its tokens."""
        flags = [one.made | (DECODED if one.exactness == "quantized" else 0) for one in self.chunks]
        return origins(self.authors, np.repeat(np.array(flags, np.uint32), [len(one.ids) for one in self.chunks]))

    @property
    def authors(self) -> Origins:
        """Authors of its tokens: the same for the same bytes, whoever fetched or stored them."""
        return unpacked((of_tag(one.tag), len(one.ids)) for one in self.chunks)

    def up_to(self, ids: Ids) -> Fetched | None:
        """Return the part of it that is a prefix of ``ids``, in whole chunks; None if there is none."""
        shared = common_prefix(self.ids, ids)
        if shared >= self.stop:
            return self
        chunks = [one for one in self.chunks if one.stop <= shared]
        if not chunks or self.resume is not None:
            return None
        return evolve(self, ids=self.ids[: chunks[-1].stop], chunks=chunks, promises=self.promises[: len(chunks)])


def read_chunk(found: RemoteObject, asked: Asked, layout: Layout) -> Chunk:
    """Return an object's rows. Raises ObjectDamagedError if it is not the chunk that was asked for."""
    header, n = found.header, len(asked.ids)
    told = (header.get("format"), header.get("start"), header.get("n_tokens"), header.get("codec"))
    if told != (FORMAT, asked.start, n, asked.codec):
        raise ObjectDamagedError(f"its header tells of {told}")
    exactness, made = _exactness(header), header.get("made")
    if not isinstance(made, int) or made not in MADE or (asked.codec == "exact") is (exactness == "quantized"):
        raise ObjectDamagedError("its header contradicts its name")
    specs = [coded(spec, asked.codec) for spec in layout.tensors]
    if found.n_parts != len(specs) + 1:
        raise ObjectDamagedError(f"{found.n_parts} parts for {len(specs)} tensors")
    parent, tag = _text(header, "parent_tag"), _text(header, "tag")
    parts, tensors = found.opening(), list[Bytes]()

    def rows() -> Iterator[Bytes]:
        for spec, raw in zip(specs, parts, strict=False):  # the ids are behind them
            tensors.append(_shaped(raw, spec.heads, n, spec.row_bytes))
            yield tensors[-1]

    found_tag = tag_of(parent, rows())  # each while it is in the core's cache
    if bytes(next(parts)) != asked.ids.astype("<u4").tobytes():
        raise ObjectDamagedError("it holds other ids than its name says")
    if found_tag != tag:
        raise ObjectDamagedError("its tag is not that of its bytes")
    return Chunk(
        start=asked.start,
        ids=asked.ids,
        made=made,
        exactness=exactness,
        codec=asked.codec,
        host=_text(header, "host"),
        parent_tag=parent,
        tag=tag,
        tensors=tensors,
    )


def read_resume(found: RemoteObject, stop: int, codec: Codec, layout: Layout, needs: Needs) -> Resume:
    """Return an object's window rows and state. Raises ObjectDamagedError if they are not those needed at ``stop``.

    ``codec``: the asking host's; window rows are in that one, or exact.
    """
    header = found.header
    start = needs.first_row(stop)
    told = (header.get("format"), header.get("start"), header.get("stop"), header.get("has_state"))
    if told != (FORMAT, start, stop, needs.state):
        raise ObjectDamagedError(f"its header tells of {told}")
    try:
        own = named(_text(header, "codec"))
    except ValueError as error:
        raise ObjectDamagedError(str(error)) from error
    exactness = _exactness(header)
    if own not in (codec, "exact") or (codec == "exact" and exactness == "quantized"):
        raise ObjectDamagedError("its header contradicts its name")
    specs = [coded(spec, own) for spec in layout.windows]
    if found.n_parts != len(specs) + needs.state:
        raise ObjectDamagedError(f"{found.n_parts} parts for {len(specs)} tensors")
    parts = found.parts()
    if needs.state:
        try:
            check_packed(parts[-1], layout.snapshots)
        except BAD_JSON as error:
            raise ObjectDamagedError(str(error)) from error
    rows = zip(parts, specs, strict=False)  # the state is behind them
    return Resume(
        start=start,
        stop=stop,
        codec=own,
        exactness=exactness,
        tag=_text(header, "tag"),
        windows=[_shaped(raw, one.heads, stop - start, one.row_bytes) for raw, one in rows],
        state=np.frombuffer(parts[-1], np.uint8) if needs.state else None,
    )


def promises(chunks: Sequence[Chunk], before: str | None) -> list[Exactness]:
    """Return what may be said of each chunk: the weakest promise up to there, by the rule of docs/exactness.md.

    ``before``: the tag of what the store has itself before the first; None: it is not known.
    """
    so_far: Exactness = "moved"
    tag = before
    found: list[Exactness] = []
    for one in chunks:
        so_far = weakest(so_far, one.exactness, "moved" if one.parent_tag == tag else "recomputed")
        found.append(so_far)
        tag = one.tag
    return found


def _exactness(header: Mapping[str, Any]) -> Exactness:
    for one in EXACTNESS:
        if header.get("exactness") == one:
            return one
    raise ObjectDamagedError(f"its exactness is {header.get('exactness')!r}")


def _text(header: Mapping[str, Any], name: str) -> str:
    """Return one of a header's names, tags and marks: a line that files and messages can hold."""
    value = header.get(name)
    if not is_line(value):
        raise ObjectDamagedError(f"its header has no {name}")
    return value


def _shaped(raw: bytes | memoryview, heads: int, n: int, row_bytes: int) -> Bytes:
    if len(raw) != heads * n * row_bytes:
        raise ObjectDamagedError(f"a tensor has {len(raw):,} bytes, not {heads * n * row_bytes:,}")
    return np.frombuffer(raw, np.uint8).reshape(heads, n, row_bytes)


def _flat(array: np.ndarray[Any, Any]) -> memoryview:
    return memoryview(np.ascontiguousarray(array)).cast("B")  # type: ignore[arg-type]
