"""The phases of a reply: its text, its thoughts, and what follows a call. ``reading.py`` and ``channels.py`` have the
phases that read calls.

A phase reads text from a place on and gives the place up to which it has read, and the phase that goes on from there:
itself, if it needs more text. What it does depends on the characters alone, not on how they were cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from agent_memory.toolcall.forms import Form
from agent_memory.toolcall.marks import Beginnings, Shape
from agent_memory.toolcall.output import Output

_FENCES = ("```", "~~~")


class Phase(Protocol):
    """One phase of a reply."""

    @property
    def is_call(self) -> bool:
        """True while a call is being read."""

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read on."""

    def end(self, held: str) -> tuple[str, Phase | None]:
        """The output ends behind ``held``: gives what of it another phase has to read, and that phase; or None."""

    def opened(self, held: str) -> tuple[Form, str] | None:
        """The form of the open call, and what is written of it behind its start mark, if a grammar may hold it."""


class TextPhase:
    """The answer. Marks open calls anywhere; bare calls and thoughts begin at the beginning of a line.

    ``marked``: what opens a call, by its start mark; ``bare``: the same by the first character of calls without one.
    ``thoughts``: the mark at which reasoning begins, and its phase. ``silent``: marks that are no part of the answer.
    """

    is_call = False

    def __init__(
        self,
        output: Output,
        marked: Mapping[str, Callable[[Phase], Phase]],
        bare: Mapping[str, Callable[[Phase], Phase]],
        silent: Sequence[str] = (),
    ) -> None:
        self._output, self._marked, self._bare, self._silent = output, marked, bare, frozenset(silent)
        self._open_think, self._thoughts = "", self  # type: tuple[str, Phase]
        self._fence = ""
        self._look()

    def think(self, mark: str, thoughts: Phase) -> None:
        """Let this mark begin reasoning."""
        self._open_think, self._thoughts = mark, thoughts
        self._look()

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read up to what opens a call or reasoning, or to what may begin such a mark."""
        output = self._output
        if self._triggers is None or output.is_full:
            output.text(text[at:])
            return len(text), self
        limit = len(text) - self._begun.held_back(text, at)  # from there on, all of it may be one longer mark
        while (found := self._triggers.search(text, at)) and found.start() < limit:
            begin, mark = found.start(), found.group()
            output.text(text[at:begin])
            at = found.end()
            follows = self._meet(mark)
            if follows is not None:
                return (begin if mark in self._bare else at), follows
        stop = len(text) - self._begun.held_back(text, at)
        output.text(text[at:stop])
        return stop, self

    def end(self, held: str) -> tuple[str, Phase | None]:
        """What was held back is text."""
        self._output.text(held)
        return "", None

    def opened(self, held: str) -> None:
        """Nothing is open."""

    def _meet(self, mark: str) -> Phase | None:
        """What a mark does: the phase that it opens; None where the answer goes on."""
        output, can_begin = self._output, self._output.is_line_start and not self._fence
        if mark in self._marked:
            return self._marked[mark](self)
        if mark in self._bare and can_begin:
            return self._bare[mark](self)
        if mark in self._silent:
            output.mark(mark)
            output.is_line_start = True
            return None
        if mark == self._open_think and can_begin:
            output.mark(mark)
            return self._thoughts
        if mark in _FENCES and output.is_line_start and self._fence in ("", mark):
            self._fence = "" if self._fence else mark
        output.text(mark)
        return None

    def _look(self) -> None:
        """Settle what may end plain text, and everything that may begin such a mark."""
        has_lines = bool(self._bare or self._open_think)  # whose beginnings matter
        fences = _FENCES if has_lines else ()
        marks = [*self._marked, *filter(None, [self._open_think]), *self._silent, *fences]
        self._begun = Beginnings(marks)
        self._triggers = None
        if marks or self._bare:
            singles = ["\n", *self._bare] if has_lines else []
            pattern = "|".join(map(re.escape, sorted(marks, key=len, reverse=True) + singles))
            self._triggers = re.compile(pattern)


class ReasoningPhase:
    """The thoughts, up to their closing mark, or to a mark that opens a call where the format's models do that.

    ``breaks``: what opens a call out of reasoning, by its start mark.
    """

    is_call = False

    def __init__(
        self, close: str, output: Output, home: Phase, breaks: Mapping[str, Callable[[Phase], Phase]] | None = None
    ) -> None:
        self._close, self._output, self._home, self._breaks = close, output, home, breaks or {}
        marks = sorted((close, *self._breaks), key=len, reverse=True)
        self._marks, self._begun = re.compile("|".join(map(re.escape, marks))), Beginnings(marks)

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read up to the closing mark, or to what may begin it."""
        output = self._output
        found = self._marks.search(text, at)
        if found is None:
            stop = len(text) - self._begun.held_back(text, at)
            output.reasoning(text[at:stop])
            return stop, self
        output.reasoning(text[at : found.start()])
        output.is_line_start = True
        if found.group() in self._breaks:
            return found.end(), self._breaks[found.group()](self._home)
        output.mark(self._close, drops_blanks=True)
        return found.end(), self._home

    def end(self, held: str) -> tuple[str, Phase | None]:
        """What was held back is reasoning."""
        self._output.reasoning(held)
        return "", None

    def opened(self, held: str) -> None:
        """Nothing is open."""


class ClosingPhase:
    """Behind a complete call: what closes it may follow, or another call in the same marks.

    ``closes``: what closes it; ``repeats``: what stands before another one, and what reads that.
    """

    is_call = False

    def __init__(
        self,
        closes: Shape | None,
        output: Output,
        home: Phase,
        repeats: tuple[Shape, Callable[[], Phase]] | None = None,
    ) -> None:
        self._closes, self._output, self._home, self._repeats = closes, output, home, repeats

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read the closing mark, if it is there."""
        shapes = [shape for shape in (self._closes, self._repeats and self._repeats[0]) if shape is not None]
        for shape in shapes:
            if (found := shape.match(text, at)) is not None:
                self._output.mark(found.text)
                is_more = self._repeats is not None and shape is self._repeats[0]
                return found.stop, self._repeats[1]() if is_more and self._repeats else self._home
        if any(shape.may_begin(text, at) for shape in shapes):
            return at, self
        return at, self._home

    def end(self, held: str) -> tuple[str, Phase | None]:
        """What was held back did not close anything."""
        return held, self._home

    def opened(self, held: str) -> None:
        """Nothing is open."""
