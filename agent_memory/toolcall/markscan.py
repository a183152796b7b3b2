"""Where a call's text ends, found in one pass over text that comes in pieces: native calls.

``feed`` as in ``jsonscan``. Cost: linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from agent_memory.toolcall.formats import NativeForm, Quote
from agent_memory.toolcall.jsonscan import JSONScanner


class MarkScanner:
    """Reads the inside of a native call up to its end mark, which does not count in quoted text.

    ``inside``: what was read, without the end mark; ``quoted``: half-open ranges of it.
    """

    failed = False

    def __init__(self, form: NativeForm) -> None:
        self.form = form
        self._outside = _marks([form.end, *(quote.open for quote in form.quotes)])
        self._within = {quote: _marks([quote.close], escapes=quote.escapes) for quote in form.quotes}
        self._quote: Quote | None = None
        self._quote_start = self._n = 0
        self._parts: list[str] = []
        self.quoted: list[tuple[int, int]] = []
        self.done = False

    @property
    def inside(self) -> str:
        """What stands between the marks, as far as it was read."""
        return "".join(self._parts)

    @property
    def unfinished(self) -> str | None:
        """What is open: all of it."""
        return self.inside

    @property
    def is_whole(self) -> bool:
        """Whether the call is complete but for its end mark."""
        whole = self.form.whole
        return bool(whole) and self._quote is None and self.inside.rstrip().endswith(whole)

    def feed(self, text: str, at: int) -> int:
        """Read on; stops behind the end mark, or before what may begin one."""
        while not self.done:
            quote = self._quote
            marks = self._outside if quote is None else self._within[quote]
            found = marks[0].search(text, at)
            if found is None:
                stop = len(text) - marks[1].held_back(text, at)
                self._read(text[at:stop])
                return stop
            if quote is not None and found.group() == quote.close:
                self._read(text[at : found.start()])
                self.quoted.append((self._quote_start, self._n))
                self._quote = None
                self._read(found.group())
            elif quote is None and found.group() == self.form.end:
                self._read(text[at : found.start()])
                self.done = True
            else:
                self._read(text[at : found.end()])
                if quote is None:
                    self._quote = next(q for q in self.form.quotes if q.open == found.group())
                    self._quote_start = self._n
            at = found.end()
        return at

    def end(self, held: str) -> str:
        """Take in what was held back, at the end of the output; gives what does not belong here: nothing."""
        self._read(held)
        return ""

    def _read(self, piece: str) -> None:
        self._parts.append(piece)
        self._n += len(piece)


class HeaderScanner:
    """Reads Mistral's calls, which have no end mark: an array of calls, or ``name[ARGS]{...}`` as often as it comes."""

    quoted: tuple[tuple[int, int], ...] = ()
    _HEADER = re.compile(r"\s{0,8}[\w-]{1,128}\s{0,8}\[ARGS\]\s{0,8}(?=\{)")
    _BEGUN = re.compile(r"\s{0,8}[\w-]{0,128}\s{0,8}(?:\[(?:A(?:R(?:G(?:S(?:\]\s{0,8})?)?)?)?)?)?")

    def __init__(self, form: NativeForm) -> None:
        self.form = form
        self._parts: list[str] = []
        self._value: JSONScanner | None = None
        self._n_calls = self._n_finished = 0  # finished: pieces of complete calls
        self._is_array = False
        self.done = self.failed = False

    @property
    def inside(self) -> str:
        """What was read."""
        return "".join(self._parts)

    @property
    def unfinished(self) -> str | None:
        """What of a call is open; None between two."""
        return None if self.is_whole else "".join(self._parts[self._n_finished :])

    @property
    def is_whole(self) -> bool:
        """Whether at least one call is complete and none is open."""
        return self._n_calls > 0 and self._value is None

    def feed(self, text: str, at: int) -> int:
        """Read on; stops behind the last call."""
        while at < len(text) and not (self.done or self.failed):
            if self._value is None:
                begin = self._begin(text, at)
                if begin == at and self._value is None:
                    return at
            else:
                begin = self._value.feed(text, at)
                self.failed = self._value.failed
                if self._value.done:
                    self._n_calls, self._value = self._n_calls + 1, None
                    self.done = self._is_array
            self._parts.append(text[at:begin])
            if self._value is None:
                self._n_finished = len(self._parts)
            at = begin
        return at

    def end(self, held: str) -> str:
        """At the end of the output: what was held back belongs to no call."""
        return held

    def _begin(self, text: str, at: int) -> int:
        """Where the next value begins; ``at`` itself where that is not to be known yet, or where none does."""
        blanks = re.match(r"\s{0,8}", text[at : at + 8])
        assert blanks is not None
        first = at + blanks.end()
        if first < len(text) and text[first] == "[" and not self._n_calls:
            self._value, self._is_array = JSONScanner(), True
            return first
        if found := self._HEADER.match(text, at):
            self._value = JSONScanner()
            return found.end()
        if not self._BEGUN.fullmatch(text, at):
            self.done, self.failed = self._n_calls > 0, not self._n_calls
        return at


class Beginnings:
    """Tells how much of a text's end may be the beginning of one of some marks, and must wait."""

    def __init__(self, marks: Iterable[str]) -> None:
        self._begun = frozenset(mark[:size] for mark in marks for size in range(1, len(mark)))
        self._first = re.compile("|".join(sorted({re.escape(begun[0]) for begun in self._begun})) or r"(?!)")
        self._longest = max(map(len, self._begun), default=0)

    def held_back(self, text: str, at: int) -> int:
        """Length of the longest end of ``text`` from ``at`` on that may begin a mark."""
        place = max(at, len(text) - self._longest)
        while found := self._first.search(text, place):
            if text[found.start() :] in self._begun:
                return len(text) - found.start()
            place = found.end()
        return 0


Marks = tuple[re.Pattern[str], Beginnings]


def _marks(marks: Iterable[str], *, escapes: bool = False) -> Marks:
    """A pattern of marks, and what may begin one; ``escapes``: a backslash and any character is one too."""
    some = [mark for mark in marks if mark]
    pattern = "|".join([*map(re.escape, some), *([r"\\."] if escapes else [])])
    return re.compile(pattern, re.DOTALL), Beginnings([*some, *(["\\."] if escapes else [])])
