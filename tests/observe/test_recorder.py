"""Config.recorder: an end for every request, whole lines whatever kills the process, and no text of anybody's."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory import CancelledError, ClosedError, Config, ConfigError, EchoRunner, Memory, RequestTimeoutError
from agent_memory.observe import recorder as recording
from agent_memory.observe.recorder import Recorder
from tests.parts.waiting import wait_for


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line of a recorder's file; each must be whole."""
    text = path.read_bytes()
    assert text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def ends(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Request -> its end; each request that was queued must have exactly one, and after it nothing."""
    queued = [line["id"] for line in found if line["event"] == "queued"]
    ended = {line["id"]: line for line in found if line["event"] == "end"}
    assert sorted(queued) == sorted(line["id"] for line in found if line["event"] == "end")
    last = {line["id"]: line["event"] for line in found if "id" in line}
    assert set(last.values()) <= {"end"}
    return ended


def opened(path: Path, runner: EchoRunner | None = None, **settings: Any) -> Memory:
    return Memory(runner or EchoRunner(), ":memory:", config=Config(recorder=path, **settings))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recorder.jsonl"


def test_a_request_is_told_from_its_queue_to_its_end(file: Path) -> None:
    with opened(file) as memory:
        reply = memory.agent("alice").say("hello, " * 100)
        written = lines(file)  # before it is closed: a line is written at once
    mine = [line for line in written if line.get("id") == reply.id]
    queued, start, *prefills, end = mine
    n_steps = math.ceil((reply.usage.prompt_tokens - 1) / 256)
    assert [line["event"] for line in mine] == ["queued", "start", *["prefill"] * n_steps, "end"]
    assert n_steps > 1
    assert (queued["agent"], queued["max_tokens"], queued["priority"]) == ("alice", 512, 0)
    assert (start["prompt_tokens"], start["cached_tokens"]) == (reply.usage.prompt_tokens, 0)
    assert sum(line["stop"] - line["start"] for line in prefills) == reply.usage.prompt_tokens - 1
    assert (end["state"], end["finish"], end["error"], end["agent"]) == ("done", "stop", None, "alice")
    assert {k: end[k] for k in ("computed_tokens", "output_tokens", "tier")} == {
        "computed_tokens": reply.usage.computed_tokens,
        "output_tokens": reply.usage.output_tokens,
        "tier": "none",
    }
    assert abs(end["t"] - time.time()) < 3600
    assert lines(file)[0]["event"] == "open"
    assert lines(file)[-1]["event"] == "close"
    assert os.stat(file).st_mode & 0o777 == 0o600


def test_every_request_has_one_end_however_it_ended(file: Path) -> None:
    def broken(ids: object, logits: Any) -> Any:
        raise ValueError("the processor's own words")

    runner = EchoRunner(delay_s=0.005)
    memory = opened(file, runner)
    done = memory.stream("hello")
    done.result()
    cancelled = memory.stream("cancelled " * 20)
    wait_for(lambda: cancelled.state == "decode")
    cancelled.cancel()
    assert isinstance(cancelled.outcome(), CancelledError)
    late = memory.stream("late " * 50, timeout_s=0.05)
    assert isinstance(late.outcome(), RequestTimeoutError)
    failed = memory.stream("failed", logits_processors=[broken])
    assert isinstance(failed.outcome(), ValueError)
    running, waiting = memory.stream("x" * 400, agent="a"), memory.stream("y" * 400, agent="a")
    memory.close()
    assert isinstance(waiting.outcome(), ClosedError)
    found = ends(lines(file))
    assert {id: (line["state"], line["error"]) for id, line in found.items()} == {
        done.id: ("done", None),
        cancelled.id: ("cancelled", "CancelledError"),
        late.id: ("failed", "RequestTimeoutError"),
        failed.id: ("failed", "ValueError"),
        running.id: ("failed", "ClosedError"),
        waiting.id: ("failed", "ClosedError"),
    }
    assert found[cancelled.id]["computed_tokens"] > 0  # what it cost until then
    assert "computed_tokens" not in found[waiting.id]


def test_a_reply_that_takes_long_leaves_a_trace_before_its_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_memory.observe.observing._EVERY_S", 0.05)
    with opened(file, EchoRunner(delay_s=0.01)) as memory:
        reply = memory.generate("long " * 12)
    decoded = [line["output_tokens"] for line in lines(file) if line["event"] == "decode"]
    assert 1 <= len(decoded) < reply.usage.output_tokens
    assert decoded == sorted(decoded)


def test_saves_and_evictions_are_told_with_their_agent(tmp_path: Path, file: Path) -> None:
    with Memory(EchoRunner(), tmp_path / "store", config=Config(recorder=file)) as memory:
        memory.agent("alice").say("hello " * 20)
        memory.flush()
        memory.evict("alice")
    [save] = [line for line in lines(file) if line["event"] == "save"]
    [evict] = [line for line in lines(file) if line["event"] == "evict"]
    assert (save["agent"], save["to"], evict["agent"], evict["to"]) == ("alice", "cold", "alice", "cold")
    assert 0 < save["tokens"] == evict["tokens"]
    assert evict["bytes"] > 0


def test_no_text_of_anybody_is_in_the_file(file: Path) -> None:
    secret = "zebra-4711"

    def broken(ids: object, logits: Any) -> Any:
        raise ValueError(secret)

    runner = EchoRunner(reply=lambda asked, _: f"{secret} said {asked}")
    with opened(file, runner) as memory:
        agent = memory.agent("alice", system=f"the word is {secret}")
        agent.say(secret, stop=[secret[:3]])
        agent.say(f"{secret} again")
        memory.generate([{"role": "user", "content": secret}], agent="alice")
        memory.stream(secret, logits_processors=[broken]).outcome()
    assert secret.encode() not in file.read_bytes()
    assert len(ends(lines(file))) == 4


CHILD = """
import sys, threading
from agent_memory import Config, EchoRunner, Memory
memory = Memory(EchoRunner(delay_s=0.001), ":memory:", config=Config(recorder=sys.argv[1]))
lock = threading.Lock()
long = memory.stream("x " * 3000, max_tokens=30_000)  # runs when the process dies
def ask(name):
    for n in range(100_000):
        reply = memory.agent(name).say(f"number {n}")
        with lock:
            print(reply.id, flush=True)
for name in "abc":
    threading.Thread(target=ask, args=(name,), daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("n_replies", [1, 40])
def test_a_killed_process_leaves_whole_lines_and_an_end_for_every_reply_it_gave(file: Path, n_replies: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(file)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [child.stdout.readline().strip() for _ in range(n_replies)]
    os.kill(child.pid, signal.SIGKILL)
    told += [line.strip() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    found = lines(file)
    ended = {line["id"]: line["state"] for line in found if line["event"] == "end"}
    assert {ended[id] for id in told} == {"done"}
    queued = [line["id"] for line in found if line["event"] == "queued"]
    cut_short = set(queued) - set(ended)
    assert queued[0] in cut_short

    with opened(file) as memory:  # the next process closes them
        memory.generate("hello")
    found = lines(file)
    states = Counter(line["state"] for line in ends(found).values())
    assert states == {"done": len(ended) + 1, "lost": len(cut_short)}
    assert [line["event"] for line in found].count("open") == 2


SESSION = [
    {"event": "open", "format": 1},
    {"event": "queued", "id": "1", "agent": "a"},
    {"event": "queued", "id": "2", "agent": None},
    {"event": "end", "id": "1", "agent": "a", "state": "done"},
    {"event": "queued", "id": "3", "agent": "b" * 50},
    {"event": "end", "id": "3", "agent": "b" * 50, "state": "done"},
    {"event": "queued", "id": "4", "agent": None},
]
TEXT = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in SESSION)


@given(cut=st.integers(0, len(TEXT)), block=st.integers(1, 200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_ends_anywhere_is_made_whole_and_every_request_ended(tmp_path: Path, cut: int, block: int) -> None:
    path = tmp_path / f"{cut}-{block}.jsonl"
    path.write_bytes(TEXT[:cut])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "_BLOCK_BYTES", block)
        Recorder(path).close()
    found = lines(path)
    whole = TEXT[:cut].count(b"\n")
    assert found[:whole] == SESSION[:whole]
    ends(found)
    assert [line["event"] for line in found[-2:]] == ["open", "close"]
    path.unlink()


def test_only_the_last_process_is_asked_for_requests_without_an_end(file: Path) -> None:
    earlier = b'{"event":"open"}\n{"event":"queued","id":"0","agent":null}\n'
    file.write_bytes(earlier + TEXT)
    Recorder(file).close()
    lost = [line["id"] for line in lines(file) if line.get("state") == "lost"]
    assert lost == ["2", "4"]


def test_two_memories_do_not_write_one_file(file: Path) -> None:
    with opened(file), pytest.raises(ConfigError, match="is written by another Memory"):
        opened(file)
    opened(file).close()
    assert [line["event"] for line in lines(file)] == ["open", "close"] * 2


@pytest.mark.parametrize("text", [b"dear diary\n", b'{"event":"end"}\n', b"\x00" * 40])
def test_another_file_is_refused_and_left_as_it_is(file: Path, text: bytes) -> None:
    file.write_bytes(text)
    with pytest.raises(ConfigError, match="holds something else"):
        opened(file)
    assert file.read_bytes() == text


def test_a_file_that_cannot_be_opened_is_a_config_error_and_nothing_stays_open(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(ConfigError, match="recorder cannot be opened"):
        Memory(EchoRunner(), store, config=Config(recorder=tmp_path / "none" / "recorder.jsonl"))
    Memory(EchoRunner(), store).close()  # its lock was given back


def test_a_relative_path_is_that_of_the_moment_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(recorder="here.jsonl")
    monkeypatch.chdir("/")
    Memory(EchoRunner(), ":memory:", config=config).close()
    assert (tmp_path / "here.jsonl").exists()


def test_a_file_that_is_truncated_by_others_goes_on_from_its_start(file: Path) -> None:
    with opened(file) as memory:
        memory.generate("hello")
        os.truncate(file, 0)
        reply = memory.generate("hello")
    assert [line["event"] for line in lines(file) if line.get("id") == reply.id][-1] == "end"


FULL = """
import json, resource, sys
from agent_memory.observe.recorder import Recorder
recorder = Recorder(__import__("pathlib").Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
for n in range(50):
    recorder.write("end", {"id": str(n)})
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recorder.write("end", {"id": "after"})
print(recorder.n_failed)
"""


def test_a_disk_that_is_full_loses_whole_lines_and_counts_them(file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=True)
    found = lines(file)
    assert found[-1]["id"] == "after"
    assert len(found) + int(done.stdout) == 52


def test_requests_go_on_where_the_recorder_cannot_write(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(file) as memory:

        def refuse(fd: int, line: bytes) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr("agent_memory.observe.recorder.os.write", refuse)
            assert memory.generate("hello").text == "hello"
            assert memory.stats().recorder_failures >= 3
        warned = [record for record in caplog.records if record.name == "agent_memory.recorder"]
        assert len(warned) == 1


def test_the_id_of_a_request_is_the_same_in_the_log_the_file_and_the_reply(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    caplog.set_level(logging.DEBUG, "agent_memory")
    with opened(file, on_reply=lambda reply: seen.append(reply.id)) as memory:
        handle = memory.stream("hello", agent="alice")
        reply = handle.result()
    assert seen == [reply.id] == [handle.id] == list(ends(lines(file)))
    assert f"request end id={reply.id} agent='alice' state=done" in caplog.text
