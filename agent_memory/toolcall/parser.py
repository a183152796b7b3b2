"""ToolParser: a model's text in, events out: the answer, the reasoning, and the calls, while they are being written.

One state machine serves streams and whole texts: ``parse`` feeds everything and ends. What it gives depends on the
characters alone, not on how they were cut. It never raises on any text, and loses no character: the ``source`` of all
events joins to what was fed.

The policy:

- Bare JSON is a call only at the beginning of the output or of a line, or right behind a call, outside code fences;
  marks count anywhere in the answer.
- A call of a tool that was not declared stays text and is listed as rejected. So does a malformed one: where it has
  been begun to be given out as a call it ends with a rejected ``CallEnd``, behind which all of its text follows.
- Text before, between and after calls is kept; blanks that touch a call or a mark and nothing else are markup.
- A call that is complete but not closed counts; one that is cut short is rejected as truncated.
- What stands in reasoning is reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from agent_memory.toolcall import native
from agent_memory.toolcall.formats import Form, JSONForm, NativeForm, can_be_held, forms
from agent_memory.toolcall.found import Found
from agent_memory.toolcall.jsonscan import CallScanner
from agent_memory.toolcall.markscan import Beginnings, HeaderScanner, MarkScanner
from agent_memory.toolcall.output import Output, Parsed
from agent_memory.tools import as_tools
from agent_memory.types import Event, RejectedCall

THINK = ("<think>", "</think>")  #: the marks of reasoning where a tokenizer names no others
_FENCES = ("```", "~~~")
_Reason = Literal["undeclared", "malformed", "truncated", "parallel"]


def parse(text: str, tools: object = None, format: str | None = None) -> Parsed:
    """The answer, reasoning and calls in a finished text; ``tools`` and ``format`` as ``ToolParser`` takes them."""
    parser = ToolParser(tools, format)
    parser.feed(text)
    parser.end()
    return parser.parsed


class ToolParser:
    """Finds calls in text that comes in pieces. Not thread-safe; one per reply. Cost: linear.

    ``tools``: the declared tools, in any shape that ``Memory.generate`` takes; None: every name is taken for declared,
    ``()``: none is. ``format``: one of ``FORMATS``; None: any of the JSON forms. ``reasoning``: its two marks, None
    for no such marks. ``in_reasoning``: the prompt ended inside them. ``max_calls``: text after so many calls is text.

    Raises UnsupportedParameterError for an unknown format or a tool of an unknown shape.
    """

    def __init__(
        self,
        tools: object = None,
        format: str | None = None,
        *,
        reasoning: tuple[str, str] | None = THINK,
        in_reasoning: bool = False,
        max_calls: int | None = None,
    ) -> None:
        self._tools = None if tools is None else as_tools(tools)
        self._names = None if self._tools is None else frozenset(tool.name for tool in self._tools)
        known = forms(format)
        some = known if self._names is None or self._names else ()
        self._bare = [form for form in some if isinstance(form, JSONForm) and not form.start]
        self._marked = {form.start: form for form in some if form.start}
        self._open_think, self._close_think = reasoning or ("", "")
        self._max_calls = max_calls
        self._triggers, self._begun = self._plain_marks()
        self._begun_close = Beginnings([self._close_think])
        self._output = Output()
        self._state = self._reasoning if reasoning and in_reasoning else self._text
        self._held = self._fence = ""
        # The call that is being read: of a form, begun by a mark; committed once it is being given out.
        self._scanner: CallScanner | MarkScanner | HeaderScanner
        self._start = self._end_mark = ""
        self._is_committed = False
        self._n_given = 0

    @property
    def parsed(self) -> Parsed:
        """What was found so far; all of it after ``end``."""
        return self._output.parsed

    @property
    def is_done(self) -> bool:
        """Whether ``max_calls`` calls are complete, and what closes the last one has been read."""
        return self._is_full and self._state == self._text

    @property
    def in_call(self) -> bool:
        """Whether a call is open."""
        return self._state in (self._json, self._native)

    @property
    def opened(self) -> tuple[Form, str] | None:
        """The form of the call that is open, if a grammar can hold it and there is no doubt that a call is meant; and
        what stands behind its start mark so far.
        """
        if not self.in_call:
            return None
        scanner = self._scanner
        if not isinstance(scanner, CallScanner):
            can_hold = can_be_held(scanner.form) and scanner.unfinished is not None
            return (scanner.form, f"{scanner.unfinished}{self._held}") if can_hold else None
        if scanner.form is None:
            return None
        is_meant = scanner.form.start or scanner.form.wrapper or self._is_committed
        return (scanner.form, scanner.raw + self._held) if is_meant else None

    def feed(self, chunk: str) -> list[Event]:
        """The events that became certain with ``chunk``. Of plain text no more is held back than may begin a mark."""
        text, at = self._held + chunk, 0
        while at < len(text):
            state, stop = self._state, self._state(text, at)
            if stop == at and state == self._state:
                break
            at = stop
        self._held = text[at:]
        return self._output.flush()

    def end(self) -> list[Event]:
        """The last events."""
        held, self._held = self._held, ""
        if self.in_call:
            held = self._end_call(held)
        if self._state == self._reasoning:
            self._output.reasoning(held)
        else:
            self._state = self._text
            self._output.text(held)
        self._output.end()
        return self._output.flush()

    @property
    def _is_full(self) -> bool:
        return self._max_calls is not None and self._output.n_complete >= self._max_calls

    # Plain text and reasoning.

    def _plain_marks(self) -> tuple[re.Pattern[str] | None, Beginnings]:
        """What may end plain text, and everything that may begin such a mark."""
        has_lines = bool(self._bare or self._open_think)  # whose beginnings matter
        marks = [*self._marked, *filter(None, [self._open_think]), *(_FENCES if has_lines else ())]
        if not marks:
            return None, Beginnings(())
        singles = ["\n", *("{" if self._bare else "")] if has_lines else []
        pattern = "|".join(map(re.escape, sorted(marks, key=len, reverse=True) + singles))
        return re.compile(pattern), Beginnings(marks)

    def _text(self, text: str, at: int) -> int:
        output = self._output
        if self._triggers is None or self._is_full:
            output.text(text[at:])
            return len(text)
        while found := self._triggers.search(text, at):
            begin, mark = found.start(), found.group()
            output.text(text[at:begin])
            at = found.end()
            can_begin = output.is_line_start and not self._fence
            if form := self._marked.get(mark):
                self._open(form)
                return at
            if mark == "{" and can_begin:
                self._open(None)
                return begin
            if mark == self._open_think and can_begin:
                output.mark(mark)
                self._state = self._reasoning
                return at
            if mark in _FENCES and output.is_line_start and self._fence in ("", mark):
                self._fence = "" if self._fence else mark
            output.text(mark)
        stop = len(text) - self._begun.held_back(text, at)
        output.text(text[at:stop])
        return stop

    def _reasoning(self, text: str, at: int) -> int:
        place = text.find(self._close_think, at)
        if place < 0:
            stop = len(text) - self._begun_close.held_back(text, at)
            self._output.reasoning(text[at:stop])
            return stop
        self._output.reasoning(text[at:place])
        self._output.mark(self._close_think, drops_blanks=True)
        self._output.is_line_start = True
        self._state = self._text
        return place + len(self._close_think)

    # Calls.

    def _open(self, form: JSONForm | NativeForm | None) -> None:
        """Begin to read a call; a bare one where no form is given."""
        self._start, self._end_mark = form.start if form else "", form.end if form else ""
        self._is_committed, self._n_given = False, 0
        if isinstance(form, NativeForm):
            self._scanner = MarkScanner(form) if form.end else HeaderScanner(form)
            self._state = self._native
        else:
            self._scanner = CallScanner([form] if form else self._bare)
            self._state = self._json

    def _knows(self, name: str) -> bool:
        return self._names is None or name in self._names

    def _json(self, text: str, at: int) -> int:
        scanner = self._scanner
        assert isinstance(scanner, CallScanner)
        stop = scanner.feed(text, at)
        if not self._is_committed and scanner.kind == "{" and scanner.name is not None and self._knows(scanner.name):
            self._is_committed = True
            self._output.start_call(scanner.name, self._start + "".join(scanner.head))
        self._give(scanner)
        if scanner.failed:
            self._abandon(scanner, "malformed", "it is not JSON of a call's shape")
        elif scanner.done:
            self._finish(scanner)
        return stop

    def _give(self, scanner: CallScanner) -> None:
        """Hand out the arguments that were read meanwhile."""
        if self._is_committed and len(scanner.arguments) > self._n_given:
            piece = "".join(scanner.arguments[self._n_given :])
            self._n_given = len(scanner.arguments)
            self._output.arguments(piece, piece)

    def _finish(self, scanner: CallScanner) -> None:
        """A JSON value is complete: a call, several of them, or none."""
        try:
            calls = scanner.calls()
            if self._is_committed and calls[0].name != scanner.name:
                raise ValueError("it has two names")
        except ValueError as error:
            return self._abandon(scanner, "malformed", str(error))
        self._end_mark = scanner.form.end if scanner.form else ""
        if scanner.is_group:
            return self._finish_group(calls, self._start + scanner.raw)
        [call] = calls
        if not self._knows(call.name):
            return self._abandon(scanner, "undeclared", self._undeclared(call.name))
        if not self._is_committed:
            self._output.start_call(call.name, self._start + "".join(scanner.head))
            self._output.arguments(call.source, "".join(scanner.arguments))
        self._output.end_call(call, "".join(scanner.tail))
        return self._close()

    def _abandon(self, scanner: CallScanner, reason: _Reason, detail: str) -> None:
        """No call after all: its text is text, but where one that the output cuts was begun to be given out."""
        raw = self._start + scanner.raw
        rejected = RejectedCall(reason, scanner.name, raw, detail)
        self._state = self._text
        if self._is_committed:
            self._output.fail_call(rejected, "".join(scanner.tail))
            return
        if self._start or scanner.is_call:
            self._output.reject(rejected)
        self._output.text(raw)

    def _close(self) -> None:
        """A call is complete; what closes it may follow."""
        is_needed = self._end_mark and not (self._is_full and self._end_mark == ";")
        self._state = self._closing if is_needed else self._text

    def _closing(self, text: str, at: int) -> int:
        rest = text[at:].lstrip()
        self._output.text(text[at : len(text) - len(rest)])
        at = len(text) - len(rest)
        if rest.startswith(self._end_mark):
            self._output.mark(self._end_mark)
            at += len(self._end_mark)
        elif self._end_mark.startswith(rest):
            return at
        self._state = self._text
        return at

    def _native(self, text: str, at: int) -> int:
        """Native calls are read whole, then given to mlx-lm's parser."""
        scanner = self._scanner
        assert not isinstance(scanner, CallScanner)
        stop = scanner.feed(text, at)
        if scanner.failed:
            self._return(self._start + scanner.inside, "malformed", None, "it is not of the format")
        elif scanner.done:
            self._read_native(scanner, scanner.form.end)
        return stop

    def _read_native(self, scanner: MarkScanner | HeaderScanner, end: str) -> None:
        raw = self._start + scanner.inside + end
        try:
            calls = native.read(scanner.form, scanner.inside, scanner.quoted, self._tools)
        except ValueError as error:
            return self._return(raw, "malformed", None, str(error))
        self._end_mark = ""
        return self._finish_group(calls, raw)

    def _finish_group(self, calls: Sequence[Found], raw: str) -> None:
        """Calls that came in one piece. Where none is of a declared tool the piece stays text."""
        if not any(self._knows(call.name) for call in calls):
            return self._return(raw, "undeclared", calls[0].name, self._undeclared(calls[0].name))
        for call in calls:
            if not self._knows(call.name):
                self._output.reject(RejectedCall("undeclared", call.name, call.source, self._undeclared(call.name)))
            elif self._is_full:
                detail = f"at most {self._max_calls} calls were asked for"
                self._output.reject(RejectedCall("parallel", call.name, call.source, detail))
            else:
                self._output.start_call(call.name, call_id=call.id)
                self._output.arguments(call.source, "")
                self._output.end_call(call)
        self._output.mark(raw)
        return self._close()

    def _return(self, raw: str, reason: _Reason, name: str | None, detail: str) -> None:
        """Give a piece back as text, listed as rejected."""
        self._state = self._text
        self._output.reject(RejectedCall(reason, name, raw, detail))
        self._output.text(raw)

    def _end_call(self, held: str) -> str:
        """The output ends in a call; gives what of ``held`` does not belong to it."""
        scanner, detail = self._scanner, "the output ends inside it"
        if isinstance(scanner, CallScanner):
            self._abandon(scanner, "truncated", detail)
            return held
        held = scanner.end(held)
        if scanner.is_whole:
            self._read_native(scanner, "")
        else:
            self._return(self._start + scanner.inside, "truncated", None, detail)
        return held

    def _undeclared(self, name: str) -> str:
        return f"no tool {name!r} is declared; declared: {', '.join(sorted(self._names or ()))}"
