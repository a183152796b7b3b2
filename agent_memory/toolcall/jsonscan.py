"""Where a call's text ends, found in one pass over text that comes in pieces: calls in JSON.

Every scanner has ``feed(text, at)``: it reads ``text`` from ``at`` on and gives the place up to which it has read;
what lies beyond is to be given again with more text after it. What it finds depends on the characters alone, never on
how they were cut. Cost: linear.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent_memory.toolcall.formats import JSONForm
from agent_memory.toolcall.found import Found, from_mapping, from_text, loads

_MAX_DEPTH = 128  #: deeper JSON is no call; Python's own parser gives up at about a thousand
_MAX_LITERAL = 1_000  #: characters of a number
_BLANKS = re.compile(r"[ \t\r\n]+")
_WORD = re.compile(r'[^ \t\r\n{}\[\],:"]+')
_LITERAL = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null", re.ASCII)
_STRING_MARK = re.compile(r'["\\\x00-\x1f]')


class JSONScanner:
    """Reads one JSON object or array to its closing bracket. ``failed``: the next character cannot belong to one.

    Strings' escapes are left to the parser that reads the whole; everything else is checked as it comes.
    """

    def __init__(self) -> None:
        self.done = self.failed = False
        self._stack: list[str] = []
        self._expect = "value"  #: value, value or end, key, key or end, colon, comma or end
        self._literal = ""
        self._in_string = self._is_key = self._escaped = False

    def feed(self, text: str, at: int) -> int:
        """Read on; stops behind the closing bracket, or before the first character that fits nowhere."""
        while at < len(text) and not (self.done or self.failed):
            stop = self._string(text, at) if self._in_string else self._token(text, at)
            self._take(text[at:stop])
            at = stop
        return at

    def _take(self, piece: str) -> None:
        """Every piece that was read, in order."""

    def _value_begins(self, mark: str) -> None:
        """A value begins with this character; the brackets around it are on the stack."""

    def _value_ends(self, mark: str) -> None:
        """A value has ended with this character (none: a literal, which ended before it)."""

    def _string_ends(self) -> None:
        """A key or a string value has ended."""

    def _token(self, text: str, at: int) -> int:
        mark = text[at]
        if self._literal and mark in ' \t\r\n{}[],:"' and not self._end_literal():
            return self._fail(at)
        if mark in " \t\r\n":
            found = _BLANKS.match(text, at)
            assert found is not None
            return found.end()
        if mark in '{}[],:"':
            return at + 1 if self._punctuation(mark) else self._fail(at)
        return self._word(text, at)

    def _word(self, text: str, at: int) -> int:
        if not self._literal:
            if self._expect not in ("value", "value or end") or not self._stack:
                return self._fail(at)
            self._value_begins(text[at])
            if self.failed:
                return at
        found = _WORD.match(text, at)
        assert found is not None
        stop = min(found.end(), at + _MAX_LITERAL - len(self._literal))
        self._literal += text[at:stop]
        self.failed = self.failed or len(self._literal) >= _MAX_LITERAL
        return stop

    def _end_literal(self) -> bool:
        is_right, self._literal = _LITERAL.fullmatch(self._literal) is not None, ""
        if is_right:
            self._expect = "comma or end"
            self._value_ends("")
        return is_right

    def _punctuation(self, mark: str) -> bool:
        """Take one structural character; False where it cannot stand."""
        expect, stack = self._expect, self._stack
        if mark == '"' and expect in ("key", "key or end"):
            self._in_string = self._is_key = True
        elif mark in '{["':
            if expect not in ("value", "value or end") or len(stack) >= _MAX_DEPTH or (mark == '"' and not stack):
                return False
            self._value_begins(mark)
            if mark == '"':
                self._in_string, self._is_key = True, False
            else:
                stack.append(mark)
                self._expect = "key or end" if mark == "{" else "value or end"
        elif mark in "}]":
            if not stack or stack[-1] + mark not in ("{}", "[]") or expect not in ("comma or end", self._opened()):
                return False
            stack.pop()
            self._ended(mark)
        elif mark == ":" and expect == "colon":
            self._expect = "value"
        elif mark == "," and expect == "comma or end":
            self._expect = "key" if stack[-1] == "{" else "value"
        else:
            return False
        return not self.failed

    def _opened(self) -> str:
        return "key or end" if self._stack[-1] == "{" else "value or end"

    def _ended(self, mark: str) -> None:
        self._expect, self.done = "comma or end", not self._stack
        self._value_ends(mark)

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _STRING_MARK.search(text, at)
        if found is None:
            return len(text)
        if found.start() > at:
            return found.start()
        if text[at] == "\\":
            self._escaped = True
        elif text[at] == '"':
            self._in_string = False
            self._string_ends()
            if self._is_key:
                self._expect = "colon"
            else:
                self._ended('"')
        else:
            self.failed = True
        return at if self.failed else at + 1

    def _fail(self, at: int) -> int:
        self.failed = True
        return at


class CallScanner(JSONScanner):
    """Reads one call of a JSON form. What was read is ``head``, ``arguments`` and ``tail``, in this order.

    ``form`` is known from the start for a form with a start mark, else with the first key. ``name``: once it is read.
    ``kind``: the first character of the arguments' value. ``is_group``: an array of calls instead of one.
    """

    def __init__(self, forms: Sequence[JSONForm]) -> None:
        super().__init__()
        self._forms = forms
        self.form: JSONForm | None = forms[0] if forms[0].start else None
        self.name: str | None = None
        self.kind = ""
        self.is_group = False
        self.head: list[str] = []
        self.arguments: list[str] = []
        self.tail: list[str] = []
        self._part = self.head
        self._next_part: list[str] | None = None
        self._inside = False  # the arguments' value
        self._keys: dict[int, str] = {}  # by depth, the key whose value comes or is being read
        self._string_text: list[str] | None = None  # of a key, or of the name

    @property
    def raw(self) -> str:
        """Everything that was read."""
        return "".join((*self.head, *self.arguments, *self.tail))

    @property
    def is_call(self) -> bool:
        """Whether enough was read to say that a call was meant."""
        return self.form is not None and bool(self.form.wrapper or (self.name is not None and self.kind))

    def calls(self) -> list[Found]:
        """What was read, once ``done``; at least one. Raises ValueError in words."""
        if self.form is None:
            raise ValueError("the object is empty")
        if self.is_group and (rows := loads(self.raw)):
            return [from_mapping(row, self.form.arguments) for row in rows]
        if self.is_group:
            raise ValueError("the array is empty")
        members = loads("".join((*self.head, "null" if self.arguments else "", *self.tail)))
        if self.form.wrapper:
            members = members[self.form.wrapper]
        elif not self.form.start and not self.kind:
            raise ValueError("it has no arguments")
        if any(members.get(key) is not None for key in self.form.arguments):
            raise ValueError("it has more than one set of arguments")
        return [from_text(members.get("name"), "".join(self.arguments))]

    def _argument_keys(self) -> tuple[str, ...]:
        return self.form.arguments if self.form is not None else ()

    @property
    def _level(self) -> int:
        """The depth at which a call's members stand; 0: nowhere (yet)."""
        if self.form is None or self.is_group:
            return 0
        return 2 if self.form.wrapper else 1

    def _take(self, piece: str) -> None:
        self._part.append(piece)
        if self._string_text is not None and self._in_string:
            self._string_text.append(piece)
        if self._next_part is not None:
            self._part, self._next_part = self._next_part, None

    def _value_begins(self, mark: str) -> None:
        depth = len(self._stack)
        if not depth:
            self.is_group = mark == "["
            self.failed = self.is_group and self.form is None
        elif depth == 1 and self.form is not None and self.form.wrapper:
            self.failed = mark != "{"
        if depth != self._level or not depth:
            return
        if self._keys.get(depth) == "name" and self.name is None:
            self.failed = mark != '"'
            self._string_text = []
        elif self._keys.get(depth) in self._argument_keys() and not self.kind:
            self.kind, self._inside, self._part = mark, True, self.arguments

    def _value_ends(self, mark: str) -> None:
        if self._inside and len(self._stack) == self._level:
            self._inside = False
            if mark:
                self._next_part = self.tail
            else:
                self._part = self.tail

    def _punctuation(self, mark: str) -> bool:
        is_first = self.form is None and not self._keys
        is_right = super()._punctuation(mark)
        if is_right and mark == '"' and self._is_key and self._in_string and len(self._stack) in (1, self._level):
            self._string_text = []
            # A wrapper is the only key of its object.
            return is_first or len(self._stack) == self._level
        return is_right

    def _string(self, text: str, at: int) -> int:
        if self.form is None and self._is_key and self._string_text is not None:
            return self._first_key(text, at)
        return super()._string(text, at)

    def _first_key(self, text: str, at: int) -> int:
        """One character of the key that says whether this is a call at all, and of which form."""
        so_far = "".join(self._string_text or ())
        so_far = so_far.removeprefix('"')
        if text[at] != '"':
            wanted = so_far + text[at]
            if any(key.startswith(wanted) for form in self._forms for key in form.first_keys):
                return at + 1
            return self._fail(at)
        self.form = next((form for form in self._forms if so_far in form.first_keys), None)
        return super()._string(text, at) if self.form is not None else self._fail(at)

    def _string_ends(self) -> None:
        if self._string_text is None:
            return
        quoted = '"' + "".join(self._string_text).removeprefix('"') + '"'
        self._string_text = None
        try:
            text = loads(quoted)
            text.encode()  # fails for a lone surrogate
        except ValueError:
            self.failed = True
            return
        if self._is_key:
            self._keys[len(self._stack)] = text
        else:
            self.name = text
