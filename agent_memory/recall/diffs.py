"""Unified diffs -> the spans of their hunks, each a change."""

from __future__ import annotations

import re
from bisect import bisect_right

_HUNK = re.compile(r"^@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@[^\n]*$", re.MULTILINE)
_FILE = re.compile(r"^(?:diff --git |--- \S)", re.MULTILINE)


def changes(text: str) -> list[tuple[int, int]]:
    """Return [start, stop) of every hunk: its header line and the lines that belong to it."""
    hunks = [match.start() for match in _HUNK.finditer(text)]
    ends = sorted([*hunks[1:], *(match.start() for match in _FILE.finditer(text)), len(text)])
    found = []
    for start in hunks:
        stop = ends[bisect_right(ends, start)]
        found.append((start, start + len(text[start:stop].rstrip())))
    return found
