"""The laws of long-term memory, for episodes: nothing lost, workspaces apart, no secret written, forgotten is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from agent_memory.errors import ItemNotFoundError
from agent_memory.recall.episode_types import Outcome
from agent_memory.recall.episodes import EpisodicMemory
from agent_memory.recall.protocols import Redacted
from tests.parts.secret_corpus import secrets
from tests.parts.stores import Stores
from tests.parts.waiting import together

ROOT = Path(__file__).parents[2]

#: Records steps for ever; says on its standard output which of them returned.
WORKER = """
import sys
from agent_memory.recall.episodes import EpisodicMemory
from tests.parts.stores import Stores
memory = EpisodicMemory(sys.argv[1], workspace=sys.argv[2])
while True:
    with memory.start("a task") as episode:
        print("start", episode.id, flush=True)
        for i in range(7):
            n = episode.step("tool", f"step {i}", observation="x" * 300)
            print("step", episode.id, n, flush=True)
        episode.complete(True)
        print("end", episode.id, flush=True)
"""


def killed_run(path: str | Path, n_lines: int, workspace: str = "default") -> list[list[str]]:
    """What a process acknowledged before it was killed, after at least ``n_lines`` lines."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), workspace], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert worker.stdout is not None
    lines = [worker.stdout.readline() for _ in range(n_lines)]
    os.kill(worker.pid, signal.SIGKILL)
    lines += worker.stdout.readlines()
    worker.wait()
    worker.stdout.close()
    return [line.split() for line in lines if line.endswith("\n")]


def check_acknowledged(path: str | Path, said: list[list[str]]) -> None:
    steps = Counter(int(line[1]) for line in said if line[0] == "step")
    with EpisodicMemory(path) as memory:
        assert memory.check().ok
        for line in said:
            kept = memory.get(int(line[1]))
            assert len(kept.steps) >= steps[kept.id]
            if line[0] == "end":
                assert (kept.state, len(kept.steps)) == ("completed", 7)
        for left in memory.unfinished():
            again = memory.resume(left.id)
            assert again.step("tool", "after the kill") == len(left.steps) + 1
            again.complete(False)
        assert memory.stats().n_open == 0
        assert memory.check().ok


@pytest.mark.parametrize("n_lines", [1, 5, 23])
def test_a_killed_process_loses_no_step_that_returned_and_its_episode_is_resumed(store: Stores, n_lines: int) -> None:
    path = store("recall.db")
    check_acknowledged(path, killed_run(path, n_lines))


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(store: Stores) -> None:
    rng = Random(5)
    path = store("recall.db")
    for _ in range(200):
        check_acknowledged(path, killed_run(path, rng.randint(1, 60)))


def test_eight_threads_of_mixed_work_lose_no_update(store: Stores) -> None:
    with EpisodicMemory(store("recall.db")) as memory:
        shared = memory.start("a shared task")

        def work(seed: int) -> None:
            rng = Random(seed)
            for i in range(12):
                with memory.start(f"task {seed} {i}", context={"tags": (str(seed),)}) as episode:
                    for name in "abc":
                        episode.step(name, ok=rng.random() > 0.2, observation="error: x")
                    shared.step("note", f"{seed} {i}")
                    memory.recall("task", k=3)
                    memory.recommend("task", after=["a"])
                    episode.complete(rng.random() > 0.3)
                if i % 6 == 5:
                    memory.patterns()
                    memory.stats()

        together(work)
        kept = memory.get(shared.id)
        assert [step.number for step in kept.steps] == list(range(1, 97))
        assert {step.action for step in kept.steps} == {f"{seed} {i}" for seed in range(8) for i in range(12)}
        stats = memory.stats()
        assert (stats.n_completed, stats.n_open, stats.n_steps) == (96, 1, 96 * 3 + 96)
        assert memory.check().ok


def test_a_second_process_reads_and_writes_the_same_file_meanwhile(store: Stores) -> None:
    path = store("recall.db")
    with EpisodicMemory(path, workspace="mine") as memory:
        said = killed_run(path, 40)
        for i in range(20):
            with memory.start(f"task {i}") as episode:
                episode.step("a")
                episode.complete(True)
        assert memory.stats().n_completed == 20
    check_acknowledged(path, said)


