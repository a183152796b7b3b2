"""Forty agents for half an hour, with everything that can go wrong going wrong: does it come back to where it began?

    python benchmarks/soak.py [--minutes 30] [--rounds 30] [--agents 40] [--threads 12] [--model echo|tiny|NAME]
                              [--seed 0] [--json FILE] [--png FILE]

Threads talk to the agents, each to its own; turns are cancelled, run out of time, raise in a logits processor or hang
in one; the batch's calls raise; agents are evicted, rewound and deleted; and every so often the Memory is closed while
requests run, and opened again on the same store. Between such rounds everybody rests and the process is weighed.

The verdict: every handle ended, every agent's log is what was acknowledged (a turn that a closing Memory never
answered may be there, whole, or not), ``verify()`` finds nothing, and resident and active bytes are back at their
floor, which is weighed after the first round: active bytes within 2 %, resident ones within 10 % and 32 MB, and 1 MB
for each restart, since MLX ends no system thread of a stream (docs/threads.md). glibc is told to keep two arenas: with
one a thread, what each keeps to itself hides what was lost. Exits with 1 otherwise. A model other than ``echo`` and
``tiny`` is a name as ``Memory`` takes it, ``starter`` the starter model.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define, field
from common import real_text, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the tests' tiny model and planned faults

from agent_memory import (
    CancelledError,
    ClosedError,
    Config,
    EchoRunner,
    Generation,
    Memory,
    MLXRunner,
    Reply,
    RequestTimeoutError,
)
from agent_memory.protocols import ModelRunner
from tests.parts.faulty import Fault, Faults, with_faults

PATIENCE_S = 60.0
ENDED = ("done", "cancelled", "failed")
CALLS = ("step", "prefill", "insert", "restore", "read", "remove", "empty")
_M_ARENA_MAX = -8  #: malloc.h of glibc
MOST_TURNS = 6  #: then an agent is deleted, or rewound: its log is memory too, and grows by right


class Mishap(Exception):
    """What a user's own code raises."""


@define
class Tally:
    """What happened, and what must not have."""

    counts: Counter[str] = field(factory=Counter)
    wrong: list[str] = field(factory=list)
    weights: list[tuple[float, int, int]] = field(factory=list)  #: (minutes, resident bytes, active bytes)
    lock: threading.Lock = field(factory=threading.Lock)

    def note(self, what: str) -> None:
        """Count it."""
        with self.lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        """Something that must not happen."""
        with self.lock:
            self.wrong.append(what)


class House:
    """The Memory, which is closed and opened again while others use it."""

    def __init__(self, args: Any, path: Path, tally: Tally) -> None:
        self.args, self.path, self.tally = args, path, tally
        self.resting = threading.Event()
        self.faults = Faults()
        self.memory = self._open()

    def _open(self) -> Memory:
        name = self.args.model
        config = Config() if name not in ("echo", "tiny") else Config(chunk_tokens=16, prefill_tokens=64)
        runner: ModelRunner
        if name == "echo":
            runner = EchoRunner(lambda asked, _: asked * 40)
        elif name == "tiny":
            from tests.parts.tinyrunner import endless

            runner = endless("llama")
        else:
            runner = MLXRunner.named(None if name == "starter" else name, config=config)
        self.faults = with_faults(runner)
        return Memory(runner, self.path, config=config)

    def restart(self) -> None:
        """Close, whatever runs, and open again."""
        self.memory.close()
        self.memory = self._open()
        self.tally.note("restarts")

    def weigh(self, minutes: float) -> None:
        """Everybody rests: nothing idle in memory, free pages given back, then resident and active bytes."""
        self.memory.flush()
        self.memory.evict()
        gc.collect()
        active = 0
        if self.args.model != "echo":
            import mlx.core as mx

            mx.clear_cache()
            active = mx.get_active_memory()
        self.tally.weights.append((minutes, resident_bytes(), active))


