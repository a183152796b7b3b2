"""Episodes: planted patterns found, the next tool of real dialogues, secrets found, and what a step costs.

    python benchmarks/episodes.py [--seeds 20] [--data ../shared/data] [--json FILE]

- Planted patterns: precision and recall of each extractor over seeds on which no threshold was set.
- Next tool: multi-turn tool dialogues (BFCL v4) as episodes, five folds; at each step of a dialogue that was not
  learned from, whether its gold tool is among the three that ``recommend`` names. Baselines: the three tools used
  last, the three used most, and the order of tools alone (without the words of the request).
- Secrets: shares of the generated corpus, and of its benign lines.
- Costs: a step and a recommendation, on a file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from attrs import frozen
from common import median, write_json

from agent_memory import EpisodicMemory, RuleRedactor

sys.path.append(str(Path(__file__).parents[1]))  # the generators of the tests
from tests.parts.planted_corpus import planted
from tests.parts.recording import gold_patterns, record
from tests.parts.secret_corpus import benign, secrets

FOLDS = 5
FIRST_SEED = 1_000


def patterns(n_seeds: int) -> dict[str, dict[str, float]]:
    """Precision and recall of each kind of pattern, all seeds together."""
    sums: dict[str, Counter[str]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + n_seeds):
        episodes, gold = planted(seed)
        with EpisodicMemory() as memory:
            record(memory, episodes)
            for kind, wanted in gold_patterns(gold).items():
                prf = memory.validate(wanted)
                sums.setdefault(kind, Counter()).update(found=prf.n_found, gold=prf.n_gold, matched=prf.n_matched)
    return {
        kind: {"precision": n["matched"] / max(1, n["found"]), "recall": n["matched"] / n["gold"], "n_gold": n["gold"]}
        for kind, n in sums.items()
    }


@frozen
class Dialogue:
    """Gold calls of a dialogue: (tool, what the user had just said)."""

    id: str
    domain: str
    steps: tuple[tuple[str, str], ...]


def dialogues(path: Path) -> list[Dialogue]:
    """Every dialogue of a BFCL multi-turn file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    answers = {answer["id"]: answer["ground_truth"] for answer in data["answers"]}
    found: list[Dialogue] = []
    for question in data["questions"]:
        steps: list[tuple[str, str]] = []
        for turn, calls in zip(question["question"], answers[question["id"]], strict=True):
            said = " ".join(message["content"] for message in turn if message["role"] == "user")
            steps += [(re.match(r"[\w.]+", call)[0], said) for call in calls]  # type: ignore[index]
        found.append(Dialogue(question["id"], " ".join(sorted(question["involved_classes"])), tuple(steps)))
    return found


def learn(memory: EpisodicMemory, learned: Sequence[Dialogue]) -> None:
    """Live dialogues as episodes: an action is what the user had just said."""
    for dialogue in learned:
        with memory.start(dialogue.steps[0][1]) as episode:
            for tool, said in dialogue.steps:
                episode.step(tool, said)
            episode.complete(True)


def next_tools(all_dialogues: Sequence[Dialogue], seed: int = 0) -> dict[str, float]:
    """Shares of steps whose gold tool is among three, over all folds."""
    order = list(all_dialogues)
    Random(seed).shuffle(order)
    hits: Counter[str] = Counter()
    n = 0
    for fold in range(FOLDS):
        held, learned = order[fold::FOLDS], [d for i, d in enumerate(order) if i % FOLDS != fold]
        uses = Counter(tool for dialogue in learned for tool, _ in dialogue.steps)
        recent = [tool for dialogue in reversed(learned) for tool, _ in reversed(dialogue.steps)]
        with EpisodicMemory() as memory:
            learn(memory, learned)
            for dialogue in held:
                after: list[str] = []
                for tool, said in dialogue.steps:
                    named = {
                        "recommend": [r.tools[0] for r in memory.recommend(said, after=after, k=3)],
                        "order alone": [r.tools[0] for r in memory.recommend("-", after=after, k=3)],
                        "used most": [name for name, _ in uses.most_common(3)],
                        "used last": list(dict.fromkeys([*reversed(after), *recent]))[:3],
                    }
                    hits.update(how for how, tools in named.items() if tool in tools)
                    hits["seen in other dialogues"] += tool in uses
                    after.append(tool)
                    n += 1
    return {**{how: hits[how] / n for how in sorted(hits)}, "n_steps": n}


