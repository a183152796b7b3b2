"""JSONScanner: one JSON object or array, read as it comes in pieces, told as events with offsets."""

from __future__ import annotations

import re
from typing import Literal

from attrs import frozen

_MAX_DEPTH = 128  #: deeper JSON is no call; Python's own parser gives up at about a thousand
_MAX_LITERAL = 1_000  #: characters of a number
_BLANKS = re.compile(r"[ \t\r\n]+")
_WORD = re.compile(r'[^ \t\r\n{}\[\],:"]+')
_LITERAL = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null", re.ASCII)
_STRING_MARK = re.compile(r'["\\\x00-\x1f]')
_CLOSER = {"{": "}", "[": "]"}


@frozen
class Seen:
    """A key was read, or a value begins or has ended.

    ``at``: characters from the beginning of the JSON: to the first one of a value that begins, else to the one behind
    what ended. ``depth``: objects and arrays around it. ``mark``: the first character of a value that begins.
    ``text``: a key's, string's or literal's source without quotes; None where it is long, and for objects and arrays.
    """

    kind: Literal["key", "begin", "end"]
    at: int
    depth: int
    mark: str = ""
    text: str | None = None


class JSONScanner:
    """Reads one JSON object or array to its closing bracket.

    - ``next`` stops at each event; what it has read up to there depends on the characters alone, not on their cut.
    - ``failed``: the character at which ``next`` stopped cannot belong to JSON. ``done``: the value is complete.
    - Escapes in strings are left to the parser that reads the whole; everything else is checked as it comes.
    - ``keeps``: strings of so many characters come with their text.

    Cost: linear. Not thread-safe.
    """

    def __init__(self, keeps: int = 1_000) -> None:
        self.done = self.failed = False
        self.n_read = 0
        self._keeps = keeps
        self._stack: list[str] = []
        self._expect = "value"  #: value, value or end, key, key or end, colon, comma or end
        self._literal = ""
        self._text: list[str] = []  # of the open string
        self._n_text = 0
        self._in_string = self._is_key = self._escaped = self._is_told = False

    @property
    def closers(self) -> str:
        """The brackets that would close everything that is open."""
        return "".join(_CLOSER[mark] for mark in reversed(self._stack))

    @property
    def open_key(self) -> str | None:
        """The beginning of a key that is being read."""
        return "".join(self._text) if self._in_string and self._is_key else None

    @property
    def open_literal(self) -> str | None:
        """A number or constant that would be complete if the text ended here."""
        return self._literal if _LITERAL.fullmatch(self._literal) else None

    def next(self, text: str, at: int, stop: int | None = None) -> tuple[int, Seen | None]:
        """Read on from ``at`` to the next event; gives the place up to which was read, and the event.

        None: ``stop`` (the end of ``text``) was reached first, or the value is complete, or ``failed``.
        """
        stop = len(text) if stop is None else stop
        seen = None
        while seen is None and at < stop and not (self.done or self.failed):
            read = self._string if self._in_string else self._token
            to, seen = read(text, at, stop)
            self.n_read += to - at
            at = to
        return at, seen

    def _token(self, text: str, at: int, stop: int) -> tuple[int, Seen | None]:
        mark = text[at]
        if self._literal and mark in ' \t\r\n{}[],:"':
            return at, self._end_literal()
        if mark in " \t\r\n":
            found = _BLANKS.match(text, at, stop)
            assert found is not None
            return found.end(), None
        if mark in '{["':
            return self._opening(mark, at)
        if mark in "}],:":
            return self._closing(mark, at)
        return self._word(text, at, stop)

    def _opening(self, mark: str, at: int) -> tuple[int, Seen | None]:
        """The beginning of an object, an array, a string or a key."""
        if mark == '"' and self._expect in ("key", "key or end"):
            self._begin_string(is_key=True)
            return at + 1, None
        can_begin = self._expect in ("value", "value or end") and len(self._stack) < _MAX_DEPTH
        if not can_begin or (mark == '"' and not self._stack):
            return self._fail(at)
        if not self._is_told:
            return at, self._begin_value(mark)
        self._is_told = False
        if mark == '"':
            self._begin_string(is_key=False)
        else:
            self._stack.append(mark)
            self._expect = "key or end" if mark == "{" else "value or end"
        return at + 1, None

    def _closing(self, mark: str, at: int) -> tuple[int, Seen | None]:
        """The end of an object or an array, a colon or a comma."""
        expect, stack = self._expect, self._stack
        if mark == ":" and expect == "colon":
            self._expect = "value"
        elif mark == "," and expect == "comma or end":
            self._expect = "key" if stack[-1] == "{" else "value"
        elif mark in "}]" and stack and _CLOSER[stack[-1]] == mark and expect in ("comma or end", self._opened()):
            stack.pop()
            self._expect, self.done = "comma or end", not stack
            return at + 1, Seen("end", self.n_read + 1, len(stack))
        else:
            return self._fail(at)
        return at + 1, None

    def _opened(self) -> str:
        return "key or end" if self._stack[-1] == "{" else "value or end"

    def _word(self, text: str, at: int, stop: int) -> tuple[int, Seen | None]:
        if not self._literal and not self._is_told:
            if self._expect not in ("value", "value or end") or not self._stack:
                return self._fail(at)
            return at, self._begin_value(text[at])
        self._is_told = False
        found = _WORD.match(text, at, stop)
        assert found is not None
        to = min(found.end(), at + _MAX_LITERAL - len(self._literal))
        self._literal += text[at:to]
        self.failed = len(self._literal) >= _MAX_LITERAL
        return to, None

    def _begin_value(self, mark: str) -> Seen:
        self._is_told = True
        return Seen("begin", self.n_read, len(self._stack), mark)

    def _end_literal(self) -> Seen | None:
        literal, self._literal = self._literal, ""
        if _LITERAL.fullmatch(literal) is None:
            self.failed = True
            return None
        self._expect = "comma or end"
        return Seen("end", self.n_read, len(self._stack), text=literal)

    def _begin_string(self, *, is_key: bool) -> None:
        self._in_string, self._is_key = True, is_key
        self._text.clear()
        self._n_text = 0

    def _string(self, text: str, at: int, stop: int) -> tuple[int, Seen | None]:
        if self._escaped:
            self._escaped = False
            return self._keep(text, at, at + 1)
        found = _STRING_MARK.search(text, at, stop)
        if found is None:
            return self._keep(text, at, stop)
        if found.start() > at:
            return self._keep(text, at, found.start())
        if text[at] == "\\":
            self._escaped = True
            return self._keep(text, at, at + 1)
        if text[at] != '"':
            return self._fail(at)
        self._in_string = False
        self._expect = "colon" if self._is_key else "comma or end"
        read = "".join(self._text) if self._n_text <= self._keeps else None
        return at + 1, Seen("key" if self._is_key else "end", self.n_read + 1, len(self._stack), text=read)

    def _keep(self, text: str, at: int, to: int) -> tuple[int, Seen | None]:
        self._n_text += to - at
        if self._n_text <= self._keeps:
            self._text.append(text[at:to])
        return to, None

    def _fail(self, at: int) -> tuple[int, Seen | None]:
        self.failed = True
        return at, None
