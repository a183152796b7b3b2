"""Law 6: allocated hot, warm and disk bytes stay within their budgets, whatever is asked in whatever order.

Answers are EchoRunner's, read back out of the KV arrays: one wrong byte from any tier makes them garbage.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from agent_memory import Config, EchoRunner, Memory, Stats

TEXT = "The lamp is lit at dusk and put out at dawn; the log notes wind, sea and every ship that passes. " * 30
SYSTEMS = [None, TEXT[:50], TEXT[:300], TEXT[:600], TEXT[:900]]
NAMES = [f"agent {n}" for n in range(12)]
HOT, WARM, DISK = 3000, 2000, 9000  #: tokens
OPERATIONS = [
    *["say"] * 10, "plain", "batch", "fork", "rewind", "rewind", "delete", "evict warm", "evict cold", "evict all",
    "pin", "unpin", "prefill", "flush",
]  # fmt: skip


class Walk:
    """One random operation after another, with the budgets looked at after each."""

    def __init__(self, path: Path | None, seed: int) -> None:
        runner = EchoRunner()
        token_bytes = runner.layout.token_bytes
        self.draw = random.Random(seed)
        self.config = Config(
            chunk_tokens=16,
            prefill_tokens=64,
            hot_bytes=HOT * token_bytes,
            warm_bytes=WARM * token_bytes,
            disk_bytes=DISK * token_bytes,
        )
        self.memory = Memory(runner, path or ":memory:", config=self.config)
        self.peaks: Counter[str] = Counter()

    def operate(self, what: str) -> None:
        """Do it, to a random agent."""
        memory, name, start = self.memory, self.draw.choice(NAMES), self.draw.randrange(80)
        text = TEXT[start:][: self.draw.choice([3, 20, 100, 500])].strip()
        known = {info.name for info in memory.agents()}
        agent = memory.agent(name, system=None if name in known else self.draw.choice(SYSTEMS))
        if agent.n_tokens > HOT // 4:
            memory.delete(name)
            agent = memory.agent(name)
        if what == "say":
            assert agent.say(text, max_tokens=len(text) + 8).text == text
        elif what == "plain":
            assert memory.generate(text, max_tokens=len(text) + 8).text == text
        elif what == "batch":
            texts = [text[:n] for n in (3, 30, 100) if text[:n].strip() == text[:n]]
            assert [reply.text for reply in memory.batch(texts, max_tokens=120)] == texts
        elif what == "fork" and agent.messages:
            history = [{"role": m.role, "content": m.content} for m in agent.messages]
            other = self.draw.choice([n for n in NAMES if n != name])
            memory.delete(other)
            memory.generate([*history, {"role": "user", "content": text}], agent=other, max_tokens=len(text) + 8)
        elif what == "rewind" and agent.info.n_turns:
            agent.rewind(self.draw.randint(1, agent.info.n_turns))
        elif what == "delete":
            memory.delete(name)
        elif what == "evict all":
            memory.evict(to=self.draw.choice(["warm", "cold"]))
        elif what.startswith("evict"):
            memory.evict(name, to=what.split()[1])
        elif what in ("pin", "unpin"):
            agent.pin(what == "pin" and self.draw.random() < 0.5)
        elif what == "prefill":
            memory.prefill(TEXT[: self.draw.choice([100, 900])])
        elif what == "flush":
            memory.flush()

    def look(self, when: object) -> Stats:
        """The law, now."""
        stats = self.memory.stats()
        self.peaks.update({t: max(0, n - self.peaks[t]) for t, n in self.bytes_of(stats).items()})
        assert stats.hot_bytes <= (self.config.hot_bytes or 0), when
        assert stats.warm_bytes <= (self.config.warm_bytes or 0), when
        return stats

    @staticmethod
    def bytes_of(stats: Stats) -> dict[str, int]:
        return {"hot": stats.hot_bytes, "warm": stats.warm_bytes, "disk": stats.disk_bytes}

    def go(self, n_operations: int) -> None:
        for number in range(n_operations):
            what = self.draw.choice(OPERATIONS)
            self.operate(what)
            self.look((number, what))
            if number % 4 == 0:
                self.memory.flush()
                assert self.look((number, "flush")).disk_bytes <= (self.config.disk_bytes or 0), number
        stats = self.look("end")
        assert stats.damage == stats.save_failures == 0
        assert self.memory.verify().ok
        assert self.peaks["hot"] > 0.5 * (self.config.hot_bytes or 0), "the hot budget was never short"
        assert self.peaks["warm"] > 0.9 * (self.config.warm_bytes or 0), "the warm budget was never short"
        assert stats.evictions["warm"] > 0
        assert stats.hits["warm"] > 0


def test_every_tier_is_within_its_budget_after_each_of_100_operations(tmp_path: Path) -> None:
    walk = Walk(tmp_path, 1)
    with walk.memory:
        walk.go(100)


def test_without_a_disk_hot_and_warm_are_within_theirs_after_each_of_100_operations() -> None:
    walk = Walk(None, 2)
    with walk.memory:
        walk.go(100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_every_tier_is_within_its_budget_after_each_of_2000_operations(seed: int, tmp_path: Path) -> None:
    walk = Walk(tmp_path, seed)
    with walk.memory:
        walk.go(2000)
        assert walk.peaks["disk"] > 0.9 * (walk.config.disk_bytes or 0), "the disk's budget was never short"
        assert walk.look("end").hits["cold"] > 0
