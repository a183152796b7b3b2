"""What finding calls in a stream costs, a character, against reading the whole text again with every piece.

    python benchmarks/toolcall.py [--runs 5] [--json FILE] [--png FILE]

"again" is what parsers without state do with every piece of a stream: look for the marks in all the text so far and
try to load the JSON between them. It is stopped where one run would take longer than ten seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from agent_memory.toolcall import ToolParser
from benchmarks.common import median, real_text, write_json

SIZES = (2_000, 20_000, 200_000)
PIECE = 4  #: characters in a piece: about a token
LIMIT_S = 10.0
SHAPES: dict[str, Callable[[str], str]] = {
    "plain text": lambda text: text,
    "json_tools": lambda text: f"<tool_call>{json.dumps({'name': 'save', 'arguments': {'text': text}})}</tool_call>",
    "tool_use": lambda text: json.dumps({"tool_use": {"name": "save", "input": {"text": text}}}),
    "qwen3_coder": lambda text: (
        f"<tool_call>\n<function=save>\n<parameter=text>\n{text}\n</parameter>\n</function>\n</tool_call>"
    ),
    "gemma4": lambda text: f'<|tool_call>call:save{{text:<|"|>{text}<|"|>}}<tool_call|>',
}


def streamed(text: str, format: str | None) -> int:
    """Calls found by one parser fed piece by piece."""
    parser = ToolParser(None, format)
    for at in range(0, len(text), PIECE):
        parser.feed(text[at : at + PIECE])
    parser.end()
    return len(parser.parsed.tool_calls)


def again(text: str, deadline: float) -> int | None:
    """Calls found by reading everything again with every piece; None when the time is up."""
    found = 0
    for at in range(PIECE, len(text) + PIECE, PIECE):
        so_far = text[:at]
        start, end = so_far.find("<tool_call>"), so_far.find("</tool_call>")
        inside = so_far[start + len("<tool_call>") : end if end >= 0 else None] if start >= 0 else ""
        try:
            found = int("arguments" in json.loads(inside))
        except ValueError:
            found = 0
        if time.perf_counter() > deadline:
            return None
    return found


def ns_per_character(work: Callable[[], int | None], n: int, runs: int) -> float | None:
    """The median over ``runs``; None where one run did not end in time."""
    times = []
    for _ in range(runs):
        began = time.perf_counter_ns()
        if work() is None:
            return None
        times.append((time.perf_counter_ns() - began) / n)
    return median(times)


def measure(runs: int) -> list[dict[str, Any]]:
    """One row per shape and size."""
    body, rows = real_text().replace("<", "").replace("```", ""), []
    for shape, write in SHAPES.items():
        format = None if shape in ("plain text", "json_tools", "tool_use") else shape
        for size in SIZES:
            text = write(body[:size])
            assert streamed(text, format) == (shape != "plain text")
            ours = ns_per_character(lambda text=text, format=format: streamed(text, format), len(text), runs)
            theirs = None
            if shape == "json_tools":
                theirs = ns_per_character(lambda text=text: again(text, time.perf_counter() + LIMIT_S), len(text), runs)
            rows.append({"shape": shape, "characters": len(text), "ns": ours, "again_ns": theirs})
    return rows


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Cost a character over length, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for key, label in (("ns", "one parser, fed"), ("again_ns", "read again with every piece")):
        points = [(r["characters"], r[key]) for r in rows if r["shape"] == "json_tools" and r[key]]
        axes.loglog(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xlabel="characters of one call", ylabel="ns a character", title="A <tool_call> in pieces of 4 characters")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", default=None)
    parser.add_argument("--png", default=None)
    args = parser.parse_args()
    rows = measure(args.runs)
    print(f"{'shape':14}{'characters':>12}{'ns a character':>16}{'read again, ns':>16}{'ratio':>8}")
    for row in rows:
        other = f"{row['again_ns']:,.0f}" if row["again_ns"] else ""
        ratio = f"{row['again_ns'] / row['ns']:.1f}" if row["again_ns"] else ""
        print(f"{row['shape']:14}{row['characters']:>12,}{row['ns']:>16,.0f}{other:>16}{ratio:>8}")
    write_json(args.json, benchmark="toolcall", piece=PIECE, runs=args.runs, rows=rows)
    if args.png:
        draw(rows, args.png)


if __name__ == "__main__":
    main()
