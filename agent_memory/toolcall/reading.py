"""The phases that read calls written as JSON objects, and groups of calls that are read as a whole.

- A call of a tool that was not declared stays text and is listed as rejected. So does a malformed one: where it has
  been begun to be given out as a call it ends with a rejected ``CallEnd``, behind which all of its text follows.
- A call that is complete but not closed counts; one that is cut short is rejected as truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from agent_memory.toolcall.forms import ElementForm, Form, LiteralForm, ObjectForm
from agent_memory.toolcall.marks import BLANKS, Part, Shape, ahead, behind_blanks
from agent_memory.toolcall.objects import ObjectReader
from agent_memory.toolcall.output import OpenCall, Output, Reason
from agent_memory.toolcall.phases import ClosingPhase, Phase
from agent_memory.toolcall.spans import scanner_of
from agent_memory.types import Tool

CUT = "the output ends inside it"
_MORE = Shape((ahead("{"),), (BLANKS, ",", ahead("{")))
_SURPLUS = Part(r"(?:\s{0,8}\}){1,3}", r"(?:\s{0,8}\}){0,3}")


class ObjectPhase:
    """One call as a JSON object, or an array of them: given out while it is read, once its name is known.

    ``start``: the mark before it. ``home``: the phase behind it, and behind what closes it.
    """

    is_call = True

    def __init__(self, forms: Sequence[ObjectForm], output: Output, home: Phase, start: str = "") -> None:
        self._forms, self._output, self._home, self._start = forms, output, home, start
        self._reader = ObjectReader(forms)
        self._call: OpenCall | None = None  # once its name is known to be a declared tool's
        self._n_given = 0

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read on, and hand out the arguments that were read meanwhile."""
        reader, output = self._reader, self._output
        stop = reader.feed(text, at)
        if self._call is None and reader.kind == "{" and output.knows(reader.name):
            assert reader.name is not None
            self._call = output.open_call(reader.name, self._start + "".join(reader.head))
        if self._call is not None and len(reader.arguments) > self._n_given:
            piece = "".join(reader.arguments[self._n_given :])
            self._n_given = len(reader.arguments)
            self._call.arguments(piece, piece)
        if reader.failed:
            return stop, self._abandon("malformed", "it is not JSON of a call's shape")
        return stop, self._finish() if reader.done else self

    def end(self, held: str) -> tuple[str, Phase | None]:
        """The output ends in the call."""
        return held, self._abandon("truncated", CUT)

    def opened(self, held: str) -> tuple[Form, str] | None:
        """Held once there is no doubt that a call is meant."""
        form = self._reader.form
        if form is None or not (form.start or form.wrapper or self._call is not None):
            return None
        return (form, self._reader.raw + held) if self._start or not form.start else None

    def _finish(self) -> Phase:
        """A JSON value is complete: a call, several of them, or none."""
        reader, output = self._reader, self._output
        try:
            calls = reader.calls()
            if self._call is not None and calls[0].name != reader.name:
                raise ValueError("it has two names")
        except ValueError as error:
            return self._abandon("malformed", str(error))
        assert reader.form is not None  # ``calls`` refuses an object of no form
        if reader.is_group or reader.form.is_keyed:
            return self._close() if output.group(calls, self._start + reader.raw) else self._home
        [call] = calls
        if not output.knows(call.name):
            output.refuse("undeclared", call.name, self._start + reader.raw)
            return self._home
        if self._call is None:
            self._call = output.open_call(call.name, self._start + "".join(reader.head))
            self._call.arguments(call.source, "".join(reader.arguments))
        self._call.end(call, "".join(reader.tail))
        return self._close()

    def _abandon(self, reason: Reason, detail: str) -> Phase:
        """No call after all: its text is text, but where one that the output cuts was begun to be given out."""
        reader, raw = self._reader, self._start + self._reader.raw
        if self._call is not None:
            self._call.fail(reason, reader.name, raw, detail, "".join(reader.tail))
        elif self._start or reader.is_call:
            self._output.refuse(reason, reader.name, raw, detail)
        else:
            self._output.text(raw)
        return self._home

    def _close(self) -> Phase:
        form, output = self._reader.form, self._output
        assert form is not None
        if form.separator:
            return self._home if output.is_full else ClosingPhase(behind_blanks(form.separator), output, self._home)
        if not form.end:
            return self._home
        more: Callable[[], Phase] = lambda: ObjectPhase([form], output, self._home)  # noqa: E731
        return ClosingPhase(_closing(form.end), output, self._home, None if output.is_full else (_MORE, more))


@cache
def _closing(end: str) -> Shape:
    """The mark behind an object, with a surplus brace before it or none."""
    return Shape((BLANKS, end), (BLANKS, _SURPLUS, BLANKS, end))


class GroupPhase:
    """Calls that are read as a whole: elements and literals."""

    is_call = True

    def __init__(
        self,
        form: ElementForm | LiteralForm,
        output: Output,
        home: Phase,
        tools: Sequence[Tool] | None,
        *,
        nests: bool = True,
    ) -> None:
        self._form, self._output, self._home, self._tools = form, output, home, tools
        self.nests = nests
        self._scanner = scanner_of(form, nests=nests)

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read on; once the end is reached, give the calls out."""
        stop = self._scanner.feed(text, at)
        if self._scanner.failed:
            return stop, self._refuse("malformed", "it is not of the format")
        return stop, self._finish() if self._scanner.done else self

    def end(self, held: str) -> tuple[str, Phase | None]:
        """The output ends in the group: a complete one counts."""
        scanner = self._scanner
        held = scanner.end(held)
        if scanner.is_whole or scanner.done:
            return held, self._finish()
        if scanner.has_nested:  # a call in a value that does not end is none: the group may have ended long ago
            again = GroupPhase(self._form, self._output, self._home, self._tools, nests=False)
            return scanner.inside, again
        return held, self._refuse("truncated", CUT)

    def opened(self, held: str) -> tuple[Form, str] | None:
        """Held from the start mark on."""
        return self._form, self._scanner.inside + held

    def _finish(self) -> Phase:
        end = self._form.end if self._scanner.done and self._scanner.ends_with_mark else ""
        raw = self._form.start + self._scanner.inside + end
        try:
            calls = self._scanner.calls(self._tools)
        except ValueError as error:
            return self._refuse("malformed", str(error), end)
        is_taken = self._output.group(calls, raw)
        if is_taken and self._form.end and not end:
            return ClosingPhase(behind_blanks(self._form.end), self._output, self._home)
        return self._home

    def _refuse(self, reason: Reason, detail: str, end: str = "") -> Phase:
        """No calls: the text is text; a bracket that began a line was perhaps not meant for more."""
        raw = self._form.start + self._scanner.inside + end
        if self._form.start or reason == "truncated":
            self._output.refuse(reason, None, raw, detail)
        else:
            self._output.text(raw)
        return self._home
