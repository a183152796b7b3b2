"""Decoding alone: tokens a second of one request, against mlx-lm's bare BatchGenerator and stream_generate.

    python benchmarks/decode.py [--pairs 9] [--tokens 48] [--prompt 256] [--json FILE] [--model MODEL]

The three ways take turns within each round on the same model and prompt, each read token by token on the caller's
thread. A rate is the tokens after the second over the time since the second: mlx-lm's batch gives its first token one
step late and ours one step early, so the first gap says nothing of decoding (benchmarks/ttft.py measures it).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from common import median, text_of, write_json

from agent_memory import Memory, MLXRunner


def rate(tokens: Any) -> float:
    """Tokens a second after the second of an iterator of tokens."""
    times = [time.perf_counter() for _ in tokens]
    return (len(times) - 2) / (times[-1] - times[1])


def bare(model: Any, ids: list[int], n: int) -> Any:
    """mlx-lm's BatchGenerator with one row."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(model, max_tokens=n, prefill_step_size=256)
    generator.insert([ids])
    count = 0
    while count < n:
        for _ in generator.next_generated():
            count += 1
            yield count
    generator.close()


def single(model: Any, tokenizer: Any, ids: list[int], n: int) -> Any:
    """mlx-lm's stream_generate, its end of text ignored by asking again only for its own tokens."""
    from mlx_lm import stream_generate

    yield from stream_generate(model, tokenizer, ids, max_tokens=n, prefill_step_size=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--json")
    parser.add_argument("--model")
    args = parser.parse_args()
    from agent_memory.config import Config

    runner = MLXRunner.named(args.model, config=Config())
    with Memory(runner, ":memory:") as memory:
        text = text_of(runner.tokenizer, args.prompt, seed=3)
        ids = runner.tokenizer.encode(text)
        ways: dict[str, Callable[[], float]] = {
            "ours": lambda: rate(memory.stream(text, raw=True, max_tokens=args.tokens)),
            "BatchGenerator": lambda: rate(bare(runner._model, ids, args.tokens)),
            "stream_generate": lambda: rate(single(runner._model, runner._hf, ids, args.tokens)),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.pairs):
            order = list(ways)[number % 3 :] + list(ways)[: number % 3]  # each way goes first equally often
            for name in order:
                found[name].append(ways[name]())
    against = {n: median([a / b for a, b in zip(found["ours"], found[n], strict=True)]) for n in list(ways)[1:]}
    for name, rates in found.items():
        print(f"{name:18} {median(rates):7.2f} tokens/s")
    print(f"ours / BatchGenerator  {against['BatchGenerator']:.3f}   bar >= 0.97")
    print(f"ours / stream_generate {against['stream_generate']:.3f}   bar >= 0.90")
    write_json(args.json, rates=found, ratios=against, tokens=args.tokens, prompt=args.prompt)


if __name__ == "__main__":
    main()