@pytest.mark.parametrize("n", [250, pytest.param(2_000, marks=pytest.mark.slow)])
def test_workspaces_never_meet_under_random_operations(n: int, store: Stores) -> None:
    """Two workspaces of one file behave like two files that never heard of one another."""
    rng = Random(11)
    ids: dict[str, dict[int, int]] = {"a": {}, "b": {}}
    with EpisodicMemory(store()) as together, EpisodicMemory(store()) as alone_a, EpisodicMemory(store()) as alone_b:
        pairs = {"a": (together.workspace("a"), alone_a), "b": (together.workspace("b"), alone_b)}
        for i in range(n):
            name = rng.choice("ab")
            mixed, alone = pairs[name]
            act = rng.random()
            known = ids[name]
            if act < 0.6 or not known:
                rows: list[int] = []
                tools = rng.choice([["x", "y", "z"], ["y", "x"], [f"{name}1", f"{name}2"]])
                success = rng.random() > 0.3
                for memory in (mixed, alone):
                    with memory.start(f"task {name} {i % 7}", context={"language": f"lang {name}"}) as episode:
                        for tool in tools:
                            episode.step(tool)
                        episode.decide(f"condition {i % 3}", rng.choice(["left"]) if success else "right")
                        episode.complete(success)
                    rows.append(episode.id)
                known[rows[1]] = rows[0]
            elif act < 0.7:
                victim = rng.choice(sorted(known))
                assert (mixed.forget(known.pop(victim)), alone.forget(victim)) == (1, 1)
            else:
                shown = [
                    {(p.id, p.choice, len(p.episodes)) for p in m.patterns(min_effectiveness=0)} for m in (mixed, alone)
                ]
                assert shown[0] == shown[1]
                found = [{h.episode.task for h in m.recall(f"task {i % 7}", k=50)} for m in (mixed, alone)]
                assert found[0] == found[1]
                assert mixed.stats() == alone.stats()
        other = pairs["b"][0]
        for id in ids["a"].values():
            with pytest.raises(ItemNotFoundError):
                other.get(id)
            with pytest.raises(ItemNotFoundError):
                other.resume(id)
            assert other.forget(id) == 0


def test_salts_part_workspaces_of_one_name(store: Stores) -> None:
    with EpisodicMemory(store(), salt="one") as one:
        database = one._database
        two = EpisodicMemory(database, salt="two")
        with one.start("a secret task") as episode:
            episode.complete(True)
        assert two.recall("a secret task") == []
        assert len(one.recall("a secret task")) == 1


def test_no_byte_of_a_secret_reaches_the_file(store: Stores) -> None:
    samples = [sample for sample in secrets(4, 2) if all(len(part) >= 12 for part in sample.parts)]
    assert len(samples) > 60
    with EpisodicMemory(store("recall.db")) as memory:
        for sample in samples:
            with memory.start(f"use {sample.text}", context={"tags": (sample.text,)}) as episode:
                episode.step("a", sample.text, observation=sample.text, parameters={"given": sample.text})
                episode.decide(sample.text, sample.text)
                episode.complete(Outcome(success=False, result=sample.text, error=sample.text))
            assert memory.get(episode.id).redactions >= 7
        stored = store.bytes()
        memory.recommend("use a key", error=samples[0].text)
    left = [part for sample in samples for part in sample.parts if part.encode() in stored]
    assert left == []


def test_redaction_is_the_callers_to_replace_or_to_switch_off(store: Stores) -> None:
    class Shout:
        def redact(self, text: str) -> Redacted:
            return Redacted(text.upper())

    with EpisodicMemory(store(), redact=Shout()) as memory:
        assert memory.get(memory.start("whisper").id).task == "WHISPER"
    with EpisodicMemory(store(), redact=None) as memory:
        assert memory.get(memory.start("password=Tiger!99").id).task == "password=Tiger!99"


def test_equal_secrets_are_equal_in_another_process_of_the_store(store: Stores) -> None:
    tasks: list[str] = []
    for _ in range(2):
        with EpisodicMemory(store("recall.db")) as memory:
            tasks.append(memory.get(memory.start("password=Tiger!99").id).task)
    assert tasks[0] == tasks[1]
    with EpisodicMemory(store("other.db")) as memory:
        assert memory.get(memory.start("password=Tiger!99").id).task != tasks[0]


def test_no_byte_of_a_forgotten_episode_is_left(store: Stores) -> None:
    words = ("quokkatask", "quokkatool", "quokkaaction", "quokkaerror", "quokkacondition", "quokkachoice")
    with EpisodicMemory(store("recall.db")) as memory:
        gone: list[int] = []
        for i in range(6):
            with memory.start(f"keep {i}") as kept:
                kept.step("keeptool", "keepaction")
                kept.complete(True)
            with memory.start(f"{words[0]} {i}") as episode:
                episode.step(words[1], words[2], ok=False, observation=words[3] * 500)
                episode.step("repair")
                episode.step(words[1], words[2])
                episode.decide(words[4], words[5])
                episode.checkpoint()
                episode.complete(True)
            gone.append(episode.id)
        assert any(words[1] in pattern.tools or words[3] in pattern.error for pattern in memory.patterns())
        assert memory.forget(gone[:2]) == 2
        assert memory.forget(gone) == 4
        assert not any(word in repr(memory.patterns(min_effectiveness=0)) for word in words)
        stored = store.bytes()
        assert [word for word in words if word.encode() in stored] == []
        assert b"keepaction" in stored
        assert memory.stats().n_completed == 6
        assert memory.forget() == 6
    stored = store.bytes()
    assert b"keepaction" not in stored


def test_episodes_need_neither_mlx_nor_a_network_nor_a_thread() -> None:
    program = (
        "import sys, threading\n"
        "sys.addaudithook(lambda event, _: sys.exit(f'socket: {event}') if event.split('.')[0] == 'socket' else None)\n"
        "from agent_memory.recall.episodes import EpisodicMemory\n"
        "with EpisodicMemory() as memory, memory.start('task') as episode:\n"
        "    episode.step('a'); episode.complete(True); memory.recommend('task')\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'mlx', 'mlx_lm', 'transformers', 'numpy'}, loaded\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
