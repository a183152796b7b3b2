"""A long prompt joins agents that decode: how long they wait for a token, and how long it waits for its first.

    python benchmarks/interleave.py [--decoding 1 4] [--prompt 4000] [--context 512] [--repeats 3] [--quick]
                                    [--json FILE] [--png FILE] [--model MODEL]

Each decoding agent is read by a thread of its own, which notes when each token came. The gaps counted are those that
end after the long prompt was given and begin before its first token. Beside them, from the same minutes and through
the same seam: the longest prefill step plus two median decode steps of that batch, which is the bar, and the same
prompt's time to first token with nobody else there. Nothing is stored, every prompt is computed; ratios are medians of
the repetitions' ratios.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common import median, text_of, write_json
from seam import Span, WatchedRunner, host_model

from agent_memory import Config, Generation, Memory

#: More than any run needs: the decoding agents are cancelled when the long prompt has its first token.
ENDLESS = 2_000


class Reader:
    """A decoding agent and the thread that reads it."""

    def __init__(self, handle: Generation) -> None:
        self.handle, self.times = handle, list[float]()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for _ in self.handle:
            self.times.append(time.perf_counter())

    def gaps(self, start: float, stop: float) -> list[tuple[float, float]]:
        """(when it ended, seconds) of each gap that lies in ``[start, stop)``, in part at least."""
        return [(b, b - a) for a, b in zip(self.times, self.times[1:], strict=False) if b > start and a < stop]


@contextmanager
def decoding(memory: Memory, texts: list[str]) -> Iterator[list[Reader]]:
    """Agents that decode without end while the block runs."""
    readers = [Reader(memory.stream(text, raw=True, max_tokens=ENDLESS)) for text in texts]
    try:
        while any(len(reader.times) < 8 for reader in readers):
            time.sleep(0.01)
        yield readers
        time.sleep(0.2)  # the token that ends the last gap
    finally:
        for reader in readers:
            reader.handle.cancel()
        for reader in readers:
            reader.thread.join()


def first_token(memory: Memory, text: str) -> tuple[float, float, float]:
    """(given, first token, TTFT) of a prompt of which nothing is stored."""
    start = time.perf_counter()
    usage = memory.generate(text, raw=True, max_tokens=1).usage
    assert usage.cached_tokens < 64, usage
    return start, start + usage.ttft_s, usage.ttft_s


def steps(spans: list[Span], start: float, stop: float, call: str) -> list[float]:
    """Seconds of each call of one kind that began in ``[start, stop)``."""
    return [span.seconds for span in spans if span.call == call and start <= span.start < stop]


def joined(memory: Memory, runner: WatchedRunner, texts: list[str], prompt: str) -> dict[str, Any]:
    """One prompt joins ``len(texts)`` decoding agents."""
    memory.evict()
    mark = len(runner.spans)
    with decoding(memory, texts) as readers:
        quiet = time.perf_counter()
        time.sleep(2.0)
        start, stop, ttft = first_token(memory, prompt)
    spans = runner.since(mark)
    gaps = [gap for reader in readers for gap in reader.gaps(start, stop)]
    before = [seconds for reader in readers for _, seconds in reader.gaps(quiet, start)]
    prefill, step = steps(spans, start, stop, "prefill"), median(steps(spans, quiet, stop, "step"))
    longest = max(seconds for _, seconds in gaps)
    assert all(reader.times[-1] > stop - longest for reader in readers), "an agent ended before the prompt had joined"
    return {
        "ttft_s": ttft,
        "longest_gap_s": longest,
        "median_gap_s": median([seconds for _, seconds in gaps]),
        "gap_before_s": median(before),
        "prefill_step_s": max(prefill),
        "decode_step_s": step,
        "bar_s": max(prefill) + 2 * step,
        "gap / bar": longest / (max(prefill) + 2 * step),
        "gaps": [(end - start, seconds) for end, seconds in sorted(gaps)],
    }


def measure(args: Any) -> dict[int, list[dict[str, Any]]]:
    """By number of decoding agents: what each repetition gave, the prompt alone beside it."""
    runner = WatchedRunner(*host_model(args.model))
    config = Config(max_batch=max(8, *args.decoding), hot_bytes=8 << 30, lookup="off")  # the bar is of single steps
    with Memory(runner, ":memory:", config=config) as memory:
        texts = [text_of(runner.tokenizer, args.context, seed=number) for number in range(max(args.decoding))]
        prompt = text_of(runner.tokenizer, args.prompt, seed=99)
        memory.generate("Warm up the weights.", max_tokens=4)
        found: dict[int, list[dict[str, Any]]] = {n: [] for n in args.decoding}
        for number in range(args.repeats):
            for n in args.decoding:
                memory.evict()
                alone = first_token(memory, prompt)[2]
                row = joined(memory, runner, texts[:n], prompt)
                found[n].append({**row, "ttft_alone_s": alone, "ttft / alone": row["ttft_s"] / alone})
                print(f"repetition {number + 1}: {n} decoding done", file=sys.stderr, flush=True)
    return found


def report(found: dict[int, list[dict[str, Any]]]) -> dict[int, dict[str, float]]:
    """One table of medians."""
    rows = {n: {k: median([r[k] for r in runs]) for k in runs[0] if k != "gaps"} for n, runs in found.items()}
    names = next(iter(rows.values()))
    print(f"\n{'decoding agents:':20}" + "".join(f"{n:>10}" for n in rows))
    for name in names:
        print(f"{name:20}" + "".join(f"{row[name]:>10.3f}" for row in rows.values()))
    print("bars: gap / bar <= 1 (one prefill step + 2 decode steps); ttft / alone <= 1.6 with 4 decoding")
    return rows


def draw(found: dict[int, list[dict[str, Any]]], path: str) -> None:
    """Every gap of the last repetition over the time since the prompt was given."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for n, runs in found.items():
        (dots,) = axes.plot(*zip(*runs[-1]["gaps"], strict=True), ".", label=f"{n} decoding")
        axes.axhline(runs[-1]["bar_s"], color=dots.get_color(), linestyle=":", label=f"{n} decoding: bar")
        axes.axvline(runs[-1]["ttft_s"], color=dots.get_color(), linestyle="--", label=f"{n} decoding: first token")
    axes.set(xlabel="seconds since the prompt was given", ylabel="seconds between two tokens")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoding", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--context", type=int, default=512, help="prompt tokens of each decoding agent")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a prompt of 1,000 tokens, contexts of 64, once")
    parser.add_argument("--json")
    parser.add_argument("--png")
    parser.add_argument("--model")
    args = parser.parse_args()
    if args.quick:
        args.prompt, args.context, args.repeats = 1000, 64, 1
    found = measure(args)
    rows = report(found)
    sizes = {"prompt": args.prompt, "context": args.context, "repeats": args.repeats}
    figures = {n: [{k: v for k, v in one.items() if k != "gaps"} for one in all_of] for n, all_of in found.items()}
    write_json(args.json, rows=rows, repetitions=figures, **sizes)
    if args.png:
        draw(found, args.png)


if __name__ == "__main__":
    main()
