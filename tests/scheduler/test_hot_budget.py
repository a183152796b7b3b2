"""Law 6: the bytes of live KV, idle and running, stay within ``Config.hot_bytes``, whatever is asked in whatever order.

Looked at from three sides: ``Memory.stats()`` after each operation, every KV that is held at each call of the batch,
and with a real model MLX's own count of active bytes.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent_memory import CancelledError, Config, EchoRunner, Generation, Memory, OutOfBudgetError, Reply
from agent_memory.protocols import ModelRunner
from tests.parts.faulty import Faults, with_faults
from tests.parts.waiting import ENDED, outcome

TEXT = "The lamp is lit at dusk and put out at dawn; the log notes wind, sea and every ship that passes. " * 8
NAMES = [f"agent {n}" for n in range(6)]
BUDGET_TOKENS = 3000
LAYERS = 16  #: one of them is small beside the budget, as in real models


class Scales(Faults):
    """Plans no fault, and weighs every KV that is held, at each call of a batch."""

    peak_bytes = 0

    def reached(self, call: str) -> None:
        """Note the peak."""
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)


def _operate(memory: Memory, draw: random.Random, running: list[Generation]) -> str:
    """One random operation; its name."""
    name, text = draw.choice(NAMES), TEXT[draw.randrange(90) :][: draw.randrange(1, 600)]
    most = draw.choice([1, 8, 60, 150])
    what = draw.choice(
        ["say"] * 4 + ["stream"] * 4 + ["cancel"] * 2 + ["batch", "evict", "evict all", "prefill", "huge"]
    )
    if what == "say":
        memory.agent(name).say(text, max_tokens=most)
    elif what == "stream":
        running.append(memory.stream(text, agent=draw.choice([name, None]), max_tokens=most))
    elif what == "cancel" and running:
        draw.choice(running).cancel()
    elif what == "batch":
        memory.batch([text[: draw.randrange(1, 200)] or "a" for _ in range(5)], max_tokens=most)
    elif what == "evict":
        memory.evict(memory.agent(name))
    elif what == "evict all":
        memory.evict()
    elif what == "prefill":
        memory.prefill(text)
    elif what == "huge":
        with pytest.raises(OutOfBudgetError):
            memory.generate(text, max_tokens=BUDGET_TOKENS)
    return what


def _law(memory: Memory, budget_bytes: int, n_operations: int, look: Callable[[], None]) -> None:
    draw, running = random.Random(6), list[Generation]()
    for number in range(n_operations):
        try:
            what = _operate(memory, draw, running)
        except OutOfBudgetError:
            what = "a conversation that has grown beyond the budget"
        assert memory.stats().hot_bytes <= budget_bytes, (number, what)
        look()
        ended = [one for one in running if one.state in ENDED]
        for one in ended:
            assert isinstance(outcome(one), Reply | CancelledError | OutOfBudgetError), outcome(one)
            running.remove(one)
        if len(running) > 6:
            outcome(running[0])
        for name in NAMES:
            if memory.agent(name).n_tokens > BUDGET_TOKENS // 3 and not any(one.state not in ENDED for one in running):
                memory.delete(name)
    for one in running:
        outcome(one)
    look()


@contextmanager
def _opened(runner: ModelRunner, path: Path, budget_bytes: int) -> Iterator[Memory]:
    config = Config(chunk_tokens=16, prefill_tokens=64, hot_bytes=budget_bytes)
    with Memory(runner, path, config=config) as memory:
        yield memory


def _echo(path: Path, n_operations: int) -> None:
    runner = EchoRunner(lambda asked, _: asked * 300)
    budget_bytes = BUDGET_TOKENS * runner.layout.token_bytes
    scales = Scales()
    with_faults(runner, scales)

    def look() -> None:
        assert scales.peak_bytes <= budget_bytes, "live KV, idle and running, was beyond the budget"

    with _opened(runner, path, budget_bytes) as memory:
        _law(memory, budget_bytes, n_operations, look)
    assert scales.peak_bytes > budget_bytes / 2, "the budget was never short"


def _mlx(path: Path, n_operations: int) -> None:
    import mlx.core as mx

    from tests.parts.tinyrunner import endless

    runner = endless("llama", LAYERS)
    with Memory(runner, ":memory:") as memory:
        token_bytes = memory.doctor().kv_bytes_per_token
    gc.collect()
    floor_bytes, budget_bytes, peaks = mx.get_active_memory(), BUDGET_TOKENS * token_bytes, [0]

    def look() -> None:
        peaks[0] = max(peaks[0], mx.get_active_memory() - floor_bytes)
        # Looked at while others decode: a step's activations, and a layer held twice while rows join or leave.
        assert peaks[0] <= budget_bytes * 1.25, "MLX holds more than the budget"

    with _opened(endless("llama", LAYERS), path, budget_bytes) as memory:
        _law(memory, budget_bytes, n_operations, look)
    assert peaks[0] > budget_bytes / 2, "the budget was never short"


def test_hot_bytes_are_within_budget_after_each_of_60_operations(tmp_path: Path) -> None:
    _echo(tmp_path, 60)


@pytest.mark.slow
def test_hot_bytes_are_within_budget_after_each_of_1000_operations(tmp_path: Path) -> None:
    _echo(tmp_path, 1000)


@pytest.mark.mlx
def test_active_bytes_of_mlx_are_within_budget_after_each_of_12_operations(tmp_path: Path) -> None:
    _mlx(tmp_path, 12)


@pytest.mark.slow
@pytest.mark.mlx
def test_active_bytes_of_mlx_are_within_budget_after_each_of_1000_operations(tmp_path: Path) -> None:
    _mlx(tmp_path, 1000)


def test_what_could_never_fit_fails_at_once_with_the_numbers_and_computes_nothing() -> None:
    runner = EchoRunner()
    budget_bytes = 1024 * runner.layout.token_bytes
    with Memory(runner, ":memory:", config=Config(hot_bytes=budget_bytes)) as memory:
        agent = memory.agent("ann")
        with pytest.raises(OutOfBudgetError) as caught:
            agent.say("short", max_tokens=5000)
        assert caught.value.budget_bytes == budget_bytes
        assert caught.value.needed_bytes > 5000 * runner.layout.token_bytes
        assert (runner.calls.computed, agent.messages) == (0, ())
        assert agent.say("short", max_tokens=50).text == "short"


def test_idle_agents_leave_before_a_request_waits(tmp_path: Path) -> None:
    runner = EchoRunner()
    config = Config(chunk_tokens=16, prefill_tokens=16, hot_bytes=2048 * runner.layout.token_bytes)
    with Memory(runner, tmp_path, config=config) as memory:
        for number in range(12):
            reply = memory.agent(f"agent {number}").say(f"{number}! " + TEXT[:300], max_tokens=20)
            assert reply.usage.output_tokens == 20
        again = memory.agent("agent 0").say("again", max_tokens=20)
        assert (again.usage.tier, again.usage.exactness) == ("cold", "exact")
