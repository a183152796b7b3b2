"""Law 2 on a real model past its windows: Gemma 3 270M, 15 layers of 512 tokens and 3 of full attention."""

from __future__ import annotations

import random
import string
import subprocess
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from agent_memory import Config, Memory
from tests.parts.logits import answer

pytestmark = [pytest.mark.mlx, pytest.mark.slow]

WINDOW, CHUNK, N_LAYERS = 512, 256, 15


@pytest.fixture(scope="module")
def model() -> Any:
    pytest.importorskip("gguf", reason="pip install gguf: K-quants are dequantized with it")
    from agent_memory.runner import blas
    from tests import gemma

    blas.speed_up("auto")
    folder = platformdirs.user_cache_path("agent_memory") / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return gemma.model(gemma.fetch(folder))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the model cannot be fetched: {error.stderr.decode()[-200:]}")


def opened(model: Any, path: Any) -> Memory:
    from agent_memory.runner.mlx import MLXRunner
    from tests.parts.tinytokenizer import tokenizer

    return Memory(MLXRunner(model, tokenizer(), name="gemma"), path, config=Config(warm_bytes=1 << 30))


def text(seed: int, n_tokens: int) -> str:
    """One letter is one token."""
    return "".join(random.Random(seed).choices(string.ascii_letters + " ", k=n_tokens))


def test_gemma_restored_past_its_window_equals_never_stopped(model: Any, tmp_path: Path) -> None:
    with opened(model, ":memory:") as live, opened(model, tmp_path) as stored, opened(model, ":memory:") as held:
        for n in (300, 500, 512, 1500):  # below, about to cross, at and past the window
            first, second = text(n, n), text(n, n) + text(-n, 40)
            for memory in (live, stored, held):
                answer(memory, first, 1)
            stored.evict()
            held.evict(to="warm")
            wanted, hot = answer(live, second, 24)
            assert (hot.usage.tier, hot.usage.cached_tokens) == ("hot", n)
            for memory, tier in ((stored, "cold"), (held, "warm")):
                got, reply = answer(memory, second, 24)
                assert (reply.usage.tier, reply.usage.cached_tokens) == (tier, n)
                assert got == wanted, tier
                assert reply.token_ids == hot.token_ids


def test_gemma_stores_no_more_of_its_windows_than_themselves_and_a_chunk(model: Any, tmp_path: Path) -> None:
    from tests.laws.test_laws_kinds import window_bytes

    with opened(model, tmp_path) as memory:
        answer(memory, text(1, 4 * WINDOW), 1)
    token_bytes = 2 * 1 * 256 * 4  # keys and values, one head, dim 256, float32
    stored = window_bytes(tmp_path)
    assert len(stored) == N_LAYERS
    assert all(WINDOW * token_bytes <= n <= (WINDOW + CHUNK) * token_bytes for n in stored.values())
