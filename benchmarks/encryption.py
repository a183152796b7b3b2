"""What a key costs: restores, saves, turns and recall of an encrypted store against those of a plain one, in one run.

    python -m benchmarks.encryption [--json FILE] [--tokens 4096] [--rounds 9] [--turns 30]

KV has the starter model's shape (46,080 bytes a token). The two stores take turns, and each figure is the median of the
rounds' ratios. Restores by one thread, and by two, as on CPUs (``mlxcache/filling.py``).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from agent_memory import Config, EchoRunner, Memory
from agent_memory.sealing.keys import Keys
from agent_memory.store.reading import Match
from agent_memory.store.store import Store
from benchmarks.common import drop_page_cache, median, real_text, timed, write_json
from benchmarks.store import STARTER, buffers, opened, save

KEY = b"a key of the benchmark's own"
KINDS: Mapping[str, bytes | None] = {"plain": None, "sealed": KEY}
BARS = {"restore_ratio": "<= 1.3"}


def restore(store: Store, match: Match, outs: list[memoryview], capacity: int, threads: int) -> None:
    """Fill buffers through the store, verified."""
    source = store.source(match, match.n_tokens)

    def part(first: int) -> None:
        for tensor in range(first, len(outs), threads):
            source.read_into(tensor, outs[tensor], capacity)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))
    assert source.check(), source.damage
    source.close()


def ratios(works: Mapping[str, Callable[[], Any]], rounds: int, before: Callable[[], Any] = lambda: None) -> Any:
    """Return the median ratio of sealed to plain, and the median seconds of both."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in sorted(works, reverse=bool(number % 2)):
            before()
            times[name].append(timed(works[name]))
    found = [b / a for a, b in zip(times["plain"], times["sealed"], strict=True)]
    return median(found), {name: median(values) for name, values in times.items()}


def kv(folder: Path, n_tokens: int, rounds: int) -> dict[str, float]:
    """Restores and saves of one lineage of full segments."""
    rng, capacity = np.random.default_rng(0), n_tokens + 256
    ids = rng.integers(0, 49_000, n_tokens).astype(np.uint32)
    n_bytes = n_tokens * STARTER.token_bytes
    stores = {
        name: opened(folder / name, STARTER, key=None if key is None else Keys(key)) for name, key in KINDS.items()
    }
    found: dict[str, float] = {"megabytes": n_bytes / 1e6}

    def saved(store: Store) -> None:
        save(store, STARTER, rng.integers(0, 49_000, n_tokens // 4).astype(np.uint32))
        store.flush()

    for store in stores.values():
        save(store, STARTER, ids)
        store.flush()
    matches = {name: store.match(ids) for name, store in stores.items()}
    assert all(match.n_tokens == n_tokens for match in matches.values())
    for state in ("recycled", "fresh", "dropped"):
        for threads in (1, 2):
            kept = buffers(STARTER, capacity, is_fresh=False)

            def work(name: str, state: str = state, threads: int = threads, kept: Any = kept) -> None:
                outs = buffers(STARTER, capacity, is_fresh=True) if state == "fresh" else kept
                restore(stores[name], matches[name], outs, capacity, threads)

            before = (lambda: drop_page_cache(folder)) if state == "dropped" else (lambda: None)
            works = {name: (lambda name=name: work(name)) for name in KINDS}  # type: ignore[misc]
            ratio, seconds = ratios(works, rounds if state != "dropped" else max(3, rounds // 3), before)
            found[f"{state}_{threads}_restore_ratio"] = ratio
            for name in KINDS:
                found[f"{state}_{threads}_{name}_gb_s"] = n_bytes / seconds[name] / 1e9
    works = {name: (lambda name=name: saved(stores[name])) for name in KINDS}  # type: ignore[misc]
    ratio, seconds = ratios(works, max(3, rounds // 2))
    found |= {"save_ratio": ratio, **{f"save_{name}_ms": 1e3 * seconds[name] for name in KINDS}}
    for store in stores.values():
        store.close()
    works = {
        name: (lambda name=name, key=key: opened(folder / name, STARTER, key=key and Keys(key)).close())  # type: ignore
        for name, key in KINDS.items()
    }
    ratio, seconds = ratios(works, rounds)
    return found | {"open_ratio": ratio, **{f"open_{name}_ms": 1e3 * seconds[name] for name in KINDS}}


def talk(folder: Path, n_turns: int) -> dict[str, float]:
    """Durable turns of an agent without a model, and recall over what real text says."""
    found: dict[str, float] = {}
    text = real_text()
    memories = {name: Memory(EchoRunner(), folder / name, config=Config(key=key)) for name, key in KINDS.items()}

    def turn(memory: Memory) -> None:
        memory.agent("a").say("one more turn", max_tokens=8)
        memory.flush()

    for memory in memories.values():
        for at in range(0, 400_000, 2000):
            memory.context.remember(text[at : at + 2000])
    questions = [" ".join(text[at : at + 60].split()[1:6]) for at in range(1000, 400_000, 20_000)]
    jobs: Mapping[str, Callable[[Memory], Any]] = {
        "turn": turn,
        "remember": lambda memory: memory.context.remember(text[:1000] + str(memory.context.stats().n_items)),
        "recall_20": lambda memory: [memory.context.recall(question) for question in questions],
    }
    for job, work in jobs.items():
        works = {name: (lambda memory=memory, work=work: work(memory)) for name, memory in memories.items()}  # type: ignore
        ratio, seconds = ratios(works, n_turns)
        found |= {f"{job}_ratio": ratio, **{f"{job}_{name}_ms": 1e3 * seconds[name] for name in KINDS}}
    for memory in memories.values():
        memory.close()
    return found


def main() -> None:
    """Run both parts, print them beside their bars, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turns", type=int, default=30)
    args = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for name, part in (
        ("kv", lambda folder: kv(folder, args.tokens, args.rounds)),
        ("talk", lambda folder: talk(folder, args.turns)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = part(Path(folder))
        for key, value in results[name].items():
            bar = next((bar for ending, bar in BARS.items() if key.endswith(ending)), "")
            print(f"{name:6} {key:32} {value:12,.3f}   {bar}", flush=True)
    write_json(args.json, results=results)


if __name__ == "__main__":
    main()
