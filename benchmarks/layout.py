"""The store's layout at work, without a model: bytes written a turn, files, restore time, look-ups.

    python -m benchmarks.layout [--json FILE] [--layers N]

Agents talk in turns over a shared prefix, one is forked, one is deleted; the KV has a real model's shape.
The first part compares reading one 2,048-token segment through the store with a plain ``preadv`` + xxh3.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.store.reading import Match
from agent_memory.store.store import Store
from benchmarks.store import save

IDENTITY = "ab" * 32


def layout_of(layers: int) -> Layout:
    """``layers`` x (k, v) x 3 heads x 64 in float32: at 30 layers, 46,080 bytes a token (SmolLM2-135M)."""
    return Layout(
        tuple(TensorSpec(f"{i:03d}.{k}", 3, 64, "F32") for i in range(layers) for k in "kv"), ("full",) * layers
    )


def restore(store: Store, layout: Layout, match: Match, outs: list[memoryview], capacity: int) -> float:
    """Seconds to fill buffers that exist."""
    began = time.perf_counter()
    source = store.source(match, match.n_tokens)
    for tensor in range(len(layout.tensors)):
        source.read_into(tensor, outs[tensor], capacity)
    assert source.check(), source.damage
    source.close()
    return time.perf_counter() - began


def buffers(layout: Layout, capacity: int) -> list[memoryview]:
    """One writable buffer per tensor, touched."""
    return [memoryview(np.ones(t.heads * capacity * t.row_bytes, np.uint8)) for t in layout.tensors]  # type: ignore[arg-type]


def conversation(folder: Path, layout: Layout, rng: np.random.Generator) -> dict[str, Any]:
    """20 turns x 5 agents over one prefix of 512 tokens, then a fork, then a deletion."""
    store = Store(folder, disk_bytes=64 << 30, chunk_tokens=256)
    store.attach(IDENTITY, layout, "h", {})
    prefix = rng.integers(0, 49_000, 512).astype(np.uint32)
    agents = [store.create_agent("", f"a{i}", system=None, tools="[]").agent_id for i in range(5)]
    logs = [prefix for _ in agents]
    n_new, written, ratios = len(prefix), 0, []
    for _ in range(20):
        for i, agent in enumerate(agents):
            new = rng.integers(0, 49_000, int(rng.integers(20, 201))).astype(np.uint32)
            logs[i] = np.concatenate([logs[i], new])
            n_new += len(new)
            save(store, layout, logs[i], agent)
        store.flush()
        written = store.stats()["bytes_written"]
        ratios.append(written / (n_new * layout.token_bytes))
    stored = store.stats()
    capacity = max(map(len, logs))
    outs = buffers(layout, capacity)
    times = [restore(store, layout, store.match(log), outs, capacity) for log in logs for _ in range(3)]
    n_files = len(list(folder.glob("kv/*/*")))
    fork = np.concatenate([logs[0][:1000], rng.integers(0, 49_000, 50).astype(np.uint32)])
    fork_agent = store.create_agent("", "fork", system=None, tools="[]").agent_id
    save(store, layout, fork, fork_agent)
    store.flush()
    fork_bytes = store.stats()["bytes_written"] - written
    began = time.perf_counter()
    store.delete_agent(agents[0])
    delete_s = time.perf_counter() - began
    assert store.match(fork).n_tokens == len(fork)
    after = store.stats()
    store.close()
    return {
        "tokens": n_new,
        "bytes_written_per_new_byte": round(ratios[-1], 3),
        "worst_after_any_turn": round(max(ratios), 3),
        "disk_per_new_byte": round(stored["disk_bytes"] / (n_new * layout.token_bytes), 3),
        "files": n_files,
        "restore_ms_median": round(1e3 * statistics.median(times), 2),
        "restore_tokens_mean": round(float(np.mean([len(log) for log in logs]))),
        "fork_mb_written": round(fork_bytes / 1e6, 2),
        "delete_ms": round(1e3 * delete_s, 1),
        "disk_mb_before_and_after_delete": [round(s["disk_bytes"] / 1e6, 1) for s in (stored, after)],
    }


def one_segment(folder: Path, layout: Layout, rng: np.random.Generator, rounds: int = 15) -> dict[str, Any]:
    """A source of one 2,048-token segment against preadv + xxh3 of the same bytes, interleaved, page cache warm."""
    n, capacity = 2048, 2304
    store = Store(folder, disk_bytes=64 << 30, chunk_tokens=256)
    store.attach(IDENTITY, layout, "h", {})
    ids = rng.integers(0, 49_000, n).astype(np.uint32)
    save(store, layout, ids)
    store.flush()
    file = next(folder.glob("kv/*/*.safetensors"))
    outs = buffers(layout, capacity)
    ours, plain = [], []
    match = store.match(ids)
    for _ in range(rounds):
        ours.append(restore(store, layout, match, outs, capacity))
        began = time.perf_counter()
        fd = os.open(file, os.O_RDONLY)
        at = 0
        for spec, out in zip(layout.tensors, outs, strict=True):
            run = out[: spec.token_bytes * n]
            os.preadv(fd, [run], at)
            digest = xxhash.xxh3_64()
            digest.update(run)
            digest.digest()
            at += len(run)
        os.close(fd)
        plain.append(time.perf_counter() - began)
    store.close()
    return {
        "megabytes": round(n * layout.token_bytes / 1e6, 1),
        "source_ms": round(1e3 * statistics.median(ours), 2),
        "preadv_xxh3_ms": round(1e3 * statistics.median(plain), 2),
        "ratio": round(statistics.median(a / b for a, b in zip(ours, plain, strict=True)), 3),
    }


def many_agents(folder: Path, rng: np.random.Generator, n_agents: int = 10_000) -> dict[str, Any]:
    """Opening and look-ups with ``n_agents`` x 8 chunks (tiny KV), and the index's memory."""
    layout = Layout((TensorSpec("000.k", 1, 1, "U8"),), ("full",))
    store = Store(folder, disk_bytes=64 << 30, chunk_tokens=256)
    store.attach(IDENTITY, layout, "h", {})
    head = rng.integers(0, 49_000, 6).astype(np.uint32)  # a chat template's first ids
    long = rng.integers(0, 49_000, 32_768).astype(np.uint32)
    save(store, layout, long)
    for _ in range(n_agents):
        ids = rng.integers(0, 49_000, 2048).astype(np.uint32)
        ids[: len(head)] = head
        save(store, layout, ids)
    store.close()
    began = time.perf_counter()
    store = Store(folder, disk_bytes=64 << 30, chunk_tokens=256)
    store.attach(IDENTITY, layout, "h", {})
    open_s = time.perf_counter() - began
    times = []
    probe = rng.integers(0, 49_000, 1000).astype(np.uint32)
    probe[: len(head)] = head
    began = time.perf_counter()
    assert store.match(probe).n_tokens == len(head)
    first_partial_s = time.perf_counter() - began
    for ids in (long, probe):
        for _ in range(9):
            began = time.perf_counter()
            store.match(ids)
            times.append(time.perf_counter() - began)
    store.close()
    tracemalloc.start()
    store = Store(folder, disk_bytes=64 << 30, chunk_tokens=256)
    store.attach(IDENTITY, layout, "h", {})
    held = tracemalloc.get_traced_memory()[0]
    chunks = store.stats()["chunks"]
    tracemalloc.stop()
    store.close()
    return {
        "chunks": chunks,
        "open_s": round(open_s, 3),
        "match_32k_ms": round(1e3 * statistics.median(times[:9]), 2),
        "match_partial_among_all_ms": round(1e3 * statistics.median(times[9:]), 2),
        "first_partial_ms": round(1e3 * first_partial_s, 1),
        "bytes_per_chunk": round(held / chunks),
    }


def main() -> None:
    """Run all parts, print them, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--layers", type=int, default=30, help="30: 46,080 bytes a token")
    parser.add_argument("--agents", type=int, default=10_000, help="for the look-up part; 0 leaves it out")
    args = parser.parse_args()
    layout, rng = layout_of(args.layers), np.random.default_rng(0)
    results: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine(), "seed": 0}
    results["token_bytes"] = layout.token_bytes
    with tempfile.TemporaryDirectory() as folder:
        results["one_segment"] = one_segment(Path(folder) / "one", layout, rng)
    with tempfile.TemporaryDirectory() as folder:
        results["conversation"] = conversation(Path(folder) / "talk", layout_of(max(1, args.layers // 5)), rng)
    if args.agents:
        with tempfile.TemporaryDirectory() as folder:
            results["many_agents"] = many_agents(Path(folder) / "many", rng, args.agents)
    for part, figures in results.items():
        rows = figures.items() if isinstance(figures, dict) else [("", figures)]
        for name, value in rows:
            print(f"{part + ' ' + name:45} {value}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
