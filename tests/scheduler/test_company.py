"""Agents that are restored at the same time are restored together; one that is asked alone waits for nobody."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.echo.batch import EchoBatch, EchoKV
from agent_memory.protocols import Source
from agent_memory.scheduler.gathering import Gathering
from agent_memory.scheduler.waiting import Waiting
from agent_memory.tiers.tiers import Tiers
from tests.parts.faulty import with_faults
from tests.parts.tinyrunner import endless
from tests.parts.waiting import PATIENCE_S, outcome, wait_for, within

NAMES = [f"agent {n}" for n in range(4)]
GAP_S = 40 * PATIENCE_S  #: whoever waits for a share of it waits longer than any test


def _memory(runner: Any, path: Any, sizes: tuple[int, ...] = (30, 31, 29, 30), **settings: Any) -> Memory:
    """A Memory whose agents have all their KV on disk, and none of it restored ahead of need."""
    memory = Memory(runner, path, config=Config(target_gap_s=GAP_S, chunk_tokens=64, foresight="off", **settings))
    for name, size in zip(NAMES, sizes, strict=True):
        memory.agent(name, system=f"{name} waits. " + "You wait. " * size).say("Hello.", max_tokens=2)
    memory.evict()
    memory.flush()
    return memory


def _said(memory: Memory, names: list[str]) -> list[Any]:
    handles = [memory.stream("Go on.", agent=name, max_tokens=5) for name in names]
    return [handle.result(PATIENCE_S) for handle in handles]


@pytest.mark.parametrize("is_batch", [False, True])
def test_agents_asked_at_once_are_restored_together(tmp_path: Path, is_batch: bool) -> None:
    runner, other = EchoRunner("word " * 40), EchoRunner("word " * 40)
    with _memory(other, tmp_path / "other") as memory:
        wanted = [within(lambda name=name: memory.agent(name).say("Go on.", max_tokens=5)) for name in NAMES]
        assert other.calls.together == 0, "each was alone"
    with _memory(runner, tmp_path / "store") as memory:
        if is_batch:
            found = within(lambda: memory.batch(["Go on."] * 4, agent=NAMES, max_tokens=5))
        else:
            found = _said(memory, NAMES)
    assert runner.calls.together == runner.calls.restores == 4
    assert [reply.text for reply in found] == [reply.text for reply in wanted]
    assert {(reply.usage.tier, reply.usage.exactness) for reply in found} == {("cold", "exact")}
    assert all(reply.usage.restore_s > 0 for reply in found), "each is charged its share"
    assert [reply.usage.cached_tokens for reply in found] == [reply.usage.cached_tokens for reply in wanted]


def test_those_of_another_length_are_restored_alone(tmp_path: Path) -> None:
    runner = EchoRunner("word " * 40)
    with _memory(runner, tmp_path, (30, 400, 30, 400)) as memory:
        assert {reply.usage.tier for reply in _said(memory, NAMES)} == {"cold"}
    assert (runner.calls.together, runner.calls.restores) == (2, 4)


def test_what_is_damaged_of_one_is_no_harm_to_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = EchoRunner("word " * 40)
    with _memory(runner, tmp_path) as memory:
        files = tmp_path.rglob("*.safetensors")
        file = max(files, key=lambda file: file.stat().st_mtime_ns)  # the last agent's: others share rows of the first
        half = file.stat().st_size // 2  # in the rows, which only a restore reads
        with file.open("r+b") as opened:
            opened.seek(half)
            [old] = opened.read(1)
            opened.seek(half)
            opened.write(bytes([old ^ 1]))
        replies = _said(memory, NAMES)
    assert "a segment is damaged" in caplog.text
    assert runner.calls.together == 4
    assert sorted(reply.usage.exactness for reply in replies) == [*["exact"] * 3, "recomputed"]
    assert len({reply.text for reply in replies}) == 1


def test_a_request_that_is_cancelled_meanwhile_and_a_full_budget_leave_the_others_whole(tmp_path: Path) -> None:
    runner = EchoRunner("word " * 40)
    with _memory(runner, tmp_path) as memory:
        handles = [memory.stream("Go on.", agent=name, max_tokens=5) for name in NAMES]
        handles[0].cancel()
        assert len({handle.result(PATIENCE_S).text for handle in handles[1:]}) == 1
    assert runner.calls.together == 3


def test_a_restore_that_took_long_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gap_s, really = 0.4, EchoBatch.restore_together

    def slowly(batch: EchoBatch, sources: Sequence[Source]) -> list[EchoKV]:
        time.sleep(gap_s)
        return really(batch, sources)

    monkeypatch.setattr(EchoBatch, "restore_together", slowly)
    runner = EchoRunner("word " * 40)
    prompts = [[{"role": "user", "content": f"Request {n}. " + "You wait. " * 30}] for n in range(4)]
    with Memory(runner, tmp_path, config=Config(target_gap_s=gap_s, chunk_tokens=64, foresight="off")) as memory:
        asked = [memory.generate(prompt, max_tokens=1) for prompt in prompts]
        memory.evict()
        memory.flush()
        again = within(lambda: memory.batch(prompts, max_tokens=5))
    assert [reply.usage.computed_tokens for reply in again] == [1] * 4, "the first one decodes at once"
    assert {reply.usage.prompt_tokens for reply in again} == {reply.usage.prompt_tokens for reply in asked}
    assert runner.calls.together == runner.calls.restores == 4


def test_a_wait_that_ends_while_requests_are_looked_at_is_over_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those that were looked at first were restored with the others, not started, and restored again."""
    n_looks = 0

    def restore_wait_s(gathering: Gathering, waiting: Waiting) -> float:
        nonlocal n_looks
        n_looks += len(waiting) == len(NAMES)
        return 0.0 if n_looks > 3 else 1.0

    runner = EchoRunner("word " * 40)
    with _memory(runner, tmp_path) as memory:
        monkeypatch.setattr(Gathering, "restore_wait_s", restore_wait_s)
        replies = within(lambda: memory.batch(["Go on."] * 4, agent=NAMES, max_tokens=5))
    assert {reply.usage.tier for reply in replies} == {"cold"}
    assert runner.calls.together == runner.calls.restores == 4


