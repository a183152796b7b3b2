"""What a bucket that fails costs a request: its first token against that of a Memory without a remote.

    python -m benchmarks.remote_faults [--rounds 5] [--json FILE]

An S3 server on the loopback (``pip install "moto[server]"``) behind a proxy that goes wrong on purpose. One host has
published a prompt. Of each fault, in each round, hosts of their own ask that prompt and two others, as a host without a
remote does: first tokens, in milliseconds, later than that host's. ``first``: of the first request, the worst and the
median of the rounds; ``later``: the worst of those after it. An ``EchoRunner`` answers: it computes nothing, so that
nothing hides the wait. ``at opening``: the fault is there before the Memory is opened.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent_memory import Config, EchoRunner, Memory
from benchmarks.common import median, write_json
from benchmarks.remote import moto
from tests.parts.faultproxy import FaultProxy, fault_proxy

CHUNK = 32
PROMPTS = [f"Text {n}. " + "You are a tutor who answers with what was asked. " * 12 for n in range(3)]
FAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "slow (10 s)": {"delay_s": 10.0},
    "slow (0.2 s)": {"delay_s": 0.2},
    "dead": {"is_dead": True},
    "403": {"status": 403},
    "500": {"status": 500},
    "truncated": {"cut_at": 0.5},
}
MORE: dict[str, Any] = {"remote_key": b"a key for measurements, not for use", "chunk_tokens": CHUNK}


def first_tokens(config: Config, proxy: FaultProxy | None, fault: dict[str, Any], *, is_early: bool) -> list[float]:
    """Seconds to the first tokens of all prompts, asked one after another of a fresh host."""
    with contextlib.ExitStack() as stack:
        if proxy is not None and is_early:
            stack.enter_context(wrong(proxy, fault))
        memory = stack.enter_context(Memory(EchoRunner(), ":memory:", config=config))
        if proxy is not None and not is_early:
            exchange = memory._tiers.exchange
            assert exchange is not None
            exchange.settle(30)  # it has connected
            stack.enter_context(wrong(proxy, fault))
        return [memory.generate(prompt, max_tokens=1).usage.ttft_s for prompt in PROMPTS]


@contextlib.contextmanager
def wrong(proxy: FaultProxy, fault: dict[str, Any]) -> Any:
    """The proxy has a fault while the block runs."""
    before = {name: getattr(proxy.faults, name) for name in fault}
    try:
        for name, value in fault.items():
            setattr(proxy.faults, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(proxy.faults, name, value)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = []
    with moto() as url, tempfile.TemporaryDirectory() as folder:
        port = urlsplit(url.partition("endpoint=")[2].partition("&")[0]).port
        assert port is not None
        with Memory(EchoRunner(), Path(folder) / "a", config=Config(remote=url, **MORE)) as a:
            a.generate(PROMPTS[0], max_tokens=1)
            a.flush()
        with fault_proxy(port) as proxy:
            behind = Config(remote=url.replace(str(port), str(proxy.port)), remote_write=False, **MORE)
            print(f"{'fault':<14} {'':<11} {'first: worst':>13} {'median':>7} {'later: worst':>13}  ms")
            for name, fault in FAULTS.items():
                for is_early in (False, True) if fault else (False,):
                    row = measured(options.rounds, behind, proxy, fault, is_early=is_early)
                    rows.append({"fault": name, "at_opening": is_early, **row})
                    print(
                        f"{name:<14} {'at opening' if is_early else '':<11} {row['first_ms']:>13,.0f} "
                        f"{row['median_ms']:>7,.0f} {row['later_ms']:>13,.0f}",
                        flush=True,
                    )
    write_json(options.json, rows=rows, rounds=options.rounds)


def measured(
    n_rounds: int, behind: Config, proxy: FaultProxy, fault: dict[str, Any], *, is_early: bool
) -> dict[str, float]:
    """How much later first tokens come with a fault, in milliseconds."""
    firsts, others = list[float](), list[float]()
    for _ in range(n_rounds):
        alone = first_tokens(Config(chunk_tokens=CHUNK), None, {}, is_early=False)
        found = first_tokens(behind, proxy, fault, is_early=is_early)
        first, *later = [1e3 * (with_remote - without) for with_remote, without in zip(found, alone, strict=True)]
        firsts.append(first)
        others += later
    return {"first_ms": max(firsts), "median_ms": median(firsts), "later_ms": max(others)}


if __name__ == "__main__":
    main()
