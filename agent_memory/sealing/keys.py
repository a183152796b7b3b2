"""Keys: one secret of the host's, and a key of its own for each purpose.

HKDF (RFC 5869) with SHA-256 derives them, so that what is known of one tells nothing of another or of the secret.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

from attrs import field, frozen

from agent_memory.errors import INSTALL, ConfigError, MissingExtraError

KEY_BYTES = 32
MIN_SECRET_BYTES = 16  #: a shorter secret can be guessed

Secret = bytes | Callable[[], bytes]  #: as it is, or a function that fetches it, for example from a keyring


@frozen
class Keys:
    """What is derived from one secret; it never shows itself in a repr. Any thread."""

    secret: bytes = field(repr=False)  #: what they are derived from

    def key(self, purpose: str, salt: bytes = b"") -> bytes:
        """Return the key of ``KEY_BYTES`` bytes for one purpose; another ``salt`` gives another key. Some 10 us."""
        return derived(self.secret, purpose, salt)

    def name(self, purpose: str, text: bytes) -> bytes:
        """Return 32 bytes that stand for ``text`` and tell nothing of it: HMAC-SHA256 under that purpose's key."""
        return hmac.digest(self.key(purpose), text, "sha256")


def derived(secret: bytes, purpose: str, salt: bytes = b"") -> bytes:
    """HKDF-SHA256 with one block: extract with ``salt``, expand with ``purpose``."""
    extracted = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, b"agent_memory/" + purpose.encode() + b"\x01", hashlib.sha256)


def keys_of(secret: Secret, name: str) -> Keys:
    """Return the keys of a host's secret; ``name`` is its setting's, for errors.

    Calls ``secret`` where it is a function; what that raises goes through. Raises ConfigError for what is not bytes, or
    too few, and never shows the value.
    """
    value: Any = secret() if callable(secret) else secret
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise ConfigError(f"{name} must be bytes, or a function that returns them: {type(value).__name__}")
    found = bytes(value)
    if len(found) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"{name} must have at least {MIN_SECRET_BYTES} bytes, it has {len(found)}. "
            "secrets.token_bytes(32) makes one; a passphrase is made longer by hashlib.scrypt"
        )
    return Keys(found)


def aead() -> Any:
    """Return the class AESGCM of ``cryptography``. Raises MissingExtraError."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingExtraError(
            f"encryption needs the package cryptography. Install it: {INSTALL['encryption']}"
        ) from error
    return AESGCM
