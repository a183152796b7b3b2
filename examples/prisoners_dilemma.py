"""The prisoner's dilemma in five phases: what agents that keep their KV save, phase by phase.

    python examples/prisoners_dilemma.py [--model NAME_OR_FOLDER] [--echo] [--plot FILE.svg]

Four agents take 25 turns in five phases (``scenarios/prisoners_dilemma.toml``); three of them outlive the scenario.

- persistent: between two phases all KV leaves memory; the first turn of a phase reads it from the disk.
- cold: the same prompts again, each computed as a whole, as by a program that keeps nothing.

The starter model (135 million parameters) is no negotiator: the payoff table shows what it said, and nothing about
rational prisoners. ``--echo`` runs without a model, for the program's own tests.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scenario import chosen_model, drawn, options, read_scenario

from agent_memory import Group, Memory, Phase

KEYS = {
    "name": str,
    "prisoners": [str],
    "temporary": [str],
    "cooperate": [str],
    "defect": [str],
    "payoff": {"both_silent": [int], "first_confesses": [int], "second_confesses": [int], "both_confess": [int]},
    "agent": [{"name": str, "system": str}],
    "phase": [{"name": str, "opening": str, "members": [str], "rounds": int}],
}


def play(memory: Memory, scenario: dict[str, Any], max_tokens: int) -> tuple[list[dict[str, Any]], Group]:
    """Play all phases; return a row a turn, with the prompt that the turn had."""
    for agent in scenario["agent"]:
        memory.agent(agent["name"], system=agent["system"])
    phases = [
        Phase(one["name"], one["opening"], members=one["members"], rounds=one["rounds"]) for one in scenario["phase"]
    ]
    group = memory.group(scenario["name"], [one["name"] for one in scenario["agent"]], topology="turns", phases=phases)
    rows = []
    for number, phase in enumerate(phases, 1):
        memory.evict()  # as if the phases were days apart
        group.next_phase()
        for name in phase.members * phase.rounds:
            started = time.perf_counter()
            reply = group.turn(name, max_tokens=max_tokens, temperature=0.0)
            wall = time.perf_counter() - started
            prompt = group.member(name).messages[:-1]
            rows.append({"phase": number, "speaker": name, "reply": reply, "wall": wall, "prompt": prompt})
    return rows, group


def play_cold(memory: Memory, rows: list[dict[str, Any]], max_tokens: int) -> list[dict[str, Any]]:
    """The same prompts, each computed as a whole: nothing of a turn is left when the next one comes."""
    found = []
    for row in rows:
        started = time.perf_counter()
        reply = memory.generate(row["prompt"], agent="cold", max_tokens=max_tokens, temperature=0.0)
        found.append({"reply": reply, "wall": time.perf_counter() - started})
        memory.delete("cold")
    return found


def choice_of(text: str, scenario: dict[str, Any]) -> str:
    """``silent``, ``confess`` or ``unclear``: which of the scenario's words comes first."""
    said = text.lower()
    places = {
        choice: min((said.find(word) for word in scenario[key] if word in said), default=-1)
        for choice, key in (("silent", "cooperate"), ("confess", "defect"))
    }
    heard = {choice: place for choice, place in places.items() if place >= 0}
    return min(heard, key=lambda choice: heard[choice]) if heard else "unclear"


