"""What type checkers say of callers' code: wrong lines are refused, right ones accepted, by two checkers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "typing"
RIGHT, WRONG = FOLDER / "right.py", FOLDER / "wrong.py"
LEAST = 40


def marked(path: Path, mark: str) -> set[int]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith(f"# {mark}")}


def by_mypy(tmp_path: Path) -> dict[str, dict[int, str]]:
    """file -> line -> what is wrong with it."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty"]
    done = subprocess.run([*command, str(RIGHT), str(WRONG)], cwd=ROOT, capture_output=True, text=True, check=False)
    found: dict[str, dict[int, str]] = {RIGHT.name: {}, WRONG.name: {}}
    for name, line, text in re.findall(r"^\S*?(\w+\.py):(\d+): error: (.+)$", done.stdout, re.M):
        found[name][int(line)] = text
    assert done.returncode in (0, 1), done.stderr
    return found


def by_basedpyright(tmp_path: Path) -> dict[str, dict[int, str]]:
    """The same."""
    settings = {
        "include": [str(RIGHT), str(WRONG)], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
    }  # fmt: skip
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = ["-m", "basedpyright", "--project", str(tmp_path), "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, dict[int, str]] = {RIGHT.name: {}, WRONG.name: {}}
    for one in json.loads(done.stdout)["generalDiagnostics"]:
        if one["severity"] == "error":
            found[Path(one["file"]).name][one["range"]["start"]["line"] + 1] = one["message"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("check", [by_mypy, by_basedpyright])
def test_wrong_lines_are_refused_and_right_ones_accepted(
    check: Callable[[Path], dict[str, dict[int, str]]], tmp_path: Path
) -> None:
    found = check(tmp_path)
    assert found[RIGHT.name] == {}
    assert sorted(found[WRONG.name]) == sorted(marked(WRONG, "wrong")), found[WRONG.name]


def test_there_are_enough_lines_of_both_kinds() -> None:
    assert len(marked(RIGHT, "right")) >= LEAST
    assert len(marked(WRONG, "wrong")) >= LEAST
