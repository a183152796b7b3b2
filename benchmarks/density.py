"""How many agents one warm budget holds, by codec, and what a copy into it and back costs.

    python benchmarks/density.py [--tokens 2048] [--agents 10] [--json FILE] [--model MODEL]

One real text is computed once. Its KV then stands for agents that share nothing, each with ids of its own, and is
copied into the warm tier until the first has to leave, and back each time. The budget is that of ``--agents`` agents
held exactly. Bytes are those that ``Stats.warm_bytes`` counts: rows, ids and the index.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import numpy as np
from common import median, text_of, write_json

from agent_memory import Memory, MLXRunner
from agent_memory.config import CODECS, Codec, Config
from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.provenance import Provenance
from agent_memory.prefix.resume import Held
from agent_memory.prefix.worth import Costs
from agent_memory.protocols import KV
from agent_memory.store.reading import NOTHING
from agent_memory.tiers import lookup
from agent_memory.tiers.sources import WarmSource
from agent_memory.tiers.warm import Warm

CHUNK = 256


def copied(warm: Warm, layout: Layout, kv: KV, ids: np.ndarray[Any, Any], agent: int) -> float:
    """Seconds to copy an agent into warm."""
    began = time.perf_counter()
    lineage = Provenance(np.ones(len(ids), np.uint8), "exact")
    copy = warm.begin(ids, lineage, Held(kv.held_from, kv.snapshots), agent_id=agent)
    assert copy is not None, "the budget holds no agent"
    for number, part in enumerate(copy.parts):
        for tensor in range(len(layout.tensors)):
            copy.put(number, tensor, kv.read(tensor, part.start, part.stop, part.codec))
    for number, side in enumerate(copy.sides):
        tensors = range(len(layout.tensors), len(layout.tensors) + len(layout.windows))
        rows = [kv.read(t, side.start, side.stop, side.codec) for t in tensors if side.start < side.stop]
        copy.put_side(number, rows, kv.read_state(side.stop) if side.has_state else None)
    copy.finish()
    return time.perf_counter() - began


def held(runner: MLXRunner, kv: KV, codec: Codec, budget_bytes: int) -> dict[str, Any]:
    """Agents that one budget holds, whole, before the first has to leave."""
    layout, rng = runner.layout, np.random.default_rng(0)
    warm = Warm(budget_bytes, codec=codec, costs=Costs(), pins=frozenset(), is_stored=lambda _: False)
    warm.attach("ab" * 32, layout, "here", CHUNK)
    batch = runner.open_batch(CHUNK)
    copy_s, restore_s, sizes = list[float](), list[float](), list[int]()
    while not warm.n_evicted:
        ids = rng.integers(0, 49_000, kv.n_tokens).astype(np.uint32)
        copy_s.append(copied(warm, layout, kv, ids, len(copy_s)))
        sizes.append(warm.n_bytes)
        began = time.perf_counter()
        match = lookup.find(warm, NOTHING, ids)
        assert match.n_tokens == kv.n_tokens
        batch.restore(WarmSource(warm, match, match.n_tokens, None))
        restore_s.append(time.perf_counter() - began)
    batch.close()
    return {
        "agents": len(sizes) - 1,
        "bytes_per_agent": sizes[0],
        "bits_per_element": 8 * sizes[0] / (kv.n_tokens * sum(t.heads * t.dim for t in layout.tensors)),
        "copy_s": median(copy_s),
        "restore_s": median(restore_s),
    }


def computed(memory: Memory, text: str) -> KV:
    """The live KV of a text, as the hot tier holds it."""
    memory.generate(text, raw=True, max_tokens=1)
    engine = memory._engine
    kv: KV = engine.call(lambda: max(engine._loop.hot, key=lambda one: len(one.ids)).kv)
    return kv


def report(rows: dict[str, dict[str, Any]]) -> None:
    """One line for each codec."""
    exact = rows["exact"]
    print(f"{'codec':8}{'agents':>8}{'ratio':>8}{'MB each':>10}{'bits':>8}{'copy ms':>10}{'restore ms':>12}")
    for codec, row in rows.items():
        ratio = row["agents"] / exact["agents"]
        print(
            f"{codec:8}{row['agents']:>8}{ratio:>8.2f}{row['bytes_per_agent'] / 1e6:>10.1f}"
            f"{row['bits_per_element']:>8.2f}{row['copy_s'] * 1e3:>10.0f}{row['restore_s'] * 1e3:>12.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--agents", type=int, default=10, help="that the budget holds exactly")
    parser.add_argument("--json")
    parser.add_argument("--model")
    args = parser.parse_args()
    runner = MLXRunner.named(args.model, config=Config())
    with Memory(runner, ":memory:") as memory:
        kv = computed(memory, text_of(runner.tokenizer, args.tokens, seed=1))
        call = memory._engine.call
        size = call(lambda: held(runner, kv, "exact", kv.nbytes + (1 << 20)))["bytes_per_agent"]
        budget_bytes = args.agents * size
        rows = {codec: call(partial(held, runner, kv, codec, budget_bytes)) for codec in CODECS}
    report(rows)
    write_json(args.json, tokens=args.tokens, budget_bytes=budget_bytes, codecs=rows)


if __name__ == "__main__":
    main()
