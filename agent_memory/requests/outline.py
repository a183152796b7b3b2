"""A prompt's outline: the chat template's text with placeholders for contents and tools. It finds a token's message.

The outline is short, however long the contents are: rendering it again with other tools, another date or fewer messages
costs only the template.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import attrs
from attrs import frozen

from agent_memory.errors import UnsupportedParameterError
from agent_memory.prompt.own_words import Composed
from agent_memory.prompt.recalled import with_cards
from agent_memory.prompt.written import written
from agent_memory.protocols import Tokenizer
from agent_memory.types import Message, Tool
from agent_memory.usage import DivergedAt, PromptPart

_TAIL = 2_048  #: ids after a token that are read to find its position


class Write(Protocol):
    """Renders the chat template with a request's unchanged arguments filled in."""

    def __call__(
        self,
        messages: Sequence[Message],
        generation_prompt: bool,
        *,
        now: datetime | None = None,
        tools: Sequence[Tool] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str: ...


@frozen
class Piece:
    """Characters ``[start, stop)`` of one segment: text of the template, one content, or one tool's name.

    ``at``: the position of its text, or of its placeholder, in the outline.
    """

    start: int
    stop: int
    at: int
    part: PromptPart
    message: int | None = None
    tool: int | None = None
    is_content: bool = False


@frozen
class Place:
    """The position of a token: its segment, its piece there, and its character in the outline; -1: unknown."""

    diverged: DivergedAt
    before: str = ""  #: the text from the preceding special token on
    piece: Piece | None = None
    near: int | None = None  #: its message; for text of the template, the next message
    outline_at: int = -1  #: if it is in a content: where the content begins
    within: int = 0  #: characters of the content before it

    @property
    def is_content(self) -> bool:
        """True if the token is in a message's content."""
        return self.piece is not None and self.piece.is_content


class Outline:
    """The outline of one prompt, rendered once, on first use."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        composed: Composed,
        closings: Sequence[str],
        write: Write,
        *,
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.variables = variables or {}
        self.tokenizer, self.messages, self.tools = tokenizer, tuple(with_cards(messages)), tuple(tools)
        self.composed, self.write, self._closings = composed, write, closings
        self.generation_prompt = generation_prompt
        said = "".join(f"{one.content}{one.reasoning}{one.source}" for one in self.messages)
        said += "".join(f"{tool.name}{tool.description}" for tool in tools)
        self._stem = next(stem for n in itertools.count() if (stem := f"qz{n}w") not in said)
        self._mark = re.compile(rf"{self._stem}([mt])(\d+)(?:a\d+)?qz")
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The outline. Raises UnsupportedParameterError if the template refuses placeholders."""
        if self._text is None:
            self._text = self.render()
        return self._text

    def render(
        self,
        messages: Sequence[Message] | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        now: datetime | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the outline of other messages (by default the prompt's), with other tools or at another date."""
        shown = [self._marked(index, one) for index, one in enumerate(self.messages if messages is None else messages)]
        offered = self.tools if tools is None else tools
        marked = [attrs.evolve(tool, name=f"{self._stem}t{n}qz") for n, tool in enumerate(offered)]
        return self.write(shown, self.generation_prompt, now=now, tools=marked, variables=variables)

    def _marked(self, index: int, message: Message) -> Message:
        calls = tuple(
            attrs.evolve(call, arguments={"value": f"{self._stem}m{index}a{n}qz"}, source="")
            for n, call in enumerate(message.tool_calls)
        )
        content = f"{self._stem}m{index}qz" if message.content else ""
        return attrs.evolve(message, content=content, tool_calls=calls, source="", reasoning="", recalled=())

    def resolved(self, outline: str, messages: Sequence[Message] | None = None) -> str:
        """Return an outline's text with its placeholders replaced, up to the first whose text is not known."""
        shown = self.messages if messages is None else messages

        out: list[str] = []
        at = 0
        for mark in self._mark.finditer(outline):
            out.append(outline[at : mark.start()])
            number, at = int(mark[2]), mark.end()
            if mark[1] == "t" and number < len(self.tools):
                out.append(self.tools[number].name)
            elif mark[1] == "m" and number < len(shown) and not self._is_call(mark):
                out.append(shown[number].content)
            else:
                return "".join(out)
        return "".join([*out, outline[at:]])

    def mark_start(self, outline: str, at: int) -> int:
        """Return the start of the placeholder that covers a character of an outline; ``at`` if none does."""
        for match in self._mark.finditer(outline, max(0, at - 2 * len(self._stem) - 24)):
            if match.start() < at < match.end():
                return match.start()
            if match.start() >= at:
                break
        return at

    # placing tokens

    def place(self, ids: Sequence[int], token: int, begin: str = "") -> Place:
        """Return the position of a token of the prompt, or of the character after its ``begin``; ``ids``: the prompt's.

        Renders the outline once.
        """
        parts, number = self.composed.parts, self._part_of(token)
        before = self._text_before(ids, token)
        n_text = len(before)
        before += begin
        if not parts:
            return Place(DivergedAt(token, None, None, "template"), before)
        if (index := parts[number].message) is not None:
            return Place(DivergedAt(token, index, self.messages[index].role, "message"), before, near=index)
        try:
            piece, closes, at, within = self._piece(ids, number, token, before, n_text)
        except UnsupportedParameterError:
            piece = None
        if piece is None:
            index = self._by_text(number, token)
            role = None if index is None else self.messages[index].role
            part: PromptPart = "template" if index is None else "message"
            return Place(DivergedAt(token, index, role, part), before, near=index)
        tool = self.tools[piece.tool].name if piece.tool is not None and piece.tool < len(self.tools) else None
        ends = piece.part == "message" or closes
        index = piece.message if ends else None
        role = None if index is None else self.messages[index].role
        diverged = DivergedAt(token, index, role, "message" if ends else piece.part, tool)
        return Place(diverged, before, piece, piece.message, at, within)

    def _part_of(self, token: int) -> int:
        parts = self.composed.parts
        return max(0, next((n for n in range(len(parts) - 1, -1, -1) if parts[n].start <= token), 0))

    def _text_before(self, ids: Sequence[int], token: int) -> str:
        """Return the text between the preceding special token and a token, in whole characters."""
        specials, start = self.tokenizer.special_ids, token
        while start and ids[start - 1] not in specials:
            start -= 1
        return self.tokenizer.decode(ids[start:token]).rstrip("\ufffd")

    def _piece(
        self, ids: Sequence[int], number: int, token: int, before: str, n_text: int
    ) -> tuple[Piece | None, bool, int, int]:
        """Return the piece of a token that the template wrote; True if a content ends right there; the position of its
        text in the outline; and the number of characters of its content before the token.
        """
        parts, specials = self.composed.parts, self.tokenizer.special_ids
        begin = parts[number].start
        stop = parts[number + 1].start if number + 1 < len(parts) else len(ids)
        low, high = self._slice(number)
        segments = self._segments(self.text[low:high])
        if number + 1 == len(parts) and sum(map(specials.__contains__, ids[begin:stop])) != len(segments) - 1:
            return None, False, -1, 0  # special tokens in contents
        k = sum(map(specials.__contains__, ids[begin:token]))
        if k >= len(segments):
            return None, False, -1, 0
        after = ids[token : min(stop, token + _TAIL)]
        n_plain = next((n for n, one in enumerate(after) if one in specials), len(after))
        text = before[:n_text] + self.tokenizer.decode(after[:n_plain])
        pieces = self._walk(segments, k, text, low)
        offset = len(before)
        place = next((n for n, one in enumerate(pieces) if one.start <= offset < one.stop), len(pieces) - 1)
        if place < 0:
            return None, False, -1, 0
        found, former = pieces[place], pieces[place - 1] if place else None
        if found.is_content:
            return found, False, found.at, offset - found.start
        closes = former is not None and former.is_content and offset == found.start
        if closes and former is not None:
            found = attrs.evolve(found, message=former.message)
        return found, closes, found.at + min(offset - found.start, found.stop - found.start), 0

    def _slice(self, number: int) -> tuple[int, int]:
        """Return the characters of the outline for a part of the prompt that the template wrote."""
        parts, text = self.composed.parts, self.text
        before = parts[number - 1].message if number else None
        after = parts[number + 1].message if number + 1 < len(parts) else None
        low, high = 0, len(text)
        if before is not None:
            ends = [match.end() for match in self._mark.finditer(text) if match[1] == "m" and int(match[2]) == before]
            if ends:
                low = min((at for one in self._closings if (at := text.find(one, max(ends))) >= 0), default=max(ends))
        if after is not None:
            starts = [m.start() for m in self._mark.finditer(text, low) if m[1] == "m" and int(m[2]) == after]
            high = min(starts, default=high)
        return low, high

    def _segments(self, text: str) -> list[tuple[int, str]]:
        """Yield (start, text) between the special tokens of a text."""
        ids, specials = self.tokenizer.encode(text), self.tokenizer.special_ids
        found, at = [], 0
        for token in ids:
            if token in specials:
                name = self.tokenizer.key([token])
                start = text.find(name, at)
                if start < 0:
                    raise UnsupportedParameterError(f"the special token {name!r} is not in the text that it is made of")
                found.append((at, text[at:start]))
                at = start + len(name)
        return [*found, (at, text[at:])]

    def _walk(self, segments: Sequence[tuple[int, str]], k: int, text: str, base: int) -> list[Piece]:
        """Return the pieces of segment ``k``, whose real text is ``text``."""
        start, sketch = segments[k]
        marks = list(self._mark.finditer(sketch))
        earlier = [found for _, one in segments[:k] for found in self._mark.finditer(one)][-1:]
        following = [found for _, one in segments[k + 1 :] for found in self._mark.finditer(one)]
        if not marks and earlier and following and earlier[0][1] == following[0][1] == "t":
            return [Piece(0, len(text) + 1, base + start, "tools", None, int(following[0][2]))]
        later = next((found for found in following if found[1] == "m"), None)
        pieces: list[Piece] = []
        cursor, at = 0, 0
        last_message: int | None = None
        for n, mark in enumerate(marks):
            literal = sketch[at : mark.start()]
            next_text = sketch[mark.end() : marks[n + 1].start() if n + 1 < len(marks) else len(sketch)]
            pieces += self._literal(literal, cursor, base + start + at, marks, n, last_message)
            cursor += len(literal)
            number = int(mark[2])
            if mark[1] == "t":
                stop = cursor + len(self.tools[number].name)
                pieces.append(Piece(cursor, stop, base + start + mark.start(), "tools", None, number))
            else:
                last_message = number
                stop = self._content_stop(text, cursor, number, next_text, is_call=self._is_call(mark))
                pieces.append(
                    Piece(cursor, stop, base + start + mark.start(), "message", number, None, is_content=True)
                )
            cursor, at = stop, mark.end()
        after = None if later is None or last_message is not None else int(later[2])
        *tail, last = self._literal(sketch[at:], cursor, base + start + at, marks, len(marks), last_message, after)
        return [*pieces, *tail, attrs.evolve(last, stop=max(last.stop, len(text) + 1))]

    def _literal(
        self,
        literal: str,
        cursor: int,
        at: int,
        marks: Sequence[re.Match[str]],
        n: int,
        last_message: int | None,
        later: int | None = None,
    ) -> list[Piece]:
        """Return the template's text before placeholder ``n`` of a segment; next to a tool's, the text of the tools."""
        before, after = (marks[n - 1] if n else None), (marks[n] if n < len(marks) else None)
        stop = cursor + len(literal)
        if before is not None and before[1] == "t":
            n_next = self._n_opening(marks, n, literal) if after is not None and after[1] == "t" else 0
            ends = cursor + literal.rfind("}", 0, len(literal) - n_next) + 1 if n_next else stop
            mine = Piece(cursor, ends, at, "tools", None, int(before[2]))
            return [mine, Piece(ends, stop, at + ends - cursor, "tools", None, int(before[2]) + 1)][: 1 + bool(n_next)]
        if after is not None and after[1] == "t":
            return [Piece(cursor, stop, at, "tools", None, int(after[2]))]
        is_call = any(mark is not None and self._is_call(mark) for mark in (before, after))
        part: PromptPart = "message" if is_call else "template"  # the spelling of a call belongs to the message
        if after is not None:
            return [Piece(cursor, stop, at, part, int(after[2]))]
        return [Piece(cursor, stop, at, part, later if last_message is None else last_message)]

    def _n_opening(self, marks: Sequence[re.Match[str]], n: int, literal: str) -> int:
        """Count the characters at the end of a text between two tools that open the second: as before the first."""
        first = next(place for place, mark in enumerate(marks) if mark[1] == "t")
        text = marks[n].string[: marks[first].start()]
        same = zip(literal[::-1], text[::-1], strict=False)
        return next((n for n, (one, other) in enumerate(same) if one != other), min(len(literal), len(text)))

    def _is_call(self, mark: re.Match[str]) -> bool:
        """True if a placeholder is that of a call's arguments."""
        return "a" in mark[0][len(self._stem) :]

    def _content_stop(self, text: str, cursor: int, number: int, following: str, *, is_call: bool) -> int:
        """Return where a content that begins at ``cursor`` ends: as given, trimmed, or written as JSON."""
        content = self.messages[number].content
        if not is_call:
            for one in (content, content.strip(), content.rstrip(), content.lstrip()):
                if one and text.startswith(one, cursor):
                    return cursor + len(one)
        found = text.rfind(following, cursor) if following else len(text)
        return found if found >= 0 else len(text)

    def _by_text(self, number: int, token: int) -> int | None:
        """Return the message of a token by the first characters of contents, if the outline does not tell."""
        parts = self.composed.parts
        replies = [index for part in parts[:number] if (index := part.message) is not None]
        later = [index for part in parts[number:] if (index := part.message) is not None]
        first, stop = (replies[-1] + 1 if replies else 0), (later[0] if later else len(self.messages))
        text, n_tokens = parts[number].text, token - parts[number].start
        at = len(written(self.tokenizer, self.tokenizer.encode(text)[:n_tokens]))
        found, cursor = (replies[-1] if replies else None), 0
        for index in range(first, stop):
            snippet = self.messages[index].content.strip()[:200]
            begin = text.find(snippet, cursor) if snippet else -1
            if begin < 0:
                continue
            closed = [end + len(one) for one in self._closings if (end := text.rfind(one, cursor, begin)) >= 0]
            is_first = not index and self.messages[0].role == "system"
            if (0 if is_first else max(closed, default=cursor)) > at:
                break
            found, cursor = index, begin + len(snippet)
        return found
