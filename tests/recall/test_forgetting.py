"""Law 16 beyond the cards: copies of a forgotten text in replies, results and KV, whoever forgets it and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory import (
    Config,
    ContextMemory,
    EchoRunner,
    EpisodicMemory,
    Memory,
    Outcome,
    Pause,
    Recall,
    ToolResult,
)
from tests.parts.scripted import call, scripted
from tests.parts.stores import Stores

SECRET = "The heron vault opens with the word bramblewick."
WORD = "bramblewick"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Memory]]:
    memories: list[Memory] = []

    def make(*replies: str, **config: Any) -> Memory:
        settings = Config(chunk_tokens=16, prefill_tokens=16, **config)
        memories.append(Memory(scripted(*replies), tmp_path, config=settings))
        return memories[-1]

    yield make
    for memory in memories:
        memory.close()


def files_with_the_word(memory: Memory) -> list[str]:
    memory.flush()
    ids = memory._runner.tokenizer.encode(WORD)
    needles = [WORD.encode(), np.array(ids, "<u4").tobytes(), np.array(ids, ">u4").tobytes()]
    assert memory.path is not None
    files = [one for one in memory.path.rglob("*") if one.is_file()]
    return [str(one) for one in files if any(needle in one.read_bytes() for needle in needles)]


def test_a_reply_that_copies_a_forgotten_card_is_marked_too(opened: Callable[..., Memory]) -> None:
    memory = opened("As noted: The heron vault opens with the word bramblewick! Good luck.", "I see.", "Yes.")
    memory.context.remember(SECRET)
    agent = memory.agent("ann", recall=Recall(remember=False))
    agent.say("How does the heron vault open?")
    agent.say("Thank you.")
    assert files_with_the_word(memory), "it was there"
    assert memory.context.forget(WORD) == 1
    assert [m.content for m in agent.messages if m.role == "assistant"] == [
        "As noted: [forgotten]! Good luck.",
        "I see.",
    ]
    assert files_with_the_word(memory) == []
    reply = agent.say("And now?")
    assert reply.usage.miss == "forgotten"
    assert files_with_the_word(memory) == []


def test_a_tools_result_that_showed_a_forgotten_text_is_marked_too(opened: Callable[..., Memory]) -> None:
    call = '<tool_call>{"name": "recall", "arguments": {"query": "heron vault"}}</tool_call>'
    memory = opened(call, "It opens with a word.", "Yes.")
    memory.context.remember(SECRET)
    memory.run_tools("ann", "How does the heron vault open?", memory.context.tools())
    other = memory.agent("bob")
    other.say("Which heron?")
    before = other.messages
    assert files_with_the_word(memory), "it was there"
    assert memory.context.forget(WORD) == 1
    [result] = [m.content for m in memory.agent("ann").messages if m.role == "tool"]
    assert "[forgotten]" in result
    assert files_with_the_word(memory) == []
    assert other.messages == before, "who was not shown it keeps its log"


def test_what_somebody_said_himself_stays_in_his_conversation(opened: Callable[..., Memory]) -> None:
    memory = opened("I see.", "Yes.")
    agent = memory.agent("ann", recall=True)
    agent.say(SECRET)
    memory.flush()
    assert memory.context.forget(source="agent:ann") > 0
    assert agent.messages[0].content == SECRET
    assert memory.context.recall(WORD) == []
    memory.delete("ann")
    assert files_with_the_word(memory) == []


def test_turns_that_were_taken_back_leave_nothing_of_their_cards(opened: Callable[..., Memory]) -> None:
    """Of an agent that recalls nothing by itself, whose only card stood in a turn that was taken back."""
    memory = opened("I see.", "I see.", "Yes.")
    memory.context.remember(SECRET)
    agent = memory.agent("ann", system="You keep the ponds. " * 8)
    agent.say("Good morning to you, and a good day.")
    assert agent.say("How does the heron vault open?", recall=Recall(remember=False)).recalled
    memory.flush()
    agent.rewind(1)
    memory.flush()
    assert memory.context.forget(WORD) == 1
    assert files_with_the_word(memory) == []
    memory.close()
    again = opened("Yes.")
    assert files_with_the_word(again) == []


def test_retention_reaches_the_cards_as_forgetting_does(opened: Callable[..., Memory]) -> None:
    memory = opened("I see.", "Yes.")
    memory.context.remember(SECRET, at=time.time() - 40 * 86_400)
    memory.context.remember("The heron vault lies behind nine lamps.")
    agent = memory.agent("ann", recall=Recall(remember=False))
    agent.say("How does the heron vault open?")
    assert files_with_the_word(memory)
    assert memory.context.maintain(10_000, retain_days=30).n_expired == 1
    assert any("[forgotten]" in card.text for card in agent.messages[0].recalled)
    assert any("nine lamps" in card.text for card in agent.messages[0].recalled)
    assert files_with_the_word(memory) == []


def test_what_another_program_forgets_on_the_file_is_told_to_the_agents(
    opened: Callable[..., Memory], tmp_path: Path
) -> None:
    memory = opened("I see.", "Yes.")
    memory.context.remember(SECRET)
    memory.agent("ann", recall=Recall(remember=False)).say("How does the heron vault open?")
    memory.flush()
    salt = memory._asking.longterm._salt
    with ContextMemory(tmp_path / "recall.sqlite3", salt=salt) as other:
        assert other.forget(WORD) == 1
    assert files_with_the_word(memory), "agents have not been told yet"
    memory.context  # noqa: B018 - whoever uses it next is told
    assert files_with_the_word(memory) == []
    assert [card.text for card in memory.agent("ann").messages[0].recalled] == ["- [forgotten]\n"]
    with ContextMemory(tmp_path / "recall.sqlite3", salt=salt) as other:
        assert other.check().ok


def test_a_short_answer_is_no_copy_of_a_forgotten_one(opened: Callable[..., Memory]) -> None:
    memory = opened("Yes.", "Yes.")
    memory.context.remember("Yes.", kind="note")
    memory.context.remember(SECRET)
    agent = memory.agent("ann", recall=Recall(remember=False))
    agent.say("How does the heron vault open, yes or no?")
    assert memory.context.forget(everything=True) == 2
    assert agent.messages[-1].content == "Yes."


def test_everything_of_a_large_workspace_is_told_at_once() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        memory.context.remember([{"role": "user", "content": f"Crate {n} holds {n} bolts."} for n in range(3_000)])
        agent = memory.agent("ann", recall=Recall(remember=False))
        assert agent.say("What does crate 7 hold?").recalled
        assert memory.context.forget(everything=True) == 3_000
        assert {card.text for card in agent.messages[0].recalled} == {"- [forgotten]\n"}


def test_forks_versions_and_checkpoints_forget_too(opened: Callable[..., Memory]) -> None:
    copied = "As noted: The heron vault opens with the word bramblewick! Good luck."
    memory = opened(copied, *["I see."] * 30)
    memory.context.remember(SECRET)
    memory.context.remember("The heron vault lies behind nine lamps.")
    agent = memory.agent("ann", system="You keep the ponds. " * 8, recall=Recall(remember=False))
    agent.say("How does the heron vault open?")
    agent.checkpoint("asked")
    fork = agent.fork("bob")
    agent.say("Thank you, and a good day to you.")
    fork.say("What lies behind the lamps?")
    agent.checkpoint("thanked")
    agent.rewind(to="asked")
    agent.say("And what else?")
    passing = agent.fork("cid", temporary=True)
    passing.say("Who keeps the lamps?")
    memory.flush()
    assert files_with_the_word(memory), "it was there"

    assert memory.context.forget(WORD) == 1

    assert files_with_the_word(memory) == []
    for one in (agent, fork, passing):
        assert any("[forgotten]" in card.text for m in one.messages for card in m.recalled)
        assert WORD not in str([(m.content, m.recalled) for m in one.messages])
    for version in agent.history():
        assert WORD not in str([(m.content, m.recalled) for m in agent.at(version).messages])
    agent.rewind(to="thanked")
    assert [m.content for m in agent.messages][-1] == "I see."
    for one in (agent, fork, passing):
        assert one.say("And now?").text
    assert files_with_the_word(memory) == []
    assert memory.verify().ok
    memory.close()
    again = opened("Yes.", "Yes.")
    assert WORD not in str([(m.content, m.recalled) for m in again.agent("bob").messages])
    assert again.agent("bob").say("Still there?").text == "Yes."
    assert files_with_the_word(again) == []


def test_a_deleted_agent_leaves_no_word_in_forks_that_it_had_not(opened: Callable[..., Memory]) -> None:
    memory = opened("I see.", "I see.", "Yes.")
    agent = memory.agent("ann", system="You keep the ponds. " * 8)
    agent.say("Good morning to you, and a good day.")
    agent.checkpoint("early")
    fork = agent.fork("bob")
    agent.say(SECRET)
    agent.checkpoint("late")
    agent.rewind(to="early")
    assert files_with_the_word(memory), "it was there"
    assert memory.delete("ann")
    assert files_with_the_word(memory) == []
    assert fork.say("Still there?").usage.cached_tokens > 0


def _waiting(memory: Memory) -> Any:
    """Run two tools of one reply: ``recall`` has its result, the other one waits for somebody."""

    def ask_the_keeper() -> str:
        raise Pause("the keeper sleeps")

    return memory.run_tools("ann", "How does the heron vault open?", [*memory.context.tools(), ask_the_keeper])


def test_a_result_that_waits_for_those_of_other_calls_is_marked_too(opened: Callable[..., Memory]) -> None:
    """It stands beside the log until the last one is there: in the agent's facts, and in those of its versions."""
    calls = call("recall", {"query": "heron vault"}) + call("ask_the_keeper", {})
    memory = opened(calls, "It opens with a word.", "Yes.")
    memory.context.remember(SECRET)
    reply = _waiting(memory)
    agent = memory.agent("ann")
    agent.checkpoint("here")
    assert list(reply.paused.values()) == ["the keeper sleeps"]
    assert files_with_the_word(memory), "it was there"
    assert memory.context.forget(WORD) == 1
    assert files_with_the_word(memory) == []
    memory.close()
    again = opened("It opens with a word.", "Yes.")
    assert files_with_the_word(again) == []
    [left] = reply.paused
    agent = again.agent("ann")
    agent.give(ToolResult(left, "It is closed."))
    first, second = [m.content for m in agent.messages if m.role == "tool"]
    assert "[forgotten]" in first
    assert second == "It is closed."
    assert files_with_the_word(again) == []