def test_files_that_cannot_be_opened_together_are_opened_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner, opened = EchoRunner("word " * 40), list[Any]()
    really = Tiers.source

    def source(tiers: Tiers, match: Any, n_tokens: int) -> Any:
        opened.append(None)
        if len(opened) == 2:
            raise OSError(errno.EMFILE, "too many open files")
        return really(tiers, match, n_tokens)

    with _memory(runner, tmp_path) as memory:
        monkeypatch.setattr(Tiers, "source", source)
        replies = _said(memory, NAMES)
    assert "4 restores failed together" in caplog.text
    assert (runner.calls.together, runner.calls.restores, len(opened)) == (0, 4, 6)
    assert {(reply.usage.tier, reply.usage.exactness) for reply in replies} == {("cold", "exact")}


@pytest.mark.mlx
def test_what_rows_leave_that_were_restored_together_and_never_joined_takes_its_own_bytes_alone(tmp_path: Path) -> None:
    """Law 6: an idle lineage is evicted by its bytes, and with it they are free, whoever was restored beside it."""
    runner = endless("llama")
    faults = with_faults(runner)
    with _memory(runner, tmp_path) as memory:
        handles: list[Any] = []

        def ask() -> None:
            wait_for(lambda: "prefill" in faults._gates)
            handles.extend(memory.stream("Go on.", agent=name, max_tokens=5) for name in NAMES)
            outcome(handles[0])  # somebody waits, so nobody else is waited for

        asking = threading.Thread(target=ask)
        asking.start()
        with faults.hold("prefill"):
            for handle in handles:
                handle.cancel()
        asking.join(PATIENCE_S)
        assert [type(outcome(handle)).__name__ for handle in handles] == ["CancelledError"] * 4
        assert faults.calls["restore_together"] == 1
        left = [memory.stats().hot_bytes]
        for name in NAMES:
            memory.evict(name)
            left.append(memory.stats().hot_bytes)
        assert left == [n * left[-2] for n in (4, 3, 2, 1, 0)]
        assert left[-2] > 0
