"""Seeded texts with the typed items that are in them: conversations, diffs and logs, for rules to be measured on.

Sentences are put together from parts, so no two seeds give the same texts. About a third of a conversation's sentences
hold nothing: questions, small talk, what an assistant proposes.
"""

from __future__ import annotations

import random

from attrs import frozen

#: (kind, span) of each item that a text holds.
Label = tuple[str, tuple[int, int]]

NAMES = "Ann Bo Chidi Dana Emeka Farah Goran Hana".split()
THINGS = "the parser, the billing job, the search index, the login page, the export, the cache layer".split(", ")
TOOLS = "PostgreSQL, Redis, Kafka, Terraform, GraphQL, Svelte, DuckDB".split(", ")
DAYS = "Monday, Tuesday, Friday, tomorrow, the end of the month, May 6".split(", ")

SENTENCES: dict[str, tuple[str, ...]] = {
    "decision": (
        "We decided to replace {thing} with {tool}.",
        "The team settled on {tool} for {thing}.",
        "Let's go with {tool} for {thing}.",
        "{name} and I agreed on {tool} last week.",
        "Decision: {tool} for {thing}, nothing else.",
        "We're going with {tool} instead of {tool2}.",
        "They chose {tool} over {tool2}.",
        "We have opted for {tool} after all.",
    ),
    "task": (
        "I'll rewrite {thing} by {day}.",
        "I promised {name} a first draft of {thing} by {day}.",
        "{name} committed to reviewing {thing} before {day}.",
        "TODO: measure {thing} again.",
        "Remind me to call {name} about {thing}.",
        "We need to finish {thing} by {day}.",
        "I am going to send {name} the figures of {thing}.",
        "Action item: {name} checks {thing}.",
    ),
    "preference": (
        "{name} prefers {tool} to {tool2}.",
        "I'd rather work on {thing} in the morning.",
        "My favourite is {tool}.",
        "{name} wants me to write {thing} in {tool}.",
        "I really like {tool} for small things.",
        "I hate long meetings about {thing}.",
    ),
    "requirement": (
        "{thing_up} must support {tool}.",
        "{thing_up} has to handle a thousand users.",
        "{thing_up} requires {tool} from now on, they say.",
        "{thing_up} should support dark mode.",
        "A backup of {thing} is mandatory.",
    ),
    "constraint": (
        "{thing_up} must not use {tool}.",
        "{thing_up} may take at most 200 ms.",
        "We cannot use {tool} in {thing}.",
        "{thing_up} is limited to 5 requests a second.",
        "Nothing may be deployed without changing less than 3 files.",
    ),
    "instruction": (
        "Always show the units when {thing} comes up.",
        "Never write {tool} code without tests.",
        "From now on, answer in Spanish.",
        "Please avoid {tool} in examples.",
        "Please make sure to number the steps.",
        "Use short names when I ask about {thing}.",
    ),
    "none": (
        "How does {thing} work?",
        "Should we use {tool} or {tool2}?",
        "Good morning!",
        "That was a long day.",
        "Thanks, that helps a lot.",
        "It rained again in the valley.",
        "{name} said hello.",
        "The weather is nice.",
        "Do you think {name} will come?",
        "What did we say about {thing}?",
    ),
}
KINDS = tuple(SENTENCES)


@frozen
class Sample:
    """A text and what is in it."""

    text: str
    kind: str
    role: str
    labels: tuple[Label, ...]


def conversations(n: int, seed: int) -> list[Sample]:
    """Return ``n`` turns of one to four sentences."""
    chance = random.Random(seed)
    return [_turn(chance) for _ in range(n)]


def diffs(n: int, seed: int) -> list[Sample]:
    """Return ``n`` unified diffs of one to three files; every hunk is a change."""
    chance = random.Random(seed)
    return [_diff(chance) for _ in range(n)]


def logs(n: int, seed: int) -> list[Sample]:
    """Return ``n`` logs of services, test runs and compilers."""
    chance = random.Random(seed)
    return [_log(chance) for _ in range(n)]