def test_steps_of_episodes_that_showed_a_forgotten_text_are_marked_too(opened: Callable[..., Memory]) -> None:
    """``run_tools(episode=)`` records what ``recall`` gave, and what was done with it."""

    def turn_the_lock(word: str) -> str:
        return f"turned by {word}"

    sentence = "the heron vault opens with the word bramblewick"
    calls = (
        call("recall", {"query": "heron vault"}),
        call("turn_the_lock", {"word": f"I read: {sentence.capitalize()}."}),
    )
    memory = opened(*calls, "It is open.", "Yes.")
    memory.context.remember(SECRET)
    memory.context.remember("The lamps are lit at dusk by the keeper.")
    for name in ("before", "during"):
        with memory.episodes.start(f"open the vault {name}") as episode:
            if name == "during":
                tools = [*memory.context.tools(), turn_the_lock]
                memory.run_tools("ann", "How does the heron vault open?", tools, episode=episode)
            else:
                episode.step("look", observation="The heron vault stands by the pond.")
            episode.complete(True)
    assert files_with_the_word(memory), "it was there"
    assert memory.context.forget(WORD) == 1
    assert files_with_the_word(memory) == []
    recalled, turned = episode.record.steps
    assert "[forgotten]" in recalled.observation
    assert turned.parameters == {"word": "I read: [forgotten]."}
    assert turned.observation == "turned by I read: [forgotten]."
    [before] = [one for one in memory.episodes.newest() if one.task == "open the vault before"]
    assert [step.observation for step in before.steps] == ["The heron vault stands by the pond."]


