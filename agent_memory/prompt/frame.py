"""How a chat template frames a reply: the text that opens one, and the tokens that close one. Found by rendering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen

from agent_memory.errors import UnsupportedParameterError
from agent_memory.prefix.chunks import common_prefix
from agent_memory.protocols import Tokenizer
from agent_memory.types import Message

Ids = np.ndarray[Any, Any]
#: Renders messages; the second argument asks for the text that opens a reply.
Render = Callable[[Sequence[Message], bool], str]

_ASKED, _SAID, _MORE = "qzaskedqz", "qzsaidqz", "qzmoreqz"  #: contents of the probe: words that no template holds


@frozen
class Frame:
    """What stands around each reply in a rendered history.

    ``opening``: the text right before a reply, as far as it is the same in the prompt that asked for the reply and in
    later prompts; "" where a template writes none. ``closings``: texts of the special tokens that end a message.
    """

    opening: str
    closings: tuple[str, ...]
    opening_ids: Ids = field(eq=False, repr=False)

    def added(self, before: Ids) -> Ids | None:
        """The ids that a prompt, whose end ``before`` is, wrote behind the opening; None where there is no opening.

        Templates write a mark of reasoning there, or a whole empty block of it, and leave it out of later prompts.
        """
        n = len(self.opening_ids)
        for start in range(len(before) - n, -1, -1):
            if np.array_equal(before[start : start + n], self.opening_ids):
                return before[start + n :]
        return None


def frame_of(tokenizer: Tokenizer, render: Render) -> Frame | None:
    """The frame that ``render`` writes, by three renderings of a probe; None where it cannot be told."""
    asked, said, more = Message("user", _ASKED), Message("assistant", _SAID), Message("user", _MORE)
    try:
        prompt, bare, history = render([asked], True), render([asked], False), render([asked, said, more], False)
    except UnsupportedParameterError:
        return None
    start, stop = history.find(_ASKED), history.find(_SAID)
    if start < 0 or stop < start or history.find(_MORE) < stop:
        return None
    closings = {tokenizer.key([token]) for token in tokenizer.eos_ids}
    following = tokenizer.encode(history[stop + len(_SAID) : history.find(_MORE)])
    first = next((token for token in following if token in tokenizer.special_ids), None)
    if first is not None:
        closings.add(tokenizer.key([first]))
    added = _added_text(tokenizer, bare, prompt)
    at = history.rfind(_first_token(tokenizer, added), start, stop) if added else stop
    opening = _common(added, history[at:stop]) if at >= 0 else ""
    ids = np.array(tokenizer.encode(opening), np.uint32)
    return Frame(opening, tuple(sorted(filter(None, closings))), ids) if closings else None


def closings_of(tokenizer: Tokenizer, render: Render) -> tuple[str, ...]:
    """The texts that end a message, as far as they can be told."""
    frame = frame_of(tokenizer, render)
    return frame.closings if frame is not None else ()


def _added_text(tokenizer: Tokenizer, bare: str, prompt: str) -> str:
    """What asking for a reply adds to a prompt: from the first token that differs, where that is a special one."""
    ids = tokenizer.encode(prompt)
    added = ids[common_prefix(np.array(tokenizer.encode(bare), np.uint32), np.array(ids, np.uint32)) :]
    if not added or added[0] not in tokenizer.special_ids:
        return ""
    mark, at = tokenizer.key(added[:1]), len(prompt)
    while (at := prompt.rfind(mark, 0, at)) >= 0:
        if tokenizer.encode(prompt[at:]) == added:
            return prompt[at:]
    return ""


def _common(a: str, b: str) -> str:
    n = next((n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    return a[:n]


def _first_token(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.key(tokenizer.encode(text)[:1])
