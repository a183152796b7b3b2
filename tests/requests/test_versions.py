"""Agents as versioned state: forks, checkpoints, rewinds, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    Agent,
    AgentDeletedError,
    ClosedError,
    Config,
    ConfigError,
    EchoRunner,
    HistoryDivergedError,
    Memory,
    Message,
    PromptTooLongError,
    Reply,
    RequestError,
    StaleVersionError,
    Tool,
    ToolResult,
    UnknownAgentError,
    UnsupportedParameterError,
    Version,
)  # fmt: skip
from tests.parts.scripted import call, scripted

SYSTEM = "Answer with what you heard."
TAG = Tool("tag", "Tags.", {"type": "object", "properties": {"words": {"type": "array", "items": {"type": "string"}}}})


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(EchoRunner(), ":memory:") as opened:
        yield opened


def said(agent: Agent) -> list[str]:
    """What was said to an agent."""
    return [message.content for message in agent.messages if message.role == "user"]


def spoken(memory: Memory, *texts: str, name: str = "a", **how: Any) -> Agent:
    agent = memory.agent(name, system=SYSTEM, **how)
    for text in texts:
        agent.say(text)
    return agent


def shape(version: Version) -> tuple[Any, ...]:
    return version.number, version.n_turns, version.label, version.reason


def test_a_fork_goes_on_alone_with_all_that_its_parent_has(memory: Memory) -> None:
    agent = spoken(memory, "one", "two", keep_reasoning=True)
    fork = agent.fork("b")
    assert (fork.messages, fork.n_tokens, fork.tools) == (agent.messages, agent.n_tokens, agent.tools)
    usage = fork.say("three").usage
    assert (usage.tier, usage.cached_tokens) == ("hot", agent._log.n_kv)
    assert said(fork) == ["one", "two", "three"]
    assert said(agent) == ["one", "two"]
    assert agent.say("other").usage.cached_tokens >= usage.cached_tokens
    assert said(fork) == ["one", "two", "three"]
    assert fork._log.facts.keep_reasoning is True


def test_a_fork_can_be_taken_back_into_the_past_of_its_parent(memory: Memory) -> None:
    agent = spoken(memory, "one", "two", "three")
    fork = agent.fork("b")
    fork.rewind(2)
    assert (said(fork), said(agent)) == (["one"], ["one", "two", "three"])
    assert fork.info.n_turns == 1


def test_a_fork_begins_at_a_turn_a_checkpoint_or_a_version(memory: Memory) -> None:
    agent = spoken(memory, "one")
    agent.checkpoint("first")
    agent.say("two")
    agent.rewind()
    agent.say("other")
    [first, left] = agent.history()
    assert said(agent.fork("at a turn", at=1)) == ["one"]
    assert said(agent.fork("at none", at=0)) == []
    assert said(agent.fork("at a label", at="first")) == ["one"]
    assert said(agent.fork("at a version", at=left)) == ["one", "two"]
    assert said(agent.fork("at a checkpoint", at=first)) == ["one"]
    assert said(agent.fork("now")) == ["one", "other"]
    for at in (3, -1, "nothing", 1.5, True):
        with pytest.raises(UnsupportedParameterError):
            agent.fork("never", at=at)  # type: ignore[arg-type]
    assert "never" not in [info.name for info in memory.agents()]


def test_a_fork_takes_no_name_that_is_taken(memory: Memory) -> None:
    agent = spoken(memory, "one")
    memory.agent("b")
    for name in ("a", "b"):
        with pytest.raises(ConfigError, match=f"agent '{name}' exists already"):
            agent.fork(name)
    for bad in ("", 3, "\ud800"):
        with pytest.raises(ConfigError, match="non-empty str"):
            agent.fork(bad)  # type: ignore[arg-type]
    agent.fork("c").delete()
    assert said(agent.fork("c")) == ["one"]


def test_a_deleted_agent_has_no_fork(memory: Memory) -> None:
    agent = spoken(memory, "one")
    fork = agent.fork("b")
    view = agent.at(agent.checkpoint("c"))
    agent.delete()
    for use in (lambda: agent.fork("c"), agent.history, lambda: view.messages, lambda: view.fork("c")):
        with pytest.raises(AgentDeletedError):
            use()
    assert said(fork) == ["one"]
    assert fork.say("two").text == "two"


def test_the_checkpoints_on_its_way_come_along_with_a_fork(memory: Memory) -> None:
    agent = spoken(memory, "one")
    agent.checkpoint("first")
    agent.say("two")
    agent.checkpoint("second")
    fork = agent.fork("b", at=1)
    assert [version.label for version in fork.history()] == ["first"]
    fork.say("other")
    fork.rewind(to="first")
    assert said(fork) == ["one"]


def test_a_rewind_leaves_a_version_to_which_one_can_go_back(memory: Memory) -> None:
    agent = spoken(memory, "one", "two", "three")
    n_tokens = agent.n_tokens
    agent.rewind(2)
    agent.say("other")
    assert [shape(version) for version in agent.history()] == [(1, 3, None, "rewind")]
    agent.rewind(to=agent.history()[0])
    assert said(agent) == ["one", "two", "three"]
    assert agent.n_tokens == n_tokens
    assert [shape(version) for version in agent.history()] == [(1, 3, None, "rewind"), (2, 2, None, "rewind")]
    agent.rewind(to=agent.history()[1])
    assert said(agent) == ["one", "other"]
    assert len(agent.history()) == 2, "what is a version already is none again"


def test_a_checkpoint_is_gone_back_to_by_its_label(memory: Memory) -> None:
    agent = spoken(memory, "one")
    assert shape(agent.checkpoint("mark")) == (1, 1, "mark", "checkpoint")
    agent.say("two")
    agent.rewind(to="mark")
    assert said(agent) == ["one"]
    agent.say("three")
    agent.checkpoint("mark")
    agent.rewind(2)
    agent.rewind(to="mark")
    assert said(agent) == ["one", "three"]
    assert [version.label for version in agent.history()].count("mark") == 1
    for bad in ("", None, 3):
        with pytest.raises(UnsupportedParameterError):
            agent.checkpoint(bad)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedParameterError, match=r"no version 'other'.*labels \['mark'\]"):
        agent.rewind(to="other")


def test_a_rewind_goes_back_by_turns_or_to_a_version_and_not_by_both(memory: Memory) -> None:
    agent = spoken(memory, "one", "two")
    agent.checkpoint("here")
    with pytest.raises(UnsupportedParameterError, match=r"turns or to=, not both: turns is 2, to is 'here'"):
        agent.rewind(2, to="here")
    assert said(agent) == ["one", "two"]


def test_a_view_shows_a_version_and_changes_nothing(memory: Memory) -> None:
    agent = spoken(memory, "one", "two")
    agent.rewind()
    view = agent.at(1)
    assert said(view) == ["one", "two"]
    assert view.info.n_turns == 2
    assert repr(view) == f"Agent('a' turns=2 tokens={view.n_tokens}, version 1, read-only)"
    for use in (
        lambda: view.say("no"),
        lambda: view.stream("no"),
        lambda: view.rewind(),
        lambda: view.checkpoint("no"),
        lambda: view.pin(),
        lambda: view.delete(),
        lambda: view.prune(),
        lambda: view.transaction(),
        lambda: memory.generate("no", agent=view),
        lambda: memory.delete(view),
    ):
        with pytest.raises(UnsupportedParameterError, match="read-only view of version 1 of agent 'a'"):
            use()
    assert said(view.fork("b")) == ["one", "two"]
    agent.say("other")
    assert said(view) == ["one", "two"]


def test_a_transaction_that_raises_leaves_the_agent_as_it_was(memory: Memory) -> None:
    agent = spoken(memory, "one")
    before = agent.messages, agent.n_tokens

    def fail() -> None:
        with agent.transaction():
            agent.say("two")
            agent.rewind(2)
            agent.say("three")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert (agent.messages, agent.n_tokens) == before
    assert agent.history()[-1].reason == "rolled_back"
    with agent.transaction():
        agent.say("kept")
    assert said(agent) == ["one", "kept"]
    usage = agent.say("more").usage
    assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens


def test_a_transaction_that_did_nothing_leaves_no_version(memory: Memory) -> None:
    agent = spoken(memory, "one")
    with pytest.raises(KeyError), agent.transaction():
        raise KeyError
    assert agent.history() == []


def test_a_turn_that_runs_when_a_transaction_fails_is_cancelled() -> None:
    with Memory(EchoRunner(delay_s=0.002), ":memory:") as memory:
        agent = spoken(memory, "one")
        before = agent.messages
        with contextlib.suppress(KeyError), agent.transaction():
            handle = agent.stream("word " * 400, max_tokens=400)
            raise KeyError
        assert handle.state == "cancelled"
        assert agent.messages == before


def test_a_busy_agent_is_forked_at_its_last_finished_turn() -> None:
    with Memory(EchoRunner(delay_s=0.002), ":memory:") as memory:
        agent = spoken(memory, "one")
        with agent.stream("word " * 200, max_tokens=200) as handle:
            deltas = iter(handle)
            next(deltas)
            fork = agent.fork("b")
            assert said(fork) == ["one"]
            with pytest.raises(RequestError, match="while a turn of it runs"):
                agent.rewind()
            assert agent.checkpoint("busy").n_turns == 1
            assert fork.say("two").text == "two"
            handle.result()
        assert len(said(agent)) == 2


def test_only_the_newest_versions_are_kept_and_every_checkpoint() -> None:
    with Memory(EchoRunner(), ":memory:", config=Config(keep_versions=2)) as memory:
        agent = spoken(memory, "one")
        agent.checkpoint("mark")
        for number in range(4):
            agent.say(f"left {number}")
            agent.rewind()
        assert [shape(version)[:1] + shape(version)[3:] for version in agent.history()] == [
            (1, "checkpoint"), (4, "rewind"), (5, "rewind"),
        ]  # fmt: skip
        assert agent.prune(keep=1) == 1
        assert [version.number for version in agent.history()] == [1, 5]
        assert agent.prune() == 1
        assert agent.prune(checkpoints=True) == 1
        assert agent.history() == []


def test_a_temporary_fork_is_an_agent_until_the_memory_closes(tmp_path: Any) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        agent = spoken(memory, "one")
        fork = agent.fork("t", temporary=True)
        assert fork.say("two").text == "two"
        fork.checkpoint("mark")
        fork.say("three")
        fork.rewind(to="mark")
        kept = fork.fork("kept")
        assert said(memory.agent("t")) == ["one", "two"]
        with pytest.raises(ConfigError, match="exists already"):
            agent.fork("t")
        memory.flush()
    with Memory(EchoRunner(), tmp_path) as memory:
        assert sorted(info.name for info in memory.agents()) == ["a", "kept"]
        assert said(memory.agent("kept")) == ["one", "two"]
    assert kept.name == "kept"


def drawn(memory: Memory, agent: Agent | str, n: int = 4, **how: Any) -> Reply:
    return memory.best_of(agent, "Say something else now.", n, key=lambda reply: len(reply.text), **{"seed": 3} | how)


def test_the_best_of_several_replies_becomes_the_turn_and_the_prompt_is_computed_once(memory: Memory) -> None:
    agent = spoken(memory, "one " * 40)
    before, n_kv = memory.stats().computed_ids, agent._log.n_kv
    scored: list[Reply] = []
    reply = memory.best_of(
        agent,
        "Say something else now.",
        4,
        key=lambda reply: scored.append(reply) or len(scored),
        temperature=1.0,
        seed=3,
    )
    assert len(scored) == 4
    assert len({one.text for one in scored}) > 1
    assert reply.text == scored[-1].text
    assert agent.messages[-1] == reply.message
    usage = reply.usage
    assert (usage.cached_tokens, usage.cached_tokens + usage.computed_tokens) == (n_kv, usage.prompt_tokens)
    assert memory.stats().computed_ids - before == usage.computed_tokens + 3, "the last id of the prompt is each one's"
    assert agent.info.n_turns == 2
    assert [info.name for info in memory.agents()] == ["a"]
    assert memory._engine._loop.hot.nbytes == sum(one.kv.nbytes for one in memory._engine._loop.hot)
    assert [one.owner for one in memory._engine._loop.hot] == ["a"]
    following = agent.say("next").usage
    assert (following.tier, following.cached_tokens) == ("hot", agent._log.turns[1].n_kv)


def test_the_seeds_of_best_of_are_those_of_single_requests(memory: Memory) -> None:
    alone = []
    for seed in (3, 4, 5):
        agent = spoken(memory, "one", name=f"alone {seed}")
        alone.append(agent.say("Say something else now.", temperature=1.0, seed=seed).text)
    spoken(memory, "one", name="b")
    found: list[str] = []
    memory.best_of("b", "Say something else now.", 3, lambda r: found.append(r.text) or 0, temperature=1.0, seed=3)
    assert found == alone


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({}, ConfigError, "4 replies, and greedy sampling makes 4 equal ones"),
        ({"n": 0}, UnsupportedParameterError, "n must be an int from 1 to 1,000, got 0"),
        ({"n": 10**30}, UnsupportedParameterError, "n must be an int from 1 to 1,000"),
        ({"n": True}, UnsupportedParameterError, "n must be"),
        ({"agent": "nobody"}, UnknownAgentError, "no agent 'nobody'"),
    ],
)
def test_best_of_refuses_what_it_cannot_do_before_any_work(
    memory: Memory, how: dict[str, Any], error: type[Exception], says: str
) -> None:
    agent = spoken(memory, "one")
    before = memory.stats().requests
    with pytest.raises(error, match=says):
        drawn(memory, **{"agent": agent} | how)
    assert memory.stats().requests == before
    assert agent.info.n_turns == 1
    assert drawn(memory, agent, 1).text == "Say something else now."


def test_a_key_that_raises_leaves_the_agent_as_it_was(memory: Memory) -> None:
    agent = spoken(memory, "one")

    def key(reply: Reply) -> int:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        memory.best_of(agent, "two", 3, key, temperature=1.0)
    assert (said(agent), agent.history()) == (["one"], [])
    assert [one.owner for one in memory._engine._loop.hot if one.owner != "a"] in ([], [None])


def test_best_of_is_refused_where_the_agent_went_on_meanwhile(memory: Memory) -> None:
    agent = spoken(memory, "one")
    with pytest.raises(StaleVersionError, match="agent 'a' had another turn meanwhile"):
        memory.best_of(agent, "two", 2, lambda reply: agent.say("meanwhile").usage.output_tokens, temperature=1.0)
    assert said(agent) == ["one", "meanwhile", "meanwhile"]


def test_what_best_of_said_is_remembered_once(memory: Memory) -> None:
    agent = memory.agent("a", recall=True)
    memory.best_of(agent, "The gate opens at nine.", 3, lambda reply: 0, temperature=1.0)
    hits = memory.context.recall("When does the gate open?", kinds=["chat"])
    assert len([hit for hit in hits if "gate opens at nine" in hit.item.text]) == 1


def test_a_compacted_conversation_goes_on_from_its_newest_turns(memory: Memory) -> None:
    agent = spoken(memory, *(f"turn {number}" for number in range(6)))
    given: list[tuple[Message, ...]] = []

    def summary(messages: tuple[Message, ...]) -> str:
        given.append(messages)
        return "They counted."

    agent.compact(2, summary)
    assert [m.content for m in given[0]] == [SYSTEM, *(f"turn {n}" for n in range(4) for _ in "ab")]
    assert [m.content for m in agent.messages] == [
        SYSTEM, "Summary of the conversation so far:\nThey counted.\n\nturn 4", "turn 4", "turn 5", "turn 5",
    ]  # fmt: skip
    assert agent.info.n_turns == 2
    n_tokens = agent.n_tokens
    usage = agent.say("next").usage
    assert agent._log.ids[:n_tokens].tolist() == agent._log.ids[: len(agent._log.turns[1].ids)].tolist()
    assert usage.prompt_tokens > n_tokens
    assert [shape(version) for version in agent.history()] == [(1, 6, None, "compacted")]
    agent.compact(5)
    assert len(agent.history()) == 1, "nothing was left out"
    agent.compact(1)
    assert said(agent) == ["next"]
    agent.rewind(to=agent.history()[0])
    assert said(agent) == [f"turn {number}" for number in range(6)]


def test_a_compacted_reply_stands_as_the_model_wrote_it() -> None:
    spelled = '<tool_call>{ "name":"tag" , "arguments" : {"words":["x"]} }</tool_call>'
    with Memory(scripted("plain", spelled, "done", "last"), ":memory:") as memory:
        agent = memory.agent("a", system=SYSTEM, tools=[TAG])
        agent.say("one")
        asked = agent.say("two").tool_calls[0]
        agent.give(ToolResult(asked.id, "tagged"))
        written = memory._runner.tokenizer.encode(spelled)
        agent.compact(1)
        assert [m.role for m in agent.messages] == ["system", "user", "assistant", "tool", "assistant"]
        agent.say("three")
        ids = agent._log.ids.tolist()
        assert any(ids[at : at + len(written)] == written for at in range(len(ids)))


@pytest.mark.parametrize("bad", [{"keep_turns": 0}, {"keep_turns": True}, {"summary": 3}, {"summary": lambda m: 3}])
def test_compact_refuses_what_it_cannot_do(memory: Memory, bad: dict[str, Any]) -> None:
    agent = spoken(memory, *"abcdef")
    with pytest.raises(UnsupportedParameterError):
        agent.compact(**bad)
    assert (len(said(agent)), agent.history()) == (6, [])


def test_a_summary_may_ask_the_model_and_is_refused_where_the_agent_went_on(memory: Memory) -> None:
    agent = spoken(memory, *"abcdef")
    agent.compact(summary=lambda messages: memory.generate(f"Summarize {len(messages)} messages").text)
    assert agent.messages[1].content.startswith("Summary of the conversation so far:\nSummarize 5 messages\n\nc")
    with pytest.raises(StaleVersionError):
        agent.compact(1, summary=lambda messages: agent.say("meanwhile").text)
    assert said(agent)[-1] == "meanwhile"


def test_a_full_conversation_is_an_error_that_names_the_ways_out() -> None:
    with Memory(EchoRunner(context_tokens=200), ":memory:") as memory:
        agent = spoken(memory, *(f"turn {number}" for number in range(9)))
        with pytest.raises(
            PromptTooLongError, match=r"agent\.rewind.*agent\.fork\(name, at=turns\).*agent\.compact\(\)"
        ):
            agent.say("word " * 30)
        assert len(said(agent)) == 9


def test_a_full_conversation_goes_on_compacted_where_that_is_wanted() -> None:
    with Memory(EchoRunner(context_tokens=200), ":memory:", config=Config(on_full="compact")) as memory:
        agent = spoken(memory, *(f"turn {number}" for number in range(30)))
        assert said(agent)[-1] == "turn 29"
        assert {version.reason for version in agent.history()} == {"compacted"}
        assert agent.n_tokens < 200
        turns = agent.info.n_turns
        for too_long in ("word " * 60, [{"role": "user", "content": "word " * 60}]):
            with pytest.raises(PromptTooLongError):
                memory.generate(too_long, agent=agent)
        assert agent.info.n_turns == turns


def test_a_full_conversation_is_compacted_for_the_answers_to_its_open_calls() -> None:
    replies = ["plain"] * 9 + [call("tag", {"words": ["x"]}), "done"]
    runner = EchoRunner(lambda asked, ids: replies.pop(0), context_tokens=900)
    with Memory(runner, ":memory:", config=Config(on_full="compact")) as memory:
        agent = memory.agent("a", tools=[TAG])
        for number in range(9):
            agent.say(f"turn {number}")
        [open_call] = agent.say("go").tool_calls
        assert agent.history() == []
        a_word = len(runner.tokenizer.encode("word " * 100)) / 100
        result = "word " * int((900 - agent.n_tokens) / a_word)
        assert agent.give(ToolResult(open_call.id, result)).text == "done"
        assert agent.history()[-1].reason == "compacted"


def test_two_queued_turns_of_a_full_conversation_compact_it_once_each_at_most() -> None:
    with Memory(EchoRunner(context_tokens=200), ":memory:", config=Config(on_full="compact")) as memory:
        agent = spoken(memory, *(f"turn {number}" for number in range(9)))
        replies = memory.batch([f"queued {number}" for number in range(9)], agent=agent)
        assert [reply.text for reply in replies] == [f"queued {number}" for number in range(9)]
        assert said(agent)[-1] == "queued 8"


def test_a_hot_fork_stays_hot_when_its_parent_goes_on_or_goes_away(memory: Memory) -> None:
    agent = spoken(memory, "one", "two")
    first, second = agent.fork("b"), agent.fork("c")
    hot, n_kv = memory.stats().hot_bytes, agent._log.n_kv
    agent.delete()
    assert memory.stats().hot_bytes == hot
    usage = first.say("three").usage
    assert (usage.tier, usage.cached_tokens) == ("hot", n_kv)
    usage = second.say("four").usage
    assert (usage.tier, usage.cached_tokens >= n_kv) == ("hot", True)
    memory.evict("b")
    memory.evict("c")
    assert memory.stats().hot_bytes == 0


def test_what_a_fork_inherits_is_not_more_than_it_may_know(memory: Memory) -> None:
    agent = spoken(memory, "one")
    fork = agent.fork("b")
    agent.say("secret")
    agent.delete()
    [lineage] = memory._engine._loop.hot
    assert lineage.owner == "b"
    assert lineage.ids.tolist() == fork._log.ids[: fork._log.n_kv].tolist()


def test_best_of_says_that_keys_cannot_be_compared_and_changes_nothing(memory: Memory) -> None:
    agent = spoken(memory, "one")
    with pytest.raises(UnsupportedParameterError, match="key must give values that can be compared"):
        memory.best_of(agent, "two", 2, lambda reply: reply, temperature=1.0, max_tokens=3)
    assert agent.info.n_turns == 1


def test_a_closed_memory_refuses_to_compact_a_short_conversation_too() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        agent = spoken(memory, "one")
    with pytest.raises(ClosedError):
        agent.compact()


def test_a_version_of_another_agent_is_refused(memory: Memory) -> None:
    ann, bob = spoken(memory, "one", "two", name="ann"), spoken(memory, "three", name="bob")
    ann.checkpoint("hers")
    his = bob.checkpoint("his")
    before = ann.messages
    for refused in (lambda: ann.rewind(to=his), lambda: ann.fork("c", at=his), lambda: ann.at(his)):
        with pytest.raises(UnsupportedParameterError, match="agent 'ann' has no version"):
            refused()
    assert ann.messages == before


def test_replies_that_best_of_draws_are_the_agents_own_wherever_agents_are_named(tmp_path: Path) -> None:
    seen: list[str | None] = []
    recorder = tmp_path / "recorder.jsonl"
    config = Config(on_reply=lambda reply: seen.append(reply.agent), recorder=recorder)
    with Memory(EchoRunner(), ":memory:", config=config) as memory:
        agent = spoken(memory, "one", name="ann of kent")
        reply = memory.best_of(agent, "two", 2, lambda _: 0, temperature=1.0, max_tokens=3)
        assert reply.agent == "ann of kent"
        assert 'agent="ann of kent"' in memory.to_prometheus(top_agents=5).encode().decode()
        assert "agent_memory_agent_requests_total" in memory.to_prometheus(top_agents=5, hash_names=True)
        history = [{"role": "user", "content": "another"}]
        with pytest.raises(HistoryDivergedError, match="agent 'ann of kent'"):
            memory.best_of(agent, history, 2, lambda _: 0, temperature=1.0, on_diverge="error")
    assert set(seen) == {"ann of kent", None}  # without an agent: the prompt, which is computed once
    lines = [json.loads(line) for line in recorder.read_text().splitlines()]
    assert {line["agent"] for line in lines if line.get("agent")} == {"ann of kent"}


def test_the_turn_after_a_compaction_says_how_many_turns_were_compacted(memory: Memory) -> None:
    agent = spoken(memory, *(f"turn {number}" for number in range(6)))
    agent.compact(2)
    report = agent.explain()
    assert (report.cause, report.prompt_tokens) == ("compacted", agent.n_tokens)
    assert "4 turns" in report.detail
    assert report.advice
    assert agent.explain("next").cause == "compacted"
    usage = agent.say("next").usage
    assert (usage.miss, usage.miss_detail[:7]) == ("compacted", "4 turns")
    assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
    assert memory.stats().misses["compacted"] == 1
    assert (agent.say("more").usage.miss, agent.explain().cause) == (None, None)


def test_two_compactions_before_a_turn_are_counted_together(memory: Memory) -> None:
    agent = spoken(memory, *(f"turn {number}" for number in range(6)))
    agent.compact(3)
    agent.compact(1)
    assert agent.fork("b").explain().detail.startswith("5 turns")
    assert agent.say("next").usage.miss_detail.startswith("5 turns")
    assert memory.agent("b").say("next").usage.miss is None, "a has computed it"
    agent.rewind(to=agent.history()[0])
    assert agent.say("next").usage.miss != "compacted"


def test_a_turn_that_compacts_a_full_conversation_says_so() -> None:
    with Memory(EchoRunner(context_tokens=200), ":memory:", config=Config(on_full="compact")) as memory:
        agent = memory.agent("a", system=SYSTEM)
        usages = [(agent.history(), agent.say(f"turn {n}").usage, agent.history()) for n in range(20)]
        compacted = [usage for before, usage, after in usages if before != after]
        assert {usage.miss for usage in compacted} == {"compacted"}
        assert all("turns of this conversation" in usage.miss_detail for usage in compacted)
        assert {usage.miss for before, usage, after in usages if before == after} == {None}
