"""The phases that read calls: JSON objects, JSON in frames, and groups that are read as a whole.

- A call of a tool that was not declared stays text and is listed as rejected. So does a malformed one: where it has
  been begun to be given out as a call it ends with a rejected ``CallEnd``, behind which all of its text follows.
- A call that is complete but not closed counts; one that is cut short is rejected as truncated.
- Calls in one pair of marks belong together: while one of them is of a declared tool, the marks are no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent_memory.toolcall.forms import ElementForm, Form, FramedForm, LiteralForm, ObjectForm
from agent_memory.toolcall.found import Found, from_text
from agent_memory.toolcall.jsonscan import JSONScanner
from agent_memory.toolcall.marks import BLANKS, Match, Part, Shape, ahead
from agent_memory.toolcall.objects import ObjectReader
from agent_memory.toolcall.output import Output, Reason
from agent_memory.toolcall.phases import ClosingPhase, Phase
from agent_memory.toolcall.spans import scanner_of
from agent_memory.types import RejectedCall, Tool

_CUT = "the output ends inside it"
_SURPLUS = Part(r"(?:\s{0,8}\}){1,3}", r"(?:\s{0,8}\}){0,3}")


class ObjectPhase:
    """One call as a JSON object, or an array of them: given out while it is read, once its name is known.

    ``start``: the mark before it. ``then``: the phase behind it, for a form; where the text is no call, ``home`` is.
    """

    is_call = True

    def __init__(self, forms: Sequence[ObjectForm], output: Output, home: Phase, start: str = "") -> None:
        self._forms, self._output, self._home, self._start = forms, output, home, start
        self._reader = ObjectReader(forms)
        self._is_committed, self._n_given = False, 0

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read on, and hand out the arguments that were read meanwhile."""
        reader, output = self._reader, self._output
        stop = reader.feed(text, at)
        if not self._is_committed and reader.kind == "{" and output.knows(reader.name):
            self._is_committed = True
            assert reader.name is not None
            output.start_call(reader.name, self._start + "".join(reader.head))
        if self._is_committed and len(reader.arguments) > self._n_given:
            piece = "".join(reader.arguments[self._n_given :])
            self._n_given = len(reader.arguments)
            output.arguments(piece, piece)
        if reader.failed:
            return stop, self._abandon("malformed", "it is not JSON of a call's shape")
        return stop, self._finish() if reader.done else self

    def end(self, held: str) -> tuple[str, Phase | None]:
        """The output ends in the call."""
        return held, self._abandon("truncated", _CUT)

    def opened(self, held: str) -> tuple[Form, str] | None:
        """Held once there is no doubt that a call is meant."""
        form = self._reader.form
        if form is None or not (form.start or form.wrapper or self._is_committed):
            return None
        return (form, self._reader.raw + held) if self._start or not form.start else None

    def _finish(self) -> Phase:
        """A JSON value is complete: a call, several of them, or none."""
        reader, output = self._reader, self._output
        try:
            calls = reader.calls()
            if self._is_committed and calls[0].name != reader.name:
                raise ValueError("it has two names")
        except ValueError as error:
            return self._abandon("malformed", str(error))
        assert reader.form is not None  # ``calls`` refuses an object of no form
        if reader.is_group or reader.form.is_keyed:
            return self._close() if output.group(calls, self._start + reader.raw) else self._home
        [call] = calls
        if not output.knows(call.name):
            output.reject(output.undeclared(call.name, self._start + reader.raw))
            output.text(self._start + reader.raw)
            return self._home
        if not self._is_committed:
            output.start_call(call.name, self._start + "".join(reader.head))
            output.arguments(call.source, "".join(reader.arguments))
        output.end_call(call, "".join(reader.tail))
        return self._close()

    def _abandon(self, reason: Reason, detail: str) -> Phase:
        """No call after all: its text is text, but where one that the output cuts was begun to be given out."""
        reader, raw = self._reader, self._start + self._reader.raw
        rejected = RejectedCall(reason, reader.name, raw, detail)
        if self._is_committed:
            self._output.fail_call(rejected, "".join(reader.tail))
            return self._home
        if self._start or reader.is_call:
            self._output.reject(rejected)
        self._output.text(raw)
        return self._home

    def _close(self) -> Phase:
        form, output = self._reader.form, self._output
        assert form is not None
        if form.separator:
            return self._home if output.is_full else ClosingPhase(Shape((BLANKS, form.separator)), output, self._home)
        if not form.end:
            return self._home
        closes = Shape((BLANKS, form.end), (BLANKS, _SURPLUS, BLANKS, form.end))
        repeats = Shape((ahead("{"),), (BLANKS, ",", ahead("{")))
        more: Callable[[], Phase] = lambda: ObjectPhase([form], output, self._home)  # noqa: E731
        return ClosingPhase(closes, output, self._home, None if output.is_full else (repeats, more))


