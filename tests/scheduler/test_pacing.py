from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory import Config, EchoRunner, Memory
from agent_memory.scheduler.pacing import Pacer
from tests.parts.faulty import Faults, with_faults
from tests.parts.waiting import PATIENCE_S, wait_for

SECONDS = st.floats(0.001, 10.0)


def _paced(target_s: float, decode_s: float) -> Pacer:
    pacer = Pacer(target_s)
    for _ in range(50):
        pacer.decoded(decode_s)
    return pacer


def test_short_prefill_steps_take_turns_with_decode_steps() -> None:
    assert _paced(0.25, 0.05).decode_steps(0.1) == 1


def test_long_prefill_steps_are_followed_by_as_many_decode_steps_as_bring_the_mean_gap_to_the_target() -> None:
    pacer = _paced(0.5, 0.1)
    n = pacer.decode_steps(2.0)
    assert n == 5
    assert (2.0 + n * 0.1) / n <= 0.5


def test_decoding_never_takes_more_than_its_share_of_a_prompts_time() -> None:
    assert _paced(0.25, 0.2).decode_steps(2.0) == 3  # the target would want forty
    assert _paced(0.25, 1.0).decode_steps(2.0) == 1  # slower than the target by itself


@given(SECONDS, SECONDS, SECONDS)
def test_there_is_always_one_decode_step_and_no_more_than_the_share(gap: float, decode: float, step: float) -> None:
    n = _paced(gap, decode).decode_steps(step)
    assert n >= 1
    assert n == 1 or n * decode <= 0.4 * step * 1.001


def test_short_prefill_steps_follow_one_another_while_the_gap_allows_it() -> None:
    pacer = _paced(0.55, 0.1)
    for _ in range(3):
        assert pacer.is_prefill_due
        pacer.prefilled(0.1, is_last=True)
    assert pacer.is_prefill_due, "0.3 s are spent, one more step and the decode step would end at 0.5 s"
    pacer.prefilled(0.1, is_last=True)
    assert not pacer.is_prefill_due
    pacer.decoded(0.1)
    assert pacer.is_prefill_due


def test_a_long_prompts_steps_never_follow_one_another() -> None:
    pacer = _paced(0.5, 0.001)
    pacer.prefilled(0.001, is_last=False)
    assert not pacer.is_prefill_due


def test_the_steps_owed_are_counted_down() -> None:
    pacer = _paced(0.5, 0.1)
    assert pacer.is_prefill_due
    pacer.prefilled(2.0, is_last=False)
    for _ in range(5):
        assert not pacer.is_prefill_due
        pacer.decoded(0.1)
    assert pacer.is_prefill_due


def test_what_a_prompt_took_alone_is_not_owed_to_those_who_join_later() -> None:
    pacer = _paced(0.25, 0.1)
    for _ in range(20):
        pacer.prefilled(1.0, is_last=False, is_alone=True)
    pacer.decoded(0.1)
    pacer.prefilled(1.0, is_last=False)
    owed = 0
    while not pacer.is_prefill_due:
        pacer.decoded(0.1)
        owed += 1
    assert owed <= 4, "a share of one step, not of twenty"


def _crowded(is_last: bool) -> Pacer:
    """After one prefill step of a crowd."""
    pacer = _paced(0.25, 0.1)
    pacer.prefilled(2.0, is_last=is_last, is_late=False)
    return pacer


def test_a_crowds_prompt_leaves_a_decode_step_after_two_of_its_steps_and_after_its_last() -> None:
    pacer = _crowded(is_last=False)
    assert pacer.is_prefill_due
    pacer.prefilled(2.0, is_last=False, is_late=False)
    assert not pacer.is_prefill_due
    pacer.decoded(0.1)
    assert pacer.is_prefill_due
    assert not _crowded(is_last=True).is_prefill_due


def test_a_crowd_leaves_one_decode_step_at_a_time_between_its_prefill_steps_and_who_comes_later_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paced: list[bool] = []
    prefilled = Pacer.prefilled

    def watched(self: Pacer, seconds: float, **more: Any) -> None:
        paced.append(more["is_late"])
        prefilled(self, seconds, **more)

    class Order(Faults):
        def reached(self, call: str) -> None:
            order.append(call)
            if call == "prefill":
                asked.wait(PATIENCE_S)
                time.sleep(0.005)
            elif call == "step":
                time.sleep(0.001)
            super().reached(call)

    order: list[str] = []
    asked = threading.Event()
    monkeypatch.setattr(Pacer, "prefilled", watched)
    runner = EchoRunner("word " * 9_000, prefill_tokens=64)
    faults = with_faults(runner, Order())
    with Memory(runner, ":memory:", config=Config(chunk_tokens=64, target_gap_s=0.002)) as memory:
        said = [f"{number} has something new to read. " * 12 for number in range(4)]
        crowd = [memory.stream(text, max_tokens=8_000) for text in said[:3]]
        asked.set()
        wait_for(lambda: all(one.state == "decode" for one in crowd))
        calls = "".join(call[0] for call in order if call in ("prefill", "step"))
        together = calls[calls.index("s") : calls.rindex("p") + 1]  # from the first's first token on
        assert {len(run) for run in together.split("p")} == {0, 1}
        assert {len(run) for run in together.split("s")} <= {0, 1, 2}
        assert len(paced) > 6
        assert not any(paced)
        with faults.hold("step"):
            late = memory.stream(said[3], max_tokens=1)
            assert {one.state for one in crowd} == {"decode"}
            paced.clear()
        assert late.result().finish == "length"
        assert len(paced) > 2
        assert all(paced)
        for one in crowd:
            one.cancel()
