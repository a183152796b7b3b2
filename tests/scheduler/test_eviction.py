"""What leaves the hot tier: in which order, where to, and never while others wait for it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.generation import Feed
from agent_memory.prefix.chunks import identity_of
from agent_memory.scheduler.admission import Admission
from agent_memory.scheduler.counters import Counters
from agent_memory.scheduler.eviction import Evictor
from agent_memory.scheduler.request import Request
from agent_memory.scheduler.reuse import Plan
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.saving import Saver
from agent_memory.scheduler.waiting import Waiting
from agent_memory.store.store import Store
from agent_memory.tiers.hot import HotTier, Lineage
from agent_memory.tiers.lookup import Match
from agent_memory.tiers.tiers import Tiers
from tests.parts.waiting import wait_for

TEXT = "The lamp is lit at dusk and put out at dawn; the log notes wind, sea and every ship that passes. " * 8
CHUNK = 16
ROOM = 1 << 24


class Scene:
    """An evictor over real tiers, on EchoRunner's KV, with a clock of its own."""

    def __init__(self, *, hot_tokens: int, warm_bytes: int = ROOM, ttl_s: float | None = None) -> None:
        self.runner = EchoRunner()
        self.layout = self.runner.layout
        self.now_s = 0.0
        self.store = Store(None, disk_bytes=None, chunk_tokens=CHUNK)
        self.tiers = Tiers(self.store, warm_bytes=warm_bytes, warm_ttl_s=ttl_s, clock=lambda: self.now_s)
        self.tiers.attach(identity_of(self.runner.identity, "", CHUNK), self.layout, "h", {"model": "echo"})
        self.hot = HotTier(clock=lambda: self.now_s)
        self.saver = Saver(self.tiers, self.layout, Counters())
        self.admission = Admission(hot_tokens * self.layout.token_bytes, self.layout.token_bytes, 1 << 30)
        self.running = Running(lambda: self.runner.open_batch(CHUNK), self.admission, Counters())
        self.waiting = Waiting()
        self.evictor = Evictor(
            self.hot, self.tiers, self.saver, self.admission, self.running, ttl_s=ttl_s, waiting=self.waiting
        )
        self.batch = self.runner.open_batch(CHUNK)

    def idle(self, number: int, n_tokens: int = 200) -> Lineage:
        """One more idle lineage, used a second after the one before."""
        ids = np.random.default_rng(number).integers(0, 200, n_tokens).astype(np.uint32)
        kv = self.batch.empty()
        self.batch.prefill(kv, ids.tolist())
        lineage = Lineage(f"agent {number}", ids, np.ones(n_tokens, np.uint8), kv, agent_id=number)
        self.now_s += 1.0
        self.hot.put(lineage)
        return lineage

    @property
    def owners(self) -> list[int | None]:
        return sorted(lineage.agent_id or 0 for lineage in self.hot)

    def warm_tokens(self, lineage: Lineage) -> int:
        return sum(take for _, take in self.tiers.warm.plan(lineage.ids).pieces)

    def room(self, n_tokens: int, *, hurry: bool = False) -> list[Lineage]:
        plan = Plan(wanted=np.zeros(0, np.uint32), stored=Match(0, (), np.zeros(0, np.uint8)))
        return self.evictor.make_room(n_tokens * self.layout.token_bytes, plan, hurry=hurry)


def test_the_longest_unused_leaves_first_and_goes_to_warm() -> None:
    scene = Scene(hot_tokens=1024)
    idle = [scene.idle(n) for n in range(4)]
    scene.now_s += 1.0
    scene.hot.touch(idle[0])
    assert scene.room(400) == []
    assert scene.owners == [0, 3]
    assert [scene.warm_tokens(one) for one in idle] == [0, 200, 200, 0]


@pytest.mark.parametrize("plan", [[], ["agent 1"]])
def test_warm_keeps_what_a_plan_names_before_its_first_turn(plan: list[str]) -> None:
    scene = Scene(hot_tokens=1000, warm_bytes=700 * EchoRunner().layout.token_bytes)
    scene.tiers.foresight.expect(plan, {"agent 1": 1})
    lineages = [scene.idle(number) for number in range(1, 4)]
    for lineage in lineages:
        scene.evictor.evict(lineage)
    assert (scene.warm_tokens(lineages[0]) == 200) == bool(plan)


def test_what_is_pinned_leaves_last() -> None:
    scene = Scene(hot_tokens=1024)
    for n in range(4):
        scene.idle(n)
    scene.store._pins.agents.update({0, 1})
    scene.room(400)
    assert scene.owners == [0, 1]
    scene.room(1000)
    assert scene.owners == [], "a pin says what goes last, and reserves nothing"


