"""The demo pages, run headless: each shows the table and the plot of its example's dry run.

marimo takes 150 MB and is not in ``[contract]``: ``pip install marimo`` beside it runs this.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("marimo")
pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]


def exported(name: str, folder: Path) -> str:
    """The page as a browser without a kernel gets it, its escapes undone."""
    page = folder / "page.html"
    command = [sys.executable, "-m", "marimo", "-q", "export", "html", f"examples/demo/{name}.py", "-o", str(page)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--no-include-code"], cwd=ROOT, check=True, env=environment, stdin=subprocess.DEVNULL)
    told = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda found: chr(int(found[1], 16)), page.read_text(encoding="utf-8"))
    for _ in range(3):  # JSON in an attribute in HTML in JSON
        told = html.unescape(told).replace("\\", "")
    return told


def test_the_page_of_the_dilemma_shows_its_phases_its_payoffs_and_its_bars(tmp_path: Path) -> None:
    told = exported("prisoners_dilemma", tmp_path)
    assert re.findall(r'"phase":"(\w+)","turns":(\d)', told) == [
        ("marco_alone", "4"),
        ("danny_alone", "4"),
        ("yard", "4"),
        ("reckoning", "9"),
        ("verdict", "4"),
    ]
    assert told.count('"marco":"silent","danny":"silent","years":"1, 1"') == 6
    assert told.count("<rect") == 10
    assert "equal replies: 25 of 25" in told


def test_the_page_of_the_experts_shows_its_phases_and_its_bars(tmp_path: Path) -> None:
    told = exported("routing", tmp_path)
    phases = re.findall(r'"phase":"([\w-]+) \((\w+)\)","asked":(\d)', told)
    assert phases == [
        ("prime", "cold", "3"),
        ("query", "hot", "3"),
        ("re-query", "restored", "3"),
        ("cross-topic", "hot", "2"),
    ]
    assert told.count("<rect") == 4
    assert "routed to the right expert: 3 of 3" in told
