"""What users hit: a turn computes only what is new, and where it computes more it says why."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import attrs
import pytest

from agent_memory import (
    ConfigError,
    EchoRunner,
    HistoryDivergedError,
    Memory,
    Reply,
    Tool,
    ToolResult,
    UnsupportedParameterError,
    open_store,
)  # fmt: skip
from tests.parts.opening import opening, small
from tests.parts.templated import Templated, says, templated
from tests.parts.templates import NATIVE

WRITE = Tool(
    "write",
    "Writes a file.",
    {"type": "object", "properties": {"path": {"type": "string"}, "text": {"type": "string"}, "n": {"type": "number"}}},
)
ARGUMENTS = {"path": "a/b.py", "text": 'the theory in all\nof it: {"x": [1, 2.0]} é', "n": 1}
SPELLINGS: dict[str, Callable[[Any], str]] = {
    "canonical": lambda value: json.dumps(value, ensure_ascii=False),
    "compact": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "newlines": lambda value: json.dumps(value, ensure_ascii=False, indent=2),
    "key order": lambda value: json.dumps(dict(reversed(value.items())), ensure_ascii=False),
    "escapes": lambda value: json.dumps(value, ensure_ascii=True, separators=(" , ", " : ")),
}
RESULT = "written, 42 bytes"


pytestmark = pytest.mark.usefixtures("free")  # the model spells its calls as it likes


@pytest.fixture
def opened() -> Iterator[Callable[..., Memory]]:
    with opening(small) as open_:
        yield open_


def spelled(tokenizer: Any, spelling: str) -> list[int]:
    """A call in the template's way with its arguments spelled in this one, in uneven ids, and the end of the turn."""
    from tests.parts.templated import uneven

    text = tokenizer.call.format(name="write", args=SPELLINGS[spelling](ARGUMENTS))
    return [*uneven(tokenizer, text), tokenizer.call_end]


def openai_history(reply: Reply, result: str | None) -> list[dict[str, Any]]:
    """As a framework stores it: arguments as a JSON string of its own spelling, ids of its own."""
    calls = [
        {
            "id": f"own_{place}_9bytes",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(reversed(call.arguments.items())), indent=1)},
        }
        for place, call in enumerate(reply.tool_calls)
    ]
    asked = {"role": "user", "content": "Write it."}
    said: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "tool_calls": calls}
    answers = [{"role": "tool", "tool_call_id": call["id"], "content": result} for call in calls]
    return [asked, said, *answers]


def give(memory: Memory, reply: Reply) -> Any:
    return memory.agent("a").give(ToolResult(reply.tool_calls[0].id, RESULT))


def send_list(memory: Memory, reply: Reply) -> Any:
    history = openai_history(reply, RESULT)
    history[1]["content"] = reply.text
    return memory.generate(history, agent="a", tools=[WRITE])


def send_openai(memory: Memory, reply: Reply) -> Any:
    tools = [{"type": "function", "function": {"name": WRITE.name, "description": WRITE.description,
              "parameters": dict(WRITE.parameters)}}]  # fmt: skip
    memory.chat.completions.create(model="m", agent="a", messages=openai_history(reply, RESULT), tools=tools)


def send_anthropic(memory: Memory, reply: Reply) -> Any:
    tools = [{"name": WRITE.name, "description": WRITE.description, "input_schema": dict(WRITE.parameters)}]
    uses = [
        {"type": "tool_use", "id": f"toolu_{n}", "name": call.name, "input": dict(reversed(call.arguments.items()))}
        for n, call in enumerate(reply.tool_calls)
    ]
    text = [{"type": "text", "text": reply.text}] if reply.text else []
    answers = [{"type": "tool_result", "tool_use_id": use["id"], "content": RESULT} for use in uses]
    messages = [
        {"role": "user", "content": "Write it."},
        {"role": "assistant", "content": [*text, *uses]},
        {"role": "user", "content": answers},
    ]
    memory.messages.create(model="m", agent="a", messages=messages, tools=tools, max_tokens=20)


