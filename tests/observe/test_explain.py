"""Why the cache was missed: cause, place and texts, on a corpus by a stranger to the code, and case by case."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from agent_memory import (
    AgentDeletedError,
    ClosedError,
    EchoRunner,
    Memory,
    MissCause,
    Tool,
    UnknownAgentError,
    UnsupportedParameterError,
)
from agent_memory.observe.explain import ADVICE
from tests.parts.explaining import cases, play, verdict
from tests.parts.opening import opening, small
from tests.parts.templated import says, templated

LONG = "Be brief and believable, whatever is asked of you. " * 3
READ = Tool("read", "Reads a file.", {"type": "object", "properties": {"path": {"type": "string"}}})
WRITE = Tool("write", "Writes a file.", {"type": "object", "properties": {"path": {"type": "string"}, "n": {}}})
#: What the corpus calls a miss and this library reuses whole: it writes tools in one order of keys, whatever the
#: caller's, and keeps the calls of an agent as they were written.
REUSED = {"keys-01-function-keys", "keys-03-call-arguments"}


pytestmark = pytest.mark.usefixtures("free")  # the model says what a case has written


@pytest.fixture
def opened() -> Iterator[Callable[..., Memory]]:
    with opening(small) as open_:
        yield open_


def chat(system: str, *said: str) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    return [{"role": "system", "content": system}, *turns]


# the corpus


@pytest.mark.parametrize("case", cases("misses"), ids=lambda case: case["id"])
def test_a_miss_of_the_corpus_has_its_cause_its_message_and_its_texts(case: Any, tmp_path: Path) -> None:
    report = play(case, tmp_path / "store")
    if case["id"] in REUSED:
        assert (report.cause, report.reusable_tokens) == (None, report.prompt_tokens - 1)
    else:
        assert verdict(case, report) == {"cause": True, "message": True, "here": True, "there": True}, str(report)


@pytest.mark.parametrize("case", cases("hits"), ids=lambda case: case["id"])
def test_a_hit_of_the_corpus_has_no_cause(case: Any, tmp_path: Path) -> None:
    report = play(case, tmp_path / "store")
    assert (report.cause, report.detail, report.advice, report.diverged_at) == (None, "", "", None), str(report)
    assert report.reusable_tokens > 0


# what a report is


def test_every_cause_has_advice_of_one_sentence() -> None:
    assert set(ADVICE) == set(get_args(MissCause))
    assert all(text.endswith(".") and "\n" not in text for text in ADVICE.values())


def test_a_report_tells_the_first_token_that_differs_with_both_texts(opened: Callable[..., Memory]) -> None:
    memory = opened()
    agent = memory.agent("a", system=LONG + "It is 12:30:05.")
    agent.say("one")
    report = agent.explain(chat(LONG + "It is 12:31:44.", "one", "one", "two"))
    at = report.diverged_at
    assert report.cause == "volatile_text"
    assert at is not None
    assert (at.message, at.role, at.part, at.token) == (0, "system", "message", report.reusable_tokens)
    assert report.shared.endswith("It is 12:3")
    assert (report.here[:4], report.there[:4]) == ("1:44", "0:05")
    assert report.advice == ADVICE["volatile_text"]
    usage = memory.generate(chat(LONG + "It is 12:31:44.", "one", "one", "two"), agent="a").usage
    assert (usage.miss, usage.miss_detail, usage.diverged_at) == (report.cause, report.detail, at)


def test_a_report_is_text_dict_json_html_and_markdown(opened: Callable[..., Memory]) -> None:
    memory = opened()
    memory.generate(chat(LONG + "<b>|*one*", "a"))
    report = memory.explain(chat(LONG + "<i>|*two*", "a"))
    assert report.to_dict() == json.loads(report.to_json())
    assert report.to_dict()["cause"] == "system_changed"
    assert report.to_dict()["reusable_tokens"] == sum(report.reusable.values())
    assert "cause: system_changed" in str(report)
    assert "i>|*two*" in str(report)
    assert "<i>" not in report._repr_html_()
    assert "i&gt;|*two*" in report._repr_html_()
    rows = [row for row in report._repr_markdown_().splitlines() if row.startswith("|")]
    assert len(rows) > 5
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)
    assert "i\\>\\|\\*two\\*" in report._repr_markdown_()
    assert repr(report).startswith("CacheReport(cause=system_changed")


def test_estimates_come_from_what_was_measured_and_say_so_where_nothing_was(
    opened: Callable[..., Memory], tmp_path: Path
) -> None:
    memory = opened(None, tmp_path)
    before = memory.explain(chat(LONG, "one"))
    assert (before.prefill_s, before.restore_s) == (None, 0.0)
    assert "nothing was computed" in before.unmeasured
    memory.agent("a", system=LONG).say("one")
    assert memory.explain("something else").prefill_s is not None
    memory.close()
    memory = opened(None, tmp_path)
    cold = memory.agent("a").explain("two")
    assert (cold.restore_s, cold.prefill_s) == (None, None)
    assert "nothing was restored from cold" in cold.unmeasured
    assert set(cold.reusable) == {"cold"}
    memory.agent("a").say("two")
    memory.evict("a")
    again = memory.agent("a").explain("three")
    assert again.restore_s is not None
    assert again.restore_s > 0
    assert again.prefill_s is not None
    assert again.unmeasured == ""


def test_explaining_computes_and_changes_nothing(opened: Callable[..., Memory], tmp_path: Path) -> None:
    runner = EchoRunner()
    memory = opened(runner, tmp_path)
    agent = memory.agent("a", system=LONG)
    agent.say("one")
    memory.flush()
    before = (runner.calls.computed, memory.stats(), agent.messages, [info.name for info in memory.agents()])
    for prompt in ("two", chat("Another.", "one"), chat(LONG, "one", "one", "two")):
        agent.explain(prompt)
        memory.explain(prompt)
        memory.explain(prompt, agent="a", tools=[READ])
    agent.explain()
    assert (runner.calls.computed, memory.stats(), agent.messages, [i.name for i in memory.agents()]) == before
    assert agent.say("two").usage.miss is None


def test_explaining_makes_no_agent_and_refuses_what_is_none(opened: Callable[..., Memory]) -> None:
    memory = opened()
    with pytest.raises(UnknownAgentError, match="nobody"):
        memory.explain("one", agent="nobody")
    assert memory.agents() == []
    with pytest.raises(UnsupportedParameterError, match="maxtokens"):
        memory.explain("one", maxtokens=3)  # type: ignore[call-arg]
    agent = memory.agent("a")
    agent.delete()
    with pytest.raises(AgentDeletedError):
        agent.explain("one")
    memory.close()
    with pytest.raises(ClosedError):
        memory.explain("one")


# one cause after another, where the corpus says less


def test_a_conversation_as_it_stands_is_there_or_says_where_it_went(opened: Callable[..., Memory]) -> None:
    memory = opened()
    agent = memory.agent("a", system=LONG)
    assert (agent.explain().cause, agent.explain().prompt_tokens) == (None, 0)
    agent.say("one")
    n_kv = agent._log.n_kv
    report = agent.explain()
    assert (report.cause, dict(report.reusable), report.prompt_tokens) == (None, {"hot": n_kv}, n_kv)
    memory.evict("a")
    report = agent.explain()
    assert (report.cause, dict(report.reusable)) == ("evicted", {})
    usage = agent.say("two").usage
    assert (usage.miss, usage.miss_detail) == (report.cause, report.detail)


def test_what_was_not_written_before_a_restart_was_not_stored(opened: Callable[..., Memory], tmp_path: Path) -> None:
    memory = opened(None, tmp_path, disk_bytes_per_day=1)
    memory.agent("a", system=LONG).say("one")
    memory.close()
    memory = opened(None, tmp_path)
    report = memory.agent("a").explain()
    assert report.cause == "not_stored"
    assert memory.agent("a").say("two").usage.miss == "not_stored"


def test_a_request_that_ended_in_the_line_or_in_prefill_was_cancelled(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner(delay_s=0.02))
    asked = chat(LONG * 4, "one")
    first, waits = memory.stream(asked), memory.stream(chat(LONG[::-1] * 4, "two"), priority=-1)
    while first.progress[0] < 32:
        pass
    waits.cancel()
    first.cancel()
    assert [list(first), list(waits)] == [[], []]
    report = memory.explain(asked)
    assert report.cause == "cancelled"
    assert 0 < report.reusable_tokens < report.prompt_tokens / 2
    assert memory.explain(chat(LONG[::-1] * 4, "two")).cause == "cancelled"
    usage = memory.generate(asked).usage
    assert (usage.miss, usage.miss_detail) == ("cancelled", report.detail)
    assert memory.stats().misses == {"cancelled": 1}
    assert memory.explain(asked).cause is None


def test_what_an_agent_said_of_a_cancelled_turn_is_forgotten_with_the_agent(opened: Callable[..., Memory]) -> None:
    memory = opened()
    agent = memory.agent("a", system=LONG)
    agent.say("one")
    memory.evict("a")
    unkept = memory._engine._loop.unkept
    assert unkept.longest(agent._log.ids) is not None
    ids = agent._log.ids
    agent.delete()
    assert unkept.longest(ids) is None


@pytest.mark.parametrize("name", ["a", None])
def test_kv_of_another_tenant_or_another_model_is_named_as_such(
    opened: Callable[..., Memory], tmp_path: Path, name: str | None
) -> None:
    asked = chat(LONG, "one")
    memory = opened(None, tmp_path, salt="one")
    memory.generate(asked, agent=name)
    memory.prefill(asked)
    memory.close()
    memory = opened(None, tmp_path, salt="two")
    report = memory.explain(asked)
    assert (report.cause, report.reusable_tokens) == ("other_tenant", 0)
    assert memory.generate(asked, agent=name).usage.miss == "other_tenant"
    memory.close()
    memory = opened(EchoRunner(identity="other"), tmp_path, salt="one")
    assert memory.explain(asked).cause == "other_model"
    assert memory.explain("How tall is the tower?").cause == "never_seen"


@pytest.mark.parametrize("name", ["qwen", "llama", "mistral", "granite", "phi4_mini", "harmony"])
def test_without_an_agent_changed_tools_are_named_so(opened: Callable[..., Memory], name: str) -> None:
    """They were called a changed system prompt, or an edited history."""
    memory = opened(says(templated(name)))
    asked = chat(LONG, "one")
    memory.generate(asked, tools=[WRITE, READ])
    described = Tool("write", "Writes a text.", WRITE.parameters)
    others = [([READ, WRITE], "read"), ([WRITE], None), ([WRITE, READ, Tool("list")], "list"), ([], None)]
    others += [([described, READ], "write")] if name != "harmony" else []  # which writes no description
    for tools, tool in others:
        report = memory.explain(asked, tools=tools)
        assert report.cause == "tools_changed", (tools, str(report))
        assert report.diverged_at is not None
        if tool is not None and name != "harmony":  # which writes the name of a tool before anything else
            assert (report.diverged_at.tool, report.diverged_at.part) == (tool, "tools"), tools
    reordered = Tool("write", WRITE.description, dict(reversed(WRITE.parameters.items())))
    assert memory.explain(asked, tools=[reordered, READ]).cause == "key_order"
    assert memory.explain(asked, tools=[WRITE, READ]).cause is None
    assert memory.generate(asked, tools=[reordered, READ]).usage.miss == "key_order"


def test_tools_that_are_there_only_now_are_changed_tools(opened: Callable[..., Memory]) -> None:
    for name in ("qwen", "llama", "mistral", "granite", "phi4_mini", "harmony"):
        memory = opened(says(templated(name)))
        memory.generate(chat(LONG, "one"))
        assert memory.explain(chat(LONG, "one"), tools=[WRITE]).cause == "tools_changed", name


def test_a_clock_in_the_description_of_a_tool_is_volatile(opened: Callable[..., Memory]) -> None:
    memory = opened(says(templated("qwen")))
    early, late = (Tool("now", f"Tells the time. It was {clock} at the start.") for clock in ("12:30:05", "12:31:44"))
    memory.generate(chat(LONG, "one"), tools=[early])
    report = memory.explain(chat(LONG, "one"), tools=[late])
    assert (report.cause, report.diverged_at and report.diverged_at.tool) == ("volatile_text", "now")


@pytest.mark.parametrize("agent", ["a", None])
@pytest.mark.parametrize(
    ("early", "late", "cause"),
    [
        ("It is 3f2504e0-4f89-11d3-9a0c-0305e82c3301.", "It is 9b2504e0-1f89-41d3-8a0c-1305e82c3309.", "volatile_text"),
        ("This is request #41.", "This is request #42.", "volatile_text"),
        ("Now: 2024-07-26T12:30:05Z.", "Now: 2024-07-26T12:30:06Z.", "volatile_text"),
        ("Commit 9f8e7d6c5b4a.", "Commit 1a2b3c4d5e6f.", "volatile_text"),
        ("Today is Friday, 26 July 2024.", "Today is Saturday, 27 July 2024.", "date_moved"),
        ("It is 12:30:05. Be kind.", "It is 12:31:44. Be rude.", "system_changed"),
        ("You have 2 cats.", "You have 3 cats.", "system_changed"),
    ],
)
def test_a_text_is_volatile_where_it_differs_in_such_spans_alone(
    opened: Callable[..., Memory], agent: str | None, early: str, late: str, cause: str
) -> None:
    memory = opened()
    memory.generate(chat(LONG + early, "one"), agent=agent)
    asked = chat(LONG + late, "one", "one", "two")
    assert memory.explain(asked, agent=agent).cause == cause
    assert memory.generate(asked, agent=agent).usage.miss == cause


def test_json_in_a_message_with_its_keys_in_another_order(opened: Callable[..., Memory]) -> None:
    memory = opened()
    memory.generate(chat(LONG + '{"name": "Ann", "age": 3}', "one"))
    assert memory.explain(chat(LONG + '{"age": 3, "name": "Ann"}', "one")).cause == "key_order"
    assert memory.explain(chat(LONG + '{"age": 4, "name": "Ann"}', "one")).cause == "system_changed"


@pytest.mark.parametrize("name", ["qwen", "llama", "granite", "phi4_mini", "harmony"])
def test_a_system_message_that_comes_or_goes_is_a_changed_one(opened: Callable[..., Memory], name: str) -> None:
    memory = opened(says(templated(name)))
    with_it, without = chat(LONG, "one " * 30, "two", "three"), chat(LONG, "one " * 30, "two", "three")[1:]
    memory.generate(with_it)
    if name != "llama":  # the templates of these two begin so that nothing is shared, or write a system part anyway
        assert memory.explain(without).cause in ("system_changed", "never_seen")
    memory = opened(says(templated(name)))
    memory.generate(without)
    assert memory.explain(with_it).cause in ("system_changed", "date_moved", "never_seen")


def test_a_prompt_that_shares_a_few_tokens_with_another_was_never_seen(opened: Callable[..., Memory]) -> None:
    memory = opened()
    memory.generate(chat("You are a pirate who sails the seven seas.", "Where is the gold?"))
    report = memory.explain(chat("Translate what the user says into Latin.", "Hello."))
    assert report.cause == "never_seen"
    assert memory.generate(chat("Translate what the user says into Latin.", "Hello.")).usage.miss is None


def test_the_day_of_a_template_is_told_from_the_message_behind_it(opened: Callable[..., Memory]) -> None:
    for name in ("llama", "granite", "harmony"):
        memory = opened(says(templated(name)))
        memory._asking.clock = lambda: datetime(2024, 7, 26, 9, 30)
        memory.generate("What day is it? " * 8)
        memory._asking.clock = lambda: datetime(2024, 7, 27, 9, 30)
        report = memory.explain("What day is it? " * 8)
        assert (report.cause, report.diverged_at and report.diverged_at.part) == ("date_moved", "template"), name
        memory._asking.clock = lambda: datetime(2024, 7, 26, 9, 30)
        assert memory.explain("Which day is it? " * 8).cause == "never_seen", name


def test_a_reply_that_comes_back_with_its_reasoning_in_tags_is_the_logged_one(opened: Callable[..., Memory]) -> None:
    """It was another history: the whole reply was computed again, and the log replaced."""
    memory = opened(says(templated("qwen"), "<think>\nthe theory\n</think>\n\nYes.", "No."))
    agent = memory.agent("a", keep_reasoning=True)
    agent.say("Is it?")
    history = [
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": "<think>\nthe theory\n</think>\n\nYes."},
        {"role": "user", "content": "Was it?"},
    ]
    assert agent.explain(history).cause is None
    usage = memory.generate(history, agent="a").usage
    assert (usage.miss, usage.replaced_messages) == (None, 0)
    history[1]["content"] = "<think>\nanother theory\n</think>\n\nYes."
    assert agent.explain(history).cause == "edited_history"


def test_a_miss_that_cannot_be_explained_ends_no_request(
    opened: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from agent_memory.requests import prompting

    memory = opened()
    memory.generate(chat(LONG, "one"))

    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("the secret word")

    monkeypatch.setattr(prompting, "explain", fails)
    reply = memory.generate(chat(LONG + "Please.", "one"))
    assert (reply.text, reply.usage.miss) == ("one", None)
    assert "could not be explained: ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text
