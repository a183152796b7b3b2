"""With prompt lookup or without it: the same replies, logs and KV; fewer steps where a reply copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory import CancelledError, Config, EchoRunner, Memory, Reply, RequestTimeoutError, Sampling, Tool
from tests.parts.waiting import wait_for

WORDS = ("lamp ", "tide ", "rope ", "keel ", "lamp lit ", '{"a": 1, ', "ö\n", "stair; ")
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@frozen
class Ask:
    """One turn: words that are said again by the echo, and how it may end."""

    words: list[str]
    n_times: int
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None

    @property
    def text(self) -> str:
        """The message."""
        return "".join(self.words) * self.n_times

    @property
    def options(self) -> dict[str, Any]:
        """The request's options."""
        sampling = Sampling() if self.seed is None else Sampling(temperature=1.5, seed=self.seed)
        return {"max_tokens": self.max_tokens, "stop": self.stop, "sampling": sampling}


asks = st.builds(
    Ask,
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=5),
    n_times=st.integers(1, 6),
    max_tokens=st.sampled_from([1, 2, 7, 33, 300]),
    stop=st.sampled_from([(), (), ("keel",), ("p li", "rope")]),
    seed=st.one_of(st.none(), st.none(), st.integers(0, 3)),
)


def _shown(reply: Reply) -> tuple[Any, ...]:
    usage = reply.usage
    tokens = (usage.prompt_tokens, usage.cached_tokens, usage.computed_tokens, usage.output_tokens)
    return reply.text, reply.token_ids, reply.finish, reply.stopped, tokens, usage.tier, usage.exactness


def _played(folder: Path, lookup: Any, turns: Sequence[Ask]) -> list[Any]:
    """Turns of one agent, their deltas, the log, the stored bytes; then the same agent in another process's place."""
    out: list[Any] = []
    config = Config(lookup=lookup, chunk_tokens=16, prefill_tokens=64)
    with Memory(EchoRunner(), folder, config=config) as memory:
        agent = memory.agent("a", system="You repeat what you hear.")
        for turn in turns:
            handle = agent.stream(turn.text, **turn.options)
            out.append([(delta.text, delta.token_ids) for delta in handle])
            out.append(_shown(handle.result(60)))
        memory._engine.call(memory._engine._loop.check)
        out.append(agent.messages)
        out.append(agent.n_tokens)
        memory.flush()
        assert memory.verify().ok
        out.append((memory.stats().chunks, memory.stats().segments))
    with Memory(EchoRunner(), folder, config=config) as memory:
        out.append(_shown(memory.agent("a").say("and again " + turns[-1].text, max_tokens=40)))
    return out


@given(turns=st.lists(asks, min_size=1, max_size=3))
@settings(quick, max_examples=25)
def test_with_lookup_everything_is_as_without(tmp_path_factory: pytest.TempPathFactory, turns: list[Ask]) -> None:
    folder = tmp_path_factory.mktemp("stores")
    assert _played(folder / "auto", "auto", turns) == _played(folder / "off", "off", turns)


@given(turns=st.lists(asks, min_size=2, max_size=6))
@settings(quick, max_examples=25)
def test_rows_together_say_what_they_say_without(turns: list[Ask]) -> None:
    found = []
    for lookup in ("auto", "off"):
        with Memory(EchoRunner(), ":memory:", config=Config(lookup=lookup)) as memory:
            handles = [memory.stream(turn.text, **turn.options) for turn in turns]
            found.append([_shown(handle.result(60))[:4] for handle in handles])
            memory._engine.call(memory._engine._loop.check)
    assert found[0] == found[1]


COPY = "The keeper lights the lamp at dusk, and puts it out at dawn. " * 4


def _steps(options: dict[str, Any], lookup: Any = "auto") -> tuple[Reply, int]:
    runner = EchoRunner()
    with Memory(runner, ":memory:", config=Config(lookup=lookup)) as memory:
        return memory.generate(COPY, max_tokens=400, **options), runner.calls.steps


def test_a_copy_takes_few_steps_and_usage_says_what_was_accepted() -> None:
    plain, n_plain = _steps({}, lookup="off")
    reply, n_steps = _steps({})
    assert reply.text == plain.text == COPY
    assert (plain.usage.proposed, plain.usage.accepted) == (0, 0)
    assert 0 < reply.usage.accepted <= reply.usage.proposed
    assert n_steps == n_plain - reply.usage.accepted
    assert n_steps < n_plain / 2


