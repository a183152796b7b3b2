"""Which turns are expected: what is learned, what is told, and what is not followed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.prefix import followers, foresight
from agent_memory.prefix.followers import Followers
from agent_memory.prefix.foresight import Foresight
from agent_memory.prefix.rehearsal import Rehearsal

PIPELINE = [f"stage {i}" for i in range(6)]


class Played:
    """Turns of a second each, of agents whose KV takes one byte, and room for three."""

    def __init__(self, *, room: int = 3, is_on: bool = True) -> None:
        self.now_s, self.room = 0.0, room
        self.foresight = Foresight(is_on=is_on, clock=lambda: self.now_s)

    def turn(self, name: str, *tools: str, n_bytes: int = 1) -> None:
        self.foresight.began(name, hash(name) % 9973, self.room - 1)
        self.now_s += 1.0
        self.foresight.ended(name, tools, n_bytes)
        assert self.foresight.check() == []

    def turns(self, names: list[str]) -> Played:
        for name in names:
            self.turn(name)
        return self

    def order(self, names: list[str]) -> list[str]:
        return sorted(names, key=lambda name: self.foresight.wait_s(name, 0.0))


def test_a_pipeline_is_expected_in_its_order() -> None:
    played = Played().turns(PIPELINE * 10)
    assert played.foresight.is_followed
    assert played.order(PIPELINE)[:5] == PIPELINE[:5]
    assert [one.owner for one in played.foresight.likely()] == PIPELINE[:2]


def test_a_handover_that_depends_on_the_agent_before_is_told_apart() -> None:
    trips = ["ask", "router", "code", "ask", "router", "code", "check", "router", "write", "check", "router", "write"]
    counted = Followers()
    for name in trips * 6:
        counted.note(name)
    counted.note("ask")
    counted.note("router")
    assert max(counted.following, key=counted.following.__getitem__) == "code"
    assert counted.following["code"] > 0.8


@pytest.mark.parametrize("seed", range(4))
def test_turns_in_no_order_are_kept_by_their_last_use(seed: int) -> None:
    rng = random.Random(seed)
    played = Played(room=6)
    n_followed = 0
    for _ in range(300):
        played.turn(f"agent {rng.randrange(12)}")
        n_followed += played.foresight.is_followed
    assert n_followed <= 150  # by chance, now and then
    if not played.foresight.is_followed:
        assert played.foresight.wait_s("agent 0", 17.0) == 17.0
        assert played.foresight.likely() == []


def test_working_sets_that_move_are_kept_by_their_last_use() -> None:
    rng, played = random.Random(7), Played(room=6)
    for _ in range(8):
        some = rng.sample(range(12), 4)
        played.turns([f"agent {rng.choice(some)}" for _ in range(50)])
        assert not played.foresight.is_followed


def test_off_expects_nothing() -> None:
    played = Played(is_on=False).turns(PIPELINE * 10)
    played.foresight.expect(PIPELINE)
    assert played.foresight.wait_s("stage 3", 5.0) == 5.0
    assert played.foresight.likely() == []
    assert played.foresight.waits == {}


def test_a_plan_is_followed_from_its_first_turn_and_ends_with_its_last() -> None:
    played = Played().turns(["coder", "tester", "planner"])
    played.foresight.expect(["planner", "coder", "planner"])
    assert [one.owner for one in played.foresight.likely()] == ["planner", "coder"]
    played.turn("stranger")
    played.turn("coder")
    assert played.foresight.plan == ("planner",)
    played.turn("planner")
    assert played.foresight.plan == ()
    assert played.foresight.likely() == []


def test_a_plan_that_others_overtake_is_dropped() -> None:
    played = Played()
    played.foresight.expect(["planner", "coder"])
    played.turns([f"other {i}" for i in range(6)])
    assert played.foresight.plan == ("planner", "coder")
    played.turn("other 6")
    assert played.foresight.plan == ()


def test_an_agent_of_the_plan_that_had_no_turn_yet_is_waited_for_by_its_number() -> None:
    played = Played()
    played.foresight.expect(["planner", "coder"], {"planner": 7, "coder": 8, "nobody": None})
    assert played.foresight.waits == {7: 0.0, 8: 1.0}
    assert [played.foresight.wait_of(number, 50.0) for number in (7, 8, 9)] == [0.0, 1.0, 50.0]
    played.foresight.began("coder", 8, 2)
    assert 7 not in played.foresight.waits, "its turn was passed over"
    assert played.foresight.wait_of(7, 50.0) == 50.0
    played.foresight.expect(["planner"], {"planner": 7})
    played.foresight.forget("planner")
    assert played.foresight.waits == {}
    assert played.foresight.check() == []


def paused(tool: str, seconds: list[float]) -> Played:
    played = Played()
    for pause in seconds:
        played.turn("ann", tool)
        played.now_s += pause
    played.turn("ann")
    return played


def test_a_pause_is_expected_to_be_as_long_as_those_of_its_tool() -> None:
    played = paused("grep", [2.0, 4.0, 3.0])
    assert played.foresight.wait_s("ann", 99.0) == 99.0  # it waits for no tool now
    played.turn("ann", "grep")
    near = played.foresight.wait_s("ann", 99.0)
    assert 0 < near <= 3.0
    assert "ann" in {one.owner for one in played.foresight.likely()}
    played.now_s += 3.5
    assert 0 < played.foresight.wait_s("ann", 99.0) < near  # what is left of the one longer pause
    played.now_s += 3.5
    late = played.foresight.wait_s("ann", 99.0)  # longer than any: as much again
    played.now_s += 100.0
    assert played.foresight.wait_s("ann", 99.0) > 10 * late


def test_agents_that_rest_keep_their_order_while_another_waits_for_a_tool() -> None:
    played = paused("grep", [2.0]).turns(["bob", "eve", "bob", "eve"])
    played.turn("ann", "grep")
    waits = [played.foresight.wait_s(name, idle_s) for name, idle_s in (("bob", 3.0), ("eve", 1.0), (None, 2.0))]
    assert waits[1] < waits[2] < waits[0]
    assert played.foresight.wait_s("ann", 0.0) < min(waits)


def test_a_turn_that_failed_says_nothing_of_how_long_agents_rest() -> None:
    played = Played()
    played.now_s = 1e6
    played.foresight.began("ann", 1, played.room)  # and fails: it never ends
    played.turn("bob")
    played.turn("ann", "grep")
    assert played.foresight.wait_s("bob", 1.0) < 10.0


def test_a_tool_that_was_not_measured_is_taken_for_the_others() -> None:
    played = paused("grep", [2.0, 2.0])
    played.turn("bob", "build")
    assert played.foresight.wait_s("bob", 99.0) < 2.0
    assert "other tools" in played.foresight.outlook("bob").why


def test_pauses_are_told_apart_by_their_tools() -> None:
    played = paused("grep", [1.0] * 5)
    for _ in range(5):
        played.turn("ann", "build")
        played.now_s += 100.0
    played.turn("ann", "build")
    played.turn("bob", "grep")
    assert played.foresight.wait_s("bob", 0.0) < played.foresight.wait_s("ann", 0.0)


def test_a_forgotten_agent_is_in_nothing_that_was_learned() -> None:
    played = Played().turns(PIPELINE * 10)
    played.foresight.expect(["stage 2", "stage 3"])
    played.foresight.forget("stage 2")
    assert played.foresight.plan == ("stage 3",)
    assert played.foresight.outlook("stage 2").next_s is None
    assert "stage 2" not in played.foresight._followers.near
    assert all("stage 2" not in context for context in played.foresight._followers._counts)
    assert played.foresight.check() == []


def test_restores_that_were_of_no_use_ask_for_surer_ones() -> None:
    order = ["a", "b", "c", "d", "e"]
    played = Played().turns((order * 2 + ["a", "c", "e", "b", "d"]) * 12 + order)

    def likely() -> set[str]:
        return {one.owner for one in played.foresight.likely()}

    assert likely() == {"a", "b", "c"}  # a follows e, and either of the others follows a
    for _ in range(20):
        played.foresight.restored(is_useful=False)
    assert likely() == {"a"}
    assert (played.foresight.n_useful, played.foresight.n_wasted) == (0, 20)
    for _ in range(20):
        played.foresight.restored(is_useful=True)
    assert likely() == {"a", "b", "c"}


def test_the_rehearsal_wants_more_than_chance() -> None:
    order = {name: float(i) for i, name in enumerate("abcdef")}
    found = Rehearsal(lambda name: 0.0, order.__getitem__)
    for name in "abab":
        found.turn(name, 10, 10)
    assert not found.is_learned_better  # nothing was evicted: nothing is known


names = st.sampled_from([f"agent {i}" for i in range(700)])
events = st.one_of(
    st.tuples(st.just("turn"), names, st.lists(st.sampled_from([f"tool {i}" for i in range(400)]), max_size=3)),
    st.tuples(st.just("expect"), st.lists(names, max_size=90), st.just([])),
    st.tuples(st.just("forget"), names, st.just([])),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(events, max_size=60), st.integers(0, 4))
def test_its_memory_is_bounded_whatever_happens(found: list[tuple[str, object, list[str]]], seed: int) -> None:
    rng, played = random.Random(seed), Played(room=8)
    for _ in range(rng.choice([0, 0, 1300])):  # more agents, tools and handovers than are kept
        played.turn(f"agent {rng.randrange(900)}", *(["t" * (rng.randrange(400) + 1)] if rng.random() < 0.5 else []))
    for kind, what, tools in found:
        if kind == "turn":
            played.turn(str(what), *tools)
        elif kind == "expect":
            assert isinstance(what, list)
            played.foresight.expect(what, {name: hash(name) % 9973 for name in what})
        else:
            played.foresight.forget(str(what))
        assert played.foresight.check() == []
    known = played.foresight
    assert len(known._agents) <= foresight.MOST_AGENTS
    assert len(known._rehearsal._learned.held) <= foresight.MOST_AGENTS
    assert len(known._followers._counts) <= followers.MOST_CONTEXTS
    assert len(known.plan) <= 64
    assert all(wait >= 0.0 for wait in known.waits.values())
