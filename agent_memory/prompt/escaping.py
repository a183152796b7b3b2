"""Text that stays text: nothing in it can pose as a role, a mark of a template, or the end of its own line.

What a template or a tokenizer could take for its marks (``<|im_start|>``, ``[INST]``, ``</s>``) gets a zero-width space
behind the bracket.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

_BREAK = "\u200b"
#: The opening bracket of what templates and tokenizers use as marks: <|...|>, <start_of_turn>, </s>, [INST] ...
_NAMES = "s|bos|eos|pad|unk|cls|sep|mask|think|thinking|system|user|assistant|tool|tools|function|image|audio|video"
_MARK = re.compile(rf"<(?=/?(?:[|｜]|\w*_\w*>|(?:{_NAMES})>))|\[(?=/?[A-Z][A-Z_]+\])", re.IGNORECASE)
_ANY_BRACKET = re.compile(r"[<\[|｜{](?!\u200b)")
_OTHER_ENDS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_BLANK_LINES = re.compile(r"\n\s*\n")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")

T = TypeVar("T")


def escaped(text: str) -> str:
    """Return ``text`` so that it stays inside its line: marks broken, further lines indented, none of them blank."""
    text = _BLANK_LINES.sub("\n", _CONTROL.sub("", _OTHER_ENDS.sub("\n", text))).strip()
    return _MARK.sub(lambda match: match[0] + _BREAK, text).replace("\n", "\n  ")


def unbroken(text: str) -> str:
    """Return an escaped text with its marks whole again, to compare it: which are broken depends on the tokenizer."""
    return text.replace(_BREAK, "")


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
