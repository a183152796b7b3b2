"""Requests made one after another share their first step; one that comes alone waits for nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from agent_memory import CancelledError, Config, EchoRunner, Generation, Memory, as_completed
from tests.parts.waiting import PATIENCE_S, outcome, together, wait_for, within

N_TOKENS = 6
N_STEPS = N_TOKENS - 1  #: that one agent takes: the pass over its new ids gives its first token
NAMES = [f"agent {n}" for n in range(8)]
ENDLESS_S = 80 * PATIENCE_S  #: whoever waits for a share of it waits longer than any test


def _memory(target_gap_s: float = ENDLESS_S, reply: str = "word " * 40) -> Iterator[tuple[Memory, EchoRunner]]:
    runner = EchoRunner(reply)
    with Memory(runner, ":memory:", config=Config(max_batch=8, target_gap_s=target_gap_s)) as memory:
        for name in NAMES:
            memory.agent(name, system="You wait. " * 30).say(f"I am {name}.", max_tokens=2)
        runner.calls.steps = 0
        yield memory, runner


@pytest.fixture
def patient() -> Iterator[tuple[Memory, EchoRunner]]:
    """Hot agents in a Memory whose first steps wait as good as for ever."""
    yield from _memory()


def _ask(memory: Memory, name: str) -> Generation:
    return memory.stream("Go on.", agent=name, max_tokens=N_TOKENS)


def test_hot_agents_asked_in_a_loop_share_every_step(patient: tuple[Memory, EchoRunner]) -> None:
    memory, runner = patient
    handles = [_ask(memory, name) for name in NAMES]
    assert {handle.result(PATIENCE_S).usage.output_tokens for handle in handles} == {N_TOKENS}
    assert runner.calls.steps == N_STEPS, "as many as one agent takes"


def test_so_do_those_of_as_completed_and_of_tasks_that_each_read_their_own(
    patient: tuple[Memory, EchoRunner],
) -> None:
    memory, runner = patient
    assert len(list(as_completed([_ask(memory, name) for name in NAMES]))) == len(NAMES)
    assert runner.calls.steps == N_STEPS

    async def read(name: str) -> int:
        return len([delta async for delta in _ask(memory, name)])

    async def main() -> list[int]:
        return await asyncio.wait_for(asyncio.gather(*map(read, NAMES)), PATIENCE_S)

    assert within(lambda: asyncio.run(main())) == [N_TOKENS] * len(NAMES)
    assert runner.calls.steps == 2 * N_STEPS


def test_a_request_that_somebody_waits_for_begins_at_once(patient: tuple[Memory, EchoRunner]) -> None:
    memory, _ = patient
    assert within(lambda: memory.agent(NAMES[0]).say("Now.", max_tokens=2)).usage.output_tokens == 2
    assert len(within(lambda: list(_ask(memory, NAMES[1])))) == N_TOKENS
    assert len(within(lambda: memory.batch(["a", "b"], max_tokens=2))) == 2
    together(lambda n: memory.agent(NAMES[n]).say("We all.", max_tokens=3))


def test_one_that_nobody_reads_begins_after_a_part_of_the_gap_between_tokens() -> None:
    for memory, runner in _memory(target_gap_s=0.05):
        handle = _ask(memory, NAMES[0])
        wait_for(lambda: handle.state == "done")  # noqa: B023 - called here
        assert runner.calls.steps == N_STEPS


def test_rows_that_decode_never_wait_for_others(patient: tuple[Memory, EchoRunner]) -> None:
    memory, runner = patient
    handle = memory.stream("Go on.", agent=NAMES[0], max_tokens=10_000)
    deltas = iter(handle)
    next(deltas)
    next(deltas)  # it decodes: its first token came of the pass that computed its prompt
    unread = [_ask(memory, name) for name in NAMES[1:]]
    wait_for(lambda: all(one.state == "done" for one in unread))
    deltas.close()  # type: ignore[attr-defined]
    assert runner.calls.steps > N_STEPS


def test_cancelled_and_closed_requests_end_though_nobody_reads(patient: tuple[Memory, EchoRunner]) -> None:
    memory, _ = patient
    first, second = _ask(memory, NAMES[0]), _ask(memory, NAMES[1])
    first.cancel()
    wait_for(lambda: first.state == "cancelled")
    assert isinstance(outcome(first), CancelledError)
    assert outcome(second).usage.output_tokens == N_TOKENS  # type: ignore[union-attr]
    third = _ask(memory, NAMES[2])
    within(memory.close)
    assert third.state == "failed"


def test_a_first_step_waits_for_a_request_that_is_being_made_and_no_longer(
    patient: tuple[Memory, EchoRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, runner = patient
    made, encode = threading.Event(), runner.tokenizer.encode

    def slow(text: str) -> list[int]:
        if "slowly" in text:
            made.wait(PATIENCE_S)
        return encode(text)

    monkeypatch.setattr(runner.tokenizer, "encode", slow)
    replies: list[object] = []
    for texts, before, after in ((("slowly", "at once"), 0, 1), (("slowly" * 10_000, "at once"), 1, 3)):
        made.clear()  # the second time the slow one is too long, and raises
        threads = []
        for text in texts:
            ask = threading.Thread(target=lambda text=text: replies.append(_tried(memory, text)), daemon=True)
            threads.append(ask)
            ask.start()
            wait_for(memory._asking.gate.is_passed)
        wait_for(lambda: memory.stats().running == 1)
        assert runner.calls.steps == before
        made.set()
        for ask in threads:
            ask.join(PATIENCE_S)
        assert runner.calls.steps == after
    assert sorted(type(one).__name__ for one in replies) == ["PromptTooLongError", "Reply", "Reply", "Reply"]


def _tried(memory: Memory, text: str) -> object:
    try:
        return memory.generate(text, max_tokens=2)
    except Exception as error:  # noqa: BLE001 - looked at by the test
        return error


def test_a_wait_that_ends_between_two_looks_at_the_clock_is_over(
    patient: tuple[Memory, EchoRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, _ = patient
    handle = _ask(memory, NAMES[0])
    wait_for(lambda: memory._engine.pulse.n_running == 1)
    gathering, left = memory._engine.gathering, [1.0, 0.0]  # as the engine asks whether it has work, and how long not
    monkeypatch.setattr(gathering, "wait_s", lambda rows: left.pop(0) if len(left) > 1 else left[0])
    memory._engine.wake()
    wait_for(lambda: handle.state == "done")
