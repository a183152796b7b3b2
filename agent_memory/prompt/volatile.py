"""Spans of a text that differ in each request by themselves: clocks, dates, identifiers, digests, counters. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from attrs import frozen

from agent_memory.prompt.tokens import n_common

Kind = Literal["uuid", "timestamp", "date", "clock", "hash", "identifier", "number", "counter"]

_MONTHS = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_DAYS = r"(?:Mon|Tues?|Wed(?:nes)?|Thu(?:rs)?|Fri|Sat(?:ur)?|Sun)(?:day)?\b"
_CLOCK = (
    r"(?:\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?(?:\s?[AaPp]\.?[Mm]\b\.?|\s?Uhr\b)?"
    r"|\d{1,2}\s?[hH]\s?\d{2}\b|\d{1,2}\s?[AaPp]\.?[Mm]\b\.?)"
)
_ZONE = r"(?:\s?(?:Z\b|UTC\b|GMT\b|CES?T\b|[ECMP][SD]T\b)?(?:\s?[+-]\d{2}:?\d{2}\b)?)"
_NUMERIC = (
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2}))(?!\d)"
    r"|\d{4}\s?年\s?\d{1,2}\s?月\s?\d{1,2}\s?日"
)
_SPELLED = (
    rf"(?:{_DAYS},?\s+)?(?:{_MONTHS}\s+\d{{1,2}}(?:st|nd|rd|th)?\b|\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTHS})"
    r"(?:,?\s+\d{4}\b)?"
)
_DATE = rf"(?:{_SPELLED}|(?:{_DAYS},?\s+)?(?:{_NUMERIC}))"
#: Words after which a short number counts something that grows by itself.
_COUNTED = (
    r"(?i:request|req|turn|message|msg|session|run|attempt|retry|retries|iteration|iter|round|counter|count|seq|sequence"
    r"|id|nonce|job|build|trace|ticket|call|step|revision|rev|tick|uptime|invocation|query|visit|visitor|hit|n)"
)
_NUMBERED = r"(?:[ _-]?(?i:number|no\.?|id|nr\.?|count))?"
_UNTIED = r"(?<![A-Za-z0-9])"
_PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("uuid", rf"{_UNTIED}[0-9a-fA-F]{{8}}-(?:[0-9a-fA-F]{{4}}-){{3}}[0-9a-fA-F]{{12}}(?![0-9A-Za-z])"),
    ("timestamp", rf"(?<!\d){_DATE}(?:T|,?\s+(?:at\s+)?|\s*[-|]\s*){_CLOCK}{_ZONE}"),
    ("timestamp", rf"(?<![\d:]){_CLOCK}{_ZONE}\s+(?:on\s+)?{_DATE}"),
    ("timestamp", r"(?<!\d)\d{8}T\d{4,6}Z?"),
    ("date", rf"(?<![\d.]){_DATE}"),
    ("clock", rf"(?<![\d:.]){_CLOCK}(?![\d:])"),
    ("hash", rf"{_UNTIED}(?:0x)?(?=[a-fA-F]*\d)(?=\d*[a-fA-F])[0-9a-fA-F]{{7,}}(?![0-9A-Za-z])"),
    ("identifier", rf"{_UNTIED}(?=[A-Za-z]*\d[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{{8,}}(?![A-Za-z0-9])"),
    (
        "identifier",
        r"(?<![\w+/-])(?=[A-Za-z+/_-]*\d)(?=[^A-Z\s]*[A-Z])(?=[^a-z\s]*[a-z])[A-Za-z0-9+/_-]{20,}={0,2}",
    ),
    ("number", r"(?<![\d.])\d{7,}(?:\.\d+)?(?!\d)"),
    ("counter", r"(?<![\w#])#(?P<n>\d{1,9})\b"),
    (
        "counter",
        rf"(?<![A-Za-z]){_COUNTED}s?{_NUMBERED}\s*(?:[:=#]|is\b)?\s*#?(?P<n>\d{{1,9}})(?![\d.]?\d)",
    ),
)
_ALL = tuple((kind, re.compile(pattern)) for kind, pattern in _PATTERNS)
_MARK = "\0"
_AROUND = 120  #: characters around a difference that are read: longer than any volatile span


@frozen
class Volatile:
    """A span ``[start, stop)`` of a text, and what it looks like."""

    start: int
    stop: int
    kind: Kind


def volatile_spans(text: str) -> list[Volatile]:
    """Every span that looks volatile, in order, none overlapping another. O(text) for each pattern."""
    found: list[Volatile] = []
    for kind, pattern in _ALL:
        for match in pattern.finditer(text):
            start, stop = match.span("n") if "n" in pattern.groupindex else match.span()
            while text[stop - 1 : stop].isspace():
                stop -= 1
            found.append(Volatile(start, stop, kind))
    kept: list[Volatile] = []
    for one in sorted(found, key=lambda span: (span.start, -span.stop)):
        if not kept or one.start >= kept[-1].stop:
            kept.append(one)
    return kept


def masked(text: str, kinds: Collection[Kind] = ()) -> str:
    """The text with one sign in place of each volatile span; ``kinds``: of those alone, of all where none is given."""
    at, out = 0, []
    for one in volatile_spans(text):
        if not kinds or one.kind in kinds:
            out += [text[at : one.start], _MARK]
            at = one.stop
    return "".join([*out, text[at:]])


def differ_in_volatile_alone(one: str, other: str, *, kinds: Collection[Kind] = (), is_open: bool = False) -> bool:
    """True if two texts differ, and in nothing but spans that look volatile; ``kinds``: in no others but those.

    ``is_open``: one of the texts may go on where it ends here. Reads what differs and a little around it.
    """
    if one == other:
        return False
    start = max(0, n_common(one, other) - _AROUND)
    same = 0 if is_open else n_common(one[start:][::-1], other[start:][::-1])
    mine, theirs = (text[start : len(text) - max(0, same - _AROUND)] for text in (one, other))
    first, second = (masked(text, kinds) for text in (mine[: 3 * _AROUND], theirs[: 3 * _AROUND]))
    if not is_open and len(mine) <= 3 * _AROUND >= len(theirs):
        return first == second
    if n_common(first, second) < min(len(first), len(second)) - _AROUND:
        return False
    first, second = masked(mine, kinds), masked(theirs, kinds)
    if is_open:
        n = max(0, min(len(first), len(second)) - _AROUND)
        first, second = first[:n], second[:n]
    return first == second
