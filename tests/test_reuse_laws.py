"""Random dialogues: what is cached is the common prefix of the log's ids and the new ones, and less has a cause."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory import Config, Memory, Tool, ToolResult
from agent_memory.prefix.chunks import common_prefix
from tests.parts.templated import says, templated, uneven
from tests.parts.templates import NATIVE

TOOL = Tool("look", "Looks.", {"type": "object", "properties": {"at": {}}})
WORDS = st.sampled_from(["the", "theory", "é 世", " in all ", "call\nit", "12:30:05", '{"x": 1}', "ok"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2, width=16) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
SPELLED = st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}, {"sort_keys": True}])
#: Templates that drop nothing of earlier turns, move nothing, and end turns with the token that the model writes.
STABLE = ("llama", "granite", "phi4_mini")
#: One request: what the user does, what the model says (text, thoughts, a call), and how.
ACTS = st.tuples(
    st.sampled_from(["say", "say", "say", "list", "edit", "cut", "rewind"]),
    WORDS,
    st.booleans(),
    st.none() | st.tuples(VALUES, SPELLED),
    st.sampled_from([None, True, False]),
)


@pytest.fixture(autouse=True)
def free_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)


def reply_ids(tokenizer: Any, words: str, thinks: bool, call: Any) -> list[int]:
    """A reply as the model writes it."""
    thoughts = f"<think>\n{words}\n</think>\n\n" if thinks and tokenizer.native.name == "qwen" else ""
    if call is None:
        return [*uneven(tokenizer, thoughts + words), tokenizer.end_id]
    arguments = json.dumps({"at": call[0]}, **call[1])
    return [*uneven(tokenizer, thoughts + tokenizer.call.format(name="look", args=arguments)), tokenizer.call_end]


def spoken(reply: list[int], asked: str, ids: tuple[int, ...]) -> list[int]:
    return reply


def respelled(message: Any) -> dict[str, Any]:
    """A message as a framework sends it back: without reasoning, arguments in a spelling of its own."""
    out = {"role": message.role, "content": message.content}
    if message.tool_calls:
        out["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), indent=3)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    return out


def ask(memory: Memory, agent: Any, act: str, words: str, options: Any) -> Any:
    """One request of a kind; open calls are answered first."""
    if agent.messages and agent.messages[-1].tool_calls:
        answers = [ToolResult(call.id, words) for call in agent.messages[-1].tool_calls]
        if act in ("say", "rewind"):
            return agent.give(*answers, **options)
        history = [respelled(m) for m in agent.messages]
        history += [{"role": "tool", "tool_call_id": a.id, "content": words} for a in answers]
        return memory.generate(history, agent="a", tools=[TOOL], **options)
    history = [respelled(m) for m in agent.messages]
    if act == "say" or not history:
        return agent.say(words, **options)
    if act == "edit":
        place = len(words) % len(history)
        history[place]["content"] = history[place]["content"] + " edited"
    if act == "cut":
        users = [n for n, m in enumerate(history) if m["role"] == "user"]
        return memory.generate(history[: users[len(words) % len(users)] + 1], agent="a", tools=[TOOL], **options)
    return memory.generate([*history, {"role": "user", "content": words}], agent="a", tools=[TOOL], **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
@settings(
    max_examples=34, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(acts=st.lists(ACTS, min_size=2, max_size=7))
def test_what_is_cached_is_what_the_log_and_the_prompt_share(name: str, acts: list[Any]) -> None:
    tokenizer = templated(name)
    runner = says(tokenizer)
    with Memory(runner, ":memory:", config=Config(chunk_tokens=16, prefill_tokens=16)) as memory:
        agent = memory.agent("a", tools=[TOOL])
        for act, words, thinks, call, keeps in acts:
            if act == "rewind" and agent.info.n_turns:
                agent.rewind()
            before, n_kv, turns = agent._log.ids, agent._log.n_kv, agent._log.turns
            runner.reply = partial(spoken, reply_ids(tokenizer, words, thinks, call))
            usage = ask(memory, agent, act, words, {"keep_reasoning": keeps}).usage
            log = agent._log
            prompt = log.ids[: len(log.ids) - (log.turns[-1].n_reply or 0)]
            shared = min(common_prefix(before, prompt), n_kv, len(prompt) - 1)
            # what took the place of a turn that is taken back had its KV: without a disk that turn's is computed again
            is_lost = act == "rewind" and usage.miss in ("not_stored", "evicted")
            assert usage.cached_tokens >= shared or is_lost
            assert usage.prompt_tokens == len(prompt)
            if act != "rewind" and turns == agent._log.turns[:-1]:
                assert usage.cached_tokens == shared or not turns
            if name in STABLE and act in ("say", "list"):
                assert prompt[: len(before)].tolist() == before.tolist()
            # a list that ends earlier than its conversation, and reuses all that it has, is no miss
            assert (usage.miss is not None) == (usage.cached_tokens < min(n_kv, len(prompt) - 1))
            assert bool(usage.miss_detail) == (usage.miss is not None)
