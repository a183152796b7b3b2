"""Cards: recalled items as text for a model. One frame, and nothing in a card can leave it.

- A card is one line with a head, further lines are indented, none is blank, and it ends with a line's end: a token
  boundary.
- Text that a template or a tokenizer could take for its own marks (``<|im_start|>``, ``[INST]``, ``</s>``) gets a
  zero-width space behind the bracket. What is shown differs from what is stored only there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agent_memory.prompt.escaping import escaped
from agent_memory.recall.protocols import TokenCounter
from agent_memory.recall.types import Item

#: Makes a card's text of an item; the text ends with a line's end.
CardStyle = Callable[[Item], str]


def card(item: Item) -> str:
    """Return the card of an item: its day, who said it or what kind it is, and its text."""
    day = time.strftime("%Y-%m-%d", time.gmtime(item.at))
    label = item.speaker or (item.role if item.kind == "chat" else item.kind)
    stale = ", may be outdated" if item.is_stale else ""
    return f"- ({day}, {escaped(label)}{stale}) {escaped(item.text)}\n"


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
