"""What is looked for in text that comes in pieces: marks that may be cut in two, and shapes of several parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from attrs import frozen


class Beginnings:
    """Tells how much of a text's end may be the beginning of one of some marks, and must wait."""

    def __init__(self, marks: Iterable[str]) -> None:
        self._begun = frozenset(mark[:size] for mark in marks for size in range(1, len(mark)))
        self._first = re.compile("|".join(sorted({re.escape(begun[0]) for begun in self._begun})) or r"(?!)")
        self._longest = max(map(len, self._begun), default=0)

    def held_back(self, text: str, at: int = 0) -> int:
        """Length of the longest end of ``text`` from ``at`` on that may begin a mark."""
        place = max(at, len(text) - self._longest)
        while found := self._first.search(text, place):
            if text[found.start() :] in self._begun:
                return len(text) - found.start()
            place = found.end()
        return 0


@frozen
class Part:
    """A part of a shape that is no fixed text: ``whole`` matches all of it, ``begun`` what may become it."""

    whole: str
    begun: str
    name: str = ""


BLANKS = Part(r"\s{0,64}", r"\s{0,64}")


def word(characters: str, name: str = "", most: int = 200) -> Part:
    """One to ``most`` of a set of characters, given as in a regular expression's brackets."""
    return Part(rf"[{characters}]{{1,{most}}}", rf"[{characters}]{{0,{most}}}", name)


def ahead(*marks: str) -> Part:
    """Blanks, with one of some marks behind them, which is not part of the match."""
    begun = "|".join(re.escape(mark[:size]) for mark in marks for size in range(len(mark) - 1, -1, -1))
    return Part(rf"\s{{0,64}}(?={'|'.join(map(re.escape, marks))})", rf"\s{{0,64}}(?:{begun})")


Parts = Sequence[str | Part]


@frozen
class Match:
    """What stands at a place: its text, where it ends, and the texts of its named parts."""

    text: str
    stop: int
    groups: Mapping[str, str]


class Shape:
    """A text made of parts, one of several alternatives: at a place it stands, may come to stand, or does neither.

    Its parts are bounded, so that no text keeps anyone waiting for ever. The last part of an alternative is a mark, or
    ``ahead`` of one: more text never makes a match longer.
    """

    def __init__(self, *alternatives: Parts) -> None:
        self._whole = re.compile("|".join(_whole(parts, number) for number, parts in enumerate(alternatives)))
        self._begun = re.compile("|".join(filter(None, map(_begun, alternatives))) or r"(?!)")

    def match(self, text: str, at: int) -> Match | None:
        """The match at a place; the first alternative that stands there counts."""
        found = self._whole.match(text, at)
        if found is None:
            return None
        groups = {key.rpartition("_")[0]: value for key, value in found.groupdict().items() if value is not None}
        return Match(found.group(), found.end(), groups)

    def may_begin(self, text: str, at: int) -> bool:
        """True if what stands from ``at`` to the end of ``text`` could become a match."""
        return self._begun.fullmatch(text, at) is not None


def _whole(parts: Parts, number: int) -> str:
    out = ""
    for part in parts:
        if isinstance(part, str):
            out += re.escape(part)
        else:
            out += f"(?P<{part.name}_{number}>{part.whole})" if part.name else part.whole
    return out


def _begun(parts: Parts) -> str:
    """A pattern of everything that more text may turn into the parts."""
    found, before = [], ""
    for part in parts:
        if isinstance(part, str):
            begun = "|".join(re.escape(part[:size]) for size in range(len(part) - 1, -1, -1))
            found.append(f"{before}(?:{begun})")
            before += re.escape(part)
        else:
            found.append(f"{before}{part.begun}")
            before += part.whole
    return "|".join(found)


@cache
def behind_blanks(mark: str) -> Shape:
    """A mark, with blanks before it or none."""
    return Shape((BLANKS, mark))
