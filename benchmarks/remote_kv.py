"""KV out of a bucket against the store's own, without a model: time, processor time, and first touches of memory.

    python -m benchmarks.remote_kv [--json FILE] [--tokens 2048] [--rounds 9] [--moto]

KV has the starter model's shape (46,080 bytes a token). In each round the same tokens are restored from the store's
files and out of each bucket, once into memory that the process had in use before, and once into fresh memory (Linux
with glibc). ``share`` is the local restore's time as a share of the bucket's: the median of the rounds' ratios, once
for a store that is not encrypted and once for one that is, as the bucket's objects are. Processor time is the process'
own, without an S3 server's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mlx_lm.models.cache import KVCache

from agent_memory import Config
from agent_memory.exchange.chunks import Chunk, Fetched, tag_of
from agent_memory.exchange.fetch import Fetch, Terms
from agent_memory.exchange.fetcher import Fetcher
from agent_memory.exchange.figures import Figures
from agent_memory.exchange.opening import Remote, open_remote
from agent_memory.exchange.source import FetchedSource
from agent_memory.exchange.stored import Stored
from agent_memory.mlxcache.filling import fill
from agent_memory.prefix.chunks import chunk_chain, root_id
from agent_memory.remote.objects import write_object
from agent_memory.sealing.keys import Keys
from agent_memory.store.reading import Match
from agent_memory.store.store import Store
from benchmarks.common import median, write_json
from benchmarks.remote import KEY, moto
from benchmarks.store import IDENTITY, STARTER, opened, save

CHUNK = 256
LOCAL = {"local": None, "local, sealed": Keys(bytes(32))}
TERMS = Terms(identity=IDENTITY, layout=STARTER, codec="exact", needs=None, chunk_tokens=CHUNK)


def publish(remote: Remote, ids: np.ndarray[Any, Any]) -> None:
    """Store the objects of all chunks; every token's bytes are its id, repeated, as in the store."""
    tag, chain = "", chunk_chain(root_id(IDENTITY), ids, CHUNK)
    for number, chunk_id in enumerate(chain):
        own = ids[number * CHUNK : (number + 1) * CHUNK]
        block = own.astype(np.uint8)[None, :, None]
        tensors = [np.ascontiguousarray(np.broadcast_to(block, (s.heads, CHUNK, s.row_bytes))) for s in STARTER.tensors]
        parent, tag = tag, tag_of(tag, tensors)
        chunk = Chunk(
            start=number * CHUNK,
            ids=own,
            made=1,
            exactness="exact",
            codec="exact",
            host="h",
            parent_tag=parent,
            tag=tag,
            tensors=tensors,
        )
        name = remote.names.chunk(chunk_id, "rows", "exact")
        remote.bucket.put_new(name, write_object(name, remote.keys, chunk.header(), chunk.parts()))


def fetched(fetcher: Fetcher, ids: np.ndarray[Any, Any]) -> Fetched:
    """Fetch all chunks, however long it takes."""
    done, found = threading.Event(), list[Fetched | None]()
    fetch = Fetch(ids, 0, 0, 1.0, time.monotonic, patience_s=600.0)
    fetcher.start(fetch, TERMS, None, lambda what: (found.append(what), done.set()))  # type: ignore[func-returns-value]
    done.wait()
    if found[0] is None or found[0].stop != len(ids):
        raise SystemExit("the bucket did not give all")
    return found[0]


def measured(work: Callable[[], Any], *, is_fresh: bool) -> tuple[float, float, int]:
    """Return seconds, processor seconds and first touches of memory."""
    gc.collect()
    if is_fresh:
        ctypes.CDLL(None).malloc_trim(0)  # the allocator gives back what it keeps
    faults, cpu, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time(), time.perf_counter()
    kept = work()
    took = time.perf_counter() - began, time.process_time() - cpu
    del kept
    return *took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


@contextlib.contextmanager
def ways(
    urls: dict[str, str], stores: dict[str, Store], ids: np.ndarray[Any, Any]
) -> Iterator[dict[str, Callable[[], Any]]]:
    """Each way to the KV of the ids."""
    helper = ThreadPoolExecutor(1)
    helper.submit(int).result()
    found: dict[str, Callable[[], Any]] = {}

    def locally(store: Store, match: Match) -> Any:
        with contextlib.closing(store.source(match, len(ids))) as source:
            caches = fill(STARTER, source, [KVCache() for _ in range(30)], helper)
            assert source.check()
        return caches

    def remotely(fetcher: Fetcher) -> Any:
        return fill(
            STARTER, FetchedSource(STARTER, fetched(fetcher, ids), None), [KVCache() for _ in range(30)], helper
        )

    for way, store in stores.items():
        match = store.match(ids)
        found[way] = lambda store=store, match=match: locally(store, match)  # type: ignore[misc]
    with contextlib.ExitStack() as stack:
        for way, url in urls.items():
            remote = open_remote(Config(remote=url, remote_key=KEY))
            assert remote is not None
            stack.callback(remote.bucket.close)
            publish(remote, ids)
            fetcher = Fetcher(remote, Stored(), Figures(), time.monotonic)
            stack.callback(fetcher.close)
            found[way] = lambda fetcher=fetcher: remotely(fetcher)  # type: ignore[misc]
        yield found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--moto", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, float | str]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {"folder": f"file://{folder}/bucket"}
        if options.moto:
            urls["S3 on loopback"] = stack.enter_context(moto())
        ids = np.random.default_rng(0).integers(0, 49_000, options.tokens).astype(np.uint32)
        stores = {
            way: stack.enter_context(contextlib.closing(opened(folder / way, STARTER, key=key)))
            for way, key in LOCAL.items()
        }
        for store in stores.values():
            save(store, STARTER, ids)
            store.flush()
        works = stack.enter_context(ways(urls, stores, ids))
        print(
            f"{'memory':<8} {'way':<16} {'ms':>7} {'processor, ms':>14} {'first touches':>14} "
            f"{'share':>6} {'of processor':>13} {'of sealed':>10} {'of processor':>13}"
        )
        for memory in ("used", "fresh"):
            times: dict[str, list[tuple[float, float, int]]] = {way: [] for way in works}
            for number in range(options.rounds + 1):
                for way in sorted(works, reverse=bool(number % 2)):
                    took = measured(works[way], is_fresh=memory == "fresh")
                    times[way] += [took] if number else []  # the first round connects
            for way, found in times.items():
                wall, cpu, faults = (median([one[i] for one in found]) for i in range(3))
                share, by_cpu, of_sealed, sealed_by_cpu = (
                    median([local[i] / one[i] for local, one in zip(times[base], found, strict=True)])
                    for base in LOCAL
                    for i in (0, 1)
                )
                row = {"ms": 1e3 * wall, "processor_ms": 1e3 * cpu, "first_touches": faults, "share": share}
                row |= {"processor_share": by_cpu, "share_of_sealed": of_sealed, "processor_of_sealed": sealed_by_cpu}
                rows.append({"memory": memory, "way": way, **row})
                print(
                    f"{memory:<8} {way:<16} {1e3 * wall:>7,.0f} {1e3 * cpu:>14,.0f} {faults:>14,.0f} "
                    f"{share:>6.2f} {by_cpu:>13.2f} {of_sealed:>10.2f} {sealed_by_cpu:>13.2f}",
                    flush=True,
                )
    write_json(options.json, rows=rows, rounds=options.rounds, tokens=options.tokens)


if __name__ == "__main__":
    main()