def test_kv_that_a_waiting_request_will_use_leaves_after_the_others() -> None:
    scene = Scene(hot_tokens=1024)
    idle = [scene.idle(n) for n in range(4)]
    scene.waiting.add(Request(feed=Feed(), asker=None, owner=idle[0].owner))  # type: ignore[arg-type]
    scene.room(400)
    assert scene.owners == [0, 3]
    scene.waiting.clear()
    scene.room(600)
    assert scene.owners == [3]


def test_while_others_decode_nobody_leaves_before_warm_has_it() -> None:
    scene = Scene(hot_tokens=1024)
    idle = [scene.idle(n) for n in range(4)]
    leaving = scene.room(400, hurry=True)
    assert [one.agent_id for one in leaving] == [0, 1]
    assert scene.owners == [0, 1, 2, 3]
    assert scene.warm_tokens(idle[0]) == 0
    while scene.saver.busy:
        scene.saver.step(hurry=True)
    assert scene.room(400, hurry=True) == []
    assert scene.owners == [2, 3]
    assert [scene.warm_tokens(one) for one in idle] == [200, 200, 0, 0]


def test_a_lineage_that_goes_on_while_it_is_copied_leaves_nothing_half_done() -> None:
    scene = Scene(hot_tokens=1024)
    lineage = scene.idle(0)
    scene.saver.copy(lineage)
    scene.saver._advance(scene.saver._copies[id(lineage)][1])
    assert scene.tiers.warm.n_bytes > 0
    scene.saver.settle(lineage)
    assert (scene.tiers.warm.n_bytes, scene.saver.busy) == (0, False)
    scene.evictor.evict(lineage)
    assert scene.warm_tokens(lineage) == 200


def test_what_would_leave_next_is_copied_ahead_of_need() -> None:
    scene = Scene(hot_tokens=1024)
    idle = [scene.idle(n) for n in range(4)]  # 4 x 256 tokens of room: all of the budget
    scene.evictor.free()
    scene.saver.step(hurry=False)
    assert [one.is_offered for one in idle] == [True, False, False, False]
    assert scene.warm_tokens(idle[0]) == 200
    assert scene.owners == [0, 1, 2, 3]


def test_a_warm_tier_that_is_too_small_lets_it_go_all_the_same() -> None:
    scene = Scene(hot_tokens=1024, warm_bytes=5_000)
    idle = [scene.idle(n) for n in range(4)]
    while leaving := scene.room(400, hurry=True):
        assert all(scene.saver.is_copying(one) for one in leaving)
        scene.saver.step(hurry=True)
    assert scene.owners == [2, 3]
    assert scene.warm_tokens(idle[0]) == 0


def test_what_is_unused_for_its_time_leaves_hot_then_warm_and_pins_stay() -> None:
    scene = Scene(hot_tokens=4096, ttl_s=10.0)
    idle = [scene.idle(n) for n in range(3)]  # used at 1, 2 and 3 s
    scene.store._pins.agents.add(0)
    assert (scene.evictor.is_due, scene.evictor.sleep_s) == (False, 7.0)
    scene.now_s = 12.5
    assert scene.evictor.is_due
    scene.evictor.expire(hurry=False)
    assert scene.owners == [0, 2]
    assert scene.evictor.sleep_s == pytest.approx(0.5)
    scene.now_s = 13.0
    scene.evictor.expire(hurry=False)
    assert scene.owners == [0]
    assert [scene.warm_tokens(one) for one in idle] == [0, 0, 200], "what was as long unused as warm keeps it is gone"


def test_what_is_due_while_others_decode_leaves_once_it_is_copied() -> None:
    scene = Scene(hot_tokens=4096, ttl_s=10.0)
    lineage = scene.idle(0)
    scene.now_s = 11.0
    scene.evictor.expire(hurry=True)
    assert (scene.owners, scene.saver.busy) == ([0], True)
    assert 0.0 < (scene.evictor.sleep_s or 0.0) < 1.0
    while scene.saver.busy:
        scene.saver.step(hurry=True)
    assert scene.warm_tokens(lineage) == 200
    scene.evictor.expire(hurry=True)
    assert scene.owners == []


def test_an_idle_memory_lets_go_of_what_is_too_old() -> None:
    config = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK, hot_ttl_s=0.05, warm_bytes=ROOM, warm_ttl_s=60.0)
    with Memory(EchoRunner(), ":memory:", config=config) as memory:
        memory.agent("ann").say(TEXT, max_tokens=8)
        wait_for(lambda: memory.stats().hot_bytes == 0, "hot to be empty")
        assert memory.stats().evictions == {"hot": 1, "warm": 0}
        assert memory.agent("ann").say("more", max_tokens=8).usage.tier == "warm"


