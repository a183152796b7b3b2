"""What commands print: tables for people, JSON for programs, sizes and times in words."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any
from unicodedata import combining, east_asian_width

import typer

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def say(text: str) -> None:
    """Print a text as it is."""
    sys.stdout.write(f"{text}\n")


def tell(text: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(f"{text}\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "nothing") -> None:
    """Print a table, numbers to the right, the last column wrapped to the terminal; ``empty`` where it has no rows."""
    if not rows:
        say(empty)
        return
    texts = [[f"{value:,}" if isinstance(value, int) else _one_line(str(value)) for value in row] for row in rows]
    numeric = [all(isinstance(row[i], int) for row in rows) for i in range(len(columns))]
    widths = [max(map(_width, column)) for column in zip(columns, *texts, strict=True)]
    indent = sum(widths[:-1]) + 2 * (len(columns) - 1)
    last = max(20, shutil.get_terminal_size((100, 24)).columns - indent) if sys.stdout.isatty() else sys.maxsize
    for row in (columns, *texts):
        lines = [row[-1]] if _width(row[-1]) <= last else textwrap.wrap(row[-1], last)
        cells = [*row[:-1], lines[0]]
        padded = [
            " " * (width - _width(cell)) + cell if is_number else cell + " " * (width - _width(cell))
            for cell, width, is_number in zip(cells, widths, numeric, strict=True)
        ]
        say("  ".join(padded).rstrip())
        for line in lines[1:]:
            say(" " * indent + line)


def _one_line(text: str) -> str:
    """A text without what would leave its cell: line breaks, and codes that move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def _width(text: str) -> int:
    """Columns that a terminal gives a text."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)


def print_json(value: Any) -> None:
    """Print JSON; what JSON has no word for is printed as its text."""
    default: Callable[[Any], Any] = lambda other: dict(other) if hasattr(other, "keys") else str(other)  # noqa: E731
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=default, indent=2) + "\n")


def plain(value: Any) -> dict[str, Any]:
    """Return a value of the library as a dict."""
    import attrs

    return attrs.asdict(value)


def as_bytes(text: str) -> int:
    """Bytes out of words: 20GB, 512 MiB, 1.5g. Raises typer.BadParameter."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size. Write 20GB, 512MiB or a number of bytes.")
    number, letter, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(letter.lower() or " "))


def day(unix_s: float) -> str:
    """The local day and minute of a time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))
