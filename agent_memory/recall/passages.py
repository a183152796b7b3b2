"""Where a text is cut into passages: spans of about 60 words that cover all of it.

Short texts stay whole, and are found by their neighbours' words as well; long ones are cut at sentences or lines.
A list of numbered facts is cut into its lines. Spans are half-open, in characters, in order, and leave out blanks only.
"""

from __future__ import annotations

import re

PASSAGE_WORDS = 60
_WHOLE_WORDS = 90  #: texts up to this length are one passage
_LONGEST_WORDS = 120  #: a sentence or line beyond this is cut
_WORD_CHARACTERS = 12  #: scripts without blanks, and encoded data, are counted by their length
_LIST_LINES = 6

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_LINE_END = re.compile(r"\n")
_HUNK = re.compile(r"^(?=@@ |diff --git |--- (?!$))", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*\d+[.):][ \t]+\S[^\n]*$", re.MULTILINE)
_WORD = re.compile(r"\S+")

Span = tuple[int, int]


def cut(text: str, kind: str) -> list[Span]:
    """Return the spans of the passages of ``text``; [] for a text of blanks alone."""
    if kind == "diff":
        starts = [0, *(match.start() for match in _HUNK.finditer(text)), len(text)]
        return [
            span
            for a, b in zip(starts, starts[1:], strict=False)
            for span in _joined(text, _units(text, a, b, _LINE_END))
        ]
    if kind == "log":
        return _joined(text, _units(text, 0, len(text), _LINE_END))
    if lines := listed(text):
        return lines
    if _n_words(text) <= _WHOLE_WORDS:
        return [span] if (span := _stripped(text, 0, len(text))) else []
    return _joined(text, _units(text, 0, len(text), _SENTENCE_END))


def sentences(text: str, start: int = 0, stop: int | None = None) -> list[Span]:
    """Return the spans of the sentences of ``text``; a line's end ends a sentence."""
    return _units(text, start, len(text) if stop is None else stop, _SENTENCE_END)


def listed(text: str) -> list[Span]:
    """Return the spans of all lines if ``text`` is mainly a numbered list, else []."""
    numbered = sum(1 for _ in _NUMBERED.finditer(text))
    if numbered < _LIST_LINES:
        return []
    lines = _units(text, 0, len(text), _LINE_END)
    is_list = numbered >= 0.8 * len(lines) and len(text.split()) <= 40 * len(lines)
    return lines if is_list else []


def _units(text: str, start: int, stop: int, end: re.Pattern[str]) -> list[Span]:
    found = []
    position = start
    for match in end.finditer(text, start, stop):
        if span := _stripped(text, position, match.start()):
            found.append(span)
        position = match.end()
    if span := _stripped(text, position, stop):
        found.append(span)
    return found


def _joined(text: str, units: list[Span]) -> list[Span]:
    """Units joined to passages of about ``PASSAGE_WORDS``; a unit that is too long is cut between words."""
    out: list[Span] = []
    first, last, n_words = -1, -1, 0
    for start, stop in units:
        n = _n_words(text[start:stop])
        if n_words and n_words + n > PASSAGE_WORDS * 1.25:
            out.append((first, last))
            n_words = 0
        if n > _LONGEST_WORDS:
            out.extend(_cut_long(text, start, stop))
            continue
        if not n_words:
            first = start
        last, n_words = stop, n_words + n
    if n_words:
        out.append((first, last))
    return sorted(out)


def _cut_long(text: str, start: int, stop: int) -> list[Span]:
    most = PASSAGE_WORDS * _WORD_CHARACTERS
    out: list[Span] = []
    first, last, n = start, start, 0
    for match in _WORD.finditer(text, start, stop):
        for a in range(match.start(), match.end(), most):  # a "word" may be longer than a passage
            b = min(a + most, match.end())
            size = _n_words(text[a:b])
            if n and n + size > PASSAGE_WORDS:
                out.append((first, last))
                n = 0
            if not n:
                first = a
            last, n = b, n + size
    out.append((first, last))
    return out


def _n_words(piece: str) -> int:
    return max(len(piece.split()), len(piece) // _WORD_CHARACTERS)


def _stripped(text: str, start: int, stop: int) -> Span | None:
    piece = text[start:stop]
    left = len(piece) - len(piece.lstrip())
    right = len(piece.rstrip())
    return (start + left, start + right) if right > left else None
