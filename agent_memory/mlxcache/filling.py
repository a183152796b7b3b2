"""Fill a row's caches from stored bytes: read in place, with spare capacity, complete before anything uses them."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import mlx.core as mx

from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.mlxcache import codecs, states, windows
from agent_memory.mlxcache.kinds import leaves, regrown, roomy
from agent_memory.mlxcache.together import Buffers, SharedRow
from agent_memory.mlxcache.windows import WindowKVCache
from agent_memory.protocols import Source


class _RoomyFile(io.RawIOBase):
    """A safetensors file that exists while mx.load reads it: rows scattered into buffers with spare capacity.

    mx.load allocates each tensor and asks this object to fill it: bytes go from the page cache to their final place,
    with no copy and no zeroing. On a CPU, whose buffers do not move, the object only notes the addresses, and ``fill``
    fills them on two threads. Several sources are rows of one tensor each.
    """

    def __init__(
        self, specs: Sequence[tuple[TensorSpec, int]], sources: Sequence[Source], *, is_cpu: bool, first: int = 0
    ) -> None:
        super().__init__()
        self._sources = sources
        self._later: deque[tuple[Source, int, memoryview, int]] | None = deque() if is_cpu else None
        self._at = 0
        self._starts: dict[int, tuple[int, int]] = {}
        header: dict[str, Any] = {}
        end = 0
        for number, (spec, capacity) in enumerate(specs, first):
            size = len(sources) * spec.token_bytes * capacity
            shape = [len(sources), spec.heads, capacity, spec.dim]
            header[spec.name] = {"dtype": spec.dtype, "shape": shape, "data_offsets": [end, end + size]}
            self._starts[end] = (number, capacity)
            end += size
        text = json.dumps(header).encode()
        self._header, self._size = struct.pack("<Q", len(text)) + text, end

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._header) + self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, out: Any) -> int:
        """Serve one read: mx.load reads the header in parts, then each tensor whole."""
        view = memoryview(out).cast("B")
        if self._at < len(self._header):
            view[:] = self._header[self._at : self._at + len(view)]
        else:
            tensor, capacity = self._starts[self._at - len(self._header)]
            row_bytes = len(view) // len(self._sources)
            for row, source in enumerate(self._sources):
                part = view[row * row_bytes : (row + 1) * row_bytes]
                if self._later is None:
                    source.read_into(tensor, part, capacity)
                else:
                    self._later.append((source, tensor, part, capacity))
        size = len(view)
        self._at += size
        return size

    def fill(self, arrays: Any, helper: Executor | None) -> None:
        """Read the tensors whose addresses were noted. Most of it is first touches of memory; two threads halve it.

        ``work`` must not close over the arrays: the frames of a kept traceback hold their functions, and so the arrays.
        """
        left = self._later or deque()

        def work(_held: Any = None) -> None:
            while left:
                try:
                    source, tensor, out, capacity = left.popleft()
                except IndexError:  # the other thread took the last one
                    return
                source.read_into(tensor, out, capacity)

        other = None
        if helper is not None and left:
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
                other = helper.submit(work, arrays)  # the helper writes to it: wait, whatever strikes this thread
        try:
            work()
        finally:
            left.clear()
        if other is not None:
            other.result()


def fill(layout: Layout, source: Source, empty: Sequence[Any], helper: Executor | None = None) -> list[Any]:
    """Return the caches of ``empty`` with all rows and states of ``source``, and spare capacity.

    ``helper``: a second thread that shares the reading. It must be running: a thread started while an exception strikes
    its starter may die before it begins, and the starter would wait for it forever.
    """
    specs = _specs(layout, source, empty)
    arrays = _read(specs, [source], helper)
    for number, (spec, _) in enumerate(specs):
        _decode(number, spec, source, arrays)
    return _filled(layout, source, empty, arrays)


def fill_together(
    layout: Layout, sources: Sequence[Source], empties: Sequence[Sequence[Any]], helper: Executor | None = None
) -> list[list[Any]]:
    """Do what ``fill`` does for several sources, whose rows share each layer's buffers. Full attention only."""
    capacity = roomy(max(source.n_tokens for source in sources))
    specs = [(spec, capacity) for spec in layout.tensors]
    arrays = _read(specs, sources, helper)
    for number, (spec, _) in enumerate(specs):
        for row, source in enumerate(sources):
            _decode(number, spec, source, arrays, row)
    rows = iter([arrays.pop(spec.name) for spec in layout.tensors])
    layers = [Buffers(keys, values) for keys, values in zip(rows, rows, strict=True)]
    return [
        regrown(empty, iter([SharedRow(layer, row, source.n_tokens) for layer in layers]))
        for row, (source, empty) in enumerate(zip(sources, empties, strict=True))
    ]


