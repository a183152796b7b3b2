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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from agent_memory.remote.bodies import Body, Held
from agent_memory.remote.failures import ObjectDamagedError
from agent_memory.remote.names import RemoteKeys
from agent_memory.sealing.box import MAX_PART_BYTES, SALT_BYTES, TAG_BYTES, Box, SealBrokenError
from agent_memory.sealing.pages import pages

SEALED, CHECKED = b"agmemo1s", b"agmemo1p"
MAX_HEADER_BYTES = 4 << 20
_FIXED = len(SEALED) + SALT_BYTES + 4


class _Sealer(Protocol):
    @property
    def salt(self) -> bytes: ...
    def seal(self, number: int, plain: bytes | memoryview) -> bytes: ...
    def open(self, number: int, sealed: bytes | memoryview) -> bytes | memoryview: ...
    def open_into(self, number: int, sealed: memoryview, into: memoryview) -> None: ...


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

    def open_into(self, number: int, sealed: memoryview, into: memoryview) -> None:
        plain = self.open(number, sealed)
        if len(plain) != len(into):
            raise SealBrokenError(f"part {number} ends early")
        into[:] = plain

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
    """An object that is being read: ``header``, and parts that open one after another, once. One thread at a time.

    Its header is genuine as soon as it exists; a part is when it was given.
    """

    def __init__(self, header: Mapping[str, Any], sizes: Sequence[int], body: Body, sealer: _Sealer, name: str) -> None:
        self.header = header
        self.n_parts = len(sizes)
        self._sizes, self._body, self._sealer, self._name = sizes, body, sealer, name

    def opening(self) -> Iterator[memoryview]:
        """Yield the parts in order, each verified, all in one piece of memory. Some 2 GB/s. Raises ObjectDamagedError.

        A part is read when it is asked for.
        """
        room, at = pages(sum(self._sizes)), 0
        for number, size in enumerate(self._sizes, 1):
            into = room[at : at + size]
            try:
                self._sealer.open_into(number, self._body.take(size + TAG_BYTES), into)
            except SealBrokenError as error:
                raise ObjectDamagedError(f"object {self._name}: {error}") from error
            yield into.toreadonly()
            at += size

    def parts(self) -> list[memoryview]:
        """Return all parts, verified. Raises ObjectDamagedError."""
        return list(self.opening())

    def __repr__(self) -> str:
        return f"RemoteObject({self._name!r}, n_parts={self.n_parts})"


def read_object(name: str, keys: RemoteKeys, body: bytes | memoryview) -> RemoteObject:
    """Read the header of an object that is in memory. Raises ObjectDamagedError."""
    return open_object(name, keys, Held(body))


def open_object(name: str, keys: RemoteKeys, body: Body) -> RemoteObject:
    """Read an object's header; its parts are read and opened by `RemoteObject.opening`.

    Allocates no more than the header, whatever sizes are claimed. Raises ObjectDamagedError.
    """
    n_bytes = body.n_bytes
    magic = CHECKED if keys.is_public else SEALED
    start = bytes(body.take(_FIXED))
    if len(start) < _FIXED or start[: len(magic)] != magic:
        raise ObjectDamagedError(f"object {name}: {n_bytes:,} bytes that do not begin as an object of this key")
    salt, n_header = start[len(magic) : _FIXED - 4], int.from_bytes(start[_FIXED - 4 :], "little")
    if n_header > min(n_bytes - _FIXED, MAX_HEADER_BYTES + TAG_BYTES):
        raise ObjectDamagedError(f"object {name}: its header claims {n_header:,} of {n_bytes:,} bytes")
    sealed = bytes(body.take(n_header))
    try:
        text = _sealer(magic, keys, magic + name.encode(), salt).open(0, sealed)
        sizes, header = _parsed(bytes(text))
    except (SealBrokenError, ValueError, RecursionError) as error:
        raise ObjectDamagedError(f"object {name}: its header: {error}") from error
    n_claimed = _FIXED + n_header + sum(sizes) + TAG_BYTES * len(sizes)
    if n_claimed != n_bytes:
        raise ObjectDamagedError(f"object {name}: {n_claimed:,} bytes by its header, and it has {n_bytes:,}")
    return RemoteObject(header, sizes, body, _sealer(magic, keys, _bound(magic, name, sealed), salt), name)


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
