"""The decoders of the tokenizers library as streams: tokens in, final text out.

- What a stage has given out never changes; it keeps back exactly what a later token may still change.
- All that a stage gives out, ``end()`` included, is what the library makes of the same tokens, after every token.
- Up to Fuse or ByteLevel a stage sees whole tokens; after it, pieces of the one token that these make of all others.
- A run of byte tokens comes out when it ends: the library turns the whole run to U+FFFD if it is no valid UTF-8.
- A regular expression behind Fuse gives out all its text at the end: any of it may still match.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from agent_memory.runner.decodestages import (
    BPE,
    CLEANUP,
    CTC,
    ByteFallback,
    ByteLevel,
    Each,
    FusedByte,
    FusedReplace,
    FusedStrip,
    Metaspace,
    Sink,
    Spaced,
    Stage,
    Whole,
    WordPiece,
    bytes_as_text,
    replaced,
    stripped,
)

Factory = Callable[[Stage], Stage]  #: from the next stage to one that feeds it


class Decoding:
    """A tokenizer's decoder, read once; ``stream()`` makes a fresh stream of it. Immutable, any thread."""

    def __init__(self, decoder: Mapping[str, Any] | None) -> None:
        """``decoder``: as tokenizer.json has it. Raises ValueError for a class that is not known here."""
        self._decoders = _flat(decoder)
        self._factories: list[Factory] = []
        is_fused = False
        for one in self._decoders:
            self._factories += _stages(one, is_fused)
            is_fused = is_fused or one["type"] in ("Fuse", "ByteLevel")

    @property
    def is_byte_level(self) -> bool:
        """True if ByteLevel is the only decoder."""
        return [one["type"] for one in self._decoders] == ["ByteLevel"]

    @property
    def has_byte_tokens(self) -> bool:
        """True if tokens such as ``<0x0A>`` stand for bytes."""
        return any(one["type"] == "ByteFallback" for one in self._decoders)

    @property
    def is_concatenation(self) -> bool:
        """True if equal concatenations of tokens have equal text, however it was cut into tokens."""
        for one in self._decoders:
            if one["type"] in ("Fuse", "ByteLevel"):
                return True
            if one["type"] not in ("ByteFallback", "Metaspace", "BPEDecoder") and not _replaces_letters(one):
                return False
        return False

    def stream(self) -> TokenStream:
        """A fresh stream."""
        return TokenStream(self._factories)

    def text(self, tokens: Sequence[str]) -> str:
        """What the library's decoder makes of ``tokens``."""
        stream = self.stream()
        return "".join(map(stream.add, tokens)) + stream.end()


class TokenStream:
    """Tokens of one reply in, text out; one thread at a time. O(1) a token."""

    __slots__ = ("_first", "_out")

    def __init__(self, factories: Sequence[Factory]) -> None:
        self._out: list[str] = []
        first: Stage = Sink(self._out)
        for factory in reversed(factories):
            first = factory(first)
        self._first = first

    def add(self, token: str) -> str:
        """The text that is final after one more token."""
        self._first.add(token)
        return self._taken()

    def end(self) -> str:
        """The rest of the text."""
        self._first.end()
        return self._taken()

    def _taken(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text


def _flat(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return [{"type": None}]
    if decoder["type"] == "Sequence":
        return [part for one in decoder["decoders"] for part in _flat(one)]
    return [decoder]


def _stages(one: Mapping[str, Any], is_fused: bool) -> list[Factory]:
    kind = one["type"]
    if kind == "Fuse":
        return []
    if kind is None:
        return [Spaced]
    if kind == "Replace":
        return _replacing(one, is_fused)
    if kind == "Strip":
        how = (one["content"], one["start"], one["stop"])
        return [partial(FusedStrip, *how) if is_fused else partial(Each, partial(stripped, *how))]
    if kind == "ByteFallback":
        return [FusedByte if is_fused else ByteFallback]
    if kind == "ByteLevel":
        return [partial(Whole, bytes_as_text) if is_fused else ByteLevel]
    if kind == "Metaspace":
        drops = one.get("prepend_scheme", "always") != "never"
        return [partial(Metaspace, one["replacement"], drops, is_fused)]
    if kind == "WordPiece":
        if not is_fused:
            return [partial(WordPiece, one["prefix"], one["cleanup"])]
        return [partial(FusedReplace, *pair) for pair in CLEANUP if one["cleanup"]]
    if kind == "BPEDecoder":
        return [_fused_replace(one["suffix"], "") if is_fused else partial(BPE, one["suffix"])]
    if kind == "CTC":
        return _ctc(one, is_fused)
    raise ValueError(f"no decoder of the type {kind!r} is known")


def _replacing(one: Mapping[str, Any], is_fused: bool) -> list[Factory]:
    pattern, content = one["pattern"], one["content"]
    if "String" in pattern:
        if is_fused:
            return [_fused_replace(pattern["String"], content)]
        return [partial(Each, partial(replaced, pattern["String"], content))]
    from tokenizers import Regex
    from tokenizers.decoders import Replace

    decoder = Replace(Regex(pattern["Regex"]), content)
    return [partial(Whole if is_fused else Each, lambda token: str(decoder.decode([token])))]


def _ctc(one: Mapping[str, Any], is_fused: bool) -> list[Factory]:
    pad, delimiter = one["pad_token"], one["word_delimiter_token"]
    if not is_fused:
        return [partial(CTC, pad, delimiter, one["cleanup"])]
    pairs = [(pad, ""), *(CLEANUP if one["cleanup"] else ()), *([(delimiter, " ")] if one["cleanup"] else ())]
    return [_fused_replace(*pair) for pair in pairs]


def _fused_replace(pattern: str, content: str) -> Factory:
    return partial(FusedReplace, pattern, content) if pattern else partial(Whole, partial(replaced, pattern, content))


def _replaces_letters(one: Mapping[str, Any]) -> bool:
    return one["type"] == "Replace" and len(one["pattern"].get("String", "")) == 1
