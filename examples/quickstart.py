"""Two agents share a long brief, stop, and continue in another process without reading it again.

    python examples/quickstart.py [--store FOLDER] [--fresh]

Needs no account and no settings: the starter model (135 million parameters, Apache-2.0) is fetched the first time.
Run it twice: the second run finds both agents where the first one left them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from platformdirs import user_data_dir

from agent_memory import Agent, Memory, Sampling

BRIEF = Path(__file__).with_name("brief.txt").read_text(encoding="utf-8")

# Each agent's own conversation. A turn asks the next question of its list, so a second run goes on where it stopped.
QUESTIONS = {
    "editor": [
        "In two sentences: what does a new volunteer have to know about red tools?",
        "Say it again in one sentence, for a sign on the wall.",
        "What was the first thing I asked you about?",
    ],
    "critic": [
        "Which rule about loans could a newcomer misread?",
        "Rewrite that rule so that nobody can.",
        "Which rule did we talk about?",
    ],
}
TURNS_BEFORE_CLOSING, TURNS_AFTER = 2, 1
# A small model repeats itself when it always takes the likeliest word; a fixed seed keeps the runs alike.
SAMPLING = Sampling(temperature=0.3, repetition_penalty=1.1, seed=7)


def main() -> None:
    args = parse_arguments()
    store = args.store / "store"  # a folder of our own inside, as --fresh deletes it
    if args.fresh:
        shutil.rmtree(store, ignore_errors=True)
    if args.second_process:
        print("\nA new process opens the same store and goes on:")
        restored = run_turns(store, TURNS_AFTER)
        report(args.store / "cold.json", restored)
        return
    print(f"Store: {store}")
    first = run_turns(store, TURNS_BEFORE_CLOSING)
    # The very first turn computes the whole brief. Later runs never do, so its figures are kept to compare with.
    if first["cached"] == 0:
        (args.store / "cold.json").write_text(json.dumps(first), encoding="utf-8")
    sys.stdout.flush()
    # What follows shares nothing with this process but the folder.
    subprocess.run([sys.executable, __file__, "--store", str(args.store), "--second-process"], check=True)


def run_turns(store: Path, turns: int) -> dict[str, float]:
    """Ask both agents their next questions; returns the figures of the first turn."""
    opened = time.perf_counter()
    figures: list[dict[str, float]] = []
    with Memory(path=store) as memory:
        known = {info.name: info for info in memory.agents()}
        # The brief is a system prompt that both agents begin with: it is computed once and stored once.
        agents = [memory.agent(name, system=BRIEF) for name in QUESTIONS]
        print(f"Opened, with the model, in {time.perf_counter() - opened:.1f} s.")
        for agent in agents:
            if (info := known.get(agent.info.name)) and info.n_turns:
                print(f"Found {info.name} after {info.n_turns} turns, {info.n_tokens:,} tokens: resuming.")
            if agent.info.n_turns >= 30:
                agent.rewind(27)  # the way out for an agent that nears the end of its model's context
        print("\nagent    turn   prompt  cached  computed  tier  first token  reply")
        for _ in range(turns):
            figures += [take_turn(agent) for agent in agents]
    # Leaving the block flushed the store: everything said so far is on disk.
    return figures[0]


def take_turn(agent: Agent) -> dict[str, float]:
    """One question and its answer, as one line of the table."""
    name, turn = agent.info.name, agent.info.n_turns
    questions = QUESTIONS[name]
    reply = agent.say(questions[turn % len(questions)], max_tokens=40, sampling=SAMPLING)
    usage = reply.usage
    text = " ".join(reply.text.split())
    print(
        f"{name:8}{turn + 1:>5}{usage.prompt_tokens:>9,}{usage.cached_tokens:>8,}{usage.computed_tokens:>10,}"
        f"{usage.tier:>6}{usage.ttft_s * 1e3:>10,.0f} ms  {text[:60]}{'...' if len(text) > 60 else ''}"
    )
    return {"prompt": usage.prompt_tokens, "cached": usage.cached_tokens, "ttft_s": usage.ttft_s}


def report(cold_file: Path, restored: dict[str, float]) -> None:
    """Cold against restored, in numbers and in plain words."""
    if not cold_file.exists():
        print("\nThe first turn's figures are gone; run with --fresh to measure cold against restored.")
        return
    cold = json.loads(cold_file.read_text(encoding="utf-8"))
    print(f"\n{'cold':9}{cold['prompt']:>7,.0f} tokens, {cold['ttft_s'] * 1e3:>7,.0f} ms to the first token")
    print(f"{'restored':9}{restored['prompt']:>7,.0f} tokens, {restored['ttft_s'] * 1e3:>7,.0f} ms to the first token")
    print(
        f"In words: the new process took {restored['cached']:,.0f} of {restored['prompt']:,.0f} tokens from disk\n"
        f"and began to answer {cold['ttft_s'] / restored['ttft_s']:.0f} times sooner than by reading the brief again."
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(user_data_dir("agent_memory")) / "quickstart"
    parser.add_argument("--store", type=Path, default=default, help=f"where to keep the agents (default: {default})")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs stored")
    parser.add_argument("--second-process", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
