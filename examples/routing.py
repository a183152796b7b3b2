"""Ten experts, each on a text of its own: what a question costs cold, hot, and after a restart.

    python examples/routing.py [--model NAME_OR_FOLDER] [--echo] [--repeats 1] [--experts 10]

The texts and questions are in ``scenarios/routing.toml`` and ``scenarios/texts``; each text has at least 2,000 tokens.

- prime: each expert's first question; its text is computed (cold).
- query: a second question to the same expert, its KV in memory (hot).
- re-query: the first question again ("Say that again: ...") in a new process; the KV comes from the disk (restored).
- cross: questions that touch two texts, sent to both experts, in that new process (hot).

Quality is whether a reply has at least two of the keywords, as structural checks go; the starter model (135 million
parameters) passes few. ``--echo`` runs without a model, for the program's own tests.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scenario import SCENARIOS, ScenarioError, chosen_model, drawn, options, read_scenario

from agent_memory import Memory

KEYS = {
    "expert": [{"name": str, "questions": [str], "keywords": [str]}],
    "cross": [{"question": str, "experts": [str], "keywords": [str]}],
}
PHASES = {
    "prime": "prime (cold)",
    "query": "query (hot)",
    "requery": "re-query (restored)",
    "cross": "cross-topic (hot)",
}


def load(file: Path, n_experts: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The scenario cut to its first experts, and their texts by name."""
    scenario = read_scenario(file, KEYS)
    names = [one["name"] for one in scenario["expert"]]
    for number, one in enumerate(scenario["cross"]):
        if strangers := [name for name in one["experts"] if name not in names]:
            raise ScenarioError(
                f"{file.name}: cross[{number}].experts names {strangers[0]!r}; allowed are {', '.join(names)}"
            )
    scenario["expert"] = scenario["expert"][:n_experts]
    kept = names[:n_experts]
    scenario["cross"] = [one for one in scenario["cross"] if set(one["experts"]) <= set(kept)]
    return scenario, {name: (SCENARIOS / "texts" / f"{name}.txt").read_text() for name in kept}


def words(text: str) -> set[str]:
    """The words of four letters and more."""
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def route(question: str, texts: dict[str, str]) -> str:
    """The expert whose text shares most of the question's words; a word counts less the more texts have it."""
    known = {name: words(text) for name, text in texts.items()}
    spread = {word: sum(word in of for of in known.values()) for word in words(question)}
    return max(known, key=lambda name: sum(1 / n for word, n in spread.items() if word in known[name]))


def ask(memory: Memory, name: str, question: str, keywords: list[str], phase: str) -> dict[str, Any]:
    """One question to one expert, as a row."""
    reply = memory.generate(question, agent=name, max_tokens=24, temperature=0.0)
    usage, said = reply.usage, reply.text.lower()
    hits = sum(keyword in said for keyword in keywords)
    return {
        "phase": phase, "expert": name, "ttft_s": usage.ttft_s, "prompt": usage.prompt_tokens,
        "computed": usage.computed_tokens, "tier": usage.tier, "is_good": hits >= 2,
    }  # fmt: skip


def first_process(memory: Memory, scenario: dict[str, Any], texts: dict[str, str]) -> list[dict[str, Any]]:
    """Prime every expert, then route the second questions."""
    memory.generate("Hello.", max_tokens=1)  # the model's first call compiles: no question's cost
    rows = []
    for one in scenario["expert"]:
        name = one["name"]
        memory.agent(name, system=f"Answer in one sentence, from this text only.\n\n{texts[name]}")
        rows.append(ask(memory, name, one["questions"][0], one["keywords"], "prime"))
    for one in scenario["expert"]:
        name = route(one["questions"][1], texts)
        rows.append(ask(memory, one["name"], one["questions"][1], one["keywords"], "query") | {"routed": name})
    return rows


def second_process(memory: Memory, scenario: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask every expert again, then what touches two of them."""
    memory.generate("Hello.", max_tokens=1)
    rows = [
        ask(memory, one["name"], "Say that again: " + one["questions"][0], one["keywords"], "requery")
        for one in scenario["expert"]
    ]
    for one in scenario["cross"]:
        rows += [ask(memory, name, one["question"], one["keywords"], "cross") for name in one["experts"]]
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a phase, with medians, and the ratio to the first one."""
    found = []
    cold = statistics.median(row["ttft_s"] for row in rows if row["phase"] == "prime")
    for phase, title in PHASES.items():
        part = [row for row in rows if row["phase"] == phase]
        if not part:
            continue
        ttft, prompt, computed = (
            statistics.median(row[key] for row in part) for key in ("ttft_s", "prompt", "computed")
        )
        found.append({
            "phase": title, "asked": len(part), "prompt": prompt, "computed": computed, "TTFT ms": 1000 * ttft,
            "cold/this": cold / ttft, "quality": f"{sum(row['is_good'] for row in part)}/{len(part)}",
            "tiers": ", ".join(sorted({row["tier"] for row in part})),
        })  # fmt: skip
    return found


def routed(rows: list[dict[str, Any]]) -> str:
    """Return how many questions came to the expert that they were for, and how long the texts are."""
    right = [row["routed"] == row["expert"] for row in rows if "routed" in row]
    return (
        f"routed to the right expert: {sum(right)} of {len(right)}; "
        f"shortest prompt: {min(row['prompt'] for row in rows):,} tokens"
    )


def plot(rows: list[dict[str, Any]]) -> str:
    """Return an SVG with a bar a phase."""
    bars = {row["phase"]: (row["TTFT ms"],) for row in summary(rows)}
    return drawn("ms to the first token, median", bars)


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(
        f"{'phase':20} {'asked':>5} {'prompt':>7} {'computed':>9} {'TTFT ms':>8} {'cold/this':>9} {'quality':>8}  tiers"
    )
    for row in summary(rows):
        print(
            f"{row['phase']:20} {row['asked']:5} {row['prompt']:7.0f} {row['computed']:9.0f} {row['TTFT ms']:8.1f} "
            f"{row['cold/this']:8.1f}x {row['quality']:>8}  {row['tiers']}"
        )
    print(f"\n{routed(rows)}")


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options(__doc__, "routing.toml")
    parser.add_argument("--experts", type=int, default=10, help="the first so many experts alone")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--again", type=Path, default=None, help=argparse.SUPPRESS)  # the store, in the second process
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ask everything, in two processes, as often as wanted; return a row a question."""
    scenario, texts = load(args.scenario, args.experts)
    rows: list[dict[str, Any]] = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            with Memory(chosen_model(args, "The text says so."), store) as memory:
                rows += first_process(memory, scenario, texts)
            command = [sys.executable, __file__, "--scenario", args.scenario, "--experts", args.experts]
            command += [
                "--again",
                store,
                *(["--echo"] if args.echo else ()),
                *(("--model", args.model) if args.model else ()),
            ]
            done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
            rows += json.loads(done.stdout.splitlines()[-1])
    return rows


def main() -> None:
    args = parsed()
    if args.again is None:
        report(run(args))
        return
    scenario, _ = load(args.scenario, args.experts)
    with Memory(chosen_model(args, "The text says so."), args.again) as memory:
        print(json.dumps(second_process(memory, scenario)))


if __name__ == "__main__":
    main()
