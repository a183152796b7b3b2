"""What is sealed opens under its key, number and place alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.errors import ConfigError
from agent_memory.sealing.box import TAG_BYTES, Box, SealBrokenError
from agent_memory.sealing.keys import KEY_BYTES, Keys, derived, keys_of

KEY = bytes(range(32))


@given(st.binary(max_size=300), st.binary(max_size=40), st.integers(0, 2**64))
def test_a_part_opens_to_what_was_sealed(plain: bytes, bound: bytes, number: int) -> None:
    box = Box(KEY, bound)
    sealed = box.seal(number, plain)
    assert len(sealed) == len(plain) + TAG_BYTES
    assert Box(KEY, bound, box.salt).open(number, memoryview(sealed)) == plain


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_part_opens_nowhere_else(plain: bytes, data: st.DataObject) -> None:
    box = Box(KEY, b"here")
    sealed = box.seal(3, plain)
    at = data.draw(st.integers(0, len(sealed) * 8 - 1))
    flipped = bytearray(sealed)
    flipped[at // 8] ^= 1 << at % 8
    cut = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
    wrong = [
        (box, 3, bytes(flipped)),
        (box, 3, cut),
        (box, 4, sealed),
        (Box(KEY, b"there", box.salt), 3, sealed),
        (Box(KEY, b"here"), 3, sealed),
        (Box(bytes(32), b"here", box.salt), 3, sealed),
    ]
    for other, number, text in wrong:
        with pytest.raises(SealBrokenError):
            other.open(number, text)


def test_the_same_text_is_never_sealed_twice_alike() -> None:
    assert Box(KEY).seal(0, b"text") != Box(KEY).seal(0, b"text")


def test_keys_are_those_of_rfc_5869() -> None:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    for salt in (b"", b"salt" * 8):
        told = HKDF(SHA256(), KEY_BYTES, salt or None, b"agent_memory/rows").derive(b"s" * 40)
        assert derived(b"s" * 40, "rows", salt) == told


def test_purposes_and_secrets_have_keys_of_their_own() -> None:
    keys = {
        Keys(secret).key(purpose, salt) for secret in (b"a" * 16, b"b" * 16) for purpose in "xy" for salt in (b"", b"1")
    }
    assert len(keys) == 8
    assert Keys(b"a" * 16).name("x", b"t") != Keys(b"a" * 16).name("y", b"t")


def test_a_secret_is_bytes_or_a_function_that_fetches_them_and_is_never_shown() -> None:
    secret = b"0123456789abcdef"
    assert keys_of(secret, "key") == keys_of(lambda: secret, "key") == keys_of(bytearray(secret), "key")
    assert "0123" not in repr(keys_of(secret, "key"))
    for wrong in ("0123456789abcdef", b"short", 7, None, lambda: "text"):
        with pytest.raises(ConfigError, match=r"^key must") as caught:
            keys_of(wrong, "key")  # type: ignore[arg-type]
        assert "0123" not in str(caught.value)
        assert "short" not in str(caught.value)
