"""The documentation site builds, with warnings as errors, and every page of docs/ is on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

DOCS = Path(__file__).parents[2] / "docs"


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path: Path) -> None:
    done = build(DOCS, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    pages = [path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    assert [page for page in pages if not (tmp_path / page).is_file()] == []
    assert (tmp_path / "llms.txt").read_text("utf-8") == (DOCS / "llms.txt").read_text("utf-8")


def test_a_dead_link_fails_the_build(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").write_text((DOCS / "conf.py").read_text("utf-8").replace('["llms.txt"]', "[]"), "utf-8")
    (source / "index.md").write_text("# Page\n\n[nowhere](nowhere.md)\n", "utf-8")
    done = build(source, tmp_path / "out")
    assert done.returncode != 0
    assert "nowhere" in done.stderr
