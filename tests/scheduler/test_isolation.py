"""Failures at the edges of a request: when it starts, while it waits, and where its text is made. Nobody else ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory, PromptTooLongError
from agent_memory.toolcall import ToolParser
from tests.parts.faulty import Fault, with_faults

SMALL = Config(chunk_tokens=16, prefill_tokens=16, max_batch=1)


def test_a_prompt_that_became_too_long_while_it_waited_fails_alone(tmp_path: Path) -> None:
    with Memory(EchoRunner(context_tokens=300, delay_s=0.002), tmp_path, config=SMALL) as memory:
        first = memory.agent("a").stream("b" * 80)
        second = memory.agent("a").stream("c" * 160)  # fits an empty conversation, not one with a turn in it
        other = memory.agent("other").stream("d" * 60, priority=5)
        assert first.result(timeout_s=60).text == "b" * 80
        with pytest.raises(PromptTooLongError):
            second.result(timeout_s=60)
        assert other.result(timeout_s=60).text == "d" * 60
        assert len(memory.agent("a").messages) == 2


def test_a_row_that_is_ready_when_it_starts_and_cannot_join_is_gone(tmp_path: Path) -> None:
    runner = EchoRunner()
    faults = with_faults(runner)
    with Memory(runner, tmp_path, config=SMALL) as memory:
        memory.agent("a").say("hello")
        memory.agent("a").rewind(1)
        error = faults.fail("insert")
        with pytest.raises(Fault) as caught:
            memory.agent("a").stream("hello").result(timeout_s=60)
        assert caught.value is error
        memory.flush()
        assert memory.agent("a").messages == ()
        assert memory.agent("a").say("hello").usage.computed_tokens == 1
        assert memory.stats().requests == 2, "the failed one never ran on"


@pytest.mark.parametrize("is_again", [False, True])
def test_a_function_that_says_no_reply_ends_its_own_request(is_again: bool, tmp_path: Path) -> None:
    def reply(asked: str, prompt: tuple[int, ...]) -> str:
        if "stop" in asked and fails:
            raise Fault("in the reply")
        return "quiet " * 20

    fails = list[bool]()
    settings = Config(chunk_tokens=16, prefill_tokens=16)
    with Memory(EchoRunner(reply, delay_s=0.002), tmp_path, config=settings) as memory:
        if is_again:  # its last id alone is left to feed
            memory.generate("stop here", max_tokens=2)
        fails.append(True)
        beside = memory.agent("beside").stream("go on")
        reading = iter(beside)
        assert next(reading)
        failing = memory.stream("stop here")
        with pytest.raises(Fault, match="in the reply"):
            failing.result(timeout_s=60)
        assert list(reading)
        assert beside.result(timeout_s=60).text == "quiet " * 20
        assert memory.agent("beside").say("go on").text == "quiet " * 20


def test_text_that_cannot_be_parsed_ends_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = ToolParser.feed

    def broken(self: ToolParser, text: str) -> Any:
        if "!" in text:
            raise Fault("in the parser")
        return feed(self, text)

    monkeypatch.setattr(ToolParser, "feed", broken)
    with Memory(EchoRunner(delay_s=0.002), tmp_path, config=Config(chunk_tokens=16, prefill_tokens=16)) as memory:
        beside = memory.agent("beside").stream("quiet " * 20)
        failing = memory.agent("failing").stream("not so quiet!")
        with pytest.raises(Fault, match="in the parser"):
            failing.result(timeout_s=60)
        assert beside.result(timeout_s=60).text == "quiet " * 20
        assert memory.agent("failing").messages == ()


@pytest.mark.mlx
def test_the_engine_starts_no_thread_while_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an exception from outside may kill the new thread at its birth, for which the engine then waits for ever."""
    from tests.parts.tinyrunner import endless

    starters: list[str] = []
    start = threading.Thread.start

    def watched(self: threading.Thread) -> None:
        starters.append(threading.current_thread().name)
        start(self)

    with Memory(endless("llama"), tmp_path, config=Config(chunk_tokens=16, prefill_tokens=16)) as memory:
        monkeypatch.setattr(threading.Thread, "start", watched)
        agent = memory.agent("ann")
        agent.say("what is to be remembered", max_tokens=4)
        memory.evict(to="cold")
        reply = agent.say("again", max_tokens=4, logits_processors=[lambda ids, logits: logits])
        assert reply.usage.tier == "cold"
        memory.flush()
        assert starters, "the processor's thread, at least"
        assert "agent_memory-engine" not in starters
