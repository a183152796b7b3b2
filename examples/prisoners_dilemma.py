"""The prisoner's dilemma in five phases: what agents that keep their KV save, phase by phase.

    python examples/prisoners_dilemma.py [--model NAME_OR_FOLDER] [--echo] [--plot FILE.svg]

Four agents take 25 turns in five phases (``scenarios/prisoners_dilemma.toml``); three of them outlive the scenario.

- persistent: between two phases all KV leaves memory; the first turn of a phase reads it from the disk.
- cold: the same prompts again, each computed as a whole, as by a program that keeps nothing.

The starter model (135 million parameters) is no negotiator: the payoff table shows what it said, and nothing about
rational prisoners. ``--echo`` runs without a model, for the program's own tests.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from scenario import chosen_model, options, read_scenario

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


def plot(file: Path, cold: list[float], kept: list[float]) -> None:
    """Draw two bars a phase: TTFT cold and persistent."""
    top = max(cold + kept)
    bars = []
    for number, pair in enumerate(zip(cold, kept, strict=True)):
        for at, (value, colour) in enumerate(zip(pair, ("#999", "#06c"), strict=True)):
            height, x = 150 * value / top, 20 + number * 80 + at * 30
            bars.append(f'<rect x="{x}" y="{170 - height:.1f}" width="28" height="{height:.1f}" fill="{colour}"/>')
        bars.append(f'<text x="{20 + number * 80}" y="188" font-size="12">phase {number + 1}</text>')
    title = '<text x="20" y="14" font-size="12">time to the first token: cold (grey), persistent (blue)</text>'
    file.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="420" height="200">{title}{"".join(bars)}</svg>\n')


def main() -> None:
    parser = options(__doc__, "prisoners_dilemma.toml")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--plot", type=Path, default=None, help="write the bars to this SVG file")
    args = parser.parse_args()
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
    report(rows, cold, table, scenario, args.plot)


def report(
    rows: list[dict[str, Any]],
    cold: list[dict[str, Any]],
    table: list[Any],
    scenario: dict[str, Any],
    file: Path | None,
) -> None:
    """Print the tables."""
    print(f"{'phase':14} {'turns':>5} {'prompt':>7} {'computed':>9} {'cold ms':>8} {'kept ms':>8} {'gain':>6}")
    ttfts = []
    for number, phase in enumerate(scenario["phase"], 1):
        both = [
            (row["reply"].usage, one["reply"].usage)
            for row, one in zip(rows, cold, strict=True)
            if row["phase"] == number
        ]
        kept_ms, cold_ms = (1000 * statistics.mean(pair[at].ttft_s for pair in both) for at in (0, 1))
        prompt, computed = (
            statistics.mean(getattr(pair[0], key) for pair in both) for key in ("prompt_tokens", "computed_tokens")
        )
        print(
            f"{phase['name']:14} {len(both):5} {prompt:7.0f} {computed:9.0f} {cold_ms:8.0f} {kept_ms:8.0f} "
            f"{cold_ms / kept_ms:5.1f}x"
        )
        ttfts.append((cold_ms, kept_ms))
    kept_s, cold_s = (sum(row["wall"] for row in part) for part in (rows, cold))
    print(f"\nwall: {cold_s:.1f} s cold, {kept_s:.1f} s persistent ({100 * (kept_s / cold_s - 1):+.0f} %)")
    same = sum(row["reply"].text == one["reply"].text for row, one in zip(rows, cold, strict=True))
    reused = sum(one["reply"].usage.cached_tokens for one in cold)
    print(f"equal replies: {same} of {len(rows)}; tokens reused by cold turns: {reused}")
    first, second = scenario["prisoners"]
    print(f"\n{'phase':14} {first:8} {second:8} years")
    for row in table:
        print(f"{row[0]:14} {row[1]:8} {row[2]:8} {row[3]}")
    if file is not None:
        plot(file, [one[0] for one in ttfts], [one[1] for one in ttfts])


if __name__ == "__main__":
    main()
