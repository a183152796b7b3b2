"""Law 10: lossy never poses as exact; what was decoded is never encoded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, Memory
from tests.laws.test_laws_kinds import CHUNK, text
from tests.logits import answer
from tests.tinyrunner import endless

pytestmark = pytest.mark.mlx

ARCHITECTURES = ("llama", "llama_windows", "deepseek_v3", "qwen3_next")


def opened(name: str, path: Any, codec: Any) -> Memory:
    return Memory(endless(name), path, config=Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK, cold_codec=codec))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("codec", ["q8", "q4"])
def test_a_quantized_agent_comes_back_and_says_so(name: str, codec: Any, tmp_path: Path) -> None:
    with opened(name, tmp_path, codec) as memory:
        answer(memory, text(1, 100), max_tokens=1)
        memory.evict()
        _, reply = answer(memory, text(1, 100) + text(2, 9))
        assert (reply.usage.tier, reply.usage.cached_tokens, reply.usage.exactness) == ("cold", 100, "quantized")
        assert memory.stats().damage == 0
        assert not memory.verify().damaged
