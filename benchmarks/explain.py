"""What a miss costs at 32,000 tokens: the failed look-up on the engine thread, and its explanation beside it.

    python -m benchmarks.explain [--json FILE] [--tokens 32000] [--agents 200] [--rounds 31]

An EchoRunner's KV, small on purpose: nothing here depends on the model. The look-up finds the longest stored prefix,
the prompt that it leaves, and what is known of lost KV; the engine thread does that for every request. Why the texts
part is read when the reply is done, or on the thread that asks ``Memory.explain``; "explain, all" renders and tokenizes
the prompt as well. On a machine that others use, read the CPU time of the engine thread.
Each prompt differs from a stored one in the way that its name says.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from agent_memory import Config, EchoRunner, Memory
from agent_memory.requests.options import Settings
from agent_memory.scheduler.reuse import Found
from benchmarks.common import real_text, write_json

BAR_MS = 5.0


def conversation(n_tokens: int, tokenizer: Any) -> list[dict[str, str]]:
    """A hundred messages of about so many tokens together, a clock in the system prompt."""
    text = real_text()
    per = n_tokens * len(text) // len(tokenizer.encode(text)) // 100
    said = [text[n * per : (n + 1) * per] for n in range(99)]
    roles = ["user", "assistant"] * 50
    turns = [{"role": role, "content": content} for role, content in zip(roles, said, strict=False)]
    return [{"role": "system", "content": "It is 12:30:05. " + text[99 * per : 100 * per]}, *turns]


def edited(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same with one word more in the eightieth message."""
    out = [dict(one) for one in messages]
    middle = len(out[80]["content"]) // 2
    out[80]["content"] = out[80]["content"][:middle] + " changed " + out[80]["content"][middle:]
    return out


def later(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same a minute later."""
    return [{"role": "system", "content": messages[0]["content"].replace("12:30:05", "12:31:44")}, *messages[1:]]


def strange(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """As long, and like nothing before."""
    return [{"role": one["role"], "content": one["content"][::-1]} for one in messages]


CASES: dict[str, tuple[Callable[[list[dict[str, str]]], list[dict[str, str]]], str]] = {
    "edited message": (edited, "edited_history"),
    "clock in the system prompt": (later, "volatile_text"),
    "never seen": (strange, "never_seen"),
}


def times(memory: Memory, asked: list[dict[str, str]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of the look-up, of its explanation, and of ``Memory.explain`` as a whole."""
    engine, planner = memory._engine, memory._asking._planner_of(asked, None, Settings())
    prompt = planner.prompt()
    found: dict[str, list[float]] = {"look-up": [], "look-up, CPU": [], "cause": [], "explain, all": []}

    def look() -> tuple[Found, float]:
        begun = time.thread_time()
        return engine.look(prompt, None), (time.thread_time() - begun) * 1e3

    for _ in range(rounds):
        start = time.perf_counter()
        looked, cpu_ms = engine.call(look)
        middle = time.perf_counter()
        looked.loss.why()
        stop = time.perf_counter()
        memory.explain(asked)
        found["look-up, CPU"].append(cpu_ms)
        found["look-up"].append((middle - start) * 1e3)
        found["cause"].append((stop - middle) * 1e3)
        found["explain, all"].append((time.perf_counter() - stop) * 1e3)
    return found


def main() -> None:
    """Print one table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--tokens", type=int, default=32_000)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    runner = EchoRunner(context_tokens=2 * args.tokens, layers=1, heads=1, dim=4)
    with tempfile.TemporaryDirectory() as folder, Memory(runner, folder, config=Config(hot_bytes=1 << 30)) as memory:
        asked = conversation(args.tokens, runner.tokenizer)
        for n in range(args.agents):
            memory.agent(f"agent {n}", system=f"You are number {n}. " * 40).say("Hello.")
        memory.prefill(asked)
        print(f"{memory.count_tokens(asked):,} tokens, {args.agents} agents; milliseconds, median (95th percentile)")
        for name, (change, cause) in CASES.items():
            assert memory.explain(change(asked)).cause == cause, str(memory.explain(change(asked)))[:300]
            for what, values in times(memory, change(asked), args.rounds).items():
                p95 = statistics.quantiles(values, n=20)[-1]
                rows[f"{name}: {what}"] = {"median_ms": statistics.median(values), "p95_ms": p95}
                bar = f"  bar <= {BAR_MS:g}" if what.startswith("look-up") else ""
                print(f"{name:28} {what:14} {statistics.median(values):8.2f} ({p95:.2f}){bar}")
    write_json(args.json, tokens=args.tokens, agents=args.agents, rows=rows)


if __name__ == "__main__":
    main()
