"""ElementScanner: calls written as elements, one for the call and one for each argument, found as they come.

A value is plain text, in which nothing is escaped: so its end is the closing tag behind which the call goes on, with
another argument or its own end; every other closing tag is text. A whole call in a value is text too: its tags close
before the value's do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from agent_memory.toolcall.elementcalls import Argument, Call, attributes, element_calls, named_call
from agent_memory.toolcall.forms import ElementForm
from agent_memory.toolcall.found import Found
from agent_memory.toolcall.jsonscan import JSONScanner
from agent_memory.toolcall.marks import BLANKS, Beginnings, Parts, Shape
from agent_memory.types import Tool

_MAX_NESTED = 32
_FIRST = re.compile(r"\S")


class ElementScanner:
    """Reads the inside of a group of calls up to its end. Cost: linear. Not thread-safe.

    ``inside``: what was read, without the end mark. ``done``: the end was read. ``has_nested``: what looked like a call
    was taken for part of a value. What is not of the format is noted and
    told by ``calls``, so that a broken group ends where it says it does.
    """

    failed = False
    ends_with_mark = True

    def __init__(self, form: ElementForm, *, nests: bool = True) -> None:
        self.form, self.done = form, False
        self._nests, self._level = nests and form.nested is not None, 0
        self.has_nested = False
        self._parts: list[str] = []
        self._fault = ""
        self._calls: list[Call] = []
        self._json: JSONScanner | None = None
        self._begun: list[str] = []  # the text before the first argument, where calls have no tag
        self._state = "calls" if form.call_mark else "name"
        if form.call_mark and form.start.endswith(form.call_mark):
            self._state = "tag"
        self._marks, self._follows, self._last = _tables(form)
        self._is_last = False
        self._steps = {
            "calls": self._in_calls, "tag": self._in_tag, "body": self._in_body, "name": self._in_name,
            "value": self._in_value, "json": self._read_json,
        }  # fmt: skip

    @property
    def inside(self) -> str:
        """What stands between the marks, as far as it was read."""
        return "".join(self._parts)

    @property
    def is_whole(self) -> bool:
        """True if the group is complete but for its end mark: where a call has no tag, only that tells."""
        return bool(self.form.call_mark) and self._state == "calls" and bool(self._calls)

    def feed(self, text: str, at: int) -> int:
        """Read on; stops behind the end, or before what may begin a mark."""
        while not self.done and at < len(text):
            step = self._steps["json" if self._json is not None else self._state]
            to = step(text, at)
            if to == at and not self.done:
                break
            at = to
        return at

    def end(self, held: str) -> str:
        """Take in what was held back, at the end of the output; gives what does not belong here: nothing."""
        self._is_last = True
        at = self.feed(held, 0)
        rest = held[at:]
        if self.done:
            return rest
        is_end = self.is_whole and self.form.end.startswith(rest.strip())
        self._note("" if is_end or not rest.strip() or self._state == "value" else "text stands outside its arguments")
        self._take(rest)
        return ""

    def calls(self, tools: Sequence[Tool] | None) -> list[Found]:
        """The calls that were read, at least one. Raises ValueError in words."""
        if self._fault:
            raise ValueError(self._fault)
        if not self.form.call_mark:
            return named_call(self.form, "".join(self._begun), self._calls, tools)
        found = [one for call in self._calls for one in element_calls(self.form, call, tools)]
        if not found:
            raise ValueError("it holds no call")
        return found

    # One step in each state: gives the place up to which was read; the same place where more text is needed.

    def _in_calls(self, text: str, at: int) -> int:
        return self._outside(text, at, {self.form.call_mark: self._open_call, self.form.end: self._finish})

    def _in_tag(self, text: str, at: int) -> int:
        """The rest of a call's tag whose beginning is the start mark."""
        return self._open_call(text, at)

    def _in_body(self, text: str, at: int) -> int:
        form = self.form
        means = {form.parameter_mark: self._open_parameter, form.end: self._finish}
        if form.call_end:
            means |= {form.call_mark: self._open_call, form.call_end: self._close_call}
        if form.json_block is not None:
            means[form.json_block[1]] = self._open_block
        if self._level:
            means = {form.parameter_mark: self._open_parameter, form.call_end or form.end: self._close_call}
        return self._outside(text, at, means)

    def _in_name(self, text: str, at: int) -> int:
        """The name before the first argument, where a call has no tag."""
        stop, mark = self._marks["body"].find(text, at)
        self._begun.append(text[at:stop])
        self._take(text[at:stop])
        if mark == self.form.parameter_mark:
            self._state = "body"
            self._calls.append(Call("".join(self._begun).strip()))
        elif mark:
            return self._finish(text, stop)
        return stop

    def _in_value(self, text: str, at: int) -> int:
        stop, mark = self._marks["value"].find(text, at)
        self._value(text[at:stop])
        if not mark:
            return stop
        if mark == self._closing:
            if self._is_end(text, stop):
                self._close_value(mark)
                return stop + len(mark)
            if not self._is_last and self._follows[min(self._level, 1)].may_begin(text, stop):
                return stop
        elif self._nests and self._level < _MAX_NESTED and self.form.nested is not None:
            if found := self.form.nested.match(text, stop):
                self._level += 1
                self._state, self.has_nested = "body", True
                self._value(found.text)
                return found.stop
            if not self._is_last and self.form.nested.may_begin(text, stop):
                return stop
        self._value(text[stop : stop + 1])
        return stop + 1

    def _outside(self, text: str, at: int, means: Mapping[str, Callable[[str, int], int]]) -> int:
        """Between tags: nothing but blanks, and JSON where the form takes it."""
        stop, mark = self._marks[self._state].find(text, at)
        first = _FIRST.search(text, at, stop)
        if first is not None and self._can_be_json(text[first.start()]):
            self._take(text[at : first.start()])
            self._json = JSONScanner(keeps=0)
            if self._state == "calls":
                self._calls.append(Call(""))
            return self._read_json(text, first.start())
        if self._level:
            self._value(text[at:stop])
        else:
            self._note("text stands outside its arguments" if first is not None else "")
            self._take(text[at:stop])
        if not mark:
            return stop
        act = means.get(mark)
        if act is not None:
            return act(text, stop)
        self._skip_mark(mark)
        return stop + len(mark)

    def _can_be_json(self, mark: str) -> bool:
        if not self.form.takes_json or self._level or self._fault:
            return False
        if self._state == "calls":
            return mark in "{[" and not self._calls
        return mark == "{" and not self._calls[-1].arguments and not self._calls[-1].json

    def _read_json(self, text: str, at: int) -> int:
        assert self._json is not None
        start = at
        while not (self._json.done or self._json.failed):
            at, seen = self._json.next(text, at)
            if seen is None:
                break
        self._calls[-1].json.append(text[start:at])
        self._take(text[start:at])
        if self._json.done or self._json.failed:
            self._note("it is not JSON" if self._json.failed else "")
            self._json = None
            return at if at > start else at + self._skip_one(text, at)
        return at

    def _skip_one(self, text: str, at: int) -> int:
        self._take(text[at : at + 1])
        return 1

    def _open_call(self, text: str, at: int) -> int:
        found = self.form.call.match(text, at)
        if found is None:
            return self._await(self.form.call, text, at)
        self._note("a call is not closed before the next one" if self._state == "body" else "")
        self._calls.append(Call(attributes(found)["name"]))
        self._state = "body"
        self._take(found.text)
        return found.stop

    def _open_parameter(self, text: str, at: int) -> int:
        found = self.form.parameter.match(text, at)
        if found is None:
            return self._await(self.form.parameter, text, at)
        self._state = "value"
        if self._level:
            self._value(found.text)
            return found.stop
        said = attributes(found)
        self._note("JSON and arguments stand side by side" if self._calls[-1].json else "")
        self._calls[-1].arguments.append(Argument(said["name"], said))
        self._take(found.text)
        return found.stop

    def _open_block(self, text: str, at: int) -> int:
        assert self.form.json_block is not None
        found = self.form.json_block[0].match(text, at)
        if found is None:
            return self._await(self.form.json_block[0], text, at)
        self._state = "value"
        self._calls[-1].arguments.append(Argument("", {}, is_block=True))
        self._take(found.text)
        return found.stop

    def _close_value(self, mark: str) -> None:
        self._state = "body"
        if self._level:
            self._value(mark)
        else:
            self._take(mark)

    def _close_call(self, text: str, at: int) -> int:
        mark = self.form.call_end or self.form.end
        if self._level:
            self._level -= 1
            self._state = "value"
            self._value(mark)
        elif mark == self.form.end:
            return self._finish(text, at)
        else:
            self._state = "calls"
            self._take(mark)
        return at + len(mark)

    def _finish(self, text: str, at: int) -> int:
        is_open = self._state == "body" and self.form.call_end not in ("", self.form.end)
        self._note("a call is not closed" if is_open else "")
        self.done = True
        return at + len(self.form.end)

    def _await(self, shape: Shape, text: str, at: int) -> int:
        """Wait for the rest of a tag; what is none is text."""
        if not self._is_last and shape.may_begin(text, at):
            return at
        if self._level:
            self._value(text[at : at + 1])
        else:
            self._note("a tag has no name")
            self._take(text[at : at + 1])
        self._state = "calls" if self._state == "tag" else self._state
        return at + 1

    @property
    def _closing(self) -> str:
        """The tag that ends the open value."""
        is_block = not self._level and self._calls[-1].arguments[-1].is_block
        return self.form.json_block[2] if is_block and self.form.json_block else self.form.parameter_end

    def _is_end(self, text: str, at: int) -> bool:
        """True if the closing tag at this place ends the value."""
        if self._follows[min(self._level, 1)].match(text, at):
            return True
        return self._is_last and not self._level and self._last.fullmatch(text, at) is not None

    def _value(self, text: str) -> None:
        self._calls[-1].arguments[-1].parts.append(text)
        self._take(text)

    def _skip_mark(self, mark: str) -> None:
        if self._level:
            self._value(mark)
        else:
            self._note(f"{mark} stands where it cannot")
            self._take(mark)

    def _take(self, text: str) -> None:
        self._parts.append(text)

    def _note(self, fault: str) -> None:
        self._fault = self._fault or fault


