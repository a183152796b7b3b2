"""marimo shows what Jupyter shows: an app with a Memory, an agent, a reply, the agents and the doctor, run headless.

marimo takes 150 MB and is not in ``[contract]``: ``pip install marimo`` beside it runs this.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("marimo")
pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]

FIRST = """
import marimo
app = marimo.App()

@app.cell
def _():
    from agent_memory import EchoRunner, Memory
    memory = Memory(EchoRunner(), ":memory:")
    alice = memory.agent("alice", system="You are <b>brief</b>.")
    alice.say("one two three")
    reply = alice.say("And four?")
    return alice, memory, reply
"""
CELL = """
@app.cell
def _(alice, memory, reply):
    {value}
    return
"""
#: What a cell ends with -> what its page begins with.
SHOWN = {
    "memory": "Memory of echo",
    "alice": "Agent alice: 2 turns, ",
    "reply": "Reply of alice",
    "memory.agents()": "1 agent",
    "memory.doctor()": "Doctor",
    "reply.usage": "reused",
}


def test_an_app_shows_the_same_pages_as_a_notebook(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(FIRST + "".join(CELL.format(value=value) for value in SHOWN), encoding="utf-8")
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "marimo", "-q", "export", "html", str(app), "-o", str(page), "--no-include-code"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
    told = page.read_text(encoding="utf-8")
    for code, character in (("003C", "<"), ("003E", ">"), ("0026", "&")):
        told = told.replace(f"\\u{code}", character)
    outputs = [part.partition('"type": "data"')[0] for part in told.split('{"text/html": "')[1:]]
    assert len(outputs) == len(SHOWN)
    for value, shown in SHOWN.items():
        assert any(shown in output for output in outputs), value
    [agent] = [output for output in outputs if SHOWN["alice"] in output]
    assert "&lt;b&gt;brief&lt;/b&gt;" in agent
    assert "<b>brief" not in agent