def filling(layout: Layout, source: Source, empty: Sequence[Any]) -> Iterator[list[Any] | None]:
    """Do what ``fill`` does, a tensor at a time: yield None after each, and last the caches."""
    arrays: dict[str, Any] = {}
    for number, (spec, capacity) in enumerate(_specs(layout, source, empty)):
        arrays |= _read([(spec, capacity)], [source], None, first=number)
        _decode(number, spec, source, arrays)
        yield None
    yield _filled(layout, source, empty, arrays)


def _specs(layout: Layout, source: Source, empty: Sequence[Any]) -> list[tuple[TensorSpec, int]]:
    """Return every tensor with the tokens to allocate for it."""
    n_tokens = source.n_tokens
    room = max((c.room for c in leaves(empty) if type(c) is WindowKVCache), default=0)
    n_rows = n_tokens - source.held_from
    held = max(n_rows, min(layout.window + room, n_rows + room))
    return [*((t, roomy(n_tokens)) for t in layout.tensors), *((t, held) for t in layout.windows)]


def _read(
    specs: Sequence[tuple[TensorSpec, int]], sources: Sequence[Source], helper: Executor | None, *, first: int = 0
) -> dict[str, Any]:
    """Return tensors by name, a row for each source, filled but for encoded rows. ``first``: the first one's number."""
    is_cpu = bool(mx.default_device() == mx.Device(mx.cpu))
    # mx.load asks for read, seek and tell; its stubs for BinaryIO
    file: Any = _RoomyFile(specs, sources, is_cpu=is_cpu, first=first)
    arrays: Any = mx.load(file, format="safetensors") if specs else {}
    mx.eval(arrays)
    file.fill(arrays, helper)  # all bytes are read when this returns, so that they can be verified before use
    return dict(arrays)


def _decode(number: int, spec: TensorSpec, source: Source, arrays: dict[str, Any], row: int = 0) -> None:
    """Decode a source's encoded rows of one tensor into it."""
    for span in source.encoded(number):
        arrays[spec.name][row, :, span.start : span.stop] = codecs.decode(span.rows, span.coding, spec.dtype)
        mx.eval(arrays[spec.name])  # one tensor at a time: only its rows are in memory beside the result


def _filled(layout: Layout, source: Source, empty: Sequence[Any], arrays: dict[str, Any]) -> list[Any]:
    """Return the caches with their tensors and states."""
    n_tokens, start = source.n_tokens, source.held_from
    blob = source.read_state() if layout.snapshots else None
    marked = iter(states.unpacked(blob) if blob is not None else [])
    rows = {
        kind: iter([arrays[t.name] for t in found])
        for kind, found in (("full", layout.tensors), ("window", layout.windows))
    }
    filled: list[Any] = []
    for cache, kind in zip(leaves(empty), layout.kinds, strict=True):
        if kind == "full":
            cache.keys, cache.values, cache.offset = next(rows[kind]), next(rows[kind]), n_tokens
        elif kind == "window":
            cache = windows.filled(cache, next(rows[kind]), next(rows[kind]), start, n_tokens)
        elif (state := next(marked, None)) is not None:  # None if damaged: the caller then discards these caches
            states.give(cache, state)
        filled.append(cache)
    return regrown(empty, iter(filled))
