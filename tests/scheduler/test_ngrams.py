"""Prompt lookup's search: runs that repeat, and how often their next id was right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.scheduler import ngrams
from agent_memory.scheduler.drafting import _JUDGED, _PAUSE, Brake
from agent_memory.scheduler.ngrams import Ngrams

few = st.lists(st.integers(0, 3), max_size=60)


def _made(prompt: list[int], said: list[int]) -> Ngrams:
    made = Ngrams(np.array(prompt, np.uint32))
    for token in said:
        made.add(token)
    return made


def _longest(ids: list[int]) -> int:
    """The longest run, up to 16, that ends the list and stands in it before; found one id after another."""
    ends = [0]
    for place in range(1, len(ids)):
        run = 0
        while run < min(place, 16) and ids[place - 1 - run] == ids[len(ids) - 1 - run]:
            run += 1
        ends.append(run)
    return max(ends)


@given(few, few)
@settings(max_examples=300, deadline=None)
def test_what_is_proposed_followed_an_equal_run(prompt: list[int], said: list[int]) -> None:
    ids, made = prompt + said, _made(prompt, said)
    found = made.next(8)
    if not found:
        assert _longest(ids) < 2
        return
    place, run = made._at, made._run
    assert ids[place : place + 8] == found
    assert run >= 2
    assert ids[place - min(run, place) : place] == ids[len(ids) - min(run, place) :]


@given(few, few, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_a_search_finds_the_longest_run(prompt: list[int], said: list[int], other: int) -> None:
    made = _made(prompt, said)
    if made.next(1) != [other]:
        made.add(other)  # a wrong id ends the run: the next one is searched for
        assert made._run == (found if (found := _longest([*prompt, *said, other])) >= 2 else 0)


@given(few, few)
@settings(max_examples=100, deadline=None)
def test_chances_are_shares_of_ids_that_were_right_and_never_rise(prompt: list[int], said: list[int]) -> None:
    made = _made(prompt, said)
    chances = made.chances(12)
    assert len(chances) == len(made.next(12))
    assert all(0 < chance <= 1 for chance in chances)
    assert chances == sorted(chances, reverse=True)


def test_shares_follow_what_happens() -> None:
    copying, leaving = _made([1, 2, 3, 4, 5, 6, 7, 8] * 4, []), _made([], [])
    before = copying.chances(4)
    for token in [1, 2, 3, 4, 5, 6, 7, 8] * 8:
        copying.add(token)
    assert copying.chances(4)[-1] > before[-1]
    rng = np.random.default_rng(0)
    for token in rng.integers(0, 4, 600).tolist():
        leaving.add(token)
    leaving._run = 2
    assert leaving.chances(1)[0] < 0.4, "of four ids drawn by chance a quarter is right"


def test_ids_that_are_too_old_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_SEARCHED", 64)
    monkeypatch.setattr(ngrams, "_ROOM", 16)
    made = _made(list(range(1000, 1200)), [])
    for token in list(range(40)) * 20:
        made.add(token)
    assert len(made._ids) <= 64 + 16
    assert made.next(5) == [0, 1, 2, 3, 4]
    assert made._ids[made._at] == 0


def _braked(step_s: float, verified_s: float, n_steps: int) -> Brake:
    brake = Brake()
    for _ in range(3):
        brake.stepped(1, step_s)
    for _ in range(_JUDGED):
        brake.verified(1, verified_s, n_steps)
    return brake


def test_verifying_pauses_where_it_costs_more_than_it_saves_and_is_tried_again() -> None:
    brake = _braked(1.0, 3.0, 2)
    assert brake.is_on
    for _ in range(_PAUSE):
        brake.stepped(1, 1.0)
    assert not brake.is_on
    for _ in range(_JUDGED):
        brake.verified(1, 3.0, 2)
    for _ in range(_PAUSE):
        brake.stepped(1, 1.0)
    assert brake.is_on, "the second pause is longer"


def test_verifying_goes_on_where_it_saves_time() -> None:
    assert not _braked(1.0, 1.5, 4).is_on


def test_a_step_that_was_built_while_nothing_ran_is_not_taken_for_a_steps_time() -> None:
    brake = Brake()
    brake.interrupt()
    brake.stepped(1, 0.001)
    for _ in range(_JUDGED):
        brake.verified(1, 3.0, 2)
    assert not brake.is_on, "no single step was measured yet"
