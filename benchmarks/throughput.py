"""Tokens a second of many agents at once: fresh, hot, and restored from disk.

    python benchmarks/throughput.py [--agents 1 2 4 8 16] [--prompt 512] [--tokens 64] [--repeats 3] [--quick]
                                    [--first] [--json FILE] [--png FILE] [--model MODEL]

Every agent's prompt is real text of ``--prompt`` tokens, other text for each, and every request gives exactly
``--tokens`` tokens (no id ends a reply). Fresh: nothing is stored. Hot and cold: the same prompt again, of which all
but the last token is reused, from memory or from disk. A rate is all tokens over the time from the first call to the
last reply. Against: the same agents one after another, and ``mlx_lm.batch_generate`` on the same fresh prompts. The
ways take turns within each repetition; ratios are medians of the repetitions' ratios.

Three figures more: the engine's share of decode time outside ``Batch.step``, ``Batch.verify`` and
``Batch.prefill``, the time to the first tokens of two agents that are restored at once, against one alone, and that of
eight hot ones that are asked by ``stream`` in a loop, against ``batch``. ``--first`` measures the last two alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from attrs import frozen
from common import median, text_of, timed, write_json
from seam import WatchedRunner, host_model, outside_share

from agent_memory import Config, Memory, Usage
from agent_memory.protocols import Tokenizer

STATES = ("fresh", "hot", "cold")
PEER = "batch_generate"


@frozen
class Speaker:
    """One agent's part: always the same, so that a rewound agent says it again."""

    name: str
    system: str
    text: str
    ids: list[int]


class Stage:
    """A Memory on the host's model, in which agents speak."""

    def __init__(self, runner: WatchedRunner, path: str | Path, args: Any) -> None:
        self.runner, self.n_tokens = runner, args.tokens
        self.memory = Memory(runner, path, config=Config(max_batch=max(args.agents), hot_bytes=4 << 30))

    def prepare(self, speakers: list[Speaker], *, evict: bool) -> None:
        """Back to before the turn; with ``evict``, no KV of anybody stays in memory."""
        for speaker in speakers:
            agent = self.memory.agent(speaker.name, system=speaker.system)
            if agent.info.n_turns:
                agent.rewind()
        if evict:
            self.memory.evict()
        self.memory.flush()

    def speak(self, speakers: list[Speaker], n_tokens: int | None = None) -> tuple[float, list[Usage]]:
        """Seconds to the last reply of all of them at once, and the figures of each."""
        start = time.perf_counter()
        handles = [
            self.memory.stream(speaker.text, agent=speaker.name, max_tokens=n_tokens or self.n_tokens)
            for speaker in speakers
        ]
        usages = [handle.result().usage for handle in handles]
        return time.perf_counter() - start, usages