def payoffs(group: Group, scenario: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Phase, both prisoners' choices and their years, for each time that both spoke."""
    first, second = scenario["prisoners"]
    keys = {
        ("silent", "silent"): "both_silent",
        ("confess", "silent"): "first_confesses",
        ("silent", "confess"): "second_confesses",
        ("confess", "confess"): "both_confess",
    }
    rows = []
    for phase in scenario["phase"]:
        if not {first, second} <= set(phase["members"]):
            continue
        said = [line for line in group.transcript if line.kind == "turn" and line.phase == phase["name"]]
        of_first, of_second = (
            [choice_of(one.text, scenario) for one in said if one.speaker == who] for who in (first, second)
        )
        for pair in zip(of_first, of_second, strict=True):
            years = scenario["payoff"][keys[pair]] if pair in keys else None
            rows.append((phase["name"], *pair, "-" if years is None else f"{years[0]}, {years[1]}"))
    return rows


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = options(__doc__, "prisoners_dilemma.toml")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--plot", type=Path, default=None, help="write the bars to this SVG file")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Run:
    """Play the scenario both ways."""
    scenario = read_scenario(args.scenario, KEYS)
    with tempfile.TemporaryDirectory() as folder:
        with Memory(chosen_model(args, "I stay silent."), Path(folder) / "kept") as memory:
            memory.generate("Hello.", max_tokens=1)  # the model's first call compiles: no turn's cost
            rows, group = play(memory, scenario, args.max_tokens)
            table = payoffs(group, scenario)
            for name in scenario["temporary"]:
                memory.delete(group.member(name))
                memory.delete(name)
        with Memory(chosen_model(args, "I stay silent."), Path(folder) / "cold") as memory:
            memory.generate("Hello.", max_tokens=1)
            cold = play_cold(memory, rows, args.max_tokens)
    return Run(scenario, rows, cold, table)


class Run(NamedTuple):
    """What was said, persistent and cold, and the payoffs."""

    scenario: dict[str, Any]
    rows: list[dict[str, Any]]
    cold: list[dict[str, Any]]
    payoffs: list[tuple[str, str, str, str]]

    def phases(self) -> list[dict[str, Any]]:
        """Return a row a phase, with means of its turns."""
        found = []
        for number, phase in enumerate(self.scenario["phase"], 1):
            both = [
                (row["reply"].usage, one["reply"].usage)
                for row, one in zip(self.rows, self.cold, strict=True)
                if row["phase"] == number
            ]
            kept_ms, cold_ms = (1000 * statistics.mean(pair[at].ttft_s for pair in both) for at in (0, 1))
            prompt, computed = (
                statistics.mean(getattr(pair[0], key) for pair in both) for key in ("prompt_tokens", "computed_tokens")
            )
            found.append({
                "phase": phase["name"], "turns": len(both), "prompt": prompt, "computed": computed,
                "cold ms": cold_ms, "kept ms": kept_ms, "gain": cold_ms / kept_ms,
            })  # fmt: skip
        return found

    def totals(self) -> str:
        """Return what all turns took both ways, and whether the replies are the same."""
        kept_s, cold_s = (sum(row["wall"] for row in part) for part in (self.rows, self.cold))
        same = sum(row["reply"].text == one["reply"].text for row, one in zip(self.rows, self.cold, strict=True))
        reused = sum(one["reply"].usage.cached_tokens for one in self.cold)
        return (
            f"wall: {cold_s:.1f} s cold, {kept_s:.1f} s persistent ({100 * (kept_s / cold_s - 1):+.0f} %)\n"
            f"equal replies: {same} of {len(self.rows)}; tokens reused by cold turns: {reused}"
        )

    def plot(self) -> str:
        """Return an SVG with two bars a phase."""
        bars = {row["phase"]: (row["cold ms"], row["kept ms"]) for row in self.phases()}
        return drawn("ms to the first token: cold (grey), persistent (blue)", bars)


def report(found: Run) -> None:
    """Print the tables."""
    print(f"{'phase':14} {'turns':>5} {'prompt':>7} {'computed':>9} {'cold ms':>8} {'kept ms':>8} {'gain':>6}")
    for row in found.phases():
        print(
            f"{row['phase']:14} {row['turns']:5} {row['prompt']:7.0f} {row['computed']:9.0f} {row['cold ms']:8.0f} "
            f"{row['kept ms']:8.0f} {row['gain']:5.1f}x"
        )
    print(f"\n{found.totals()}")
    first, second = found.scenario["prisoners"]
    print(f"\n{'phase':14} {first:8} {second:8} years")
    for phase, *said in found.payoffs:
        print(f"{phase:14} {said[0]:8} {said[1]:8} {said[2]}")


def main() -> None:
    args = parsed()
    found = run(args)
    report(found)
    if args.plot is not None:
        args.plot.write_text(found.plot())


if __name__ == "__main__":
    main()
