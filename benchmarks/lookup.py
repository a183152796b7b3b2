"""Prompt lookup and grammar jumps: decoding with ``Config(lookup="auto")`` against ``"off"``.

    python benchmarks/lookup.py [--rounds 5] [--tokens 160] [--json FILE] [--model MODEL]
    python benchmarks/lookup.py --steps [--rounds 15] [--context 512]

Two Memories of one model answer the same prompts in turns, each way first equally often; rates are output tokens a
second after the first token; of four rows, the output tokens of all over the seconds of ``batch``. All prompts were
computed before. Figures are medians of ratios within one round. Kinds of prompts: ``copy`` (write this JSON, this list,
this file again with one change), ``elsewhere`` (stories, letters, explanations), ``schema`` (20 fields, constrained).

``--steps``: what a verified step of several ids costs, in steps of one id, at ``--context`` tokens a row: medians over
the rounds, all widths once in each, of process CPU time and of wall time. ``scheduler/drafting.py`` assumes these.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen
from common import median, write_json

from agent_memory import Config, Memory, Reply, Sampling

_NAMES = ("Ada", "Basil", "Cora", "Dinah", "Edgar", "Flora", "Gustav", "Hilda")
_TOWNS = ("Aberdeen", "Bergen", "Cadiz", "Dover", "Esbjerg", "Faro", "Ghent", "Hamburg")


def people(n: int, seed: int) -> str:
    """Records of made-up people as indented JSON."""
    records = []
    for i in range(seed, seed + n):
        records.append({"id": 100 + i, "name": _NAMES[i % 8], "city": _TOWNS[3 * i % 8], "active": i % 2 == 0})
    return json.dumps(records, indent=1)


def code(seed: int) -> str:
    """A made-up Python file."""
    noun = ("price", "weight", "length", "score")[seed % 4]
    return (
        f"def total_{noun}(items):\n    total = 0\n    for item in items:\n        total += item.{noun}\n"
        f"    return total\n\n\ndef mean_{noun}(items):\n    if not items:\n        return 0\n"
        f"    return total_{noun}(items) / len(items)\n\n\n"
        f"def largest_{noun}(items):\n    best = None\n    for item in items:\n"
        f"        if best is None or item.{noun} > best:\n            best = item.{noun}\n    return best\n"
    )


def copying(seed: int) -> str:
    """A request to write something again with a change."""
    if seed % 2:
        return f"Write this Python file again, and call the argument `rows`:\n\n```python\n{code(seed)}```"
    return f"Write this JSON again, and set the last person's city to Oslo:\n\n```json\n{people(6, seed)}\n```"


_TOPICS = (
    "Tell a story about a fox and a lighthouse.",
    "Explain how bread rises.",
    "Write a letter to a friend about moving to the sea.",
    "Describe a market in the early morning.",
    "Why is the sky blue? Explain it to a child.",
    "Give advice to somebody who learns to play the violin.",
)
_KINDS = ("integer", "boolean", "small", "word")


def schema() -> dict[str, Any]:
    """An object of 20 fields: numbers, booleans, choices and short texts."""
    kinds: dict[str, dict[str, Any]] = {
        "integer": {"type": "integer", "minimum": 0, "maximum": 999},
        "boolean": {"type": "boolean"},
        "small": {"enum": ["low", "medium", "high"]},
        "word": {"type": "string", "maxLength": 12},
    }
    fields = (
        "order_number customer_is_known priority_level delivery_city item_count is_fragile packing_grade carrier_name "
        "weight_in_kilograms has_insurance insurance_class warehouse_code shelf_number is_paid payment_risk "
        "invoice_label days_until_delivery needs_signature handling_level remark_for_driver"
    ).split()
    return {
        "type": "object",
        "properties": {name: kinds[_KINDS[i % 4]] for i, name in enumerate(fields)},
        "required": fields,
        "additionalProperties": False,
    }


@frozen
class Case:
    """One prompt, or several that decode together."""

    kind: str
    prompts: tuple[str, ...]
    options: dict[str, Any]


def cases(n_tokens: int) -> list[Case]:
    """All prompts of a round."""
    plain = {"max_tokens": n_tokens}
    drawn = {**plain, "sampling": Sampling(temperature=0.7, top_p=0.9, seed=5)}
    made = [Case("copy", (copying(seed),), plain) for seed in range(3)]
    made.append(Case("schema", ("Make up an order.",), {"schema": schema(), "max_tokens": 600}))
    made += [Case("elsewhere", (topic,), plain) for topic in _TOPICS[:3]]
    made.append(Case("copy, 4 rows", tuple(copying(2 * seed) for seed in range(4)), plain))
    made.append(Case("elsewhere, 4 rows", _TOPICS[:4], plain))
    made.append(Case("copy, seeded", (copying(4),), drawn))
    made.append(Case("elsewhere, seeded", (_TOPICS[4],), drawn))
    return made


def ask(memory: Memory, case: Case) -> tuple[float, list[Reply]]:
    """Tokens a second, and the replies."""
    if len(case.prompts) == 1:
        reply = memory.generate(case.prompts[0], **case.options)
        return reply.usage.decode_tps, [reply]
    start = time.perf_counter()
    replies = memory.batch(case.prompts, **case.options)
    return sum(reply.usage.output_tokens for reply in replies) / (time.perf_counter() - start), replies


def measure(ways: dict[str, Memory], case: Case, rounds: int) -> dict[str, Any]:
    """Rates of a case in each round, and whether the tokens were equal."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    replies: dict[str, list[Reply]] = {}
    for memory in ways.values():
        for prompt in case.prompts:
            memory.prefill(prompt)
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            rate, replies[name] = ask(ways[name], case)
            rates[name].append(rate)
    usage = [reply.usage for reply in replies["auto"]]
    found = {
        "kind": case.kind,
        "rates": rates,
        "ratio": median([a / b for a, b in zip(rates["auto"], rates["off"], strict=True)]),
        "tokens": sum(one.output_tokens for one in usage),
        "proposed": sum(one.proposed for one in usage),
        "accepted": sum(one.accepted for one in usage),
        "equal": [a.token_ids for a in replies["auto"]] == [b.token_ids for b in replies["off"]],
        "text": [reply.text for reply in replies["auto"]],
    }
    print(f"{case.kind:20} {found['ratio']:.2f}  {case.prompts[0][:40]!r}", flush=True)
    return found


