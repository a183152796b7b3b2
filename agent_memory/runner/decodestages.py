"""The steps of decoding, one class each: tokens in, text that is final out to the next step.

A step mirrors one decoder class of tokenizers 0.23 (huggingface/tokenizers: tokenizers/src/decoders/, and ByteLevel and
Metaspace in tokenizers/src/pre_tokenizers/). Those named Fused see pieces of one token instead of whole tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Protocol

#: What WordPiece and CTC tidy up, in this order.
CLEANUP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
_HEX = frozenset("0123456789abcdefABCDEF")


class Stage(Protocol):
    """One step of decoding; what it gives out goes to the next one."""

    def add(self, token: str) -> None:
        """Take one token, or one piece of a fused token."""

    def end(self) -> None:
        """Give out what was kept back."""


def byte_of(token: str) -> int | None:
    """The byte that a token such as ``<0x0A>`` stands for; None for any other token."""
    if len(token) != 6 or not token.startswith("<0x") or token[5] != ">":
        return None
    digits = token[3:5]
    if not (set(digits) <= _HEX or (digits[0] == "+" and digits[1] in _HEX)):  # Rust's from_str_radix takes a plus
        return None
    return int(digits, 16)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's character of each byte: printable bytes stand for themselves, the rest follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    for byte in range(256):
        if byte not in printable:
            table[chr(256 + len(table) - len(printable))] = byte
    return table


def _cleaned(text: str) -> str:
    for pattern, content in CLEANUP:
        text = text.replace(pattern, content)
    return text


def replaced(pattern: str, content: str, token: str) -> str:
    return token.replace(pattern, content) if token else ""  # the library finds nothing in nothing, not even nothing


def stripped(char: str, start: int, stop: int, token: str) -> str:
    n_start = min(start, len(token) - len(token.lstrip(char)))
    n_stop = min(stop, len(token) - len(token.rstrip(char)))
    return token[n_start : len(token) - n_stop]


_ALPHABET = byte_alphabet()


def token_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for; its own UTF-8 where it has a foreign letter."""
    if all(char in _ALPHABET for char in token):
        return bytes(_ALPHABET[char] for char in token)
    return token.encode()


def bytes_as_text(token: str) -> str:
    return token_bytes(token).decode("utf-8", "replace")


class Sink:
    __slots__ = ("add",)

    def __init__(self, out: list[str]) -> None:
        self.add = out.append

    def end(self) -> None:
        pass


class Passing:
    """A stage that keeps nothing back."""

    __slots__ = ("_next",)

    def __init__(self, following: Stage) -> None:
        self._next = following

    def end(self) -> None:
        self._next.end()


class Each(Passing):
    """Each token by itself."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[str], str], following: Stage) -> None:
        super().__init__(following)
        self._make = make

    def add(self, token: str) -> None:
        self._next.add(self._make(token))


class Spaced(Passing):
    """No decoder at all: the library joins tokens with spaces."""

    __slots__ = ("_is_first",)

    def __init__(self, following: Stage) -> None:
        super().__init__(following)
        self._is_first = True

    def add(self, token: str) -> None:
        self._next.add(token if self._is_first else f" {token}")
        self._is_first = False


class Metaspace(Passing):
    """The mark of a space; of the first token it may fall away."""

    __slots__ = ("_is_first", "_is_fused", "_mark")

    def __init__(self, mark: str, drops: bool, is_fused: bool, following: Stage) -> None:
        super().__init__(following)
        self._mark, self._is_first, self._is_fused = mark, drops, is_fused

    def add(self, token: str) -> None:
        self._next.add(token.replace(self._mark, "" if self._is_first else " "))
        self._is_first = self._is_first and self._is_fused  # a fused token is the first to its end


class WordPiece(Passing):
    __slots__ = ("_has_cleanup", "_is_first", "_prefix")

    def __init__(self, prefix: str, has_cleanup: bool, following: Stage) -> None:
        super().__init__(following)
        self._prefix, self._has_cleanup, self._is_first = prefix, has_cleanup, True

    def add(self, token: str) -> None:
        if not self._is_first:
            token = token[len(self._prefix) :] if token.startswith(self._prefix) else f" {token}"
        self._is_first = False
        self._next.add(_cleaned(token) if self._has_cleanup else token)


class CTC(Passing):
    __slots__ = ("_delimiter", "_has_cleanup", "_last", "_pad")

    def __init__(self, pad: str, delimiter: str, has_cleanup: bool, following: Stage) -> None:
        super().__init__(following)
        self._pad, self._delimiter, self._has_cleanup = pad, delimiter, has_cleanup
        self._last: str | None = None

    def add(self, token: str) -> None:
        if token == self._last:
            return
        self._last = token
        token = token.replace(self._pad, "")
        if self._has_cleanup:
            token = _cleaned(token).replace(self._delimiter, " ")
        if token:
            self._next.add(token)


class ByteFallback:
    """Byte tokens: a run of them is text if it is valid UTF-8, else one U+FFFD for each."""

    __slots__ = ("_next", "_run")

    def __init__(self, following: Stage) -> None:
        self._next, self._run = following, bytearray()

    def add(self, token: str) -> None:
        byte = byte_of(token)
        if byte is not None:
            self._run.append(byte)
            return
        if self._run:
            self._flush()
        self._next.add(token)

    def end(self) -> None:
        self._flush()
        self._next.end()

    def _flush(self) -> None:
        run, self._run = self._run, bytearray()
        try:
            if run:
                self._next.add(run.decode())
        except UnicodeDecodeError:
            for _ in run:
                self._next.add("\ufffd")


class ByteLevel:
    """GPT-2's alphabet of bytes: all tokens become one, and a character comes out when its bytes are complete."""

    __slots__ = ("_decoder", "_next")

    def __init__(self, following: Stage) -> None:
        self._next, self._decoder = following, codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: str) -> None:
        self._next.add(self._decoder.decode(token_bytes(token)))

    def end(self) -> None:
        self._next.add(self._decoder.decode(b"", final=True))
        self._next.end()


