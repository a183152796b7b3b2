from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from agent_memory import Config, EchoRunner, Memory
from agent_memory.scheduler.pacing import Pacer
from tests.faulty import Faults, with_faults
from tests.waiting import wait_for

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


def test_who_asked_before_anybody_decoded_waits_for_one_decode_step_only() -> None:
    pacer = _paced(0.25, 0.1)
    pacer.prefilled(2.0, is_last=False, is_late=False)
    assert not pacer.is_prefill_due
    pacer.decoded(0.1)
    assert pacer.is_prefill_due




class Slow(Faults):
    """Every prefill step takes long; which calls there were."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def reached(self, call: str) -> None:
        self.order.append(call)
        time.sleep(0.04 if call == "prefill" else 0.001)

    def runs(self) -> list[int]:
        """Lengths of the runs of decode steps between two prefill steps."""
        text = "".join(call[0] for call in self.order if call in ("prefill", "step"))
        return [len(run) for run in text.strip("s").split("p")[1:-1]]


def test_a_crowd_leaves_one_decode_step_between_its_prefill_steps_and_who_comes_later_more() -> None:
    runner = EchoRunner("word " * 600, prefill_tokens=64)
    slow = with_faults(runner, Slow())
    with Memory(runner, ":memory:", config=Config(chunk_tokens=64, target_gap_s=0.002)) as memory:
        said = [f"{number} has something new to read. " * 12 for number in range(4)]
        crowd = [memory.stream(text, max_tokens=400) for text in said[:3]]
        wait_for(lambda: all(one.state == "decode" for one in crowd))
        assert set(slow.runs()) == {0, 1}  # none where nobody decoded yet
        slow.order.clear()
        assert memory.generate(said[3], max_tokens=1).finish == "length"
        assert min(slow.runs()) > 1
        for one in crowd:
            one.cancel()
