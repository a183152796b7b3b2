"""A prompt in which the model's earlier replies stand as the model wrote them, and all else as the template writes it.

- Each unchanged reply is rendered as a few marks. Where the marks come out, the reply's own ids take the place of what
  the template wrote between the reply's opening and its closing token: another spelling of a call costs nothing.
- Everything else is the template's text for the whole history: a block that it moves is where the template put it.
- Reasoning that the template drops from an earlier reply is dropped: that reply is rendered by the template. With
  ``keep_reasoning`` its own ids stand there as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import numpy as np
from attrs import field, frozen

from agent_memory.prompt.frame import Frame, Render, frame_of
from agent_memory.prompt.recalled import with_cards
from agent_memory.protocols import Tokenizer
from agent_memory.types import Message, ToolCall

Ids = np.ndarray[Any, Any]


class Reply(Protocol):
    """What the model wrote for one message, and the prompt ids right before it (``log.Said``)."""

    @property
    def ids(self) -> Ids: ...
    @property
    def before(self) -> Ids: ...


@frozen
class Part:
    """A run of a prompt's ids from ``start`` on: a reply (``message``), or text that the template wrote."""

    start: int
    text: str = ""
    message: int | None = None


@frozen
class Composed:
    """The ids of a prompt, and which of its messages the template wrote without the reasoning that is in the log."""

    ids: list[int] = field(repr=False)
    dropped: frozenset[int] = frozenset()  #: indices of messages
    #: what the ids are made of, in order: the template's texts and the replies between them
    parts: tuple[Part, ...] = field(default=(), repr=False)


@frozen
class _Marks:
    """The texts that stand for one reply while its place is looked for."""

    content: str
    reasoning: str
    calls: tuple[str, ...]

    def put(self, message: Message, *, has_calls: bool) -> Message:
        """The message with marks in place of its texts; none where it has none.

        A call that was cut short is in ``source`` alone: what the model wrote of it stands in the content's place.
        """
        is_cut = bool(message.source) and not (message.reasoning or message.tool_calls)
        content = self.content if message.content or is_cut else ""
        calls: tuple[ToolCall, ...] = ()
        if has_calls:
            marked = zip(message.tool_calls, self.calls, strict=True)
            calls = tuple(attrs.evolve(call, arguments={"value": mark}, source="") for call, mark in marked)
        elif message.tool_calls:
            content = self.content
        reasoning = self.reasoning if message.reasoning else ""
        return attrs.evolve(message, content=content, reasoning=reasoning, tool_calls=calls, source="")

    def span(self, text: str, start: int) -> tuple[int, int] | None:
        """Half-open range from the first mark's beginning to the last one's end."""
        all_marks = (self.content, self.reasoning, *self.calls)
        found = [(at, at + len(mark)) for mark in all_marks if (at := text.find(mark, start)) >= 0]
        return (min(found)[0], max(stop for _, stop in found)) if found else None


@frozen
class _Placed:
    """One reply's place in the rendered text, and the ids that go there."""

    start: int
    stop: int
    ids: list[int]


def compose(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    replies: Mapping[int, Reply],
    render: Render,
    *,
    native_calls: bool,
    generation_prompt: bool = True,
    keep_reasoning: bool = False,
) -> Composed | None:
    """The ids of a conversation with ``replies`` in them as they were written; None where their places are not found.

    ``replies``: by message index. ``render``: the template. ``native_calls``: whether it writes calls itself. Two
    renderings, and a third where a reply is left to the template.
    """
    frame = frame_of(tokenizer, render)
    if frame is None or not replies:
        return None
    marks = _marks_for(messages, replies)
    wanted, dropped = dict(replies), set()
    for _ in range(2):
        shown = [
            marks[place].put(message, has_calls=native_calls) if place in wanted else message
            for place, message in enumerate(messages)
        ]
        text = render(shown, generation_prompt)
        placed, left, lost = _place(tokenizer, frame, text, messages, marks, wanted, keep_reasoning=keep_reasoning)
        dropped |= lost
        if not left:
            return _joined(tokenizer, text, placed, frozenset(dropped))
        wanted = {place: reply for place, reply in wanted.items() if place not in left}
    return None


