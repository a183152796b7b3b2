"""The table of metrics in docs/operations.md, out of the catalogue. Run as a program, it rewrites the page."""

from __future__ import annotations

import re
from pathlib import Path

from agent_memory.observe.metrics import CATALOGUE

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
_PLACE = re.compile(r"(<!-- metrics -->\n)(.*?)(<!-- /metrics -->\n)", re.S)


def table() -> str:
    """The table, one line a metric."""
    lines = ["| metric | kind | unit | label | what it is |", "| --- | --- | --- | --- | --- |"]
    for one in CATALOGUE:
        lines.append(f"| `{one.prometheus}` | {one.kind} | {one.unit} | {one.label} | {one.help} |")
    return "\n".join(lines) + "\n"


def shown() -> str:
    """The table as the page has it; empty where it has none."""
    found = _PLACE.search(PAGE.read_text(encoding="utf-8"))
    return found[2] if found else ""


if __name__ == "__main__":
    PAGE.write_text(_PLACE.sub(lambda m: m[1] + table() + m[3], PAGE.read_text(encoding="utf-8")), encoding="utf-8")
