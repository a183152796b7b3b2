"""Lint, types and layers of the package, checked in one process beside the tests: started first, asked for last."""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.parts.waiting import wait_for

ROOT = Path(__file__).parents[2]
CHECKS = {
    "types": ("-m", "mypy"),
    "layers": ("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"),
    "lint": ("-m", "ruff", "check", "."),
}
MOST_S = 600.0  #: far above what the checks take
_file: list[Path] = []
_running: list[subprocess.Popen[bytes]] = []


def file() -> Path:
    """Return the file that the checks write, once it is there."""
    if not _file:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _file.append(Path(folder, "checks.json"))
    return _file[0]


def write_to(path: Path) -> None:
    """Name that file, where several processes ask for the checks; the first that starts them is the only one."""
    _file[:] = [path]


def start() -> None:
    """Start the checks, unless they are started."""
    with contextlib.suppress(FileExistsError):
        file().with_suffix(".begun").touch(exist_ok=False)
        _running.append(subprocess.Popen([sys.executable, "-m", "tests.parts.beside", str(file())], cwd=ROOT))


def complaints(check: str) -> str:
    """Wait for the checks; return what one of them found, empty if it is content."""
    start()
    wait_for(lambda: file().exists() or any(one.poll() for one in _running), "lint, types and layers", MOST_S)
    found: Mapping[str, str] = json.loads(file().read_text(encoding="utf-8"))
    return found[check]


def main(out: Path) -> None:
    """Run the checks one after another; write what each found, as JSON, whole or not at all."""
    found = {}
    for name, command in CHECKS.items():
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        found[name] = "" if done.returncode == 0 else f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    with contextlib.suppress(FileNotFoundError):  # the run has ended without asking, and its folder is gone
        out.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
        out.with_suffix(".part").replace(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
