"""Law 10 in the warm tier: what is held quantized says so, and what was decoded once is never encoded again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.mlxcache.kinds import MLXKV
from tests.laws.test_laws_kinds import CHUNK, spoken, text
from tests.parts.logits import answer
from tests.parts.tinyrunner import endless


def opened(name: str, codec: Any) -> Memory:
    config = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK, warm_bytes=1 << 28, warm_codec=codec)
    return Memory(endless(name), ":memory:", config=config)


@pytest.mark.mlx
@pytest.mark.parametrize("codec", ["q8", "q4"])
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_however_often_it_goes_and_comes_a_prefix_keeps_the_bytes_it_was_encoded_to(name: str, codec: Any) -> None:
    first, third = text(1, 100), text(1, 100) + text(3, 9)
    with opened(name, codec) as once:
        answer(once, first, max_tokens=1)
        once.evict(to="warm")
        wanted, reply = answer(once, third)
        assert (reply.usage.tier, reply.usage.cached_tokens, reply.usage.exactness) == ("warm", 100, "quantized")
    with opened(name, codec) as memory:
        answer(memory, first, max_tokens=1)
        for n in range(1, 30, 7):
            memory.evict(to="warm")
            _, later = answer(memory, first + text(2, n))
            assert later.usage.exactness == "quantized"
        memory.evict(to="warm")
        got, reply = answer(memory, third)
        assert (reply.usage.tier, reply.usage.cached_tokens, reply.usage.exactness) == ("warm", 100, "quantized")
        assert got == wanted


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """How often each token of each tensor was encoded."""
    found: Counter[tuple[int, int]] = Counter()
    real = MLXKV.read

    def read(kv: MLXKV, tensor: int, start: int, stop: int, codec: Any = "exact") -> Any:
        found.update((tensor, token) for token in range(start, stop) if codec != "exact")
        return real(kv, tensor, start, stop, codec)

    monkeypatch.setattr(MLXKV, "read", read)
    return found


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama", "llama_windows", "gemma3_text", "deepseek_v3"])
def test_no_token_of_an_agent_is_encoded_twice(name: str, encoded: Counter[tuple[int, int]]) -> None:
    with opened(name, "q4") as memory:
        agent, n_tokens = memory.agent("a"), 0
        for turn in range(6):
            message = text(turn, (30, 3, 50, 1, 17, 8)[turn])
            usage = agent.say(message, max_tokens=(5, 20, 40)[turn % 3], logits_processors=[_letters]).usage
            assert usage.cached_tokens >= n_tokens - 1
            assert usage.exactness == ("quantized" if turn else "exact")
            n_tokens = agent.n_tokens
            memory.evict(to="warm")
    assert max(encoded.values()) == 1
    assert max(token for _, token in encoded) >= n_tokens - 2


@pytest.mark.mlx
def test_what_was_decoded_and_is_held_no_more_is_let_go_rather_than_encoded_again(
    encoded: Counter[tuple[int, int]],
) -> None:
    prompt = text(1, 100)
    with opened("llama", "q4") as memory:
        answer(memory, prompt, max_tokens=1)
        memory.evict(to="warm")
        answer(memory, prompt + text(2, 50))
        memory._engine.call(memory._tiers.warm.clear)
        memory.evict(to="warm")
        assert memory.stats().warm_bytes == 0
        assert max(encoded.values()) == 1
        _, reply = answer(memory, prompt)
        assert (reply.usage.tier, reply.usage.exactness) == ("none", "exact")


def _letters(ids: Any, logits: Any) -> Any:
    return spoken(logits)


def test_rows_that_no_codec_encodes_stay_exact_and_say_so() -> None:
    config = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK, warm_bytes=1 << 20, warm_codec="q4")
    with Memory(EchoRunner(), ":memory:", config=config) as memory:
        memory.agent("a").say("one")
        memory.evict(to="warm")
        reply = memory.agent("a").say("two")
        assert (reply.text, reply.usage.tier, reply.usage.exactness) == ("two", "warm", "exact")