WAYS = {"give": give, "list": send_list, "openai": send_openai, "anthropic": send_anthropic}


def last_turn(memory: Memory) -> tuple[list[int], int]:
    """The agent's ids, and how many of them are the newest reply's."""
    log = memory.agent("a")._log
    return log.ids.tolist(), log.turns[-1].n_reply or 0


def _crossed() -> list[Any]:
    """Every spelling by every model and way, of which a run by default has half: any two of the three meet in it."""
    crossed = itertools.product(*map(enumerate, ([*NATIVE, "prompt-based"], SPELLINGS, WAYS)))
    return [
        pytest.param(name, spelling, way, marks=[pytest.mark.slow] * ((a + b + c) % 2))
        for (a, name), (b, spelling), (c, way) in crossed
    ]


@pytest.mark.parametrize(("name", "spelling", "way"), _crossed())
def test_line_1_after_a_call_in_any_spelling_only_its_result_is_computed(
    opened: Callable[..., Memory], name: str, spelling: str, way: str
) -> None:
    tokenizer: Any = templated(name) if name in NATIVE else no_tools()
    memory = opened(says(tokenizer, spelled(tokenizer, spelling), "Done."))
    reply = memory.agent("a", tools=[WRITE]).say("Write it.")
    assert [(call.name, dict(call.arguments)) for call in reply.tool_calls] == [("write", ARGUMENTS)]
    before, _ = last_turn(memory)
    n_kv = memory.agent("a")._log.n_kv
    assert n_kv >= len(before) - 1  # a model need not have been fed the token that ended its reply
    computed = memory.stats().computed_tokens
    WAYS[way](memory, reply)
    ids, n_reply = last_turn(memory)
    assert ids[: len(before)] == before
    new = ids[len(before) : len(ids) - n_reply]
    assert memory.stats().computed_tokens - computed == len(ids) - n_reply - n_kv
    written = rendered(tokenizer, memory)
    tail = written[written.rindex(RESULT[:7]) :]
    assert tokenizer.key(new).endswith(tokenizer.key(tokenizer.encode(tail)))
    assert len(new) <= len(tokenizer.encode(tail)) + 60  # what the template writes around a result
    assert memory.stats().misses == {}


def rendered(tokenizer: Any, memory: Memory) -> str:
    """The newest prompt as the template writes all of it, in its own spelling."""
    from agent_memory.prompt.template import render

    log = memory.agent("a")._log
    return render(tokenizer, log.messages[:-1], tools=[WRITE], now=log.facts.date)


def no_tools() -> Templated:
    """Qwen's tokens with a template that knows no tools: they, the calls and the results are text to it."""

    class Plain(Templated):
        knows_tools = False  # type: ignore[assignment]
        tool_format = None  # type: ignore[assignment]

    return Plain(NATIVE["qwen"])


# line 1, the rest: what counts as unchanged


def test_line_1_another_value_is_another_call(opened: Callable[..., Memory]) -> None:
    """1 and 1.0 and true are three values: a list with another one is another history."""
    for value in (1.0, True, "1"):
        tokenizer = templated("qwen")
        memory = opened(says(tokenizer, spelled(tokenizer, "compact")))
        reply = memory.agent("a", tools=[WRITE]).say("Write it.")
        history = openai_history(reply, RESULT)
        history[1]["tool_calls"][0]["function"]["arguments"] = json.dumps({**ARGUMENTS, "n": value})
        history[1]["content"] = reply.text
        usage = memory.generate(history, agent="a", tools=[WRITE]).usage
        assert (usage.miss, usage.replaced_messages) == ("edited_history", 1)
        assert usage.diverged_at is not None
        assert usage.diverged_at.message == 1
        logged = memory.agent("a").messages[1].tool_calls[0].arguments["n"]
        assert (logged, type(logged)) == (value, type(value))