class Show:
    """One store in memory (fresh, hot), one on disk (cold), one model, and its peer."""

    def __init__(self, args: Any, folder: Path) -> None:
        self.args = args
        self.model, self.tokenizer = host_model(args.model)
        self.ram = Stage(WatchedRunner(self.model, self.tokenizer), ":memory:", args)
        self.disk = Stage(WatchedRunner(self.model, self.tokenizer), folder / "store", args)
        tokenizer = self.ram.runner.tokenizer
        self.speakers = [speaker(tokenizer, number, args.prompt) for number in range(max(args.agents))]
        self.disk.prepare(self.speakers, evict=False)
        self.disk.speak(self.speakers, 1)
        self.shares: dict[int, list[float]] = {}
        self.ttfts: dict[str, dict[int, list[float]]] = {state: {} for state in STATES}

    def close(self) -> None:
        """Close both stores."""
        self.ram.memory.close()
        self.disk.memory.close()

    def run(self, state: str, speakers: list[Speaker]) -> float:
        """Seconds that ``speakers`` take at once in one state; "hot" must follow "fresh" of the same."""
        if state == PEER:
            return self.peer(speakers)
        stage = self.disk if state == "cold" else self.ram
        stage.prepare(speakers, evict=state != "hot")
        mark = len(stage.runner.spans)
        seconds, usages = stage.speak(speakers)
        for usage in usages:
            assert usage.output_tokens == self.args.tokens, usage
            is_right = usage.cached_tokens < 64 if state == "fresh" else usage.cached_tokens >= self.args.prompt - 1
            assert is_right, (state, usage)
            assert usage.tier == state or state == "fresh", (state, usage)
        if state == "hot":
            self.shares.setdefault(len(speakers), []).append(outside_share(stage.runner.since(mark)))
        self.ttfts[state].setdefault(len(speakers), []).extend(usage.ttft_s for usage in usages)
        return seconds

    def peer(self, speakers: list[Speaker]) -> float:
        """Seconds of mlx-lm's own batch, from prompts to replies."""
        from mlx_lm import batch_generate

        prompts = [list(speaker.ids) for speaker in speakers]
        return timed(lambda: batch_generate(self.model, self.tokenizer, prompts, max_tokens=self.args.tokens))

    def asked_in_turn(self, n: int = 8) -> dict[str, float]:
        """Median times to the first tokens of hot agents, asked by ``stream`` in a loop, and by ``batch``."""
        speakers, found = self.speakers[:n], {}
        for way in ("batch", "stream"):
            self.ram.prepare(speakers, evict=False)
            if way == "stream":
                usages = self.ram.speak(speakers, 4)[1]
            else:
                names, texts = [one.name for one in speakers], [one.text for one in speakers]
                usages = [reply.usage for reply in self.ram.memory.batch(texts, agent=names, max_tokens=4)]
            assert {usage.tier for usage in usages} <= {"hot"}, usages
            found[way] = median([usage.ttft_s for usage in usages])
        return found

    def restored_at_once(self) -> dict[str, float]:
        """Times to the first token of two agents restored together, and of each alone."""
        pair = self.speakers[:2]
        lone = []
        for one in pair:
            self.disk.prepare(pair, evict=True)
            lone.append(self.disk.speak([one], 8)[1][0].ttft_s)
        self.disk.prepare(pair, evict=True)
        both = [usage.ttft_s for usage in self.disk.speak(pair, 8)[1]]
        return {"alone": median(lone), "first": min(both), "last": max(both)}


def speaker(tokenizer: Tokenizer, number: int, n_prompt: int) -> Speaker:
    """Agent ``number`` with a prompt of exactly ``n_prompt`` tokens, template and system message included."""
    system = f"{number}: you explain Python to strangers."

    def ids(text: str) -> list[int]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return tokenizer.encode(tokenizer.render(messages))

    text = text_of(tokenizer, n_prompt - len(ids("")), seed=number)
    made = Speaker(f"agent {number}", system, text, ids(text))
    assert len(made.ids) == n_prompt, len(made.ids)
    return made


def repetition(show: Show, number: int) -> dict[str, dict[int, float]]:
    """Tokens a second of every way and number of agents; "x, one after another" beside each "x"."""
    sizes, n_tokens = show.args.agents, show.args.tokens
    rates: dict[str, dict[int, float]] = {}
    alone: dict[str, list[float]] = {state: [] for state in STATES}
    for n in sizes:
        for one in show.speakers[len(alone["fresh"]) : n]:
            for state in STATES:
                alone[state].append(show.run(state, [one]))
        ways = [PEER, *STATES] if number % 2 else [*STATES, PEER]
        for way in ways:
            rates.setdefault(way, {})[n] = n * n_tokens / show.run(way, show.speakers[:n])
        for state in STATES:
            rates.setdefault(f"{state}, one after another", {})[n] = n * n_tokens / sum(alone[state][:n])
        print(f"repetition {number + 1}: {n} agents done", file=sys.stderr, flush=True)
    return rates


