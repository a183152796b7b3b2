"""What a question recalls: order, parts, filters, time, and facts that overrule one another."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import attrs
import pytest

from agent_memory import ContextMemory, ItemNotFoundError, Weights
from agent_memory.recall import search
from tests.parts.stores import Stores

DAY = 86_400.0
NOW = 1_800_000_000.0


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock, store: Stores) -> Iterator[ContextMemory]:
    with ContextMemory(store(), clock=clock) as memory:
        yield memory


def texts(memory: ContextMemory, query: str, **how: object) -> list[str]:
    return [hit.item.text for hit in memory.recall(query, **how)]  # type: ignore[arg-type]


def talk(memory: ContextMemory, *lines: str, source: str = "talk", roles: str = "user") -> None:
    for number, line in enumerate(lines):
        role = roles if roles != "both" else ("user", "assistant")[number % 2]
        memory.remember([{"role": role, "content": line}], source=source)


def test_the_parts_of_a_score_sum_to_it_and_a_weight_of_0_is_off(memory: ContextMemory) -> None:
    turns = ("How do I moor a boat?", "Use a bowline to moor a boat.", "Always answer in metric units about a boat.")
    talk(memory, *turns, roles="both")
    memory.remember("Traceback (most recent call last):\n  File 'boat.py'\nBoatError: the boat sank")
    [note] = memory.remember("The boat is blue.").ids[:1]
    memory.feedback(note, True)
    memory.working_set("boat")
    names = [field.name for field in attrs.fields(Weights)]
    hits = memory.recall("give me a summary of the boat")
    assert len(hits) >= 4
    for hit in hits:
        assert math.isclose(sum(hit.parts.values()), hit.score, abs_tol=1e-6)
        assert set(hit.parts) <= set(names)
    seen = {name for hit in hits for name, value in hit.parts.items() if value}
    assert seen >= {"relevance", "speaker", "standing", "recency", "usage", "failure", "salience"}
    for name in seen - {"relevance"}:
        off = memory.recall("give me a summary of the boat", weights=attrs.evolve(Weights(), **{name: 0.0}))
        assert all(not hit.parts.get(name) for hit in off), name


def test_a_short_turn_is_found_by_what_was_said_around_it(memory: ContextMemory) -> None:
    talk(memory, "Which lighthouse did you like best?", "The red one.", "It rained a lot.")
    talk(memory, "The red one.", "What colour is the car?", source="elsewhere")
    assert texts(memory, "red lighthouse", k=2)[:2] in (
        ["The red one.", "Which lighthouse did you like best?"],
        ["Which lighthouse did you like best?", "The red one."],
    )


def test_what_is_said_later_is_a_neighbour_at_once(memory: ContextMemory) -> None:
    talk(memory, "Guess what happened.")
    assert texts(memory, "lighthouse") == []
    talk(memory, "The lighthouse was sold.")
    assert set(texts(memory, "lighthouse")) == {"Guess what happened.", "The lighthouse was sold."}


def test_what_the_user_said_stands_before_what_an_assistant_said(memory: ContextMemory) -> None:
    talk(memory, "My anchor weighs ten kilos.", source="a")
    talk(memory, "Your anchor weighs ten kilos.", source="b", roles="assistant")
    assert texts(memory, "anchor weighs")[0] == "My anchor weighs ten kilos."
    assert memory.recall("what did you say of the anchor's weight")[1].parts["speaker"] == 0.0


def test_kinds_time_and_source_filter(memory: ContextMemory, clock: Clock) -> None:
    memory.remember("We decided to paint the boat. The boat is old.", at=NOW - 10 * DAY, source="a")
    memory.remember("The boat must carry six people.", at=NOW - 5 * DAY, source="b")
    talk(memory, "I sold the boat.", source="c")
    assert len(memory.recall("boat")) == 3
    assert texts(memory, "boat", kinds=["decision"]) == ["We decided to paint the boat."]
    assert texts(memory, "boat", kinds=["requirement"]) == ["The boat must carry six people."]
    assert texts(memory, "boat", kinds=["chat"]) == ["I sold the boat."]
    assert set(texts(memory, "boat", kinds=["chat", "requirement"])) == {
        "I sold the boat.",
        "The boat must carry six people.",
    }
    assert len(memory.recall("boat", since=NOW - 6 * DAY)) == 2
    assert texts(memory, "boat", source="a") == ["We decided to paint the boat. The boat is old."]
    assert len(memory.recall("boat", as_of=NOW - 7 * DAY)) == 1


def test_the_newest_fact_of_a_slot_is_shown_and_the_older_ones_are_history(memory: ContextMemory) -> None:
    for day, city in ((1, "Rome"), (2, "Oslo"), (3, "Lima")):
        memory.remember(f"The capital of Atlantis is {city}.", at=day * DAY)
    [hit] = memory.recall("capital of Atlantis")
    assert hit.item.text == "The capital of Atlantis is Lima."
    assert [item.value for item in memory.history(hit.item.id)] == ["Rome", "Oslo", "Lima"]
    assert [i.superseded_by is None for i in memory.history(hit.item.id)] == [False, False, True]
    assert texts(memory, "capital of Atlantis", as_of=2.5 * DAY) == ["The capital of Atlantis is Oslo."]
    assert texts(memory, "capital of Atlantis", as_of=0.5 * DAY) == []


def test_a_fact_that_is_told_late_does_not_overrule_a_newer_one(memory: ContextMemory) -> None:
    memory.remember("Our deadline is Friday.", at=2 * DAY)
    memory.remember("Our deadline is Monday.", at=1 * DAY)
    assert texts(memory, "deadline") == ["Our deadline is Friday."]


def test_a_fact_that_is_told_again_is_the_newest(memory: ContextMemory) -> None:
    memory.remember("Our deadline is Monday.", at=1 * DAY)
    memory.remember("Our deadline is Friday.", at=2 * DAY)
    memory.remember("Our deadline is Monday.", at=3 * DAY)
    assert texts(memory, "deadline") == ["Our deadline is Monday."]


def test_an_item_that_depends_on_a_superseded_fact_is_flagged(memory: ContextMemory) -> None:
    fact = memory.remember("The deadline is Friday.", at=1 * DAY).ids[0]
    plan = memory.remember("We rehearse the day before that.", at=1 * DAY).ids[0]
    memory.link(plan, fact)
    assert not memory.recall("rehearse")[0].item.is_stale
    memory.remember("The deadline is Monday.", at=2 * DAY)
    assert memory.recall("rehearse")[0].item.is_stale
    assert memory.expand(plan).links == (("depends_on", memory.history(fact)[0]),)


def test_near_duplicates_are_shown_once(memory: ContextMemory) -> None:
    memory.remember("The boat leaves from pier nine at seven in the morning.")
    memory.remember("the boat leaves from pier nine, at seven in the morning!")
    assert len(memory.recall("boat pier")) == 1


def test_recalling_twice_gives_the_same_and_writes_nothing(memory: ContextMemory) -> None:
    for n in range(30):
        memory.remember(f"Boat number {n} is called {'abcdefghij'[n % 10]}.")
    first = memory.recall("boat number", k=30)
    assert memory.recall("boat number", k=30) == first
    assert len(memory.audit(limit=1000)) == 30


def test_recency_breaks_ties_and_halves_every_30_days(memory: ContextMemory) -> None:
    memory.remember("The old pier is closed.", at=NOW - 30 * DAY)
    memory.remember("The new pier is closed.", at=NOW)
    new, old = memory.recall("pier closed")
    assert new.item.text.startswith("The new")
    assert math.isclose(old.parts["recency"] / old.parts["relevance"], 0.05, rel_tol=1e-6)
    assert math.isclose(new.parts["recency"] / new.parts["relevance"], 0.1, rel_tol=1e-6)


def test_feedback_moves_an_item_is_bounded_fades_and_is_taken_back(memory: ContextMemory, clock: Clock) -> None:
    ids = [memory.remember(f"The pier at {place} is closed.").ids[0] for place in ("Rum", "Eigg")]
    before = [hit.item.id for hit in memory.recall("pier closed")]
    for _ in range(3):
        memory.feedback(before[0], False)
    assert [hit.item.id for hit in memory.recall("pier closed")] == before[::-1]
    low = memory.recall("pier closed")[1]
    assert low.parts["salience"] >= -0.3 * low.parts["relevance"]
    for _ in range(3):
        memory.feedback(before[0], True)
    assert [hit.item.id for hit in memory.recall("pier closed")] == before
    for _ in range(500):
        memory.feedback(ids[1], True)
    high = memory.recall("pier closed")[0]
    assert high.parts["salience"] <= 0.3 * high.parts["relevance"] + 1e-9
    clock.now += 3_000 * DAY
    faded = next(hit for hit in memory.recall("pier closed") if hit.item.id == ids[1])
    assert faded.parts["salience"] < 0.01


def test_reading_alone_never_raises_an_item_without_limit(memory: ContextMemory) -> None:
    memory.remember("The pier at Rum is closed.")
    first = memory.recall("pier")[0].score
    for n in range(300):
        memory.working_set("pier", window=f"w{n}")
    hit = memory.recall("pier")[0]
    assert first < hit.score <= first + 0.05 * hit.parts["relevance"]


def test_words_that_are_too_frequent_only_add_to_what_others_found(memory: ContextMemory) -> None:
    for n in range(40):
        memory.remember(f"The harbour has berth {n}.", kind="note")
    memory.remember("The harbour has a crane.")
    with memory._database.read() as db:
        scope = memory._scope.workspace
        capped = search.find(db, scope, ["harbour", "crane"], 41, is_passage=True, cap=10)
        assert [term.is_frequent for term in capped.terms] == [True, False]
        crane = capped.alone.argmax()
        assert len(capped.ids) == 4  # the crane's, and its neighbours' places
        both = search.with_frequent(db, scope, capped, is_passage=True)
        full = search.find(db, scope, ["harbour", "crane"], 41, is_passage=True)
        best = full.alone.argmax()
        assert full.ids[best] == both.ids[crane]
        assert both.alone[crane] > capped.alone[crane]
        assert both.alone[crane] == pytest.approx(full.alone[best])
        only_frequent = search.find(db, scope, ["harbour", "berth"], 41, is_passage=True, cap=10)
        assert (only_frequent.alone > 0).sum() == 10  # those with both words, newest first
        one_frequent = search.find(db, scope, ["harbour"], 41, is_passage=True, cap=10)
        assert (one_frequent.alone > 0).sum() == 10


def test_a_cap_costs_next_to_no_recall(store: Stores) -> None:
    """A store of 1,500 notes, questions of one rare and two frequent words: what is found with and without a cap."""
    chance = random.Random(7)
    common = [f"common{n}" for n in range(20)]
    with ContextMemory(store()) as memory:
        rare = [f"rare{n}" for n in range(300)]
        wanted = {}
        for n in range(1_500):
            words = [chance.choice(rare), *chance.sample(common, 6)]
            wanted[n] = (words, memory.remember(" ".join(words) + f" unique{n}", kind="note").ids[0])
        agree = 0
        with memory._database.read() as db:
            for n in range(0, 1_500, 15):
                words, item = wanted[n]
                found = [
                    search.find(db, memory._scope.workspace, [words[0], f"unique{n}", *words[1:3]], 1_500,
                                is_passage=True, cap=cap)
                    for cap in (100, None)
                ]  # fmt: skip
                tops = [{int(i) for i in f.ids[(-f.alone).argsort()[:10]]} for f in found]
                agree += all(item in top for top in tops)
        assert agree == 100


def test_an_item_of_nowhere_is_not_found(memory: ContextMemory) -> None:
    for call in (memory.history, memory.expand, memory.forget, lambda i: memory.feedback(i, True), memory.pin):
        with pytest.raises(ItemNotFoundError, match="item 12345"):
            call(12345)  # type: ignore[operator]


def test_an_expansion_shows_the_text_its_neighbours_and_its_typed_items(memory: ContextMemory) -> None:
    talk(memory, *[f"Turn {n} of the long talk." for n in range(7)])
    middle = next(hit for hit in memory.recall("turn 3", k=7) if "3" in hit.item.text).item
    expansion = memory.expand(middle.id)
    assert [item.text for item in expansion.before] == ["Turn 1 of the long talk.", "Turn 2 of the long talk."]
    assert [item.text for item in expansion.after] == ["Turn 4 of the long talk.", "Turn 5 of the long talk."]
    note = memory.remember("It was cold. We decided to stay. It got late.").ids[0]
    assert [item.text for item in memory.expand(note).typed] == ["We decided to stay."]
    typed = memory.recall("stay", kinds=["decision"])[0].item
    assert memory.expand(typed.id).text == "It was cold. We decided to stay. It got late."
    assert typed.text == memory.expand(typed.id).text[slice(*typed.span)]


def test_as_many_hits_are_given_as_were_asked_for(memory: ContextMemory) -> None:
    for n in range(260):
        memory.remember(f"Ferry number {n} of line {n % 13} sails at {n * 7 % 97}.", kind="note")
    assert len(memory.recall("ferry sails", k=250)) == 250
    assert len(memory.recall("ferry sails", k=1)) == 1