@pytest.mark.parametrize("name", ["qwen", "llama", "granite", "phi4_mini", "harmony"])
def test_line_1_calls_keep_their_spelling_in_later_turns(opened: Callable[..., Memory], name: str) -> None:
    tokenizer = templated(name)
    call = spelled(tokenizer, "newlines")
    memory = opened(says(tokenizer, call, call, "Both are written.", "Yes."))
    agent = memory.agent("a", tools=[WRITE])
    reply = agent.say("Write it twice.")
    for said in range(4):
        before, n_kv = last_turn(memory)[0], agent._log.n_kv
        if reply.tool_calls:
            reply = agent.give(ToolResult(reply.tool_calls[0].id, RESULT))
        else:
            reply = agent.say(f"And {said}?")
        ids, _ = last_turn(memory)
        ended_otherwise = name == "harmony" and before[-1] == tokenizer.end_id  # <|return|>, which becomes <|end|>
        shared = len(before) - ended_otherwise
        assert ids[:shared] == before[:shared]
        assert reply.usage.cached_tokens == min(n_kv, shared)


def test_line_1_mistral_moves_its_tools_and_the_cost_is_stated(opened: Callable[..., Memory]) -> None:
    tokenizer = templated("mistral")
    memory = opened(says(tokenizer, spelled(tokenizer, "compact"), "Written.", "Yes."))
    agent = memory.agent("a", tools=[WRITE])
    agent.give(ToolResult(agent.say("Write it.").tool_calls[0].id, RESULT))
    before = agent._log.ids.tolist()
    usage = agent.say("Is it there?").usage
    assert usage.miss == "template_moved"
    assert usage.diverged_at is not None
    assert (usage.diverged_at.message, usage.diverged_at.part) == (None, "template")
    assert f"{len(before) - usage.diverged_at.token:,} tokens" in usage.miss_detail
    assert memory.stats().misses == {"template_moved": 1}
    call = spelled(tokenizer, "compact")[:-1]
    ids = agent._log.ids.tolist()
    assert any(ids[at : at + len(call)] == call for at in range(len(ids)))  # moved, and still in its own spelling


# line 2


THOUGHTS = "<think>\nthe theory of it\n</think>\n\n"


def test_line_2_reasoning_that_the_template_drops_is_dropped_and_said(opened: Callable[..., Memory]) -> None:
    tokenizer = templated("qwen")
    memory = opened(says(tokenizer, THOUGHTS + "Yes.", THOUGHTS + "No."))
    agent = memory.agent("a")
    agent.say("Is it?")
    usage = agent.say("Was it?").usage
    assert usage.miss == "reasoning_dropped"
    assert "keep_reasoning=True" in usage.miss_detail
    assert usage.diverged_at is not None
    assert usage.diverged_at.message == 1
    assert memory.stats().misses == {"reasoning_dropped": 1}
    text = tokenizer.key(agent._log.ids.tolist())
    assert text.count("<think>") == 1


@pytest.mark.parametrize("how", ["request", "agent", "reopened"])
def test_line_2_kept_reasoning_makes_a_turn_compute_its_new_message_alone(
    opened: Callable[..., Memory], how: str, tmp_path: Any
) -> None:
    tokenizer = templated("qwen")
    memory = opened(says(tokenizer, *[THOUGHTS + "Yes."] * 4), tmp_path)
    agent = memory.agent("a", keep_reasoning=None if how == "request" else True)
    options: Any = {"keep_reasoning": True} if how == "request" else {}
    agent.say("Is it?", **options)
    if how == "reopened":
        memory.close()
        memory = opened(says(tokenizer, *[THOUGHTS + "Yes."] * 4), tmp_path)
        agent = memory.agent("a")
    for _ in range(3):
        before, n_kv = agent._log.ids.tolist(), agent._log.n_kv
        usage = agent.say("Was it?", **options).usage
        assert (usage.miss, usage.cached_tokens) == (None, n_kv)
        assert agent._log.ids.tolist()[: len(before)] == before
    assert tokenizer.key(agent._log.ids.tolist()).count("<think>") == 4