class _Marks:
    """Finds the first of some marks in a text."""

    def __init__(self, marks: Sequence[str]) -> None:
        some = sorted(filter(None, marks), key=len, reverse=True)
        self._pattern, self._begun = re.compile("|".join(map(re.escape, some))), Beginnings(some)

    def find(self, text: str, at: int) -> tuple[int, str]:
        """Where the first mark stands, and which; else how far there is none, and ""."""
        if found := self._pattern.search(text, at):
            return found.start(), found.group()
        return len(text) - self._begun.held_back(text, at), ""


@cache
def _tables(form: ElementForm) -> tuple[Mapping[str, _Marks], Sequence[Shape], re.Pattern[str]]:
    """What is looked for in each state; what follows a value, outside and in a nested call, and at the output's end."""
    marks = {state: _Marks(some) for state, some in _marks_of(form).items()}
    return marks, [Shape(*_follows_of(form, level)) for level in (0, 1)], re.compile(_last_of(form))


def _marks_of(form: ElementForm) -> dict[str, list[str]]:
    block = form.json_block
    body = [form.parameter_mark, form.call_end, form.end, form.call_mark, *([block[1]] if block else [])]
    value = [form.parameter_end, form.call_mark or form.start, *([block[2]] if block else [])]
    return {"calls": [form.call_mark, form.end], "body": body, "value": value}