def test_forgetting_marks_the_steps_of_episodes_of_its_own_workspace(store: Stores) -> None:
    where = store("memory")
    with ContextMemory(where) as context, EpisodicMemory(where) as episodes:
        context.remember(SECRET)
        context.remember("The lamps are lit at dusk by the keeper.")
        recall, _ = context.tools()
        with episodes.start("open the vault") as episode:
            episode.step("recall", observation=recall("the heron vault"), parameters={"query": "the heron vault"})
            episode.step("read", observation=f"It said: {SECRET}", parameters={"lines": [f'"{SECRET}"', 3]})
            episode.complete(Outcome(success=True, result=f"Opened. {SECRET}"))
        with episodes.workspace("other").start("open it") as other:
            other.step("recall", observation=recall("the heron vault"))
            other.complete(True)
        others = other.record
        assert context.forget(WORD) == 1
        first, second = episode.record.steps
        assert "[forgotten]" in first.observation
        assert second.observation == "It said: [forgotten]."
        assert second.parameters == {"lines": ['"[forgotten]."', 3]}
        assert episode.record.outcome is not None
        assert episode.record.outcome.result == "Opened. [forgotten]."
        assert other.record == others, "workspaces never meet"
        assert episodes.workspace("other").forget() == 1
    assert WORD.encode() not in store.bytes()


def test_a_card_that_the_cut_of_a_long_observation_goes_through_is_marked_on_both_sides(store: Stores) -> None:
    """What is left of it in front of the cut, and behind it, is no whole card any more."""
    where = store("memory")
    wide = "\U0001d11e"  # four bytes
    told = f"The heron vault opens with bramblewick, it says here {wide * 240} and behind it grows bramblewick too."
    with ContextMemory(where) as context, EpisodicMemory(where) as episodes:
        context.remember(told)
        recall, _ = context.tools()
        shown = recall("the heron vault")
        assert told in shown
        with episodes.start("open the vault") as episode:
            # Of more than 100,000 bytes the first and the last 12,480 characters are kept.
            episode.step("recall", observation=wide * 12_400 + "\n" + shown + wide * 12_400)
            episode.complete(True)
        [kept] = [step.observation for step in episode.record.steps]
        assert "opens with bramblewick" in kept, "the half before the cut"
        assert "grows bramblewick too" in kept, "the half behind it"
        assert told not in kept
        assert context.forget(WORD) == 1
        assert "grows" not in episode.record.steps[0].observation
    assert WORD.encode() not in store.bytes()
