"""The page's deployment on Ray Serve: one replica of this machine serves an agent, and its turns are on the bucket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import blocks

pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]
BEFORE = """
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
"""
AFTER = """
ben = handle.options(multiplexed_model_id="ben")
first, second = ben.remote("One.").result(), ben.remote("Two.").result()
assert (first[0], second[0]) == ("One.", "Two."), (first, second)
assert second[1] > 0, second
with Memory(EchoRunner(), "elsewhere", config=Config(**SHARED)) as memory:
    print("published:", [[one.content for one in memory.fetch_agent(name).messages] for name in ("ann", "ben")])
print("taken back:", ben.remote("Three.").result()[0])
serve.shutdown()
ray.shutdown()
"""


def test_the_deployment_of_the_page_serves_agents_and_publishes_their_turns(tmp_path: Path) -> None:
    [code] = [code for _, code, _ in blocks(ROOT / "docs" / "beyond.md") if "@serve.deployment" in code]
    (tmp_path / "deployed.py").write_text(BEFORE + code + AFTER, encoding="utf-8")
    told = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "deployed.py"], cwd=tmp_path, env={**os.environ, **told}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "published: [['Hello.', 'Hello.', 'Go on.', 'Go on.'], ['One.', 'One.', 'Two.', 'Two.']]" in done.stdout
    assert "taken back: Three." in done.stdout
