"""Authenticated encryption of the parts of one object: AES-256-GCM, each part bound to its place.

- Each object has random bytes of its own (``salt``), from which its key is derived: nonces are the numbers of its
  parts, and never meet another object's.
- A part is bound to what it belongs to (``bound``: the object's name, its header ...) and to its number: exchanged,
  reordered, shortened or changed parts do not open.
- A sealed part is ``TAG_BYTES`` longer than what it holds.
"""

from __future__ import annotations

import secrets
from typing import Any

from agent_memory.sealing.keys import aead, derived

SALT_BYTES = 32
TAG_BYTES = 16
MAX_PART_BYTES = (1 << 31) - 1  #: what one call of OpenSSL takes


class SealBrokenError(ValueError):
    """The part was not sealed under this key and place: damaged, exchanged, forged, or of another key."""


class Box:
    """Seals and opens the parts of one object. Any thread, one call at a time for each part's number.

    ``bound``: bytes that every part is bound to. ``salt`` None: a new object, whose salt is drawn; a number is sealed
    at most once in its life. Raises MissingExtraError without the package cryptography.
    """

    def __init__(self, key: bytes, bound: bytes = b"", salt: bytes | None = None) -> None:
        self.salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        self._bound = bound
        self._cipher: Any = aead()(derived(key, "object", self.salt))

    def seal(self, number: int, plain: bytes | memoryview) -> bytes:
        """Return a part sealed. Some 1 GB/s on one core."""
        return bytes(self._cipher.encrypt(number.to_bytes(12, "little"), plain, self._bound))

    def seal_into(self, number: int, plain: bytes | bytearray | memoryview, into: memoryview) -> None:
        """Write a part sealed to ``into``, which is ``TAG_BYTES`` longer than it."""
        self._cipher.encrypt_into(number.to_bytes(12, "little"), plain, self._bound, into)

    def open_into(self, number: int, sealed: memoryview, into: memoryview) -> None:
        """Write what was sealed under that number to ``into``, which is as long as it. Raises SealBrokenError.

        What is in ``into`` then is no part's content.
        """
        from cryptography.exceptions import InvalidTag

        try:
            self._cipher.decrypt_into(number.to_bytes(12, "little"), sealed, self._bound, into)
        except (InvalidTag, ValueError) as error:
            raise SealBrokenError(f"part {number} does not open under this key") from error

    def open(self, number: int, sealed: bytes | memoryview) -> bytes:
        """Return what was sealed under that number. Some 2 GB/s on one core. Raises SealBrokenError."""
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(self._cipher.decrypt(number.to_bytes(12, "little"), sealed, self._bound))
        except (InvalidTag, ValueError) as error:  # ValueError: shorter than a tag
            raise SealBrokenError(f"part {number} does not open under this key") from error
