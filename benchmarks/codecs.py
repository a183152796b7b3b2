"""What the KV codecs cost in quality and in time, against plain 4-bit affine quantization in the same run.

    python benchmarks/codecs.py [--windows 6] [--chats 8] [--json FILE] [--png FILE] [--model MODEL] [--gemma]
        [--mixed N] [--only starter|gemma]

Long text: 768 tokens of context, 256 scored. Short chats: a prompt of 30 to 60 tokens, all of it encoded, then 24
tokens of the model's own greedy reply. The KV of the context is encoded and decoded; the tokens after it are fed to the
model on that KV and on exact KV, and what it says of the next token is compared: mean and worst KL divergence, change
of perplexity, share of equal greedy tokens. Bits count scales too; they do not depend on the length. GB/s: exact bytes,
one tensor at a time. "plain 4-bit" is ``mx.quantize`` in groups of 64. ``--gemma``: Gemma 3 270M, 15 of whose layers
have windows of 512 tokens (takes the package gguf). ``--mixed``: also the mixed codec of each fixed one's bytes, its
bits chosen as ``Memory.choose_codec`` does on N other long texts (2 N chats); "q8 mixed" is as large as ``q8``.
"fitted": the mixed codec that a fixed one stands for where few layers have no window.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import real_text, write_json

from agent_memory import MLXRunner

CONTEXT, SCORED, REPLY = 768, 256, 24
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain how a bicycle stays upright.",
    "List three uses of baking soda.",
    "Translate 'good morning' into Spanish and French.",
    "Why is the sky blue? Answer in one paragraph.",
    "Give me a recipe for pancakes.",
    "What does the Python keyword yield do?",
)
OTHER_QUESTIONS = (
    "Name the planets of the solar system.",
    "How do I boil an egg?",
    "Write a short story about a lighthouse.",
    "What is the difference between a list and a tuple?",
)
CODECS = ("plain 4-bit", "q8", "q5", "q4")


def plain_coder() -> Any:
    """A Coder that quantizes as mlx-lm's own KV cache does."""
    import time

    import mlx.core as mx

    from agent_memory.runner.measuring import Coder

    class Plain(Coder):
        def __call__(self, spec: Any, rows: Any) -> Any:
            rows = mx.contiguous(rows)
            mx.eval(rows)
            start = time.perf_counter()
            packed = mx.quantize(rows, 64, 4)
            mx.eval(packed)
            middle = time.perf_counter()
            decoded = mx.dequantize(*packed, 64, 4)
            mx.eval(decoded)
            self.encode_s += middle - start
            self.decode_s += time.perf_counter() - middle
            self.n_values += rows.size
            self.exact_bytes += rows.nbytes
            self.coded_bytes += packed[0].nbytes + 2 * 2 * packed[1].size  # with 16-bit scales and biases
            return decoded

    return Plain("q4")


def windows(tokenizer: Any, count: int, first: int = 1) -> Iterator[tuple[list[int], int]]:
    """(ids, how many of them are context) of long text."""
    body = real_text()
    for number in range(first, first + count):
        start = number * 7919 * 13 % (len(body) - 12 * (CONTEXT + SCORED))
        ids = tokenizer.encode(body[start : start + 12 * (CONTEXT + SCORED)], bos=True)
        yield ids[: CONTEXT + SCORED + 1], CONTEXT


def chats(batch: Any, tokenizer: Any, questions: Sequence[str]) -> Iterator[tuple[list[int], int]]:
    """(ids, how many of them are context) of prompts with the model's own replies."""
    from agent_memory import Sampling

    for question in questions:
        if tokenizer.has_template:
            text = tokenizer.render([{"role": "user", "content": question}])
        else:
            text = f"Question: {question}\nAnswer:"
        ids = list(tokenizer.encode(text, bos=True))
        n_prompt, kv = len(ids), batch.empty()
        batch.prefill(kv, ids[:-1])
        batch.insert(0, kv, ids, group=0, sampling=Sampling())
        while len(ids) < n_prompt + REPLY + 1:
            ids += [token for _, token in batch.step(0)]
        batch.remove([0])
        yield ids, n_prompt - 1


