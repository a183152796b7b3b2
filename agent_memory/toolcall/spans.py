"""Where a group of calls ends that is read as a whole: at a mark, or at the bracket that closes the first one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from agent_memory.toolcall.elements import ElementScanner
from agent_memory.toolcall.forms import ElementForm, LiteralForm, Quote
from agent_memory.toolcall.found import Found
from agent_memory.toolcall.marks import Beginnings
from agent_memory.types import Tool

_LIST = re.compile(r"\s{0,64}\[")
_LIST_BEGUN = re.compile(r"\s{0,64}")


class LiteralScanner:
    """Reads the inside of a group of calls up to its end, which does not count in quoted text. Cost: linear.

    ``inside``: what was read, without the end mark. ``failed``: no such group begins here.
    """

    has_nested = False

    def __init__(self, form: LiteralForm) -> None:
        self.form = form
        brackets = ("[", "]") if form.is_list else ()
        self._outside = _marks((form.end, *(quote.open for quote in form.quotes), *brackets))
        self._quote: Quote | None = None
        self._depth = 0
        self._parts: list[str] = []
        self.done = self.failed = False

    @property
    def inside(self) -> str:
        """What stands between the marks, as far as it was read."""
        return "".join(self._parts)

    @property
    def ends_with_mark(self) -> bool:
        """True if the end mark was read and is not part of ``inside``."""
        return self.done and not self.form.is_list

    @property
    def is_whole(self) -> bool:
        """True if the group is complete but for its end mark."""
        return self.done or (self._quote is None and self.inside.rstrip().endswith(self.form.last))

    def calls(self, tools: Sequence[Tool] | None) -> list[Found]:
        """The calls that were read, at least one. Raises ValueError in words."""
        return self.form.read(self.inside, tools)

    def feed(self, text: str, at: int) -> int:
        """Read on; stops behind the end, or before what may begin a mark."""
        if self.form.is_list and not self._depth and not self.done:
            found = _LIST.match(text, at)
            if found is None:
                self.failed = not _LIST_BEGUN.fullmatch(text, at)
                return at
            self._depth = 1
            self._parts.append(found.group())
            at = found.end()
        while not self.done:
            marks = self._outside if self._quote is None else _marks((self._quote.close,), self._quote.escapes)
            found = marks[0].search(text, at)
            if found is None:
                stop = len(text) - marks[1].held_back(text, at)
                self._parts.append(text[at:stop])
                return stop
            self._meet(found.group(), text[at : found.start()])
            at = found.end()
        return at

    def end(self, held: str) -> str:
        """Take in what was held back, at the end of the output; gives what does not belong here: nothing."""
        self._parts.append(held)
        return ""

    def _meet(self, mark: str, before: str) -> None:
        self._parts.append(before)
        quote, is_list = self._quote, self.form.is_list
        if quote is None and mark == self.form.end and not is_list:
            self.done = True
            return
        self._parts.append(mark)
        if quote is not None:
            self._quote = None if mark == quote.close else quote
        elif is_list and mark in "[]":
            self._depth += 1 if mark == "[" else -1
            self.done = not self._depth
        else:
            self._quote = next((quote for quote in self.form.quotes if quote.open == mark), None)


@cache
def _marks(marks: tuple[str, ...], escapes: bool = False) -> tuple[re.Pattern[str], Beginnings]:
    """A pattern of marks, and what may begin one; ``escapes``: a backslash and any character is one too."""
    some = sorted(filter(None, marks), key=len, reverse=True)
    pattern = "|".join([*map(re.escape, some), *([r"\\."] if escapes else [])])
    return re.compile(pattern, re.DOTALL), Beginnings([*some, *(["\\."] if escapes else [])])


def scanner_of(form: ElementForm | LiteralForm, *, nests: bool = True) -> ElementScanner | LiteralScanner:
    """A fresh scanner of a group; ``nests``: whole calls within values are part of them."""
    return ElementScanner(form, nests=nests) if isinstance(form, ElementForm) else LiteralScanner(form)
