"""What expected turns save: bytes restored in the way of requests, with and without ``Config.foresight``.

    python benchmarks/traces.py [--data FOLDER] [--tokens 1500] [--seeds 3] [--only traces] [--json FILE] [--on-paper]

Each trace is a list of agents in the order of their turns, replayed through the engine with an EchoRunner: all KV is on
disk at first, and half of it fits hot. Bytes are those that were read from disk for requests that started
(``Stats.restored_bytes``) and ahead of need (``ahead_bytes``). "Belady" evicts what is used last, knowing the future.

- pipeline: six agents, one after another, again and again.
- dialogues: an agent for each tool, in the order in which the gold calls of BFCL's multi-turn dialogues use them
  (``bfcl-multi-turn-dev.json`` in ``--data``). Constants were chosen on every second dialogue; measured are the others:
  ``seen`` three times in other orders, ``unseen`` once, after the first half was replayed.
- random: no order. working sets: four agents at a time, drawn anew every sixty turns.
- pauses: turns that call tools, which take their time; each agent goes on when its tools are done.

``--on-paper`` replays names alone, without an engine: seconds, for trying policies.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import write_json

from agent_memory import Config, EchoRunner, Memory, Tool, ToolResult
from agent_memory.prefix.foresight import Foresight

DATA = Path("../shared/data")
TOOLS = {"read": (0.1, 0.4), "search": (0.4, 0.5), "build": (1.5, 0.4)}  #: median seconds of a pause, sigma of its log
REST = (2.0, 1.0)  #: the same of an agent that has done its task
GROWTH = 43  #: tokens that a turn adds, at most
STEP_S, REPLY_TOKENS = 0.002, 12  #: a reply takes so many steps of so long: a small model's, scaled down
Trace = list[str]


# traces


def pipeline(n_rounds: int, n_agents: int = 6) -> Trace:
    """Agents in a fixed order."""
    return [f"stage {i}" for _ in range(n_rounds) for i in range(n_agents)]


def dialogues(data: Path, half: int, seed: int, n_times: int) -> Trace:
    """The tools of one half of the dialogues, in the order of the gold calls, dialogues shuffled each time."""
    answers = json.loads((data / "bfcl-multi-turn-dev.json").read_text(encoding="utf-8"))["answers"][half::2]
    rng, found = random.Random(seed), Trace()
    for _ in range(n_times):
        for answer in rng.sample(answers, len(answers)):
            found += [call.split("(")[0].strip() for turn in answer["ground_truth"] for call in turn]
    return without_repeats(found)


def uniform(n_agents: int, n_turns: int, seed: int) -> Trace:
    """Agents in no order."""
    rng = random.Random(seed)
    return without_repeats([f"agent {rng.randrange(n_agents)}" for _ in range(n_turns)])


def working_sets(n_agents: int, n_turns: int, seed: int, size: int = 4, length: int = 60) -> Trace:
    """A few agents for a while, then others: the best case of an order by last use."""
    rng, found = random.Random(seed), Trace()
    while len(found) < n_turns:
        some = rng.sample(range(n_agents), size)
        found += [f"agent {rng.choice(some)}" for _ in range(length)]
    return without_repeats(found)


def without_repeats(trace: Trace) -> Trace:
    """A turn of the same agent again finds its KV in hot under any policy."""
    return [name for i, name in enumerate(trace) if not i or name != trace[i - 1]]


# the engine


def replay(trace: Trace, n_before: int, n_tokens: int, foresight: str) -> dict[str, Any]:
    """Replay a trace; figures are of the turns from ``n_before`` on."""
    names = sorted(set(trace))
    runner = EchoRunner("so it was done, and it is your turn now", layers=2, heads=2, dim=8)
    with tempfile.TemporaryDirectory() as folder:
        with Memory(runner, folder) as memory:
            for name in names:
                memory.agent(name, system=f"{name}: " + "w " * n_tokens).say("begin", max_tokens=4)
            total = sum(info.tier_bytes["hot"] for info in memory.agents())
        runner.delay_s = STEP_S
        config = Config(hot_bytes=total // 2, foresight=foresight)  # type: ignore[arg-type]
        with Memory(runner, folder, config=config) as memory:
            before, began = memory.stats(), 0.0
            for number, name in enumerate(trace):
                if number == n_before:
                    memory.flush()
                    before, began = memory.stats(), time.perf_counter()
                memory.agent(name).say("go on", max_tokens=REPLY_TOKENS)
            seconds = time.perf_counter() - began
            after = memory.stats()
    return {
        "restored": after.restored_bytes - before.restored_bytes,
        "ahead": after.ahead_bytes - before.ahead_bytes,
        "useful": after.ahead["useful"] - before.ahead["useful"],
        "wasted": after.ahead["wasted"] - before.ahead["wasted"],
        "ms_a_turn": 1e3 * seconds / (len(trace) - n_before),
    }


# names alone


def belady(trace: Trace, room: int) -> set[int]:
    """The turns whose agent is not among the ``room`` that a clairvoyant keeps."""
    following = defaultdict[str, list[int]](list)
    for number in range(len(trace) - 1, -1, -1):
        following[trace[number]].append(number)
    hot, missed = set[str](), set[int]()
    for number, name in enumerate(trace):
        following[name].pop()
        if name not in hot:
            missed.add(number)
            while len(hot) >= room:
                hot.remove(max(hot, key=lambda one: following[one][-1] if following[one] else math.inf))
            hot.add(name)
    return missed


def on_paper(trace: Trace, room: int, n_before: int, *, is_on: bool, is_ahead: bool = True) -> int:
    """Turns whose agent is not in hot, by ``Foresight`` or by last use; restores ahead take no time."""
    clock = [0.0]
    foresight = Foresight(is_on=is_on, clock=lambda: clock[0])
    hot, used, ahead, missed = set[str](), dict[str, float](), set[str](), 0

    def wait(name: str) -> tuple[float, str]:
        return foresight.wait_s(name, clock[0] - used[name]), name

    def evict(name: str) -> None:
        hot.remove(name)
        if name in ahead:
            ahead.remove(name)
            foresight.restored(is_useful=False)

    for number, name in enumerate(trace):
        clock[0] += 1.0
        missed += name not in hot and number >= n_before
        while name not in hot and len(hot) >= room:
            evict(max(hot, key=wait))
        if name in ahead:
            ahead.remove(name)
            foresight.restored(is_useful=True)
        hot.add(name)
        foresight.began(name, None, room - 1)
        foresight.ended(name, (), 1)
        used[name] = clock[0]
        for likely in foresight.likely()[:4] if is_ahead else ():
            if likely.owner in hot or likely.owner not in used:
                continue
            farthest = max((one for one in hot if one != name), key=wait)
            if len(hot) >= room and wait(farthest)[0] <= likely.wait_s:
                continue
            if len(hot) >= room:
                evict(farthest)
            hot.add(likely.owner)
            ahead.add(likely.owner)
    return missed


# pauses


def replay_pauses(foresight: str, n_agents: int, room: int, n_turns: int, n_tokens: int, seed: int) -> dict[str, Any]:
    """Replay turns that call tools; hits are turns after a pause whose KV was in hot.

    ``room``: agents whose KV fits hot beside a running one. An agent makes one to three calls, then rests for a while.
    """
    rng = random.Random(seed)
    names = [f"agent {i}" for i in range(n_agents)]
    tools = [Tool(name, "", {"type": "object", "properties": {}}) for name in TOOLS]
    kinds = {name: rng.sample(sorted(TOOLS), 2) for name in names}
    asked: dict[str, str] = {}

    def reply(message: str, ids: tuple[int, ...]) -> str:
        tool = asked.get("tool")
        return json.dumps({"name": tool, "arguments": {}}).join(("<tool_call>", "</tool_call>")) if tool else "ok"

    with tempfile.TemporaryDirectory() as folder:
        runner = EchoRunner(reply, layers=2, heads=2, dim=8)
        with Memory(runner, folder) as memory:
            for name in names:
                memory.agent(name, system=f"{name}: " + "w " * n_tokens, tools=tools).say("begin")
            n_begun = max(memory.agent(name).n_tokens for name in names)
        most = n_begun + GROWTH * _most_turns(n_turns, n_agents)
        size = (most // 256 + 2) * 256 * runner.layout.token_bytes
        runner.delay_s = STEP_S / 4
        hot_bytes = room * size + size + 256 * runner.layout.token_bytes
        with Memory(runner, folder, config=Config.make(hot_bytes=hot_bytes, foresight=foresight)) as memory:
            turns = list(_turns(memory, names, kinds, asked, n_turns, rng))
            assert max(memory.agent(name).n_tokens for name in names) <= most
            stats = memory.stats()
    return {**_judged(turns, room), "restored": stats.restored_bytes, "ahead": stats.ahead_bytes}


def _most_turns(n_turns: int, n_agents: int) -> int:
    """Turns after which an agent is done: half as many again as the mean, so that a bound of its KV is known."""
    return 3 * n_turns // (2 * n_agents)


def _turns(
    memory: Memory, names: Sequence[str], kinds: dict[str, list[str]], asked: dict[str, str], n_turns: int,
    rng: random.Random,
) -> Iterator[tuple[float, float, str, bool, bool, bool]]:  # fmt: skip
    """Yield (begin, end, agent, went on after a pause, pauses now, was hot) of each turn, in real time."""
    began = time.perf_counter()
    due = [(2 * rng.random(), name, 0) for name in names]
    heapq.heapify(due)
    calls: dict[str, Any] = {}
    left = dict.fromkeys(names, _most_turns(n_turns, len(names)))
    for _ in range(n_turns):
        at, name, n_left = heapq.heappop(due)
        time.sleep(max(0.0, at - (time.perf_counter() - began)))
        start, paused = time.perf_counter() - began, name in calls
        n_left = n_left - 1 if paused else rng.randint(1, 3)
        asked["tool"] = rng.choice(kinds[name]) if n_left else ""
        agent = memory.agent(name)
        results = [ToolResult(call.id, "done") for call in calls.pop(name, ())]
        answer = agent.give(*results, max_tokens=48) if paused else agent.say("go on", max_tokens=48)
        end = time.perf_counter() - began
        if answer.tool_calls:
            calls[name] = answer.tool_calls
            median, sigma = TOOLS[asked["tool"]]
        else:
            median, sigma = REST
        left[name] -= 1
        if left[name]:
            heapq.heappush(due, (end + median * math.exp(rng.gauss(0, sigma)), name, n_left))
        yield start, end, name, paused, bool(answer.tool_calls), answer.usage.tier == "hot"


def _judged(turns: Sequence[tuple[float, float, str, bool, bool, bool]], room: int) -> dict[str, Any]:
    """Share of turns after a pause that found their KV in hot, and that of a clairvoyant in the same turns."""
    names = [turn[2] for turn in turns]
    last = dict[str, int]()
    n_paused = [0] * len(turns)  # agents that wait for tools while this turn runs
    waiting = set[str]()
    for number, (_, _, name, _, pauses, _) in enumerate(turns):
        waiting.discard(name)
        n_paused[number] = len(waiting)  # beside the one that runs
        (waiting.add if pauses else waiting.discard)(name)
    missed = belady(names, room + 1)
    hits: dict[str, list[bool]] = {"all": [], "fits": [], "belady": [], "belady_fits": []}
    for number, (_, _, name, paused, _, is_hot) in enumerate(turns):
        since = last.get(name, 0)
        if paused:
            hits["all"].append(is_hot)
            hits["belady"].append(number not in missed)
            if max(n_paused[since + 1 : number + 1], default=0) <= room:
                hits["fits"].append(is_hot)
                hits["belady_fits"].append(number not in missed)
        last[name] = number
    figures = {name: sum(found) / len(found) if found else math.nan for name, found in hits.items()}
    return {**figures, "n": len(hits["all"]), "n_fits": len(hits["fits"]), "room": room}


def traces(data: Path, seed: int) -> Iterator[tuple[str, Trace, int]]:
    """Yield (name, trace, turns before those that are measured)."""
    yield "pipeline", pipeline(40), 0
    if (data / "bfcl-multi-turn-dev.json").exists():
        yield "dialogues, seen", dialogues(data, 1, seed, 3), 0
        before = dialogues(data, 0, seed, 3)
        yield "dialogues, unseen", [*before, *dialogues(data, 1, seed, 1)], len(before)
    else:
        print(f"no {data / 'bfcl-multi-turn-dev.json'}: the dialogues are left out")
    yield "random", uniform(12, 400, seed), 0
    yield "working sets", working_sets(12, 400, seed), 0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=300, help="of the pauses")
    parser.add_argument("--only", choices=("traces", "pauses"))
    parser.add_argument("--on-paper", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(100, 100 + args.seeds) if args.only != "pauses" else ():
        for name, trace, n_before in traces(args.data, seed):
            room = len(set(trace)) // 2
            row: dict[str, Any] = {"trace": name, "seed": seed, "turns": len(trace) - n_before}
            row["belady"] = sum(number >= n_before for number in belady(trace, room))
            row["paper_off"] = on_paper(trace, room, n_before, is_on=False)
            row["paper_kept"] = on_paper(trace, room, n_before, is_on=True, is_ahead=False)
            row["paper"] = on_paper(trace, room, n_before, is_on=True)
            if not args.on_paper:
                off, on = (replay(trace, n_before, args.tokens, mode) for mode in ("off", "auto"))
                row |= {"off": off, "auto": on, "ratio": on["restored"] / max(1, off["restored"])}
            rows.append(row)
            print(_line(row), flush=True)
    pauses: list[dict[str, Any]] = []
    for seed in () if args.on_paper or args.only == "traces" else range(100, 100 + args.seeds):
        for n_agents, room in ((12, 5), (16, 4)):
            for mode in ("off", "auto"):
                row = replay_pauses(mode, n_agents, room, args.turns, args.tokens, seed)
                pauses.append({"mode": mode, "agents": n_agents, "seed": seed, **row})
                print(_pauses_line(pauses[-1]), flush=True)
    write_json(args.json, rows=rows, pauses=pauses)


def _line(row: dict[str, Any]) -> str:
    paper = "turns missed: last use {paper_off}, kept {paper_kept}, kept and ahead {paper}, Belady {belady}"
    text = f"{row['trace']:18} seed {row['seed']} {row['turns']:5} turns; {paper.format(**row)}"
    if "off" in row:
        off, on = row["off"], row["auto"]
        text += f"; MB restored {off['restored'] / 1e6:.1f} -> {on['restored'] / 1e6:.1f} ({row['ratio']:.3f})"
        text += f", ahead {on['ahead'] / 1e6:.1f}, useful {on['useful']}, wasted {on['wasted']}"
        text += f", ms a turn {off['ms_a_turn']:.1f} -> {on['ms_a_turn']:.1f}"
    return text


def _pauses_line(row: dict[str, Any]) -> str:
    text = "pauses, {mode:4} {agents} agents, room for {room}, seed {seed}: hot after a pause {all:.3f} of {n} "
    text += "(Belady {belady:.3f}); while the paused KV fits {fits:.3f} of {n_fits} (Belady {belady_fits:.3f})"
    text += "; MB restored {restored_mb:.1f}"
    return text.format(**row, restored_mb=row["restored"] / 1e6)


if __name__ == "__main__":
    main()