def _turn(chance: random.Random) -> Sample:
    is_reply = chance.random() < 0.2
    text, labels = "", []
    for _ in range(chance.randint(1, 4)):
        kind = "none" if chance.random() < 0.3 else chance.choice(KINDS)
        thing = chance.choice(THINGS)
        tool, tool2 = chance.sample(TOOLS, 2)
        sentence = chance.choice(SENTENCES[kind]).format(
            thing=thing, thing_up=thing[0].upper() + thing[1:], tool=tool, tool2=tool2, name=chance.choice(NAMES),
            day=chance.choice(DAYS),
        )  # fmt: skip
        start = len(text) + bool(text)
        text = f"{text} {sentence}".strip()
        if kind != "none" and not is_reply:
            labels.append((kind, (start, start + len(sentence))))
    return Sample(text, "chat", "assistant" if is_reply else "user", tuple(labels))


def _diff(chance: random.Random) -> Sample:
    text, labels = "", []
    for _ in range(chance.randint(1, 3)):
        name = f"src/{chance.choice(['a', 'b', 'c'])}{chance.randint(0, 99)}.py"
        text += f"diff --git a/{name} b/{name}\nindex 83db48f..bf2a4c1 100644\n--- a/{name}\n+++ b/{name}\n"
        for _ in range(chance.randint(1, 3)):
            line = chance.randint(1, 900)
            body = [f"@@ -{line},3 +{line},4 @@ def f{line}():", " x = 1"]
            body += [f"{chance.choice('+-')}y = {chance.randint(0, 9)}" for _ in range(chance.randint(1, 5))]
            hunk = "\n".join([*body, " return x"])
            labels.append(("change", (len(text), len(text) + len(hunk))))
            text += hunk + "\n"
    return Sample(text, "diff", "user", tuple(labels))


def _log(chance: random.Random) -> Sample:
    text, labels = "", []
    for _ in range(chance.randint(4, 15)):
        kind, entry = chance.choice(_ENTRIES)(chance)
        if kind:
            labels.append((kind, (len(text), len(text) + len(entry))))
        text += entry + "\n"
    return Sample(text, "log", "user", tuple(labels))


def _stamp(chance: random.Random) -> str:
    return f"2026-0{chance.randint(1, 9)}-1{chance.randint(0, 9)}T0{chance.randint(0, 9)}:3{chance.randint(0, 9)}:00Z"


def _info(chance: random.Random) -> tuple[str, str]:
    level = chance.choice(["INFO", "DEBUG", "WARNING", "WARN"])
    return "log_entry", f"{_stamp(chance)} {level} worker {chance.randint(1, 9)} took {chance.randint(1, 99)} ms"


def _severe(chance: random.Random) -> tuple[str, str]:
    return (
        "error",
        f"{_stamp(chance)} {chance.choice(['ERROR', 'CRITICAL', 'FATAL'])} no route to host {chance.randint(1, 9)}",
    )


def _traceback(chance: random.Random) -> tuple[str, str]:
    frames = "".join(
        f'  File "/srv/app/{chance.choice("abc")}.py", line {chance.randint(1, 99)}, in run\n    step()\n'
        for _ in range(chance.randint(1, 4))
    )
    error = chance.choice(
        ["ValueError: bad value", "KeyError: 'name'", "app.errors.TimeoutError: late", "RuntimeError"]
    )
    return "error", f"Traceback (most recent call last):\n{frames}{error}"


def _pytest(chance: random.Random) -> tuple[str, str]:
    n = chance.randint(1, 99)
    return "test_failure", chance.choice(
        [
            f"FAILED tests/test_a.py::test_{n} - assert 1 == 2",
            f"tests/test_b.py::test_{n} FAILED",
            f"E   assert {n} == 0",
        ]
    )


def _compiler(chance: random.Random) -> tuple[str, str]:
    n = chance.randint(1, 99)
    return "error", chance.choice(
        [
            f"src/main.c:{n}:5: error: expected ';'",
            f"error[E0{n + 100}]: mismatched types",
            f"app.ts({n},7): error TS2304",
        ]
    )


def _plain(chance: random.Random) -> tuple[str, str]:
    return "", chance.choice([f"collected {chance.randint(2, 99)} items", "compiling ...", "    note: see above", "ok"])


_ENTRIES = (_info, _info, _severe, _traceback, _pytest, _compiler, _plain)