def _follows_of(form: ElementForm, level: int) -> list[Parts]:
    """What stands behind the end of a value: the closing tag included."""
    found: list[Parts] = []
    closers = [form.parameter_end, *([form.json_block[2]] if form.json_block else [])]
    for closer in closers:
        begun: list[str] = [form.parameter_mark, *([form.json_block[1]] if form.json_block else [])]
        found += [(closer, BLANKS, mark) for mark in begun]
        if level:
            found.append((closer, BLANKS, form.call_end or form.end))
        elif form.call_end in ("", form.end):
            found.append((closer, BLANKS, form.end))
        else:
            ends = [form.end, form.call_mark]
            found += [(closer, BLANKS, form.call_end, BLANKS, mark) for mark in ends]
            found += [(closer, BLANKS, mark) for mark in ends]
    return found


def _last_of(form: ElementForm) -> str:
    """What may follow the end of a value at the end of the output: a call that is complete but for its end mark."""
    if form.call_end in ("", form.end):
        return r"(?!)"
    closers = "|".join(map(re.escape, [form.parameter_end, *([form.json_block[2]] if form.json_block else [])]))
    begun = "|".join(re.escape(form.end[:size]) for size in range(len(form.end), -1, -1))
    return rf"(?:{closers})\s*{re.escape(form.call_end)}\s*(?:{begun})\s*"
