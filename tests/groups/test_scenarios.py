"""The two scenarios run, on a stand-in for their model; a scenario that says something wrong is told so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = ROOT / "examples" / "scenarios" / "texts"


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"examples/{name}.py", "--echo", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_dilemma_takes_25_turns_and_computes_less_than_a_program_that_keeps_nothing(tmp_path: Path) -> None:
    done = run("prisoners_dilemma", "--plot", str(tmp_path / "bars.svg"))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith("x")]
    assert [(row[0], int(row[1])) for row in rows] == [
        ("marco_alone", 4),
        ("danny_alone", 4),
        ("yard", 4),
        ("reckoning", 9),
        ("verdict", 4),
    ]
    assert all(int(row[3]) < int(row[2]) for row in rows)
    assert "equal replies: 25 of 25; tokens reused by cold turns: 0" in done.stdout
    assert done.stdout.count("silent   silent   1, 1") == 6
    assert (tmp_path / "bars.svg").read_text().count("<rect") == 10


def test_experts_are_asked_again_by_a_new_process_which_reads_their_kv_from_the_disk() -> None:
    done = run("routing", "--experts", "3")
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(prime|query|re-query|cross-topic) \(\w+\) +(\d+) +(\d+) +(\d+) .* (\S+)$", done.stdout, re.M)
    assert [(row[0], int(row[1]), row[4]) for row in found if row[0] != "prime"] == [
        ("query", 3, "hot"),
        ("re-query", 3, "cold"),
        ("cross-topic", 2, "hot"),
    ]
    assert int(found[0][3]) >= 2_000
    assert all(int(row[3]) < 200 for row in found[1:])
    assert "routed to the right expert: 3 of 3" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rounds = 2", "rounds = 'two'", "phase[0]: rounds must be a whole number, not negative, got 'two'"),
        ("rounds = 2", "round = 2", "phase[0]: unknown key 'round'; allowed are members, name, opening, rounds"),
        ('name = "prisoners_dilemma"', "", "dilemma.toml: name is missing"),
        (
            'prisoners = ["marco", "danny"]',
            "prisoners = 2",
            "prisoners must be a list with at least one value, a text that",
        ),
        ("both_silent = [1, 1]", "both_silent = [1, ", "dilemma.toml is no TOML"),
    ],
)
def test_a_wrong_scenario_is_told_which_key_and_what_is_allowed(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (ROOT / "examples" / "scenarios" / "prisoners_dilemma.toml").read_text()
    assert old in text
    file = tmp_path / "dilemma.toml"
    file.write_text(text.replace(old, new, 1))
    done = run("prisoners_dilemma", "--scenario", str(file))
    assert done.returncode != 0
    assert said in done.stderr


def test_the_texts_are_ten_and_small() -> None:
    sizes = [file.stat().st_size for file in TEXTS.glob("*.txt")]
    assert len(sizes) == 10
    assert sum(sizes) < 150_000


@pytest.mark.contract
@pytest.mark.model
@pytest.mark.slow
def test_three_experts_on_the_starter_model_compute_their_text_once() -> None:
    command = [sys.executable, "examples/routing.py", "--experts", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(prime|query|re-query|cross-topic) \(\w+\) +\d+ +(\d+) +(\d+) ", done.stdout, re.M)
    assert [row[0] for row in found] == ["prime", "query", "re-query", "cross-topic"]
    assert int(re.findall(r"shortest prompt: ([\d,]+)", done.stdout)[0].replace(",", "")) >= 2_000
    assert all(int(computed) * 10 < int(prompt) for _, prompt, computed in found[1:])