#: kind -> (what is shown, the bar)
BARS: dict[str, float | None] = {
    "copy": 1.5, "copy, seeded": None, "copy, 4 rows": 1.2, "elsewhere": 0.98, "elsewhere, seeded": 0.98,
    "elsewhere, 4 rows": 0.98, "schema": 2.0,
}  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a kind: medians over its cases."""
    lines = []
    for kind, bar in BARS.items():
        mine = [one for one in found if one["kind"] == kind]
        if not mine:
            continue
        share: Callable[[str], int] = lambda name: sum(one[name] for one in mine)  # noqa: B023, E731 - called here
        lines.append(
            {
                "kind": kind,
                "ratio": median([one["ratio"] for one in mine]),
                "bar": bar,
                "off tokens/s": median([rate for one in mine for rate in one["rates"]["off"]]),
                "auto tokens/s": median([rate for one in mine for rate in one["rates"]["auto"]]),
                "tokens": share("tokens"),
                "proposed": share("proposed"),
                "accepted": share("accepted"),
                "equal": f"{sum(one['equal'] for one in mine)} of {len(mine)}",
            }
        )
    return lines


WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)  #: ids of each row


def steps(args: argparse.Namespace) -> None:
    """Measure and print what a verified step costs by the number of its ids."""
    import random

    from agent_memory import MLXRunner

    runner = MLXRunner.named(args.model, config=Config())
    runner.open()
    draw = random.Random(1)
    ids = [draw.randrange(1000, 10_000) for _ in range(args.context)]
    spent: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for n_rows in (1, 2, 4):
        batch = runner.open_batch()
        for row in range(n_rows):
            kv = batch.empty()
            batch.prefill(kv, ids[:-1])
            batch.insert(row, kv, ids, group=0, sampling=Sampling())
        batch.step(0)
        for number in range(args.rounds):
            for width in WIDTHS[:: 1 if number % 2 else -1]:
                drafts = {row: [draw.randrange(1000, 10_000) for _ in range(width - 1)] for row in range(n_rows)}
                batch.ahead(0)
                start = time.process_time(), time.perf_counter()
                batch.verify(0, drafts)
                stop = time.process_time(), time.perf_counter()
                spent.setdefault((n_rows, width), []).append((stop[0] - start[0], stop[1] - start[1]))
        batch.close()
    medians = {key: [median(each) for each in zip(*found, strict=True)] for key, found in spent.items()}
    print("rows x ids   ids     cost: CPU   for each further id    wall")
    for (n_rows, width), (cpu_s, wall_s) in sorted(medians.items()):
        n_ids, (cpu, wall) = n_rows * width, (cpu_s / medians[1, 1][0], wall_s / medians[1, 1][1])
        print(f"{n_rows:4} x {width:<4} {n_ids:5} {cpu:13.2f} {(cpu - 1) / max(1, n_ids - 1):21.3f} {wall:7.2f}")
    runner.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--only", nargs="*", help="kinds, as the table names them; all")
    parser.add_argument("--json")
    parser.add_argument("--model")
    parser.add_argument("--steps", action="store_true", help="what a verified step costs, alone")
    parser.add_argument("--context", type=int, default=512, help="tokens of each row, for --steps")
    args = parser.parse_args()
    if args.steps:
        steps(args)
        return
    with (
        Memory(args.model, ":memory:", config=Config(lookup="auto")) as auto,
        Memory(args.model, ":memory:", config=Config(lookup="off")) as off,
    ):
        found: list[dict[str, Any]] = []
        for case in [one for one in cases(args.tokens) if not args.only or one.kind in args.only]:
            found.append(measure({"auto": auto, "off": off}, case, args.rounds))
            write_json(args.json, table=table(found), cases=found, rounds=args.rounds, max_tokens=args.tokens)
    lines = table(found)
    heads = ("ratio", "bar", "off tokens/s", "auto tokens/s", "tokens", "proposed", "accepted", "equal")
    print(f"{'kind':18}" + "".join(f"{head:>14}" for head in heads))
    for one in lines:
        shown = (f"{one[head]:.2f}" if isinstance(one[head], float) else str(one[head] or "") for head in heads)
        print(f"{one['kind']:18}" + "".join(f"{text:>14}" for text in shown))


if __name__ == "__main__":
    main()
