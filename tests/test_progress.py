"""Progress is shown in a terminal, to nobody in a pipe, and always or never where that is asked for."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import textwrap
import time

import pytest

from agent_memory import Config, EchoRunner, Memory, UnsupportedParameterError
from agent_memory.progress import Bar

LONG = "a long prompt of many words " * 200
PROGRAM = textwrap.dedent("""
    import sys
    from agent_memory import Config, EchoRunner, Memory
    with Memory(EchoRunner(delay_s=0.15), ":memory:", config=Config(progress={config})) as memory:
        agent = memory.agent("ann", system="word " * 200)
        agent.say("hi", max_tokens=1, progress=False)
        print(agent.say({prompt!r}, max_tokens=1{option}).usage.tier)
""")


def program(config: bool | None = None, option: str = "") -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(config=config, option=option, prompt=LONG)]


def in_terminal(command: list[str]) -> tuple[str, int]:
    """What a program writes to a terminal, and its exit status."""
    child, end = pty.fork()
    if child == 0:
        os.execv(command[0], command)
    termios.tcsetwinsize(end, (24, 100))  # a terminal of no columns shows no bar
    seen = b""
    while True:
        try:
            piece = os.read(end, 4096)
        except OSError:  # the terminal has no writer any more
            break
        if not piece:
            break
        seen += piece
    os.close(end)
    return seen.decode(), os.waitpid(child, 0)[1]


def test_a_long_prefill_shows_its_tokens_the_reused_ones_and_the_time_left_in_a_terminal() -> None:
    seen, status = in_terminal(program())
    assert status == 0, seen
    assert "prefill, " in seen
    assert " reused" in seen
    assert "tokens/s]" in seen
    assert seen.rstrip().endswith("hot")  # the bar is gone
    assert "prefill" not in seen.rpartition("\r")[2]


def test_nothing_is_shown_in_a_pipe_unless_asked_for() -> None:
    done = subprocess.run(program(), capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("hot\n", "")
    done = subprocess.run(program(True), capture_output=True, text=True, check=True)
    assert "prefill" in done.stderr
    done = subprocess.run(program(option=", progress=True"), capture_output=True, text=True, check=True)
    assert "prefill" in done.stderr
    done = subprocess.run(program(True, ", progress=False"), capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("option", ["", ", progress=None"])
def test_a_terminal_sees_no_bar_where_the_settings_say_never(option: str) -> None:
    seen, status = in_terminal(program(False, option))
    assert (status, seen.strip()) == (0, "hot")


def test_an_iterator_and_an_event_loop_show_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    import asyncio

    with Memory(EchoRunner(delay_s=0.15), ":memory:") as memory:
        assert [delta.text for delta in memory.stream(LONG, max_tokens=1, progress=True)]
        assert "prefill" in capfd.readouterr().err

        async def ask() -> str:
            return (await memory.stream("other " + LONG, max_tokens=1, progress=True)).text

        assert asyncio.run(ask())
        assert "prefill" in capfd.readouterr().err


def test_a_bar_says_what_was_reused_and_the_seconds_left_by_the_rate_of_the_rest() -> None:
    bar = Bar(True, "prefill", "tokens", after_s=60)
    bar.report(1_000, 2_000)
    assert bar.left_s is None
    assert bar.text == "prefill 1,000 of 2,000 tokens, 1,000 reused"
    time.sleep(0.01)
    bar.report(1_500, 2_000)
    left = bar.left_s
    assert left is not None
    assert left == pytest.approx(bar.elapsed_s, rel=0.5)  # half of the rest is done
    assert bar.text.endswith(" s left")
    bar.close()


def test_short_work_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Memory(EchoRunner(), ":memory:", config=Config(progress=True)) as memory:
        memory.generate("hello", max_tokens=1)
        memory.verify()
    assert capfd.readouterr().err == ""


def test_a_wait_with_a_bar_still_ends_in_time() -> None:
    with Memory(EchoRunner(delay_s=0.2), ":memory:") as memory:
        handle = memory.stream(LONG, max_tokens=1, progress=True)
        with pytest.raises(TimeoutError, match="no reply within"):
            handle.result(timeout_s=0.25)
        assert handle.result(timeout_s=60).text


def test_progress_is_a_bool_or_none() -> None:
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(UnsupportedParameterError, match="progress must be"):
        memory.generate("hi", progress=1)  # type: ignore[arg-type]