class FramedPhase:
    """Calls whose arguments are JSON, each behind a header: given out while they are read.

    What was read since the last call that was given out (the mark before it, calls of undeclared tools) is kept: it is
    no text where a call of a declared tool follows it within the same marks.
    """

    is_call = True

    def __init__(self, form: FramedForm, output: Output, home: Phase, start: str | None = None) -> None:
        self.form, self._output, self._home = form, output, home
        self._end = Shape((BLANKS, form.end)) if form.end else None
        self._kept = [form.start if start is None else start]
        self._written = ""  # the header of the open call
        self._n_taken = 0
        self._undeclared: list[RejectedCall] = []
        self._call: ArgumentsReader | None = None

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read a header, arguments, what is behind them, or the end mark."""
        if self._call is None:
            return self._between(text, at)
        if not self._call.done:
            at = self._call.feed(text, at)
            if self._call.failed:
                return at, self._abandon("malformed", "its arguments are not JSON")
            if not self._call.done:
                return at, self
        return self._behind(text, at)

    def end(self, held: str) -> tuple[str, Phase | None]:
        """The output ends in the group: what is complete counts."""
        if self._call is not None and self._call.done:
            return "", self._complete(held) or self
        if self._call is not None:
            return held, self._abandon("truncated", _CUT)
        if not self._n_taken and not self._undeclared:
            self._output.refuse(self._take_kept() + held, "truncated", None, _CUT)
        elif self._n_taken and held.strip() and not self.form.end.startswith(held.strip()):
            self._settle("")
            self._output.refuse(held, "truncated", None, _CUT)
        else:
            self._settle(held)
        return "", self._home

    def opened(self, held: str) -> tuple[Form, str] | None:
        """Held from the start mark on, but between two calls."""
        written = self._written + (self._call.written if self._call is not None else "") + held
        return None if self._n_taken and not written.strip() else (self.form, written)

    def _between(self, text: str, at: int) -> tuple[int, Phase]:
        """Before a call: its header, an array of calls, the end mark, or none of these."""
        form, output = self.form, self._output
        is_first = not self._n_taken and not self._undeclared
        if self._end is not None and not is_first and (found := self._end.match(text, at)) is not None:
            self._settle(found.text)
            return found.stop, self._home
        shapes = [self._end] if output.is_full else [self._end, form.header]
        if is_first and form.list_form is not None:
            if (found := _ARRAY.match(text, at)) is not None:
                start = self._take_kept() + found.text
                return found.stop, ObjectPhase([form.list_form], output, self._home, start)
            shapes.append(_ARRAY)
        if not output.is_full and (found := form.header.match(text, at)) is not None:
            name, call_id = form.named(found.groups["name"], found.groups.get("id"))
            self._written = found.text
            self._call = ArgumentsReader(name, call_id, output, self._take_kept() + found.text)
            return found.stop, self
        if any(shape is not None and shape.may_begin(text, at) for shape in shapes):
            return at, self
        if is_first:
            return at, self._abandon("malformed", "it is not of the format")
        self._settle("")
        return at, self._home

    def _behind(self, text: str, at: int) -> tuple[int, Phase]:
        behind, follows = self.form.behind, None
        if behind is None:
            follows = self._complete("")
        elif (found := behind.match(text, at)) is not None:
            at, follows = found.stop, self._complete(found.text)
        elif behind.may_begin(text, at):
            return at, self
        else:
            follows = self._abandon("malformed", "text stands behind its arguments")
        if follows is None and self._output.is_full and self._end is None:
            self._settle("")
            follows = self._home
        return at, follows or self

    def _complete(self, behind: str) -> Phase | None:
        """The open call is complete; gives a phase where it turns out to be none."""
        call, output = self._call, self._output
        assert call is not None
        try:
            found = call.found()
        except ValueError as error:
            return self._abandon("malformed", str(error), behind)
        self._call, self._written = None, ""
        if call.is_given:
            for rejected in self._undeclared:
                output.reject(rejected)
            self._undeclared.clear()
            output.end_call(found, behind)
            self._n_taken += 1
        else:
            self._kept.append(call.raw + behind)
            self._undeclared.append(output.undeclared(found.name, call.raw + behind))
        return None

    def _settle(self, more: str) -> None:
        """The group ends, with this text: what was kept is markup, where a call was taken; else text."""
        kept = self._take_kept() + more
        for rejected in self._undeclared:
            self._output.reject(rejected)
        self._undeclared.clear()
        if self._n_taken and kept:
            self._output.mark(kept)
        else:
            self._output.text(kept)

    def _abandon(self, reason: Reason, detail: str, behind: str = "") -> Phase:
        """The open call is none; before the first one, the whole group is none."""
        call, self._call = self._call, None
        if call is None:
            self._output.refuse(self._take_kept(), reason, None, detail)
        else:
            self._settle("")
            call.fail(reason, detail, behind)
        return self._home

    def _take_kept(self) -> str:
        kept, self._kept = "".join(self._kept), []
        return kept


class BegunPhase:
    """The beginning of a reply whose prompt has ended with a form's start mark: a call, or text.

    ``texts``: what may stand in place of a header, with text behind it.
    """

    is_call = False

    def __init__(self, form: FramedForm, output: Output, home: Phase, texts: Sequence[str]) -> None:
        self._form, self._output, self._home = form, output, home
        self._texts = Shape(*((text,) for text in texts))

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Tell which of the two it is."""
        if self._form.header.match(text, at) is not None:
            return at, FramedPhase(self._form, self._output, self._home, start="")
        if (found := self._texts.match(text, at)) is not None:
            self._output.mark(found.text)
            return found.stop, self._home
        if self._form.header.may_begin(text, at) or self._texts.may_begin(text, at):
            return at, self
        return at, self._home

    def end(self, held: str) -> tuple[str, Phase | None]:
        """What was held back is text."""
        return held, self._home

    def opened(self, held: str) -> None:
        """Nothing is open."""