def resident_bytes() -> int:
    """Bytes of this process in memory, after freed ones went back to the system where that can be asked for."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * 4096
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Caller(threading.Thread):
    """One thread and the agents that are its own: it knows what each log must be."""

    def __init__(self, house: House, number: int, names: list[str], over: threading.Event) -> None:
        super().__init__(name=f"caller {number}", daemon=True)
        self.house, self.tally, self.over = house, house.tally, over
        self.draw = random.Random(house.args.seed * 1000 + number)
        self.logs: dict[str, list[str]] = {name: [] for name in names}
        self.unsure: dict[str, str] = {}  #: agent -> a message that a closing Memory did not answer
        self.is_resting = False
        self.text = real_text()

    def run(self) -> None:
        """Turn after turn until it is over, at rest when asked to."""
        while not self.over.is_set():
            if self.house.resting.is_set():
                self.is_resting = True
                time.sleep(0.01)
                continue
            self.is_resting = False
            memory = self.house.memory
            try:
                self.turn(memory, self.draw.choice(list(self.logs)))
            except ClosedError:
                self.tally.note("closed while asking")
                time.sleep(0.05)
            except Fault:
                self.tally.note("faults met outside a request")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the verdict's
                self.tally.fail(f"{type(error).__name__}: {error}")
        self.is_resting = True

    def turn(self, memory: Memory, name: str) -> None:
        """One thing done to one agent."""
        self.check(memory, name)
        log, act = self.logs[name], self.draw.random()
        if act < 0.04:
            memory.evict(name)
        elif act < 0.08 or len(log) > 2 * MOST_TURNS:
            if log and act < 0.06:
                memory.agent(name).rewind()
                del log[-2:]
            else:
                memory.delete(name)
                log.clear()
            self.tally.note("rewound or deleted")
        elif act < 0.12:
            self.answer(memory.stream(self.message(), max_tokens=8), None, "")
        else:
            self.say(memory, name)

    def say(self, memory: Memory, name: str) -> None:
        """A turn that goes well, or is cancelled, or runs out of time, or raises, or hangs."""
        said, way = self.message(), self.draw.random()
        more: dict[str, Any] = {"max_tokens": self.draw.choice([1, 4, 16, 40]), "priority": self.draw.choice([0, 0, 1])}
        if way < 0.10:
            more["timeout_s"] = self.draw.choice([0.001, 0.02, 0.2])
        elif way < 0.18:
            more["logits_processors"] = [raising(self.draw.randrange(6))]
        elif way < 0.185:
            more["logits_processors"] = [hanging]
        handle = memory.stream(said, agent=name, **more)
        if way > 0.85:
            time.sleep(self.draw.random() * 0.05)
            handle.cancel()
        self.answer(handle, name, said)

    def answer(self, handle: Generation, name: str | None, said: str) -> None:
        """How a handle ended."""
        try:
            reply: Reply = handle.result(PATIENCE_S)
        except (CancelledError, Mishap, Fault, RequestTimeoutError) as error:
            self.tally.note(type(error).__name__)
        except ClosedError:
            self.tally.note("closed while waiting")
            if name is not None:
                self.unsure[name] = said
        else:
            self.tally.note("replies")
            usage = reply.usage
            if usage.cached_tokens + usage.computed_tokens != usage.prompt_tokens:
                self.tally.fail(f"not every token is counted: {usage}")
            if name is not None:
                self.logs[name] += [said, reply.text]
        if handle.state not in ENDED:
            self.tally.fail(f"{handle} did not end within {PATIENCE_S} s")

    def check(self, memory: Memory, name: str) -> None:
        """An agent's log is what was acknowledged."""
        found, log = [m.content for m in memory.agent(name).messages], self.logs[name]
        said = self.unsure.pop(name, None)
        if said is not None and found[:-2] == log and found[-2:-1] == [said]:
            self.logs[name] = log = found
        if found != log:
            self.tally.fail(f"{name}: {len(found)} messages in the log, {len(log)} acknowledged, or of other text")
            self.logs[name] = found

    def message(self) -> str:
        """Real text, mostly short."""
        start, length = self.draw.randrange(len(self.text) - 2000), self.draw.choice([20, 60, 200, 600])
        return f"{self.draw.randrange(10**6)}: {self.text[start : start + length]}"


