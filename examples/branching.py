"""One agent reads a long brief; eight forks of it try eight answers, and the best one goes on.

    python examples/branching.py [--store FOLDER]

Needs no account and no settings: the starter model is fetched the first time. A fork copies nothing, so the brief is
computed once for all of them; the last lines compare that with eight conversations of their own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_data_dir

from agent_memory import Agent, Memory, Reply, Sampling, Usage

BRIEF = Path(__file__).with_name("brief.txt").read_text(encoding="utf-8")
READERS = [
    "a child of ten", "a carpenter", "someone in a hurry", "a retired teacher", "the city's lawyer", "a newcomer",
    "someone who lost a tool", "the night watchman",
]  # fmt: skip
SAMPLING = Sampling(temperature=0.7, repetition_penalty=1.1, seed=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path(user_data_dir("agent_memory")) / "branching")
    with Memory(path=parser.parse_args().store) as memory:
        for name in ("reader", "chosen"):
            memory.delete(name)  # of an earlier run
        branch(memory)


def branch(memory: Memory) -> None:
    reader = memory.agent("reader", system=BRIEF)
    began = time.perf_counter()
    read = reader.say("Which rule of the brief matters most?", max_tokens=40, sampling=SAMPLING).usage
    print(f"The brief: {read.prompt_tokens:,} tokens, computed once in {time.perf_counter() - began:.1f} s.\n")

    hot_bytes, began = memory.stats().hot_bytes, time.perf_counter()
    forks = [reader.fork(f"for {who}", temporary=True) for who in READERS]
    took, more = time.perf_counter() - began, memory.stats().hot_bytes - hot_bytes
    print(f"{len(forks)} forks in {took * 1e3:.1f} ms, {more:,} bytes of memory more.\n")

    asked = [f"Explain that rule in two sentences for {who}." for who in READERS]
    replies = memory.batch(asked, agent=forks, max_tokens=60, sampling=SAMPLING)
    for who, reply in zip(READERS, replies, strict=True):
        usage = reply.usage
        print(f"{who:24} computed {usage.computed_tokens:3} of {usage.prompt_tokens:,}: {reply.text[:60]!r}")

    best = max(range(len(forks)), key=lambda number: score(replies[number]))
    chosen = forks[best].fork("chosen")  # from here on it is on disk; the others are gone when the memory closes
    sign = chosen.say("Now as a sign.", max_tokens=60, sampling=SAMPLING).text
    print(f"\nThe best one, for {READERS[best]}, goes on: {sign[:60]!r}")
    compare([read, *(reply.usage for reply in replies)], chosen)


def score(reply: Reply) -> float:
    """How many different words there are; a reply that was cut short counts half."""
    return len(set(reply.text.lower().split())) / (1 if reply.finish == "stop" else 2)


def compare(usages: Sequence[Usage], chosen: Agent) -> None:
    computed = sum(usage.computed_tokens for usage in usages)
    alone = sum(usage.prompt_tokens for usage in usages[1:])
    print(f"\nTokens of prompts computed: {computed:,}.")
    print(f"Eight separate conversations: {alone:,}, {alone / computed:.1f} times as many.")
    print(f"{chosen.name!r} has {chosen.info.n_turns} turns, those of 'reader' among them.")


if __name__ == "__main__":
    main()