_ARRAY = Shape((ahead("["),))


class ArgumentsReader:
    """The arguments of a call whose name is known: JSON, handed out while it is read if the tool is declared.

    ``head``: the text before them. ``is_given``: a ``CallStart`` was given out, which a ``CallEnd`` has to follow.
    """

    def __init__(self, name: str, call_id: str | None, output: Output, head: str) -> None:
        self.name, self._id, self._output, self._head = name, call_id, output, head
        self._json = JSONScanner(keeps=0)
        self._parts: list[str] = []
        self.is_given = output.knows(name) and not output.is_full
        if self.is_given:
            output.start_call(name, head, call_id)

    @property
    def done(self) -> bool:
        """True if the JSON is complete."""
        return self._json.done

    @property
    def failed(self) -> bool:
        """True if it is no JSON."""
        return self._json.failed

    @property
    def raw(self) -> str:
        """The head and everything that was read."""
        return self._head + "".join(self._parts)

    @property
    def written(self) -> str:
        """The arguments, as far as they were read."""
        return "".join(self._parts)

    def feed(self, text: str, at: int) -> int:
        """Read on; stops behind the arguments, or before the first character that fits nowhere."""
        start = at
        while at < len(text) and not (self._json.done or self._json.failed):
            at, _ = self._json.next(text, at)
        if at > start:
            self._parts.append(text[start:at])
            if self.is_given:
                self._output.arguments(text[start:at], text[start:at])
        return at

    def found(self) -> Found:
        """The call. Raises ValueError in words."""
        return from_text(self.name, "".join(self._parts), self._id)

    def fail(self, reason: Reason, detail: str, behind: str = "") -> None:
        """It is none: its text is text, but where one that the output cuts was begun to be given out."""
        rejected = RejectedCall(reason, self.name, self.raw + behind, detail)
        if self.is_given:
            self._output.fail_call(rejected, behind)
        else:
            self._output.reject(rejected)
            self._output.text(self.raw + behind)


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
            self._refuse("malformed", "it is not of the format")
            return stop, self._home
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
        self._refuse("truncated", _CUT)
        return held, self._home

    def opened(self, held: str) -> tuple[Form, str] | None:
        """Held from the start mark on."""
        return self._form, self._scanner.inside + held

    def _finish(self) -> Phase:
        end = self._form.end if self._scanner.done and self._scanner.ends_with_mark else ""
        raw = self._form.start + self._scanner.inside + end
        try:
            calls = self._scanner.calls(self._tools)
        except ValueError as error:
            if self._form.start:
                self._output.reject(RejectedCall("malformed", None, raw, str(error)))
            self._output.text(raw)
            return self._home
        is_taken = self._output.group(calls, raw)
        if is_taken and self._form.end and not end:
            return ClosingPhase(Shape((BLANKS, self._form.end)), self._output, self._home)
        return self._home

    def _refuse(self, reason: Reason, detail: str) -> None:
        raw = self._form.start + self._scanner.inside
        if self._form.start or reason == "truncated":
            self._output.reject(RejectedCall(reason, None, raw, detail))
        self._output.text(raw)