def redaction() -> dict[str, float]:
    """Shares of secrets found, of benign lines touched, and the time."""
    redactor = RuleRedactor(b"benchmark salt")
    n = found = 0
    for seed in range(FIRST_SEED, FIRST_SEED + 5):
        for sample in secrets(seed):
            text = redactor.redact(sample.text).text
            parts = [part.removeprefix("rubygems_") for part in sample.parts]  # that stays, as the placeholder's kind
            n += 1
            found += not any(part[i : i + 8] in text for part in parts for i in range(max(1, len(part) - 7)))
    lines = [line for seed in range(FIRST_SEED, FIRST_SEED + 5) for line in benign(seed)]
    text = "\n".join(lines)
    n_kb = len(text.encode()) / 1024
    wall, cpu = zip(*(timed_twice(lambda: redactor.redact(text)) for _ in range(5)), strict=True)
    touched = sum(bool(redactor.redact(line).found) for line in lines)
    return {
        "found": found / n,
        "n_secrets": n,
        "n_benign": len(lines),
        "touched": touched,
        "ms_per_kb": median(wall) / n_kb,
        "cpu_ms_per_kb": median(cpu) / n_kb,
    }


def timed_twice(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds that ``work`` takes: by the clock, and of CPU time, which other processes leave alone."""
    began, began_cpu = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - began) * 1000, (time.process_time() - began_cpu) * 1000


def percentiles(name: str, took: Sequence[tuple[float, float]]) -> dict[str, float]:
    """p50 and p95 by the clock and of CPU time."""
    wall, cpu = (sorted(times) for times in zip(*took, strict=True))
    at = int(len(wall) * 0.95)
    return {
        f"{name}_p50_ms": median(wall),
        f"{name}_p95_ms": wall[at],
        f"{name}_cpu_p50_ms": median(cpu),
        f"{name}_cpu_p95_ms": cpu[at],
    }


def costs() -> dict[str, float]:
    """Milliseconds of a step, of learning anew and of a recommendation, on a file."""
    shown: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, fsync, n_steps in (("step", False, 2_000), ("step_fsync", True, 200)):
            with EpisodicMemory(f"{folder}/{name}.db", fsync_steps=fsync) as memory:
                episode = memory.start("run the tests of the invoice service")
                step = partial(
                    episode.step,
                    "run_tests",
                    "run the tests of the invoice service",
                    observation="31 passed in 2.1 s; " * 12,
                    parameters={"path": "tests/invoice", "verbose": True},
                    latency_ms=3.0,
                    tokens=120,
                )
                shown |= percentiles(name, [timed_twice(step) for _ in range(n_steps)])
        with EpisodicMemory(f"{folder}/many.db") as memory:
            record(memory, [one for seed in range(5) for one in planted(seed)[0]])
            wall, cpu = timed_twice(memory.patterns)
            shown |= {"learn_1920_episodes_ms": wall, "learn_1920_episodes_cpu_ms": cpu}
            advise = partial(memory.recommend, "fix the invoice service", context={"language": "python"})
            shown |= percentiles("recommend", [timed_twice(advise) for _ in range(100)])
    return shown


def show(title: str, rows: dict[str, Any]) -> None:
    """One table."""
    print(f"\n{title}")
    for name, value in rows.items():
        text = "  ".join(f"{k} {v:.3f}" for k, v in value.items()) if isinstance(value, dict) else f"{value:.3f}"
        print(f"  {name:24} {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--json")
    args = parser.parse_args()
    results: dict[str, Any] = {"patterns": patterns(args.seeds)}
    show("Planted patterns", results["patterns"])
    file = args.data / "bfcl-multi-turn-dev.json"
    if file.exists():
        results["next_tool"] = next_tools(dialogues(file))
        show("Next tool among three", results["next_tool"])
    else:
        print(f"\nNext tool: skipped, {file} is not there")
    results["redaction"], results["costs"] = redaction(), costs()
    show("Redaction", results["redaction"])
    show("Costs", results["costs"])
    write_json(args.json, **results)


if __name__ == "__main__":
    main()
