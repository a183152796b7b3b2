"""KV out of a bucket against KV of the store's own and against computing it.

    python -m benchmarks.remote [--tokens 1024 2048] [--repeats 5] [--json FILE] [--model MODEL] [--moto]

One host computes a text and publishes it. Then, interleaved, the same prompt is asked of: a store that has it on disk
(cold), hosts without a disk that fetch it from a folder (sealed, and with no key), with ``--moto`` from an S3 server on
the loopback (``pip install "moto[server]"``), and a host that has nothing and computes. "KV there" is from the call to
the KV in memory, the wait for the bucket included; MB/s is of the KV's bytes. ``share`` is that rate as a share of the
cold one: the median of the rounds' ratios. Every fetch opens a Memory of its own: nothing is measured before, and
nothing is adopted. On a machine that does other things a fetch may be late, and its KV is computed: then the round is
asked again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from agent_memory import Config, Memory, Usage
from benchmarks.common import median, text_of, write_json

KEY = b"a key for measurements, not for use"


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """The URL of a bucket on an S3 server of the loopback, while the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/team", method="PUT")).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit("moto's server does not answer")
        yield f"s3://team/kv?endpoint=http://127.0.0.1:{port}&region=us-east-1"
    finally:
        server.kill()
        server.wait()


def ready_s(usage: Usage) -> float:
    """Seconds from the call to the KV in memory."""
    return usage.queue_s + usage.restore_s


def asked(open_memory: Callable[[], Memory], text: str, tier: str) -> Usage:
    """The cost of the prompt, whose KV must come from ``tier``."""
    for _ in range(5):
        with open_memory() as memory:
            usage = memory.generate(text, raw=True, max_tokens=1).usage
            counts = memory.stats().remote
        if usage.tier == tier:
            return usage
    raise SystemExit(f"{usage.tier} in place of {tier}: {counts}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1024, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model")
    parser.add_argument("--json")
    parser.add_argument("--moto", action="store_true")
    options = parser.parse_args()
    rows = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        remotes = {
            "folder, sealed": (f"file://{folder}/sealed", KEY),
            "folder, no key": (f"file://{folder}/open", b""),
        }
        if options.moto:
            remotes["S3 on loopback, sealed"] = (stack.enter_context(moto()), KEY)
        configs = {way: Config(remote=url, remote_key=key) for way, (url, key) in remotes.items()}
        print(f"{'tokens':>7} {'way':<24} {'KV there, ms':>12} {'first token, ms':>16} {'MB/s':>7} {'share':>6}")
        for n_tokens in options.tokens:
            found = measured(options, folder, configs, n_tokens)
            rows += found
            for row in found:
                rate, share = (f"{row['mb_s']:,.0f}", f"{row['share']:.2f}") if row["mb_s"] else ("", "")
                print(
                    f"{row['tokens']:>7,} {row['way']:<24} {row['ready_ms']:>12,.0f} {row['ttft_ms']:>16,.0f} "
                    f"{rate:>7} {share:>6}",
                    flush=True,
                )
    write_json(options.json, rows=rows, repeats=options.repeats)


def measured(
    options: argparse.Namespace, folder: Path, configs: dict[str, Config], n_tokens: int
) -> list[dict[str, float | str | None]]:
    """One row for each way to the KV of a text."""
    found: dict[str, list[Usage]] = {"computed": [], "cold": [], **{way: [] for way in configs}}
    store = folder / f"store{n_tokens}"
    with Memory(options.model, store) as local:
        text = text_of(local._runner.tokenizer, n_tokens + 8, seed=n_tokens)
        found["computed"].append(local.generate(text, raw=True, max_tokens=1).usage)
        token_bytes = local.doctor().kv_bytes_per_token
        local.flush()
    for way, config in configs.items():  # the same store publishes to each what it commits: an end of its own
        with Memory(options.model, store, config=config) as local:
            local.generate(f"{text} More, by {way}.", raw=True, max_tokens=1)
            local.flush()
    for _ in range(options.repeats):
        found["cold"].append(asked(lambda: Memory(options.model, store), text, "cold"))
        for way, config in configs.items():
            found[way].append(asked(partial(Memory, options.model, ":memory:", config=config), text, "remote"))
    rows: list[dict[str, float | str | None]] = []
    for way, usages in found.items():
        seconds, n_bytes = median([ready_s(one) for one in usages]), usages[0].cached_tokens * token_bytes
        rate = n_bytes / seconds if n_bytes else 0.0
        shares = [ready_s(cold) / ready_s(one) for cold, one in zip(found["cold"], usages, strict=False)]
        rows.append(
            {
                "tokens": n_tokens,
                "way": way,
                "ready_ms": seconds * 1e3,
                "ttft_ms": median([one.ttft_s for one in usages]) * 1e3,
                "mb_s": rate / 1e6 or None,
                "share": median(shares) if rate else None,
            }
        )
    return rows


if __name__ == "__main__":
    main()