def test_idle_agents_leave_for_warm_and_come_back_from_there(tmp_path: Path) -> None:
    runner = EchoRunner()
    config = Config(
        chunk_tokens=CHUNK, prefill_tokens=CHUNK, hot_bytes=2048 * runner.layout.token_bytes, warm_bytes=ROOM
    )
    with Memory(runner, tmp_path, config=config) as memory:
        for number in range(12):
            memory.agent(f"agent {number}").say(f"{number}! " + TEXT[:300], max_tokens=20)
        again = memory.agent("agent 0").say("again", max_tokens=20)
        assert (again.text, again.usage.tier, again.usage.exactness) == ("again", "warm", "exact")
        stats = memory.stats()
        assert again.usage.tier_tokens == {"warm": again.usage.cached_tokens}
        assert stats.tier_tokens["warm"] >= again.usage.cached_tokens
        assert stats.evictions["hot"] > 0


def test_a_pin_outlives_the_process_and_ends_with_the_agent(tmp_path: Path) -> None:
    config = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK)
    with Memory(EchoRunner(), tmp_path, config=config) as memory:
        memory.agent("ann").pin()
        memory.agent("bob").pin()
        memory.agent("bob").pin(False)
        assert memory.agent("ann").info.is_pinned
    with Memory(EchoRunner(), tmp_path, config=config) as memory:
        assert {info.name: info.is_pinned for info in memory.agents()} == {"ann": True, "bob": False}
        assert memory.agent("ann").info.is_pinned
        memory.delete("ann")
        assert memory._store.pins == set()
        assert not memory.agent("ann").info.is_pinned


def test_the_disk_keeps_what_is_pinned_and_lets_the_others_go(tmp_path: Path) -> None:
    runner = EchoRunner()
    config = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK, disk_bytes=2000 * runner.layout.token_bytes)
    with Memory(runner, tmp_path, config=config) as memory:
        memory.agent("ann").say(TEXT[:300], max_tokens=20)
        memory.agent("ann").pin()
        for number in range(12):
            memory.agent(f"agent {number}").say(f"{number}! " + TEXT[:300], max_tokens=20)
            memory.flush()
        memory.evict()
        assert memory.agent("ann").say("again", max_tokens=20).usage.tier == "cold"
        assert memory.agent("agent 0").say("again", max_tokens=20).usage.cached_tokens < 5, "the template's opening"


@pytest.mark.mlx
@pytest.mark.parametrize("to", ["warm", "cold"])
def test_active_bytes_of_mlx_fall_by_what_is_evicted(to: str, tmp_path: Path) -> None:
    import mlx.core as mx

    from tests.parts.tinyrunner import endless

    config = Config(chunk_tokens=CHUNK, prefill_tokens=64, warm_bytes=ROOM)
    with Memory(endless("llama"), tmp_path, config=config) as memory:
        for number in range(4):
            memory.agent(f"agent {number}").say(f"{number} " + TEXT[:500], max_tokens=2)
        memory.flush()
        gc.collect()
        before, hot_bytes = mx.get_active_memory(), memory.stats().hot_bytes
        memory.evict("agent 1", to=to)
        gc.collect()
        left = memory.stats().hot_bytes
        assert 0 < left < hot_bytes
        assert before - mx.get_active_memory() >= hot_bytes - left
        memory.evict(to=to)
        gc.collect()
        assert memory.stats().hot_bytes == 0
        assert before - mx.get_active_memory() >= hot_bytes
        assert (memory.stats().warm_bytes > 0) == (to == "warm")


def test_spare_bytes_of_the_batch_are_freed_before_any_lineage_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, spare = Scene(hot_tokens=1000), {"bytes": 0}
    batch, token_bytes = type(scene.running.batch), scene.layout.token_bytes
    monkeypatch.setattr(batch, "spare_nbytes", property(lambda _: spare["bytes"]))
    monkeypatch.setattr(batch, "tidy", lambda _: spare.update(bytes=0))
    scene.idle(1)
    scene.idle(2)
    spare["bytes"] = scene.admission.limit_bytes - scene.hot.nbytes
    scene.evictor.free()
    assert spare["bytes"] > 0, "there is room for them"
    spare["bytes"] += 1
    scene.evictor.free()
    assert (spare["bytes"], scene.owners) == (0, [1, 2])
    spare["bytes"] = scene.admission.limit_bytes - scene.hot.nbytes
    plan = Plan(wanted=np.zeros(0, np.uint32), stored=Match(0, (), np.zeros(0, np.uint8)))
    assert scene.evictor.make_room(token_bytes, plan, hurry=False) == []
    assert (spare["bytes"], scene.owners) == (0, [1, 2])