def as_large(runner: Any, batch: Any, texts: Sequence[tuple[list[int], int]]) -> dict[str, str]:
    """The mixed codec of each fixed codec's bytes, or just below, that costs least on some texts; {} without texts."""
    from agent_memory.kvcache.choosing import allot, merged, n_bytes, sensitivities
    from agent_memory.kvcache.coding import mixed

    if not texts:
        return {}

    def found(ids: list[int], n_context: int) -> Any:
        def cost(codec: str) -> float:
            one = batch.measure(ids[: n_context + SCORED // 4 + 1], n_context, codec)
            return float(one.kl / one.n_tokens)

        return sensitivities(runner.layout, n_context, cost)

    mean = merged(*[found(*text) for text in texts])
    chosen = {}
    for name in CODECS[1:]:
        low, high = 1e-9, 10.0  # budgets
        for _ in range(60):
            middle = (low * high) ** 0.5
            is_small = n_bytes(mean, mixed(allot(mean, middle))) <= n_bytes(mean, name)
            low, high = (low, middle) if is_small else (middle, high)
        chosen[f"{name} mixed"] = mixed(allot(mean, high))
    for name, codec in chosen.items():
        print(f"{name}: {codec}", flush=True)
    return chosen


def compare(runner: Any, batch: Any, ids: list[int], n_context: int, codecs: dict[str, str]) -> dict[str, Any]:
    """What every codec makes of one text."""
    import mlx.core as mx

    from agent_memory.runner.measuring import STEP, Coder, Reference, diverge, recoded

    kv = batch.empty()
    for start in range(0, n_context, STEP):
        batch.prefill(kv, ids[start : min(start + STEP, n_context)])
    found = {}
    reference = Reference(tuple(ids[:n_context]), tuple(ids[n_context:]), kv)
    for name, codec in codecs.items():
        coder = plain_coder() if name == "plain 4-bit" else Coder(codec)
        found[name] = diverge(runner._model, reference, recoded(kv, coder), coder)
        mx.clear_cache()
    return found


def gemma() -> Any:
    """A runner on Gemma 3 270M, with its own tokenizer."""
    import sys
    import tempfile

    import platformdirs

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from agent_memory.runner.blas import speed_up

    speed_up("auto")  # before mlx is imported
    import gguf
    from mlx_lm.tokenizer_utils import load

    from agent_memory.models.gguf_tokenizer import write_tokenizer
    from tests.parts import gemma

    folder = platformdirs.user_cache_path("agent_memory") / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    file = gemma.fetch(folder)
    fields = gguf.GGUFReader(str(file)).fields
    with tempfile.TemporaryDirectory() as out:
        write_tokenizer({key: fields[key].contents() for key in fields if key.startswith("tokenizer.")}, Path(out))
        return MLXRunner(gemma.model(file), load(Path(out)), name="gemma-3-270m")


def run(runner: Any, n_windows: int, n_chats: int, n_tuned: int) -> list[dict[str, Any]]:
    """A row for each codec on each kind of text."""
    from agent_memory.kvcache.coding import fitted
    from agent_memory.observe.codec_quality import report

    batch = runner.open_batch()
    rows = []
    tokenizer = runner.tokenizer
    kinds = {
        "long text": (windows(tokenizer, n_windows), windows(tokenizer, n_tuned, first=101)),
        "short chats": (
            chats(batch, tokenizer, QUESTIONS[:n_chats]),
            chats(batch, tokenizer, OTHER_QUESTIONS[: 2 * n_tuned]),
        ),
    }
    for (kind, (texts, others)), n_texts in zip(kinds.items(), (n_windows, n_chats), strict=True):
        if not n_texts:
            continue
        codecs = {name: name for name in CODECS}
        codecs |= {f"{n} fitted": codec for n in CODECS[1:] if (codec := fitted(runner.layout, n)) != n}
        codecs |= as_large(runner, batch, list(others))
        found = [compare(runner, batch, ids, n_context, codecs) for ids, n_context in texts]
        print(f"\n{runner.name}, {kind}: {len(found)} texts")
        print(
            f"{'codec':12} {'bits':>5} {'KL':>9} {'worst':>7} {'perplexity':>10} {'same':>6} {'enc':>6} {'dec GB/s':>8}"
        )
        for name in codecs:
            one = report(name, [each[name] for each in found])
            print(
                f"{name:12} {one.bits_per_value:5.2f} {one.kl:9.6f} {one.worst_kl:7.4f} {one.perplexity_change:+10.2%} "
                f"{one.agreement:6.3f} {one.encode_gb_s:6.2f} {one.decode_gb_s:6.2f}",
                flush=True,
            )
            values = {
                "bits": one.bits_per_value,
                "kl": one.kl,
                "worst_kl": one.worst_kl,
                "perplexity": one.perplexity,
                "perplexity_change": one.perplexity_change,
                "agreement": one.agreement,
                "encode_gb_s": one.encode_gb_s,
                "decode_gb_s": one.decode_gb_s,
            }
            about = {"model": runner.name, "texts": kind, "codec": name, "tokens": one.n_tokens}
            rows.append(about | {key: round(value, 6) for key, value in values.items()})
    batch.close()
    return rows


def measure(make: Callable[[], Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one model."""
    runner = make()
    runner.open()
    try:
        return run(runner, args.windows, args.chats, args.mixed)
    finally:
        runner.close()


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """KL by bits, both axes telling what smaller costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for model, texts in dict.fromkeys((row["model"], row["texts"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["texts"]) == (model, texts)]
        points = sorted((row["bits"], row["kl"]) for row in mine if row["codec"] != CODECS[0])
        (line,) = axes.plot(*zip(*points, strict=True), marker="o", label=f"{model}, {texts}")
        plain = [(row["bits"], row["kl"]) for row in mine if row["codec"] == CODECS[0]]
        axes.plot(*zip(*plain, strict=True), marker="x", linestyle="", color=line.get_color())
    axes.set(yscale="log", xlabel="bits per value (x: plain 4-bit affine)", ylabel="mean KL to exact KV, nats")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--chats", type=int, default=len(QUESTIONS))
    parser.add_argument("--json")
    parser.add_argument("--png")
    parser.add_argument("--model")
    parser.add_argument("--gemma", action="store_true", help="measure Gemma 3 270M too")
    parser.add_argument(
        "--mixed", type=int, default=0, metavar="N", help="choose mixed codecs on N long texts, 2N chats"
    )
    parser.add_argument("--only", choices=("starter", "gemma"), help="measure one of the models")
    args = parser.parse_args()
    from agent_memory.config import Config

    runners = [lambda: MLXRunner.named(args.model, config=Config())] if args.only != "gemma" else []
    runners += [gemma] if args.gemma or args.only == "gemma" else []
    rows = []
    for make in runners:
        with ThreadPoolExecutor(1) as thread:  # to close a runner ends its thread's streams
            rows += thread.submit(measure, make, args).result()
    write_json(args.json, rows=rows)
    if args.png:
        draw(rows, args.png)


if __name__ == "__main__":
    main()
