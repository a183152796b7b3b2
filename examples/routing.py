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
from pathlib import Path
from typing import Any

from scenario import SCENARIOS, ScenarioError, chosen_model, options, read_scenario

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


def report(rows: list[dict[str, Any]]) -> None:
    """Print a row a phase, with medians, and the ratios."""
    print(
        f"{'phase':20} {'asked':>5} {'prompt':>7} {'computed':>9} {'TTFT ms':>8} {'cold/this':>9} {'quality':>8}  tiers"
    )
    cold = statistics.median(row["ttft_s"] for row in rows if row["phase"] == "prime")
    for phase, title in PHASES.items():
        part = [row for row in rows if row["phase"] == phase]
        if not part:
            continue
        ttft, prompt, computed = (
            statistics.median(row[key] for row in part) for key in ("ttft_s", "prompt", "computed")
        )
        good = f"{sum(row['is_good'] for row in part)}/{len(part)}"
        tiers = ", ".join(sorted({row["tier"] for row in part}))
        print(
            f"{title:20} {len(part):5} {prompt:7.0f} {computed:9.0f} {1000 * ttft:8.1f} {cold / ttft:8.1f}x "
            f"{good:>8}  {tiers}"
        )
    routed = [row["routed"] == row["expert"] for row in rows if "routed" in row]
    print(
        f"\nrouted to the right expert: {sum(routed)} of {len(routed)}; "
        f"shortest prompt: {min(row['prompt'] for row in rows):,} tokens"
    )


def main() -> None:
    parser = options(__doc__, "routing.toml")
    parser.add_argument("--experts", type=int, default=10, help="the first so many experts alone")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--again", type=Path, default=None, help=argparse.SUPPRESS)  # the store, in the second process
    args = parser.parse_args()
    scenario, texts = load(args.scenario, args.experts)
    if args.again is not None:
        with Memory(chosen_model(args, "The text says so."), args.again) as memory:
            print(json.dumps(second_process(memory, scenario)))
        return
    rows: list[dict[str, Any]] = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            with Memory(chosen_model(args, "The text says so."), store) as memory:
                rows += first_process(memory, scenario, texts)
            command = [sys.executable, __file__, *sys.argv[1:], "--again", str(store)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows += json.loads(done.stdout.splitlines()[-1])
    report(rows)


if __name__ == "__main__":
    main()