def test_line_2_within_a_loop_of_calls_the_template_keeps_reasoning(opened: Callable[..., Memory]) -> None:
    from tests.parts.templated import uneven

    tokenizer = templated("qwen")
    call = [*uneven(tokenizer, THOUGHTS), *spelled(tokenizer, "compact")]
    memory = opened(says(tokenizer, call, call, THOUGHTS + "Done."))
    agent = memory.agent("a", tools=[WRITE])
    reply = agent.say("Write it.")
    while reply.tool_calls:
        before = agent._log.ids.tolist()
        reply = agent.give(ToolResult(reply.tool_calls[0].id, RESULT))
        assert reply.usage.miss is None
        assert agent._log.ids.tolist()[: len(before)] == before
    assert agent.say("And?").usage.miss == "reasoning_dropped"


def test_line_2_an_empty_block_that_the_prompt_wrote_is_reasoning_too(opened: Callable[..., Memory]) -> None:
    memory = opened(says(templated("qwen"), "Yes.", "No.", "Maybe."))
    agent = memory.agent("a")
    off = {"enable_thinking": False}
    agent.say("Is it?", template=off)
    assert agent.say("Was it?", template=off).usage.miss == "reasoning_dropped"
    n_kv = agent._log.n_kv
    usage = agent.say("Will it?", template=off, keep_reasoning=True).usage
    assert usage.cached_tokens < n_kv or usage.miss is None


# line 3


def on(memory: Memory, year: int, month: int, day: int) -> None:
    memory._asking.clock = lambda: datetime(year, month, day, 9, 30)


@pytest.mark.parametrize("name", ["llama", "granite", "harmony"])
def test_line_3_an_agent_keeps_the_date_of_its_first_turn(
    opened: Callable[..., Memory], name: str, tmp_path: Any
) -> None:
    tokenizer = templated(name)
    memory = opened(says(tokenizer), tmp_path)
    on(memory, 2024, 7, 26)
    memory.agent("a").say("What day is it?")
    memory.close()
    memory = opened(says(tokenizer), tmp_path)
    on(memory, 2025, 1, 2)
    agent = memory.agent("a")
    n_kv = agent._log.n_kv
    usage = agent.say("And now?").usage
    assert usage.cached_tokens >= n_kv - 1
    assert "2024" in tokenizer.decode(agent._log.ids.tolist())
    assert "2025" not in tokenizer.decode(agent._log.ids.tolist())


@pytest.mark.parametrize("name", ["llama", "granite", "harmony"])
def test_line_3_without_pins_the_clock_is_followed_and_the_miss_says_so(
    opened: Callable[..., Memory], name: str
) -> None:
    tokenizer = templated(name)
    memory = opened(says(tokenizer), pin_dates=False)
    on(memory, 2024, 7, 26)
    agent = memory.agent("a")
    agent.say("What day is it? " * 20)
    agent._log.turns = tuple(attrs.evolve(t, created_s=datetime(2024, 7, 26).timestamp()) for t in agent._log.turns)
    on(memory, 2025, 1, 2)
    usage = agent.say("And now?").usage
    assert usage.miss == "date_moved", usage.miss_detail
    assert usage.diverged_at is not None
    assert usage.diverged_at.token < 120
    assert "2025" in tokenizer.decode(agent._log.ids.tolist())


def test_line_3_a_request_without_an_agent_says_that_the_date_moved(opened: Callable[..., Memory]) -> None:
    memory = opened(says(templated("llama")))
    on(memory, 2024, 7, 26)
    memory.generate("What day is it? " * 20)
    on(memory, 2025, 1, 2)
    usage = memory.generate("What day is it? " * 20).usage
    assert usage.miss == "date_moved", usage.miss_detail
    assert usage.cached_tokens > 16


