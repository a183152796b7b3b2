"""The phases that read calls whose arguments alone are JSON, in frames of marks that hold the names.

Calls in one pair of marks belong together: while one of them is of a declared tool, the marks are no text.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent_memory.toolcall.forms import Form, FramedForm
from agent_memory.toolcall.found import Found, from_text
from agent_memory.toolcall.jsonscan import JSONScanner
from agent_memory.toolcall.marks import Shape, ahead, behind_blanks
from agent_memory.toolcall.output import Output, Reason
from agent_memory.toolcall.phases import Phase
from agent_memory.toolcall.reading import CUT, ObjectPhase

_ARRAY = Shape((ahead("["),))


class ArgumentsReader:
    """The arguments of a call whose name is known: JSON, handed out while it is read if the tool is declared.

    ``head``: the text before them. ``given``: the call, if it is being given out.
    """

    def __init__(self, name: str, call_id: str | None, output: Output, head: str) -> None:
        self.name, self._id, self._output, self._head = name, call_id, output, head
        self._json = JSONScanner(keeps=0)
        self._parts: list[str] = []
        is_given = output.knows(name) and not output.is_full
        self.given = output.open_call(name, head, call_id) if is_given else None

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
            if self.given is not None:
                self.given.arguments(text[start:at], text[start:at])
        return at

    def found(self) -> Found:
        """The call. Raises ValueError in words."""
        return from_text(self.name, "".join(self._parts), self._id)

    def fail(self, reason: Reason, detail: str, behind: str = "") -> None:
        """It is none: its text is text, but where one that the output cuts was begun to be given out."""
        if self.given is not None:
            self.given.fail(reason, self.name, self.raw + behind, detail, behind)
        else:
            self._output.refuse(reason, self.name, self.raw + behind, detail)


class FramedPhase:
    """Calls whose arguments are JSON, each behind a header: given out while they are read.

    What was read since the last call that was given out (the mark before it, calls of undeclared tools) is kept: it is
    no text where a call of a declared tool follows it within the same marks.
    """

    is_call = True

    def __init__(self, form: FramedForm, output: Output, home: Phase, start: str | None = None) -> None:
        self.form, self._output, self._home = form, output, home
        self._end = behind_blanks(form.end) if form.end else None
        self._kept = [form.start if start is None else start]
        self._written = ""  # the header of the open call
        self._n_taken = 0
        self._undeclared: list[tuple[str, str]] = []  # names, and texts
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
            return held, self._abandon("truncated", CUT)
        if not self._n_taken and not self._undeclared:
            self._output.refuse("truncated", None, self._take_kept() + held, CUT)
        elif self._n_taken and held.strip() and not self.form.end.startswith(held.strip()):
            self._settle("")
            self._output.refuse("truncated", None, held, CUT)
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
        call = self._call
        assert call is not None
        try:
            found = call.found()
        except ValueError as error:
            return self._abandon("malformed", str(error), behind)
        self._call, self._written = None, ""
        if call.given is not None:
            self._tell()
            call.given.end(found, behind)
            self._n_taken += 1
        else:
            self._kept.append(call.raw + behind)
            self._undeclared.append((found.name, call.raw + behind))
        return None

    def _settle(self, more: str) -> None:
        """The group ends, with this text: what was kept is markup, where a call was taken; else text."""
        kept = self._take_kept() + more
        self._tell()
        if self._n_taken and kept:
            self._output.mark(kept)
        else:
            self._output.text(kept)

    def _tell(self) -> None:
        """List the calls of undeclared tools that were read meanwhile."""
        for name, raw in self._undeclared:
            self._output.reject("undeclared", name, raw)
        self._undeclared.clear()

    def _abandon(self, reason: Reason, detail: str, behind: str = "") -> Phase:
        """The open call is none; before the first one, the whole group is none."""
        call, self._call = self._call, None
        if call is None:
            self._output.refuse(reason, None, self._take_kept(), detail)
        else:
            self._settle("")
            call.fail(reason, detail, behind)
        return self._home

    def _take_kept(self) -> str:
        kept, self._kept = "".join(self._kept), []
        return kept


class BegunPhase:
    """The beginning of a reply whose prompt has ended with a form's start mark: a call, or text.

    ``form``: None where no tool is declared. ``texts``: what may stand in place of a header, with text behind it.
    """

    is_call = False

    def __init__(self, form: FramedForm | None, output: Output, home: Phase, texts: Sequence[str]) -> None:
        self._form, self._output, self._home = form, output, home
        self._texts = Shape(*((text,) for text in texts))

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Tell which of the two it is."""
        if self._form is not None and self._form.header.match(text, at) is not None:
            return at, FramedPhase(self._form, self._output, self._home, start="")
        if (found := self._texts.match(text, at)) is not None:
            self._output.mark(found.text)
            return found.stop, self._home
        may_be_call = self._form is not None and self._form.header.may_begin(text, at)
        return at, self if may_be_call or self._texts.may_begin(text, at) else self._home

    def end(self, held: str) -> tuple[str, Phase | None]:
        """What was held back is text."""
        return held, self._home

    def opened(self, held: str) -> None:
        """Nothing is open."""
