"""Law 2 where two runs have the same tokens: a chain of both is never told ``exact``, one run's chain is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory import Agent, Config, Memory, Usage
from tests.parts.tinyrunner import endless

CONFIG = dict(chunk_tokens=16, prefill_tokens=16, lookup="off")
SYSTEM, WORDS = "You say what you heard, and nothing else.", "First, a message that fills some chunks. " * 2
NAMES = ["llama_windows", "qwen3_next", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma3_text", "llama4"))]

pytestmark = pytest.mark.mlx


def first_logits(agent: Agent, text: str) -> tuple[Usage, Any]:
    seen: list[Any] = []

    def note(ids: Any, logits: Any) -> Any:
        seen.append(np.array(logits))
        return logits

    return agent.say(text, max_tokens=2, logits_processors=[note]).usage, seen[0]


def said_twice(memory: Memory) -> tuple[Agent, Agent]:
    """Two agents with the same words: one was answered alone, the other in a batch. Both went on."""
    alone, batched = (memory.agent(name, system=SYSTEM) for name in ("alone", "batched"))
    first = alone.say(WORDS, max_tokens=40)
    memory.flush()  # its chunks are stored first
    # the best of three that all take the likeliest token: what ``alone`` was told, computed in a batch
    same = memory.best_of("batched", WORDS, 3, lambda reply: 0.0, temperature=1.0, top_k=1, max_tokens=40)
    assert same.token_ids == first.token_ids
    for agent in (alone, batched):
        agent.say(f"And {agent.name}?", max_tokens=20)
    memory.flush()
    return alone, batched


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tier", ["warm", "cold"])
def test_a_chain_of_two_runs_is_recomputed_from_the_seam_on(name: str, tier: Any, tmp_path: Path) -> None:
    with Memory(endless(name), tmp_path, config=Config(**CONFIG, warm_bytes=64 << 20)) as memory:
        told = []
        for agent in said_twice(memory):  # whose KV is the first in warm decides which of the two is told exact there
            _, wanted = first_logits(live := agent.fork("live", temporary=True), "Go on.")
            live.delete()  # else its longer KV takes the place of the agent's in warm
            memory.evict(to=tier)
            usage, found = first_logits(restored := agent.fork("restored"), "Go on.")
            restored.delete()
            assert usage.tier == tier
            assert usage.exactness != "exact" or np.array_equal(wanted, found)
            told.append(usage.exactness)
        assert sorted(told) == ["exact", "recomputed"]
        assert tier == "warm" or told[0] == "exact"
    with Memory(endless(name), tmp_path, config=Config(**CONFIG)) as memory:  # nor does another process raise it
        for agent, exactness in ("alone", "exact"), ("batched", "recomputed"), ("batched", "recomputed"):
            usage = memory.agent(agent).say("Once more.", max_tokens=2).usage
            assert usage.cached_tokens > len(WORDS)
            assert usage.exactness == exactness
            memory.evict()


@pytest.mark.parametrize("name", NAMES)
def test_agents_that_continue_one_kv_stay_exact(name: str, tmp_path: Path) -> None:
    for _ in range(2):
        with Memory(endless(name), tmp_path, config=Config(**CONFIG)) as memory:
            agents = [memory.agent(one, system=SYSTEM * 2) for one in ("a", "b", "c")]
            streams = [agent.stream(f"Say {agent.name}.", max_tokens=20) for agent in agents]  # one brief, at once
            assert {one.result().usage.exactness for one in streams} == {"exact"}
            agents.append(agents[0].fork(f"fork {len(memory.agents())}"))
            for agent in agents:
                assert agent.say("And more?", max_tokens=3).usage.exactness == "exact"
            for agent in agents:
                memory.evict()
                usage = agent.say("After that?", max_tokens=3).usage
                assert (usage.tier, usage.exactness) == ("cold", "exact")