@pytest.mark.parametrize("name", ["llama", "granite", "harmony"])
def test_line_3_a_date_that_has_not_moved_is_no_cause(opened: Callable[..., Memory], name: str) -> None:
    memory = opened(says(templated(name)))
    on(memory, 2024, 7, 26)
    memory.generate("What day is it? " * 20)
    usage = memory.generate("Which day is it? " * 20).usage
    assert usage.cached_tokens > 16
    assert usage.miss == "never_seen", usage.miss_detail


# line 4


LONG = "Be brief and believable, whatever is asked of you. " * 3


def lists(system: str, *said: str) -> list[dict[str, str]]:
    turns = [
        {"role": role, "content": text}
        for role, text in zip(itertools.cycle(["user", "assistant"]), said, strict=False)
    ]
    return [{"role": "system", "content": system}, *turns]


@pytest.mark.parametrize("agent", ["a", None])
@pytest.mark.parametrize(
    ("second", "cause", "message"),
    [
        (lists(LONG + "Please.", "one", "one", "two"), "system_changed", 0),
        (lists(LONG + "It is 12:30:09.", "one", "one", "two"), "volatile_text", 0),
        (lists(LONG + "It is 12:30:05.", "another one", "one", "two"), "edited_history", 1),
    ],
)
def test_line_4_what_was_changed_is_named_with_its_place(
    opened: Callable[..., Memory], agent: str | None, second: Any, cause: str, message: int
) -> None:
    memory = opened(EchoRunner())
    memory.generate(lists(LONG + "It is 12:30:05.", "one"), agent=agent)
    first = lists(LONG + "It is 12:30:05.", "one", "one", "two")
    assert memory.generate(first, agent=agent).usage.miss is None
    usage = memory.generate(second, agent=agent).usage
    assert usage.miss == cause, usage.miss_detail
    assert usage.miss_detail
    assert usage.diverged_at is not None
    assert (usage.diverged_at.message, usage.diverged_at.role) == (message, second[message]["role"])
    assert usage.diverged_at.token == usage.cached_tokens
    assert memory.stats().misses == {cause: 1}


def test_line_4_changed_tools_and_tools_with_other_keys_first(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner())
    agent = memory.agent("a", system=LONG)
    other = Tool("write", WRITE.description, dict(reversed(WRITE.parameters.items())))
    agent.say("one", tools=[WRITE])
    assert agent.say("two", tools=[WRITE]).usage.miss is None
    assert agent.say("three", tools=[WRITE, Tool("read")]).usage.miss == "tools_changed"
    assert agent.say("four", tools=[WRITE]).usage.miss == "tools_changed"
    assert memory.stats().misses == {"tools_changed": 2}
    memory = opened(says(templated("llama")))
    agent = memory.agent("a", system=LONG)
    agent.say("one", tools=[WRITE])
    assert agent.say("two", tools=[other]).usage.miss == "key_order"
    agent = opened(says(templated("llama"))).agent("a", system=LONG)
    agent.say("one")
    assert agent.say("two", tools=[WRITE]).usage.miss == "tools_changed", "where there were none before"


def test_line_4_other_variables_of_the_template(opened: Callable[..., Memory]) -> None:
    tokenizer = templated("granite")
    tokenizer = type(tokenizer)(tokenizer.native)
    tokenizer._hf.chat_template = "{{ mood or '' }}" + tokenizer.native.template
    memory = opened(says(tokenizer))
    agent = memory.agent("a", system=LONG)
    agent.say("one", template={"mood": "glad"})
    assert agent.say("two", template={"mood": "grim"}).usage.miss == "template_changed"


