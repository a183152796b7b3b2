"""The fleet on Ray: workers die in mid-turn; every acknowledged turn is there, as one process would have said it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_memory import EchoRunner, Memory

pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]
N_AGENTS, N_TURNS, N_KILLS = 20, 4, 3


def recalling(text: str, ids: tuple[int, ...]) -> str:
    return f"{text} {hashlib.sha256(repr(ids).encode()).hexdigest()[:16]}"


def test_a_fleet_that_loses_workers_loses_no_acknowledged_turn(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    command = [sys.executable, "examples/fleet.py", "--echo", "--json", str(told)]
    command += ["--agents", str(N_AGENTS), "--turns", str(N_TURNS), "--kills", str(N_KILLS)]
    home = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}  # Ray writes a token into the home folder
    done = subprocess.run(command, cwd=ROOT, env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(told.read_text())
    assert found["killed"] == N_KILLS
    system = "You are one of many assistants in a fleet. Answer in one short sentence. " * 8
    with Memory(EchoRunner(recalling), ":memory:") as alone:
        for number in range(N_AGENTS):
            name = f"agent{number:02d}"
            agent = alone.agent(name, system=system)
            replies = [agent.say(f"This is message {turn} to {name}.", max_tokens=32).text for turn in range(N_TURNS)]
            assert found["acknowledged"][name] == found["logged"][name] == replies
    assert "1 worker: 80 turns" in done.stdout
    assert "2 workers, 3 killed in mid-turn: 80 turns" in done.stdout
    assert "acknowledged turns lost: 0; agents that differ from one process: 0" in done.stdout


def test_an_agent_whose_worker_died_after_its_last_turn_is_read_elsewhere(tmp_path: Path) -> None:
    found = importlib.util.spec_from_file_location("fleet", ROOT / "examples" / "fleet.py")
    assert found is not None
    assert found.loader is not None
    fleet = importlib.util.module_from_spec(found)
    found.loader.exec_module(fleet)
    remote, key = f"file://{tmp_path}/bucket", bytes(32)
    first, second = (fleet.Worker(None, True, str(tmp_path / name), remote, key) for name in ("first", "second"))
    said, _ = first.say("agent01", 0, "Hello.")
    assert second.replies("agent01") == [said]
    first.close()
    second.close()
