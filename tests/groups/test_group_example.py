"""The example runs, on a stand-in for its model."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import agent_memory
from agent_memory import EchoRunner, Memory

EXAMPLE = Path(__file__).parents[2] / "examples" / "group.py"


class StandIn(Memory):
    """A Memory that answers what it is asked."""

    def __init__(self, model: object, path: Path) -> None:
        super().__init__(EchoRunner("A rose is a rose."), path)


def test_the_example_shows_that_turns_compute_what_is_new(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agent_memory, "Memory", StandIn)
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), "--rounds", "3"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line[:5].strip().isdigit()]
    assert [(row[0], row[1]) for row in rows] == [(str(n), name) for n in (1, 2, 3) for name in ("ann", "bob", "cem")]
    assert all(int(row[3]) * 2 < int(row[2].replace(",", "")) for row in rows[3:])
    assert "Opened again: 11 lines." in said
    assert "Vote: roses" in said
