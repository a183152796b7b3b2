"""Invariants hold after every tick, whatever is asked, cancelled and fails; a planted break is seen."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    AgentMemoryError,
    CancelledError,
    Config,
    EchoRunner,
    Generation,
    Memory,
    OutOfBudgetError,
    Reply,
)
from agent_memory.scheduler.loop import Loop
from tests.parts.faulty import Fault, with_faults
from tests.parts.waiting import outcome, wait_for

TEXT = "The lamp is lit at dusk and put out at dawn; the log notes wind, sea and every ship that passes. " * 8
CALLS = ("prefill", "insert", "step", "restore", "copy", "empty")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[AssertionError]:
    """Invariants that did not hold after a tick."""
    found: list[AssertionError] = []
    tick = Loop.tick

    def checked(self: Loop) -> None:
        tick(self)
        try:
            self.check()
        except AssertionError as error:
            found.append(error)

    monkeypatch.setattr(Loop, "tick", checked)
    return found


def _raising(ids: Any, logits: Any) -> Any:
    raise Fault("in a processor")


@pytest.mark.parametrize("n", [100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_invariants_hold_after_every_tick_of_random_operations(
    n: int, broken: list[AssertionError], tmp_path: Path
) -> None:
    draw, runner = random.Random(13), EchoRunner(lambda asked, _: asked * 300)
    faults, running, ended = with_faults(runner), list[Generation](), list[Any]()
    config = Config(chunk_tokens=16, prefill_tokens=16, max_batch=4, hot_bytes=6_000 * runner.layout.token_bytes)
    with Memory(runner, tmp_path, config=config) as memory:
        for _ in range(n):
            what = draw.choice(["ask"] * 4 + ["cancel", "fail", "refuse", "evict", "say", "delete"])
            text = TEXT[draw.randrange(90) :][: draw.randrange(1, 400)]
            owner = draw.choice([None, None, "a", "b", "c"])
            if what == "ask":
                running.append(memory.stream(text, agent=owner, max_tokens=draw.choice([1, 20, 200])))
            elif what == "cancel" and running:
                draw.choice(running).cancel()
            elif what == "fail":
                faults.fail(draw.choice(CALLS), after=draw.randrange(3))
            elif what == "refuse":
                running.append(memory.stream(text, agent=owner, logits_processors=[_raising]))
            elif what == "evict":
                memory.evict()
            elif what == "delete" and owner:  # else its log outgrows the budget, and nothing of it runs any more
                with contextlib.suppress(AgentMemoryError):
                    memory.delete(owner)
            elif what == "say":
                outcome(memory.stream(text, max_tokens=1))
            while len(running) > 8:
                ended.append(outcome(running.pop(0)))
        ended += map(outcome, running)
        assert all(isinstance(one, Reply | CancelledError | Fault | OutOfBudgetError) for one in ended), ended
        assert sum(isinstance(one, Reply) for one in ended) > len(ended) / 5
        assert memory._engine.call(lambda: len(memory._engine._loop.running)) == 0
        assert memory._engine.call(lambda: memory._engine._loop.running._admission.reserved_bytes) == 0
    assert broken == []


def _reserved_by_nobody(loop: Loop) -> None:
    admission = loop.running._admission
    admission.add(99, admission.place(10))


def _in_two_places(loop: Loop) -> None:
    loop.running.prefilling.append(next(iter(loop.running.decoding.values())))


def _fed_backwards(loop: Loop) -> None:
    next(iter(loop.running.decoding.values())).fed = -1


@pytest.mark.parametrize("harm", [_reserved_by_nobody, _in_two_places, _fed_backwards])
def test_a_broken_invariant_is_seen(harm: Callable[[Loop], None]) -> None:
    with Memory(EchoRunner(delay_s=0.001), ":memory:") as memory:
        handle = memory.stream("word " * 100)
        wait_for(lambda: handle.state == "decode")
        loop = memory._engine._loop

        def harmed() -> None:
            loop.running.check()
            harm(loop)
            with pytest.raises(AssertionError):
                loop.running.check()
            raise KeyboardInterrupt  # the engine drops what runs, and starts anew

        with pytest.raises(KeyboardInterrupt):
            memory._engine.call(harmed)
        assert memory.generate("and on").text == "and on"
