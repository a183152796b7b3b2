"""The body of a segment's file under a key: header, tensors and ids in parts, each encrypted and bound to its place.

- No checksums beside the seals, and no second pass over the bytes: a part that opens is the part that was written.
- Parts begin and end where the rows of a head do, or inside one head: a restore decrypts them where they belong.
- A file is bound to its name: exchanged files do not open. Sizes are visible, and how many parts there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field

from agent_memory.kvfile.checked import STEP_BYTES, preadv, read_start
from agent_memory.kvfile.format import Extent, file_sum, table_of
from agent_memory.log.files import Files
from agent_memory.sealing.box import SALT_BYTES, TAG_BYTES, Box
from agent_memory.sealing.keys import Keys

MAGIC = b"agent_memory.kv3"  #: how a sealed file begins; its salt and the length of its header follow
PART_BYTES = 256 << 10  #: most bytes of a part: it stays in the core's cache while it is opened
_HEAD_BYTES = 16 << 10  #: heads of fewer bytes share a part
_SALT_AT, _LENGTH_AT = len(MAGIC), len(MAGIC) + SALT_BYTES
_HEADER_AT = _LENGTH_AT + 8
_HEADER, _IDS, _TENSORS = 0, 1, 1 << 32  #: numbers of parts: of the header, from the ids' on, from the tensors' on


@define
class _Cut:
    """How one tensor is divided into parts."""

    nbytes: int
    head: int  #: bytes of one head
    first: int  #: number of its first part
    place: int = 0  #: where its first part is in the file
    parts: list[tuple[int, int]] = field(init=False)  #: start and stop of each in the tensor

    def __attrs_post_init__(self) -> None:
        head, n = self.head, self.nbytes
        if head > PART_BYTES:
            self.parts = [
                (at, min(at + PART_BYTES, start + head))
                for start in range(0, n, head)
                for at in range(start, start + head, PART_BYTES)
            ]
        else:
            step = head if head >= _HEAD_BYTES else max(1, PART_BYTES // max(1, head)) * head
            self.parts = [(at, min(at + step, n)) for at in range(0, n, step or 1)]

    @property
    def sealed_bytes(self) -> int:
        """Its bytes in the file."""
        return self.nbytes + TAG_BYTES * len(self.parts)

    def sealed_at(self, part: int) -> int:
        """Return where a part begins in the file."""
        return self.place + self.parts[part][0] + TAG_BYTES * part


def _cuts(table: Mapping[str, Any], data_start: int) -> dict[str, _Cut]:
    """Return how each entry of a header's table is divided: tensors in order, ids last. Padding is not stored."""
    found: dict[str, _Cut] = {}
    number, place = _TENSORS, data_start
    for name, entry in table.items():
        if name.startswith("pad."):
            continue
        start, stop = entry["data_offsets"]
        shape, n = entry["shape"], stop - start
        heads = shape[0] if len(shape) == 3 and shape[0] else 1
        cut = found[name] = _Cut(n, n // heads, _IDS if name == "ids" else number)
        cut.place = place
        place += cut.sealed_bytes
        number += len(cut.parts)
    return found


def _bound(name: str) -> bytes:
    return MAGIC + name.encode()


def _box(keys: Keys, name: str, salt: bytes | None = None) -> Box:
    return Box(keys.key("kv"), _bound(name), salt)


class SealedWriter:
    """Writes tensors sealed to their places, and the header last. I/O thread only. ``name``: the finished file's."""

    def __init__(self, name: str, places: Sequence[Extent], facts: Mapping[str, str], keys: Keys) -> None:
        table = table_of(places)
        self._box = box = _box(keys, name)
        sealed = box.seal(_HEADER, json.dumps({"__metadata__": dict(facts), **table}, separators=(",", ":")).encode())
        self._head = MAGIC + box.salt + struct.pack("<Q", len(sealed)) + sealed
        self._cuts = _cuts(table, len(self._head))
        self._next = dict.fromkeys(self._cuts, 0)
        self._left = {name: bytearray() for name in self._cuts}  # bytes of parts that are not whole yet

    @property
    def n_bytes(self) -> int:
        """Size of the finished file."""
        return len(self._head) + sum(cut.sealed_bytes for cut in self._cuts.values())

    def write(self, files: Files, fd: int, place: Extent, at: int, data: memoryview) -> None:
        """Write the next bytes of one tensor: the parts that are whole with them."""
        cut, left, first = self._cuts[place.name], self._left[place.name], self._next[place.name]
        parts = cut.parts[first:]
        out = memoryview(bytearray(len(left) + len(data) + TAG_BYTES * len(parts)))
        n_out, data = 0, data.cast("B")
        for number, (start, stop) in enumerate(parts, cut.first + first):
            need = stop - start - len(left)
            if len(data) < need:
                break
            plain: memoryview | bytearray = data[:need]
            if left:
                left += plain
                plain = left
            self._box.seal_into(number, plain, out[n_out : n_out + stop - start + TAG_BYTES])
            n_out += stop - start + TAG_BYTES
            data, left = data[need:], bytearray()
            self._next[place.name] += 1
        left += data
        self._left[place.name] = left
        if n_out:
            files.write(fd, out[:n_out], cut.sealed_at(first))

    def finish(self, files: Files, fd: int, ids: bytes) -> str:
        """Write ids and header; return the header's checksum."""
        if (cut := self._cuts.get("ids")) is not None:
            parts = enumerate(cut.parts, cut.first)
            sealed = b"".join(self._box.seal(number, ids[start:stop]) for number, (start, stop) in parts)
            files.write(fd, memoryview(sealed), cut.place)
        files.write(fd, memoryview(self._head), 0)
        return file_sum(self._head)


class SealedReader:
    """An open file whose header was opened; whatever it returns is what was written. Any thread.

    Raises ValueError if the file is damaged, not sealed, or of another key, and what ``READ_ERRORS`` names.
    """

    def __init__(self, fd: int, n_bytes: int, name: str, keys: Keys) -> None:
        self._fd = fd
        self._spare: list[memoryview] = []  # of ``_scratch``: two for each thread that has read
        if os.pread(fd, _SALT_AT, 0) != MAGIC:
            raise ValueError("it is not sealed, and the store is encrypted")
        raw = read_start(fd, n_bytes, _LENGTH_AT)
        self._box = _box(keys, name, raw[_SALT_AT:_LENGTH_AT])
        self.table: dict[str, Any] = json.loads(self._box.open(_HEADER, raw[_HEADER_AT:]))
        self.metadata: dict[str, str] = self.table.pop("__metadata__")
        self.header_sum = file_sum(raw)
        self._cuts = _cuts(self.table, len(raw))
        if len(raw) + sum(cut.sealed_bytes for cut in self._cuts.values()) != n_bytes:
            raise ValueError("its header is of another size")

    def tensor(self, name: str) -> memoryview:
        """Return one whole tensor, or the ids."""
        cut = self._cuts[name]
        raw = memoryview(bytearray(cut.nbytes))
        for number, (start, stop), sealed in self._sealed(cut):
            self._box.open_into(number, sealed, raw[start:stop])
        return raw

    def fill(self, name: str, runs: Sequence[memoryview], first: int) -> None:
        """Fill one run of each head of a tensor, ``first`` bytes from the head's start on, decrypted in place.

        Only the parts with bytes of them are read.
        """
        cut = self._cuts[name]

        def inside(start: int, stop: int) -> list[tuple[int, memoryview]]:
            heads = range(start // cut.head, (stop - 1) // cut.head + 1)
            found = [(h * cut.head + first, runs[h]) for h in heads]
            return [(at, run) for at, run in found if len(run) and at < stop and start < at + len(run)]

        for number, (start, stop), sealed in self._sealed(cut, inside):
            targets = inside(start, stop)
            at, run = targets[0]
            if at <= start and stop <= at + len(run):
                self._box.open_into(number, sealed, run[start - at : stop - at])
                continue
            with self._scratch() as scratch:
                plain = scratch[: stop - start]
                self._box.open_into(number, sealed, plain)
                for at, run in targets:
                    low, high = max(at, start), min(at + len(run), stop)
                    run[low - at : high - at] = plain[low - start : high - start]

    def checking(self, name: str) -> Iterator[None]:
        """Check one entry of the table in steps of at most ``STEP_BYTES``."""
        if (cut := self._cuts.get(name)) is None:  # padding, which is not stored
            return
        scratch, n_done = memoryview(bytearray(PART_BYTES)), 0
        for number, (start, stop), sealed in self._sealed(cut):
            self._box.open_into(number, sealed, scratch[: stop - start])
            n_done += stop - start
            if n_done + PART_BYTES > STEP_BYTES:
                yield
                n_done = 0
        yield

    def _sealed(
        self, cut: _Cut, is_wanted: Callable[[int, int], object] = lambda start, stop: True
    ) -> Iterator[tuple[int, tuple[int, int], memoryview]]:
        """Yield number, place and sealed bytes of a tensor's parts, of those that are wanted; one at a time."""
        with self._scratch() as scratch:
            for part, (start, stop) in enumerate(cut.parts):
                if is_wanted(start, stop):
                    sealed = scratch[: stop - start + TAG_BYTES]
                    preadv(self._fd, [sealed], cut.sealed_at(part))
                    yield cut.first + part, (start, stop), sealed

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[memoryview]:
        """Lend memory for one part, in use before: to make it costs a tenth of what is read through it."""
        try:
            room = self._spare.pop()
        except IndexError:
            room = memoryview(bytearray(PART_BYTES + TAG_BYTES))
        try:
            yield room
        finally:
            self._spare.append(room)


def sealed_ids(fd: int, name: str, n_tokens: int, keys: Keys) -> bytes:
    """Return the ids of a sealed segment, its last bytes. Raises what ``READ_ERRORS`` names."""
    cut = _Cut(4 * n_tokens, 4 * n_tokens, _IDS)
    cut.place = os.fstat(fd).st_size - cut.sealed_bytes
    box = _box(keys, name, os.pread(fd, SALT_BYTES, _SALT_AT))
    found = bytearray()
    for part, (start, stop) in enumerate(cut.parts):
        found += box.open(_IDS + part, os.pread(fd, stop - start + TAG_BYTES, cut.sealed_at(part)))
    return bytes(found)
