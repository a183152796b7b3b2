"""The store alone, without a model: opening and look-ups among many agents, bytes of agents that share, restore rate.

    python -m benchmarks.store [--json FILE] [--agents 10000] [--rounds 15]

KV has the starter model's shape (46,080 bytes a token) where bytes are moved, and one byte a token where only the
number of pieces matters. Restores are interleaved with a plain read of the same bytes into memory in the same state.
Stores that are only built to be measured are built without waiting for the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sqlite3
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from agent_memory.kvcache.layout import Layout, TensorSpec
from agent_memory.kvfile import checked
from agent_memory.log.files import Files
from agent_memory.sealing.keys import Keys
from agent_memory.store.reading import Match
from agent_memory.store.store import Store
from benchmarks.common import drop_page_cache, median, timed, write_json

IDENTITY = "ab" * 32
STARTER = Layout(tuple(TensorSpec(f"{i:03d}.{k}", 3, 64, "F32") for i in range(30) for k in "kv"), ("full",) * 30)
SMALL = Layout(tuple(TensorSpec(f"{i:03d}.{k}", 3, 64, "F32") for i in range(3) for k in "kv"), ("full",) * 3)
FLAT = Layout((TensorSpec("000.k", 1, 1, "U8"),), ("full",))
BARS = {
    "open_s": "<= 0.5",
    "look_up_32k_ms": "<= 5",
    "bytes_a_chunk": "<= 512",
    "written_per_new_byte": "<= 2 + 64 KiB a turn",
    "disk_over_shared_and_own": "<= 1.02",
    "restore_over_plain_read": ">= 0.7",
    "verification_share": "<= 0.2",
}


class Unsynced(Files):
    """Does not wait for the disk."""

    def sync(self, fd: int) -> None:
        """Nothing."""

    def sync_folder(self, path: Path) -> None:
        """Nothing."""

    def commit(self, db: sqlite3.Connection) -> None:
        """Without a sync, from the second one on."""
        super().commit(db)
        db.execute("PRAGMA synchronous=OFF")


def opened(folder: Path, layout: Layout, files: Files | None = None, key: Keys | None = None) -> Store:
    """A store with an identity attached."""
    store = Store(folder, disk_bytes=64 << 30, chunk_tokens=256, files=files, key=key)
    store.attach(IDENTITY, layout, "h", {})
    return store


def save(store: Store, layout: Layout, ids: np.ndarray[Any, Any], agent_id: int | None = None) -> None:
    """Save one lineage; every token's bytes are its id, repeated."""
    found = store.begin_save(ids, len(ids), np.ones(len(ids), np.uint8), "exact", agent_id=agent_id)
    for number, part in enumerate(found.parts):
        tokens = ids[part.start : part.stop].astype(np.uint8)
        for tensor, spec in enumerate(layout.tensors):
            block = np.broadcast_to(tokens[None, :, None], (spec.heads, len(tokens), spec.row_bytes))
            found.put(number, tensor, np.ascontiguousarray(block))
    found.finish()


def many_agents(folder: Path, rng: np.random.Generator, n_agents: int) -> dict[str, float]:
    """Opening, look-ups and memory with ``n_agents`` lineages of eight chunks."""
    store = opened(folder, FLAT, Unsynced())
    long = rng.integers(0, 49_000, 32_768).astype(np.uint32)
    save(store, FLAT, long)
    for _ in range(n_agents):
        ids = rng.integers(0, 49_000, 2048).astype(np.uint32)
        ids[:6] = long[:6]  # a chat template's first ids
        save(store, FLAT, ids)
    store.close()
    opening = []
    for _ in range(5):
        del store
        gc.collect()  # a new process has no old store to look through
        began = time.perf_counter()
        store = opened(folder, FLAT)
        opening.append(time.perf_counter() - began)
        look_ups = [timed(lambda store=store: store.match(long)) for _ in range(9)]
        assert store.match(long).n_tokens == len(long)
        store.close()
    tracemalloc.start()
    store = opened(folder, FLAT)
    held, chunks = tracemalloc.get_traced_memory()[0], store.stats()["chunks"]
    tracemalloc.stop()
    store.close()
    return {
        "chunks": chunks,
        "open_s": median(opening),
        "look_up_32k_ms": 1e3 * median(look_ups),
        "bytes_a_chunk": held / chunks,
    }


def shared(folder: Path, rng: np.random.Generator, n_agents: int = 50, n_turns: int = 20) -> dict[str, float]:
    """Agents on one prefix of 2,048 tokens, each with turns of 20 to 200 tokens: bytes written, and held."""
    store = opened(folder, SMALL, Unsynced())
    empty = store.stats()["disk_bytes"]
    prefix = rng.integers(0, 49_000, 2048).astype(np.uint32)
    logs = [prefix] * n_agents
    agents = [store.create_agent("", f"agent {i}", system=None, tools="[]").agent_id for i in range(n_agents)]
    n_new, worst = len(prefix), 0.0
    for turn in range(n_turns):
        for i, agent in enumerate(agents):
            new = rng.integers(0, 49_000, int(rng.integers(20, 201))).astype(np.uint32)
            logs[i] = np.concatenate([logs[i], new])
            n_new += len(new)
            save(store, SMALL, logs[i], agent)
        store.flush()
        beyond = store.stats()["bytes_written"] - (turn + 1) * n_agents * 65_536
        worst = max(worst, beyond / (n_new * SMALL.token_bytes))
    written, held = store.stats()["bytes_written"], store.stats()["disk_bytes"]
    store.compact()
    store.flush()
    after = store.stats()
    store.close()
    own = n_new * SMALL.token_bytes
    return {
        "agents": n_agents,
        "new_mb": own / 1e6,
        "written_per_new_byte": written / own,
        "written_beyond_64k_a_turn": worst,
        "disk_over_shared_and_own": (held - empty) / own,
        "segments": after["segments"],
        "disk_after_compaction": (after["disk_bytes"] - empty) / own,
    }


