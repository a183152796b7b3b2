"""What finding calls in a stream costs, a character, against reading the whole text again with every piece.

    python benchmarks/toolcall.py [--runs 5] [--json FILE] [--png FILE]

"again" is what parsers without state do with every piece of a stream: look for the marks in all the text so far and
try to load the JSON between them. It is stopped where one run would take longer than ten seconds.

Then what it costs to hold a call to its schema, with the starter model: to build and compile, to find what may come
next and to apply it to the logits, to watch plain text for a call, and a token of a held reply against a token of a
free one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from agent_memory import Memory, Tool
from agent_memory.grammar.constraint import HeldCalls
from agent_memory.grammar.grammar import Grammars, call_grammar
from agent_memory.grammar.matcher import Matcher
from agent_memory.toolcall import ToolParser
from agent_memory.toolcall.formats import forms
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
    "harmony": lambda text: (
        "<|channel|>commentary to=functions.save <|constrain|>json<|message|>" + json.dumps({"text": text}) + "<|call|>"
    ),
    "deepseek_v31": lambda text: (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>save<｜tool▁sep｜>"
        + json.dumps({"text": text})
        + "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "glm47": lambda text: f"<tool_call>save\n<arg_key>text</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>",
    "pythonic": lambda text: f"<|tool_call_start|>[save(text={text!r})]<|tool_call_end|>",
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


SEARCH = Tool(
    "search",
    "Searches the archive.",
    {
        "type": "object",
        "properties": {
            "query": {"type": "string", "maxLength": 200},
            "kind": {"enum": ["letter", "photo", "map"]},
            "pages": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 900}, "maxItems": 8},
        },
        "required": ["query", "kind", "pages"],
    },
)
SAID = (
    '<tool_call>\n{"name": "search", "arguments": {"query": "the reef to the west, in the winter of the storm", '
    '"kind": "letter", "pages": [3, 17, 204]}}\n</tool_call>'
)


def grammar_costs(runs: int) -> dict[str, float]:
    """Seconds to build, milliseconds to compile, microseconds a token, and held decoding over free decoding."""
    with Memory(None, ":memory:") as memory:
        tokenizer = memory._runner.tokenizer
        began = time.perf_counter()
        grammars = Grammars(tokenizer)
        grammars.prepare()
        costs = {"build_s": time.perf_counter() - began}
        compiles, again = [], []
        for run in range(10 * runs):
            tools = [attrs.evolve(SEARCH, name=f"{SEARCH.name}_{run}_{n}") for n in range(3)]
            for times in (compiles, again):
                began = time.perf_counter()
                compiled(tools, grammars)
                times.append((time.perf_counter() - began) * 1e3)
        held = HeldCalls(ToolParser([SEARCH]), tokenizer, lambda form: compiled([SEARCH], grammars), is_promised=False)
        masks, applies = held_tokens(compiled([SEARCH], grammars), tokenizer.encode(SAID), 10 * runs)
        watched = []
        for token in tokenizer.encode(real_text()[:20_000]):
            began = time.perf_counter_ns()
            held.accept(token)
            held.mask()
            watched.append((time.perf_counter_ns() - began) / 1e3)
        measured = {"compile_ms": compiles, "again_ms": again, "mask_us": masks, "apply_us": applies}
        measured |= {"mask_and_apply_us": list(np.add(masks, applies)), "watch_us": watched}
        for name, times in measured.items():
            costs |= {f"{name}_p50": median(times), f"{name}_p95": float(np.percentile(times, 95))}
        return costs | {"held_over_free": held_over_free(memory, runs)}


def compiled(tools: list[Tool], grammars: Grammars) -> Matcher:
    """A fresh matcher of a forced call."""
    checked = [attrs.evolve(tool, parameters=grammars.checked(tool.parameters, tool.name)) for tool in tools]
    return grammars.matcher(call_grammar(checked, forms("json_tools")[0], grammars.tokenizer))


def held_tokens(matcher: Matcher, tokens: list[int], runs: int) -> tuple[list[float], list[float]]:
    """For each token of a call, the best of ``runs``: microseconds to find what may come next, and to apply it."""
    masks, applies = np.full(len(tokens), np.inf), np.full(len(tokens), np.inf)
    for _ in range(runs):
        one = matcher.copy()
        for place, token in enumerate(tokens):
            began = time.perf_counter_ns()
            words = one.mask()
            one.accept(token)
            masks[place] = min(masks[place], (time.perf_counter_ns() - began) / 1e3)
            applies[place] = min(applies[place], apply_us(words, 32 * len(words)))
    return list(masks), list(applies)


def apply_us(words: Any, n_vocab: int) -> float:
    """Microseconds to apply a mask to logits that are there."""
    import mlx.core as mx

    from agent_memory.runner.sampling import allowed

    logits = mx.zeros((1, n_vocab))
    mx.eval(logits)
    began = time.perf_counter_ns()
    mx.eval(mx.where(allowed(words, n_vocab), logits, -mx.inf))
    return (time.perf_counter_ns() - began) / 1e3


def held_over_free(memory: Memory, runs: int) -> float:
    """Tokens a second of a held reply over those of a free one of as many tokens; interleaved, the median of ratios."""
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 30, "maxItems": 30}
    ratios = []
    for _ in range(runs):
        free = memory.generate("Count.", raw=True, max_tokens=60).usage.decode_tps
        held = memory.generate("Count.", raw=True, max_tokens=60, schema=schema).usage.decode_tps
        ratios.append(held / free)
    return median(ratios)


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
    costs = grammar_costs(args.runs)
    print()
    for name, cost in costs.items():
        print(f"{name:28}{cost:10.2f}")
    write_json(args.json, benchmark="toolcall", piece=PIECE, runs=args.runs, rows=rows, grammar=costs)
    if args.png:
        draw(rows, args.png)


if __name__ == "__main__":
    main()
