"""An upgrade of mlx-lm keeps stored KV valid while its caches keep the same: their layouts are recorded here."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, Memory
from tests.parts import tiny
from tests.parts.tinyrunner import endless

pytestmark = pytest.mark.mlx

#: Of each architecture of tests/parts/tiny.py, the digest of its layout as mlx-lm 0.32 makes it. One that changes makes
#: every KV that users have stored for such models a miss: that is for a changelog, not for this table alone.
RECORDED = {
    "llama": "ae0e4063b36722c320ae40a59c0e2d0a5e82a780f28a8239d3602613831d780c",
    "llama_windows": "2645859d434b93add659d454f4b5c5df2f73b8d30e782707598edf327207e92e",
    "qwen3": "ae0e4063b36722c320ae40a59c0e2d0a5e82a780f28a8239d3602613831d780c",
    "gemma3_text": "2645859d434b93add659d454f4b5c5df2f73b8d30e782707598edf327207e92e",
    "deepseek_v3": "96ab66c5063e64bab56315bba6dfad14fd88fce5405b5741c662d8ce5cd01d5c",
    "qwen3_next": "4a06b49a60f1171639987082a0d512e9e300bb5a3bc4b05e0629646a7f53a73b",
    "falcon_h1": "9da5040804c14998b1d2eceb5f736d08c3c46c9f7b9cbe8d61844a79b9b8013b",
    "llama4": "7ae660abf955cb7c7e5f202b71caf75bfc1a623545b19794871343c0351551fd",
}


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_the_layout_of_each_kind_of_cache_is_the_recorded_one(name: str) -> None:
    runner = endless(name)
    runner.open()
    assert runner.layout.digest == RECORDED[name]


def test_another_mlx_lm_of_the_same_layouts_restores_what_this_one_stored(tmp_path: Path, monkeypatch: Any) -> None:
    config = Config(chunk_tokens=16, prefill_tokens=16, blas=None)
    with Memory(endless("llama"), tmp_path, config=config) as memory:
        memory.agent("ann").say("A believable beginning.", max_tokens=8)
    real = importlib.metadata.version
    other = lambda name: "0.99.0" if name == "mlx-lm" else real(name)
    monkeypatch.setattr("agent_memory.runner.mlx.version", other)
    with Memory(endless("llama"), tmp_path, config=config) as memory:
        assert memory.doctor().mlx_lm == "0.99.0"
        usage = memory.agent("ann").say("And an end.", max_tokens=8).usage
        assert (usage.tier, usage.exactness, usage.miss) == ("cold", "exact", None)
