"""What a fork costs, beside a deep copy of mlx-lm's cache, and what a hundred forks and eight drawn replies cost.

    python benchmarks/fork.py [--tokens 8000] [--forks 100] [--layers N] [--json FILE] [--model MODEL]

- fork: an agent of ``--tokens`` tokens is forked while its KV is live, and again when it is on disk alone; a fork of it
  exists when the call returns, and its log is written behind. Beside it, in the same run, ``copy.deepcopy`` of the
  cache that mlx-lm computed for as many tokens: what a server does that hands a cache to a second request. Both copy
  bytes when they are first written to, so the first token of a short question is measured as well.
- forks: each of ``--forks`` forks takes one turn. Bytes of the folder, as allocated, beside those of the base and of
  each fork's own tokens.
- best_of: eight replies to one message, and the ids of prompts that were fed for them.

``--layers`` cuts the model, so that long agents are computed sooner: the figures of a fork do not depend on it.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

from common import median, text_of, write_json
from seam import host_model

from agent_memory import Agent, Config, Memory, MLXRunner

N_REPLIES = 8


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def forks(agent: Agent, n: int, label: str) -> list[float]:
    """Seconds of each fork; deleted behind."""
    found = []
    for number in range(n):
        began = time.perf_counter()
        fork = agent.fork(f"{label} {number}")
        found.append(time.perf_counter() - began)
        fork.delete()
    return found


def deep_copies(model: Any, ids: list[int], new: list[int], n: int) -> tuple[list[float], list[float]]:
    """Seconds to copy mlx-lm's cache of ``ids``; and to copy it, feed ``new`` to the copy, and have the first token.

    MLX copies the bytes when the copy is first written to, so the first figure alone says little.
    """
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    for at in range(0, len(ids), 512):
        mx.eval(model(mx.array([ids[at : at + 512]]), cache=cache))
    copied, answered = list[float](), list[float]()
    for _ in range(n):
        began = time.perf_counter()
        one = copy.deepcopy(cache)
        mx.eval([layer.state for layer in one])
        copied.append(time.perf_counter() - began)
        mx.eval(mx.argmax(model(mx.array([new]), cache=one)[0, -1]))
        answered.append(time.perf_counter() - began)
    return copied, answered


def first_tokens(agent: Agent, n: int) -> tuple[list[float], list[int]]:
    """Seconds to fork an agent and have the first token of the fork's reply, and the ids that its turn fed."""
    found, new = list[float](), list[int]()
    for number in range(n):
        began = time.perf_counter()
        fork = agent.fork(f"first {number}")
        usage = fork.say("And then?", max_tokens=1).usage
        found.append(time.perf_counter() - began)
        new = fork._log.ids[usage.cached_tokens : usage.prompt_tokens].tolist()
        fork.delete()
    return found, new


def measure_forks(memory: Memory, agent: Agent, model: Any, n: int) -> dict[str, Any]:
    hot_before = memory.stats().hot_bytes
    hot = forks(agent, n, "hot")
    grown = memory.stats().hot_bytes - hot_before
    answered, new = first_tokens(agent, max(3, n // 4))
    copies, copies_answered = deep_copies(model, agent._log.ids.tolist(), new, max(3, n // 4))
    memory.evict()
    cold = forks(agent, n, "cold")
    return {
        "agent_tokens": agent.n_tokens,
        "fork_hot_ms": median(hot) * 1e3,
        "fork_cold_ms": median(cold) * 1e3,
        "fork_hot_bytes": grown,
        "deepcopy_ms": median(copies) * 1e3,
        "fork_and_first_token_ms": median(answered) * 1e3,
        "deepcopy_and_first_token_ms": median(copies_answered) * 1e3,
        "new_ids": len(new),
    }


def measure_disk(memory: Memory, agent: Agent, n: int, folder: Path) -> dict[str, Any]:
    memory.flush()
    base, token_bytes = folder_bytes(folder), memory._runner.layout.token_bytes
    made = [agent.fork(f"fork {number}") for number in range(n)]
    tails = 0
    for number, fork in enumerate(made):
        before = fork._log.n_kv
        fork.say(f"Question {number}: what comes after that?", max_tokens=8)
        tails += (fork._log.n_kv - before) * token_bytes
    memory.flush()
    total = folder_bytes(folder)
    return {
        "forks": n,
        "base_bytes": base,
        "tails_bytes": tails,
        "disk_bytes": total,
        "over_tails_bytes_per_fork": (total - base - tails) / n,
    }


def measure_best_of(memory: Memory, agent: Agent) -> dict[str, Any]:
    before, texts = memory.stats().computed_ids, list[str]()
    reply = memory.best_of(
        agent, "Say it otherwise.", N_REPLIES, lambda one: texts.append(one.text) or 0, max_tokens=24, temperature=1.0,
        seed=1,
    )  # fmt: skip
    return {
        "best_of": N_REPLIES,
        "prompt_tokens": reply.usage.prompt_tokens,
        "computed_tokens": reply.usage.computed_tokens,
        "fed_ids": memory.stats().computed_ids - before,
        "distinct": len(set(texts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--forks", type=int, default=100)
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--model", default=None)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    model, tokenizer = host_model(args.model)
    if args.layers:
        model.model.layers = model.model.layers[: args.layers]
        model.args.num_hidden_layers = args.layers
    runner = MLXRunner(model, tokenizer, name="fork")
    with tempfile.TemporaryDirectory() as folder, Memory(runner, folder, config=Config(hot_bytes=8 << 30)) as memory:
        n_filler = args.tokens - 60
        agent = memory.agent("base", system=text_of(tokenizer, n_filler, 1))
        agent.say("What is this about?", max_tokens=8)
        memory.flush()
        found = measure_forks(memory, agent, model, 20)
        found |= measure_disk(memory, agent, args.forks, Path(folder))
        found |= measure_best_of(memory, agent)
    for name, value in found.items():
        print(f"{name:28} {value:>14,.3f}" if isinstance(value, float) else f"{name:28} {value:>14,}")
    write_json(args.json, **found)


if __name__ == "__main__":
    main()
