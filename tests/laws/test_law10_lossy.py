"""Law 10 through the facade: lossy never poses as exact, and what stands on it says so too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory import Config, EchoRunner, Memory
from tests.laws.test_laws_kinds import CHUNK, text
from tests.parts import tiny
from tests.parts.logits import answer
from tests.parts.tinyrunner import endless

_DEFAULT = ("llama_windows", "deepseek_v3", "qwen3_next")
SOME = [n if n in _DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in tiny.SHAPES]


def opened(name: str, path: Any, codec: Any) -> Memory:
    return Memory(endless(name), path, config=Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK, cold_codec=codec))


def distance(got: list[bytes], wanted: list[bytes]) -> float:
    """The largest, over the first token's logits."""
    a, b = (np.frombuffer(logits[0], "<f4") for logits in (got, wanted))
    return float(np.abs(a - b).max())


@pytest.mark.mlx
@pytest.mark.parametrize("name", SOME)
def test_a_quantized_lineage_comes_back_near_and_says_so(name: str, tmp_path: Path) -> None:
    first, second = text(1, 100), text(1, 100) + text(2, 9)
    with opened(name, ":memory:", "exact") as memory:
        answer(memory, first, max_tokens=1)
        wanted, _ = answer(memory, second, max_tokens=1)
    distances = []
    for codec in ("q8", "q4"):
        with opened(name, tmp_path / codec, codec) as memory:
            answer(memory, first, max_tokens=1)
            memory.evict()
            got, reply = answer(memory, second, max_tokens=1)
            assert (reply.usage.tier, reply.usage.cached_tokens, reply.usage.exactness) == ("cold", 100, "quantized")
            assert memory.stats().damage == 0
            assert not memory.verify().damaged
            distances.append(distance(got, wanted))
    assert 0 < distances[0] < distances[1]


@pytest.mark.mlx
def test_what_is_computed_on_quantized_kv_says_so_in_every_tier_and_process(tmp_path: Path) -> None:
    for turn in range(3):
        with opened("llama", tmp_path, "q4") as memory:
            ann = memory.agent("ann")
            before = ann.say(text(turn, 20), max_tokens=5).usage.exactness
            after = ann.say(text(-turn, 20), max_tokens=5).usage
            assert (before, after.tier, after.exactness) == (
                ("exact", "hot", "exact") if not turn else ("quantized", "hot", "quantized")
            )
            assert memory.stats().save_failures == 0
    with opened("llama", tmp_path, "exact") as memory:  # stored exactly from here on, on a ground that was not
        for tier in ("cold", "hot"):
            usage = memory.agent("ann").say("more", max_tokens=5).usage
            assert (usage.tier, usage.exactness) == (tier, "quantized")
        memory.evict()
        usage = memory.agent("ann").say("still", max_tokens=5).usage
        assert (usage.tier, usage.exactness) == ("cold", "quantized")


@pytest.mark.mlx
def test_a_lossy_copy_never_replaces_an_exact_one(tmp_path: Path) -> None:
    with opened("llama", tmp_path, "exact") as memory:
        answer(memory, text(1, 64), max_tokens=1)
    with opened("llama", tmp_path, "q4") as memory:
        _, reply = answer(memory, text(1, 64) + text(2, 40), max_tokens=1)
        assert reply.usage.exactness == "exact"
        memory.evict()
        _, reply = answer(memory, text(1, 64) + text(3, 9), max_tokens=1)
        assert (reply.usage.cached_tokens, reply.usage.exactness) == (64, "exact")
        _, reply = answer(memory, text(1, 64) + text(2, 40) + text(4, 9), max_tokens=1)
        assert (reply.usage.cached_tokens, reply.usage.exactness) == (104, "quantized")


def test_what_no_codec_encodes_is_exact_under_every_name(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path, config=Config(cold_codec="q4")) as memory:
        memory.agent("ann").say("one")
        memory.evict()
        usage = memory.agent("ann").say("two").usage
        assert (usage.tier, usage.exactness) == ("cold", "exact")
        assert any("q4 leaves 4 of 4 tensors exact (000.k: rows of 8 x U32)" in line for line in memory.doctor().advice)
