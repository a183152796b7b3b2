"""Lint, types and layers of the package, checked in one process beside the tests: started first, asked for last."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
CHECKS = {
    "types": ("-m", "mypy"),
    "layers": ("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"),
    "lint": ("-m", "ruff", "check", "."),
}
_running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []


def start() -> None:
    """Start the checks; called again, do nothing."""
    if not _running:
        out = tempfile.TemporaryFile()  # noqa: SIM115 - read once the process has ended
        _running.append((subprocess.Popen([sys.executable, __file__], cwd=ROOT, stdout=out), out))


def complaints(check: str) -> str:
    """Wait for the checks; return what one of them found, empty if it is content."""
    start()
    process, out = _running[0]
    assert process.wait() == 0, "the checks did not run to their end"
    out.seek(0)
    found: Mapping[str, str] = json.loads(out.read())
    return found[check]


def main() -> None:
    """Run the checks one after another; print what each found, as JSON."""
    found = {}
    for name, command in CHECKS.items():
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        found[name] = "" if done.returncode == 0 else f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
