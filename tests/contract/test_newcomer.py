"""A newcomer in a fresh environment installs, talks to an agent, leaves, comes back, and asks why it was fast.

Needs the package index for the installation; the starter model is fetched if this user's cache has none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.terminal import typed_into

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.contract, pytest.mark.model, pytest.mark.mlx]


def test_a_newcomer_installs_talks_leaves_and_resumes(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    wanted = f"{ROOT}[cli]" if sys.platform == "darwin" else f"{ROOT}[cpu,cli]"
    subprocess.run([str(venv / "bin" / "pip"), "install", "-q", wanted], check=True)
    command = str(venv / "bin" / "agent-memory")
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    own["XDG_DATA_HOME"] = str(tmp_path / "data")  # no store yet; on macOS the user's own is used
    name = f"alice-{os.getpid()}"

    def agent_memory(*arguments: str, lines: tuple[str, ...] = ()) -> str:
        return typed_into([command, *arguments], lines, own)

    try:
        first = agent_memory(
            "chat", name, "--max-tokens", "24", lines=("My name is Alice.", "I live in Delft.", "/quit")
        )
        assert f"{name}: 0 turns, 0 tokens" in first
        assert "0 tokens reused, " in first  # the first message
        assert re.search(r"[1-9]\d* tokens reused from hot", first)  # the second one
        assert f"{name} " in agent_memory("ls")
        told = agent_memory("show", name)
        assert f"{name}: 2 turns" in told
        assert "[user] My name is Alice." in told
        assert "[user] I live in Delft." in told
        found = re.search(
            r"reusable: (\d+) of (\d+) tokens \(cold \d+\)", agent_memory("explain", name, "Where do I live?")
        )
        assert found is not None
        reusable, of = map(int, found.groups())
        assert 0 < reusable < of
        resumed = agent_memory("chat", name, "--max-tokens", "24", lines=("Where do I live?", "/quit"))
        assert f"{name}: 2 turns, " in resumed
        assert f"{reusable} tokens reused from cold, {of - reusable} computed" in resumed
    finally:
        agent_memory("rm", name)