class BPE:
    """The mark of a word's end: a space, except in the last token."""

    __slots__ = ("_kept", "_next", "_suffix")

    def __init__(self, suffix: str, following: Stage) -> None:
        self._next, self._suffix = following, suffix
        self._kept: str | None = None

    def add(self, token: str) -> None:
        if self._kept is not None:
            self._next.add(self._kept.replace(self._suffix, " "))
        self._kept = token if self._suffix in token else None
        if self._kept is None:
            self._next.add(token)

    def end(self) -> None:
        if self._kept is not None:
            self._next.add(self._kept.replace(self._suffix, ""))
            self._kept = None
        self._next.end()


class FusedByte:
    """ByteFallback behind Fuse: the whole text may be one byte token."""

    __slots__ = ("_kept", "_next")

    def __init__(self, following: Stage) -> None:
        self._next = following
        self._kept: str | None = ""

    def add(self, token: str) -> None:
        if self._kept is None:
            self._next.add(token)
            return
        self._kept += token
        if len(self._kept) > 6 or not "<0x".startswith(self._kept[:3]):
            self._next.add(self._kept)
            self._kept = None

    def end(self) -> None:
        if self._kept is not None:
            byte = byte_of(self._kept)
            self._next.add(self._kept if byte is None else bytes([byte]).decode("utf-8", "replace"))
            self._kept = ""
        self._next.end()


class FusedReplace:
    """A string replaced wherever it stands in the text, however tokens cut it."""

    __slots__ = ("_content", "_kept", "_next", "_pattern")

    def __init__(self, pattern: str, content: str, following: Stage) -> None:
        self._next, self._pattern, self._content, self._kept = following, pattern, content, ""

    def add(self, token: str) -> None:
        *done, rest = (self._kept + token).split(self._pattern)
        n_kept = min(len(rest), len(self._pattern) - 1)
        while n_kept and not self._pattern.startswith(rest[len(rest) - n_kept :]):
            n_kept -= 1
        self._kept = rest[len(rest) - n_kept :]
        self._next.add(self._content.join([*done, rest[: len(rest) - n_kept]]))

    def end(self) -> None:
        self._next.add(self._kept)
        self._kept = ""
        self._next.end()


class FusedStrip:
    """Some characters taken from the beginning and the end of the text."""

    __slots__ = ("_char", "_kept", "_n_start", "_n_stop", "_next")

    def __init__(self, char: str, start: int, stop: int, following: Stage) -> None:
        self._next, self._char, self._n_start, self._n_stop, self._kept = following, char, start, stop, ""

    def add(self, token: str) -> None:
        if self._n_start and token:
            n_cut = min(self._n_start, len(token) - len(token.lstrip(self._char)))
            token = token[n_cut:]
            self._n_start = 0 if token else self._n_start - n_cut
        text = self._kept + token
        n_kept = min(self._n_stop, len(text) - len(text.rstrip(self._char)))
        self._kept = text[len(text) - n_kept :]
        self._next.add(text[: len(text) - n_kept])

    def end(self) -> None:
        self._kept = ""
        self._next.end()


class Whole:
    """All text at the end, as one token."""

    __slots__ = ("_make", "_next", "_parts")

    def __init__(self, make: Callable[[str], str], following: Stage) -> None:
        self._make, self._next = make, following
        self._parts: list[str] = []

    def add(self, token: str) -> None:
        self._parts.append(token)

    def end(self) -> None:
        self._next.add(self._make("".join(self._parts)))
        self._parts = []
        self._next.end()
