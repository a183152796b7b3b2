"""ObjectReader: one call written as a JSON object, or an array of them, out of the events of a JSONScanner."""

from __future__ import annotations

from collections.abc import Sequence

from agent_memory.toolcall import found as calls
from agent_memory.toolcall.forms import ObjectForm
from agent_memory.toolcall.found import ARGUMENTS, Found, loads
from agent_memory.toolcall.jsonscan import JSONScanner, Seen


class ObjectReader:
    """Reads one call of a form, or of one of several bare ones, to its closing bracket. Cost: linear.

    - What was read is ``head``, ``arguments`` and ``tail``, in this order; ``raw`` is all of it.
    - ``form`` is known from the start for a form with a start mark, else with the first key.
    - ``name``: once it is read. ``kind``: the first character of the arguments' value, once it is read.
    - ``is_group``: an array of calls instead of one, read as a whole.
    """

    def __init__(self, forms: Sequence[ObjectForm]) -> None:
        self._forms, self._json = forms, JSONScanner()
        self.form: ObjectForm | None = forms[0] if forms[0].start or forms[0].is_array else None
        self.name: str | None = None
        self.kind = ""
        self.is_group = self.failed = False
        self.head: list[str] = []
        self.arguments: list[str] = []
        self.tail: list[str] = []
        self._part = self.head
        self._key = ""  # whose value comes or is being read, where a call's members stand

    @property
    def done(self) -> bool:
        """True if the value is complete."""
        return self._json.done and not self.failed

    @property
    def raw(self) -> str:
        """Everything that was read."""
        return "".join((*self.head, *self.arguments, *self.tail))

    @property
    def is_call(self) -> bool:
        """True if enough was read to say that a call was meant."""
        return self.form is not None and bool(self.form.wrapper or (self.name is not None and self.kind))

    def feed(self, text: str, at: int) -> int:
        """Read on; stops behind the closing bracket, or where ``failed`` was found out."""
        while at < len(text) and not (self._json.done or self.failed):
            stop = at + 1 if self.form is None else len(text)  # a key that is none of a call's ends this at once
            to, seen = self._json.next(text, at, stop)
            self._part.append(text[at:to])
            at = to
            if seen is not None:
                self._meet(seen)
            elif self._json.failed or not self._may_be_known():
                self.failed = True
        return at

    def calls(self) -> list[Found]:
        """What was read, once ``done``; at least one. Raises ValueError in words."""
        if self.form is None:
            raise ValueError("the object is empty")
        if self.is_group or self.form.is_keyed:
            rows = loads(self.raw)
            read = calls.from_pair if self.form.is_keyed else calls.from_mapping
            found = [read(row) for row in (rows if self.is_group else [rows])]
            if not found:
                raise ValueError("the array is empty")
            return found
        members = loads("".join((*self.head, "null" if self.arguments else "", *self.tail)))
        if self.form.wrapper:
            members = members[self.form.wrapper]
        elif not self.form.start and not self.kind:
            raise ValueError("it has no arguments")
        text = "".join(self.arguments)
        calls.check_members(members, n_arguments=int(text not in ("", "null")))
        return [calls.from_text(calls.member(members, calls.NAMES), text)]

    @property
    def _level(self) -> int:
        """The depth at which a call's members stand; 0: nowhere (yet)."""
        if self.form is None or self.is_group or self.form.is_keyed:
            return 0
        return 2 if self.form.wrapper else 1

    def _may_be_known(self) -> bool:
        """True unless the first key cannot become one of a call's."""
        begun = self._json.open_key
        if self.form is not None or begun is None:
            return True
        return any(key.startswith(begun) for form in self._forms for key in form.first_keys)

    def _meet(self, seen: Seen) -> None:
        if seen.kind == "key":
            self._meet_key(seen)
        elif seen.kind == "begin":
            self._meet_begin(seen)
        elif seen.depth == self._level > 0:
            self._meet_end(seen)

    def _meet_key(self, seen: Seen) -> None:
        if self.form is None:
            self.form = next((form for form in self._forms if seen.text in form.first_keys), None)
            self.failed = self.form is None
        elif self.form.wrapper and seen.depth == 1:
            self.failed = self._json_text(seen) != self.form.wrapper or self.name is not None or bool(self.kind)
        if seen.depth == self._level:
            self._key = self._json_text(seen)

    def _meet_begin(self, seen: Seen) -> None:
        if not seen.depth:
            self.is_group = seen.mark == "["
            self.failed = self.is_group and self.form is None
        elif self.form is not None and self.form.wrapper and seen.depth == 1:
            self.failed = seen.mark != "{"
        elif seen.depth == self._level:
            if self._key in calls.NAMES and self.name is None:
                self.failed = seen.mark != '"'
            elif self._key in ARGUMENTS and not self.kind:
                self.kind, self._part = seen.mark, self.arguments

    def _meet_end(self, seen: Seen) -> None:
        if self._part is self.arguments:
            self._part = self.tail
        elif self._key in calls.NAMES and self.name is None:
            self.name = self._json_text(seen)

    def _json_text(self, seen: Seen) -> str:
        """A key or a string as it is meant; "", and ``failed``, where it is none."""
        try:
            text = str(loads(f'"{seen.text}"')) if seen.text is not None else ""
            text.encode()  # fails for a lone surrogate
        except ValueError:
            text = ""
        self.failed = self.failed or (not text and seen.text != "")
        return text