def _unchanged(ids: Any, logits: Any) -> Any:
    return logits


@pytest.mark.parametrize(
    ("options", "config"),
    [({"exact": True}, {}), ({"logits_processors": [_unchanged]}, {}), ({}, {"lookup": "off"})],
    ids=["exact", "processors", "off"],
)
def test_nothing_is_proposed_where_single_steps_are_asked_for(options: Any, config: Any) -> None:
    reply, _ = _steps(options, **config)
    assert reply.text == COPY
    assert reply.usage.proposed == 0


def test_nothing_is_proposed_for_kv_that_cannot_be_truncated() -> None:
    with Memory(EchoRunner(unstorable=True), ":memory:", config=Config(lookup="auto")) as memory:
        reply = memory.generate(COPY, max_tokens=400)
    assert (reply.text, reply.usage.proposed) == (COPY, 0)


def test_a_stop_string_within_a_verified_run_ends_log_and_kv_where_single_steps_do() -> None:
    found = []
    for lookup in ("auto", "off"):
        with Memory(EchoRunner(), ":memory:", config=Config(lookup=lookup)) as memory:
            agent = memory.agent("a")
            first = agent.say("one two three four five six seven, " * 5 + "halt here " + "x" * 9, stop=("lt he",))
            second = agent.say("go on", max_tokens=9)
            found.append((_shown(first), _shown(second), agent.n_tokens))
            assert first.stopped == "lt he"
            assert (first.usage.accepted > 0) == (lookup == "auto")
    assert found[0] == found[1]


def test_a_call_within_a_verified_run_is_read_as_without() -> None:
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "the sea, the sea, the sea"}}\n</tool_call>'
    tool = Tool("look", "", {"type": "object", "properties": {"at": {"type": "string"}}})
    found = []
    for lookup in ("auto", "off"):
        with Memory(EchoRunner(call), ":memory:", config=Config(lookup=lookup)) as memory:
            agent = memory.agent("a", tools=[tool])
            first = agent.say("Do " + call, max_tokens=300)
            found.append((_shown(first), first.tool_calls[0].arguments, first.finish))
            assert (first.usage.accepted > 0) == (lookup == "auto")
    assert found[0] == found[1]


@pytest.mark.parametrize("lookup", ["auto", "off"])
def test_a_reply_that_ends_with_its_call_leaves_no_more_kv_than_it_says(lookup: Any) -> None:
    tool = Tool("look", "", {"type": "object", "properties": {"at": {"type": "string"}}})
    with Memory(EchoRunner(), ":memory:", config=Config(lookup=lookup)) as memory:
        for length in range(12):  # one of them ends within a verified run
            at = "the sea, the sea"[: 4 + length]
            call = f'<tool_call>\n{{"name": "look", "arguments": {{"at": "{at}"}}}}\n</tool_call>'
            agent = memory.agent(f"a{length}", tools=[tool])
            reply = agent.say(f"{call}\nthe sea, the sea, the sea", max_tokens=300, parallel_tool_calls=False)
            assert (reply.finish, reply.tool_calls[0].arguments) == ("tool_calls", {"at": at})
            assert (reply.usage.accepted > 0) == (lookup == "auto")
            memory._engine.call(memory._engine._loop.check)


@pytest.mark.parametrize("is_late", [False, True], ids=["cancelled", "timed out"])
def test_a_copy_that_is_cut_short_keeps_its_kv(is_late: bool) -> None:
    runner = EchoRunner(delay_s=0.005)
    with Memory(runner, ":memory:", config=Config(lookup="auto")) as memory:
        agent = memory.agent("a")
        handle = agent.stream(COPY * 8, max_tokens=4000, timeout_s=0.4 if is_late else None)
        if not is_late:
            wait_for(lambda: handle.progress[0] > 40 and handle.state == "decode")
            handle.cancel()
        with pytest.raises(RequestTimeoutError if is_late else CancelledError):
            handle.result(60)
        memory._engine.call(memory._engine._loop.check)
        assert agent.messages == ()
        reply = agent.say(COPY * 8, max_tokens=4)
        assert reply.usage.computed_tokens <= 2, "what was computed is reused"
        assert reply.text == (COPY * 8)[: len(reply.text)]
