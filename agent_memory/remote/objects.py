"""One object: a header and parts, each sealed to its place in it.

| bytes | what |
| --- | --- |
| 8 | magic: the version, and whether the object is sealed (``s``) or only checked (``p``: no key) |
| 32 | random bytes of this object, from which its key is derived |
| 4 | n, bytes of the header, little endian |
| n | the header, sealed as part 0: JSON with the caller's values and the parts' sizes |
| ... | the parts, sealed as 1, 2, 3 ..., end to end, and nothing after them |

- The header is bound to the object's name, parts to the name and the header: an object that was changed, cut, renamed
  or put together out of several does not open. What cannot be told is whether an OLDER object of the same name was put
  back: names that are written once only leave no older one.
- Sizes are believed only where they fit the bytes that are there.
- Without a key (``p``) parts are readable and carry a BLAKE2b keyed with public bytes: it finds damage, exchanges and
  cuts as well, but anybody who can write to the bucket can make objects that pass.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

from agent_memory.remote.failures import ObjectDamagedError
from agent_memory.remote.names import RemoteKeys
from agent_memory.sealing.box import MAX_PART_BYTES, SALT_BYTES, TAG_BYTES, Box, SealBrokenError

SEALED, CHECKED = b"agmemo1s", b"agmemo1p"
MAX_HEADER_BYTES = 4 << 20
_FIXED = len(SEALED) + SALT_BYTES + 4


class _Sealer(Protocol):
    @property
    def salt(self) -> bytes: ...
    def seal(self, number: int, plain: bytes | memoryview) -> bytes: ...
    def open(self, number: int, sealed: bytes | memoryview) -> bytes | memoryview: ...
    def open_all(self, first: int, sealed: Sequence[memoryview]) -> Sequence[memoryview]: ...


class _Checked:
    """As `Box`, for who has no key: parts stay readable, with a keyed hash behind each."""

    def __init__(self, key: bytes, bound: bytes, salt: bytes | None) -> None:
        self.salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        self._bound, self._key = bound, key

    def seal(self, number: int, plain: bytes | memoryview) -> bytes:
        return bytes(plain) + self._tag(number, plain)

    def open(self, number: int, sealed: bytes | memoryview) -> memoryview:
        view = memoryview(sealed)
        if len(view) < TAG_BYTES or not hmac.compare_digest(
            self._tag(number, view[:-TAG_BYTES]), bytes(view[-TAG_BYTES:])
        ):
            raise SealBrokenError(f"part {number} is damaged, or of another place")
        return view[:-TAG_BYTES]

    def open_all(self, first: int, sealed: Sequence[memoryview]) -> list[memoryview]:
        return [self.open(number, one) for number, one in enumerate(sealed, first)]

    def _tag(self, number: int, plain: bytes | memoryview) -> bytes:
        place = hashlib.blake2b(self.salt + number.to_bytes(12, "little") + self._bound, digest_size=32).digest()
        digest = hashlib.blake2b(place, digest_size=TAG_BYTES, key=self._key)
        digest.update(plain)
        return digest.digest()


def write_object(
    name: str, keys: RemoteKeys, header: Mapping[str, Any], parts: Sequence[bytes | memoryview] = ()
) -> bytes:
    """Return an object's bytes. ``header``: what JSON can hold. Some 1 GB/s; holds the object twice at most.

    Raises ValueError for a header above 4 MiB or a part above 2 GiB, TypeError for one that is no JSON.
    """
    views = [memoryview(part).cast("B") for part in parts]
    if any(len(view) > MAX_PART_BYTES - TAG_BYTES for view in views):
        raise ValueError(f"a part may have {MAX_PART_BYTES - TAG_BYTES:,} bytes")
    text = json.dumps({"parts": [len(view) for view in views], "of": header}, allow_nan=False).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text):,} bytes: at most {MAX_HEADER_BYTES:,}")
    magic = CHECKED if keys.is_public else SEALED
    first = _sealer(magic, keys, magic + name.encode(), None)
    sealed = first.seal(0, text)
    rest = _sealer(magic, keys, _bound(magic, name, sealed), first.salt)
    pieces = [magic, first.salt, len(sealed).to_bytes(4, "little"), sealed]
    pieces += [rest.seal(number, view) for number, view in enumerate(views, 1)]
    return b"".join(pieces)


class RemoteObject:
    """An object that was read: ``header``, and parts that open one by one. Any thread.

    Its header is genuine as soon as it exists; a part is when `part` has returned it.
    """

    def __init__(self, header: Mapping[str, Any], parts: Sequence[memoryview], sealer: _Sealer, name: str) -> None:
        self.header = header
        self.n_parts = len(parts)
        self._parts, self._sealer, self._name = parts, sealer, name

    def part(self, number: int) -> bytes | memoryview:
        """Return part ``number``, counted from 0, verified. Some 2 GB/s. Raises ObjectDamagedError."""
        try:
            return self._sealer.open(number + 1, self._parts[number])
        except SealBrokenError as error:
            raise ObjectDamagedError(f"object {self._name}: {error}") from error

    def parts(self) -> Sequence[memoryview]:
        """Return all parts, verified, in one piece of memory: a third of the time of one by one.

        Without a key they are views of the object that was read. Raises ObjectDamagedError.
        """
        try:
            return self._sealer.open_all(1, self._parts)
        except SealBrokenError as error:
            raise ObjectDamagedError(f"object {self._name}: {error}") from error

    def __repr__(self) -> str:
        return f"RemoteObject({self._name!r}, n_parts={self.n_parts})"


def read_object(name: str, keys: RemoteKeys, body: bytes | memoryview) -> RemoteObject:
    """Read an object's header; its parts are opened by `RemoteObject.part`.

    Allocates no more than the header, whatever sizes are claimed. Raises ObjectDamagedError.
    """
    view = memoryview(body).cast("B")
    magic = CHECKED if keys.is_public else SEALED
    if len(view) < _FIXED or bytes(view[: len(magic)]) != magic:
        raise ObjectDamagedError(f"object {name}: {len(view):,} bytes that do not begin as an object of this key")
    salt = bytes(view[len(magic) : _FIXED - 4])
    end = _FIXED + int.from_bytes(view[_FIXED - 4 : _FIXED], "little")
    if end > len(view) or end - _FIXED > MAX_HEADER_BYTES + TAG_BYTES:
        raise ObjectDamagedError(f"object {name}: its header claims {end - _FIXED:,} of {len(view):,} bytes")
    sealed = view[_FIXED:end]
    try:
        text = _sealer(magic, keys, magic + name.encode(), salt).open(0, sealed)
        sizes, header = _parsed(bytes(text))
    except (SealBrokenError, ValueError, RecursionError) as error:
        raise ObjectDamagedError(f"object {name}: its header: {error}") from error
    starts = list(accumulate((size + TAG_BYTES for size in sizes), initial=end))
    if starts[-1] != len(view):
        raise ObjectDamagedError(f"object {name}: {starts[-1]:,} bytes by its header, and it has {len(view):,}")
    parts = [view[begin:stop] for begin, stop in zip(starts, starts[1:], strict=False)]
    return RemoteObject(header, parts, _sealer(magic, keys, _bound(magic, name, bytes(sealed)), salt), name)


def _parsed(text: bytes) -> tuple[list[int], Mapping[str, Any]]:
    found = json.loads(text)
    if not isinstance(found, dict) or not isinstance(found.get("of"), dict):
        raise ValueError("it is no mapping")
    sizes = found.get("parts")
    if not isinstance(sizes, list) or any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError("its parts have no sizes")
    return sizes, found["of"]


def _bound(magic: bytes, name: str, sealed_header: bytes) -> bytes:
    return magic + hashlib.sha256(sealed_header).digest() + name.encode()


def _sealer(magic: bytes, keys: RemoteKeys, bound: bytes, salt: bytes | None) -> _Sealer:
    made = _Checked if magic == CHECKED else Box
    return made(keys.data_key, bound, salt)
