"""Everything the README and docs/ show is run here, and what they promise to list is listed."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import pytest

import agent_memory
from agent_memory import EchoRunner, Memory, errors

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"(?P<before>[^\n]*)\n(?:[ \t]*\n)?```python\n(?P<code>.*?)^```", re.M | re.S)
_NO_RUN = re.compile(r"<!-- no-run: .+ -->")


def blocks(page: Path) -> list[tuple[int, str, bool]]:
    """(line, code, whether it runs) of each fenced python block."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, m.start("code")) + 1, m["code"], not _NO_RUN.fullmatch(m["before"].strip()))
        for m in _FENCE.finditer(text)
    ]


def sh_blocks(page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [block.strip() for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)]


class StandIn(Memory):
    """A Memory whose starter model is an ``EchoRunner``: examples that name no model run in a moment."""

    def __init__(self, model: object = None, *args: object, **options: object) -> None:
        super().__init__(EchoRunner() if model is None else model, *args, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples name their store "agents" and the like
    monkeypatch.setattr(agent_memory, "Memory", StandIn)
    names: dict[str, object] = {"__name__": "example"}
    for line, code, runs in blocks(page):
        padded = "\n" * (line - 1) + code  # so that a traceback shows the page's own line
        program = compile(padded, str(page), "exec")
        if runs:
            exec(program, names)


def test_the_first_example_resumes_an_agent_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(agent_memory, "Memory", StandIn)
    names: dict[str, object] = {"__name__": "example"}
    exec(blocks(ROOT / "README.md")[0][1], names)
    usage = names["reply"].usage  # type: ignore[attr-defined]
    assert usage.tier == "cold"
    assert 0 < usage.computed_tokens < usage.cached_tokens


def test_every_python_fence_is_found() -> None:
    for page in PAGES:
        assert len(blocks(page)) == page.read_text(encoding="utf-8").count("```python"), page.name
    assert any(runs for page in PAGES for _, _, runs in blocks(page))


def test_at_most_two_examples_are_not_run() -> None:
    assert len([code for page in PAGES for _, code, runs in blocks(page) if not runs]) <= 2


def test_the_readme_is_short_and_opens_with_two_commands_of_one_line() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    run_it, test_it = sh_blocks()[:2]
    assert "\n" not in run_it
    assert "\n" not in test_it
    assert "examples/quickstart.py" in run_it
    assert "pytest" in test_it
    assert all("python3 -m venv" in line for line in (run_it, test_it))


def test_the_continuous_integration_runs_the_documented_lines() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    found = re.search(r"<<'PY'\n(.*?)\nPY\n", script, re.S)
    assert found
    done = subprocess.run(["python3", "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    [contract] = [block for block in sh_blocks("docs/contributing.md") if "tests/contract" in block]
    assert done.stdout.splitlines() == [sh_blocks()[1], contract]


def test_every_error_is_explained() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    tree = [n for n, v in vars(errors).items() if inspect.isclass(v) and v.__module__ == errors.__name__]
    assert len(tree) > 10
    assert [name for name in tree if f"| `{name}` |" not in text] == []


def test_the_tour_names_every_module_that_exists_and_no_other() -> None:
    package = ROOT / "agent_memory"
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    table = text.partition("## One line per module")[2]
    named = set(re.findall(r"^\| `([\w/]+\.py)` \|", table, re.M))
    there = {str(p.relative_to(package)) for p in package.rglob("*.py") if p.name != "__init__.py"}
    assert named == there | {"__init__.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
