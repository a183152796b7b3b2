"""Hand-over: from a prefilled row to a decoding batch and back, in milliseconds and in whole copies of its KV.

    python benchmarks/handover.py [--json FILE] [--tokens 512 2048 4096]

For each length: the bare step (one forward and argmax on a cache with room), the first token through our adapter,
the first token through mlx-lm's own ``BatchGenerator.insert`` and ``next``, and for the adapter: joining a batch that
decodes, and taking the row out of it. A copy is the peak of extra memory, as a share of the row's KV bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any


def measure(work: Callable[[], Any], kv_bytes: int) -> tuple[float, float]:
    """(milliseconds, whole copies of the KV made on the way)."""
    import mlx.core as mx

    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.perf_counter()
    work()
    took = (time.perf_counter() - start) * 1e3
    return took, max(0, mx.get_peak_memory() - before) / kv_bytes


def run(runner: Any, n_tokens: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Medians over ``repeats`` of every way, interleaved."""
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator

    from agent_memory import Sampling

    model, greedy = runner._model, Sampling()
    ids = [i % 1000 + 500 for i in range(n_tokens)]
    batch = runner.open_batch()
    base = batch.empty()
    for start in range(0, n_tokens - 1, 256):
        batch.prefill(base, ids[start : min(start + 256, n_tokens - 1)])
    kv_bytes = n_tokens * runner.layout.token_bytes
    found: dict[str, list[tuple[float, float]]] = {}

    def note(name: str, work: Callable[[], Any]) -> None:
        found.setdefault(name, []).append(measure(work, kv_bytes))

    for _ in range(repeats):
        kv = base.copy(n_tokens - 1)
        note("bare step", lambda kv=kv: mx.eval(mx.argmax(model(mx.array([ids[-1:]]), cache=kv.caches)[:, -1], -1)))

        kv = base.copy(n_tokens - 1)
        batch.insert(1, kv, ids, group=0, sampling=greedy)
        note("ours: first token", lambda: batch.step(0))
        note("ours: second token, alone", lambda: batch.step(0))
        note("ours: out again, alone", lambda: batch.remove([1]))

        mate, kv = base.copy(n_tokens - 1), base.copy(n_tokens - 1)
        batch.insert(1, mate, ids, group=0, sampling=greedy)
        batch.step(0)
        batch.step(0)
        batch.insert(2, kv, ids, group=0, sampling=greedy)
        note("ours: join a decoding row, its first token", lambda: (batch.step(0), batch.step(0)))
        note("ours: step of two", lambda: batch.step(0))
        note("ours: out of two", lambda: batch.remove([2]))
        batch.remove([1])
        mate, kv = base.copy(n_tokens - 1), base.copy(n_tokens - 1)
        batch.insert(1, mate, ids, group=0, sampling=greedy)
        batch.insert(2, kv, ids, group=0, sampling=greedy)
        note("ours: first tokens of two at once", lambda: batch.step(0))
        batch.remove([1, 2])

        kv = base.copy(n_tokens - 1)
        stock = BatchGenerator(model)
        stock.insert([ids[-1:]], caches=[kv.caches], all_tokens=[list(ids[:-1])])
        note("mlx-lm: first token", lambda stock=stock: _first(stock))
        stock.close()
        del kv, mate, stock
    return {name: tuple(statistics.median(x) for x in zip(*rows, strict=True)) for name, rows in found.items()}


def _first(stock: Any) -> None:
    while not stock.next_generated():
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    parser.add_argument("--model")
    args = parser.parse_args()
    from agent_memory.config import Config
    from agent_memory.runner.mlx import MLXRunner

    runner = MLXRunner.named(args.model, config=Config())
    runner.open()
    print(f"{runner.host}\n{'tokens':>6}  {'what':36} {'ms':>8} {'copies':>7}")
    rows = []
    for n_tokens in args.tokens:
        for name, (ms, copies) in run(runner, n_tokens, args.repeats).items():
            print(f"{n_tokens:6,}  {name:36} {ms:8.1f} {copies:7.2f}")
            rows.append({"tokens": n_tokens, "what": name, "ms": round(ms, 2), "copies": round(copies, 3)})
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"host": runner.host, "repeats": args.repeats, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
