"""memory.trace(): Chrome trace events of requests, agents and the engine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, ConfigError, EchoRunner, Memory, Trace
from agent_memory.observe.trace import Begin, End, Ring, Step, trace_of
from agent_memory.usage import Usage
from tests.parts.chrometrace import problems
from tests.parts.waiting import wait_for

Events = list[dict[str, Any]]


def slices(trace: Trace, name: str) -> Events:
    return [dict(event) for event in trace.events if event["ph"] == "X" and event["name"] == name]


def tracks(trace: Trace) -> dict[int, str]:
    return {event["tid"]: event["args"]["name"] for event in trace.events if event["name"] == "thread_name"}


def test_a_request_shows_its_phases_on_the_track_of_its_agent() -> None:
    with Memory(EchoRunner(delay_s=0.002), ":memory:") as memory:
        agent = memory.agent("alice")
        agent.say("hello, " * 100)
        reply = agent.say("more")
        trace = memory.trace()
    assert problems(trace.to_json()) == []
    assert trace.n_requests == 2
    request = slices(trace, "request")[1]
    assert tracks(trace)[request["tid"]] == "alice"
    assert request["args"]["id"] == reply.id
    assert request["args"]["state"] == "done"
    usage = reply.usage
    inside = [e for e in trace.events if e["ph"] == "X" and e["tid"] == request["tid"] and e["ts"] >= request["ts"]]
    phases = {e["name"]: e["dur"] / 1e6 for e in inside[1:]}
    assert list(phases) == ["queue", "restore", "prefill", "decode"]
    assert phases["queue"] == pytest.approx(usage.queue_s, abs=1e-6)
    assert phases["restore"] == pytest.approx(usage.restore_s, abs=1e-6)
    assert phases["queue"] + phases["restore"] + phases["prefill"] == pytest.approx(usage.ttft_s, abs=2e-6)
    assert sum(phases.values()) == pytest.approx(request["dur"] / 1e6, abs=2e-6)


def test_the_engine_s_track_shows_every_prefill_and_decode_step_with_its_requests() -> None:
    runner = EchoRunner()
    with Memory(runner, ":memory:", config=Config(lookup="off")) as memory:
        handles = [memory.stream(f"{name} " * 90) for name in ("one", "two")]
        replies = [handle.result() for handle in handles]
        trace = memory.trace()
    fed = sum(step["args"]["stop"] - step["args"]["start"] for step in slices(trace, "prefill") if step["tid"] == 1)
    assert fed == runner.calls.prefill_ids
    decodes = [step for step in slices(trace, "decode") if step["tid"] == 1]
    assert len(decodes) == runner.calls.steps
    for reply in replies:
        n_steps = sum(reply.id in step["args"]["requests"] for step in decodes)
        assert 0 <= n_steps - (reply.usage.output_tokens - 1) <= 2, "a prefill step gave the first token"
    rows = [event["args"]["decoding"] for event in trace.events if event["ph"] == "C"]
    assert max(rows) == 2
    assert tracks(trace)[1] == "engine"


def test_saves_evictions_and_faults_are_shown(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.agent("alice").say("hello " * 20)
        memory.flush()
        memory.evict("alice")
        memory._reports.observing.faulted(RuntimeError("of the device"))
        trace = memory.trace()
    assert problems(trace.to_json()) == []
    [save], [evict], [fault] = slices(trace, "save"), slices(trace, "evict"), slices(trace, "fault")
    assert (save["args"]["agent"], evict["args"]["agent"], evict["args"]["to"]) == ("alice", "alice", "cold")
    assert tracks(trace)[save["tid"]] == "saves"
    assert fault["args"] == {"error": "RuntimeError"}


def test_requests_of_one_agent_that_overlap_get_a_track_each() -> None:
    with Memory(EchoRunner(delay_s=0.003), ":memory:") as memory:
        handles = [memory.stream(f"number {n}", agent="alice") for n in range(3)]
        for handle in handles:
            handle.result()
        trace = memory.trace()
    assert problems(trace.to_json()) == []
    names = [tracks(trace)[request["tid"]] for request in slices(trace, "request")]
    assert names == ["alice", "alice (2)", "alice (3)"]


def test_a_request_that_runs_or_was_cancelled_is_shown_as_far_as_it_came() -> None:
    with Memory(EchoRunner(delay_s=0.01), ":memory:") as memory:
        cancelled = memory.stream("cancelled " * 30)
        wait_for(lambda: cancelled.state == "decode")
        cancelled.cancel()
        cancelled.outcome()
        running = memory.stream("running " * 30)
        waiting = memory.stream("waits", agent="a")
        wait_for(lambda: running.state == "decode")
        trace = memory.trace()
        running.cancel()
        waiting.cancel()
    assert problems(trace.to_json()) == []
    states = {request["args"]["id"]: request["args"]["state"] for request in slices(trace, "request")}
    assert (states[cancelled.id], states[running.id]) == ("cancelled", "running")
    assert len([step for step in slices(trace, "decode") if step["tid"] != 1]) >= 2


def test_the_newest_entries_are_kept_and_the_others_are_not() -> None:
    ring = Ring(3)
    for n in range(10):
        ring.add(Step("prefill", n, n + 1, None, (str(n),)))
    assert [entry.began for entry in ring.entries() if isinstance(entry, Step)] == [7, 8, 9]


def test_a_trace_whose_beginning_was_dropped_is_still_one() -> None:
    usage = Usage(prompt_tokens=9, cached_tokens=0, computed_tokens=9, output_tokens=2, tier="none", ttft_s=1.0)
    entries = [
        End("ended", "a", 10.0, 13.0, "done", usage),  # its Begin is gone
        End("refused", None, 10.5, 10.5, "failed", None),
        Begin("begun", "a", 11.0, usage),
        Step("decode", 12.0, 12.1, None, ("begun",)),
    ]
    trace = trace_of(entries, title="t", zero=10.0, now=14.0)
    assert problems(trace.to_json()) == []
    assert [request["args"]["id"] for request in slices(trace, "request")] == ["ended", "refused", "begun"]
    assert trace.seconds == pytest.approx(4.0)
    assert trace_of([], title="t", zero=0.0, now=1.0).n_requests == 0


def test_the_file_is_json_without_any_text_and_the_name_of_any_agent_is_kept(tmp_path: Path) -> None:
    name = 'any "name"\n\\ 日本'
    with Memory(EchoRunner(), ":memory:") as memory:
        memory.agent(name, system="zebra-4711").say("zebra-4711")
        trace = memory.trace()
        path = trace.save(tmp_path / "trace.json")
    text = path.read_text(encoding="utf-8")
    assert "zebra" not in text
    assert json.loads(text)["traceEvents"] == json.loads(json.dumps(list(trace.events)))
    assert name in tracks(trace).values()
    assert repr(trace).startswith("Trace(n_requests=1 ") or repr(trace).startswith("Trace(n_requests=1,")
    with pytest.raises(ConfigError):
        trace.save("")


def test_the_checker_finds_slices_that_do_not_nest() -> None:
    def trace(*spans: tuple[float, float]) -> str:
        name = {"name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "t"}}
        events = [{"name": "x", "ph": "X", "pid": 1, "tid": 1, "ts": a, "dur": b - a} for a, b in spans]
        return json.dumps({"traceEvents": [name, *events]})

    assert problems(trace((0, 10), (2, 5), (5, 10), (10, 12))) == []
    assert problems(trace((0, 10), (5, 11))) != []
    assert problems('{"traceEvents": [{"name": "x", "ph": "X", "pid": 1, "ts": 0}]}') != []


def test_a_trace_is_taken_while_others_write() -> None:
    ring = Ring()
    with Memory(EchoRunner(), ":memory:") as memory:
        handle = memory.stream("words " * 300)
        until = time.monotonic() + 0.3
        while handle.state != "done" and time.monotonic() < until:
            assert problems(memory.trace().to_json()) == []
        handle.result()
    assert ring.entries() == []
