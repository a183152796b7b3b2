"""kill -9 while a process remembers, forgets, consolidates and does idle work: nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent_memory import ContextMemory
from tests.parts.stores import Stores

WRITER = """
import sys
import numpy as np
from agent_memory import ContextMemory, Extracted

class Places:
    dim, fingerprint = 4, "places 1"
    def embed(self, texts):
        return np.array([[1 + len(text), text.count("e"), 1, 2] for text in texts], np.float32)

class Shouting:
    name = "shouting 1"
    def extract(self, text):
        if text.count("7") == 1:
            raise ValueError("seven")
        return [Extracted("event", 0, len(text) // 2)]

path, seed = sys.argv[1], sys.argv[2]
memory = ContextMemory(path, embedder=Places(), extractor=Shouting())
n = 0
while True:
    text = f"run {seed} step {n}: we decided on number {n}. The master of the ferry is {seed}x{n}."
    memory.remember(text, source="talk")
    print(f"kept {text}", flush=True)
    if n % 7 == 3:
        memory.remember(f"the old cargo number {n} leaves from pier nine at seven in the morning")
        memory.remember(f"The old cargo number {n} leaves from pier nine, at seven in the morning!")
        memory.consolidate()
    if n % 11 == 5:
        memory.working_set(f"ferry {n}")
    if n % 5 == 2:
        memory.maintain(5)
    if n % 13 == 9:
        gone = f"run {seed} step {n - 3}:"
        print(f"forgetting {gone}", flush=True)
        memory.forget(gone)
        print(f"gone {gone}", flush=True)
    n += 1
"""


def run_and_kill(path: str, seed: int, delay_lines: int) -> list[str]:
    """What the writer acknowledged until it was killed, at once after ``delay_lines`` lines."""
    command = [sys.executable, "-c", WRITER, path, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline().strip() for _ in range(delay_lines)]
        os.kill(writer.pid, signal.SIGKILL)
        lines += [line.strip() for line in writer.stdout]
    return lines


def kill_often(store: Stores, name: str, n_kills: int, seed: int = 11) -> None:
    chance, path = random.Random(seed), store(name)
    kept: set[str] = set()
    for run in range(n_kills):
        lines = run_and_kill(path, run, chance.randint(1, 25))
        kept |= {line.removeprefix("kept ") for line in lines if line.startswith("kept ")}
        asked = [line.removeprefix("forgetting ") for line in lines if line.startswith("forgetting ")]
        gone = [line.removeprefix("gone ") for line in lines if line.startswith("gone ")]
        kept = {text for text in kept if not any(text.startswith(phrase) for phrase in asked)}
        with ContextMemory(path) as memory:
            assert memory.check().damaged == ()
            with memory._database.read() as db:
                bodies = {body for (body,) in db.execute("SELECT body FROM texts")}
            assert kept <= bodies
            assert not any(body.startswith(phrase) for body in bodies for phrase in gone)
            data = store.bytes(name)
            # Also where the process died between the deletion of the rows and the removal of their bytes.
            without_rows = [p for p in asked if not any(body.startswith(p) for body in bodies)]
            assert [phrase for phrase in without_rows if phrase.encode() in data] == []
            stats = memory.stats()
            assert stats.n_unread <= stats.n_texts
            newest = memory.recall("master of the ferry", k=50)
            valid = [hit for hit in newest if hit.item.slot]
            assert len(valid) <= 1  # one master at a time


def test_six_kills_lose_nothing_that_was_acknowledged(store: Stores) -> None:
    kill_often(store, "recall.sqlite", 6)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_two_hundred_kills_lose_nothing_that_was_acknowledged(store: Stores, part: int) -> None:
    for number in range(5):  # a file each, so that they stay small
        kill_often(store, f"recall-{number}.sqlite", 10, seed=100 * part + number)