def summary(rounds: list[dict[str, dict[int, float]]], sizes: list[int]) -> list[dict[str, Any]]:
    """One row per number of agents: median rates, and medians of the ratios within each repetition."""
    rows = []
    for n in sizes:
        row: dict[str, Any] = {"agents": n, "rates": {way: median([r[way][n] for r in rounds]) for way in rounds[0]}}
        for state in STATES:
            row[f"{state} / one after another"] = median(
                [r[state][n] / r[f"{state}, one after another"][n] for r in rounds]
            )
            row[f"{state} / one agent"] = median([r[state][n] / r[state][sizes[0]] for r in rounds])
        row["fresh / batch_generate"] = median([r["fresh"][n] / r[PEER][n] for r in rounds])
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]], shares: dict[int, float]) -> None:
    """One table of tokens a second and ratios, then the figures with a bar."""
    if not rows:
        return
    names = [*rows[0]["rates"], *(name for name in rows[0] if "/" in name)]
    print(f"\n{'tokens/s, agents:':32}" + "".join(f"{row['agents']:>9}" for row in rows))
    for name in names:
        print(f"{name:32}" + "".join(f"{row['rates'].get(name, row.get(name)):>9.2f}" for row in rows))
    for row in rows:
        if row["agents"] == 8:
            print(f"8 hot agents / 1                 {row['hot / one agent']:.2f}   bar >= 3.5")
            print(f"8 fresh / batch_generate         {row['fresh / batch_generate']:.3f}   bar >= 0.95")
    for n, share in shares.items():
        print(f"engine outside the model, {n:>2} rows: {share:.2%} of decode time   bar <= 3 % at 1 and 8")


def report_first(restored: dict[str, float], turns: dict[str, float]) -> None:
    """The figures of first tokens."""
    print(
        f"eight hot agents, first tokens by stream in a loop {turns['stream'] * 1e3:.0f} ms, by batch "
        f"{turns['batch'] * 1e3:.0f} ms: {turns['ratio']:.2f}   bar <= 1.1"
    )
    print(
        f"two restored at once: first tokens after {restored['first'] * 1e3:.0f} and {restored['last'] * 1e3:.0f} ms, "
        f"alone {restored['alone'] * 1e3:.0f} ms: {restored['first ratio']:.2f} and {restored['last ratio']:.2f}   "
        "bar <= 1.3"
    )


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Tokens a second over the number of agents."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    sizes = [row["agents"] for row in rows]
    colours = dict(zip([*STATES, PEER], ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
    for way in rows[0]["rates"]:
        state, _, is_serial = way.partition(",")
        style = ":" if is_serial else "--" if way == PEER else "-"
        axes.plot(sizes, [row["rates"][way] for row in rows], style, color=colours[state], marker="o", label=way)
    axes.set(xscale="log", xlabel="agents at once", ylabel="tokens a second", xticks=sizes, xticklabels=sizes)
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--first", action="store_true", help="first tokens alone")
    parser.add_argument("--quick", action="store_true", help="1, 2 and 8 agents, 128 tokens, 16 out, once")
    parser.add_argument("--json")
    parser.add_argument("--png")
    parser.add_argument("--model")
    args = parser.parse_args()
    if args.quick:
        args.agents, args.prompt, args.tokens, args.repeats = [1, 2, 8], 128, 16, 1
    with tempfile.TemporaryDirectory() as name:
        show = Show(args, Path(name))
        show.peer(show.speakers[:1])  # warm up
        rounds = [repetition(show, number) for number in range(args.repeats)] if not args.first else []
        pairs = [show.restored_at_once() for _ in range(max(5, 3 * args.repeats))]
        show.ram.prepare(show.speakers[:8], evict=False)
        show.ram.speak(show.speakers[:8], 1)
        turns = [show.asked_in_turn() for _ in range(max(5, 3 * args.repeats))]
        show.close()
    rows = summary(rounds, args.agents) if rounds else []
    shares = {n: median(found) for n, found in sorted(show.shares.items())}
    restored = {name: median([pair[name] for pair in pairs]) for name in pairs[0]}
    for which in ("first", "last"):
        restored[f"{which} ratio"] = median([pair[which] / pair["alone"] for pair in pairs])
    ttfts = {state: {n: median(found) for n, found in by.items()} for state, by in show.ttfts.items()}
    asked = {name: median([one[name] for one in turns]) for name in turns[0]}
    asked["ratio"] = median([one["stream"] / one["batch"] for one in turns])
    report(rows, shares)
    report_first(restored, asked)
    write_json(
        args.json, rows=rows, outside_share=shares, restored_at_once=restored, asked_in_turn=asked, ttft_s=ttfts,
        rounds=rounds, prompt=args.prompt, tokens=args.tokens, repeats=args.repeats,
    )  # fmt: skip
    if args.png:
        draw(rows, args.png)


if __name__ == "__main__":
    main()
