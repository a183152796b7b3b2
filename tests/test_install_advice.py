"""What errors and pages tell people to install exists, and is the same everywhere."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from agent_memory.errors import INSTALL, MissingExtraError
from agent_memory.grammar import matcher

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOLD = sorted(p for place in ("agent_memory", "docs", "examples") for p in (ROOT / place).rglob("*.[pm][yd]"))


def test_line_17_the_commands_are_those_of_the_project_file() -> None:
    developers = ("test", "contract", "bench", "docs")
    extras = {n: r for n, r in PROJECT["optional-dependencies"].items() if n not in developers}
    bare = {n: [r.partition(";")[0].strip() for r in requirements] for n, requirements in extras.items()}
    assert {n: "pip install " + " ".join(f'"{r}"' for r in requirements) for n, requirements in bare.items()} == INSTALL


@pytest.mark.parametrize("path", [ROOT / "README.md", *TOLD], ids=lambda path: str(path.relative_to(ROOT)))
def test_line_17_nobody_is_told_to_install_this_library_by_its_name(path: Path) -> None:
    told = re.findall(r"pip install[^\n]*", path.read_text(encoding="utf-8"))
    assert [line for line in told if re.search(r"agent[-_]memory", line)] == []


def test_a_command_stands_in_one_place_of_the_code() -> None:
    code = [p for p in TOLD if p.suffix == ".py" and p.is_relative_to(ROOT / "agent_memory")]
    found = {p.name for p in code if re.search(r"pip install ['\"]", p.read_text(encoding="utf-8"))}
    assert found == {"errors.py"}


def test_line_17_a_missing_extra_names_a_command_that_needs_no_name_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=re.escape(INSTALL["grammar"])):
        matcher.llguidance()


def test_pages_name_the_commands_as_errors_do() -> None:
    assert INSTALL["grammar"] in (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    assert INSTALL["grammar"] in (ROOT / "examples" / "tools.py").read_text(encoding="utf-8")
