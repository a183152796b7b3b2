"""Time to first token: cold, hot, warm, from disk, in a new process; against mlx-lm in the same run.

    python benchmarks/ttft.py [--tokens 512 1024 2048 4096] [--repeats 3] [--json FILE] [--png FILE] [--model MODEL]

Every length is real text. "Resent" means the same prompt again, of which all but the last token is reused. The floor
is a bare step: one forward and argmax on a cache with room. "Warm" is the exact copy in memory, with no disk; "pages
dropped" reads files that the system was asked to forget. mlx-lm's lines are its own ``generate_step`` at three
prefill steps, and its prompt-cache file (``load_prompt_cache``, then the first token). Ways are interleaved within
each repetition; ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import drop_page_cache, median, text_of, timed, write_json

from agent_memory import Memory, MLXRunner

#: Room for the longest prompt, and for some more.
WARM_BYTES = 1 << 30

CHILD = """
import json, sys, time
start = float(sys.argv[3])
from agent_memory import Memory
with Memory(sys.argv[1] or None, sys.argv[2]) as memory:
    usage = memory.generate(open(sys.argv[4]).read(), raw=True, max_tokens=1).usage
    print(json.dumps([usage.ttft_s, time.time() - start, usage.cached_tokens, usage.tier]))
"""


class Peer:
    """mlx-lm's own ways, on the same model object."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model, self.file = model, str(folder / "peer.safetensors")

    def cold(self, ids: list[int], step: int) -> float:
        """Seconds to the first token of ``generate_step`` at a prefill step."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        prompt = mx.array(ids)
        return timed(lambda: next(generate_step(prompt, self.model, max_tokens=1, prefill_step_size=step)))

    def save(self, ids: list[int]) -> None:
        """Prefill all but the last token and write mlx-lm's prompt-cache file."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache, save_prompt_cache

        cache = make_prompt_cache(self.model)
        for start in range(0, len(ids), 256):
            self.model(mx.array([ids[start : start + 256]]), cache=cache)
            mx.eval([c.state for c in cache])
        save_prompt_cache(self.file, cache)

    def load(self, rest: list[int]) -> float:
        """Seconds to load that file, feed ``rest`` and give a token."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step
        from mlx_lm.models.cache import load_prompt_cache

        def work() -> None:
            cache = load_prompt_cache(self.file)
            next(generate_step(mx.array(rest), self.model, max_tokens=1, prompt_cache=cache))

        return timed(work)

    def step(self, ids: list[int]) -> float:
        """Seconds of one forward and argmax on a cache with room: the floor."""
        import mlx.core as mx
        from mlx_lm.models.cache import load_prompt_cache

        cache = load_prompt_cache(self.file)
        mx.eval([c.state for c in cache])
        for c in cache:  # room, so that the step itself copies nothing
            spare = mx.zeros((*c.keys.shape[:2], 256, c.keys.shape[3]), c.keys.dtype)
            c.keys, c.values = (mx.concatenate([a, spare], axis=2) for a in (c.keys, c.values))
        mx.eval([c.state for c in cache])
        return timed(lambda: mx.eval(mx.argmax(self.model(mx.array([ids[-1:]]), cache=cache)[:, -1], axis=-1)))


def ask(memory: Memory, text: str) -> Any:
    """Usage of the prompt's first token."""
    return memory.generate(text, raw=True, max_tokens=1).usage


def measure(memory: Memory, runner: MLXRunner, peer: Peer, folder: Path, n: int, args: Any) -> dict[str, Any]:
    """Medians of every way at one length, in seconds."""
    found: dict[str, list[float]] = {}
    store, dropped = folder / "store", True
    for repeat in range(args.repeats):
        text = text_of(runner.tokenizer, n, seed=n + repeat)
        ids = runner.tokenizer.encode(text)
        took: dict[str, float] = {}
        cold = ask(memory, text)
        assert cold.cached_tokens < n // 2, cold
        took["cold"] = cold.ttft_s
        for step in args.peer_steps:
            if n < args.peer_once_from or repeat == 0:
                took[f"mlx-lm cold, step {step}"] = peer.cold(ids, step)
        peer.save(ids[:-1])
        for _ in range(args.inner):
            hot = ask(memory, text)
            assert (hot.cached_tokens, hot.tier) == (n - 1, "hot"), hot
            found.setdefault("hot", []).append(hot.ttft_s)
            found.setdefault("step", []).append(peer.step(ids))
            memory.evict(to="warm")
            warm = ask(memory, text)
            assert (warm.cached_tokens, warm.tier) == (n - 1, "warm"), warm
            found.setdefault("warm tier", []).append(warm.ttft_s)
            memory.evict()
            disk = ask(memory, text)
            assert (disk.cached_tokens, disk.tier) == (n - 1, "cold"), disk
            found.setdefault("cold tier", []).append(disk.ttft_s)
            found.setdefault("mlx-lm file", []).append(peer.load(ids[-1:]))
        memory.evict()
        if dropped := drop_page_cache(folder):
            took["cold tier, pages dropped"] = ask(memory, text).ttft_s
            drop_page_cache(folder)
            took["mlx-lm file, pages dropped"] = peer.load(ids[-1:])
        for name, seconds in took.items():
            found.setdefault(name, []).append(seconds)
    size = sum(f.stat().st_size for f in store.rglob("*.safetensors"))
    result: dict[str, Any] = {name: median(values) for name, values in found.items()}
    return {"tokens": n, "pages_dropped": dropped, "store_bytes": size, "seconds": result}


