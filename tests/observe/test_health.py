"""health(): live, ready, and why not."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

from agent_memory import Config, EchoRunner, Memory
from agent_memory.figures import Health
from tests.parts.waiting import wait_for


def test_a_memory_is_live_and_ready_from_its_opening_to_its_close() -> None:
    before = time.time()
    with Memory(EchoRunner(), ":memory:") as memory:
        health = memory.health()
        assert health == Health(live=True, ready=True, started_s=health.started_s)
        assert before <= health.started_s <= time.time()
    closed = memory.health()
    assert (closed.live, closed.ready) == (False, False)
    assert "closed" in closed.reasons[0]


class Breaking(EchoRunner):
    """Its steps raise while ``is_broken``."""

    is_broken = False

    def open_batch(self, chunk_tokens: int = 256):  # type: ignore[no-untyped-def]
        batch, runner = super().open_batch(chunk_tokens), self

        class Batch(type(batch)):  # type: ignore[misc]
            def step(self, group: int) -> list[tuple[int, int]]:
                if runner.is_broken:
                    raise RuntimeError("the device is gone")
                return super().step(group)  # type: ignore[no-any-return]

        batch.__class__ = Batch
        return batch


def test_a_fault_of_the_engine_is_a_reason_until_a_request_is_answered() -> None:
    runner = Breaking()
    with Memory(runner, ":memory:") as memory:
        runner.is_broken = True
        assert isinstance(memory.stream("hello").outcome(), RuntimeError)
        faulted = memory.health()
        assert (faulted.live, faulted.ready) == (True, False)
        assert "engine faulted" in faulted.reasons[0]
        assert "(RuntimeError)" in faulted.reasons[0]
        assert memory.stats().faults == 1
        runner.is_broken = False
        memory.generate("hello")
        assert memory.health().ready


def test_a_request_that_waits_for_bytes_is_a_reason() -> None:
    runner = EchoRunner(delay_s=0.01)
    budget = 1_100 * runner.layout.token_bytes
    with Memory(runner, ":memory:", config=Config(hot_bytes=budget, chunk_tokens=16, prefill_tokens=16)) as memory:
        first = memory.stream("one " * 20, max_tokens=400)
        wait_for(lambda: first.state == "decode")
        second = memory.stream("two " * 20, max_tokens=400)
        wait_for(lambda: not memory.health().ready)
        health = memory.health()
        assert health.live
        assert "no bytes: 1 requests wait, 1 run" in health.reasons[0]
        assert f"{budget:,} bytes" in health.reasons[0]
        first.result()
        second.result()
        assert memory.health().ready


def test_a_disk_that_refuses_is_a_reason(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path / "store") as memory:
        memory.agent("a").say("hello")
        memory.flush()  # a write that goes well says that the disk works
        memory._store.health.failed("KV", OSError(errno.ENOSPC, "no space left on device"))
        full = memory.health()
        assert (full.live, full.ready) == (True, False)
        assert "the disk is full" in full.reasons[0]
        memory._store.health.worked("KV")
        assert memory.health().ready


def test_health_does_not_wait_for_a_step_that_never_ends() -> None:
    may_go = threading.Event()

    class Stuck(EchoRunner):
        def open_batch(self, chunk_tokens: int = 256):  # type: ignore[no-untyped-def]
            batch = super().open_batch(chunk_tokens)
            original = batch.prefill

            def prefill(kv: object, ids: object) -> None:
                may_go.wait(30)
                original(kv, ids)  # type: ignore[arg-type]

            batch.prefill = prefill  # type: ignore[method-assign]
            return batch

    with Memory(Stuck(), ":memory:") as memory:
        handle = memory.stream("hello " * 100)
        wait_for(lambda: handle.state == "prefill")
        found: list[Health] = []
        asking = threading.Thread(target=lambda: found.append(memory.health()))
        asking.start()
        asking.join(10)
        may_go.set()
        assert found
        assert found[0].live
        handle.result()


def test_a_forked_child_is_not_live() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(writer, b"%d" % memory.health().live)
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(reader, 1) == b"0"
        assert memory.health().live
        os.close(reader)
        os.close(writer)