def _marks_for(messages: Sequence[Message], replies: Mapping[int, Reply]) -> dict[int, _Marks]:
    """Marks that are in none of the messages: letters and digits, which no template changes."""
    said = "".join(f"{message.content}{message.reasoning}{message.source}" for message in with_cards(messages))
    stem = next(stem for n in itertools.count() if (stem := f"qz{n}w") not in said)
    return {
        place: _Marks(
            f"{stem}{place}cqz",
            f"{stem}{place}rqz",
            tuple(f"{stem}{place}a{n}qz" for n in range(len(messages[place].tool_calls))),
        )
        for place in replies
    }


def _place(
    tokenizer: Tokenizer,
    frame: Frame,
    text: str,
    messages: Sequence[Message],
    marks: Mapping[int, _Marks],
    replies: Mapping[int, Reply],
    *,
    keep_reasoning: bool,
) -> tuple[dict[int, _Placed], set[int], set[int]]:
    """Places by message index; which replies are left to the template; which of them for reasoning that it drops."""
    placed: dict[int, _Placed] = {}
    left: set[int] = set()
    dropped: set[int] = set()
    at = 0
    for place in sorted(replies):
        reply, has_reasoning = replies[place], bool(messages[place].reasoning)
        span = marks[place].span(text, at)
        opened = _opened(tokenizer, frame, reply, text, at, span[0]) if span is not None else None
        if span is None or opened is None:
            left.add(place)
            dropped |= {place} if has_reasoning else set()
            continue
        start, added = opened
        stop = min((end for one in frame.closings if (end := text.find(one, span[1])) >= 0), default=-1)
        is_kept = marks[place].reasoning in text[start : span[1]] if has_reasoning else True
        if not has_reasoning and len(added):
            opening = tokenizer.encode(text[start : span[0]])
            is_kept = opening[: len(added)] == added.tolist()
        if stop < 0 or not (is_kept or keep_reasoning):
            left.add(place)
            dropped |= set() if is_kept else {place}
            continue
        ids = [*added.tolist(), *reply.ids.tolist()]
        if ids and ids[-1] in tokenizer.eos_ids:
            ids.pop()  # the template writes it, or the token that it ends earlier turns with
        placed[place] = _Placed(start, stop, ids)
        at = stop
    return placed, left, dropped


def _opened(
    tokenizer: Tokenizer, frame: Frame, reply: Reply, text: str, start: int, stop: int
) -> tuple[int, Ids] | None:
    """Where a reply begins in ``text[start:stop]``, and the ids that its prompt wrote behind the opening."""
    if frame.opening:
        added, at = frame.added(reply.before), text.rfind(frame.opening, start, stop)
        return None if added is None or at < 0 else (at + len(frame.opening), added)
    if not len(reply.before) or int(reply.before[-1]) not in tokenizer.special_ids:
        return None
    mark = tokenizer.key(
        [int(reply.before[-1])]
    )  # nothing opens a reply: it follows the token that ends what it answers
    at = text.rfind(mark, start, stop)
    return None if at < 0 else (at + len(mark), reply.before[:0])


def _joined(tokenizer: Tokenizer, text: str, placed: Mapping[int, _Placed], dropped: frozenset[int]) -> Composed | None:
    """The template's text with the replies' ids in their places; None where ids could merge across a border."""
    ids: list[int] = []
    parts: list[Part] = []
    at = 0
    for place, one in sorted(placed.items(), key=lambda item: item[1].start):
        piece = tokenizer.encode(text[at : one.start])
        if at and not _begins_special(tokenizer, piece):
            return None
        parts.append(Part(len(ids), text[at : one.start]))
        ids += piece
        parts.append(Part(len(ids), message=place))
        ids += one.ids
        at = one.stop
    piece = tokenizer.encode(text[at:])
    if at and not _begins_special(tokenizer, piece):
        return None
    parts.append(Part(len(ids), text[at:]))
    return Composed(ids + piece, dropped, tuple(parts))


def _begins_special(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    return bool(ids) and ids[0] in tokenizer.special_ids
