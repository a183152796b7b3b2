"""kill -9 in the middle of a phase: the group goes on in the same phase, and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_memory import EchoRunner, Group, Memory, Phase

CHILD = """
import sys
from tests.groups.test_group_kill import NAMES, PHASES, is_over, voice
from agent_memory import Memory

path, topology = sys.argv[1:]
with Memory(voice(0.002), path) as memory:
    for name in NAMES:
        memory.agent(name)
    group = memory.group("trial", NAMES, topology=topology, phases=PHASES)
    print("open", flush=True)
    while group.phase is not None or group.next_phase():
        while not is_over(group):
            group.turn(max_tokens=40) if topology == "turns" else group.round(max_tokens=40)
            memory.flush()
            print("acknowledged", group.phase, len(group.transcript), flush=True)
        if group.next_phase() is None:
            break
    print("end", flush=True)
"""
NAMES = ("ann", "bob", "cem")
PHASES = [
    Phase("one", "First.", rounds=2),
    Phase("two", "ann said: {one.ann}", members=["bob", "cem"], rounds=2),
    Phase("three", {"ann": "They said: {two.transcript}", "bob": "Judge."}, rounds=2),
]


def voice(delay_s: float = 0.0) -> EchoRunner:
    """A model that says what it was asked, but for the introduction: whatever is lost or comes twice shows."""

    def reply(asked: str, ids: tuple[int, ...]) -> str:
        return f"{len(ids)} tokens; {asked.partition('name.')[2] or asked}"[-60:]

    return EchoRunner(reply, delay_s=delay_s)


def is_over(group: Group) -> bool:
    """True if everybody has spoken as often as the phase says."""
    phase = next(phase for phase in group.phases if phase.name == group.phase)
    said = [line for line in group.transcript if line.phase == phase.name and line.kind == "turn"]
    return len(said) == phase.rounds * len(phase.members or group.members)


def undisturbed(topology: str) -> list[str]:
    with Memory(voice(), ":memory:") as memory:
        for name in NAMES:
            memory.agent(name)
        group = memory.group("trial", NAMES, topology=topology, phases=PHASES)  # type: ignore[arg-type]
        group.run(max_tokens=40)
        return [str(line) for line in group.transcript]


def started(path: Path, topology: str) -> subprocess.Popen[str]:
    """A child that runs the group."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), topology],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def run_and_kill(path: Path, topology: str, after_s: float) -> list[list[str]]:
    """The lines of a child that is killed ``after_s`` after it has opened the group, unless it ends before."""
    child = started(path, topology)
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    time.sleep(after_s)
    child.send_signal(signal.SIGKILL)
    return [line.split() for line in child.communicate()[0].splitlines() if line.count(" ") == 2 or line == "end"]


def examine(path: Path, topology: str, seed: int) -> None:
    moments, n_kills, names = random.Random(seed), 0, [phase.name for phase in PHASES]
    best = (-1, 0)
    for _ in range(40):
        found = run_and_kill(path, topology, moments.random() * 0.5)
        told = [(names.index(phase), int(n)) for _, phase, n in (line for line in found if line != ["end"])]
        best = max([best, *told])
        with Memory(voice(), path) as memory:
            group = memory.group("trial")
            if best[0] >= 0:
                assert group.phase is not None
                assert names.index(group.phase) >= best[0]
            assert len(group.transcript) >= best[1], "an acknowledged turn is lost"
            assert memory.verify().ok
            if found[-1:] == [["end"]]:
                assert [str(line) for line in group.transcript] == undisturbed(topology)
                break
        n_kills += 1
    else:
        raise AssertionError(f"the group did not come to its end in {n_kills} lives")
    assert n_kills >= 1


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["turns", "round"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_group_goes_on_in_the_same_phase_and_ends_as_if_nothing_had_happened(
    topology: str, seed: int, tmp_path: Path
) -> None:
    examine(tmp_path, topology, seed)


def test_a_group_that_is_killed_after_a_turn_has_it_and_its_phase(tmp_path: Path) -> None:
    child = started(tmp_path, "turns")
    assert child.stdout is not None
    lines = [child.stdout.readline().split() for _ in range(9)]  # "open", and eight turns: two of phase two
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert lines[-1][1] == "two"
    with Memory(voice(), tmp_path) as memory:
        group = memory.group("trial")
        assert group.phase == "two"
        assert len(group.transcript) >= int(lines[-1][2])
        group.run(max_tokens=40)
        assert [str(line) for line in group.transcript] == undisturbed("turns")
