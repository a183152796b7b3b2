"""KV that is back in hot before its turn: planned, paused for a tool, or learned; within budgets, in nobody's way."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory import Config, EchoRunner, Memory, ToolResult, UnknownAgentError, UnsupportedParameterError
from agent_memory.echo.batch import EchoBatch
from agent_memory.scheduler.ahead import Ahead
from tests.parts.waiting import wait_for

NAMES = [f"agent {i}" for i in range(4)]
TEXT = "The lamp is lit at dusk and put out at dawn; the log notes wind, sea and every ship that passes. " * 12
SHORT = 64  #: tokens of a reply
CALL = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'


def look() -> str:
    """Look."""
    return "nothing"


def stored(path: Path, names: list[str] = NAMES) -> int:
    """Agents whose KV is on disk; return the bytes of all of it, live."""
    with Memory(EchoRunner("well"), path) as memory:
        for name in names:
            memory.agent(name, system=f"{name}. {TEXT}").say("begin")
        return sum(info.tier_bytes["hot"] for info in memory.agents())


def opened(path: Path, n_bytes: int, *, delay_s: float = 0.0, **config: object) -> Memory:
    return Memory(EchoRunner("well", delay_s=delay_s), path, config=Config.make(hot_bytes=n_bytes, **config))


def is_hot(memory: Memory, name: str) -> bool:
    return next(info for info in memory.agents() if info.name == name).tier_tokens.get("hot", 0) > 0


def test_what_is_expected_is_hot_before_its_turn(tmp_path: Path) -> None:
    total = stored(tmp_path)
    with opened(tmp_path, total) as memory:
        memory.expect([NAMES[1], memory.agent(NAMES[2])])
        wait_for(lambda: is_hot(memory, NAMES[2]))
        replies = [memory.agent(name).say("go on") for name in NAMES[1:]]
        assert [reply.usage.tier for reply in replies] == ["hot", "hot", "cold"]
        assert [reply.usage.exactness for reply in replies] == ["exact"] * 3
        assert [reply.text for reply in replies] == ["well"] * 3
        stats = memory.stats()
    assert stats.ahead == {"useful": 2, "wasted": 0}
    assert stats.ahead_bytes > stats.restored_bytes > 0


def test_nothing_is_restored_where_foresight_is_off(tmp_path: Path) -> None:
    total = stored(tmp_path)
    with opened(tmp_path, total, foresight="off") as memory:
        memory.expect(NAMES)
        assert memory.agent(NAMES[0]).say("go on").usage.tier == "cold"
        assert memory.agent(NAMES[1]).say("go on").usage.tier == "cold"
        assert memory.stats().ahead_bytes == 0


def test_no_ids_are_recorded_where_foresight_is_off(tmp_path: Path) -> None:
    total, recorded = stored(tmp_path), {}
    for foresight in ("off", "auto"):
        with opened(tmp_path, int(total * 0.6), foresight=foresight) as memory:
            memory.expect([NAMES[3]])
            for name in NAMES[:3]:
                memory.agent(name).say("go on", max_tokens=SHORT)
            assert memory.stats().evictions["hot"] > 0
            recorded[foresight] = memory._engine._loop.evictor._absentees.n_ids
    assert recorded["off"] == 0 < recorded["auto"]


def test_the_disk_keeps_what_a_plan_names_before_its_first_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ahead, "can_step", False)  # what is restored ahead counts as used
    total, cached = stored(tmp_path / "all"), {}
    for plan in ([], NAMES[:1]):
        path = tmp_path / str(len(plan))
        shutil.copytree(tmp_path / "all", path)
        with opened(path, 4 * total, disk_bytes=int(total * 1.1)) as memory:
            memory._store._catalog.disk.clock = lambda: time.time() + 1000.0  # type: ignore[union-attr]
            memory.expect(plan)
            for number in range(4):
                memory.agent(f"new {number}", system=f"{number} is new. {TEXT}").say("begin", max_tokens=SHORT)
                memory.flush()
            cached[len(plan)] = memory.agent(NAMES[0]).say("go on").usage.cached_tokens
    assert cached[0] < 100 < 900 < cached[1], cached


def test_only_agents_that_exist_are_expected(tmp_path: Path) -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        memory.agent("ann").say("hello")
        with pytest.raises(UnknownAgentError):
            memory.expect(["ann", "nobody"])
        with pytest.raises(UnsupportedParameterError):
            memory.expect("ann")
        assert memory.explain("hello", agent="ann").next_s is None
        memory.expect(["ann"])
        report = memory.explain("hello", agent="ann")
        assert report.next_s == 0.0
        assert "expect()" in report.expected
        assert "next turn" in str(report)
        memory.expect([])
        assert memory.explain("hello", agent="ann").expected == ""


def test_a_wrong_plan_costs_no_reply_and_is_counted(tmp_path: Path) -> None:
    total = stored(tmp_path)
    with opened(tmp_path, int(total * 0.6)) as memory:
        memory.expect([NAMES[3]])
        wait_for(lambda: is_hot(memory, NAMES[3]))
        memory.expect([])
        for name in (*NAMES[:3], *NAMES[:3]):
            assert memory.agent(name).say("go on").text == "well"
        stats = memory.stats()
        assert stats.ahead == {"useful": 0, "wasted": 1}
        assert stats.hot_bytes <= int(total * 0.6)


def test_kv_that_its_own_turn_could_not_use_was_restored_in_vain(tmp_path: Path) -> None:
    total = stored(tmp_path)
    with opened(tmp_path, total) as memory:
        memory.expect([NAMES[1]])
        wait_for(lambda: is_hot(memory, NAMES[1]))
        reply = memory.agent(NAMES[1]).say("go on", exact=True)  # starts from no KV that was stored
        assert reply.usage.cached_tokens == 0
        assert memory.stats().ahead == {"useful": 0, "wasted": 1}


def test_kv_of_an_agent_that_waits_for_a_tool_stays_by_the_pauses_of_that_tool(tmp_path: Path) -> None:
    with Memory(EchoRunner("well"), tmp_path) as memory:
        for name in ("ann", *NAMES):
            tools = (look,) if name == "ann" else ()
            memory.agent(name, system=f"{name}. {TEXT}", tools=tools).say("begin")
        total = sum(info.tier_bytes["hot"] for info in memory.agents())
    asked = [""]
    runner = EchoRunner(lambda message, ids: asked.pop())
    for foresight, tier in (("off", "cold"), ("auto", "hot")):
        with Memory(runner, tmp_path, config=Config(hot_bytes=int(total * 0.7), foresight=foresight)) as memory:  # type: ignore[arg-type]
            ann = memory.agent("ann")
            for _ in range(2 if foresight == "auto" else 0):  # the tool is measured
                asked[:] = ["well", CALL]
                reply = ann.say("call", max_tokens=SHORT)
                time.sleep(0.5)
                ann.give(*[ToolResult(call.id, "nothing") for call in reply.tool_calls], max_tokens=SHORT)
            asked[:] = ["well"] * 4 + [CALL]
            reply = ann.say("call", max_tokens=SHORT)
            report = ann.explain() if foresight == "auto" else None
            for name in NAMES[:3]:  # used later than ann, but done
                memory.agent(name).say("go on", max_tokens=SHORT)
            assert (
                ann.give(*[ToolResult(call.id, "nothing") for call in reply.tool_calls], max_tokens=SHORT).usage.tier
                == tier
            )
    assert report is not None
    assert "look" in report.expected


def test_a_pipeline_is_learned(tmp_path: Path) -> None:
    total, turns = stored(tmp_path), NAMES * 10
    read = {}
    for foresight in ("off", "auto"):
        with opened(tmp_path, int(total * 0.8), foresight=foresight, delay_s=0.01) as memory:
            for name in turns:
                assert memory.agent(name).say("go on", max_tokens=8).text
                memory.flush()
            read[foresight] = memory.stats().restored_bytes
            assert memory.stats().hot_bytes <= int(total * 0.8)
    assert read["auto"] < read["off"] / 1.3


class Watched(EchoBatch):
    """Counts what is restored between two decode steps."""

    n_tensors: int = 0
    most: int = 0

    def restoring(self, source):  # type: ignore[no-untyped-def]
        for kv in super().restoring(source):
            time.sleep(0.005)  # a tensor takes longer than a slice
            Watched.n_tensors += 1
            yield kv

    def step(self, group: int) -> list[tuple[int, int]]:
        Watched.most, Watched.n_tensors = max(Watched.most, Watched.n_tensors), 0
        return super().step(group)


class Failing(EchoBatch):
    """Restores at once, and fails to in steps."""

    def restoring(self, source: object) -> Iterator[None]:
        yield None
        raise RuntimeError("planted")


def test_a_running_reply_waits_for_one_tensor_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = stored(tmp_path)
    monkeypatch.setattr(EchoRunner, "open_batch", lambda self, chunk_tokens=256: Watched(self, self._seed))
    monkeypatch.setattr(Watched, "n_tensors", 0)
    with Memory(EchoRunner("word " * 60), tmp_path, config=Config(hot_bytes=total, lookup="off")) as memory:
        reply = memory.stream("tell", agent=NAMES[0], max_tokens=200)
        wait_for(lambda: reply.state == "decode")
        memory.expect([NAMES[1]])
        reply.result()
        wait_for(lambda: is_hot(memory, NAMES[1]))
        assert memory.stats().ahead_bytes > 0
    assert Watched.most == 1


def test_a_request_takes_the_bytes_of_what_is_only_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = stored(tmp_path)
    monkeypatch.setattr(EchoRunner, "open_batch", lambda self, chunk_tokens=256: Watched(self, self._seed))
    n_bytes = total // 2 - 1  # one agent runs, and none beside it
    with opened(tmp_path, n_bytes) as memory:
        memory.expect([NAMES[1]])
        reply = memory.agent(NAMES[0]).say("go on", max_tokens=SHORT)
        assert reply.text == "well"
        assert memory.stats().hot_bytes <= n_bytes
        assert memory.agent(NAMES[1]).say("go on", max_tokens=SHORT).text == "well"


def test_a_restore_ahead_that_fails_is_a_turn_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = stored(tmp_path)
    monkeypatch.setattr(EchoRunner, "open_batch", lambda self, chunk_tokens=256: Failing(self, self._seed))
    with opened(tmp_path, total) as memory:
        memory.expect(NAMES[:1])
        wait_for(lambda: memory.stats().ahead["wasted"] == 1)
        assert memory.agent(NAMES[1]).say("go on").text == "well"
        reply = memory.agent(NAMES[0]).say("go on")
        assert (reply.text, reply.usage.tier) == ("well", "cold")
        assert memory.stats().hot_bytes <= total


def test_damage_found_ahead_of_need_is_a_miss_and_no_other_answer(tmp_path: Path) -> None:
    total = stored(tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    with opened(tmp_path, total) as memory:
        memory.expect(NAMES[:2])
        wait_for(lambda: memory.stats().damage > 0)
        replies = [memory.agent(name).say("go on") for name in NAMES]
        assert {reply.text for reply in replies} == {"well"}


def test_a_deleted_agent_is_expected_no_more(tmp_path: Path) -> None:
    total = stored(tmp_path)
    with opened(tmp_path, total) as memory:
        memory.expect(NAMES)
        assert memory.delete(NAMES[0])
        assert memory._tiers.foresight.plan == tuple(NAMES[1:])
        for name in NAMES[1:]:
            assert memory.agent(name).say("go on").text == "well"


ops = st.lists(
    st.tuples(
        st.sampled_from(["say", "say", "say", "call", "expect", "evict", "batch", "generate", "flush"]),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    min_size=4,
    max_size=14,
)


def played(path: Path, n_bytes: int, found: list[tuple[str, int, int]], **config: object) -> list[str]:
    texts: list[str] = []
    calls = list[str]()
    runner = EchoRunner(lambda message, ids: calls.pop() if calls else f"{len(ids)} ids")
    with Memory(runner, path, config=Config.make(hot_bytes=n_bytes, **config)) as memory:
        for number, (kind, one, other) in enumerate(found):
            name, second = NAMES[one], NAMES[other]
            if kind == "say":
                texts.append(memory.agent(name).say(f"turn {number}", max_tokens=SHORT).text)
            elif kind == "call":
                calls.append(CALL)
                reply = memory.agent(name).say("call", tools=[look], max_tokens=SHORT)
                results = [ToolResult(call.id, "x") for call in reply.tool_calls]
                texts.append(
                    memory.agent(second if second != name else NAMES[one - 1]).say("between", max_tokens=SHORT).text
                )
                texts.append(memory.agent(name).give(*results, max_tokens=SHORT).text)
            elif kind == "expect":
                memory.expect([name, second])
            elif kind == "evict":
                memory.evict(name)
            elif kind == "batch":
                asked = memory.batch(["first", "second"], agent=[name, NAMES[one - 1]], max_tokens=SHORT)
                texts += [reply.text for reply in asked]
            elif kind == "generate":
                texts.append(memory.generate(f"alone {one}", max_tokens=SHORT).text)
            else:
                memory.flush()
            stats = memory.stats()
            assert stats.hot_bytes <= n_bytes
            assert stats.warm_bytes <= (memory.config.warm_bytes or 0)
            memory._engine.call(memory._engine._loop.check)
            assert memory._tiers.foresight.check() == []
    return texts


BYTES = 600_000  #: one agent's, with what a turn may need


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=ops, share=st.sampled_from([1.4, 2.0, 4.0]), warm=st.sampled_from([0, 1 << 20]))
def test_replies_are_equal_and_budgets_hold_with_and_without_foresight(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, int, int]], share: float, warm: int
) -> None:
    compare(tmp_path_factory, found, share, warm)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=ops, share=st.sampled_from([1.0, 1.4, 2.0, 3.0, 4.0]), warm=st.sampled_from([0, 1 << 19, 1 << 21]))
def test_replies_are_equal_and_budgets_hold_on_many_workloads(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, int, int]], share: float, warm: int
) -> None:
    compare(tmp_path_factory, found, share, warm)


def compare(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, int, int]], share: float, warm: int
) -> None:
    texts, template = [], tmp_path_factory.getbasetemp() / "template"
    if not template.exists():
        stored(template)
    for foresight in ("auto", "off"):
        path = tmp_path_factory.mktemp("stores") / "store"
        shutil.copytree(template, path)
        n_bytes = int(BYTES * share)
        texts.append(played(path, n_bytes, found, warm_bytes=warm, foresight=foresight))
    assert texts[0] == texts[1]


def test_kv_filled_a_tensor_at_a_time_is_kv_filled_at_once(tmp_path: Path) -> None:
    stored(tmp_path, NAMES[:1])
    with Memory(EchoRunner("well"), tmp_path) as memory:
        tiers, loop = memory._tiers, memory._engine._loop
        ids = np.asarray(memory.agent(NAMES[0])._log.known(memory._runner.tokenizer), np.uint32)

        def both() -> list[list[bytes]]:
            match, batch = tiers.match(ids), loop.running.batch
            once = batch.restore(tiers.source(match, match.n_tokens))
            *_, stepwise = batch.restoring(tiers.source(match, match.n_tokens))  # type: ignore[attr-defined]
            n_tensors = len(memory._runner.layout.tensors)
            return [[kv.read(t, 0, match.n_tokens).tobytes() for t in range(n_tensors)] for kv in (once, stepwise)]

        once, stepwise = memory._engine.call(both)
    assert once == stepwise
