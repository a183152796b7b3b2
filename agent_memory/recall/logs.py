"""Logs -> their entries: Python tracebacks, pytest's and compilers' output, and lines with a level.

Nothing is parsed beyond a line's beginning, so a log of another program costs its typed items, never its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Entry = tuple[str, int, int]  #: kind, start, stop

_TRACEBACK = re.compile(r"^[ \t]*Traceback \(most recent call last\):[ \t]*$", re.MULTILINE)
_RAISED = re.compile(
    r"^[ \t]*[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit|Timeout|NotFound|Failure)(?::|$)"
)
_FAILED = re.compile(
    r"^(?:FAILED \S+|ERROR \S+::\S+|\S{1,200}\.py::\S{1,200} (?:FAILED|ERROR)\b|_{3,} [\w\[\].:<> -]+ _{3,}$|E {3}\S"
    r"|[ \t]*✕ |\s*--- FAIL: |test result: FAILED|FAIL\s+\S+|not ok \d+)"
)
_COMPILER = re.compile(
    r"^(?:[^\s:]+:\d+(?::\d+)?: (?:fatal )?error\b|[^\s:()]+\(\d+,\d+\): error\b|error(?:\[E\d+\])?: |ld: "
    r"|collect2: error|make(?:\[\d+\])?: \*\*\* |npm ERR! |Error: |panic: |fatal: |Uncaught |Unhandled )"
)
_LEVEL = re.compile(
    r"^(?:\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d[^\s\]]*\]?[ ,]*(?:\[?[\w.:-]{1,80}\]?[ :|-]{1,8})?)?"
    r"[\[(]?(?P<level>ERROR|ERR|FATAL|CRITICAL|SEVERE|WARN(?:ING)?|INFO|DEBUG|NOTICE|TRACE)\b"
)
_TIMED = re.compile(r"^\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
_SEVERE = {"ERROR", "ERR", "FATAL", "CRITICAL", "SEVERE"}
_MOST_LINES = 200  #: of one traceback


def entries(text: str) -> list[Entry]:
    """Return the entries of a log in order: error, test_failure, log_entry."""
    lines = list(_lines(text))
    found: list[Entry] = []
    i = 0
    while i < len(lines):
        start, stop = lines[i]
        line = text[start:stop]
        if _TRACEBACK.match(line):
            last = _end_of_traceback(text, lines, i)
            found.append(("error", start, lines[last][1]))
            i = last + 1
            continue
        if kind := _kind(line):
            found.append((kind, start, stop))
        i += 1
    return found


def pasted(text: str) -> list[Entry]:
    """Return the tracebacks and failures in a text that is no log: what somebody pasted into a message."""
    if "Traceback (most recent call last):" not in text and not re.search(r"\w(?:Error|Exception):", text):
        return []
    return [entry for entry in entries(text) if entry[0] != "log_entry"]


def _kind(line: str) -> str | None:
    if _FAILED.match(line):
        return "test_failure"
    if _RAISED.match(line) or _COMPILER.match(line):
        return "error"
    if match := _LEVEL.match(line):
        return "error" if match["level"] in _SEVERE else "log_entry"
    return "log_entry" if _TIMED.match(line) else None


def _end_of_traceback(text: str, lines: list[tuple[int, int]], first: int) -> int:
    """The line with the exception: the first one behind the frames that is not indented deeper than the header."""
    header = text[slice(*lines[first])]
    depth = len(header) - len(header.lstrip())
    for i in range(first + 1, min(first + _MOST_LINES, len(lines))):
        line = text[slice(*lines[i])]
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            return i
    return min(first + _MOST_LINES, len(lines)) - 1


def _lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        stop = text.find("\n", start)
        stop = len(text) if stop < 0 else stop
        if text[start:stop].strip():
            yield start, start + len(text[start:stop].rstrip())
        start = stop + 1
