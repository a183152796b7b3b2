"""What a reply is made of so far: events to hand out, and what they add up to."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from agent_memory.errors import repr_of
from agent_memory.toolcall.found import Found
from agent_memory.types import (
    CallArguments,
    CallEnd,
    CallRejected,
    CallStart,
    Event,
    Markup,
    Reasoning,
    RejectedCall,
    Text,
    ToolCall,
)  # fmt: skip

_LETTERS = string.ascii_letters + string.digits


@frozen
class Parsed:
    """What a text holds."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    rejected_calls: tuple[RejectedCall, ...] = ()

    @property
    def is_truncated(self) -> bool:
        """True if the text ends inside a call."""
        return any(call.reason == "truncated" for call in self.rejected_calls)


Reason = Literal["undeclared", "malformed", "truncated", "parallel"]


class Output:
    """Collects events, and tells which calls may be run.

    - Text comes in passages: calls and marks part them, and blanks at a passage's beginning wait until there is text
      in it; without any they are markup, or text where the whole reply is nothing else.
    - ``names``: the declared tools'; None: every name is taken for declared. ``max_calls``: no more are taken.
    """

    def __init__(self, names: frozenset[str] | None = None, max_calls: int | None = None) -> None:
        self._names, self._max_calls = names, max_calls
        self.is_line_start = True  #: True if only blanks stand between here and the beginning of the line
        self.n_complete = 0  #: calls that may be run
        self._events: list[Event] = []
        self._said: list[str] = []
        self._in_passage = self._drops_blanks = self._has_marks = False
        self._blanks = ""
        self._n_calls = 0
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._rejected: list[RejectedCall] = []

    @property
    def parsed(self) -> Parsed:
        """What there is so far."""
        return Parsed("".join(self._texts), "".join(self._thoughts), tuple(self._calls), tuple(self._rejected))

    @property
    def is_full(self) -> bool:
        """True if no more calls are taken."""
        return self._max_calls is not None and self.n_complete >= self._max_calls

    def knows(self, name: str | None) -> bool:
        """True if a tool of this name is declared."""
        return name is not None and (self._names is None or name in self._names)

    def reject(self, reason: Reason, name: str | None, raw: str, detail: str = "") -> None:
        """Something is no call that may be run; its text is given as text, or stands in a ``mark``."""
        rejected = self._rejection(reason, name, raw, detail)
        self._rejected.append(rejected)
        self._emit(CallRejected(rejected))

    def refuse(self, reason: Reason, name: str | None, raw: str, detail: str = "") -> None:
        """Give a piece back as text, listed as rejected."""
        self.reject(reason, name, raw, detail)
        self.text(raw)

    def group(self, calls: Sequence[Found], raw: str) -> bool:
        """Calls that came in one piece. Where none is of a declared tool the piece stays text, and this gives False."""
        if not any(self.knows(call.name) for call in calls):
            self.refuse("undeclared", calls[0].name, raw)
            return False
        for call in calls:
            if not self.knows(call.name):
                self.reject("undeclared", call.name, call.source)
            elif self.is_full:
                self.reject("parallel", call.name, call.source, f"at most {self._max_calls} calls were asked for")
            else:
                opened = self.open_call(call.name, call_id=call.id)
                opened.arguments(call.source, "")
                opened.end(call)
        self.mark(raw)
        return True

    def text(self, text: str) -> None:
        """Text of the answer."""
        if not text:
            return
        self._follow(text)
        if not self._in_passage:
            rest = text.lstrip()
            self._blanks += text[: len(text) - len(rest)]
            if not rest:
                return
            if self._drops_blanks:
                self._flush_blanks()
            text, self._blanks, self._in_passage = self._blanks + rest, "", True
        self._said.append(text)

    def reasoning(self, text: str) -> None:
        """Text between the marks of reasoning."""
        if text:
            self._thoughts.append(text)
            self._emit(Reasoning(text))

    def mark(self, source: str, *, drops_blanks: bool = False) -> None:
        """Structure, which ends a passage; ``drops_blanks``: those behind it are never text."""
        self._part(drops_blanks)
        self._emit(Markup(source))

    def open_call(self, name: str, source: str = "", call_id: str | None = None) -> OpenCall:
        """A call opens, at the beginning of a line as far as what follows it is concerned."""
        self._part()
        taken = {call.id for call in self._calls}
        index, known_id = self._n_calls, call_id if call_id and call_id not in taken else _new_id()
        self._emit(CallStart(index, known_id, name, source))
        self._n_calls += 1
        return OpenCall(self, index, known_id)

    def end(self) -> None:
        """Nothing follows."""
        if self._blanks and not self._has_marks:
            self._said.append(self._blanks)
            self._blanks = ""
        self._flush_blanks()

    def flush(self) -> list[Event]:
        """The events since the last call of this."""
        self._say()
        events, self._events = self._events, []
        return events

    def _rejection(self, reason: Reason, name: str | None, raw: str, detail: str) -> RejectedCall:
        if reason == "undeclared":
            detail = f"no tool {repr_of(name)} is declared; declared: {', '.join(sorted(self._names or ()))}"
        return RejectedCall(reason, name, raw, detail)

    def _follow(self, text: str) -> None:
        """Keep ``is_line_start`` behind more text."""
        _, newline, line = text.rpartition("\n")
        self.is_line_start = not line.strip() and (bool(newline) or self.is_line_start)

    def _part(self, drops_blanks: bool = False) -> None:
        """End the passage; blanks between two of these belong to neither."""
        self._say()
        self._has_marks = True
        self._flush_blanks()
        self._in_passage, self._drops_blanks = False, drops_blanks

    def _flush_blanks(self) -> None:
        if self._blanks:
            self._events.append(Markup(self._blanks))
            self._blanks = ""

    def _emit(self, event: Event) -> None:
        self._say()
        self._events.append(event)

    def _say(self) -> None:
        if self._said:
            text = "".join(self._said)
            self._said.clear()
            self._texts.append(text)
            self._events.append(Text(text))


class OpenCall:
    """A call that is being given out: ``end`` or ``fail`` is its last event."""

    def __init__(self, output: Output, index: int, call_id: str) -> None:
        self._output, self._index, self._id = output, index, call_id

    def arguments(self, text: str, source: str) -> None:
        """More of its arguments."""
        self._output._emit(CallArguments(self._index, text, source))

    def end(self, found: Found, source: str = "") -> None:
        """It is complete."""
        output, call = self._output, ToolCall(found.name, found.arguments, self._id, found.source)
        output._calls.append(call)
        output.n_complete += 1
        output.is_line_start = True
        output._emit(CallEnd(self._index, call, None, source))

    def fail(self, reason: Reason, name: str | None, raw: str, detail: str, source: str) -> None:
        """It is broken. A malformed one is text: all of it, whatever of it was given out as a call."""
        output, rejected = self._output, self._output._rejection(reason, name, raw, detail)
        output._rejected.append(rejected)
        output._emit(CallEnd(self._index, None, rejected, source))
        if reason == "malformed":
            output._texts.append(raw)
            output._emit(Text(raw, source=""))
            output._in_passage = True
            output._follow(raw)


def _new_id() -> str:
    """Nine letters and digits: what the strictest template (Mistral's) asks of an id, and both APIs allow."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))
