"""Which look of recalled cards a small model uses most and copies least, against the same facts in plain prose.

    python -m benchmarks.cards [--facts 24] [--requests 12] [--go-on] [--json F] [--png F]

Each prompt has three cards in front of a message. Of half of the messages one card is the answer: does the reply use
it? The others ask for something else: what of the cards turns up in the reply all the same? A reply copies the frame
where it has its head, its tags or the brackets of a card in it. Greedy, the starter model.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from agent_memory import Memory
from benchmarks.common import write_json

DAY = "2026-11-25"
NAMES = "Alder Birch Cedar Damson Elder Filbert Gorse Hazel Iris Juniper Kelp Larch Maple Nettle Oak Poplar".split()
COLOURS = "red blue green white black yellow brown purple orange grey".split()
CITIES = "Lisbon Oslo Vienna Dublin Prague Athens Madrid Geneva Cairo Lima".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
REQUESTS = (
    "Write one short sentence about the sea.",
    "What is 2 plus 3?",
    "Name a fruit.",
    "Say hello to Peter.",
    "Give me a word that means happy.",
    "What is the capital of France?",
    "Write one sentence about a cat.",
    "Which season comes after winter?",
    "Name a musical instrument.",
    "How many days does a week have?",
)


@frozen
class Look:
    """How three cards and a message become one prompt, and what in a reply is copied from that."""

    name: str
    write: Callable[[Sequence[str], str], str]
    marks: str  #: a regular expression of the frame


def _lines(head: str, line: str) -> Callable[[Sequence[str], str], str]:
    return lambda facts, asked: head + "".join(line.format(fact=fact, day=DAY) for fact in facts) + f"\n{asked}"


def _tagged(facts: Sequence[str], asked: str) -> str:
    return "<memory>\n" + "".join(f"{fact}\n" for fact in facts) + f"</memory>\n\n{asked}"


LOOKS = (
    Look("plain prose", lambda facts, asked: f"{' '.join(facts)}\n\n{asked}", r"(?!)"),
    Look(
        "head, day and kind",
        _lines("Recalled from memory; may be incomplete or outdated:\n", "- ({day}, note) {fact}\n"),
        r"(?i)recalled from memory|incomplete or outdated|\(20\d\d-\d\d-\d\d|, note\)",
    ),
    Look(
        "head, kind first",
        _lines("Recalled from memory; may be incomplete or outdated:\n", "- {fact} (note, {day})\n"),
        r"(?i)recalled from memory|incomplete or outdated|\(note, |20\d\d-\d\d-\d\d\)",
    ),
    Look(
        "head, bare lines",
        _lines("Recalled from memory; may be incomplete or outdated:\n", "- {fact}\n"),
        r"(?i)recalled from memory|incomplete or outdated",
    ),
    Look("short head", _lines("What you know:\n", "- {fact}\n"), r"(?i)what you know:"),
    Look("tags", _tagged, r"(?i)</?memory>"),
    Look("labels", _lines("", "[memory {day}] {fact}\n"), r"(?i)\[memory|20\d\d-\d\d-\d\d\]"),
)


@frozen
class Case:
    """Three facts, a message, and the word that answers it; None: the message asks for something else."""

    facts: tuple[str, ...]
    asked: str
    answer: str | None


def cases(n_facts: int, n_requests: int) -> list[Case]:
    chance = random.Random(11)
    out = []
    for number in range(n_facts + n_requests):
        made = [_fact(chance, name) for name in chance.sample(NAMES, 3)]
        _, asked, answer = chance.choice(made)
        if number >= n_facts:
            asked, answer = REQUESTS[number % len(REQUESTS)], None
        out.append(Case(tuple(fact for fact, _, _ in made), asked, answer))
    return out


def _fact(chance: random.Random, name: str) -> tuple[str, str, str]:
    kind = chance.randrange(4)
    if kind == 0:
        value = chance.choice(COLOURS)
        return f"The boat of {name} is {value}.", f"What colour is the boat of {name}?", value
    if kind == 1:
        value = chance.choice(CITIES)
        return f"{name} lives in {value}.", f"In which city does {name} live?", value
    if kind == 2:
        value = chance.choice(DAYS)
        return f"The {name} team meets on {value}.", f"On which day does the {name} team meet?", value
    value = str(chance.randrange(100, 999))
    return f"The code of room {name} is {value}.", f"What is the code of room {name}?", value


def measured(memory: Memory, look: Look, asked: Sequence[Case], max_tokens: int = 24) -> dict[str, Any]:
    replies = memory.batch([look.write(case.facts, case.asked) for case in asked], max_tokens=max_tokens)
    used, copied, strayed = [], [], []
    for case, reply in zip(asked, replies, strict=True):
        copied.append(bool(re.search(look.marks, reply.text)))
        if case.answer is not None:
            used.append(re.search(rf"\b{re.escape(case.answer)}\b", reply.text) is not None)
        else:
            strayed.append(any(fact.rstrip(".") in reply.text for fact in case.facts))
    return {
        "used": round(statistics.fmean(used), 3),
        "frame_copied": round(statistics.fmean(copied), 3),
        "cards_in_other_replies": round(statistics.fmean(strayed), 3),
        "n_answers": len(used), "n_others": len(strayed),
    }  # fmt: skip


def draw(path: str, results: dict[str, dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.5), constrained_layout=True)
    for place, (key, label) in enumerate(
        (("used", "the fact is used"), ("frame_copied", "the frame is copied"),
         ("cards_in_other_replies", "a card in a reply to something else"))
    ):  # fmt: skip
        heights = [results[name][key] for name in results]
        axes.bar([n + 0.27 * place for n in range(len(results))], heights, 0.25, label=label)
    axes.set_xticks([n + 0.27 for n in range(len(results))], list(results), rotation=15)
    axes.set_ylabel("share of replies")
    axes.set_ylim(0, 1)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--facts", type=int, default=24)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--go-on", action="store_true", help="measure the looks that the JSON lacks")
    parser.add_argument("--json")
    parser.add_argument("--png")
    arguments = parser.parse_args()
    asked, results = cases(arguments.facts, arguments.requests), {}
    if arguments.go_on and Path(arguments.json).exists():
        results = json.loads(Path(arguments.json).read_text(encoding="utf-8"))["looks"]
    with Memory(path=":memory:") as memory:
        for look in LOOKS:
            if look.name in results:
                continue
            results[look.name] = measured(memory, look, asked)
            print(f"{look.name:20s}", results[look.name], flush=True)
            write_json(arguments.json, looks=results)
    if arguments.png:
        draw(arguments.png, results)


if __name__ == "__main__":
    main()
