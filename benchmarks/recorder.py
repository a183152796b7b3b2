"""What watching costs: the recorder on against off, on a model that costs nothing (EchoRunner).

    python benchmarks/recorder.py [--json results.json]

Both Memories take turns in the same process; the figures are medians of the differences, in CPU seconds of the process:
a busy machine does not change those. The bars: 20 microseconds a token, 1 millisecond a request.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from agent_memory import Config, EchoRunner, Memory
from benchmarks.common import median, write_json

PER_TOKEN_US, PER_REQUEST_MS = 20.0, 1.0


def seconds(memory: Memory, n_requests: int, n_tokens: int) -> float:
    """CPU seconds a request, of some that generate ``n_tokens`` each."""
    began = time.process_time()
    for number in range(n_requests):
        memory.generate(f"number {number}", max_tokens=n_tokens)
    return (time.process_time() - began) / n_requests


def differences(plain: Memory, recorded: Memory, rounds: int, n_requests: int, n_tokens: int) -> tuple[float, float]:
    """(seconds a request without the recorder, seconds more with it): medians of interleaved rounds."""
    without, more = [], []
    for number in range(rounds):
        first, second = (plain, recorded) if number % 2 else (recorded, plain)
        times = {id(one): seconds(one, n_requests, n_tokens) for one in (first, second)}
        without.append(times[id(plain)])
        more.append(times[id(recorded)] - times[id(plain)])
    return median(without), median(more)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recorder.jsonl"
        runner = EchoRunner(reply="x" * 5_000), EchoRunner(reply="x" * 5_000)
        with (
            Memory(runner[0], ":memory:") as plain,
            Memory(runner[1], ":memory:", config=Config(recorder=path)) as recorded,
        ):
            seconds(plain, 5, 50), seconds(recorded, 5, 50)
            short_s, per_request_s = differences(plain, recorded, options.rounds, 40, 1)
            long_s, per_reply_s = differences(plain, recorded, options.rounds, 3, 1_000)
        bytes_a_request = path.stat().st_size / (options.rounds * 43 + 5)
    per_token_s = (per_reply_s - per_request_s) / 1_000
    print("what                 without      recorder adds   bar")
    print(f"a request, 1 token   {short_s * 1e3:8.3f} ms  {per_request_s * 1e3:8.3f} ms   {PER_REQUEST_MS} ms")
    print(f"a token, of 1,000    {long_s * 1e3:8.3f} us  {per_token_s * 1e6:8.3f} us   {PER_TOKEN_US} us")
    print(f"bytes a request      {bytes_a_request:8.0f}")
    write_json(
        options.json,
        per_request_ms=per_request_s * 1e3,
        per_token_us=per_token_s * 1e6,
        request_ms=short_s * 1e3,
        token_us=long_s * 1e3,
        bytes_a_request=bytes_a_request,
    )


if __name__ == "__main__":
    main()