def new_process(runner_name: str | None, folder: Path, text: str, store: Path) -> tuple[float, float, int, str]:
    """(TTFT, seconds since the interpreter started, cached tokens, tier) in a child process."""
    prompt = folder / "prompt.txt"
    prompt.write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", CHILD, runner_name or "", str(store), repr(time.time()), str(prompt)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ttft, total, cached, tier = json.loads(out.splitlines()[-1])
    return ttft, total, cached, tier


def twelve_turns(memory: Memory, runner: MLXRunner, peer: Peer, args: Any) -> dict[str, Any]:
    """An agent of 12 turns that is evicted, then asked once more; mlx-lm loads one file of the same ids."""
    agent = memory.agent("twelve")
    for turn in range(12):
        agent.say(text_of(runner.tokenizer, 140, seed=900 + turn), max_tokens=24)
    question = "And in one word?"
    ours, theirs = [], []
    kept = agent._log.ids.tolist()
    reply = agent.say(question, max_tokens=1)
    rest = agent._log.ids.tolist()[len(kept) : reply.usage.prompt_tokens]
    peer.save(kept)
    for _ in range(max(3, args.repeats) * args.inner):
        agent.rewind(1)
        memory.evict()
        usage = agent.say(question, max_tokens=1).usage
        assert usage.tier == "cold", usage
        assert usage.cached_tokens >= len(kept) - 1, usage
        ours.append(usage.ttft_s)
        theirs.append(peer.load(rest))
    return {"tokens": len(kept), "new": len(rest), "ours": median(ours), "mlx-lm file": median(theirs)}


def ratios(row: dict[str, Any]) -> dict[str, tuple[float, str]]:
    """The bars of the design, as this run gives them."""
    t = row["seconds"]
    peers = [v for k, v in t.items() if k.startswith("mlx-lm cold")]
    default = t.get("mlx-lm cold, step 2048")
    bars = {
        "cold / mlx-lm's best": (t["cold"] / min(peers), "<= 1.05"),
        "(hot - 5 ms) / step": ((t["hot"] - 0.005) / t["step"], "<= 1.25"),
        "cold tier / mlx-lm file": (t["cold tier"] / t["mlx-lm file"], "<= 0.8 at 2,048 and 4,096"),
    }
    if default:
        bar = ">= 22, 130, 300 at 512, 2,048, 4,096"
        bars["mlx-lm cold, default step / cold tier"] = (default / t["cold tier"], bar)
    return bars


def report(rows: list[dict[str, Any]], extra: dict[str, Any]) -> None:
    """One table of milliseconds, then the ratios."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    print(f"\n{'ms':34}" + "".join(f"{row['tokens']:>10,}" for row in rows))
    for name in names:
        print(f"{name:34}" + "".join(f"{row['seconds'].get(name, float('nan')) * 1e3:>10,.1f}" for row in rows))
    for row in rows:
        for name, (value, bar) in ratios(row).items():
            print(f"{row['tokens']:>6,}  {name:42} {value:8.2f}   bar {bar}")
    for name, value in extra.items():
        print(f"{name}: {value}")


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Lines over prompt length, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in ("cold", "mlx-lm cold, step 2048", "mlx-lm file", "cold tier", "warm tier", "hot", "step"):
        points = [(row["tokens"], row["seconds"][name]) for row in rows if name in row["seconds"]]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="seconds to first token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=3, help="prompts per length, computed cold")
    parser.add_argument("--inner", type=int, default=3, help="hot and cold-tier rounds per prompt")
    parser.add_argument("--peer-steps", type=int, nargs="+", default=[256, 512, 2048])
    parser.add_argument("--peer-once-from", type=int, default=4096, help="lengths at which mlx-lm prefills once only")
    parser.add_argument("--json")
    parser.add_argument("--png")
    parser.add_argument("--model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from agent_memory.config import Config

        runner = MLXRunner.named(args.model, config=Config())
        with Memory(runner, folder / "store", config=Config(warm_bytes=WARM_BYTES)) as memory:
            peer = Peer(runner._model, folder)
            ask(memory, "Warm up the weights.")
            rows = []
            for n in args.tokens:
                rows.append(measure(memory, runner, peer, folder, n, args))
                print(f"{n:,} tokens done", file=sys.stderr, flush=True)
            turns = twelve_turns(memory, runner, peer, args)
            texts = {n: text_of(runner.tokenizer, n, seed=n) for n in args.tokens}
        processes = {}
        for n in args.tokens:
            full = [new_process(args.model, folder, texts[n], folder / "store") for _ in range(3)]
            empty = new_process(args.model, folder, texts[n], folder / f"empty{n}")
            assert {f[3] for f in full} == {"cold"}, full
            start = median([f[1] for f in full])
            processes[n] = {
                "ttft_s": median([f[0] for f in full]),
                "python_to_first_token_s": start,
                "the_same_with_an_empty_store_s": empty[1],
                "ratio": start / empty[1],
            }
    extra = {"12 turns": {**turns, "ratio (bar <= 1.0)": turns["ours"] / turns["mlx-lm file"]}}
    extra |= {f"new process, {n:,} tokens (bar: ratio <= 0.4)": p for n, p in processes.items()}
    report(rows, extra)
    write_json(args.json, rows=rows, twelve_turns=turns, new_process=processes, repeats=args.repeats)
    if args.png:
        draw(rows, args.png)


if __name__ == "__main__":
    main()
