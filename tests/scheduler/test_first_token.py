"""A turn of few new ids costs one pass: the step that feeds the last of them gives the first token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory, Usage
from agent_memory.scheduler import row as rows
from tests.parts.faulty import Fault, with_faults
from tests.parts.tinyrunner import endless
from tests.parts.waiting import PATIENCE_S, wait_for

CONFIG = Config(chunk_tokens=64, prefill_tokens=128, lookup="off")
PLACE = "The lamp is lit at dusk, and put out at dawn. " * 6


@pytest.fixture
def opened() -> Iterator[tuple[Memory, EchoRunner]]:
    """An agent that has had a turn; its next has few new ids."""
    runner = EchoRunner("word " * 9)
    with Memory(runner, ":memory:", config=CONFIG) as memory:
        memory.agent("a", system=PLACE).say("Begin.", max_tokens=3)
        _zero(runner)
        yield memory, runner


def _zero(runner: EchoRunner) -> None:
    calls = runner.calls
    calls.prefills = calls.prefill_ids = calls.insert_ids = calls.inserts = calls.steps = 0


def _adds_up(usage: Usage) -> bool:
    return usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens


def test_the_first_token_of_a_short_turn_takes_one_pass_and_no_step(opened: tuple[Memory, EchoRunner]) -> None:
    memory, runner = opened
    reply = memory.agent("a").say("Go on.", max_tokens=1)
    assert (runner.calls.prefills, runner.calls.steps) == (1, 0)
    assert runner.calls.computed == reply.usage.computed_tokens > 1
    assert _adds_up(reply.usage)
    assert (reply.finish, reply.usage.output_tokens) == ("length", 1)
    again = memory.agent("a").say("And on.", max_tokens=4)
    assert (runner.calls.prefills, runner.calls.steps) == (2, 3)
    assert again.usage.cached_tokens == reply.usage.prompt_tokens, "its one token was not fed"
    assert _adds_up(again.usage)


@pytest.mark.parametrize(("n_left", "n_steps"), [(2, 0), (64, 0), (65, 1), (1, 1)])
def test_that_pass_takes_64_ids_at_most(n_left: int, n_steps: int) -> None:
    runner = EchoRunner("word")
    prompt = [7] * (128 + n_left)
    with Memory(runner, ":memory:", config=CONFIG) as memory:
        usage = memory.generate(runner.tokenizer.decode(prompt), raw=True, max_tokens=1).usage
        n_left = (usage.prompt_tokens - 1) % 128 + 1
        assert runner.calls.steps == n_steps
        assert runner.calls.computed == usage.computed_tokens == usage.prompt_tokens == 128 + n_left


def test_a_prefill_gives_no_token(opened: tuple[Memory, EchoRunner]) -> None:
    memory, runner = opened
    usage = memory.prefill("Go on.", agent="a")
    assert (runner.calls.inserts, runner.calls.steps, usage.output_tokens) == (0, 0, 0)
    assert _adds_up(usage)


def test_a_reply_that_ends_with_its_first_token_is_whole() -> None:
    runner = EchoRunner("")
    with Memory(runner, ":memory:", config=CONFIG) as memory:
        reply = memory.agent("a").say("Say nothing.")
        assert (reply.text, reply.finish, runner.calls.steps) == ("", "stop", 0)
        assert memory.agent("a").say("Nor now.").usage.cached_tokens >= reply.usage.prompt_tokens


def test_a_processor_that_raises_at_the_first_token_ends_its_row_alone(opened: tuple[Memory, EchoRunner]) -> None:
    memory, runner = opened

    def refuse(ids: Any, logits: Any) -> Any:
        raise Fault("in a processor")

    beside = memory.stream("Beside. " * 4, max_tokens=30)
    with pytest.raises(Fault, match="in a processor"):
        memory.agent("a").say("Go on.", logits_processors=[refuse])
    assert beside.result(PATIENCE_S).usage.output_tokens == 30
    n_computed = runner.calls.computed
    assert (
        memory.agent("a").say("Go on.", max_tokens=1).usage.computed_tokens == runner.calls.computed - n_computed == 1
    )
    assert len(memory.agent("a").messages) == 5


def test_a_pass_that_raises_ends_its_request_and_keeps_what_was_computed_before() -> None:
    runner = EchoRunner()
    faults = with_faults(runner)
    with Memory(runner, ":memory:", config=CONFIG) as memory:
        faults.fail("insert")
        with pytest.raises(Fault):
            memory.generate("a" * 150, raw=True, max_tokens=2)
        reply = memory.generate("a" * 150, raw=True, max_tokens=2)
        assert reply.usage.cached_tokens == 128
        assert _adds_up(reply.usage)


def test_a_row_that_begins_beside_rows_that_decode_has_its_first_token_before_their_next_step() -> None:
    runner = EchoRunner("word " * 9_000)
    faults = with_faults(runner)
    with Memory(runner, ":memory:", config=CONFIG) as memory:
        long = memory.stream("Long.", max_tokens=30_000)
        wait_for(lambda: long.state == "decode")
        with faults.hold("step"):
            short = memory.stream("Short.", max_tokens=9)
        with faults.hold("step"):
            assert short.state == "decode"
        assert short.result(PATIENCE_S).usage.output_tokens == 9
        long.cancel()


@pytest.mark.mlx
@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_next"])
def test_dialogues_are_the_same_as_by_two_passes(name: str, is_exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (rows._MOST_BEGUN, 0):
        monkeypatch.setattr(rows, "_MOST_BEGUN", most)
        with Memory(endless(name), ":memory:", config=Config(chunk_tokens=16, prefill_tokens=64)) as memory:
            agent = memory.agent("a", system=PLACE)
            said = [agent.say(text, max_tokens=6, exact=is_exact) for text in ("One.", "And two.", "Three " * 30)]
        found.append([(reply.token_ids, reply.usage.cached_tokens, reply.usage.computed_tokens) for reply in said])
    assert found[0] == found[1]
