"""Progress is shown in a terminal, to nobody in a pipe, and always or never where that is asked for."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory, UnsupportedParameterError
from agent_memory.progress import Bar
from agent_memory.reader.shared import SharedStore
from agent_memory.store.store import Store

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


class InTerminal:
    """A program that runs in a terminal of its own. Programs that mostly wait are started together."""

    def __init__(self, command: list[str]) -> None:
        self._end, its_end = pty.openpty()
        termios.tcsetwinsize(its_end, (24, 100))  # a terminal of no columns shows no bar
        self._program = subprocess.Popen(command, stdin=its_end, stdout=its_end, stderr=its_end)
        os.close(its_end)

    def ended(self) -> tuple[str, int]:
        """Wait; return what it wrote, and its exit status. A program that fills its terminal waits to be read."""
        seen = b""
        with contextlib.suppress(OSError):  # the terminal has no writer any more
            while piece := os.read(self._end, 4096):
                seen += piece
        os.close(self._end)
        return seen.decode(), self._program.wait()


@pytest.fixture(scope="module")
def in_terminals() -> Mapping[str, tuple[str, int]]:
    """What a terminal shows: by the settings' default, and where they say never, left alone or asked again by None."""
    commands = {"default": program(), "never": program(False), "never, None": program(False, ", progress=None")}
    begun = {name: InTerminal(command) for name, command in commands.items()}
    return {name: one.ended() for name, one in begun.items()}


def test_a_long_prefill_shows_its_tokens_the_reused_ones_and_the_time_left_in_a_terminal(in_terminals: Any) -> None:
    seen, status = in_terminals["default"]
    assert status == 0, seen
    assert "prefill, " in seen
    assert " reused" in seen
    assert "tokens/s]" in seen
    assert seen.rstrip().endswith("hot")  # the bar is gone
    assert "prefill" not in seen.rpartition("\r")[2]


def test_nothing_is_shown_in_a_pipe_unless_asked_for() -> None:
    asked = (program(), program(True), program(option=", progress=True"), program(True, ", progress=False"))
    begun = [subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for one in asked]
    silent, by_config, by_request, overruled = (one.communicate() for one in begun)
    assert [one.returncode for one in begun] == [0] * 4
    assert silent == ("hot\n", "")
    assert "prefill" in by_config[1]
    assert "prefill" in by_request[1]
    assert overruled[1] == ""


@pytest.mark.parametrize("asked", ["never", "never, None"])
def test_a_terminal_sees_no_bar_where_the_settings_say_never(asked: str, in_terminals: Any) -> None:
    seen, status = in_terminals[asked]
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
        handle = memory.stream(LONG[: len(LONG) // 4], max_tokens=1, progress=True)
        with pytest.raises(TimeoutError, match="no reply within"):
            handle.result(timeout_s=0.25)
        assert handle.result(timeout_s=60).text


def test_progress_is_a_bool_or_none() -> None:
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(UnsupportedParameterError, match="progress must be"):
        memory.generate("hi", progress=1)  # type: ignore[arg-type]


#: A disk that takes its time for every read, then one piece of work.
ON_A_SLOW_DISK = textwrap.dedent("""
    import os, time
    real = os.pread
    def slow(*arguments):
        time.sleep({s})
        return real(*arguments)
    os.pread = slow
    from agent_memory import Config, EchoRunner, Memory, open_store
    store, other, file = {store!r}, {other!r}, {file!r}
    {work}
""")
LONG_WORK = {
    "export": (0.12, "with Memory(EchoRunner(), store) as memory: memory.agent('ann').export(file)"),
    "export of a view": (0.12, "open_store(store).export('ann', file)"),
    "import": (0.005, "with Memory(EchoRunner(), other) as memory: memory.import_agent(file)"),
    "repair": (0.12, "os.remove(store + '/manifest.sqlite3'); Memory(EchoRunner(), store).close()"),
}
SHOWN = {
    "export": "export: ",
    "export of a view": "export: ",
    "import": "import: checking",
    "repair": "open the store: repairing the manifest",
}


@pytest.fixture(scope="module")
def long_work(tmp_path_factory: Any) -> Mapping[str, tuple[tuple[str, int], tuple[int, str, str]]]:
    """What a terminal shows of each work, and what pipes get: each on its own copy of one store, all at once."""
    folder = tmp_path_factory.mktemp("long work")
    with Memory(EchoRunner(), folder / "store") as memory:
        agent = memory.agent("ann")
        for turn in range(12):
            agent.say(f"{turn} {'a long prompt of many words ' * 60}", max_tokens=4)
        agent.export(folder / "ann.agent")

    def command(name: str, place: str) -> list[str]:
        own = folder / f"{name} in a {place}"
        shutil.copytree(folder / "store", own / "store")
        shutil.copy(folder / "ann.agent", own)
        slow_s, work = LONG_WORK[name]
        paths = {"store": str(own / "store"), "other": str(own / "other"), "file": str(own / "ann.agent")}
        return [sys.executable, "-c", ON_A_SLOW_DISK.format(s=slow_s, work=work, **paths)]

    terminals = {name: InTerminal(command(name, "terminal")) for name in LONG_WORK}
    pipes = {
        name: subprocess.Popen(command(name, "pipe"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in LONG_WORK
    }
    seen = {name: one.ended() for name, one in terminals.items()}
    written = {name: one.communicate() for name, one in pipes.items()}
    return {name: (seen[name], (one.returncode, *written[name])) for name, one in pipes.items()}


@pytest.mark.parametrize("name", LONG_WORK)
def test_long_work_on_the_disk_says_how_far_it_is_in_a_terminal_and_nothing_in_a_pipe(
    name: str, long_work: Any
) -> None:
    (seen, terminal_status), (pipe_status, out, errors) = long_work[name]
    assert terminal_status == 0, seen
    assert SHOWN[name] in seen
    assert (pipe_status, out) == (0, "")
    assert SHOWN[name] not in errors


def test_reading_a_large_store_is_told_row_by_row_and_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_memory.store.manifest._PAGE_ROWS", 2)
    monkeypatch.setattr("agent_memory.store.catalog._REPORT_EVERY", 2)
    with Memory(EchoRunner(), tmp_path / "store") as memory:
        for number in range(5):
            memory.agent(f"agent {number}").say(f"{number} {LONG}", max_tokens=1)
    told: list[tuple[int, int, str]] = []
    store = Store(
        tmp_path / "store",
        disk_bytes=None,
        chunk_tokens=256,
        report=lambda done, total, what: told.append((done, total, what)),
    )
    try:
        n_rows = told[-1][1]
        assert n_rows >= 5
        assert [done for done, _, _ in told] == [*range(2, n_rows, 2), n_rows]
    finally:
        store.close()
    told.clear()
    shared = SharedStore(tmp_path / "store", chunk_tokens=256)
    try:
        runner = EchoRunner()
        shared.attach("0" * 64, runner.layout, "host", {}, lambda done, total, what: told.append((done, total, what)))
        assert told[-1] == (n_rows, n_rows, "")
    finally:
        shared.close()