def raising(after: int) -> Callable[[Any, Any], Any]:
    """A logits processor that raises after some calls."""
    calls = []

    def process(ids: Any, logits: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise Mishap
        return logits

    return process


def hanging(ids: Any, logits: Any) -> Any:
    """A logits processor that takes longer than it may."""
    time.sleep(8.0)
    return logits


def rest(house: House, callers: list[Caller], minutes: float) -> bool:
    """Let everybody finish what runs, and weigh; False when somebody never rests."""
    house.resting.set()
    until = time.monotonic() + 2 * PATIENCE_S
    while not all(caller.is_resting for caller in callers):
        if time.monotonic() > until:
            faulthandler.dump_traceback(all_threads=True)
            house.tally.fail(f"a caller was still waiting after {2 * PATIENCE_S} s")
            return False
        time.sleep(0.01)
    house.weigh(minutes)
    for caller in callers:
        caller.is_resting = False
    house.resting.clear()
    return True


def soak(args: Any, house: House) -> None:
    """All rounds; problems go to the tally."""
    draw, over = random.Random(args.seed), threading.Event()
    names = [f"agent {n}" for n in range(args.agents)]
    callers = [Caller(house, n, names[n :: args.threads], over) for n in range(args.threads)]
    for caller in callers:
        caller.start()
    start = time.monotonic()
    n_rounds = args.rounds or max(3, round(args.minutes))
    for number in range(n_rounds):
        until = start + 60 * args.minutes * (number + 1) / n_rounds
        while (now := time.monotonic()) < until:
            time.sleep(min(1.0, until - now))
            if draw.random() < 0.5:
                house.faults.fail(draw.choice(CALLS))
        if not rest(house, callers, (time.monotonic() - start) / 60):
            return
        print(f"round {number + 1} of {n_rounds}: {dict(house.tally.counts)}", file=sys.stderr, flush=True)
        time.sleep(1.0)
        house.restart()  # while they talk
    over.set()
    for caller in callers:
        caller.join(PATIENCE_S)
    for caller in callers:
        for name in caller.logs:
            caller.check(house.memory, name)
    house.weigh((time.monotonic() - start) / 60)


def judge(tally: Tally, model: str) -> None:
    """Bytes against their floor, as the head of this file says."""
    if len(tally.weights) < 2:
        return
    (_, floor, active_floor), (_, resident, active) = tally.weights[0], tally.weights[-1]
    if model != "echo" and active > 1.02 * active_floor:
        tally.fail(f"{active:,} bytes active at the end, {active_floor:,} after the first round")
    left_by_mlx = 0 if model == "echo" else tally.counts["restarts"] << 20
    if resident > 1.1 * floor + (32 << 20) + left_by_mlx:
        tally.fail(f"{resident:,} bytes resident at the end, {floor:,} after the first round")


def report(tally: Tally) -> None:
    """Counts, weights and the verdict."""
    for what, n in tally.counts.most_common():
        print(f"{what:32}{n:>10,}")
    print(f"{'minute':>8}{'resident MB':>14}{'active MB':>12}")
    for minutes, resident, active in tally.weights:
        print(f"{minutes:>8.1f}{resident / 1e6:>14.1f}{active / 1e6:>12.2f}")
    for what in tally.wrong[:20]:
        print(f"WRONG: {what}")
    print(f"verdict: {'failed, ' + str(len(tally.wrong)) + ' problems' if tally.wrong else 'passed'}")


def draw_weights(tally: Tally, path: str) -> None:
    """Bytes over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    minutes, resident, active = zip(*tally.weights, strict=True)
    axes.plot(minutes, [n / 1e6 for n in resident], marker="o", label="resident")
    axes.plot(minutes, [n / 1e6 for n in active], marker="o", label="active in MLX")
    axes.set(xlabel="minutes", ylabel="MB at rest", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=0, help="rests and restarts; 0: one a minute, at least 3")
    parser.add_argument("--agents", type=int, default=40)
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--model", default="tiny", help="echo, tiny, starter, or what Memory takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    parser.add_argument("--png")
    args = parser.parse_args()
    tally = Tally()
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    with tempfile.TemporaryDirectory() as name:
        house = House(args, Path(name) / "store", tally)
        soak(args, house)
        if not any("still waiting" in what for what in tally.wrong):
            if damaged := house.memory.verify().damaged:
                tally.fail(f"verify: {damaged[:3]}")
            house.memory.close()
    judge(tally, args.model)
    report(tally)
    write_json(
        args.json, counts=dict(tally.counts), weights=tally.weights, wrong=tally.wrong, minutes=args.minutes,
        agents=args.agents, model=args.model, seed=args.seed,
    )  # fmt: skip
    if args.png:
        draw_weights(tally, args.png)
    sys.stdout.flush()
    if tally.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
