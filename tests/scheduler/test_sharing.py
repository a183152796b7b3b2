"""Prefixes that several requests share while they run: computed once, whoever comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_memory import Config, EchoRunner, Memory

SYSTEM = "A brief that all of them were given, and that none of them wants to read twice. " * 40


@pytest.mark.parametrize("delay_s", [0.0, 0.002])
def test_agents_that_start_at_once_compute_their_common_prefix_once(tmp_path: Path, delay_s: float) -> None:
    runner = EchoRunner(prefill_tokens=64, delay_s=delay_s)
    with Memory(runner, tmp_path, config=Config(chunk_tokens=64, max_batch=16)) as memory:
        agents = [memory.agent(f"agent {n}", system=SYSTEM) for n in range(8)]
        handles = [agent.stream(f"question number {n}") for n, agent in enumerate(agents)]
        replies = [handle.result(timeout_s=60) for handle in handles]
    assert [r.text for r in replies] == [f"question number {n}" for n in range(8)]
    n_prompt = min(r.usage.prompt_tokens for r in replies)
    computed = sorted(r.usage.computed_tokens for r in replies)
    assert computed[-1] >= n_prompt - 64, "one of them computed the prefix"
    assert sum(computed[:-1]) < 8 * 2 * 64, "and no other did"
    assert all(r.usage.cached_tokens + r.usage.computed_tokens == r.usage.prompt_tokens for r in replies)


def test_a_prefix_is_taken_from_a_row_that_decodes(tmp_path: Path) -> None:
    runner = EchoRunner("word " * 60, prefill_tokens=64, delay_s=0.002)
    with Memory(runner, tmp_path, config=Config(chunk_tokens=64)) as memory:
        first = memory.agent("first", system=SYSTEM).stream("go")
        pieces = first.text()  # kept: closing it would cancel the request
        next(pieces)
        second = memory.agent("second", system=SYSTEM).stream("and you")
        assert not first._feed.ended
        usage = second.result(timeout_s=60).usage
        first.cancel()
    assert usage.tier == "hot"
    assert usage.computed_tokens < 2 * 64


def test_who_waits_for_anothers_prefix_goes_on_when_that_one_is_cancelled(tmp_path: Path) -> None:
    runner = EchoRunner(prefill_tokens=64, delay_s=0.01)
    with Memory(runner, tmp_path, config=Config(chunk_tokens=64)) as memory:
        first = memory.agent("first", system=SYSTEM).stream("go")
        while first.state == "queued":
            pass
        second = memory.agent("second", system=SYSTEM).stream("and you")
        first.cancel()
        reply = second.result(timeout_s=60)
    assert reply.text == "and you"
    assert first.state == "cancelled"
    assert reply.usage.cached_tokens + reply.usage.computed_tokens == reply.usage.prompt_tokens


def test_a_short_prompt_passes_a_long_one_that_is_being_computed(tmp_path: Path) -> None:
    runner = EchoRunner(prefill_tokens=64, delay_s=0.005)
    with Memory(runner, tmp_path, config=Config(chunk_tokens=64)) as memory:
        long = memory.agent("long").stream("something new to read " * 400)
        while long.progress[0] < 64:
            pass
        reply = memory.agent("short").say("quick")
        assert reply.text == "quick"
        assert long.state == "prefill", "the long one is still at it"
        assert long.result(timeout_s=60).text.startswith("something new")
