"""Cards: recalled items as text for a model. One frame, and nothing in a card can leave it.

- A card is one line with a head, further lines are indented, none is blank, and it ends with a line's end: a token
  boundary.
- Text that a template or a tokenizer could take for its own marks (``<|im_start|>``, ``[INST]``, ``</s>``) gets a
  zero-width space behind the bracket. What is shown differs from what is stored only there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

from agent_memory.recall.protocols import TokenCounter
from agent_memory.recall.types import Item

_BREAK = "\u200b"
#: The opening bracket of what templates and tokenizers use as marks: <|...|>, <start_of_turn>, </s>, [INST] ...
_NAMES = "s|bos|eos|pad|unk|cls|sep|mask|think|thinking|system|user|assistant|tool|tools|function|image|audio|video"
_MARK = re.compile(rf"<(?=/?(?:[|｜]|\w*_\w*>|(?:{_NAMES})>))|\[(?=/?[A-Z][A-Z_]+\])", re.IGNORECASE)
_ANY_BRACKET = re.compile(r"[<\[|｜{](?!\u200b)")
_OTHER_ENDS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_BLANK_LINES = re.compile(r"\n\s*\n")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")

T = TypeVar("T")

#: Makes a card's text of an item; the text ends with a line's end.
CardStyle = Callable[[Item], str]


def card(item: Item) -> str:
    """Return the card of an item: its day, who said it or what kind it is, and its text."""
    day = time.strftime("%Y-%m-%d", time.gmtime(item.at))
    label = item.speaker or (item.role if item.kind == "chat" else item.kind)
    stale = ", may be outdated" if item.is_stale else ""
    return f"- ({day}, {escaped(label)}{stale}) {escaped(item.text)}\n"


def escaped(text: str) -> str:
    """Return ``text`` so that it stays inside its card: marks broken, further lines indented, none of them blank."""
    text = _BLANK_LINES.sub("\n", _CONTROL.sub("", _OTHER_ENDS.sub("\n", text))).strip()
    return _MARK.sub(lambda match: match[0] + _BREAK, text).replace("\n", "\n  ")


def without_marks_of(tokenizer: object, style: Callable[[T], str]) -> Callable[[T], str]:
    """Return ``style``, with every bracket broken in texts in which ``tokenizer`` still sees a special token."""
    special = getattr(tokenizer, "special_ids", None)
    encode = getattr(tokenizer, "encode", None)
    if not special or encode is None:
        return style

    def checked(item: T) -> str:
        text = style(item)
        if special.isdisjoint(encode(text)):
            return text
        return _ANY_BRACKET.sub(lambda match: match[0] + _BREAK, text)

    return checked


def utf8_bytes(text: str) -> int:
    """Return an upper bound of any tokenizer's count: a token stands for at least one byte."""
    return len(text.encode())


def counter_of(tokenizer: object) -> TokenCounter:
    """Return what counts tokens: a tokenizer's ``encode``, a callable itself, or bytes where there is neither."""
    if tokenizer is None:
        return utf8_bytes
    encode = getattr(tokenizer, "encode", None)
    if encode is not None:
        return lambda text: len(encode(text))
    assert callable(tokenizer)
    return tokenizer