def test_line_4_another_conversation_under_the_same_key(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner())
    agent = memory.agent("a", system=LONG)
    agent.say("one")
    usage = memory.generate(lists(LONG, "write a title"), agent="a").usage
    assert (usage.miss, usage.replaced_messages) == ("replaced_history", 2)


def test_line_4_a_list_that_ends_earlier_reuses_all_that_it_has(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner())
    agent = memory.agent("a", system=LONG)
    agent.say("one")
    agent.say("two")
    usage = memory.generate(lists(LONG, "one"), agent="a").usage
    assert (usage.miss, usage.replaced_messages, usage.computed_tokens) == (None, 3, 1)


def test_line_4_a_first_request_and_one_that_goes_on_miss_nothing(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner())
    for agent in ("a", None):
        for said in (["one"], ["one", "one", "two"], ["one", "one", "two", "two", "three"]):
            usage = memory.generate(lists(LONG, *said), agent=agent).usage
            assert (usage.miss, usage.miss_detail, usage.diverged_at) == (None, "", None)
    assert memory.stats().misses == {}


# line 14


def test_line_14_an_unrelated_list_replaces_with_one_warning_and_a_figure(
    opened: Callable[..., Memory], caplog: pytest.LogCaptureFixture
) -> None:
    memory = opened(EchoRunner())
    agent = memory.agent("a", system=LONG)
    agent.say("the secret word")
    caplog.clear()
    usage = memory.generate([{"role": "user", "content": "write a title"}], agent="a").usage
    assert usage.replaced_messages == 2
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "replaced_messages=2" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert "title" not in record.getMessage()
    assert [m.content for m in agent.messages] == [LONG, "write a title", "write a title"]
    assert agent.say("more").usage.replaced_messages == 0


def test_a_branch_leaves_the_agents_kv_where_it_is(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner())
    first = memory.generate(lists(LONG, "one"), agent="a").usage
    memory.generate(lists("Another system prompt.", "write a title"), agent="a", on_diverge="branch")
    usage = memory.agent("a").say("two").usage
    assert (usage.miss, usage.tier) == (None, "hot")
    assert usage.cached_tokens >= first.prompt_tokens


def test_line_14_a_branch_is_answered_and_the_log_stays(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner())
    agent = memory.agent("a", system=LONG)
    agent.say("one")
    before, ids = agent.messages, agent._log.ids.tolist()
    reply = memory.generate(lists(LONG, "write a title"), agent="a", on_diverge="branch")
    assert (reply.text, reply.usage.replaced_messages) == ("write a title", 0)
    assert reply.usage.cached_tokens > 100
    assert (agent.messages, agent._log.ids.tolist()) == (before, ids)
    n_kv = agent._log.n_kv
    usage = agent.say("two").usage
    assert (usage.miss, usage.cached_tokens) == (None, n_kv)
    memory.generate(lists(LONG, "one", "one", "two", "two", "three"), agent="a", on_diverge="branch")
    assert agent.messages[-1].content == "three"  # it goes on: a turn as any other


def test_line_14_an_error_comes_before_any_work(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner())
    agent = memory.agent("a", system=LONG)
    agent.say("one")
    computed = memory.stats().computed_tokens
    with pytest.raises(HistoryDivergedError, match="message 1: 2 of its 3") as raised:
        memory.generate(lists(LONG, "write a title"), agent="a", on_diverge="error")
    assert (raised.value.name, raised.value.message, raised.value.n_messages) == ("a", 1, 3)
    assert memory.stats().computed_tokens == computed
    assert [m.content for m in agent.messages] == [LONG, "one", "one"]
    memory.generate(lists(LONG, "one", "one", "two"), agent="a", on_diverge="error")
    with pytest.raises(UnsupportedParameterError, match="on_diverge"):
        memory.generate("x", on_diverge="merge")  # type: ignore[arg-type]


# line 15


