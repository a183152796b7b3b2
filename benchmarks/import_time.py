"""How long ``import agent_memory`` takes: the median of several child processes, less Python's own start.

python benchmarks/import_time.py [--runs 11]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

TIMED = "import time; t = time.perf_counter(); {work}; print(time.perf_counter() - t)"
CASES = {
    "import agent_memory": "import agent_memory",
    "from agent_memory import Config, Message": "from agent_memory import Config, Message",
    "from agent_memory import Memory, Agent": "from agent_memory import Memory, Agent",
}


def seconds(work: str) -> float:
    """Wall time of ``work`` in a fresh process, once its interpreter is up."""
    command = [sys.executable, "-c", TIMED.format(work=work)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    runs = parser.parse_args().runs
    print(f"{'':44}{'median ms':>10}{'worst ms':>10}")
    for name, work in CASES.items():
        seconds(work)  # the first one may write byte code
        times = [seconds(work) * 1e3 for _ in range(runs)]
        print(f"{name:44}{statistics.median(times):>10.1f}{max(times):>10.1f}")


if __name__ == "__main__":
    main()
