"""Context memory on SQLite and on PostgreSQL in the same run: the same hits, and what each call takes.

    python -m benchmarks.recall_stores postgresql://user:password@host:port/database [--items N] [--json F]

The database is one that may be filled: workspaces of new names are made in it. Quality is measured on the development
halves in ``../shared/data`` where they lie there. Calls of the two stores alternate, so both see the machine's load.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from agent_memory import ContextMemory
from benchmarks.common import write_json
from benchmarks.recall import DATA, Conversation, beam, locomo


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--items", type=int, default=6_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"quality": quality(options.url), "speed": speed(options.url, options.items)}
    if options.json:
        write_json(options.json, results)


def quality(url: str) -> dict[str, dict[str, float]]:
    """Return R@10 of the evidence turns for both stores, and how many questions gave the same turns in both."""
    results = {}
    for corpus, found in (("LoCoMo", locomo), ("BEAM 100K", beam)):
        if not DATA.exists():
            print(f"{corpus}: {DATA} is not there, skipped")
            continue
        got: list[tuple[float, float, bool]] = []
        for conversation in found():
            with (
                ContextMemory(redact=None, clock=lambda: 1.8e9) as one,
                ContextMemory(url, workspace=uuid.uuid4().hex, redact=None, clock=lambda: 1.8e9) as two,
            ):
                mine, theirs = (answers(memory, conversation) for memory in (one, two))
            for asked, a, b in zip(conversation.questions, mine, theirs, strict=True):
                share_a, share_b = (len(asked.evidence & set(ids)) / len(asked.evidence) for ids in (a, b))
                got.append((share_a, share_b, a == b))
        results[corpus] = {
            "n": len(got),
            "sqlite_r10": round(statistics.fmean(a for a, _, _ in got), 3),
            "postgres_r10": round(statistics.fmean(b for _, b, _ in got), 3),
            "same_hits": sum(same for *_, same in got),
        }
        print(corpus, results[corpus])
    return results


def answers(memory: ContextMemory, conversation: Conversation) -> list[list[Any]]:
    """Return the turns of the ten best hits for each question."""
    owners: dict[int, Any] = {}
    for turn in conversation.turns:
        if turn.text.strip():
            message = {"role": turn.role, "content": turn.text, "name": turn.speaker}
            report = memory.remember([message], source=turn.session, at=turn.at)
            owners |= dict.fromkeys(report.ids, turn.id)
    return [[owners[hit.item.id] for hit in memory.recall(asked.question, k=10)] for asked in conversation.questions]


def speed(url: str, n_items: int) -> dict[str, Any]:
    """Return milliseconds of ``remember`` (1 KB) and ``recall`` over ``n_items`` passages, the stores in turn."""
    chance = random.Random(5)
    words = ["".join(chance.choices("aeioubcdfghklmnprstvw", k=chance.randint(3, 9))) for _ in range(50_000)]
    cumulative = [0.0]
    for rank in range(len(words)):
        cumulative.append(cumulative[-1] + 1 / (rank + 1))
    cumulative = cumulative[1:]
    times: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ContextMemory(Path(folder) / "recall.sqlite", redact=None) as one,
        ContextMemory(url, workspace=uuid.uuid4().hex, redact=None) as two,
    ):
        stores = {"sqlite": one, "postgres": two}
        for start in range(0, n_items, 500):
            turns = [" ".join(chance.choices(words, cum_weights=cumulative, k=25)) for _ in range(500)]
            messages = [{"role": "user", "content": f"{text} n{start + n}"} for n, text in enumerate(turns)]
            for memory in stores.values():
                memory.remember(messages, source=f"talk {start}", at=1.7e9 + start)
        while not one.maintain(1_000).is_done:
            pass
        for n in range(300):
            some = chance.choices(words, cum_weights=cumulative, k=3) + chance.choices(words[200:20_000], k=3)
            question = " ".join(some)
            text = f"{n} " + " ".join(chance.choices(words, cum_weights=cumulative, k=190))
            for name, memory in stores.items():
                start_s = time.perf_counter()
                memory.recall(question)
                times.setdefault(f"{name}_recall", []).append((time.perf_counter() - start_s) * 1e3)
                if n % 2:
                    start_s = time.perf_counter()
                    memory.remember(text[:1024], kind="note")
                    times.setdefault(f"{name}_remember", []).append((time.perf_counter() - start_s) * 1e3)
        result: dict[str, Any] = {"items": n_items, "load": round(os.getloadavg()[0], 1)}
        for name, values in times.items():
            cuts = statistics.quantiles(values, n=20)
            result |= {f"{name}_p50_ms": round(cuts[9], 2), f"{name}_p95_ms": round(cuts[18], 2)}
        print("speed", result)
    return result


if __name__ == "__main__":
    main()