def test_line_15_the_system_message_of_a_list_is_the_agents(opened: Callable[..., Memory], tmp_path: Any) -> None:
    memory = opened(EchoRunner(), tmp_path)
    memory.generate(lists(LONG, "one"), agent="a")
    for _ in range(2):
        agent = memory.agent("a", system=LONG)
        assert agent.info.system == LONG
        assert [info.system for info in memory.agents()] == [LONG]
        with pytest.raises(ConfigError, match="another system prompt"):
            memory.agent("a", system="Be long.")
        memory.close()
        memory = opened(EchoRunner(), tmp_path)
    assert [info.system for info in memory.agents()] == [LONG]
    assert memory.verify().ok


def test_line_15_a_history_counts_a_turn_for_each_reply(opened: Callable[..., Memory], tmp_path: Any) -> None:
    memory = opened(EchoRunner(), tmp_path)
    history = lists(LONG, "one", "eins", "two", "zwei", "three")
    memory.generate(history, agent="a")
    agent = memory.agent("a")
    assert (agent.info.n_turns, agent.info.n_messages) == (3, 7)
    memory.close()
    memory = opened(EchoRunner(), tmp_path)
    agent = memory.agent("a")
    assert agent.info.n_turns == 3
    agent.rewind()
    assert [m.content for m in agent.messages] == [LONG, "one", "eins", "two", "zwei"]
    usage = agent.say("three").usage
    assert usage.cached_tokens > 100
    assert agent.info.n_turns == 3


@pytest.mark.parametrize("is_reopened", [False, True])
def test_line_15_a_turn_that_is_taken_back_gives_the_system_prompt_before_it_back(
    opened: Callable[..., Memory], tmp_path: Any, is_reopened: bool
) -> None:
    memory = opened(EchoRunner(), tmp_path)
    memory.agent("a", system="A").say("one")
    memory.generate(lists("B", "two"), agent="a")
    memory.generate(lists("C", "one", "eins", "two"), agent="b")
    for n_left in (2, 1, 0):
        if is_reopened:
            memory.close()
            memory = opened(EchoRunner(), tmp_path)
        a, b = memory.agent("a"), memory.agent("b")
        told = {2: ["B", "two", "two"], 1: ["A", "one", "one"], 0: ["A"]}
        assert [message.content for message in a.messages] == told[n_left]
        assert (a.info.system, b.info.system) == (told[n_left][0], "C")
        assert [message.content for message in b.messages][:1] == ["C"]
        memory.flush()
        listed = {info.name: info.system for info in open_store(tmp_path).agents()}
        assert listed == {"a": told[n_left][0], "b": "C"}
        if n_left:
            a.rewind()
            b.rewind()
    assert memory.agent("b", system="C").messages[0].content == "C"
    assert memory.verify().ok


def test_line_15_an_agent_begins_with_a_history_and_nothing_is_generated(
    opened: Callable[..., Memory], tmp_path: Any
) -> None:
    memory = opened(EchoRunner(), tmp_path)
    history = lists(LONG, "one", "eins", "two", "zwei")
    agent = memory.agent("a", messages=history)
    assert memory.stats().requests == 0
    assert (agent.info.n_turns, agent.info.system) == (2, LONG)
    memory.close()
    memory = opened(EchoRunner(), tmp_path)
    agent = memory.agent("a", messages=history)
    assert [m.content for m in agent.messages] == [LONG, "one", "eins", "two", "zwei"]
    reply = agent.say("three")
    assert (reply.text, reply.usage.miss, reply.usage.exactness) == ("three", None, "exact")
    assert memory.agent("a", messages=history).info.n_turns == 3
    with pytest.raises(ConfigError, match="another history: message 2"):
        memory.agent("a", messages=lists(LONG, "one", "uno"))
    with pytest.raises(ConfigError, match="must end with an assistant"):
        memory.agent("b", messages=lists(LONG, "one"))
    assert [info.name for info in memory.agents()] == ["a"]