def buffers(layout: Layout, capacity: int, *, is_fresh: bool) -> list[memoryview]:
    """One writable buffer for each tensor; ``is_fresh``: its pages were never touched."""
    make = np.empty if is_fresh else np.ones
    return [memoryview(make(t.heads * capacity * t.row_bytes, np.uint8)) for t in layout.tensors]  # type: ignore


def restore(store: Store, match: Match, outs: Sequence[memoryview], capacity: int) -> None:
    """Fill buffers through the store, verified."""
    source = store.source(match, match.n_tokens)
    for tensor in range(len(outs)):
        source.read_into(tensor, outs[tensor], capacity)
    assert source.check(), source.damage
    source.close()


class Unchecked:
    """Takes the place of a digest: costs nothing, and finds everything right."""

    class Sum(str):
        """Equal to every checksum."""

        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

        def __ne__(self, other: object) -> bool:
            return False

    def update(self, data: object) -> None:
        """Nothing."""

    def hexdigest(self) -> str:
        """The checksum that was expected."""
        return self.Sum()


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Segments are read without their checksums."""
    real = checked.xxhash
    checked.xxhash = SimpleNamespace(xxh3_64=Unchecked)  # type: ignore[assignment]
    try:
        yield
    finally:
        checked.xxhash = real


def plain(files: Sequence[Path], outs: Sequence[memoryview]) -> None:
    """Read the same bytes into the same buffers, one after another, unverified."""
    for number, file in enumerate(files):
        fd = os.open(file, os.O_RDONLY)
        at, share = 0, file.stat().st_size // len(outs)
        for out in outs:
            start = number * share
            at += os.preadv(fd, [out[start : start + share]], at)
        os.close(fd)


def restores(folder: Path, rng: np.random.Generator, rounds: int) -> dict[str, float]:
    """A lineage of 4,096 tokens in full segments: the store against a plain read, in every state of memory and disk."""
    n, capacity = 4096, 4352
    store = opened(folder, STARTER)
    ids = rng.integers(0, 49_000, n).astype(np.uint32)
    save(store, STARTER, ids)
    store.flush()
    files, match = sorted(folder.glob("kv/*/*.safetensors")), store.match(ids)
    n_bytes = n * STARTER.token_bytes
    found: dict[str, float] = {"megabytes": n_bytes / 1e6}
    for state in ("recycled", "fresh", "page cache dropped"):
        times: dict[str, list[float]] = {"ours": [], "unchecked": [], "plain": []}
        outs = buffers(STARTER, capacity, is_fresh=False)
        for number in range(rounds if state != "page cache dropped" else 3):
            for work in sorted(times, reverse=bool(number % 2)):
                if state == "page cache dropped" and not drop_page_cache(folder):
                    continue
                if state == "fresh":
                    outs = buffers(STARTER, capacity, is_fresh=True)
                if work == "plain":
                    times[work].append(timed(lambda outs=outs: plain(files, outs)))
                    continue
                with unchecked() if work == "unchecked" else contextlib.nullcontext():
                    times[work].append(timed(lambda outs=outs: restore(store, match, outs, capacity)))
        if ours := times["ours"]:
            name = state.replace(" ", "_")
            found[f"{name}_ms"] = 1e3 * median(ours)
            found[f"{name}_gb_s"] = n_bytes / median(ours) / 1e9
            ratios = [b / a for a, b in zip(ours, times["plain"], strict=True)]
            found[f"{name}_restore_over_plain_read"] = median(ratios)
            shares = [1 - b / a for a, b in zip(ours, times["unchecked"], strict=True)]
            found[f"{name}_verification_share"] = median(shares)
    store.close()
    return found


def main() -> None:
    """Run all parts, print them beside their bars, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    results: dict[str, dict[str, float]] = {}
    for name, part in (
        ("restores", lambda folder: restores(folder, rng, args.rounds)),
        ("shared", lambda folder: shared(folder, rng)),
        ("many_agents", lambda folder: many_agents(folder, rng, args.agents)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = part(Path(folder) / "store")
        for key, value in results[name].items():
            bar = next((bar for ending, bar in BARS.items() if key.endswith(ending)), "")
            print(f"{name:12} {key:40} {value:12,.3f}   {bar}", flush=True)
    write_json(args.json, seed=0, load=os.getloadavg()[0], results=results)


if __name__ == "__main__":
    main()
