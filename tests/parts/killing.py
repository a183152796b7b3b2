"""A process of its own that is killed while it works: what it acknowledged by then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def killed(program: str, *arguments: str, after_s: float) -> list[str]:
    """Run ``program``, kill it ``after_s`` after it has printed "open"; return the lines that follow that."""
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    time.sleep(after_s)
    child.send_signal(signal.SIGKILL)
    lines = child.communicate()[0].splitlines()
    assert child.returncode == -signal.SIGKILL
    return lines
